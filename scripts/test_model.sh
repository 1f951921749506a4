#!/usr/bin/env bash
# Tries a trained model: on one decision, by hand, or on a file of them. docs/test_model.md shows both.
#
#   bash scripts/test_model.sh --model-path runs/demo/grpo/merged --single
#   bash scripts/test_model.sh --model-path runs/demo/grpo/merged --single --data data/four_way --sample 7
#   bash scripts/test_model.sh --model-path runs/demo/grpo/merged --batch --input-file X.xlsx --output-file Y.xlsx
#   bash scripts/test_model.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup_env.sh
exec .venv/bin/python scripts/test_model.py "$@"
