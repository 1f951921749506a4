"""The knobs of a training in the bounds that they need, and its data in the form that verl reads.

As a program it does what needs verl, vLLM or transformers, so that the launcher itself stays small:

    python recipes/preflight/check_run.py '{"algorithm": "grpo", "model": "tiny", "overrides": ["hardware=cpu"]}' …

prints for each training what it takes and whether it fits. Exit status 0: all may start; 2: one may not.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from reward.ground_truth import parse_ground_truth
from tsc.errors import ConfigError, SampleError, run_main
from tsc.replays.state_archive import is_saved
from tsc.replays.stretch import MAX_DECISIONS

WORKER = "actor_rollout_ref"
ALL_LINEAR = "all-linear"
# What verl reads of each kind of row.
COLUMNS = {"train": {"data_source", "prompt", "reward_model"}, "sft": {"messages"}}


@dataclass(frozen=True)
class Number:
    """A knob that is a number. key: where a configuration has it. above: `least` itself is too small."""

    knob: str
    key: str
    least: float
    whole: bool = True
    above: bool = False
    most: float | None = None

    def check(self, config: DictConfig) -> None:
        """Raises ConfigError where the configuration has something else at the key."""
        value = OmegaConf.select(config, self.key)
        kind = "a whole number" if self.whole else "a number"
        bound = f"{'above' if self.above else 'of at least'} {self.least:g}"
        if self.most is not None:
            bound += f" and at most {self.most:g}"
        told = f"{self.knob}={value} ({self.key})"
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            raise ConfigError(f"{told} is not {kind}: choose one {bound}")
        if value < self.least or (self.above and value == self.least):
            raise ConfigError(f"{told} is too small: choose {kind} {bound}")
        if self.most is not None and value > self.most:
            raise ConfigError(f"{told} is too large: choose {kind} {bound}")


_BATCH = Number("BATCH_PROMPTS", "data.train_batch_size", 1)
_STEPS = Number("STEPS", "trainer.total_training_steps", 1)
_DEVICES = (Number("N_GPUS", "hardware.num_devices", 1), Number("MICRO_BATCH", "hardware.micro_batch_size", 1))
_POLICY = (
    _BATCH,
    _STEPS,
    *_DEVICES,
    Number("NNODES", "trainer.nnodes", 1),
    Number("UPDATES", "knobs.updates", 1),
    Number("DECISIONS", "knobs.decisions", 1, most=MAX_DECISIONS),
    Number("LORA_RANK", f"{WORKER}.model.lora_rank", 0),
    Number("LEARNING_RATE", f"{WORKER}.actor.optim.lr", 0, whole=False, above=True),
    Number("TEMPERATURE", f"{WORKER}.rollout.temperature", 0, whole=False, above=True),
    Number("KL", f"{WORKER}.actor.kl_loss_coef", 0, whole=False),
)
# Two answers at least, where answers are compared with each other.
_GROUP = Number("ROLLOUT_N", f"{WORKER}.rollout.n", 2)
NUMBERS = {
    "grpo": (*_POLICY, _GROUP),
    "gspo": (*_POLICY, _GROUP),
    "ppo": (*_POLICY, Number("ROLLOUT_N", f"{WORKER}.rollout.n", 1)),
    "sft": (
        Number("BATCH_CHATS", "data.train_batch_size", 1),
        Number("EPOCHS", "trainer.total_epochs", 1),
        *_DEVICES,
        Number("LORA_RANK", "model.lora_rank", 0),
        Number("LEARNING_RATE", "optim.lr", 0, whole=False, above=True),
    ),
    "dpo": (
        _BATCH,
        _STEPS,
        *_DEVICES,
        Number("LORA_RANK", "model.lora_rank", 0),
        Number("LEARNING_RATE", "trl.learning_rate", 0, whole=False, above=True),
        Number("BETA", "trl.beta", 0, whole=False, above=True),
        Number("MARGIN_SCALE", "loss.margin_scale", 0, whole=False),
    ),
}


def check_numbers(algorithm: str, config: DictConfig) -> None:
    """Raises ConfigError that names the first knob out of its bounds."""
    for number in NUMBERS[algorithm]:
        number.check(config)


def prompts_of_update(config: DictConfig) -> int:
    """Prompts (with several decisions to an answer: sequences) of one update. Raises ConfigError where a step's cannot
    be divided among its updates."""
    prompts, updates = config.data.train_batch_size, config.knobs.updates
    if prompts % updates:
        raise ConfigError(
            f"BATCH_PROMPTS={prompts} cannot be divided among UPDATES={updates}: choose a divisor of {prompts}"
        )
    # verl counts sequences in an update, and each decision is one
    return int(prompts * config.knobs.decisions // updates)


def check_parquet(file: Path, kind: str, batch: int) -> int:
    """Number of rows; the file is there, has verl's columns and at least one batch. Raises ConfigError."""
    import pyarrow.parquet

    remedy = "make it with data_tools/json_to_parquet.py"
    if not file.is_file():
        raise ConfigError(f"{file} does not exist: {remedy}, or leave DATA empty")
    try:
        parquet = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"{file} is not a Parquet file ({error}): {remedy}") from None
    missing = COLUMNS[kind] - set(parquet.schema_arrow.names)
    if missing:
        raise ConfigError(f"{file} lacks the column {', '.join(sorted(missing))}: {remedy}")
    rows = int(parquet.metadata.num_rows)
    if rows < batch:
        raise ConfigError(
            f"{file} has {rows} rows, fewer than one batch of {batch}: make more data or choose a smaller batch"
        )
    return rows


def num_rows(file: Path) -> int:
    """Of a Parquet file."""
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(file).num_rows)


def check_decisions(number: int, train: Path) -> None:
    """That `number` decisions in a row can be played from the state of each row of `train`. Raises ConfigError."""
    if number == 1:
        return
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(train, columns=["reward_model"])["reward_model"]
    for row, values in enumerate(rows.to_pylist()):
        try:
            request = parse_ground_truth(values["ground_truth"]).request
        except (SampleError, KeyError, TypeError) as error:
            raise ConfigError(
                f"DECISIONS={number} plays on from each row's state, but row {row} of {train} does not say how: {error}"
            ) from error
        if not request.embedded and not is_saved(request.state_path):
            raise ConfigError(
                f"DECISIONS={number} plays on from each row's state, but that of row {row} of {train}, "
                f"{request.state_path}, does not exist: move the dataset back, or generate and convert it again"
            )


def adapter_modules(value: Any) -> str | list[str]:
    """The modules of LORA_TARGETS as PEFT takes them: all-linear, which is a word, or a list. Raises ConfigError."""
    names = [value] if isinstance(value, str) else list(value)
    if not names:
        raise ConfigError(f"LORA_TARGETS is empty: choose {ALL_LINEAR} or names of modules with commas between")
    return ALL_LINEAR if names == [ALL_LINEAR] else list(dict.fromkeys(names))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainings", nargs="+", help="JSON object with algorithm, model, overrides and, dry, out")
    parser.add_argument("--ignore-fit", action="store_true", help="do not refuse what does not fit (FIT=ignore)")
    options = parser.parse_args()
    from recipes.preflight.plan import show_plan

    for text in options.trainings:
        training = json.loads(text)
        out = Path(training["out"]) if training.get("out") else None
        if not show_plan(
            training["algorithm"],
            training["overrides"],
            model=training["model"],
            ignore_fit=options.ignore_fit,
            out=out,
        ):
            return 2
    return 0


if __name__ == "__main__":
    run_main(main)
