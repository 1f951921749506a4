#!/usr/bin/env bash
# Teaches a model the answer format and the better answers by supervised fine-tuning (verl's SFT trainer).
#
#   MODEL_PATH=models/smollm2 DATA=data/four_way/parquet bash scripts/train_sft.sh [HYDRA OVERRIDE...]
#
# The same command goes on after an interruption. The model lands in $RUNS/$RUN_NAME/sft/merged.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# ---- what to train on what
MODEL_PATH=${MODEL_PATH:-}              # folder of the model to start from, Hugging Face format
DATA=${DATA:-data/four_way/parquet}     # folder with sft_train.parquet and sft_val.parquet
HARDWARE=${HARDWARE:-auto}              # auto, or the name of a file in configs/hardware
# ---- how
LEARNING_RATE=${LEARNING_RATE:-1e-3}    # peak; cosine decay to 0. About 1e-3 for a tiny new model, 2e-5 for a pretrained one
EPOCHS=${EPOCHS:-3}                     # passes over the data
BATCH_CHATS=${BATCH_CHATS:-64}          # chats a step
MICRO_BATCH=${MICRO_BATCH:-}            # chats in one pass, at most a step's; empty: the hardware file's
LORA_RANK=${LORA_RANK:-0}               # 0: all weights; otherwise the rank of the adapter (8–64)
LORA_ALPHA=${LORA_ALPHA:-32}            # scale of the adapter: alpha / rank
SAVE_EVERY=${SAVE_EVERY:-100}           # steps between checkpoints
# ---- where to
RUN_NAME=${RUN_NAME:-demo}              # $RUNS/$RUN_NAME/sft
RUNS=${RUNS:-runs}                      # folder of all runs
WANDB=${WANDB:-auto}                    # auto (online where a key is present), online, offline, off
WANDB_PROJECT=${WANDB_PROJECT:-tsc-grpo}

# shellcheck source=scripts/launch.sh
source scripts/launch.sh
prepare
offline_models

out=$RUNS/$RUN_NAME/sft
checkpoints=$out/checkpoints
[[ -n $MODEL_PATH ]] || fail 'MODEL_PATH is empty: give the folder of the model to start from'
hardware_file=configs/hardware/$HARDWARE.yaml
if [[ -f $hardware_file && $BATCH_CHATS =~ ^[1-9][0-9]*$ ]]; then
    # A pass holds no more chats than a step gives each worker.
    num_devices=$(sed -n 's/^num_devices: *//p' "$hardware_file")
    chats=$((BATCH_CHATS / num_devices)) pass=${MICRO_BATCH:-$(sed -n 's/^micro_batch_size: *//p' "$hardware_file")}
    if ((chats > 0)) && [[ $pass =~ ^[0-9]+$ ]] && ((pass > chats)); then MICRO_BATCH=$chats; fi
fi
steps=$("$PYTHON" recipes/check_run.py --hardware "$HARDWARE" --batch-prompts "$BATCH_CHATS" \
    --micro-batch "$MICRO_BATCH" --lora-rank "$LORA_RANK" --learning-rate "$LEARNING_RATE" --model "$MODEL_PATH" \
    --sft "$DATA/sft_train.parquet" --epochs "$EPOCHS")

if [[ -f $out/exported_step ]]; then
    skipped 'SFT' "model in $out/merged"
    exit 0
fi
mkdir -p "$out"
stage "SFT of $MODEL_PATH: $steps steps on $DATA/sft_train.parquet (log: $out/train.log)"
choose_loggers "$out" "$RUN_NAME-sft"

val_file=$DATA/sft_val.parquet
[[ -f $val_file ]] || val_file=null
DATA_ARGS=(
    data.train_files="$DATA/sft_train.parquet"
    data.val_files="$val_file"
    data.train_batch_size="$BATCH_CHATS"
)
MODEL_ARGS=(
    model.path="$MODEL_PATH"
    model.lora_rank="$LORA_RANK"
    model.lora_alpha="$LORA_ALPHA"
    optim.lr="$LEARNING_RATE"
)
TRAINER_ARGS=(
    hardware="$HARDWARE"
    # The steps end the training. Resumed exactly at an epoch's end, verl passes over one epoch without a step.
    trainer.total_training_steps="$steps"
    trainer.total_epochs=$((EPOCHS + 2))
    trainer.save_freq="$SAVE_EVERY"
    trainer.default_local_dir="$(realpath -m "$checkpoints")"
    trainer.project_name="$WANDB_PROJECT"
    trainer.experiment_name="$RUN_NAME-sft"
    "trainer.logger=[$LOGGERS]"
)
if [[ -n $MICRO_BATCH ]]; then TRAINER_ARGS+=("hardware.micro_batch_size=$MICRO_BATCH"); fi

run --name 'verl (SFT)' --log "$out/train.log" --metrics "$METRICS_FILE" -- \
    torchrun --standalone --nnodes=1 --nproc_per_node="$num_devices" -m verl.trainer.sft_trainer \
    --config-path "$PWD/recipes" --config-name sft \
    "${DATA_ARGS[@]}" "${MODEL_ARGS[@]}" "${TRAINER_ARGS[@]}" "$@"

run --name 'the export' -- "$PYTHON" recipes/export_model.py --checkpoints "$checkpoints" --base "$MODEL_PATH" --out "$out"
stage_done "model in $out/merged"
