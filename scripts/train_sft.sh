#!/usr/bin/env bash
# Teaches a model the answer format and the better answers by supervised fine-tuning (verl's SFT trainer).
#
#   bash scripts/train_sft.sh                                      a tiny new model on scenario four_way
#   MODEL_PATH=models/mine DATA=data/mine bash scripts/train_sft.sh [HYDRA OVERRIDE...]
#   HARDWARE=t4 MODEL_PATH=qwen2.5-1.5b DRY_RUN=1 bash scripts/train_sft.sh       what it would do there, and whether it fits
#   CONFIG=mine.yaml bash scripts/train_sft.sh                     knobs from a file, a line such as `STEPS: 40` each
#
# Ctrl-C or a kill leaves no process; the same command continues where it stopped. The model lands in $RUNS/$RUN_NAME/sft/merged.
set -euo pipefail
case ${1:-} in -h | --help) sed -nE '2,/^set \+a/{/shellcheck/d;s/^# ?//p;s/^([A-Z_0-9]+)=\$\{[A-Z_0-9]+:-\} +# (.*)/  \1  \2/p}' "${BASH_SOURCE[0]}"; exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/read_knobs.sh
[[ -z ${CONFIG:-} ]] || source scripts/read_knobs.sh "scripts/${BASH_SOURCE[0]##*/}" "$CONFIG"

# ---------------------------------------------------------------------------------------------- knobs
# Set one here, in the file CONFIG or in the environment; the later of these wins. An empty knob has the default in brackets,
# which recipes/*.yaml own; where brackets hold two values, the first is the tiny model's.
set -a
# ---- what to train on what
MODEL_PATH=${MODEL_PATH:-}              # folder in Hugging Face format, or OWNER/NAME on its Hub; smollm2: SmolLM2-135M-Instruct; empty: a tiny new model
DATA=${DATA:-}                          # dataset (JSON file or folder) or folder with sft_train.parquet; empty: made from SCENARIO
SCENARIO=${SCENARIO:-}                  # [configs/scenarios/four_way.yaml] .sumocfg, .yaml, resco:NAME, sumo:NAME, or several; for the data where DATA is empty
EPISODES=${EPISODES:-}                  # [16] simulated hours to draw training data from, where DATA is empty
PROMPT=${PROMPT:-}                      # [tsc] what makes the prompts of the data; tsc_zh: the same in Chinese; yours as pkg://module:function (docs/networks.md)
CALIBRATE=${CALIBRATE:-}                # [auto] search reward settings for each network before its data are made: yes, no; auto: for SUMO's own files with at most 4 signals
# ---- where it runs
HARDWARE=${HARDWARE:-}                  # [auto] from nvidia-smi, or the name of a file in configs/hardware: cpu, t4, a100_80g, h100, …
N_GPUS=${N_GPUS:-}                      # GPUs of each machine; empty: all that HARDWARE=auto finds, else the hardware file's
DRY_RUN=${DRY_RUN:-}                    # 1: compose and check the configuration, write it, print the plan, and stop; needs no GPU
FIT=${FIT:-}                            # [check] stop where the plan says that the run does not fit; ignore: try it all the same
# ---- SFT
SFT_ANSWERS=${SFT_ANSWERS:-}            # [auto] what it learns: labels, the better answers; student, what a small network that was fitted to them answers in more states of SCENARIO; auto: student for the tiny model on SUMO's own files
SFT_CHATS=${SFT_CHATS:-}                # answers of the student to learn; empty: 2500 for each of EPISODES, at most 20000
LEARNING_RATE=${LEARNING_RATE:-}        # [2e-3, 2e-4] of all weights; of an adapter, with LORA_RANK=0 2e-5. At its peak, cosine decay to 0
EPOCHS=${EPOCHS:-}                      # [6, 1] passes over the data; the tiny model makes 4 over a student's answers
BATCH_CHATS=${BATCH_CHATS:-}            # [64] chats a step
MICRO_BATCH=${MICRO_BATCH:-}            # chats in one pass, at most a step's; empty: the hardware file's
LORA_RANK=${LORA_RANK:-}                # [0, 32] rank of the trained adapter; 0: train all weights
LORA_ALPHA=${LORA_ALPHA:-}              # [64] scale of the adapter: alpha / rank
LORA_TARGETS=${LORA_TARGETS:-}          # [all-linear] modules that get one, e.g. q_proj,v_proj
SAVE_EVERY=${SAVE_EVERY:-}              # [100] steps between checkpoints
# ---- where to
RUN_NAME=${RUN_NAME:-}                  # [demo] $RUNS/$RUN_NAME; algorithms of one name share the model of the SFT
RUNS=${RUNS:-}                          # [runs] folder of all runs
WORKERS=${WORKERS:-}                    # processes for simulation (data and evaluation); empty: one a core
LOGGERS=${LOGGERS:-}                    # [console file tensorboard wandb] which of these get the metrics, also trackio, mlflow, swanlab (docs/monitor.md)
WANDB=${WANDB:-}                        # [auto] online where a key is present; online, offline, off
WANDB_ADAPTER=${WANDB_ADAPTER:-}        # [no] yes: the trained adapter becomes a model artifact in wandb
WANDB_PROJECT=${WANDB_PROJECT:-}        # [tsc-grpo]
set +a

# ---------------------------------------------------------------------------------------------- verl's keys
# recipes/sft.yaml has all of them, each with its reason where it differs from verl's.
data=(
    ${BATCH_CHATS:+"data.train_batch_size=$BATCH_CHATS"}
    ${MICRO_BATCH:+"hardware.micro_batch_size=$MICRO_BATCH"}                  # sets data.micro_batch_size_per_gpu
)
model=(
    ${LORA_RANK:+"model.lora_rank=$LORA_RANK"}
    ${LORA_ALPHA:+"model.lora_alpha=$LORA_ALPHA"}
    ${LORA_TARGETS:+"model.target_modules=[$LORA_TARGETS]"}
)
trainer=(
    ${LEARNING_RATE:+"optim.lr=$LEARNING_RATE"}
    ${EPOCHS:+"trainer.total_epochs=$EPOCHS"}
    ${SAVE_EVERY:+"trainer.save_freq=$SAVE_EVERY"}
    ${WANDB_PROJECT:+"trainer.project_name=$WANDB_PROJECT"}
)

# ---------------------------------------------------------------------------------------------- run
PROFILE=${PROFILE:-$([[ $HARDWARE != cpu ]] || echo cpu)} bash scripts/setup_env.sh
exec .venv/bin/python recipes/running/pipeline.py sft \
    "${data[@]}" "${model[@]}" "${trainer[@]}" "$@"
