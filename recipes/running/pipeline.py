"""Everything that scripts/train_*.sh do, from nothing to a trained model beside the classical controllers.

    python recipes/running/pipeline.py ALGORITHM [--sft OVERRIDE… --] OVERRIDE…

ALGORITHM is grpo, gspo, ppo, sft or dpo, and names the recipe: recipes/ALGORITHM.yaml. An override is Hydra's; those
after --sft are for the SFT that comes first. The knobs that are not keys of a recipe come from the environment
(recipes/running/run.py). A stage that is complete is skipped, so the same command goes on after an interruption.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from recipes.models.checkpoints import latest_step, mend_tracker, remove_older
from recipes.models.model_folder import check_model_folder
from recipes.models.quantisation import check_quantize
from recipes.preflight.check_run import (
    WORKER,
    adapter_modules,
    check_decisions,
    check_numbers,
    check_parquet,
    num_rows,
    prompts_of_update,
)
from recipes.preflight.compose import POLICY_GRADIENT, compose
from recipes.preflight.hardware import (
    RAY_CPUS_BESIDE,
    RAY_CPUS_PER_DEVICE,
    check_driver,
    check_layout,
    detect,
    largest_micro_batch,
    load_hardware,
)
from recipes.preflight.plan import chosen_placement
from recipes.running.environment import WORKER_VARIABLES, log_environment, ray_token, run_environment
from recipes.running.run import SMOLLM2, SMOLLM2_FOLDER, Run, config_text, unknown_knobs
from recipes.running.run_record import run_record, write_record
from recipes.running.stages import Interrupted, Stages, raise_on_signals, say, skipped
from reward.settings import DEFAULT_SETTINGS_FILE
from tsc.errors import ConfigError, run_main
from tsc.evaluation.reference import reference_candidates
from tsc.evaluation.settings import load_evaluation_settings
from tsc.files import REPO_ROOT, folder_lock, write_atomically

TITLES = {"grpo": "GRPO", "gspo": "GSPO", "ppo": "PPO", "sft": "SFT", "dpo": "DPO"}
REWARD_FUNCTION = "reward.custom_reward_function"
# the knobs of a training, as CONFIG takes them, in its folder
CONFIG_FILE = "knobs.yaml"
# A KV cache for a few answers of a given model at a time; the CPU profile's serves a tiny one.
GIVEN_MODEL_KV_CACHE_BYTES = 1 << 30
# The CPU profile's 64 sequences are for a tiny model; of one with 0.1 billion parameters, they take 45 GiB.
GIVEN_MODEL_MICRO_BATCH = 8
# Sequences of a pass that only computes log-probs, in micro-batches of training.
FORWARD_MICRO_BATCHES = 4
# Networks with more are calibrated only where it is asked for, because it takes hours.
MAX_SIGNALS = 4


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training of the launch: the one asked for, or the SFT before it.

    derived, asked: overrides that the launch sets itself, and the user's, which win. config: composed of the user's.
    start: the model that it starts from. planned_model: what the memory plan counts instead, where the start is still
    to be made. number: of the round, from 1.
    """

    algorithm: str
    derived: tuple[str, ...]
    asked: tuple[str, ...]
    config: DictConfig
    start: Path
    planned_model: str
    folder: Path
    number: int = 1

    def overrides(self, *now: str, last: Sequence[str] = ()) -> list[str]:
        """All overrides. now, last: the launch's, too, and known late; those of `last` win over the user's."""
        return [*self.derived, *now, *self.asked, *last]

    @property
    def name(self) -> str:
        """Of its model in the evaluation, and of its logs."""
        return _name(self.algorithm, self.number)

    @property
    def title(self) -> str:
        return TITLES[self.algorithm] if self.number == 1 else f"{TITLES[self.algorithm]}, round {self.number}"

    @property
    def merged(self) -> Path:
        """The model that it makes."""
        return self.folder / "merged"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def done_steps(self) -> int:
        return latest_step(self.checkpoints) or 0

    @property
    def steps(self) -> int:
        return int(self.config.trainer.total_training_steps)


