#!/usr/bin/env bash
# Teaches a model the answer format and the better answers by supervised fine-tuning (verl's SFT trainer).
#
#   MODEL_PATH=models/smollm2 DATA=data/four_way/parquet bash scripts/train_sft.sh [HYDRA OVERRIDE...]
#   HARDWARE=t4 MODEL_PATH=qwen2.5-1.5b LORA_RANK=16 DRY_RUN=1 bash scripts/train_sft.sh    whether it fits there
#
# The same command goes on after an interruption. The model lands in $RUNS/$RUN_NAME/sft/merged.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# ---- what to train on what
MODEL_PATH=${MODEL_PATH:-}              # folder in Hugging Face format, or OWNER/NAME on its hub
DATA=${DATA:-data/four_way/parquet}     # folder with sft_train.parquet and sft_val.parquet
# ---- where it runs
HARDWARE=${HARDWARE:-auto}              # auto (from nvidia-smi), or the name of a file in configs/hardware: cpu, t4, a100_80g, h100, …
N_GPUS=${N_GPUS:-}                      # GPUs of each machine; empty: all that HARDWARE=auto finds, else 1
DRY_RUN=${DRY_RUN:-0}                   # 1: compose and check the configuration, write it, print the plan, and stop; needs no GPU
FIT=${FIT:-check}                      # check: stop where the plan says that the run does not fit; ignore: try it all the same
# ---- how
LEARNING_RATE=${LEARNING_RATE:-1e-3}    # peak; cosine decay to 0. About 1e-3 for a tiny new model, 2e-5 for a pretrained one
EPOCHS=${EPOCHS:-3}                     # passes over the data
BATCH_CHATS=${BATCH_CHATS:-64}          # chats a step
MICRO_BATCH=${MICRO_BATCH:-}            # chats in one pass, at most a step's; empty: the hardware file's
LORA_RANK=${LORA_RANK:-0}               # 0: all weights; otherwise the rank of the adapter (8–64)
LORA_ALPHA=${LORA_ALPHA:-32}            # scale of the adapter: alpha / rank
LORA_TARGETS=${LORA_TARGETS:-all-linear} # modules that get one, e.g. q_proj,v_proj
SAVE_EVERY=${SAVE_EVERY:-100}           # steps between checkpoints
# ---- where to
RUN_NAME=${RUN_NAME:-demo}              # $RUNS/$RUN_NAME/sft
RUNS=${RUNS:-runs}                      # folder of all runs
WANDB=${WANDB:-auto}                    # auto (online where a key is present), online, offline, off
WANDB_PROJECT=${WANDB_PROJECT:-tsc-grpo}

# shellcheck source=scripts/launch.sh
source scripts/launch.sh
prepare

out=$RUNS/$RUN_NAME/sft
check_writable "$out"
checkpoints=$out/checkpoints
[[ -n $MODEL_PATH ]] || fail 'MODEL_PATH is empty: give the model to start from'
if [[ -n ${PLANNED_MODEL:-} ]]; then
    # another launcher found it, and may yet have to make it
    base=$MODEL_PATH planned_model=$PLANNED_MODEL hub_model=
else
    find_model "$MODEL_PATH"
fi
check_adapter sft "$planned_model"
CHECK=(
    --hardware "$HARDWARE" --n-gpus "$N_GPUS" --batch-prompts "$BATCH_CHATS" --micro-batch "$MICRO_BATCH"
    --lora-rank "$LORA_RANK" --learning-rate "$LEARNING_RATE" --epochs "$EPOCHS"
)
# the pass that fits the batch
settled=$("$PYTHON" recipes/preflight/check_run.py "${CHECK[@]}")
read -r _ num_devices pass <<<"$settled"
OVERRIDES=(
    "hardware=$HARDWARE"
    "${HARDWARE_OVERRIDES[@]}"
    "hardware.micro_batch_size=$pass"
    "data.train_files=$DATA/sft_train.parquet"
    "data.train_batch_size=$BATCH_CHATS"
    "model.path=$base"
    "model.lora_rank=$LORA_RANK"
    "model.lora_alpha=$LORA_ALPHA"
    "model.target_modules=$TARGETS"
    "optim.lr=$LEARNING_RATE"
    "trainer.total_epochs=$((EPOCHS + 2))"
    "trainer.save_freq=$SAVE_EVERY"
    "trainer.default_local_dir=$(realpath -m "$checkpoints")"
    "trainer.project_name=$WANDB_PROJECT"
    "trainer.experiment_name=$RUN_NAME-sft"
)
plan sft "$planned_model" "$out" "${OVERRIDES[@]}" "$@"

fetch_model
offline_models
settled=$("$PYTHON" recipes/preflight/check_run.py "${CHECK[@]}" --model "$base" --sft "$DATA/sft_train.parquet")
read -r steps _ <<<"$settled"
if [[ -f $out/exported_step ]]; then
    skipped 'SFT' "model in $out/merged"
    exit 0
fi
mkdir -p "$out"
stage "SFT of $MODEL_PATH: $steps steps on $DATA/sft_train.parquet (log: $out/train.log)"
choose_loggers "$out" "$RUN_NAME-sft"

val_file=$DATA/sft_val.parquet
[[ -f $val_file ]] || val_file=null
OVERRIDES+=(
    "data.val_files=$val_file"
    # The steps end the training. Resumed exactly at an epoch's end, verl passes over one epoch without a step.
    "trainer.total_training_steps=$steps"
    "trainer.logger=[$LOGGERS]"
)

run --name 'verl (SFT)' --log "$out/train.log" --metrics "$METRICS_FILE" -- \
    torchrun --standalone --local-addr=127.0.0.1 --nnodes=1 --nproc_per_node="$num_devices" -m verl.trainer.sft_trainer \
    --config-path "$PWD/recipes" --config-name sft \
    "${OVERRIDES[@]}" "$@"
remove_older_checkpoints "$checkpoints" "$@"

run --name 'the export' -- "$PYTHON" scripts/export_model.py --checkpoints "$checkpoints" --base "$base" --out "$out"
stage_done "model in $out/merged"
