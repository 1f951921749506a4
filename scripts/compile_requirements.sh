#!/usr/bin/env bash
# Compiles the pins with their hashes: pyproject.toml and requirements/*.in -> requirements/{cpu,gpu,dev}.txt.
#
#   bash scripts/compile_requirements.sh                          keep the pins that still satisfy the .in files
#   bash scripts/compile_requirements.sh --upgrade                newest releases that fit together
#   bash scripts/compile_requirements.sh --upgrade-package ray    one package
#
# Works without a GPU and installs nothing. Needs uv on PATH or in .uv. Further options go to `uv pip compile`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The set-up puts its own uv into .uv when PATH has none.
PATH=$PATH:$PWD/.uv/bin
command -v uv >/dev/null || { echo "error: uv is not on PATH: install it with 'python3 -m pip install --user uv'" >&2; exit 2; }

# Python 3.12 resolves to the same set as 3.11. No registry or folder of this machine may get into the files.
common=(--python-version 3.11 --python-platform x86_64-manylinux_2_28 --quiet --generate-hashes
    --no-header --no-emit-index-url --no-emit-find-links)

# The registry does not have the CPU build of torch. It comes from a folder in PIP_FIND_LINKS, else from PyTorch's own index.
cpu_torch=(--torch-backend cpu)
for place in ${PIP_FIND_LINKS:-}; do
    common+=(--find-links "$place")
    if compgen -G "$place/torch-2*+cpu-*.whl" >/dev/null; then cpu_torch=(); fi
done

echo "requirements/cpu.txt"
# torch itself stays in requirements/cpu-torch.txt, which says why.
uv pip compile pyproject.toml --extra figures --extra llm --extra excel requirements/cpu.in "${common[@]}" "${cpu_torch[@]}" \
    --override requirements/overrides.txt --override requirements/overrides_of_both.txt --no-emit-package torch --output-file requirements/cpu.txt "$@"
echo "requirements/gpu.txt"
uv pip compile pyproject.toml --extra figures --extra llm --extra excel requirements/gpu.in "${common[@]}" \
    --override requirements/overrides_of_both.txt --output-file requirements/gpu.txt "$@"
echo "requirements/dev.txt"
uv pip compile requirements/dev.in "${common[@]}" --constraint requirements/cpu.txt --constraint requirements/gpu.txt \
    --output-file requirements/dev.txt "$@"