class Pipeline:
    """The stages of one launch. Constructed after all that can be checked at once was checked."""

    def __init__(self, run: Run, overrides: Sequence[str], sft_overrides: Sequence[str], given: dict[str, str]) -> None:
        self.run = run
        self.asked = tuple(overrides)
        self.given_threads = "OMP_NUM_THREADS" in given
        self.stages = Stages({**given, **run_environment(run.hardware, given)})
        os.environ.update(self.stages.environment)  # for what this process itself loads
        self.base, self.planned_model = self._find_model()
        self._asked_for = self._composed(run.algorithm, self.asked)
        self.sft = self._sft(sft_overrides)
        self.main = self._training() if run.algorithm != "sft" or self.sft is None else self.sft
        self.rounds = [self.main]
        for _ in range(1, run.rounds):
            self.rounds.append(self._training(self.rounds[-1]))

    # ------------------------------------------------------------------------------------------ what to do

    @property
    def is_tiny(self) -> bool:
        return not self.run.model_path

    @property
    def hub_name(self) -> str | None:
        """OWNER/NAME of a model that has to come from the hub."""
        name = self.run.model_path
        if not name or name == SMOLLM2 or Path(name).is_dir() or Path("configs/models", name).is_dir():
            return None
        return name

    def _find_model(self) -> tuple[Path, str]:
        """The folder that training starts from, and the model that the plan counts. Raises ConfigError."""
        name = self.run.model_path
        if self.is_tiny:
            return self.run.out / "tiny", "tiny"
        if name == SMOLLM2:
            return SMOLLM2_FOLDER, SMOLLM2
        if Path(name).is_dir():
            if not self.run.dry_run:
                check_model_folder(Path(name))
            return Path(name), name
        if self.hub_name is None:
            if not self.run.dry_run:
                raise ConfigError(
                    f"MODEL_PATH={name} has no weights, it is for DRY_RUN=1: give a model's folder, or OWNER/NAME on "
                    "the Hugging Face Hub"
                )
            return Path(name), name
        from recipes.models.hub_model import fetch  # a folder needs none of it

        folder = fetch(name, only_config=True)
        return folder, str(folder)

    def _start(self, all_weights: bool) -> str:
        """The file of recipes/start. all_weights: not an adapter of them is trained."""
        if self.is_tiny:
            return "tiny"
        if self.run.model_path == SMOLLM2:
            return "smollm2"
        return "given_full" if all_weights else "given"

    def _hardware(self) -> list[str]:
        overrides = [f"hardware={self.run.hardware}"]
        if self.run.hardware == "cpu" and not self.is_tiny:
            overrides.append(f"hardware.micro_batch_size={GIVEN_MODEL_MICRO_BATCH}")
        if self.run.n_gpus is not None:
            cpus = RAY_CPUS_PER_DEVICE * self.run.n_gpus + RAY_CPUS_BESIDE
            overrides += [f"hardware.num_devices={self.run.n_gpus}", f"hardware.ray_num_cpus={cpus}"]
        return overrides

    def _composed(self, algorithm: str, asked: Sequence[str]) -> tuple[list[str], DictConfig]:
        """Overrides that choose hardware and start, and the configuration, its numbers checked. Raises ConfigError."""
        all_weights = any(override.endswith("lora_rank=0") for override in asked)
        chosen = [*self._hardware(), f"start={self._start(all_weights)}"]
        if algorithm == "sft" and self.run.learns_of_student:
            chosen.append("trainer.total_epochs=${start.sft_student_epochs}")
        config = compose(algorithm, [*chosen, *asked])
        check_numbers(algorithm, config)
        model = _model(config)
        check_quantize(algorithm, model.get("quantize") or os.environ.get("QUANTIZE", ""), model.lora_rank)
        return chosen, config

    def _training(self, before: Training | None = None) -> Training:
        """The training asked for, or the next round after `before`. Raises ConfigError."""
        algorithm, run = self.run.algorithm, self.run
        chosen, config = self._asked_for
        number = before.number + 1 if before else 1
        data = run.trained / "pairs" if algorithm == "dpo" else self._parquet_of(number)
        start = before.merged if before else self.sft.merged if self.sft else self.base
        derived = [
            *chosen,
            f"{'model' if algorithm == 'dpo' else f'{WORKER}.model'}.path={_hydra(str(start))}",
            f"data.train_files={_hydra(str(data / 'train.parquet'))}",
            f"data.val_files={_hydra(str(data / 'val.parquet'))}",
        ]
        if algorithm in POLICY_GRADIENT:
            derived += self._policy_overrides(config)
        return self._made(algorithm, config, derived, self.asked, start, number)

    def _round_folder(self, number: int) -> Path:
        return self.run.trained if number == 1 else self.run.trained / f"round{number}"

    def _parquet_of(self, number: int) -> Path:
        return self.run.parquet if number == 1 else self._round_folder(number) / "parquet"

    def _policy_overrides(self, config: DictConfig) -> list[str]:
        """Of verl's keys those that follow from several knobs."""
        decisions = config.knobs.decisions
        prompts = prompts_of_update(config)
        actor, rollout = config[WORKER].actor, config[WORKER].rollout
        if actor.ppo_mini_batch_size == config.data.train_batch_size:  # else the user's own, which validate checks
            check_layout(
                num_devices=config.trainer.n_gpus_per_node,
                nnodes=config.trainer.nnodes,
                tensor_parallel=rollout.tensor_model_parallel_size,
                sequences=prompts * rollout.n,
                micro_batch=1 if actor.use_dynamic_bsz else actor.ppo_micro_batch_size_per_gpu,
            )
        found = [f"{WORKER}.actor.ppo_mini_batch_size={prompts}"]
        if self.run.reward_function is not None:
            file, function = self.run.reward_function
            found += [f"{REWARD_FUNCTION}.path={_hydra(str(file))}", f"{REWARD_FUNCTION}.name={function}"]
        if config[WORKER].actor.kl_loss_coef == 0:
            found.append(f"{WORKER}.actor.use_kl_loss=False")
        if decisions != 1:
            if config.algorithm.adv_estimator != "grpo":
                raise ConfigError(
                    f"ADVANTAGE={config.algorithm.adv_estimator} would treat the {decisions} decisions of one answer "
                    f"as {decisions} answers: choose ADVANTAGE=grpo, or DECISIONS=1"
                )
            agent = f"{WORKER}.rollout.agent"
            found += [
                f"{agent}.agent_loop_config_path=recipes/agent_loops.yaml",
                f"{agent}.default_agent_loop=consecutive_decisions",
                f"{WORKER}.rollout.multi_turn.max_assistant_turns={decisions}",
                f"{WORKER}.actor._target_=recipes.verl_plugins.decision_loop.DecisionActorConfig",
                f"+{WORKER}.actor.decisions={decisions}",
                f"knobs.prompt={_hydra(self.run.prompt)}",
            ]
        if config.hardware.device == "cuda" and not actor.use_dynamic_bsz:
            # A pass without gradients keeps no activations.
            devices = config.trainer.n_gpus_per_node * config.trainer.nnodes
            sequences = config.data.train_batch_size * decisions * rollout.n // devices
            size = largest_micro_batch(sequences, FORWARD_MICRO_BATCHES * actor.ppo_micro_batch_size_per_gpu)
            found += [f"{WORKER}.{part}.log_prob_micro_batch_size_per_gpu={size}" for part in ("ref", "rollout")]
        if not self.is_tiny and self.run.hardware == "cpu":
            found.append(f"hardware.kv_cache_memory_bytes={GIVEN_MODEL_KV_CACHE_BYTES}")
        return found

    def _sft(self, sft_asked: Sequence[str]) -> Training | None:
        """The SFT asked for, or the one before the training asked for; None for none. Raises ConfigError."""
        run, asked = self.run, self.asked
        shared: list[str] = []
        if run.algorithm != "sft":
            _, main = self._asked_for
            if not (main.start.sft if run.sft == "auto" else run.sft == "yes"):
                return None
            model, asked = _model(main), tuple(sft_asked)
            # what the two trainings have in common
            shared = [
                f"shared.lora_rank={model.lora_rank}",
                f"shared.lora_alpha={model.lora_alpha}",
                f"shared.lora_targets={_hydra(adapter_modules(model.target_modules))}",
                f"shared.project_name={_hydra(main.trainer.project_name)}",
                f"hardware.micro_batch_size={main.hardware.micro_batch_size}",
            ]
        derived, config = self._composed("sft", [*shared, *asked]) if shared else self._asked_for
        # A pass holds no more chats than a step gives each worker.
        batch, devices = config.data.train_batch_size, config.hardware.num_devices
        if run.learns_of_student and run.num_chats < batch:
            raise ConfigError(f"SFT_CHATS={run.num_chats} is less than one batch of {batch}: choose {batch} or more")
        derived = [
            *derived,
            *shared,
            f"data.train_files={_hydra(str(run.chats / 'sft_train.parquet'))}",
            f"model.path={_hydra(str(self.base))}",
            f"data.micro_batch_size_per_gpu={min(config.hardware.micro_batch_size, max(batch // devices, 1))}",
        ]
        return self._made("sft", config, derived, asked, self.base)

    def _made(
        self,
        algorithm: str,
        config: DictConfig,
        derived: Sequence[str],
        asked: Sequence[str],
        start: Path,
        number: int = 1,
    ) -> Training:
        folder = self.run.out / algorithm if number == 1 else self._round_folder(number)
        where = str((folder / "checkpoints").resolve())
        placed = []
        if config.hardware.device == "cuda":
            placed = chosen_placement(algorithm, [*derived, *asked], model=self.planned_model, asked=asked)
        derived = [
            *derived,
            *placed,
            f"trainer.default_local_dir={_hydra(where)}",
            f"trainer.experiment_name={_hydra(f'{self.run.run_name}-{_name(algorithm, number)}')}",
        ]
        modules = adapter_modules(_model(config).target_modules)
        if isinstance(modules, str):  # a list of this one word would name a module
            asked = [*asked, f"{f'{WORKER}.model' if WORKER in config else 'model'}.target_modules={modules}"]
        return Training(
            algorithm=algorithm,
            derived=tuple(derived),
            asked=tuple(asked),
            config=config,
            start=start,
            planned_model=self.planned_model,
            folder=folder,
            number=number,
        )

    # ------------------------------------------------------------------------------------------ before it starts

    def check(self) -> None:
        """Whether it fits and verl takes it, with the plan for a user to read; in a dry run that is all.

        In a process of its own: what verl and vLLM load stays out of this one, which lives as long as the run.
        """
        trainings = [training for training in dict.fromkeys((self.sft, self.main)) if training is not None]
        texts = []
        for each in trainings:
            values: dict[str, Any] = {"algorithm": each.algorithm, "model": each.planned_model}
            values["overrides"] = each.overrides()
            if self.run.dry_run:
                values["out"] = str(each.folder / "dry_run")
            texts.append(json.dumps(values))
        options = ["--ignore-fit"] if self.run.fit == "ignore" else []
        command = [sys.executable, "recipes/preflight/check_run.py", *options, *texts]
        done = subprocess.run(command, env=self.stages.environment)
        if done.returncode != 0:
            raise SystemExit(done.returncode)

    def check_cluster(self, *options: object) -> None:
        """That the nodes of the cluster have what this machine has, and that there are enough of them."""
        num_nodes = self.num_nodes
        if self.run.ray_address:
            command = [sys.executable, "recipes/running/cluster_check.py", "--address", self.run.ray_address]
            command += ["--hardware", self.run.hardware, "--nodes", str(num_nodes)]
            if self.run.n_gpus is not None:
                command += ["--gpus-per-node", str(self.run.n_gpus)]
            environment = self.stages.environment | ray_token(self.stages.environment)
            done = subprocess.run([*command, *map(str, options)], env=environment)
            if done.returncode != 0:
                raise SystemExit(done.returncode)
        elif num_nodes > 1:
            raise ConfigError(
                f"NNODES={num_nodes} takes a Ray cluster: start one (bash scripts/ray_cluster.sh head), then name it "
                "by RAY_ADDRESS=IP:PORT"
            )

    @property
    def num_nodes(self) -> int:
        return int(self.main.config.trainer.get("nnodes") or 1)

    # ------------------------------------------------------------------------------------------ stages

    def make_data(self) -> None:
        """States with the outcomes of both answers, in verl's format."""
        run = self.run
        if run.dataset is None:
            return
        # launches with the same scenario share its data: the first one makes them
        alone = nullcontext() if run.data else folder_lock(run.dataset, "data", lock_file=".launch.lock", wait=True)
        with alone:
            self._make_data(run.dataset)

    def _make_data(self, dataset: Path) -> None:
        run = self.run
        self._calibrate(dataset)
        if not run.data:
            with self.stages.stage(f"Data: states of {run.scenario} with the outcome of both answers", dataset):
                self.stages.python(
                    "data_tools/generate_dataset.py", "--scenario", *run.scenarios, "--out", dataset,
                    "--episodes", run.episodes, "--workers", run.num_workers, "--prompt", run.prompt,
                    "--reward", run.reward_file, "--resume",
                )  # fmt: skip
        if (run.parquet / "train.parquet").is_file():
            skipped("Parquet", run.parquet)
        else:
            with self.stages.stage("Parquet: verl's format", run.parquet):
                self.stages.python(
                    "data_tools/json_to_parquet.py", "--input", dataset, "--output", run.parquet,
                    "--balance", self.main.config.start.balance, "--sft-fraction", 1,
                )  # fmt: skip
        if run.learns_of_student and self.sft:
            self._make_chats(dataset)

    def _make_chats(self, dataset: Path) -> None:
        """What a student of the labels answers in many more states."""
        run = self.run
        if (run.chats / "sft_train.parquet").is_file():
            skipped("Chats", run.chats)
            return
        run.student.parent.mkdir(parents=True, exist_ok=True)
        with self.stages.stage(f"Student: a small network learns the labels of {dataset}", run.student):
            self.stages.python("scripts/fit_student.py", "--data", dataset, "--teacher", "labels", "--out", run.student)
        with self.stages.stage(f"Chats: the student runs the signals of {run.scenario}", run.chats):
            self.stages.python(
                "data_tools/student_chats.py", "--scenario", *run.scenarios, "--student", run.student,
                "--out", run.chats, "--chats", run.num_chats, "--prompt", run.prompt, "--workers", run.num_workers,
            )  # fmt: skip

    def _calibrate(self, dataset: Path) -> None:
        words, file = self.run.to_calibrate, dataset / "reward.yaml"
        if not words:
            return
        if file.is_file():
            skipped("Reward", file)
            return
        with self.stages.stage(f"Reward: settings that suit {' '.join(words)}", file):
            limit = ["--max-signals", MAX_SIGNALS] if self.run.calibrate == "auto" else []
            self.stages.python(
                "data_tools/calibrate_reward.py", "--scenario", *words, "--out", dataset, "--workers",
                self.run.num_workers, *limit,
            )  # fmt: skip

    def make_round_data(self, training: Training) -> None:
        """States that the policy of the round before meets, with the outcome of both answers, and those of all rounds
        before in verl's format.

        A student, a small copy of the policy, runs the signals, because the policy itself would be too slow.
        """
        run, folder, parquet = self.run, training.folder, self._parquet_of(training.number)
        if (parquet / "train.parquet").is_file():
            skipped(f"Data of round {training.number}", parquet)
            return
        assert run.dataset is not None
        before = [run.dataset, *(self._round_folder(number) / "data" for number in range(2, training.number))]
        student, data = folder / "student.json", folder / "data"
        folder.mkdir(parents=True, exist_ok=True)
        if not student.is_file():
            with self.stages.stage(f"Student: a small copy of {training.start}", student):
                self.stages.python(
                    "scripts/fit_student.py", "--data", *before, "--teacher", training.start, "--out", student
                )
        with self.stages.stage(f"Data of round {training.number}: states of the policy of the round before", data):
            self.stages.python(
                "data_tools/generate_dataset.py", "--scenario", *run.scenarios, "--out", data,
                "--episodes", run.episodes, "--first-episode", (training.number - 1) * run.episodes,
                "--workers", run.num_workers, "--prompt", run.prompt, "--reward", run.reward_file,
                "--student", student, "--resume",
            )  # fmt: skip
        with self.stages.stage(f"Parquet: the states of {training.number} rounds", parquet):
            self.stages.python(
                "data_tools/json_to_parquet.py", "--input", *before, data, "--output", parquet,
                "--balance", training.config.start.balance, "--sft-fraction", 1,
            )  # fmt: skip

    def check_data(self) -> None:
        """Raises ConfigError."""
        config = self.main.config
        if self.run.algorithm != "sft":
            file = self.run.parquet / "train.parquet"
            check_parquet(file, "train", config.data.train_batch_size)
            validates = self.run.algorithm in POLICY_GRADIENT and config.trainer.test_freq > 0
            if validates and not (file.parent / "val.parquet").is_file():
                raise ConfigError(
                    f"VALIDATE_EVERY={config.trainer.test_freq}, but {file.parent} has no val.parquet: convert the "
                    "dataset with --val-fraction above 0, or leave VALIDATE_EVERY empty"
                )
            if self.run.algorithm in POLICY_GRADIENT:
                check_decisions(config.knobs.decisions, file)

    def make_start_model(self) -> None:
        if self.is_tiny:
            # The tokenizer learns from the chats, so a model belongs to its data.
            if (self.base / "config.json").is_file():
                skipped("Model", self.base)
                return
            with self.stages.stage("Model: a tiny one with random weights", self.base):
                texts = self.run.chats / "sft_train.parquet"
                self.stages.python("recipes/models/tiny_model.py", "--texts", texts, "--out", self.base)
        elif self.run.model_path == SMOLLM2:
            with self.stages.stage("Model: SmolLM2-135M-Instruct", self.base):
                self.stages.python("recipes/models/smollm2.py", "--out", self.base)
        elif self.hub_name is not None:
            with self.stages.stage(f"Model: {self.hub_name} from the Hugging Face Hub", self.base):
                self.stages.python("recipes/models/hub_model.py", "--name", self.hub_name)
            check_model_folder(self.base)
        # from here on models are local folders, so nothing needs the hub
        self.stages.environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

    def teach(self) -> None:
        """The SFT, where there is one: the answer format, and the better answers."""
        sft = self.sft
        if sft is None:
            return
        file = self.run.chats / "sft_train.parquet"
        batch = sft.config.data.train_batch_size
        epochs = sft.config.trainer.total_epochs
        num_chats = check_parquet(file, "sft", batch)
        steps = sft.config.trainer.total_training_steps or num_chats // batch * epochs
        if (sft.folder / "exported_step").is_file():
            skipped("SFT", f"model in {sft.folder / 'merged'}")
            return
        val_file = self.run.chats / "sft_val.parquet"
        # of fewer chats than a batch, verl's loss is not a number
        validates = val_file.is_file() and num_rows(val_file) >= batch
        now = [
            f"data.val_files={_hydra(str(val_file)) if validates else 'null'}",
            f"trainer.total_training_steps={steps}",
        ]
        # The steps end the training. Resumed exactly at an epoch's end, verl passes over one epoch without a step.
        last = [f"trainer.total_epochs={epochs + 2}"]
        title = f"SFT of {self.run.model_path or self.base}: {steps} steps on {file} (log: {sft.folder / 'train.log'})"
        alone = folder_lock(sft.folder, "SFT") if sft is not self.main else nullcontext()
        with alone, self.stages.stage(title, f"model in {sft.folder / 'merged'}"):
            if sft.done_steps < steps:  # else it was stopped while it was exported
                now += self._record(sft, file, steps)
                self._torchrun(sft, ["verl.trainer.sft_trainer", *_recipe("sft")], now, last)
            self._remove_older_checkpoints(sft)
            self._export(sft, "")

    def train_policy(self, main: Training) -> None:
        """verl's policy gradients, up to STEPS."""
        config = main.config
        if main.done_steps >= main.steps:
            skipped(main.title, f"{main.done_steps} steps in {main.checkpoints}")
            return
        title = (
            f"{main.title} of {main.start}: steps {main.done_steps + 1} to {main.steps} of "
            f"{config.data.train_batch_size} prompts × {config[WORKER].rollout.n} answers "
            f"(log: {main.folder / 'train.log'})"
        )
        with self.stages.stage(title, f"checkpoints in {main.checkpoints}"):
            train, val = (self._parquet_of(main.number) / f"{name}.parquet" for name in ("train", "val"))
            if self.run.ray_address:
                self.check_cluster(
                    "--train", train, "--out", self.run.out, "--checkpoints", main.checkpoints, "--model", main.start
                )
            environment = self._environment_of(main)
            # verl reads the file even where it is told not to validate
            now = [self._loggers(), f"data.val_files={_hydra(str((val if val.is_file() else train).resolve()))}"]
            driver, ray = self._ray(environment)
            if self.run.ray_address:
                # another node's working folder may be another one
                now.append(f"data.train_files={_hydra(str(train.resolve()))}")
                if main.start.is_dir():
                    now.append(f"{WORKER}.model.path={_hydra(str(main.start.resolve()))}")
            command = [*driver, "-u", "-m", "verl.trainer.main_ppo", *_recipe(main.algorithm)]
            now += self._reward_settings()
            now += self._record(main, train, main.steps)
            command += main.overrides(*now, *ray)
            self.stages.run(
                command,
                name=f"verl ({main.title})",
                log=main.folder / "train.log",
                watch_workers=True,
                environment=environment,
            )
            self._remove_older_checkpoints(main)

    def train_on_pairs(self) -> None:
        """TRL's DPO, up to STEPS."""
        main, config = self.main, self.main.config
        if main.done_steps >= main.steps:
            skipped(main.title, f"{main.done_steps} steps in {main.checkpoints}")
            return
        pairs = main.folder / "pairs"
        reward = self.run.reward_file
        sources = [self.run.parquet / "train.parquet", reward]
        if not _is_newer(pairs / "train.parquet", sources):
            title = f"Pairs: the better and the worse answer to each state of {self.run.parquet}"
            with self.stages.stage(title, pairs):
                self.stages.python(
                    "recipes/dpo/preference_pairs.py",
                    "--input",
                    self.run.parquet,
                    "--output",
                    pairs,
                    "--reward",
                    reward,
                )
        title = (
            f"DPO of {main.start}: steps {main.done_steps + 1} to {main.steps} of {config.data.train_batch_size} pairs "
            f"(log: {main.folder / 'train.log'})"
        )
        with self.stages.stage(title, f"checkpoints in {main.checkpoints}"):
            self._torchrun(main, ["recipes.dpo.train_dpo"], self._record(main, pairs / "train.parquet", main.steps))

    def merge(self, main: Training) -> None:
        """Adapter and merged model of the last checkpoint."""
        exported = main.folder / "exported_step"
        if exported.is_file() and exported.read_text().strip() == str(main.done_steps):
            skipped("Merge", main.merged)
            return
        with self.stages.stage("Merge: the adapter, and the model with it folded in", main.merged):
            self._export(main, "actor")
            (self.run.out / "results.json").unlink(missing_ok=True)

    @property
    def _evaluated_models(self) -> dict[str, object]:
        """By name, as scripts/evaluate.py takes them.

        On a GPU, an adapter is evaluated beside its base, as it was trained: merged into weights of 16 bits, small
        changes are rounded away. On a CPU the merged weights have 32 bits, and vLLM is faster with them.
        """
        return {
            "sft" if self.sft else "start": self.main.start,
            **{training.name: self._trained_model(training) for training in self.rounds},
        }

    def _trained_model(self, training: Training) -> object:
        has_adapter = bool(_model(training.config).lora_rank)
        if has_adapter and load_hardware(self.run.hardware).device == "cuda":
            return f"{training.start}+{training.folder / 'adapter'}"
        return training.merged

    def check_controllers(self) -> None:
        """That the evaluation has a controller to compare the models with. Raises ConfigError."""
        if self.run.eval_seeds and self.run.algorithm != "sft":
            asked = load_evaluation_settings(REPO_ROOT / "configs/evaluation.yaml").reference
            reference_candidates(asked, [*self.run.eval_controllers.split(), *self._evaluated_models])

    def evaluate(self) -> None:
        """The trained model beside the one it started from and the classical controllers."""
        run = self.run
        if run.eval_seeds == 0:
            return
        results = run.out / "results.json"
        hours = "hour" if run.eval_seeds == 1 else "hours"
        with self.stages.stage(f"Evaluation on {run.eval_seeds} unseen {hours}", results):
            models = [f"llm:{name}={where}" for name, where in self._evaluated_models.items()]
            self.stages.python(
                "scripts/evaluate.py", "--scenarios", *run.scenarios, "--seeds", run.eval_seeds, "--workers",
                run.num_workers, "--prompt", run.prompt, "--reward", run.reward_file, "--out", run.out / "eval",
                "--controllers", *run.eval_controllers.split(), *models,
            )  # fmt: skip
            shutil.copyfile(run.out / "eval" / "results.json", results)
            if "wandb" in run.trackers:
                self._log_artifact(self.rounds[-1], "--eval", run.out / "eval")

    def _log_artifact(self, training: Training, option: str, folder: Path) -> None:
        self.stages.run(
            [sys.executable, "recipes/running/log_artifacts.py", option, folder,
             "--project", training.config.trainer.project_name],
            name=f"the log of {folder} in wandb",
            environment=self._environment_of(training),
        )  # fmt: skip

    def say_where(self) -> None:
        main, run = self.rounds[-1], self.run
        say(f"\nFinished in {self.stages.total_time()}.")
        say(f"model     {main.merged}")
        if (main.folder / "adapter").is_dir():
            say(f"adapter   {main.folder / 'adapter'}, for {main.start}")
        if run.eval_seeds and run.algorithm != "sft":
            say(f"results   {run.out / 'results.json'}")
        say(f"metrics   {main.folder / 'metrics'}/*.jsonl; tensorboard --logdir {run.out}")
        trainings = dict.fromkeys((self.sft, *self.rounds))
        offline = [each.folder for each in trainings if each and _logged_offline(each.folder)]
        if offline:
            folders = " ".join(f"{folder}/wandb/offline-run-*" for folder in offline)
            say(f"wandb     offline; to send: .venv/bin/wandb sync {folders}")

    def stages_in_order(self) -> None:
        """All stages. Raises ConfigError if another launch of this name and algorithm is running."""
        with folder_lock(self.main.folder, self.main.title):
            write_atomically(self.main.folder / CONFIG_FILE, config_text(self.run.algorithm, os.environ).encode())
            self._stages_in_order()

    def _stages_in_order(self) -> None:
        for each in dict.fromkeys((self.sft, *self.rounds)):
            if each and (mended := mend_tracker(each.checkpoints)):
                say(f"note: {mended}")
        self.make_data()
        self.check_data()
        self.make_start_model()
        self.teach()
        if self.run.algorithm == "sft":
            return
        if self.run.algorithm == "dpo":
            self.train_on_pairs()
            self.merge(self.main)
        else:
            for training in self.rounds:
                if training.number > 1:
                    self.make_round_data(training)
                self.train_policy(training)
                self.merge(training)
        self.evaluate()

    # ------------------------------------------------------------------------------------------ parts of stages

    def _environment_of(self, training: Training) -> dict[str, str]:
        run = self.run
        found = log_environment(
            training.folder,
            f"{run.run_name}-{training.name}",
            run.wandb if "wandb" in run.trackers else "off",
            group=run.run_name,
            tags=[training.algorithm, Path(run.model_path).name or "tiny", run.hardware],
        )
        if training.algorithm == "ppo":
            # Every process of the run has to know the critic's loader.
            modules = self.stages.environment.get("VERL_USE_EXTERNAL_MODULES")
            found["VERL_USE_EXTERNAL_MODULES"] = ",".join(filter(None, [modules, "recipes.verl_plugins.value_model"]))
        if self.is_tiny and not self.given_threads and training.algorithm != "sft":
            # The passes of a tiny model are over before a second thread has joined: 4.6 s an update with one, 7.6 s
            # with two.
            found["OMP_NUM_THREADS"] = "1"
        return found

    def _record(self, training: Training, data: Path, steps: int) -> list[str]:
        """Note what the training is made of. The overrides tell its trackers the same."""
        record = run_record(
            run=self.run.run_name,
            algorithm=training.name,
            model=training.start,
            data=data,
            steps=steps,
            config=training.config,
        )
        write_record(training.folder, record)
        told = ("dataset_sha256", "code_sha256", "commit")
        return [f"+run.{name}={_quoted(record[name])}" for name in told if record[name]]

    def _reward_settings(self) -> list[str]:
        """The reward file of the data, unless the user names another one, or another reward function."""
        file = self.run.reward_file.resolve()
        own = (f"{REWARD_FUNCTION}.path=", f"{REWARD_FUNCTION}.reward_kwargs.settings_file=")
        asked_for = self.run.reward or any(each.lstrip("+").startswith(own) for each in self.asked)
        if file == DEFAULT_SETTINGS_FILE or asked_for:
            return []
        return [f"+{REWARD_FUNCTION}.reward_kwargs.settings_file={_hydra(str(file))}"]

    def _loggers(self) -> str:
        return f"trainer.logger=[{','.join(self.run.trackers)}]"

    def _torchrun(
        self, training: Training, program: Sequence[str], now: Sequence[str] = (), last: Sequence[str] = ()
    ) -> None:
        num_devices = training.config.hardware.num_devices
        training.folder.mkdir(parents=True, exist_ok=True)
        command = ["torchrun", "--standalone", "--local-addr=127.0.0.1", "--nnodes=1"]
        command += [f"--nproc_per_node={num_devices}", "-m", "recipes.running.rank", *program]
        command += training.overrides(*now, self._loggers(), last=last)
        self.stages.run(
            command,
            name=f"{'TRL' if training.algorithm == 'dpo' else 'verl'} ({training.title})",
            log=training.folder / "train.log",
            environment=self._environment_of(training),
        )

    def _export(self, training: Training, part: str) -> None:
        self.stages.python(
            "scripts/export_model.py", "--checkpoints", training.checkpoints, "--part", part,
            "--base", training.start, "--data", self._parquet_of(training.number), "--out", training.folder,
        )  # fmt: skip
        adapter = training.folder / "adapter"
        if self.run.wandb_adapter == "yes" and training in self.rounds and adapter.is_dir():
            self._log_artifact(training, "--adapter", adapter)

    def _remove_older_checkpoints(self, training: Training) -> None:
        if not any("ckpt_to_keep=" in override for override in self.asked):
            remove_older(training.checkpoints)

    def _ray(self, environment: dict[str, str]) -> tuple[list[str], list[str]]:
        """The start of the driver's command line, and overrides: a Ray of this run's own, or the cluster. Adds to
        `environment`."""
        init, address = "ray_kwargs.ray_init", self.run.ray_address
        if not address:
            # Everyone who reaches the ports of verl's transfer queue can run code. These two settings together keep
            # the network from them.
            environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
            # other users of this machine reach vLLM's port
            environment["VLLM_API_KEY"] = secrets.token_hex(16)
            return [sys.executable], [f"{init}._node_ip_address=127.0.0.1"]
        environment |= ray_token(self.stages.environment)
        # verl spreads these over the nodes, and the profile says how many one has
        profile = load_hardware(self.run.hardware)
        overrides = [
            f"{init}.address='{address}'",
            *(f"{init}.{name}=null" for name in ("num_cpus", "num_gpus", "object_store_memory")),
            f"reward.num_workers={self.num_nodes * profile.num_reward_workers}",
            f"{WORKER}.rollout.agent.num_workers={self.num_nodes * profile.num_agent_workers}",
        ]
        whole = self.stages.environment | environment
        for name in WORKER_VARIABLES:
            if whole.get(name):
                overrides.append(f"+{init}.runtime_env.env_vars.{name}={_quoted(whole[name])}")
        return [sys.executable, "recipes/running/cluster_run.py", "--address", address, "--", sys.executable], overrides


