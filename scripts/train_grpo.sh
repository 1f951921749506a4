#!/usr/bin/env bash
# Trains a language model to run traffic lights with GRPO in verl, from nothing to a table beside the classical controllers.
#
#   bash scripts/train_grpo.sh                                     the demo: scenario four_way, tiny model
#   DATA=data/mine MODEL_PATH=models/mine bash scripts/train_grpo.sh [HYDRA OVERRIDE...]
#
# Ctrl-C or a kill leaves no process; the same command goes on where it stopped. Everything lands in $RUNS/$RUN_NAME.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# ---- what to train on what
MODEL_PATH=${MODEL_PATH:-}              # folder in Hugging Face format; smollm2: SmolLM2-135M-Instruct; empty: a tiny new model
DATA=${DATA:-}                          # dataset (JSON file or folder) or folder with train.parquet; empty: made from SCENARIO
SCENARIO=${SCENARIO:-configs/scenarios/four_way.yaml}   # for the data where DATA is empty, and for the evaluation
EPISODES=${EPISODES:-16}                # simulated hours to draw training data from, where DATA is empty
HARDWARE=${HARDWARE:-auto}              # auto, or the name of a file in configs/hardware
# ---- GRPO
STEPS=${STEPS:-40}                      # training steps in all; raise it and run again to train on
BATCH_PROMPTS=${BATCH_PROMPTS:-128}     # prompts a step
ROLLOUT_N=${ROLLOUT_N:-4}               # answers to each prompt, which are compared with each other (≥ 2)
LEARNING_RATE=${LEARNING_RATE:-}        # at the start, cosine decay to 0; empty: 1e-3 for the tiny model, 1e-5 for others
LORA_RANK=${LORA_RANK:-32}              # rank of the trained adapter; 0: train all weights
LORA_ALPHA=${LORA_ALPHA:-64}            # scale of the adapter: alpha / rank
KL=${KL:-}                              # weight of the KL loss against the starting model, 0: none; empty: 0.3 for the tiny model, 0.001 for others
NORMALISE_STD=${NORMALISE_STD:-}        # divide a group's advantages by their standard deviation: True, False; empty: False for the tiny model, True (verl's default) for others
TEMPERATURE=${TEMPERATURE:-1.0}         # of sampling during training (> 0)
MICRO_BATCH=${MICRO_BATCH:-}            # sequences in one pass; must divide BATCH_PROMPTS × ROLLOUT_N; empty: the hardware file's; 8 for given models on a CPU
SAVE_EVERY=${SAVE_EVERY:-25}            # steps between checkpoints
VALIDATE_EVERY=${VALIDATE_EVERY:--1}    # steps between validations; -1: none, the evaluation judges
# ---- SFT before it
SFT=${SFT:-auto}                        # yes, no, auto: yes for the tiny model and smollm2, which do not know the answer format
SFT_LEARNING_RATE=${SFT_LEARNING_RATE:-} # empty: 1e-3 for the tiny model, 2e-5 for others
SFT_EPOCHS=${SFT_EPOCHS:-}              # passes over the labels; empty: 6 for the tiny model, which has all to learn, 1 for others
SFT_BATCH_CHATS=${SFT_BATCH_CHATS:-}    # chats a step; empty: 16 for the tiny model, 64 for others
# ---- evaluation
EVAL_SEEDS=${EVAL_SEEDS:-10}            # simulated hours with demand that training never saw; 0: no evaluation
EVAL_CONTROLLERS=${EVAL_CONTROLLERS:-static actuated gap_out max_pressure lookahead}   # to stand beside the models
# ---- where to
RUN_NAME=${RUN_NAME:-demo}              # $RUNS/$RUN_NAME
RUNS=${RUNS:-runs}                      # folder of all runs
WORKERS=${WORKERS:-$(nproc)}            # processes for simulation (data and evaluation)
WANDB=${WANDB:-auto}                    # auto (online where a key is present), online, offline, off
WANDB_PROJECT=${WANDB_PROJECT:-tsc-grpo}

# shellcheck source=scripts/launch.sh
source scripts/launch.sh
user_threads=${OMP_NUM_THREADS:-}
prepare

out=$RUNS/$RUN_NAME
grpo=$out/grpo
checkpoints=$grpo/checkpoints
case $SFT in yes | no | auto) ;; *) fail "SFT=$SFT is unknown: choose yes, no or auto" ;; esac
case ${NORMALISE_STD:-True} in True | False) ;; *) fail "NORMALISE_STD=$NORMALISE_STD is unknown: choose True or False" ;; esac
[[ -f $SCENARIO ]] || fail "SCENARIO=$SCENARIO does not exist: give a file like configs/scenarios/four_way.yaml"
[[ -z $DATA || -e $DATA ]] || fail "DATA=$DATA does not exist: give a dataset, a folder with train.parquet, or nothing"

