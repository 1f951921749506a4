#!/usr/bin/env bash
# Makes a page that plays one junction under one or two controllers on the same traffic, for any browser.
#
#   bash scripts/watch.sh --scenario configs/scenarios/four_way.yaml --controllers max_pressure llm:grpo=runs/demo/grpo/merged
#   bash scripts/watch.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup_env.sh
exec .venv/bin/python scripts/watch.py "$@"
