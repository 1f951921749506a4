#!/usr/bin/env bash
# Makes the Python environment .venv in the repository's root, or brings it up to date. An environment that is up to date is
# left alone, without a message. Every other script calls this one, so you seldom need to call it yourself.
#
#   bash scripts/setup_env.sh
#
# Settings, all optional, from the environment:
#   PROFILE=cpu|gpu|auto      which pinned set: requirements/cpu.txt or requirements/gpu.txt (auto: gpu if nvidia-smi lists a GPU)
#   TSC_VENV=.venv_gpu        folder of the environment, in the repository's root (default: .venv)
#   DEV=1                     with the test and lint tools (requirements/dev.txt); once installed they are kept up to date
#   PYTHON=python3.12         the interpreter for a new .venv: 3.11 or 3.12 (default: the first that fits on PATH, else uv's own)
#   PIP_FIND_LINKS="DIR ..."  folders or pages with further wheels, e.g. the CPU build of torch
#   PIP_INDEX_URL=URL         another registry (UV_DEFAULT_INDEX and uv's other variables work, too)
set -euo pipefail

repo_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$repo_root"

PROFILE=${PROFILE:-auto}
DEV=${DEV:-0}
PYTHON=${PYTHON:-}
UV_SPEC='uv>=0.9,<1'

venv=${TSC_VENV:-.venv}
stamp=$venv/.setup_stamp     # what was installed; written last
lock=$venv.lock              # held while working; its text is "unfinished" until the work is complete
log=$venv.log                # what uv says; kept after a failure
tsc_uv=.uv                   # our own uv, if PATH has none

# Free disk space for the unpacked packages with their byte code (4 and about 13 GB), and some for the first runs.
# uv's cache on the same disk takes no further space, because it shares its files with .venv.
declare -A need_gb=([cpu]=6 [gpu]=16)
declare -A download=([cpu]='1 GB' [gpu]='4.6 GB')

# ---------------------------------------------------------------------------------------------- messages

step_open=0
fail() {  # fail CAUSE [REMEDY...]
    if ((step_open)); then printf 'failed\n'; fi
    printf 'error: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 2
}
begin() { printf 'set-up: %s ... ' "$1"; step_open=1; step_start=$EPOCHREALTIME; }
end() {  # end [RESULT]
    local elapsed_ms=$(((${EPOCHREALTIME/[.,]/} - ${step_start/[.,]/}) / 1000))
    printf '%s%d.%d s\n' "${1:+$1, }" $((elapsed_ms / 1000)) $((elapsed_ms % 1000 / 100))
    step_open=0
}

# ---------------------------------------------------------------------------------------------- up to date?

case $PROFILE in cpu | gpu | auto) ;; *) fail "PROFILE=$PROFILE is unknown: use cpu, gpu or auto" ;; esac
if [[ ! $venv =~ ^\.venv[A-Za-z0-9_-]*$ ]]; then
    fail "TSC_VENV=$venv: choose a name that begins with .venv, without a slash, such as .venv_gpu"
fi
case $DEV in 0 | 1) ;; *) fail "DEV=$DEV is unknown: use 0 or 1" ;; esac

stamped() { [[ -r $stamp ]] && sed -n "s/^$1=//p" "$stamp" || true; }

# The digest of everything that decides what the environment holds. The settings of tools at the end of pyproject.toml do not.
digest() {  # digest PROFILE DEV
    {
        printf '%s\n' "$repo_root" "$1" "$2"
        cat "requirements/$1.txt"
        if [[ $1 == cpu ]]; then cat requirements/cpu-torch.txt; fi
        if (($2)); then cat requirements/dev.txt; fi
        sed -n '/^\[tool\.ruff/q;p' pyproject.toml
        grep -s version "$venv/pyvenv.cfg" || true
    } | sha256sum | cut -d' ' -f1
}

gpu_present() { command -v nvidia-smi >/dev/null && timeout 20 nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }

choose() {  # sets profile and dev
    dev=$DEV
    if [[ $(stamped dev) == 1 ]]; then dev=1; fi
    profile=$PROFILE
    if [[ $profile == auto ]]; then
        # An environment for GPUs stays one on a machine without a GPU: a cluster's login node, or a container without access to one.
        if [[ $(stamped profile) == gpu ]] || gpu_present; then profile=gpu; else profile=cpu; fi
    fi
}

up_to_date() {
    choose
    [[ -x $venv/bin/python && -r $stamp && $(stamped digest) == "$(digest "$profile" "$dev")" ]]
}

if up_to_date; then exit 0; fi

exec 9>>"$lock"
if ! flock --nonblock 9; then
    printf 'set-up: another set-up of this folder is running, waiting for it\n'
    flock 9
    if up_to_date; then exit 0; fi
fi

# ---------------------------------------------------------------------------------------------- this machine

