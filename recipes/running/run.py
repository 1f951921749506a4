"""What a launcher was asked for: the knobs of scripts/train_*.sh that are not keys of a training's configuration.

The launchers export the knobs of their config blocks. An empty knob has its default, which stands in recipes/run.yaml.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import os
import re
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reward.settings import DEFAULT_SETTINGS_FILE
from tsc.errors import ConfigError, did_you_mean
from tsc.files import REPO_ROOT
from tsc.junction.prompt import prompt_maker
from tsc.scenarios.by_word import WORDS_HELP, is_network, is_scenario_file, traffic_scenarios
from tsc.scenarios.packaged import PACKAGED_WORDS
from tsc.yaml_file import read_yaml

FILE = REPO_ROOT / "recipes" / "run.yaml"
SMOLLM2 = "smollm2"
SMOLLM2_FOLDER = Path("models/smollm2")

# Answers of a student for each hour of labels. Of 20,000, the tiny model learns all that the student knows
# (docs/lab_log.md).
CHATS_OF_EPISODE, MAX_CHATS = 2500, 20_000

# verl's trackers that a run can have, and the package that each needs
TRACKERS = {
    "console": "", "file": "", "tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio",
    "mlflow": "mlflow", "swanlab": "swanlab",
}  # fmt: skip

Algorithm = Literal["grpo", "gspo", "ppo", "sft", "dpo"]


class Run(BaseModel):
    """One launch. Each field is the knob of its name in capitals; recipes/run.yaml has the defaults.

    model_path: folder, OWNER/NAME on the Hugging Face Hub, smollm2, a name in configs/models (dry runs); empty: tiny.
    data: dataset (file or folder) or folder with train.parquet; empty: made from the scenario.
    n_gpus: of each machine; None: all that hardware=auto finds, else the profile's.
    prompt: what makes the prompts (tsc.junction.prompt).
    rounds: of data and training; from the second on, the data are states that the policy of the round before meets.
    calibrate: whether the reward settings that suit each network are searched before its data are made; auto: for
        networks of SUMO's own files with few signals.
    sft_answers: what the SFT learns: the better answers, or those of a student of them in more states; auto: of a
        student for the tiny model on data made from SUMO's own files.
    sft_chats: how many answers of the student; None: in proportion to the data.
    reward: FILE.py:FUNCTION, called in place of reward.compute_score; empty: none.
    workers: processes for simulation; None: one for each core.
    loggers: those of verl's trackers that get the metrics. wandb also needs WANDB other than off.
    wandb_adapter: whether wandb gets the adapter, too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    algorithm: Algorithm
    model_path: str
    data: str
    scenario: str
    episodes: int = Field(ge=1)
    prompt: str
    calibrate: Literal["yes", "no", "auto"]
    rounds: int = Field(ge=1)
    reward: str
    hardware: str
    n_gpus: int | None = Field(ge=1)
    ray_address: str
    dry_run: bool
    fit: Literal["check", "ignore"]
    sft: Literal["yes", "no", "auto"]
    sft_answers: Literal["labels", "student", "auto"]
    sft_chats: int | None = Field(ge=1)
    eval_seeds: int = Field(ge=0)
    eval_controllers: str
    run_name: str = Field(min_length=1)
    runs: str = Field(min_length=1)
    workers: int | None = Field(ge=1)
    loggers: str
    wandb: Literal["auto", "online", "offline", "off"]
    wandb_adapter: Literal["yes", "no"]

    @classmethod
    def from_environment(cls, algorithm: str, environment: Mapping[str, str]) -> Run:
        """Raises ConfigError that names the knob, its value and what is allowed."""
        defaults: Any = read_yaml(FILE)
        asked = {name: environment[name.upper()] for name in defaults if environment.get(name.upper())}
        try:
            return cls(algorithm=algorithm, **(defaults | asked))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            told = fault["msg"].replace("Input should be", "choose")
            raise ConfigError(f"{str(fault['loc'][0]).upper()}={fault['input']} is unknown: {told}") from error

    @property
    def out(self) -> Path:
        """Where everything of this run's name lies."""
        return Path(self.runs, self.run_name)

    @property
    def trained(self) -> Path:
        """Where everything of this training lies."""
        return self.out / self.algorithm

    @property
    def checkpoints(self) -> Path:
        return self.trained / "checkpoints"

    @property
    def num_workers(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))

    @property
    def dataset(self) -> Path | None:
        """The dataset to convert; None where DATA holds Parquet files."""
        if self.has_parquet:
            return None
        return Path(self.data) if self.data else self._made_data

    @property
    def scenarios(self) -> list[str]:
        """The words of `scenario`. Raises ConfigError for a quote without its end."""
        try:
            return shlex.split(self.scenario)
        except ValueError as error:
            raise ConfigError(f"SCENARIO={self.scenario}: {error}: quote a name with blanks as a shell does") from error

    @property
    def _made_data(self) -> Path:
        return Path("data", "+".join(map(_data_name, self.scenarios)))

    @property
    def trackers(self) -> list[str]:
        """verl's names of them. Raises ConfigError for one that verl does not know, or that is not installed."""
        found = self.loggers.replace(",", " ").split()
        for name in found:
            if name not in TRACKERS:
                raise ConfigError(
                    f"LOGGERS: {name} is unknown: {did_you_mean(name, TRACKERS)}choose from {', '.join(TRACKERS)}"
                )
            if TRACKERS[name] and importlib.util.find_spec(TRACKERS[name]) is None:
                raise ConfigError(
                    f"LOGGERS: {name} is not installed: leave it out, or install it "
                    f"(uv pip install --python .venv/bin/python {name})"
                )
        return [name for name in found if name != "wandb" or self.wandb != "off"]

    @property
    def to_calibrate(self) -> list[str]:
        """The words of the networks whose reward settings are to be searched."""
        if self.data or self.calibrate == "no":
            return []
        return [word for word in self.scenarios if self.calibrate == "yes" or is_network(word)]

    @property
    def reward_file(self) -> Path:
        """The reward settings of this run: those that lie beside its data, if there are any."""
        data = Path(self.data) if self.data else self._made_data
        own = (data if data.is_dir() else data.parent) / "reward.yaml"
        return own if own.is_file() else DEFAULT_SETTINGS_FILE

    @property
    def reward_function(self) -> tuple[Path, str] | None:
        """File and name of the user's own. Raises ConfigError if the file does not define it."""
        if not self.reward:
            return None
        name, _, function = self.reward.rpartition(":")
        file = Path(name).resolve()
        if not name or not file.is_file():
            raise ConfigError(
                f"REWARD={self.reward}: {name or self.reward} is not a file: write FILE.py:FUNCTION (docs/reward.md)"
            )
        try:
            parsed = ast.parse(file.read_bytes())
        except SyntaxError as error:
            raise ConfigError(f"REWARD={self.reward}: {file}, line {error.lineno}: {error.msg}") from error
        defined = [each.name for each in parsed.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
        if function not in defined:
            raise ConfigError(
                f"REWARD={self.reward}: {file} does not define {function!r}: {did_you_mean(function, defined)}it "
                f"defines {', '.join(defined) or 'no function'}"
            )
        return file, function

    @property
    def has_parquet(self) -> bool:
        needed = "sft_train.parquet" if self.algorithm == "sft" else "train.parquet"
        return bool(self.data) and Path(self.data, needed).is_file()

    @property
    def learns_of_student(self) -> bool:
        """Whether the SFT learns the answers of a student.

        The tiny model learns the labels' noise by heart. On real networks it runs the signals better with a student's
        answers, on a drawn junction such as four_way it does not (docs/lab_log.md).
        """
        if self.sft == "no":
            return False
        if self.sft_answers == "auto":
            is_tiny = not self.model_path and not self.data
            return is_tiny and all(map(is_network, self.scenarios))
        return self.sft_answers == "student"

    @property
    def parquet(self) -> Path:
        return Path(self.data) if self.has_parquet else self._converted / "parquet"

    @property
    def chats(self) -> Path:
        """Folder of what the SFT learns."""
        return self._converted / "student_chats" if self.learns_of_student else self.parquet

    @property
    def num_chats(self) -> int:
        """Answers of a student to learn: the number that was asked for, or in proportion to the data."""
        return self.sft_chats or min(CHATS_OF_EPISODE * self.episodes, MAX_CHATS)

    @property
    def student(self) -> Path:
        """The file of the student whose answers the SFT learns."""
        return self._converted / "student.json"

    @property
    def _converted(self) -> Path:
        """Where the files lie that are made of the dataset."""
        return self.out if self.data else self._made_data

    def check_files(self) -> None:
        """That what the knobs name is there, and what is to be written can be. Raises ConfigError."""
        if not self.scenarios:
            raise ConfigError(f"SCENARIO={self.scenario} names nothing: give {WORDS_HELP}; several with blanks between")
        for word in self.scenarios:
            if word not in PACKAGED_WORDS and not Path(word).is_file():
                raise ConfigError(
                    f"SCENARIO: {word} does not exist: {did_you_mean(word, PACKAGED_WORDS)}give {WORDS_HELP}; several "
                    "with blanks between"
                )
            is_scenario_file(word)
        prompt_maker(self.prompt)
        _ = self.reward_function, self.trackers
        if self.rounds > 1 and (self.algorithm != "grpo" or self.has_parquet):
            raise ConfigError(
                f"ROUNDS={self.rounds} makes more data of SCENARIO between trainings with GRPO: use "
                "scripts/train_grpo.sh, and for DATA a dataset of data_tools/generate_dataset.py, not Parquet files"
            )
        if self.learns_of_student and self.has_parquet:
            raise ConfigError(
                f"SFT_ANSWERS=student fits a student to a dataset, but DATA={self.data} holds Parquet files: give the "
                "dataset of data_tools/generate_dataset.py that they were made of"
            )
        if self.data and not Path(self.data).exists():
            raise ConfigError(
                f"DATA={self.data} does not exist: give a dataset, a folder with train.parquet, or nothing"
            )
        if self.data and (self.learns_of_student or self.rounds > 1):
            self._check_networks_of_data()
        folders = [self.out]
        if not self.data and not (self.parquet / "train.parquet").is_file():
            folders.append(self.parquet.parent)
        if self.model_path == SMOLLM2 and not SMOLLM2_FOLDER.is_dir():
            folders.append(SMOLLM2_FOLDER)
        for folder in folders:
            check_writable(folder)

    def _check_networks_of_data(self) -> None:
        """That SCENARIO, of which more states are made, names only networks that DATA is of. Raises ConfigError.

        If no generation.json lies beside the data, nothing is checked.
        """
        data = Path(self.data)
        generation = (data if data.is_dir() else data.parent) / "generation.json"
        if not generation.is_file():
            return
        of_data = list(json.loads(generation.read_bytes())["outcomes"])
        with tempfile.TemporaryDirectory(prefix="tsc-scenarios-") as scratch:
            names = [each.name for each in traffic_scenarios(self.scenarios, Path(scratch))]
        if others := [name for name in names if name not in of_data]:
            knob = "SFT_ANSWERS=student" if self.learns_of_student else f"ROUNDS={self.rounds}"
            raise ConfigError(
                f"{knob} makes more states of SCENARIO={self.scenario}, but DATA={self.data} is of "
                f"{', '.join(of_data)}, not of {', '.join(others)}: give the SCENARIO that the data were made of"
            )


def unknown_knobs(algorithm: str, environment: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that looks like a knob of a launcher, but is none of train_ALGORITHM.sh's."""
    own = knobs_of(algorithm)
    elsewhere = {knob for name in get_args(Algorithm) for knob in knobs_of(name)} - set(own)
    told = []
    for name, value in sorted(environment.items()):
        similar = difflib.get_close_matches(name, own, n=1, cutoff=0.85)
        if value and name not in own and (name in elsewhere or similar):
            meant = f": did you mean {similar[0]}?" if similar else " (--help lists them)"
            told.append(f"{name}={value} is not a knob of train_{algorithm}.sh{meant}")
    return told


def knobs_of(algorithm: str) -> list[str]:
    """The knobs of train_ALGORITHM.sh, in its order."""
    launcher = REPO_ROOT / "scripts" / f"train_{algorithm}.sh"
    return re.findall(r"^([A-Z_0-9]+)=\$\{\1:-\}", launcher.read_text(), re.MULTILINE)


def config_text(algorithm: str, environment: Mapping[str, str]) -> str:
    """The knobs that are set, as a file that CONFIG takes."""
    lines = [f"# CONFIG=THIS_FILE bash scripts/train_{algorithm}.sh trains with these knobs; other overrides: hydra/"]
    for knob in knobs_of(algorithm):
        if value := environment.get(knob):
            quote = "'" if '"' in value else '"'
            lines.append(f"{knob}: {quote}{value}{quote}")
    return "\n".join(lines) + "\n"


def _data_name(word: str) -> str:
    """The folder of a scenario's data. Many networks have a run.sumocfg, so its folder's name comes before it."""
    path = Path(word)
    if word in PACKAGED_WORDS or is_scenario_file(word):
        name = Path(word.rpartition(":")[2]).stem
    else:
        name = f"{path.resolve().parent.name}_{path.name.partition('.')[0]}"
    return re.sub(r"[^\w.-]", "_", name)


def check_writable(folder: Path) -> None:
    """That this user can make files in `folder`, or in what there is of its path. Raises ConfigError."""
    above = folder
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ConfigError(
            f"user {os.getuid()} cannot write in {above}, where {folder} is to lie: give that user the rights (for an "
            "image: on the host, see docs/docker.md), or choose another folder"
        )