def _name(algorithm: str, number: int) -> str:
    """Of a round."""
    return algorithm if number == 1 else f"{algorithm}_round{number}"


def _model(config: DictConfig) -> DictConfig:
    found = config[WORKER].model if WORKER in config else config.model
    assert isinstance(found, DictConfig)
    return found


def _recipe(algorithm: str) -> list[str]:
    return ["--config-path", str(REPO_ROOT / "recipes"), "--config-name", algorithm]


def _hydra(value: str | list[str]) -> str:
    """A value as Hydra's overrides read it; quoted where a character of it means something there."""
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    return value if re.fullmatch(r"[A-Za-z_./][\w./-]*", value) else _quoted(value)


def _quoted(value: str) -> str:
    escaped = value.replace("'", "\\'")
    return f"'{escaped}'"


def _is_newer(file: Path, sources: Sequence[Path]) -> bool:
    return file.is_file() and all(file.stat().st_mtime > source.stat().st_mtime for source in sources)


def _logged_offline(folder: Path) -> bool:
    return any((folder / "wandb").glob("offline-run-*"))


def _with_hardware(run: Run) -> Run:
    """The run with its profile and number of GPUs found, where HARDWARE=auto asks for that. Raises ConfigError."""
    if run.hardware == "auto":
        detected = detect()
        for remark in detected.remarks:
            print(f"note: {remark}", file=sys.stderr)
        run = run.model_copy(update={"hardware": detected.name, "n_gpus": run.n_gpus or detected.count})
    if load_hardware(run.hardware).device == "cuda" and not run.dry_run:
        if shutil.which("nvidia-smi") is None:
            raise ConfigError(
                f"HARDWARE={run.hardware} needs an NVIDIA GPU, and nvidia-smi finds none here: choose cpu, or look "
                "with DRY_RUN=1"
            )
        check_driver()
    return run