platform="$(uname -s) $(uname -m)"
if [[ $platform != 'Linux x86_64' ]]; then
    fail "the pinned packages are for Linux x86_64, and this is $platform" \
        "Use such a machine, WSL 2 on Windows, or a container."
fi

if [[ -L $venv ]]; then
    fail "$repo_root/$venv is a link to $(readlink -f "$venv"), which another tree may be using" \
        "Remove the link, so that this tree gets an environment of its own:  rm '$repo_root/$venv'"
fi

# The environment of the previous call is kept and updated if that is safe.
reuse=0
if [[ -r $stamp && ! -s $lock && $(stamped root) == "$repo_root" && $(stamped profile) == "$profile" ]] &&
    "$venv/bin/python" -c '' 2>/dev/null; then
    reuse=1
elif [[ -e $venv && ! -r $stamp && ! -s $lock ]]; then
    fail "$repo_root/$venv exists, but this script did not make it" \
        "Move or remove it, then call again:  rm -rf '$repo_root/$venv'"
fi

version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }
fits() { [[ $1 == 3.11.* || $1 == 3.12.* ]]; }

python='' seen=()
if ((reuse)); then
    python=$venv/bin/python
elif [[ -n $PYTHON ]]; then
    version=$(version_of "$PYTHON") || fail "PYTHON=$PYTHON does not run" "Name an interpreter of version 3.11 or 3.12."
    fits "$version" || fail "PYTHON=$PYTHON is Python $version, but 3.11 or 3.12 is needed"
    python=$(command -v "$PYTHON")
else
    # 3.11 first: the packages were tested with it most.
    for candidate in python3.11 python3.12 python3 python; do
        version=$(version_of "$candidate") || continue
        seen+=("$candidate is $version")
        if fits "$version"; then python=$(command -v "$candidate"); break; fi
    done
fi

needs_python=(
    "Install Python 3.11 or 3.12 (Debian, Ubuntu:  sudo apt install python3.11), or name one that is not on PATH:"
    "PYTHON=/path/to/python3.11 bash scripts/setup_env.sh"
)
found_pythons="found on PATH: $(IFS=';'; echo "${seen[*]:-none}")"

# ---------------------------------------------------------------------------------------------- disk

free_gb() { df -Pk "$1" | awk 'NR == 2 { printf "%d", $4 / 1048576 }'; }
existing_parent() { local p=$1; while [[ ! -e $p ]]; do p=$(dirname "$p"); done; printf '%s' "$p"; }

if ((!reuse)); then
    need=${need_gb[$profile]}
    cache=$(existing_parent "${UV_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/uv}")
    for place in "$repo_root" "$cache"; do
        free=$(free_gb "$place")
        if ((free < need)); then
            fail "the $profile set needs $need GB of free disk, and $place has $free GB" \
                "Free some space there (uv cache clean, docker system prune), clone the repository to a larger disk," \
                "or keep the downloads elsewhere: UV_CACHE_DIR=/larger/disk/uv bash scripts/setup_env.sh"
        fi
    done
fi

# ---------------------------------------------------------------------------------------------- uv

# PYTHONDONTWRITEBYTECODE would prevent the byte code, and a dozen processes would compile torch again at every start.
unset PYTHONDONTWRITEBYTECODE VIRTUAL_ENV
export UV_NO_PROGRESS=1 UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-120}
if [[ -n ${PIP_INDEX_URL:-} ]]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}; fi

find_links=()
for place in ${PIP_FIND_LINKS:-}; do find_links+=(--find-links "$place"); done

explain_failure() {  # explain_failure WHAT
    if ((step_open)); then printf 'failed\n'; step_open=0; fi
    printf '%s\n' "--- the end of $repo_root/$log:" >&2
    tail -n 15 "$log" >&2
    printf '%s\n' '---' >&2
    if grep -qiE 'no space left|disk quota' "$log"; then
        fail "$1: the disk is full" "Free some space (uv cache clean), then call again."
    fi
    fail "$1" \
        "Check the network and the proxy settings (HTTPS_PROXY, SSL_CERT_FILE), then call again: finished downloads are kept." \
        "A slow line: UV_HTTP_TIMEOUT=600. Another registry: PIP_INDEX_URL=URL. Wheels in a folder: PIP_FIND_LINKS=DIR." \
        "A wheel that does not fit this Python: PYTHON=python3.11."
}

uv_works() { [[ $("$1" --version 2>/dev/null) =~ ^uv\ (0\.(9|[1-9][0-9]+)|[1-9])\. ]]; }

uv=''
for candidate in uv "$tsc_uv/bin/uv" "$HOME/.local/bin/uv"; do
    if uv_works "$candidate"; then uv=$candidate; break; fi
