#!/usr/bin/env bash
# Trains a language model to run traffic lights with GSPO in verl: GRPO with one clipped ratio for a whole answer.
#
#   bash scripts/train_gspo.sh                                     the demo: scenario four_way, tiny model
#   DATA=data/mine MODEL_PATH=models/mine bash scripts/train_gspo.sh [HYDRA OVERRIDE...]
#   HARDWARE=t4 MODEL_PATH=qwen2.5-1.5b DRY_RUN=1 bash scripts/train_gspo.sh      what it would do there, and whether it fits
#   CONFIG=mine.yaml bash scripts/train_gspo.sh                    knobs from a file, a line such as `STEPS: 40` each
#
# Ctrl-C or a kill leaves no process; the same command continues where it stopped. Everything lands in $RUNS/$RUN_NAME.
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
DATA=${DATA:-}                          # dataset (JSON file or folder) or folder with train.parquet; empty: made from SCENARIO
SCENARIO=${SCENARIO:-}                  # [configs/scenarios/four_way.yaml] .sumocfg, .yaml, resco:NAME, sumo:NAME, or several; for the data where DATA is empty, and for the evaluation
EPISODES=${EPISODES:-}                  # [16] simulated hours to draw training data from, where DATA is empty
PROMPT=${PROMPT:-}                      # [tsc] what makes the prompts of data and evaluation; tsc_zh: the same in Chinese; yours as pkg://module:function (docs/networks.md)
CALIBRATE=${CALIBRATE:-}                # [auto] search reward settings for each network before its data are made: yes, no; auto: for SUMO's own files with at most 4 signals
REWARD=${REWARD:-}                      # FILE.py:FUNCTION, a function of your own that scores an answer (docs/reward.md); empty: replays of SUMO
# ---- where it runs
HARDWARE=${HARDWARE:-}                  # [auto] from nvidia-smi, or the name of a file in configs/hardware: cpu, t4, a100_80g, h100, …
N_GPUS=${N_GPUS:-}                      # GPUs of each machine; empty: all that HARDWARE=auto finds, else the hardware file's
NNODES=${NNODES:-}                      # [1] machines; more than one with RAY_ADDRESS (docs/cluster.md)
RAY_ADDRESS=${RAY_ADDRESS:-}            # IP:PORT of a Ray cluster to join, see scripts/ray_cluster.sh; empty: a Ray of its own on this machine
TENSOR_PARALLEL=${TENSOR_PARALLEL:-}    # [1] GPUs that share one vLLM; divides N_GPUS
DRY_RUN=${DRY_RUN:-}                    # 1: compose and check the configuration, write it, print the plan, and stop; needs no GPU
FIT=${FIT:-}                            # [check] stop where the plan says that the run does not fit; ignore: try it all the same
# ---- GSPO
STEPS=${STEPS:-}                        # [25] training steps in all; raise it and run again to train on
BATCH_PROMPTS=${BATCH_PROMPTS:-}        # [128] prompts a step
ROLLOUT_N=${ROLLOUT_N:-}                # [4] answers to each prompt, which are compared with each other (≥ 2)
NORMALISE_STD=${NORMALISE_STD:-}        # [False, True] divide a group's advantages by their standard deviation
UPDATES=${UPDATES:-}                    # [4] updates a step, each on a part of the batch; divides BATCH_PROMPTS. With 1 every ratio is 1, and GSPO is GRPO
CLIP_LOW=${CLIP_LOW:-}                  # [0.0003] bounds of the ratio, 1 − this and 1 + the next; the paper's
CLIP_HIGH=${CLIP_HIGH:-}                # [0.0004]
LEARNING_RATE=${LEARNING_RATE:-}        # [1e-3, 1e-5] at the start, cosine decay to 0
LORA_RANK=${LORA_RANK:-}                # [32] rank of the trained adapter; 0: train all weights
LORA_ALPHA=${LORA_ALPHA:-}              # [64] scale of the adapter: alpha / rank
LORA_TARGETS=${LORA_TARGETS:-}          # [all-linear] modules that get one, e.g. q_proj,v_proj
KL=${KL:-}                              # [0.3, 0.001] weight of the KL loss against the starting model, 0: none
TEMPERATURE=${TEMPERATURE:-}            # [1.0] of sampling during training (> 0)
MICRO_BATCH=${MICRO_BATCH:-}            # sequences in one pass; must divide BATCH_PROMPTS × ROLLOUT_N; empty: the hardware file's
SAVE_EVERY=${SAVE_EVERY:-}              # [25] steps between checkpoints
VALIDATE_EVERY=${VALIDATE_EVERY:-}      # [-1] steps between validations; -1: none, the evaluation judges
# ---- SFT before it
SFT=${SFT:-}                            # [auto] yes, no; auto: yes for the tiny model and smollm2, which do not know the answer format
SFT_ANSWERS=${SFT_ANSWERS:-}            # [auto] what it learns: labels, the better answers; student, what a small network that was fitted to them answers in more states of SCENARIO; auto: student for the tiny model on SUMO's own files
SFT_CHATS=${SFT_CHATS:-}                # answers of the student to learn; empty: 2500 for each of EPISODES, at most 20000
SFT_LEARNING_RATE=${SFT_LEARNING_RATE:-} # [2e-3, 2e-4] of all weights; of an adapter, with LORA_RANK=0 2e-5
SFT_EPOCHS=${SFT_EPOCHS:-}              # [6, 1] passes over the labels: the tiny model has all to learn; over a student's answers it makes 4
SFT_BATCH_CHATS=${SFT_BATCH_CHATS:-}    # [64] chats a step
# ---- evaluation
EVAL_SEEDS=${EVAL_SEEDS:-}              # [10] simulated hours with demand that training never saw; 0: no evaluation
EVAL_CONTROLLERS=${EVAL_CONTROLLERS:-}  # [static actuated delay_based gap_out max_pressure longest_queue lookahead] to stand beside the models
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
# recipes/gspo.yaml and recipes/policy_gradient.yaml have all of them, each with its reason where it differs from verl's.
data=(
    ${BATCH_PROMPTS:+"data.train_batch_size=$BATCH_PROMPTS"}
)
algorithm=(
    ${NORMALISE_STD:+"algorithm.norm_adv_by_std_in_grpo=$NORMALISE_STD"}
    ${UPDATES:+"knobs.updates=$UPDATES"}                                      # sets actor.ppo_mini_batch_size
)
actor=(
    ${LORA_RANK:+"actor_rollout_ref.model.lora_rank=$LORA_RANK"}
    ${LORA_ALPHA:+"actor_rollout_ref.model.lora_alpha=$LORA_ALPHA"}
    ${LORA_TARGETS:+"actor_rollout_ref.model.target_modules=[$LORA_TARGETS]"}
    ${LEARNING_RATE:+"actor_rollout_ref.actor.optim.lr=$LEARNING_RATE"}
    ${CLIP_LOW:+"actor_rollout_ref.actor.clip_ratio_low=$CLIP_LOW"}
    ${CLIP_HIGH:+"actor_rollout_ref.actor.clip_ratio_high=$CLIP_HIGH"}
    ${MICRO_BATCH:+"hardware.micro_batch_size=$MICRO_BATCH"}                  # sets ppo_micro_batch_size_per_gpu
)
ref=(
    ${KL:+"actor_rollout_ref.actor.kl_loss_coef=$KL"}
)
rollout=(
    ${ROLLOUT_N:+"actor_rollout_ref.rollout.n=$ROLLOUT_N"}
    ${TEMPERATURE:+"actor_rollout_ref.rollout.temperature=$TEMPERATURE"}
    ${TENSOR_PARALLEL:+"hardware.tensor_parallel=$TENSOR_PARALLEL"}           # sets tensor_model_parallel_size
)
trainer=(
    ${STEPS:+"trainer.total_training_steps=$STEPS"}
    ${NNODES:+"trainer.nnodes=$NNODES"}
    ${SAVE_EVERY:+"trainer.save_freq=$SAVE_EVERY"}
    ${VALIDATE_EVERY:+"trainer.test_freq=$VALIDATE_EVERY"}
    ${WANDB_PROJECT:+"trainer.project_name=$WANDB_PROJECT"}
)
# of the SFT before it (recipes/sft.yaml)
sft=(
    ${SFT_LEARNING_RATE:+"optim.lr=$SFT_LEARNING_RATE"}
    ${SFT_EPOCHS:+"trainer.total_epochs=$SFT_EPOCHS"}
    ${SFT_BATCH_CHATS:+"data.train_batch_size=$SFT_BATCH_CHATS"}
)

# ---------------------------------------------------------------------------------------------- run
PROFILE=${PROFILE:-$([[ $HARDWARE != cpu ]] || echo cpu)} bash scripts/setup_env.sh
exec .venv/bin/python recipes/running/pipeline.py gspo --sft "${sft[@]}" -- \
    "${data[@]}" "${algorithm[@]}" "${actor[@]}" "${ref[@]}" "${rollout[@]}" "${trainer[@]}" "$@"
