# shellcheck shell=bash disable=SC2154
# The stages around a training: data, model, SFT before it, merge, evaluation. Sourced by the launchers after
# scripts/launch.sh; reads the knobs of their config blocks.
# Gives: tiny_default, check_choice, choose_paths, choose_sft, plan_sft, make_data, make_start_model, teach_format,
# check_policy_knobs, check_policy_data, choose_overrides, train_policy, merge_trained, evaluate_models, say_where.

# What a tiny model needs otherwise than a pretrained one; a launcher takes these where its knob is empty.
tiny_default() {  # tiny_default TINY OTHER
    if [[ -z $MODEL_PATH ]]; then printf '%s' "$1"; else printf '%s' "$2"; fi
}

check_choice() {  # check_choice KNOB VALUE ALLOWED...
    local knob=$1 value=$2 allowed
    shift 2
    for allowed in "$@"; do
        if [[ $value == "$allowed" ]]; then return; fi
    done
    local IFS=,
    fail "$knob=$value is unknown: choose ${*//,/, }"
}

# choose_paths STAGE: where everything of this run lies
choose_paths() {
    out=$RUNS/$RUN_NAME
    trained=$out/$1
    checkpoints=$trained/checkpoints
    [[ -f $SCENARIO ]] || fail "SCENARIO=$SCENARIO does not exist: give a file like configs/scenarios/four_way.yaml"
    [[ -z $DATA || -e $DATA ]] || fail "DATA=$DATA does not exist: give a dataset, a folder with train.parquet, or nothing"
    check_choice SFT "$SFT" yes no auto
    if [[ -n $DATA && -f $DATA/train.parquet ]]; then
        dataset='' parquet=$DATA
    elif [[ -n $DATA ]]; then
        dataset=$DATA parquet=$out/parquet
    else
        dataset=data/$(basename "$SCENARIO" .yaml) parquet=$dataset/parquet
    fi
    case $MODEL_PATH in
        '') base=$out/tiny planned_model=tiny hub_model= ;;
        smollm2) base=models/smollm2 planned_model=smollm2 hub_model= ;;
        *) find_model "$MODEL_PATH" ;;
    esac
    check_writable "$out"
    if [[ -z $DATA && ! -f $parquet/train.parquet ]]; then check_writable "$dataset"; fi
    if [[ $MODEL_PATH == smollm2 && ! -d $base ]]; then check_writable "$base"; fi
    if [[ $SFT == auto ]]; then
        # These two do not know the answer's format.
        if [[ -z $MODEL_PATH || $MODEL_PATH == smollm2 ]]; then SFT=yes; else SFT=no; fi
    fi
    if [[ $SFT == yes ]]; then
        start=$out/sft/merged
        models=("llm:sft=$start")
    else
        start=$base
        models=("llm:start=$start")
    fi
}

# make_data BALANCE: states with the outcomes of both answers, in verl's format
make_data() {
    if [[ -z $dataset ]]; then return; fi
    if [[ -z $DATA ]]; then
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
            --balance "$1" --sft-fraction 1
        stage_done "$parquet"
    fi
}

make_start_model() {
    if [[ -z $MODEL_PATH ]]; then
        # The tokenizer learns from the chats, so a model belongs to its data.
        if [[ -f $base/config.json ]]; then
            skipped 'Model' "$base"
        else
            stage 'Model: a tiny one with random weights'
            run --name 'recipes/models/tiny_model.py' -- \
                "$PYTHON" recipes/models/tiny_model.py --texts "$parquet/sft_train.parquet" --out "$base"
            stage_done "$base"
        fi
    elif [[ $MODEL_PATH == smollm2 ]]; then
        stage 'Model: SmolLM2-135M-Instruct'
        run --name 'recipes/models/smollm2.py' -- "$PYTHON" recipes/models/smollm2.py --out "$base"
        stage_done "$base"
    else
        fetch_model
        "$PYTHON" recipes/preflight/check_run.py --hardware "$HARDWARE" --model "$base"
    fi
    offline_models
}

