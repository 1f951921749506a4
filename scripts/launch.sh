# shellcheck shell=bash
# What the launchers share; sourced by them, not run. Sets: PYTHON, HARDWARE and the environment of a run.
# Gives: prepare, stage, stage_done, run, total_time, choose_loggers, ray_folder.

LAUNCH_START=$SECONDS
PYTHON=.venv/bin/python
child=
ray_dir=

# ---------------------------------------------------------------------------------------------- ending

# Whatever is running is under recipes/supervise.py, which clears up behind it when it is told to end.
finish() {
    if [[ -n $child ]]; then
        kill -TERM "$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
        child=
    fi
    if [[ -n $ray_dir ]]; then rm -rf "$ray_dir"; fi
}
interrupted() {  # interrupted STATUS
    trap '' INT TERM HUP
    finish
    printf '\nstopped; the same command goes on from here\n' >&2
    exit "$1"
}
trap finish EXIT
trap 'interrupted 130' INT
trap 'interrupted 143' TERM
trap 'interrupted 129' HUP

# run [OPTION OF recipes/supervise.py]... -- COMMAND...
run() {
    local status=0
    "$PYTHON" recipes/supervise.py --parent-pid $$ "$@" &
    child=$!
    wait "$child" || status=$?
    child=
    if ((status == 137)); then sweep; fi
    return "$status"
}

# Marks every process of this launch, for the one case that the supervisor itself was killed.
export TSC_LAUNCH=$$
sweep() {
    local environ
    for environ in /proc/[0-9]*/environ; do
        if grep -qzsx "TSC_LAUNCH=$$" "$environ"; then
            kill -KILL "$(basename "$(dirname "$environ")")" 2>/dev/null || true
        fi
    done
}

# ---------------------------------------------------------------------------------------------- stages

seconds() { printf '%d min %02d s' $(($1 / 60)) $(($1 % 60)); }

stage_start=$SECONDS
stage() { stage_start=$SECONDS; printf '== %s\n' "$*"; }
stage_done() { printf '   done in %s: %s\n' "$(seconds $((SECONDS - stage_start)))" "$*"; }
skipped() { printf '== %s: already done, %s\n' "$1" "$2"; }
total_time() { seconds $((SECONDS - LAUNCH_START)); }

fail() { printf 'error: %s\n' "$1" >&2; exit 2; }

# ---------------------------------------------------------------------------------------------- set-up

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }

# prepare: .venv, the hardware file, and the environment that every process of the run inherits
prepare() {
    if [[ $HARDWARE == auto ]]; then
        if has_gpu && [[ -f configs/hardware/gpu.yaml ]]; then HARDWARE=gpu; else HARDWARE=cpu; fi
    fi
    if [[ $HARDWARE == cpu ]]; then PROFILE=${PROFILE:-cpu}; fi
    PROFILE=${PROFILE:-auto} bash scripts/setup_env.sh
    export PATH="$PWD/.venv/bin:$PATH"

    # Without byte code the dozen processes of a run compile torch and vLLM a dozen times.
    unset PYTHONDONTWRITEBYTECODE
    # Each run has its own Ray; an address in the environment would make it join another.
    unset RAY_ADDRESS
    export RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HYDRA_FULL_ERROR=1
    # TransferQueue's threads: its default of 8 fills the log with warnings on fewer cores.
    export TQ_NUM_THREADS=${TQ_NUM_THREADS:-$(nproc)}

    if [[ $HARDWARE == cpu ]]; then
        export VERL_PLATFORM=cpu VERL_USE_EXTERNAL_MODULES=recipes.verl_cpu
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}
        # Threads that wait by spinning take the cores from the run's other processes: 3 times slower where they share.
        export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
        # vLLM would tie its threads to cores on which the trainer's run too.
        export VLLM_CPU_OMP_THREADS_BIND=${VLLM_CPU_OMP_THREADS_BIND:-nobind}
    fi
}

# offline_models: models come as local folders, so nothing needs the hub
offline_models() { export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1; }

# ray_folder: a new folder for this run's Ray. Short, for the sockets in it may have 107 characters of path.
ray_folder() {
    if [[ -n $ray_dir ]]; then rm -rf "$ray_dir"; fi
    local base=${TMPDIR:-/tmp}
    if ((${#base} > 30)); then base=/tmp; fi
    ray_dir=$(mktemp -d "$base/tsc-ray.XXXXXX")
}

# ---------------------------------------------------------------------------------------------- logging

has_wandb_key() {
    [[ -n ${WANDB_API_KEY:-} ]] || grep -qs 'api\.wandb\.ai' "${NETRC:-$HOME/.netrc}"
}

# choose_loggers STAGE_DIR ID: sets LOGGERS and METRICS_FILE, and what verl's loggers read from the environment
choose_loggers() {
    local dir id=$2
    dir=$(realpath -m "$1")
    mkdir -p "$dir/metrics" "$dir/tensorboard"
    # verl's file logger starts its file anew; a file for each start keeps what was written before a resume
    METRICS_FILE=$dir/metrics/$(date -u +%Y%m%dT%H%M%S).jsonl
    export VERL_FILE_LOGGER_PATH=$METRICS_FILE TENSORBOARD_DIR=$dir/tensorboard
    LOGGERS='console,file,tensorboard'
    case $WANDB in
        off) return ;;
        auto) if has_wandb_key; then WANDB_MODE=online; else WANDB_MODE=offline; fi ;;
        online | offline) WANDB_MODE=$WANDB ;;
        *) fail "WANDB=$WANDB is unknown: choose auto, online, offline or off" ;;
    esac
    LOGGERS+=',wandb'
    mkdir -p "$dir/wandb"
    # one id for all starts, so that a resumed run continues its curves
    if [[ ! -s $dir/wandb_id ]]; then printf '%s-%s\n' "$id" "$RANDOM$RANDOM" >"$dir/wandb_id"; fi
    WANDB_RUN_ID=$(<"$dir/wandb_id")
    export WANDB_MODE WANDB_RUN_ID WANDB_RESUME=allow WANDB_DIR=$dir WANDB_SILENT=true
}

# wandb_hint STAGE_DIR...: how to send what was logged offline
wandb_hint() {
    if [[ ${WANDB_MODE:-} == offline ]]; then
        printf 'wandb     offline; to send: .venv/bin/wandb sync'
        printf ' %s/wandb/offline-run-*' "$@"
        printf '\n'
    fi
}
