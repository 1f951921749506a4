#!/usr/bin/env bash
# Trains a language model to run traffic lights with PPO in verl: an answer is compared with what a critic expects.
#
#   bash scripts/train_ppo.sh                                     the demo: scenario four_way, tiny model
#   DATA=data/mine MODEL_PATH=models/mine bash scripts/train_ppo.sh [HYDRA OVERRIDE...]
#   HARDWARE=t4 MODEL_PATH=qwen2.5-1.5b DRY_RUN=1 bash scripts/train_ppo.sh      what it would do there, and whether it fits
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
N_GPUS=${N_GPUS:-}                      # GPUs of each machine; empty: all that HARDWARE=auto finds, else 1
NNODES=${NNODES:-1}                     # machines; more than one with RAY_ADDRESS (docs/cluster.md)
RAY_ADDRESS=${RAY_ADDRESS:-}            # IP:PORT of a Ray cluster to join, see scripts/ray_cluster.sh; empty: a Ray of its own on this machine
TENSOR_PARALLEL=${TENSOR_PARALLEL:-1}   # GPUs that share one vLLM; divides N_GPUS
DRY_RUN=${DRY_RUN:-0}                   # 1: compose and check the configuration, write it, print the plan, and stop; needs no GPU
FIT=${FIT:-check}                      # check: stop where the plan says that the run does not fit; ignore: try it all the same
# ---- PPO
STEPS=${STEPS:-40}                      # training steps in all; raise it and run again to train on
BATCH_PROMPTS=${BATCH_PROMPTS:-512}     # prompts a step
ROLLOUT_N=${ROLLOUT_N:-1}               # answers to each prompt
CRITIC_LEARNING_RATE=${CRITIC_LEARNING_RATE:-}   # of the critic, all of whose weights are trained; empty: 1e-3 for the tiny model, 1e-5 for others
CRITIC_WARMUP=${CRITIC_WARMUP:-0}       # first steps in which the critic learns alone
UPDATES=${UPDATES:-1}                   # updates a step, each on a part of the batch; divides BATCH_PROMPTS
LEARNING_RATE=${LEARNING_RATE:-}        # at the start, cosine decay to 0; empty: 1e-3 for the tiny model, 1e-5 for others
LORA_RANK=${LORA_RANK:-32}              # rank of the trained adapter; 0: train all weights
LORA_ALPHA=${LORA_ALPHA:-64}            # scale of the adapter: alpha / rank
LORA_TARGETS=${LORA_TARGETS:-all-linear} # modules that get one, e.g. q_proj,v_proj
KL=${KL:-}                              # weight of the KL loss against the starting model, 0: none; empty: 0.3 for the tiny model, 0.001 for others
TEMPERATURE=${TEMPERATURE:-1.0}         # of sampling during training (> 0)
MICRO_BATCH=${MICRO_BATCH:-}            # sequences in one pass; must divide BATCH_PROMPTS × ROLLOUT_N; empty: the hardware file's; 8 for given models on a CPU
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

prepare
choose_paths ppo
# A tiny model turns sure of itself within ten steps, and then explores no more; the KL loss keeps it open.
KL=${KL:-$(tiny_default 0.3 0.001)}
LEARNING_RATE=${LEARNING_RATE:-$(tiny_default 1e-3 1e-5)}
# The critic's loader (recipes/verl_plugins/value_model.py) has to be known to every process of the run.
export VERL_USE_EXTERNAL_MODULES=${VERL_USE_EXTERNAL_MODULES:+$VERL_USE_EXTERNAL_MODULES,}recipes.verl_plugins.value_model
CRITIC_LEARNING_RATE=${CRITIC_LEARNING_RATE:-$(tiny_default 1e-3 1e-5)}
check_policy_knobs 1
choose_sft
choose_overrides ppo
OVERRIDES+=(
    "critic.optim.lr=$CRITIC_LEARNING_RATE"
    "trainer.critic_warmup=$CRITIC_WARMUP"
)
plan_sft
plan ppo "$planned_model" "$trained" "${OVERRIDES[@]}" "$@"

# ---------------------------------------------------------------------------------------------- train

make_data "$(tiny_default sft all)"
check_policy_data
make_start_model
teach_format
train_policy ppo "$@"
merge_trained
evaluate_models ppo
say_where