def _environment_without_knobs() -> dict[str, str]:
    """What the stages inherit. RAY_ADDRESS above all must not reach them: whatever starts a Ray would join that one."""
    knobs = {name.upper() for name in Run.model_fields} | {"WANDB_PROJECT"}
    found = {name: value for name, value in os.environ.items() if name not in knobs}
    # without byte code the dozen processes of a run compile torch and vLLM a dozen times
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    found["PATH"] = os.pathsep.join([str(REPO_ROOT / ".venv" / "bin"), found.get("PATH", "")])
    return found


def main() -> int:
    os.chdir(REPO_ROOT)
    raise_on_signals()
    words = sys.argv[1:]
    if not words or words[0] not in TITLES:
        raise ConfigError(f"name the algorithm first: {', '.join(TITLES)}")
    algorithm, rest = words[0], words[1:]
    sft: list[str] = []
    if rest[:1] == ["--sft"]:
        end = rest.index("--")
        sft, rest = rest[1:end], rest[end + 1 :]
    for remark in unknown_knobs(algorithm, os.environ):
        print(f"note: {remark}", file=sys.stderr)
    try:
        run = _with_hardware(Run.from_environment(algorithm, os.environ))
        run.check_files()
        pipeline = Pipeline(run, rest, sft, _environment_without_knobs())
        pipeline.check_controllers()
        pipeline.check()
        if run.dry_run:
            return 0
        pipeline.check_cluster()
        pipeline.stages_in_order()
        pipeline.say_where()
    except Interrupted as interrupted:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return interrupted.status
    return 0


if __name__ == "__main__":
    run_main(main)
