#!/usr/bin/env bash
# Trains a language model to run traffic lights with DPO (TRL's trainer): from pairs of the better and the worse answer to
# a state, which the stored outcomes give, so that training itself neither generates nor replays.
#
#   bash scripts/train_dpo.sh                                      the demo: scenario four_way, tiny model
#   DATA=data/mine MODEL_PATH=models/mine bash scripts/train_dpo.sh [HYDRA OVERRIDE...]
#   HARDWARE=t4 MODEL_PATH=qwen2.5-1.5b DRY_RUN=1 bash scripts/train_dpo.sh       what it would do there, and whether it fits
#
# Ctrl-C or a kill leaves no process; the same command goes on where it stopped. Everything lands in $RUNS/$RUN_NAME.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# ---- what to train on what
MODEL_PATH=${MODEL_PATH:-}              # folder in Hugging Face format, or OWNER/NAME on its hub; smollm2: SmolLM2-135M-Instruct; empty: a tiny new model
DATA=${DATA:-}                          # dataset (JSON file or folder) or folder with train.parquet; empty: made from SCENARIO
SCENARIO=${SCENARIO:-configs/scenarios/four_way.yaml}   # for the data where DATA is empty, and for the evaluation
EPISODES=${EPISODES:-16}                # simulated hours to draw training data from, where DATA is empty
# ---- where it runs
HARDWARE=${HARDWARE:-auto}              # auto (from nvidia-smi), or the name of a file in configs/hardware: cpu, t4, a100_80g, h100, …
N_GPUS=${N_GPUS:-}                      # GPUs of this machine; empty: all that HARDWARE=auto finds, else 1. Each holds the whole model
DRY_RUN=${DRY_RUN:-0}                   # 1: compose and check the configuration, write it, print the plan, and stop; needs no GPU
FIT=${FIT:-check}                      # check: stop where the plan says that the run does not fit; ignore: try it all the same
# ---- DPO
STEPS=${STEPS:-60}                      # training steps in all; raise it and run again to train on
BATCH_PROMPTS=${BATCH_PROMPTS:-128}     # pairs a step, one to a prompt
BETA=${BETA:-}                          # pull to the starting model: rewards are β × log-prob ratios (> 0); empty: 0.3 for the tiny model, 0.1 (TRL's default) for others
MARGIN_SCALE=${MARGIN_SCALE:-1.0}       # units of reward the better answer must be ahead where the other costs infinitely more; 0: plain DPO
LEARNING_RATE=${LEARNING_RATE:-}        # after the warm-up, cosine decay to 0; empty: 1e-3 for the tiny model, 1e-5 for others
LORA_RANK=${LORA_RANK:-32}              # rank of the trained adapter; 0: train all weights
LORA_ALPHA=${LORA_ALPHA:-64}            # scale of the adapter: alpha / rank
LORA_TARGETS=${LORA_TARGETS:-all-linear} # modules that get one, e.g. q_proj,v_proj
QUANTIZE=${QUANTIZE:-}                  # 4bit: the frozen weights in 4 bits (QLoRA), on GPUs; empty: as the hardware file says
MICRO_BATCH=${MICRO_BATCH:-}            # sequences in one pass, at most, two to a pair; empty: the hardware file's
SAVE_EVERY=${SAVE_EVERY:-25}            # steps between checkpoints
VALIDATE_EVERY=${VALIDATE_EVERY:--1}    # steps between validations; -1: none, the evaluation judges
# ---- SFT before it
SFT=${SFT:-auto}                        # yes, no, auto: yes for the tiny model and smollm2, which do not know the answer format
SFT_LEARNING_RATE=${SFT_LEARNING_RATE:-} # empty: 1e-3 for the tiny model, 2e-5 for others, 2e-4 for their adapters
SFT_EPOCHS=${SFT_EPOCHS:-}              # passes over the labels; empty: 6 for the tiny model, which has all to learn, 1 for others
SFT_BATCH_CHATS=${SFT_BATCH_CHATS:-}    # chats a step; empty: 16 for the tiny model, 64 for others
# ---- evaluation
EVAL_SEEDS=${EVAL_SEEDS:-10}            # simulated hours with demand that training never saw; 0: no evaluation
EVAL_CONTROLLERS=${EVAL_CONTROLLERS:-static actuated gap_out max_pressure lookahead}   # to stand beside the models
# ---- where to
RUN_NAME=${RUN_NAME:-demo}              # $RUNS/$RUN_NAME; algorithms of one name share the model of the SFT
RUNS=${RUNS:-runs}                      # folder of all runs
WORKERS=${WORKERS:-$(nproc)}            # processes for simulation (data and evaluation)
WANDB=${WANDB:-auto}                    # auto (online where a key is present), online, offline, off
WANDB_PROJECT=${WANDB_PROJECT:-tsc-grpo}