default_rate=1e-5 default_sft_rate=2e-5 default_kl=0.001
default_std=True default_sft_epochs=1 default_sft_batch=64 balance=all
if [[ -z $MODEL_PATH ]]; then
    # A tiny model turns sure of itself within ten steps, and then explores no more; the KL loss keeps it open.
    default_rate=1e-3 default_sft_rate=1e-3 default_kl=0.3
    # It has all to learn: in the first hundred updates and more nothing but the format. Many small steps teach it most.
    default_sft_epochs=6 default_sft_batch=16
    # From a start that knows both answers GRPO takes the states as they come, and weighs them by what is at stake.
    balance=sft default_std=False
fi
if [[ -n $MODEL_PATH && $HARDWARE == cpu ]]; then
    # With a vocabulary of 50,000 the logits of 64 sequences of 140 tokens alone would take 1.8 GB, several times over.
    MICRO_BATCH=${MICRO_BATCH:-8}
fi
LEARNING_RATE=${LEARNING_RATE:-$default_rate}
KL=${KL:-$default_kl}
NORMALISE_STD=${NORMALISE_STD:-$default_std}
CHECK=(
    --hardware "$HARDWARE" --batch-prompts "$BATCH_PROMPTS" --rollout-n "$ROLLOUT_N" --micro-batch "$MICRO_BATCH"
    --lora-rank "$LORA_RANK" --learning-rate "$LEARNING_RATE" --temperature "$TEMPERATURE" --kl "$KL" --steps "$STEPS"
)
if [[ -n $MODEL_PATH && $MODEL_PATH != smollm2 ]]; then CHECK+=(--model "$MODEL_PATH"); fi
"$PYTHON" recipes/check_run.py "${CHECK[@]}"
mkdir -p "$grpo"

# ---------------------------------------------------------------------------------------------- data

if [[ -n $DATA && -f $DATA/train.parquet ]]; then
    parquet=$DATA
else
    dataset=$DATA parquet=$out/parquet
    if [[ -z $DATA ]]; then
        dataset=data/$(basename "$SCENARIO" .yaml) parquet=$dataset/parquet
        stage "Data: states of $SCENARIO with the outcome of both answers"
        run --name 'data_tools/generate_dataset.py' -- "$PYTHON" data_tools/generate_dataset.py \
            --scenario "$SCENARIO" --out "$dataset" --episodes "$EPISODES" --workers "$WORKERS" --resume
        stage_done "$dataset"
    fi
    if [[ -f $parquet/train.parquet ]]; then
        skipped 'Parquet' "$parquet"
    else
        stage "Parquet: verl's format"
        run --name 'data_tools/json_to_parquet.py' -- \
            "$PYTHON" data_tools/json_to_parquet.py --input "$dataset" --output "$parquet" \
            --balance "$balance" --sft-fraction 1
        stage_done "$parquet"
    fi
fi
"$PYTHON" recipes/check_run.py "${CHECK[@]}" --train "$parquet/train.parquet"

# ---------------------------------------------------------------------------------------------- model

start=$MODEL_PATH
if [[ -z $MODEL_PATH ]]; then
    # The tokenizer learns from the chats, so a model belongs to its data.
    start=$out/tiny
    if [[ -f $start/config.json ]]; then
        skipped 'Model' "$start"
    else
        stage 'Model: a tiny one with random weights'
        run --name 'recipes/tiny_model.py' -- \
            "$PYTHON" recipes/tiny_model.py --texts "$parquet/sft_train.parquet" --out "$start"
        stage_done "$start"
    fi
elif [[ $MODEL_PATH == smollm2 ]]; then
    start=models/smollm2
    stage 'Model: SmolLM2-135M-Instruct'
    run --name 'recipes/smollm2.py' -- "$PYTHON" recipes/smollm2.py --out "$start"
    stage_done "$start"
fi
offline_models

models=()
if [[ $SFT == auto ]]; then
    if [[ -z $MODEL_PATH || $MODEL_PATH == smollm2 ]]; then SFT=yes; else SFT=no; fi
fi
if [[ $SFT == yes ]]; then
    MODEL_PATH=$start DATA=$parquet HARDWARE=$HARDWARE RUN_NAME=$RUN_NAME MICRO_BATCH=$MICRO_BATCH \
        LEARNING_RATE=${SFT_LEARNING_RATE:-$default_sft_rate} EPOCHS=${SFT_EPOCHS:-$default_sft_epochs} LORA_RANK=0 \
        BATCH_CHATS=${SFT_BATCH_CHATS:-$default_sft_batch} RUNS=$RUNS WANDB=$WANDB WANDB_PROJECT=$WANDB_PROJECT run --name 'scripts/train_sft.sh' -- bash scripts/train_sft.sh
    start=$out/sft/merged
    models+=("llm:sft=$start")
else
    models+=("llm:start=$start")
fi

# ---------------------------------------------------------------------------------------------- GRPO

done_steps=$(cat "$checkpoints/latest_checkpointed_iteration.txt" 2>/dev/null || echo 0)
if ((done_steps >= STEPS)); then
    skipped 'GRPO' "$done_steps steps in $checkpoints"
