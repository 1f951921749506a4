"""What a launch makes of its knobs, and its parts that need no training."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from recipes.preflight.compose import ALGORITHMS, compose
from recipes.running.pipeline import Pipeline, Training
from recipes.running.run import FILE, Run, check_writable, config_text, unknown_knobs
from recipes.running.stages import Stages
from tsc.errors import ConfigError
from tsc.files import REPO_ROOT, folder_lock
from tsc.yaml_file import read_yaml

WORKER = "actor_rollout_ref"
MODEL = f"{WORKER}.model"
KNOB = re.compile(r"^([A-Z_]+)=\$\{\1:-\} +# (?:\[([^\]]*)\])?")
KEY = re.compile(r"^    \$\{([A-Z_]+):\+\"([\w.]+)=\[?\$\1\]?\"\}")


@functools.cache
def composed(algorithm: str, *overrides: str) -> DictConfig:
    return compose(algorithm, overrides)


def pipeline(algorithm: str, *overrides: str, sft: tuple[str, ...] = (), **knobs: str) -> Pipeline:
    run = Run.from_environment(algorithm, {"HARDWARE": "cpu", "DRY_RUN": "1"} | knobs)
    return Pipeline(run, overrides, sft, {})


def value(training: Training, key: str) -> object:
    """What verl is given: composed of all overrides, as verl's own process composes it."""
    return OmegaConf.select(composed(training.algorithm, *training.overrides()), key)


# ---------------------------------------------------------------------------------------------- one source for a knob


def launcher(algorithm: str) -> list[str]:
    return (REPO_ROOT / "scripts" / f"train_{algorithm}.sh").read_text().splitlines()


def printed_defaults(algorithm: str) -> Iterator[tuple[str, str]]:
    """Knob and what stands in brackets behind it."""
    for line in launcher(algorithm):
        if (match := KNOB.match(line)) and match[2]:
            yield match[1], match[2]


def keys(algorithm: str) -> dict[str, tuple[str, str]]:
    """By knob, the recipe and the key that it sets."""
    recipe, found = algorithm, {}
    for line in launcher(algorithm):
        if line == "sft=(":
            recipe = "sft"
        if match := KEY.match(line):
            found[match[1]] = (recipe, match[2])
    return found