# shellcheck source=scripts/launch.sh
source scripts/launch.sh
# shellcheck source=scripts/pipeline.sh
source scripts/pipeline.sh

# ---------------------------------------------------------------------------------------------- check

if [[ ${NNODES:-1} != 1 ]]; then fail "NNODES=$NNODES: DPO runs on one machine; use N_GPUS, or scripts/train_grpo.sh on a cluster"; fi
prepare
choose_paths dpo
LEARNING_RATE=${LEARNING_RATE:-$(tiny_default 1e-3 1e-5)}
# The labels of like states disagree; at 0.1 a tiny model turns far surer of itself than it is right.
BETA=${BETA:-$(tiny_default 0.3 0.1)}
number='^[0-9]*\.?[0-9]+(e-?[0-9]+)?$'
if [[ ! $BETA =~ $number || $BETA =~ ^[0.]+$ ]]; then fail "BETA=$BETA is unknown: choose a number above 0, e.g. 0.1"; fi
[[ $MARGIN_SCALE =~ $number ]] || fail "MARGIN_SCALE=$MARGIN_SCALE is unknown: choose a number of at least 0, e.g. 1.0"
balance=$(tiny_default sft all)
pairs=$trained/pairs
CHECK=(
    --hardware "$HARDWARE" --n-gpus "$N_GPUS" --batch-prompts "$BATCH_PROMPTS" --micro-batch 1 --lora-rank "$LORA_RANK"
    --learning-rate "$LEARNING_RATE" --steps "$STEPS"
)
if [[ -n $MODEL_PATH && $MODEL_PATH != smollm2 && $DRY_RUN != 1 ]]; then CHECK+=(--model "$MODEL_PATH"); fi
"$PYTHON" recipes/preflight/check_run.py "${CHECK[@]}"
check_adapter dpo "$planned_model"
choose_sft
OVERRIDES=(
    "hardware=$HARDWARE"
    "${HARDWARE_OVERRIDES[@]}"
    "data.train_files=$pairs/train.parquet"
    "data.val_files=$pairs/val.parquet"
    "data.train_batch_size=$BATCH_PROMPTS"
    "model.path=$start"
    "model.lora_rank=$LORA_RANK"
    "model.lora_alpha=$LORA_ALPHA"
    "model.target_modules=$TARGETS"
    "model.quantize=${QUANTIZE:-null}"
    "loss.margin_scale=$MARGIN_SCALE"
    "trl.beta=$BETA"
    "trl.learning_rate=$LEARNING_RATE"
    "trainer.total_training_steps=$STEPS"
    "trainer.save_freq=$SAVE_EVERY"
    "trainer.test_freq=$VALIDATE_EVERY"
    "trainer.default_local_dir=$(realpath -m "$checkpoints")"
    "trainer.project_name=$WANDB_PROJECT"
    "trainer.experiment_name=$RUN_NAME-dpo"
)
plan_sft
plan dpo "$planned_model" "$trained" "${OVERRIDES[@]}" "$@"

# ---------------------------------------------------------------------------------------------- train

make_data "$balance"
"$PYTHON" recipes/preflight/check_run.py "${CHECK[@]}" --train "$parquet/train.parquet"
make_start_model
teach_format

done_steps=$(trained_steps)
if ((done_steps >= STEPS)); then
    skipped 'DPO' "$done_steps steps in $checkpoints"
else
    if [[ ! $pairs/train.parquet -nt $parquet/train.parquet || ! $pairs/train.parquet -nt configs/reward.yaml ]]; then
        stage "Pairs: the better and the worse answer to each state of $parquet"
        run --name 'recipes/dpo/preference_pairs.py' -- \
            "$PYTHON" recipes/dpo/preference_pairs.py --input "$parquet" --output "$pairs"
        stage_done "$pairs"
    fi
    stage "DPO of $start: steps $((done_steps + 1)) to $STEPS of $BATCH_PROMPTS pairs (log: $trained/train.log)"
    choose_loggers "$trained" "$RUN_NAME-dpo"
    if [[ -z $MODEL_PATH && -z $user_threads ]]; then
        # The passes of a tiny model are over before a second thread has joined.
        export OMP_NUM_THREADS=1
    fi
    run --name 'TRL (DPO)' --log "$trained/train.log" --metrics "$METRICS_FILE" -- \
        torchrun --standalone --local-addr=127.0.0.1 --nnodes=1 --nproc_per_node="${N_GPUS:-1}" recipes/dpo/train_dpo.py \
        "${OVERRIDES[@]}" "trainer.logger=[$LOGGERS]" "$@"
    stage_done "checkpoints in $checkpoints"
fi
merge_trained
evaluate_models dpo
say_where