else
    stage "GRPO of $start: steps $((done_steps + 1)) to $STEPS of $BATCH_PROMPTS prompts × $ROLLOUT_N answers (log: $grpo/train.log)"
    choose_loggers "$grpo" "$RUN_NAME-grpo"
    ray_folder
    val_file=$parquet/val.parquet
    [[ -f $val_file ]] || val_file=$parquet/train.parquet
    if [[ -z $MODEL_PATH && -z $user_threads ]]; then
        # The passes of a tiny model are over before a second thread has joined: 4.6 s an update with one, 7.6 s with two.
        export OMP_NUM_THREADS=1
    fi
    use_kl=False
    if [[ ! $KL =~ ^[0.]+$ ]]; then use_kl=True; fi
    DATA_ARGS=(
        data.train_files="$parquet/train.parquet"
        data.val_files="$val_file"
        data.train_batch_size="$BATCH_PROMPTS"
    )
    MODEL_ARGS=(
        actor_rollout_ref.model.path="$start"
        actor_rollout_ref.model.lora_rank="$LORA_RANK"
        actor_rollout_ref.model.lora_alpha="$LORA_ALPHA"
    )
    ACTOR_ARGS=(
        actor_rollout_ref.actor.optim.lr="$LEARNING_RATE"
        actor_rollout_ref.actor.use_kl_loss="$use_kl"
        actor_rollout_ref.actor.kl_loss_coef="$KL"
        algorithm.norm_adv_by_std_in_grpo="$NORMALISE_STD"
    )
    ROLLOUT_ARGS=(
        actor_rollout_ref.rollout.n="$ROLLOUT_N"
        actor_rollout_ref.rollout.temperature="$TEMPERATURE"
    )
    TRAINER_ARGS=(
        hardware="$HARDWARE"
        trainer.total_training_steps="$STEPS"
        trainer.save_freq="$SAVE_EVERY"
        trainer.test_freq="$VALIDATE_EVERY"
        trainer.default_local_dir="$(realpath -m "$checkpoints")"
        trainer.project_name="$WANDB_PROJECT"
        trainer.experiment_name="$RUN_NAME-grpo"
        "trainer.logger=[$LOGGERS]"
        ray_kwargs.ray_init._temp_dir="$ray_dir"
    )
    if [[ -n $MODEL_PATH && $HARDWARE == cpu ]]; then
        # bytes; the hardware file's serve a tiny model, here they would hold a few answers at a time
        TRAINER_ARGS+=(hardware.kv_cache_memory_bytes=1073741824)
    fi
    if [[ -n $MICRO_BATCH ]]; then TRAINER_ARGS+=("hardware.micro_batch_size=$MICRO_BATCH"); fi

    run --name 'verl (GRPO)' --log "$grpo/train.log" --metrics "$METRICS_FILE" --watch-workers -- \
        "$PYTHON" -u -m verl.trainer.main_ppo --config-path "$PWD/recipes" --config-name grpo \
        "${DATA_ARGS[@]}" "${MODEL_ARGS[@]}" "${ACTOR_ARGS[@]}" "${ROLLOUT_ARGS[@]}" "${TRAINER_ARGS[@]}" "$@"
    stage_done "checkpoints in $checkpoints"
fi

done_steps=$(cat "$checkpoints/latest_checkpointed_iteration.txt")
if [[ -f $grpo/exported_step && $(<"$grpo/exported_step") == "$done_steps" ]]; then
    skipped 'Merge' "$grpo/merged"
else
    stage 'Merge: the adapter, and the model with it folded in'
    run --name 'recipes/export_model.py' -- "$PYTHON" recipes/export_model.py \
        --checkpoints "$checkpoints" --part actor --base "$start" --out "$grpo"
    rm -f "$out/results.json"
    stage_done "$grpo/merged"
fi

# ---------------------------------------------------------------------------------------------- evaluation

if [[ $EVAL_SEEDS != 0 ]]; then
    stage "Evaluation on $EVAL_SEEDS unseen hours"
    read -ra controllers <<<"$EVAL_CONTROLLERS"
    run --name 'scripts/evaluate.py' -- "$PYTHON" scripts/evaluate.py --scenarios "$SCENARIO" --seeds "$EVAL_SEEDS" \
        --workers "$WORKERS" --out "$out/eval" --controllers "${controllers[@]}" "${models[@]}" "llm:grpo=$grpo/merged"
    cp "$out/eval/results.json" "$out/results.json"
    stage_done "$out/results.json"
fi

printf '\nFinished in %s.\n' "$(total_time)"
printf 'model     %s/merged\n' "$grpo"
if [[ -d $grpo/adapter ]]; then printf 'adapter   %s/adapter, for %s\n' "$grpo" "$start"; fi
if [[ $EVAL_SEEDS != 0 ]]; then printf 'results   %s/results.json\n' "$out"; fi
printf 'metrics   %s/metrics/*.jsonl; tensorboard --logdir %s\n' "$grpo" "$out"
if [[ $SFT == yes ]]; then wandb_hint "$out/sft" "$grpo"; else wandb_hint "$grpo"; fi
