#!/usr/bin/env bash
# Trains a language model to run traffic lights with GRPO in verl, from nothing to a table beside the classical controllers.
#
#   bash scripts/train_grpo.sh                                     the demo: scenario four_way, tiny model
#   DATA=data/mine MODEL_PATH=models/mine bash scripts/train_grpo.sh [HYDRA OVERRIDE...]
#   HARDWARE=t4 MODEL_PATH=qwen2.5-1.5b DRY_RUN=1 bash scripts/train_grpo.sh      what it would do there, and whether it fits
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
# ---- GRPO
STEPS=${STEPS:-40}                      # training steps in all; raise it and run again to train on
BATCH_PROMPTS=${BATCH_PROMPTS:-128}     # prompts a step
ROLLOUT_N=${ROLLOUT_N:-4}               # answers to each prompt, which are compared with each other (≥ 2)
DECISIONS=${DECISIONS:-1}               # consecutive decisions an answer is made of, scored by what all of them lead to, 1–32 (docs/multi_decision.md)
ADVANTAGE=${ADVANTAGE:-grpo}            # what an answer is compared with: grpo (its group), rloo (the others of it), reinforce_plus_plus (the batch), reinforce_plus_plus_baseline (both)
NORMALISE_STD=${NORMALISE_STD:-}        # divide a group's advantages by their standard deviation: True, False; empty: False for the tiny model, True (verl's default) for others
LOSS_AGGREGATION=${LOSS_AGGREGATION:-token-mean}   # verl's loss_agg_mode; with seq-mean-token-sum-norm and NORMALISE_STD=False it is Dr. GRPO
FILTER_GROUPS=${FILTER_GROUPS:-False}   # True: replace groups whose answers all score the same, as DAPO does
CLIP_HIGH=${CLIP_HIGH:-0.2}             # upper bound of the ratio, 1 + this; DAPO takes 0.28. It matters with UPDATES > 1
UPDATES=${UPDATES:-1}                   # updates a step, each on a part of the batch; divides BATCH_PROMPTS. 1: strictly on-policy
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
choose_paths grpo
# A tiny model turns sure of itself within ten steps, and then explores no more; the KL loss keeps it open.
KL=${KL:-$(tiny_default 0.3 0.001)}
LEARNING_RATE=${LEARNING_RATE:-$(tiny_default 1e-3 1e-5)}
# Weighing by what is at stake serves a start that knows both answers; so does taking the states as they come.
NORMALISE_STD=${NORMALISE_STD:-$(tiny_default False True)}
balance=$(tiny_default sft all)
check_choice ADVANTAGE "$ADVANTAGE" grpo rloo reinforce_plus_plus reinforce_plus_plus_baseline
check_choice NORMALISE_STD "$NORMALISE_STD" True False
check_choice FILTER_GROUPS "$FILTER_GROUPS" True False
check_choice LOSS_AGGREGATION "$LOSS_AGGREGATION" token-mean seq-mean-token-sum seq-mean-token-mean seq-mean-token-sum-norm
if [[ $DECISIONS != 1 && $ADVANTAGE != grpo ]]; then
    fail "ADVANTAGE=$ADVANTAGE takes the $DECISIONS decisions of an answer for as many answers: choose ADVANTAGE=grpo, or DECISIONS=1"
fi
check_policy_knobs 2
choose_sft
choose_overrides grpo
OVERRIDES+=(
    "algorithm.adv_estimator=$ADVANTAGE"
    "algorithm.norm_adv_by_std_in_grpo=$NORMALISE_STD"
    "algorithm.filter_groups.enable=$FILTER_GROUPS"
    "actor_rollout_ref.actor.loss_agg_mode=$LOSS_AGGREGATION"
    "actor_rollout_ref.actor.clip_ratio_high=$CLIP_HIGH"
)
if [[ $DECISIONS != 1 ]]; then
    OVERRIDES+=(
        "actor_rollout_ref.rollout.agent.agent_loop_config_path=recipes/agent_loops.yaml"
        "actor_rollout_ref.rollout.agent.default_agent_loop=consecutive_decisions"
        "actor_rollout_ref.rollout.multi_turn.max_assistant_turns=$DECISIONS"
        "actor_rollout_ref.actor._target_=recipes.verl_plugins.decision_loop.DecisionActorConfig"
        "+actor_rollout_ref.actor.decisions=$DECISIONS"
        # verl counts sequences in an update, and each decision is one
        "actor_rollout_ref.actor.ppo_mini_batch_size=$((BATCH_PROMPTS * DECISIONS / UPDATES))"
    )
fi
plan_sft
plan grpo "$planned_model" "$trained" "${OVERRIDES[@]}" "$@"

# ---------------------------------------------------------------------------------------------- train

make_data "$balance"
check_policy_data
make_start_model
teach_format
train_policy grpo "$@"
merge_trained
evaluate_models grpo
say_where