def same(printed: str, composed: object) -> bool:
    if isinstance(composed, int | float) and not isinstance(composed, bool):
        return float(printed) == composed
    return printed == str(composed)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_default_that_a_config_block_prints_is_the_recipes(algorithm: str) -> None:
    around, recipe_keys = read_yaml(FILE), keys(algorithm)
    assert isinstance(around, dict)
    printed = dict(printed_defaults(algorithm))
    assert len(printed) >= 14
    for knob, text in printed.items():
        if knob not in recipe_keys:
            assert text == str(around[knob.lower()]), knob
            continue
        recipe, key = recipe_keys[knob]
        texts = text.split(", ") if ", " in text else [text, text]
        for start, expected in zip(("tiny", "given"), texts, strict=True):
            found = OmegaConf.select(composed(recipe, f"start={start}"), key)
            assert same(expected, found), f"{knob}: {expected} is printed, {start} has {found}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_launcher_holds_a_default_and_every_knob_goes_somewhere(algorithm: str) -> None:
    assigned = [
        line for line in launcher(algorithm) if re.match(r"^[A-Z_]+=", line) and not line.startswith("PROFILE=")
    ]
    assert [line for line in assigned if not KNOB.match(line)] == []
    knobs = {line.partition("=")[0] for line in assigned}
    assert knobs == (knobs & {name.upper() for name in Run.model_fields}) | keys(algorithm).keys()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_help_lists_every_knob_and_starts_nothing(algorithm: str, tmp_path: Path) -> None:
    script = REPO_ROOT / "scripts" / f"train_{algorithm}.sh"
    done = subprocess.run(["bash", script, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=10)
    assert done.returncode == 0 and done.stderr == ""
    listed = set(re.findall(r"^  ([A-Z_]+)  ", done.stdout, re.MULTILINE))
    assert listed == {match[1] for line in launcher(algorithm) if (match := KNOB.match(line))}


CONFIG = """\
# mine
STEPS: 40   # more
SCENARIO: "my nets/a b.sumocfg"

EVAL_CONTROLLERS: static actuated
RUN_NAME: run#7
KL:
"""


def dry_run(config: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The launcher until it has read the knobs, which it prints instead of running on."""
    launcher = (REPO_ROOT / "scripts/train_grpo.sh").read_text().partition("# ----")[0]
    launcher = launcher.replace("${BASH_SOURCE[0]##*/}", "train_grpo.sh")
    launcher = (
        launcher.replace('"$(dirname "${BASH_SOURCE[0]}")/.."', str(REPO_ROOT)) + 'for k; do echo "${!k:-}"; done'
    )
    command = ["bash", "-c", launcher, "train_grpo.sh", *words]
    given = {"PATH": os.environ["PATH"], "CONFIG": str(config), **environment}
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=10)


def test_knobs_come_from_a_file_and_the_environment_wins(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(CONFIG)
    knobs = ("STEPS", "SCENARIO", "EVAL_CONTROLLERS", "RUN_NAME", "KL", "EPISODES")
    done = dry_run(file, *knobs, RUN_NAME="other", EVAL_CONTROLLERS="")
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["40", "my nets/a b.sumocfg", "static actuated", "other", "", ""]


def test_a_training_keeps_its_knobs_as_such_a_file(tmp_path: Path) -> None:
    given = {"STEPS": "40", "SCENARIO": 'my "nets"/a b.sumocfg', "RUN_NAME": "run #7", "KL": "", "HOME": "/root"}
    file = tmp_path / "knobs.yaml"
    file.write_text(config_text("grpo", given))
    done = dry_run(file, "STEPS", "SCENARIO", "RUN_NAME", "KL")
    assert done.stdout.splitlines() == [given["STEPS"], given["SCENARIO"], given["RUN_NAME"], ""]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("STEPS: 4\nSTEP: 3\n", "line 2: STEP is not a knob of scripts/train_grpo.sh"),
        ("STEPS 3", "line 1: STEPS 3: write `KNOB: value`"),
        ("- STEPS: 3", "line 1: - STEPS: 3: write `KNOB: value`"),
    ],
)
def test_a_wrong_line_of_a_config_is_named_before_anything_starts(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    done = dry_run(file, "STEPS")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith(f"error: CONFIG={file}, {told}")
    missing = dry_run(tmp_path / "missing.yaml")
    assert missing.returncode == 2 and "missing.yaml is not a file" in missing.stderr


def test_what_looks_like_a_knob_and_is_none_is_told() -> None:
    usual = {"PATH": "/bin", "HOME": "/root", "STEPS": "3", "EPOCHS": "", "OMP_NUM_THREADS": "1"}
    assert unknown_knobs("grpo", usual) == []
    assert unknown_knobs("grpo", usual | {"STEP": "3"}) == [
        "STEP=3 is not a knob of train_grpo.sh: did you mean STEPS?"
    ]
    (told,) = unknown_knobs("sft", {"SFT_EPOCHS": "3"})
    assert told.startswith("SFT_EPOCHS=3 is not a knob of train_sft.sh")


def test_a_student_s_chats_lie_apart_and_need_a_dataset(tmp_path: Path) -> None:
    knobs = {"RUNS": str(tmp_path), "SFT_ANSWERS": "student"}
    taught = Run.from_environment("grpo", knobs)
    labels = Run.from_environment("grpo", knobs | {"SFT_ANSWERS": "labels"})
    assert taught.parquet == labels.parquet == labels.chats
    assert taught.chats.parent == labels.chats.parent and taught.chats != labels.chats
    assert taught.num_chats == 20_000
    assert Run.from_environment("grpo", knobs | {"EPISODES": "2"}).num_chats == 5000
    assert Run.from_environment("grpo", knobs | {"SFT_CHATS": "64"}).num_chats == 64
    with pytest.raises(ConfigError, match="SFT_CHATS=63 is less than one batch of 64: choose 64 or more"):
        pipeline("grpo", SFT_ANSWERS="student", SFT_CHATS="63")
    # a student has many more answers than there are labels
    passes = [
        pipeline("grpo", SFT_ANSWERS=answers).sft.config.trainer.total_epochs for answers in ("labels", "student")
    ]
    assert passes == [6, 4]
    assert pipeline("grpo", sft=("trainer.total_epochs=3",), SFT_ANSWERS="student").sft.config.trainer.total_epochs == 3
    # the tiny model's default on SUMO's own files
    sumos = {"SCENARIO": "sumo:rilsa1"}
    knobs_of = {
        "tiny": sumos,
        "drawn junction": {},
        "own model": sumos | {"MODEL_PATH": "models/mine"},
        "own data": sumos | {"DATA": "data/mine"},
        "no SFT": sumos | {"SFT": "no"},
    }
    of = {name: Run.from_environment("grpo", {"RUNS": str(tmp_path)} | each) for name, each in knobs_of.items()}
    assert [name for name, run in of.items() if run.learns_of_student] == ["tiny"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/train.parquet").touch()
    with pytest.raises(ConfigError, match="SFT_ANSWERS=student fits a student to a dataset, but"):
        Run.from_environment("grpo", knobs | {"DATA": str(tmp_path / "mine")}).check_files()


def test_each_default_stands_once() -> None:
    """A value of recipes/shared.yaml, start/*.yaml and run.yaml does not stand in another recipe as well."""
    texts = {file: file.read_text() for file in sorted((REPO_ROOT / "recipes").glob("*.yaml"))}
    owned = ("lora_rank", "lora_alpha", "save_freq", "test_freq", "project_name", "kl_loss_coef", "beta", "lr")
    for name in owned:
        stands = [
            f"{file.name}: {line.strip()}"
            for file, text in texts.items()
            if file.name != "shared.yaml"
            for line in text.splitlines()
            if re.match(rf"\s*{name}: (?!\$)", line)
        ]
        allowed = {"save_freq": ["sft.yaml: save_freq: 100"], "test_freq": ["sft.yaml: test_freq: 100"]}
        assert [line for line in stands if line not in [*allowed.get(name, []), "ppo.yaml: lora_rank: 0"]] == []


def test_a_value_changed_in_the_yaml_reaches_verl_without_touching_a_script(tmp_path: Path) -> None:
    for folder in ("recipes", "scripts", "configs", "tsc", "reward"):
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", str(REPO_ROOT / folder), str(tmp_path / folder)], check=True)
    shared = tmp_path / "recipes/shared.yaml"
    shared.write_text(shared.read_text().replace("lora_rank: 32", "lora_rank: 8"))
    program = (
        "from recipes.running.pipeline import Pipeline, Run; from recipes.preflight.compose import compose\n"
        "run = Run.from_environment('grpo', {'HARDWARE': 'cpu', 'DRY_RUN': '1'})\n"
        "main = Pipeline(run, [], [], {}).main\n"
        "print(compose('grpo', main.overrides()).actor_rollout_ref.model.lora_rank)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "8\n"


# ---------------------------------------------------------------------------------------------- what knobs become


def test_an_override_of_the_user_wins_over_what_the_launch_derives() -> None:
    key = "actor_rollout_ref.actor.ppo_mini_batch_size"
    assert value(pipeline("grpo").main, key) == 128
    assert value(pipeline("grpo", "knobs.updates=2").main, key) == 64
    assert value(pipeline("grpo", f"{key}=32").main, key) == 32
    assert value(pipeline("gspo", "data.train_batch_size=64").main, key) == 16


def test_no_kl_means_no_pass_of_the_reference() -> None:
    key = "actor_rollout_ref.actor.use_kl_loss"
    assert value(pipeline("grpo").main, key) is True
    assert value(pipeline("grpo", "actor_rollout_ref.actor.kl_loss_coef=0").main, key) is False


def test_a_gpu_keeps_what_fits_and_passes_without_gradients_are_larger() -> None:
    main = pipeline("grpo", HARDWARE="h100", MODEL_PATH="qwen2.5-0.5b").main
    assert value(main, f"{WORKER}.rollout.free_cache_engine") is False
    assert value(main, f"{WORKER}.actor.fsdp_config.param_offload") is False
    assert value(main, f"{WORKER}.actor.ppo_micro_batch_size_per_gpu") == 32
    for part in ("ref", "rollout"):
        assert value(main, f"{WORKER}.{part}.log_prob_micro_batch_size_per_gpu") == 128
    small = pipeline("grpo", "data.train_batch_size=24", HARDWARE="h100", MODEL_PATH="qwen2.5-0.5b").main
    # a divisor of the 96 sequences
    assert value(small, f"{WORKER}.rollout.log_prob_micro_batch_size_per_gpu") == 96
    asleep = pipeline("grpo", "hardware.sleep_mode=true", HARDWARE="h100", MODEL_PATH="qwen2.5-0.5b").main
    assert value(asleep, f"{WORKER}.rollout.free_cache_engine") is True


def test_a_given_model_gets_a_micro_batch_for_its_size_on_a_cpu() -> None:
    key = f"{WORKER}.actor.ppo_micro_batch_size_per_gpu"
    small = pipeline("grpo", MODEL_PATH="smollm2")
    assert (value(small.main, key), value(pipeline("grpo").main, key)) == (8, 64)
    assert small.sft is not None and value(small.sft, "data.micro_batch_size_per_gpu") == 8
    assert value(pipeline("grpo", "hardware.micro_batch_size=16", MODEL_PATH="smollm2").main, key) == 16


def test_a_reward_function_of_the_users_own_takes_the_place_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "my rewards.py"
    file.write_text(
        "def shorter(data_source, solution_str, ground_truth, extra_info):\n    return -len(solution_str)\n"
    )
    made = pipeline("grpo", REWARD=f"{file}:shorter")
    section = "reward.custom_reward_function"
    assert (value(made.main, f"{section}.path"), value(made.main, f"{section}.name")) == (str(file), "shorter")
    assert made._reward_settings() == []
    for reward, message in (
        ("nowhere.py:shorter", "nowhere.py is not a file: write FILE.py:FUNCTION"),
        (str(file), "is not a file"),
        (f"{file}:shortest", "does not define 'shortest': did you mean 'shorter'"),
    ):
        with pytest.raises(ConfigError, match=message):
            pipeline("grpo", REWARD=reward)
    file.write_text("def shorter(:\n")
    with pytest.raises(ConfigError, match="line 1: "):
        pipeline("grpo", REWARD=f"{file}:shorter")


def test_gspo_takes_both_parts_of_its_ratio_from_the_trainer() -> None:
    key = "algorithm.rollout_correction.bypass_mode"
    assert [value(pipeline(name).main, key) for name in ("gspo", "grpo")] == [False, True]


def test_an_adapter_is_evaluated_unmerged_where_merging_would_round_it() -> None:
    found = {}
    for hardware, *overrides in (("h100",), ("cpu",), ("h100", f"{MODEL}.lora_rank=0")):
        launch = pipeline("grpo", *overrides, HARDWARE=hardware, MODEL_PATH="qwen2.5-0.5b", SFT="no")
        found[(hardware, *overrides)] = str(launch._evaluated_models["grpo"])
    merged = "runs/demo/grpo/merged"
    assert list(found.values()) == ["qwen2.5-0.5b+runs/demo/grpo/adapter", merged, merged]


def test_the_word_all_linear_stays_a_word_and_names_are_a_list() -> None:
    assert (
        value(pipeline("grpo", f"{MODEL}.target_modules=[all-linear]").main, f"{MODEL}.target_modules") == "all-linear"
    )
    found = pipeline("grpo", f"{MODEL}.target_modules=[q_proj,v_proj]")
    assert value(found.main, f"{MODEL}.target_modules") == ["q_proj", "v_proj"]
    assert found.sft is not None
    assert value(found.sft, "model.target_modules") == ["q_proj", "v_proj"]


def test_the_sft_of_a_given_model_trains_the_adapter_that_grpo_will_train(tmp_path: Path) -> None:
    def sft(*overrides: str) -> tuple[object, object]:
        made = pipeline("grpo", *overrides, MODEL_PATH="qwen2.5-0.5b", SFT="yes", RUNS=str(tmp_path)).sft
        assert made is not None
        return value(made, "model.lora_rank"), value(made, "optim.lr")

    assert sft() == (32, 2e-4)
    assert sft(f"{MODEL}.lora_rank=8") == (8, 2e-4)
    assert sft(f"{MODEL}.lora_rank=0") == (0, 2e-5)
    tiny = pipeline("grpo").sft
    assert tiny is not None
    assert (value(tiny, "model.lora_rank"), value(tiny, "optim.lr")) == (0, 2e-3)
    assert pipeline("grpo", MODEL_PATH="qwen2.5-0.5b").sft is None
    assert pipeline("grpo", SFT="no").sft is None


def test_overrides_after_sft_are_the_sfts_alone() -> None:
    made = pipeline("grpo", sft=("optim.lr=0.5", "data.train_batch_size=8"))
    assert made.sft is not None
    assert value(made.sft, "optim.lr") == 0.5
    # a pass has no more chats than a step
    assert value(made.sft, "data.micro_batch_size_per_gpu") == 8
    assert value(made.main, "data.train_batch_size") == 128


def test_several_decisions_need_grpos_advantage() -> None:
    found = pipeline("grpo", "knobs.decisions=3").main
    assert value(found, "actor_rollout_ref.rollout.multi_turn.max_assistant_turns") == 3
    assert value(found, "actor_rollout_ref.actor.ppo_mini_batch_size") == 3 * 128
    with pytest.raises(ConfigError, match="the 3 decisions of one answer as 3 answers: choose ADVANTAGE=grpo"):
        pipeline("grpo", "knobs.decisions=3", "algorithm.adv_estimator=rloo")


def test_paths_with_blanks_and_quotes_reach_verl_as_they_are(tmp_path: Path) -> None:
    runs = tmp_path / "my runs, 'old'"
    made = pipeline("grpo", RUNS=str(runs))
    assert value(made.main, "trainer.default_local_dir") == str(runs / "demo/grpo/checkpoints")


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"SFT": "maybe"}, "SFT=maybe is unknown: choose 'yes', 'no' or 'auto'"),
        ({"EPISODES": "0"}, "EPISODES=0 is unknown: choose greater than or equal to 1"),
        ({"FIT": "no"}, "FIT=no is unknown: choose 'check' or 'ignore'"),
        ({"DRY_RUN": "perhaps"}, "DRY_RUN=perhaps is unknown"),
    ],
)
def test_a_wrong_knob_is_named_with_what_it_may_be(knobs: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Run.from_environment("grpo", knobs)


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({}, ["console", "file", "tensorboard", "wandb"]),
        ({"WANDB": "off"}, ["console", "file", "tensorboard"]),
        ({"LOGGERS": "console,file trackio"}, ["console", "file", "trackio"]),
    ],
)
def test_a_run_has_the_trackers_that_it_is_asked_for(knobs: dict[str, str], expected: list[str]) -> None:
    assert Run.from_environment("grpo", knobs).trackers == expected
    assert pipeline("grpo", **knobs)._loggers() == f"trainer.logger=[{','.join(expected)}]"


@pytest.mark.parametrize(
    ("loggers", "message"),
    [("console wandbb", r"LOGGERS: wandbb is unknown: did you mean 'wandb'"), ("swanlab", "swanlab is not installed")],
)
def test_a_tracker_that_is_not_there_is_told(loggers: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Run.from_environment("grpo", {"LOGGERS": loggers}).check_files()


def test_an_empty_knob_has_its_default() -> None:
    assert Run.from_environment("grpo", {"EPISODES": ""}) == Run.from_environment("grpo", {})


# ---------------------------------------------------------------------------------------------- parts of stages


def test_a_file_where_a_folder_is_to_lie_is_told_before_anything_is_made(tmp_path: Path) -> None:
    check_writable(tmp_path / "runs/demo")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write in .*file, where .*file/demo is to lie"):
        check_writable(tmp_path / "file/demo")


def test_a_failed_stage_ends_the_launch_with_its_status(tmp_path: Path) -> None:
    stages = Stages(os.environ)
    with pytest.raises(SystemExit) as ended:
        stages.run(["bash", "-c", "exit 3"], name="the stage")
    assert ended.value.code == 3


def test_a_second_launch_of_one_name_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    first = pipeline("grpo", RUNS=str(tmp_path))
    with folder_lock(first.main.folder, "GRPO"), pytest.raises(ConfigError, match="cannot write GRPO to .*since"):
        pipeline("grpo", RUNS=str(tmp_path)).stages_in_order()


def test_controllers_of_which_none_is_classical_are_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"no classical controller takes part \(random, lookahead, start, grpo\)"):
        pipeline("grpo", SFT="no", EVAL_CONTROLLERS="random lookahead").check_controllers()
    pipeline("grpo", SFT="no", EVAL_CONTROLLERS="lookahead static").check_controllers()
    pipeline("grpo", SFT="no", EVAL_CONTROLLERS="lookahead", EVAL_SEEDS="0").check_controllers()


def test_several_networks_are_one_training(tmp_path: Path) -> None:
    for parent in ("north", "south bank"):
        (tmp_path / parent).mkdir()
        (tmp_path / parent / "run.sumocfg").write_text("<configuration/>")
    words = f"{tmp_path}/north/run.sumocfg '{tmp_path}/south bank/run.sumocfg' sumo:cross"
    run = Run.from_environment("grpo", {"SCENARIO": words})
    run.check_files()
    assert run.scenarios == [f"{tmp_path}/north/run.sumocfg", f"{tmp_path}/south bank/run.sumocfg", "sumo:cross"]
    assert run.dataset == Path("data/north_run+south_bank_run+cross")
    for scenario, message in (
        ("sumo:cros", "did you mean 'sumo:cross'"),
        (f"{tmp_path}/gone.sumocfg", "gone.sumocfg does not exist"),
        ("'open", "quote a name with blanks as a shell does"),
        ("README.md", "scenario 'README.md' is unknown"),
    ):
        with pytest.raises(ConfigError, match=message):
            Run.from_environment("grpo", {"SCENARIO": scenario}).check_files()


# ---------------------------------------------------------------------------------------------- reward settings


def knobs(**values: str) -> Run:
    return Run.from_environment("grpo", {"HARDWARE": "cpu", "DRY_RUN": "1"} | values)


def test_networks_are_calibrated_and_our_own_scenarios_are_not() -> None:
    assert knobs().to_calibrate == []
    assert knobs(CALIBRATE="yes").to_calibrate == ["configs/scenarios/four_way.yaml"]
    both = "configs/scenarios/four_way.yaml sumo:rilsa1"
    assert knobs(SCENARIO=both).to_calibrate == ["sumo:rilsa1"]
    assert knobs(SCENARIO=both, CALIBRATE="no").to_calibrate == []
    # the labels of given data are as they are
    assert knobs(SCENARIO=both, DATA="configs").to_calibrate == []


def test_the_reward_settings_beside_the_data_reach_verl(tmp_path: Path) -> None:
    file = tmp_path / "reward.yaml"
    file.write_text("normalisation: sign\n")
    launch = pipeline("grpo", DATA=str(tmp_path))
    [override] = launch._reward_settings()
    config = composed("grpo", override)
    assert config.reward.custom_reward_function.reward_kwargs.settings_file == str(file)
    # the user's own file wins
    section = "reward.custom_reward_function"
    for own in (f"+{section}.reward_kwargs.settings_file=mine.yaml", f"{section}.path=mine.py"):
        assert pipeline("grpo", own, DATA=str(tmp_path))._reward_settings() == []
    assert pipeline("grpo", f"+{section}.reward_kwargs.normalisation=sign", DATA=str(tmp_path))._reward_settings()
    file.unlink()
    assert launch._reward_settings() == []


# ---------------------------------------------------------------------------------------------- rounds


def test_a_round_starts_from_the_model_of_the_round_before_on_the_states_of_all() -> None:
    launch = pipeline("grpo", ROUNDS="3", RUN_NAME="mine")
    first, second, third = launch.rounds
    assert first is launch.main
    assert first.folder == Path("runs/mine/grpo")
    assert second.start == first.merged == Path("runs/mine/grpo/merged")
    assert third.start == second.merged == Path("runs/mine/grpo/round2/merged")
    for training, parquet, name in (
        (first, "data/four_way/parquet", "mine-grpo"),
        (third, "runs/mine/grpo/round3/parquet", "mine-grpo_round3"),
    ):
        assert value(training, "data.train_files") == f"{parquet}/train.parquet"
        assert value(training, f"{MODEL}.path") == str(training.start)
        assert value(training, "trainer.experiment_name") == name
    assert list(launch._evaluated_models) == ["sft", "grpo", "grpo_round2", "grpo_round3"]
    # without rounds, nothing has another name
    assert pipeline("grpo", RUN_NAME="mine").main == first


@pytest.mark.parametrize("asked", [{"SFT_ANSWERS": "student"}, {"ROUNDS": "2"}])
def test_more_states_are_made_of_the_networks_of_the_data(asked: dict[str, str], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "generation.json").write_text('{"outcomes": {"rilsa1": {}, "cross": {}}}')
    (data / "grpo_dataset.json").write_text("[]")
    knobs = asked | {"RUNS": str(tmp_path), "HARDWARE": "cpu"}
    (knob,) = [f"{name}={value}" for name, value in asked.items()]
    for given in (data, data / "grpo_dataset.json"):
        Run.from_environment("grpo", knobs | {"DATA": str(given), "SCENARIO": "sumo:rilsa1"}).check_files()
        told = rf"^{knob} makes more states of .*four_way\.yaml, .* is of rilsa1, cross, not of four_way: give"
        with pytest.raises(ConfigError, match=told):
            Run.from_environment("grpo", knobs | {"DATA": str(given)}).check_files()


@pytest.mark.parametrize("algorithm", ["gspo", "dpo"])
def test_rounds_are_for_grpo(algorithm: str) -> None:
    with pytest.raises(ConfigError, match=r"ROUNDS=2 makes more data .* use scripts/train_grpo.sh"):
        Run.from_environment(algorithm, {"HARDWARE": "cpu", "ROUNDS": "2"}).check_files()