done
if [[ -z $uv ]]; then
    begin "uv, which installs the packages, into $tsc_uv"
    rm -rf "$tsc_uv"
    pip_python=''
    for candidate in ${python:+"$python"} python3 python; do
        if "$candidate" -m pip --version >/dev/null 2>&1; then pip_python=$candidate; break; fi
    done
    [[ -n $pip_python ]] || fail "neither uv nor a Python with pip was found" \
        "Install one of them, e.g.  sudo apt install python3-pip"
    # A folder of its own needs no rights, and works with a Python that the system manages.
    "$pip_python" -m pip install --quiet --disable-pip-version-check --target "$tsc_uv" "$UV_SPEC" >"$log" 2>&1 ||
        explain_failure "uv could not be installed"
    uv=$tsc_uv/bin/uv
    end "$("$uv" --version | cut -d' ' -f1,2)"
fi

if [[ -z $python ]]; then
    if ! python=$("$uv" python find --no-config --no-python-downloads '>=3.11,<3.13' 2>/dev/null); then
        [[ ${UV_PYTHON_DOWNLOADS:-} != never ]] || fail "no Python 3.11 or 3.12 ($found_pythons)" "${needs_python[@]}"
        begin 'Python 3.11, as none was found'
        "$uv" python install 3.11 >"$log" 2>&1 || {
            printf 'failed\n'; step_open=0
            tail -n 5 "$log" >&2
            fail "no Python 3.11 or 3.12 ($found_pythons), and uv could not fetch one" "${needs_python[@]}"
        }
        python=$("$uv" python find --no-python-downloads 3.11)
        end
    fi
fi

# ---------------------------------------------------------------------------------------------- install

if ((!reuse)); then
    begin "environment $venv with Python $(version_of "$python")"
    echo unfinished >"$lock"
    "$uv" venv --quiet --no-project --clear --python "$python" "$venv" >"$log" 2>&1 ||
        explain_failure "the environment could not be made"
    end
fi
echo unfinished >"$lock"
rm -f "$stamp"

files=("requirements/$profile.txt")
if ((dev)); then files+=(requirements/dev.txt); fi
if [[ $profile == cpu ]]; then torch=requirements/cpu-torch.txt; else torch=''; fi
num_packages=$(cat "${files[@]}" ${torch:+"$torch"} | grep -oE '^[a-z0-9][^=]*==' | sort -u | wc -l)

# The files are complete sets, so nothing is left to resolve (--no-deps). The overrides have had their effect on them.
install() {  # install OPTION OF uv pip install...
    "$uv" pip install --python "$venv/bin/python" --no-config --no-deps --compile-bytecode "${find_links[@]}" "$@" >"$log" 2>&1 ||
        explain_failure "the packages could not be installed"
}

begin "$num_packages packages ($profile$( ((dev)) && echo ', with the test tools')); the first time downloads ${download[$profile]}"
if [[ -n $torch ]]; then
    # The registry does not have the CPU build of torch: it comes from the caller's folders, else from PyTorch's own index.
    torch_backend=(--torch-backend cpu)
    tag=$("$venv/bin/python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    torch_wheel=$(sed -n "s/^torch==\(\S*\).*/torch-\1-$tag-*.whl/p" "$torch")
    for place in ${PIP_FIND_LINKS:-}; do
        if compgen -G "${place#file://}/$torch_wheel" >/dev/null; then torch_backend=(); fi
    done
    install "${torch_backend[@]}" --requirement="$torch"
fi
install --require-hashes "${files[@]/#/--requirement=}"
end

begin 'the project, editable'
# "compat" puts the repository's root on the path: Python then finds new packages and modules without another set-up.
"$uv" pip install --python "$venv/bin/python" --no-config --no-deps --no-build-isolation --offline \
    --config-setting editable_mode=compat --editable . >"$log" 2>&1 ||
    explain_failure "the project could not be installed"
end

begin 'import check'
# In a process of its own: together with pyarrow, libsumo warns of another Arrow version.
"$venv/bin/python" -c 'import libsumo' >"$log" 2>&1 || explain_failure "libsumo does not import"
"$venv/bin/python" - "$profile" >"$log" 2>&1 <<'PYTHON' || explain_failure "the installed packages do not import"
import importlib.util
import sys

import torch

profile = sys.argv[1]
names = ["verl", "vllm", "ray", "transformers", "peft", "pandas", "pyarrow", "pydantic", "sumolib", "transfer_queue"]
missing = [name for name in names if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"not installed: {', '.join(missing)}")
if profile == "cpu" and torch.version.cuda is not None:
    sys.exit(f"torch {torch.__version__} is a CUDA build; the cpu set needs the +cpu build")
if profile == "gpu" and not torch.cuda.is_available():
    print(f"warning: torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use a GPU here: is the driver recent enough?")
PYTHON
end
cat "$log"

cat >"$stamp" <<STAMP
profile=$profile
dev=$dev
root=$repo_root
digest=$(digest "$profile" "$dev")
STAMP
: >"$lock"
rm -f "$log"
