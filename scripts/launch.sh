# shellcheck shell=bash disable=SC2034
# What the launchers share; sourced by them, not run. Sets: PYTHON, HARDWARE, HARDWARE_OVERRIDES and the environment of a
# run. Gives: prepare, check_writable, find_model, fetch_model, check_adapter, plan, stage, stage_done, run, total_time, choose_loggers,
# check_cluster, remove_older_checkpoints, choose_ray.

LAUNCH_START=$SECONDS
PYTHON=.venv/bin/python
child=
ray_dir=

# ---------------------------------------------------------------------------------------------- ending

# Whatever is running is under recipes/running/supervise.py, which clears up behind it when it is told to end.
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

# run [OPTION OF recipes/running/supervise.py]... -- COMMAND...
run() {
    local status=0
    "$PYTHON" recipes/running/supervise.py --parent-pid $$ "$@" &
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

# prepare: .venv, the hardware and what it means for Hydra, and the environment that every process of the run inherits
prepare() {
    user_threads=${OMP_NUM_THREADS:-}
    case $DRY_RUN in 0 | 1) ;; *) fail "DRY_RUN=$DRY_RUN is unknown: use 0 or 1" ;; esac
    if [[ $HARDWARE == cpu ]]; then PROFILE=${PROFILE:-cpu}; fi
    PROFILE=${PROFILE:-auto} bash scripts/setup_env.sh
    if [[ $HARDWARE == auto ]]; then
        local found
        found=$("$PYTHON" recipes/preflight/hardware.py)
        HARDWARE=${found% *} N_GPUS=${N_GPUS:-${found#* }}
    elif [[ $HARDWARE != cpu && -f configs/hardware/$HARDWARE.yaml && $DRY_RUN == 0 ]] && ! has_gpu; then
        fail "HARDWARE=$HARDWARE needs an NVIDIA GPU, and nvidia-smi finds none here: choose cpu, or look with DRY_RUN=1"
    fi
    HARDWARE_OVERRIDES=()
    if [[ -n $N_GPUS ]]; then
        HARDWARE_OVERRIDES+=("hardware.num_devices=$N_GPUS" "hardware.ray_num_cpus=$((3 * N_GPUS + 2))")
    fi
    if [[ ${TENSOR_PARALLEL:-1} != 1 ]]; then HARDWARE_OVERRIDES+=("hardware.tensor_parallel=$TENSOR_PARALLEL"); fi
    if [[ -n ${MICRO_BATCH:-} ]]; then HARDWARE_OVERRIDES+=("hardware.micro_batch_size=$MICRO_BATCH"); fi

    export PATH="$PWD/.venv/bin:$PATH"

    # Without byte code the dozen processes of a run compile torch and vLLM a dozen times.
    unset PYTHONDONTWRITEBYTECODE
    # Each run has its own Ray, unless it was told which one to join; what else it starts must not join that by itself.
    cluster=${RAY_ADDRESS:-}
    unset RAY_ADDRESS
    export RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HYDRA_FULL_ERROR=1
    # TransferQueue's threads: its default of 8 fills the log with warnings on fewer cores.
    export TQ_NUM_THREADS=${TQ_NUM_THREADS:-$(nproc)}

    if [[ $HARDWARE == cpu ]]; then
        export VERL_PLATFORM=cpu VERL_USE_EXTERNAL_MODULES=recipes.verl_plugins.cpu
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}
        # Threads that wait by spinning take the cores from the run's other processes: 3 times slower where they share.
        export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
        # vLLM would tie its threads to cores on which the trainer's run too.
        export VLLM_CPU_OMP_THREADS_BIND=${VLLM_CPU_OMP_THREADS_BIND:-nobind}
        # torch compiles with a C++ compiler, which not every machine has; here vLLM's sampling would be all it compiles.
        export TORCH_COMPILE_DISABLE=${TORCH_COMPILE_DISABLE:-1}
    fi
}

# check_writable FOLDER...: it, or what there is of its path, takes new files of this user
check_writable() {
    local folder above
    for folder; do
        above=$folder
        while [[ ! -e $above ]]; do above=$(dirname "$above"); done
        if [[ ! -d $above || ! -w $above ]]; then
            fail "user $(id -u) cannot write in $above, where $folder is to lie: let that user have it (an image's: on the host, see docs/docker.md), or choose another"
        fi
    done
}

# plan ALGORITHM MODEL FOLDER OVERRIDE...: says whether the run fits and what it will take; with DRY_RUN=1 the end
plan() {
    local folder=$3
    local -a options=(--algorithm "$1" --hardware "$HARDWARE" --model "$2")
    shift 3
    if [[ ${PLANNED:-no} == yes ]]; then return; fi
    case $FIT in
        check) ;;
        ignore) options+=(--ignore-fit) ;;
        *) fail "FIT=$FIT is unknown: choose check or ignore" ;;
    esac
    if [[ $DRY_RUN == 1 ]]; then options+=(--dry-run --out "$folder/dry_run"); fi
    "$PYTHON" scripts/plan.py "${options[@]}" -- "$@"
    if [[ $DRY_RUN == 1 || ${ONLY_PLAN:-no} == yes ]]; then exit 0; fi
}

