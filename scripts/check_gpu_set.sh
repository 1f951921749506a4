#!/usr/bin/env bash
# Asks the GPU set, on any machine, what it would do on a GPU: before you rent one, or after you changed a profile or a pin.
#
#   bash scripts/check_gpu_set.sh                        every profile of configs/hardware
#   bash scripts/check_gpu_set.sh --profiles t4 h100     some of them; --checks chooses checks, too
#
# Installs requirements/gpu.txt into .venv_gpu the first time: 4.6 GB to download, 12 GB of disk. Needs a C compiler
# where NVIDIA's driver is missing. docs/hardware.md says what is checked.
set -euo pipefail
case ${1:-} in -h | --help) sed -nE '2,/^set /{/^set /d;s/^# ?//p}' "${BASH_SOURCE[0]}"; exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TSC_VENV=.venv_gpu PROFILE=gpu bash scripts/setup_env.sh
exec .venv_gpu/bin/python recipes/gpu_set/checks.py "$@"
