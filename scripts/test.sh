#!/usr/bin/env bash
# Runs every check of the repository: set-up, lint, formatting, shell scripts, Dockerfiles, types, tests.
#
#   bash scripts/test.sh                      all of them, some 35 minutes on 2 cores
#   bash scripts/test.sh -m "not slow"        options for pytest
#   bash scripts/test.sh tests/tsc -x         one folder, up to the first failure
#
# Stops at the first stage that fails, with its exit status.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

DEV=1 bash scripts/setup_env.sh
export PATH="$PWD/.venv/bin:$PATH"
# The tests start many Python processes. With this variable each would compile the project's modules again.
unset PYTHONDONTWRITEBYTECODE

stage() {  # stage NAME COMMAND...
    local name=$1 start=$SECONDS status=0
    shift
    "$@" || status=$?
    if ((status)); then
        printf 'test: %s: FAILED after %d s (exit status %d)\n' "$name" $((SECONDS - start)) "$status" >&2
        exit "$status"
    fi
    printf 'test: %s: passed in %d s\n' "$name" $((SECONDS - start))
}

check_shell_scripts() {
    local -a scripts
    mapfile -t scripts < <(git ls-files --cached --others --exclude-standard -- '*.sh' '*.sbatch' .ci/run)
    shellcheck -x "${scripts[@]}"
}

if ! command -v chromium chromium-browser google-chrome >/dev/null; then
    printf 'test: no chromium: the tests that open a page in a browser are skipped (Debian, Ubuntu: apt-get install chromium)\n'
fi
if ! command -v Xvfb >/dev/null; then
    printf 'test: no Xvfb: the test that opens sumo-gui is skipped (Debian, Ubuntu: apt-get install xvfb)\n'
fi
stage 'lint' ruff check --quiet
stage 'formatting' ruff format --check --quiet
stage 'shell scripts' check_shell_scripts
stage 'Dockerfiles' hadolint docker/Dockerfile docker/Dockerfile.cpu
stage 'types' mypy
stage 'tests' pytest "$@"
printf 'test: everything passed in %d s\n' "$SECONDS"