# find_model MODEL_PATH: sets base, the folder that training starts from, and planned_model, which the plan counts
find_model() {
    base=$1 planned_model=$1 hub_model=
    if [[ -d $1 ]]; then return; fi
    if [[ -d configs/models/$1 ]]; then
        if [[ $DRY_RUN == 1 ]]; then return; fi
        fail "MODEL_PATH=$1 has no weights, it is for DRY_RUN=1: give a model's folder, or OWNER/NAME on the Hugging Face hub"
    fi
    hub_model=$1
    base=$("$PYTHON" recipes/models/hub_model.py --name "$1" --only-config)
    planned_model=$base
}

# fetch_model: its weights, where find_model found it on the hub
fetch_model() {
    if [[ -n $hub_model ]]; then
        stage "Model: $hub_model from the Hugging Face hub"
        run --name 'recipes/models/hub_model.py' -- "$PYTHON" recipes/models/hub_model.py --name "$hub_model"
        stage_done "$base"
    fi
}

# check_adapter ALGORITHM MODEL: sets TARGETS, what LORA_TARGETS is for Hydra, where the model and the library have it all
check_adapter() {
    TARGETS=$LORA_TARGETS
    if [[ -n ${QUANTIZE:-} ]]; then
        "$PYTHON" recipes/models/quantisation.py --algorithm "$1" --quantize "$QUANTIZE" --lora-rank "$LORA_RANK" --dry-run "$DRY_RUN"
    fi
    if [[ $LORA_TARGETS != all-linear ]]; then
        TARGETS=$("$PYTHON" recipes/lora_targets.py --model "$2" --targets "$LORA_TARGETS")
    fi
}

# offline_models: models come as local folders, so nothing needs the hub
offline_models() { export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1; }

# ---------------------------------------------------------------------------------------------- Ray

# ray_token: the nodes of a cluster know each other by a token, where this machine has one
ray_token() {
    if [[ -n ${RAY_AUTH_TOKEN:-} || -s ${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token} ]]; then
        export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
    fi
}

# check_cluster OPTION OF recipes/running/cluster_check.py...: its nodes have what this machine has, and there are enough of them
check_cluster() {
    [[ $NNODES =~ ^[1-9][0-9]*$ ]] || fail "NNODES=$NNODES is no whole number above 0"
    if [[ $DRY_RUN == 1 ]]; then return; fi
    if [[ -n $cluster ]]; then
        ray_token
        "$PYTHON" recipes/running/cluster_check.py --address "$cluster" --hardware "$HARDWARE" --nodes "$NNODES" \
            ${N_GPUS:+--gpus-per-node "$N_GPUS"} "$@"
    elif ((NNODES > 1)); then
        fail "NNODES=$NNODES takes a Ray cluster: start one (bash scripts/ray_cluster.sh head), then name it by RAY_ADDRESS=IP:PORT"
    fi
}

# What the processes of a run read from the environment: on a cluster they are no children of this one.
WORKER_VARIABLES=(
    VERL_PLATFORM VERL_USE_EXTERNAL_MODULES VERL_FILE_LOGGER_PATH TENSORBOARD_DIR TQ_NUM_THREADS
    OMP_NUM_THREADS OMP_WAIT_POLICY VLLM_CPU_OMP_THREADS_BIND TORCH_COMPILE_DISABLE VLLM_NO_USAGE_STATS DO_NOT_TRACK
    HF_HUB_OFFLINE TRANSFORMERS_OFFLINE WANDB_MODE WANDB_RUN_ID WANDB_RESUME WANDB_DIR WANDB_SILENT
)

# remove_older_checkpoints FOLDER OVERRIDE...: verl counts what it keeps within a process, and so leaves the checkpoint that
# a resumed training began from. Nothing goes where an override says how many to keep, or where they lie.
remove_older_checkpoints() {
    local folder=$1 last older
    shift
    if [[ " $*" == *ckpt_to_keep=* || ! -f $folder/latest_checkpointed_iteration.txt ]]; then return; fi
    last=$(<"$folder/latest_checkpointed_iteration.txt")
    for older in "$folder"/global_step_*; do
        if [[ $older != "$folder/global_step_$last" ]]; then rm -rf "$older"; fi
    done
}

# choose_ray: sets RAY_OVERRIDES and DRIVER, the start of the driver's command line, for a Ray of this run's own or the cluster
choose_ray() {
    local name rewards agents
    if [[ -z $cluster ]]; then
        ray_folder
        RAY_OVERRIDES=("ray_kwargs.ray_init._temp_dir=$ray_dir") DRIVER=("$PYTHON")
        return
    fi
    DRIVER=("$PYTHON" recipes/running/cluster_run.py --address "$cluster" -- "$PYTHON")
    # verl spreads these over the nodes, and the profile says how many one has
    read -r rewards agents < <("$PYTHON" -c 'import sys; from recipes.preflight.hardware import load_hardware
profile = load_hardware(sys.argv[1]); print(profile.num_reward_workers, profile.num_agent_workers)' "$HARDWARE")
    RAY_OVERRIDES=(
        "ray_kwargs.ray_init.address=$cluster"
        "ray_kwargs.ray_init.num_cpus=null"
        "ray_kwargs.ray_init.num_gpus=null"
        "ray_kwargs.ray_init.object_store_memory=null"
        "reward.num_workers=$((NNODES * rewards))"
        "actor_rollout_ref.rollout.agent.num_workers=$((NNODES * agents))"
    )
    for name in "${WORKER_VARIABLES[@]}"; do
        if [[ -n ${!name:-} ]]; then
            RAY_OVERRIDES+=("+ray_kwargs.ray_init.runtime_env.env_vars.$name='${!name//\'/\\\'}'")
        fi
    done
}

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