# choose_sft: sets SFT_KNOBS, what this run's knobs mean for the SFT before it
choose_sft() {
    local rate=2e-5 rank=0
    if [[ -z $MODEL_PATH ]]; then
        rate=1e-3
    elif [[ $MODEL_PATH != smollm2 && $LORA_RANK != 0 ]]; then
        # Whoever can train no more than an adapter of a model cannot train all of it before.
        rate=2e-4 rank=$LORA_RANK
    fi
    SFT_KNOBS=(
        MODEL_PATH="$base" PLANNED_MODEL="$planned_model" DATA="$parquet" HARDWARE="$HARDWARE" N_GPUS="$N_GPUS"
        LEARNING_RATE="${SFT_LEARNING_RATE:-$rate}" EPOCHS="${SFT_EPOCHS:-$(tiny_default 6 1)}"
        BATCH_CHATS="${SFT_BATCH_CHATS:-$(tiny_default 16 64)}" MICRO_BATCH="$MICRO_BATCH" FIT="$FIT"
        LORA_RANK="$rank" LORA_ALPHA="$LORA_ALPHA" LORA_TARGETS="$LORA_TARGETS"
        RUN_NAME="$RUN_NAME" RUNS="$RUNS" WANDB="$WANDB" WANDB_PROJECT="$WANDB_PROJECT"
    )
}

# plan_sft: says whether that SFT fits, before the time for the data is spent
plan_sft() {
    if [[ $SFT == yes ]]; then env "${SFT_KNOBS[@]}" ONLY_PLAN=yes bash scripts/train_sft.sh; fi
}

# teach_format: that SFT
teach_format() {
    if [[ $SFT == yes ]]; then
        run --name 'scripts/train_sft.sh' -- env "${SFT_KNOBS[@]}" PLANNED=yes bash scripts/train_sft.sh
    fi
}

# ---------------------------------------------------------------------------------------------- verl's policy gradients

# choose_overrides ALGORITHM: sets OVERRIDES, what the knobs that GRPO, GSPO and PPO share mean for verl
choose_overrides() {
    local use_kl=False
    check_adapter "$1" "$planned_model"
    if [[ ! $KL =~ ^[0.]+$ ]]; then use_kl=True; fi
    OVERRIDES=(
        "hardware=$HARDWARE"
        "${HARDWARE_OVERRIDES[@]}"
        "data.train_files=$parquet/train.parquet"
        "data.val_files=$parquet/val.parquet"
        "data.train_batch_size=$BATCH_PROMPTS"
        "actor_rollout_ref.model.path=$start"
        "actor_rollout_ref.model.lora_rank=$LORA_RANK"
        "actor_rollout_ref.model.lora_alpha=$LORA_ALPHA"
        "actor_rollout_ref.model.target_modules=$TARGETS"
        "actor_rollout_ref.actor.optim.lr=$LEARNING_RATE"
        "actor_rollout_ref.actor.use_kl_loss=$use_kl"
        "actor_rollout_ref.actor.kl_loss_coef=$KL"
        "actor_rollout_ref.actor.ppo_mini_batch_size=$((BATCH_PROMPTS / UPDATES))"
        "actor_rollout_ref.rollout.n=$ROLLOUT_N"
        "actor_rollout_ref.rollout.temperature=$TEMPERATURE"
        "trainer.nnodes=$NNODES"
        "trainer.total_training_steps=$STEPS"
        "trainer.save_freq=$SAVE_EVERY"
        "trainer.test_freq=$VALIDATE_EVERY"
        "trainer.default_local_dir=$(realpath -m "$checkpoints")"
        "trainer.project_name=$WANDB_PROJECT"
        "trainer.experiment_name=$RUN_NAME-$1"
    )
    if [[ -n $MODEL_PATH && $HARDWARE == cpu ]]; then
        # bytes; the hardware file's serve a tiny model, here they would hold a few answers at a time
        OVERRIDES+=(hardware.kv_cache_memory_bytes=1073741824)
    fi
}

