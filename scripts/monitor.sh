#!/usr/bin/env bash
# Shows all trainings of a folder in a browser, while they run and after a crash: http://127.0.0.1:7860 (docs/monitor.md).
#
#   bash scripts/monitor.sh                                of runs/
#   bash scripts/monitor.sh --runs FOLDER --port 8000
#   bash scripts/monitor.sh --host 0.0.0.0                 for other machines, with a token
set -euo pipefail
# a folder is named as seen from where the command is given
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_env.sh
root=$PWD
cd "$here"
exec "$root/.venv/bin/python" "$root/scripts/monitor.py" "$@"