# train_policy ALGORITHM OVERRIDE...: verl's trainer on recipes/ALGORITHM.yaml with OVERRIDES, up to STEPS
train_policy() {
    local algorithm=$1 title=${1^^} done_steps
    shift
    done_steps=$(trained_steps)
    if ((done_steps >= STEPS)); then
        skipped "$title" "$done_steps steps in $checkpoints"
        return
    fi
    stage "$title of $start: steps $((done_steps + 1)) to $STEPS of $BATCH_PROMPTS prompts × $ROLLOUT_N answers (log: $trained/train.log)"
    check_cluster --train "$parquet/train.parquet" --out "$out" --checkpoints "$checkpoints" \
        --model "$start"
    choose_loggers "$trained" "$RUN_NAME-$algorithm"
    # verl reads the file even where it is told not to validate
    local val_file=$parquet/val.parquet
    if [[ ! -f $val_file ]]; then val_file=$parquet/train.parquet; fi
    local -a now=("trainer.logger=[$LOGGERS]" "data.val_files=$val_file")
    if [[ -z $MODEL_PATH && -z $user_threads ]]; then
        # The passes of a tiny model are over before a second thread has joined: 4.6 s an update with one, 7.6 s with two.
        export OMP_NUM_THREADS=1
    fi
    choose_ray
    if [[ -n $cluster ]]; then
        # another node's working folder may be another one
        now+=("data.train_files=$(realpath "$parquet/train.parquet")" "data.val_files=$(realpath "$val_file")")
        if [[ -d $start ]]; then now+=("actor_rollout_ref.model.path=$(realpath "$start")"); fi
    fi
    run --name "verl ($title)" --log "$trained/train.log" --metrics "$METRICS_FILE" --watch-workers -- \
        "${DRIVER[@]}" -u -m verl.trainer.main_ppo --config-path "$PWD/recipes" --config-name "$algorithm" \
        "${OVERRIDES[@]}" "${now[@]}" "${RAY_OVERRIDES[@]}" "$@"
    remove_older_checkpoints "$checkpoints" "$@"
    stage_done "checkpoints in $checkpoints"
}

# check_policy_knobs LEAST: numbers within their bounds, at least LEAST answers to a prompt, batches that divide
check_policy_knobs() {
    CHECK=(
        --hardware "$HARDWARE" --n-gpus "$N_GPUS" --nnodes "$NNODES" --batch-prompts "$BATCH_PROMPTS" --rollout-n "$ROLLOUT_N"
        --least-answers "$1" --updates "$UPDATES" --micro-batch "$MICRO_BATCH" --lora-rank "$LORA_RANK"
        --learning-rate "$LEARNING_RATE" --temperature "$TEMPERATURE" --kl "$KL" --steps "$STEPS"
        --decisions "${DECISIONS:-1}"
    )
    if [[ -n $MODEL_PATH && $MODEL_PATH != smollm2 && -z $hub_model && $DRY_RUN == 0 ]]; then CHECK+=(--model "$base"); fi
    "$PYTHON" recipes/preflight/check_run.py "${CHECK[@]}"
    check_cluster
}

check_policy_data() { "$PYTHON" recipes/preflight/check_run.py "${CHECK[@]}" --train "$parquet/train.parquet"; }

trained_steps() { cat "$checkpoints/latest_checkpointed_iteration.txt" 2>/dev/null || echo 0; }

# merge_trained ALGORITHM: adapter and merged model of the last checkpoint
merge_trained() {
    local done_steps
    done_steps=$(trained_steps)
    if [[ -f $trained/exported_step && $(<"$trained/exported_step") == "$done_steps" ]]; then
        skipped 'Merge' "$trained/merged"
    else
        stage 'Merge: the adapter, and the model with it folded in'
        run --name 'scripts/export_model.py' -- "$PYTHON" scripts/export_model.py \
            --checkpoints "$checkpoints" --part actor --base "$start" --out "$trained"
        rm -f "$out/results.json"
        stage_done "$trained/merged"
    fi
}

# ---------------------------------------------------------------------------------------------- evaluation

# evaluate_models ALGORITHM: the trained model beside the one it started from and the classical controllers
evaluate_models() {
    if [[ $EVAL_SEEDS == 0 ]]; then return; fi
    stage "Evaluation on $EVAL_SEEDS unseen hours"
    local -a controllers
    read -ra controllers <<<"$EVAL_CONTROLLERS"
    run --name 'scripts/evaluate.py' -- "$PYTHON" scripts/evaluate.py --scenarios "$SCENARIO" --seeds "$EVAL_SEEDS" \
        --workers "$WORKERS" --out "$out/eval" --controllers "${controllers[@]}" "${models[@]}" "llm:$1=$trained/merged"
    cp "$out/eval/results.json" "$out/results.json"
    stage_done "$out/results.json"
}

say_where() {
    printf '\nFinished in %s.\n' "$(total_time)"
    printf 'model     %s/merged\n' "$trained"
    if [[ -d $trained/adapter ]]; then printf 'adapter   %s/adapter, for %s\n' "$trained" "$start"; fi
    if [[ $EVAL_SEEDS != 0 ]]; then printf 'results   %s/results.json\n' "$out"; fi
    printf 'metrics   %s/metrics/*.jsonl; tensorboard --logdir %s\n' "$trained" "$out"
    if [[ $SFT == yes ]]; then wandb_hint "$out/sft" "$trained"; else wandb_hint "$trained"; fi
}
