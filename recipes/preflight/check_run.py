"""Check the knobs of scripts/train_*.sh before anything expensive starts.

Example:
    python recipes/preflight/check_run.py --hardware cpu --batch-prompts 64 --rollout-n 4 --model models/tiny \\
        --train data/four_way/parquet/train.parquet

Prints nothing when all is well (with --epochs: steps, workers and chats in one pass), else one error and exits with
status 2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from recipes.models.model_folder import check_model_folder
from recipes.preflight.hardware import load_hardware
from reward.ground_truth import parse_ground_truth
from tsc.errors import ConfigError, SampleError, run_main
from tsc.replays.stretch import MAX_DECISIONS

# What verl reads of each kind of row.
COLUMNS = {"train": {"data_source", "prompt", "reward_model"}, "sft": {"messages"}}


def check_number(knob: str, text: str, least: float, whole: bool, above: bool = False) -> float:
    """The number a knob holds. Raises ConfigError where it is none, or out of bounds."""
    kind = "a whole number" if whole else "a number"
    bound = f"{'above' if above else 'of at least'} {least:g}"
    try:
        value: float = int(text) if whole else float(text)
    except ValueError:
        raise ConfigError(f"{knob}={text} is not a number: choose {kind} {bound}") from None
    if value < least or (above and value == least):
        raise ConfigError(f"{knob}={text} is too small: choose {kind} {bound}")
    return value


def check_updates(batch_prompts: int, updates: int) -> int:
    """Prompts an update. Raises ConfigError where a step's prompts cannot be divided among its updates."""
    if batch_prompts % updates:
        raise ConfigError(
            f"BATCH_PROMPTS={batch_prompts} cannot be divided among UPDATES={updates}: "
            f"choose a divisor of {batch_prompts}"
        )
    return batch_prompts // updates


def check_batches(batch_prompts: int, rollout_n: int, micro_batch: int, num_devices: int) -> None:
    """A step's answers must fill the workers' micro-batches evenly, or verl stops in the middle of the first update."""
    answers = batch_prompts * rollout_n
    if answers % num_devices:
        raise ConfigError(
            f"BATCH_PROMPTS × ROLLOUT_N = {batch_prompts} × {rollout_n} = {answers} answers cannot be shared evenly "
            f"among {num_devices} workers: choose BATCH_PROMPTS so that they can"
        )
    per_worker = answers // num_devices
    if per_worker % micro_batch:
        raise ConfigError(
            f"BATCH_PROMPTS × ROLLOUT_N = {batch_prompts} × {rollout_n} = {answers} answers, {per_worker} a worker, "
            f"are no multiple of the micro-batch of {micro_batch}: choose a product that is one, or set MICRO_BATCH"
        )


def check_parquet(file: Path, kind: str, batch: int) -> int:
    """Number of rows; the file is there, has verl's columns and at least one batch. Raises ConfigError."""
    import pyarrow.parquet

    if not file.is_file():
        raise ConfigError(f"{file} does not exist: make it with data_tools/json_to_parquet.py, or leave DATA empty")
    try:
        parquet = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(
            f"{file} is no Parquet file ({error}): make it again with data_tools/json_to_parquet.py"
        ) from None
    missing = COLUMNS[kind] - set(parquet.schema_arrow.names)
    if missing:
        raise ConfigError(
            f"{file} lacks the column {', '.join(sorted(missing))}: make it with data_tools/json_to_parquet.py"
        )
    rows = int(parquet.metadata.num_rows)
    if rows < batch:
        raise ConfigError(
            f"{file} has {rows} rows, fewer than one batch of {batch}: make more data or choose a smaller batch"
        )
    return rows


def check_decisions(text: str, train: Path | None) -> None:
    """That stretches of so many decisions can be played from the states of all rows of `train`. Raises ConfigError."""
    number = int(check_number("DECISIONS", text, 1, whole=True))
    if number > MAX_DECISIONS:
        raise ConfigError(f"DECISIONS={number} is too large: choose a whole number of at most {MAX_DECISIONS}")
    if number == 1 or train is None:
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
        if not request.embedded and not request.state_path.is_file():
            raise ConfigError(
                f"DECISIONS={number} plays on from each row's state, but that of row {row} of {train}, "
                f"{request.state_path}, does not exist: move the dataset back, or generate and convert it again"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", required=True, help="name of a file in configs/hardware")
    parser.add_argument("--n-gpus", default="", help="GPUs of a machine; empty: the hardware file's")
    parser.add_argument("--nnodes", default="1", help="machines")
    parser.add_argument("--batch-prompts", default="64", help="prompts (RL) or chats (SFT) a step")
    parser.add_argument("--rollout-n", default="1", help="answers to a prompt")
    parser.add_argument("--least-answers", type=int, default=1, help="2 where answers are compared with each other")
    parser.add_argument("--updates", default="1", help="updates a step")
    parser.add_argument("--micro-batch", default="", help="sequences in one pass; empty: the hardware file's")
    parser.add_argument("--lora-rank", default="0")
    parser.add_argument("--learning-rate", default="1e-4")
    parser.add_argument("--temperature", default="1")
    parser.add_argument("--kl", default="0")
    parser.add_argument("--steps", default="1")
    parser.add_argument("--model", type=Path, help="folder of the model to start from")
    parser.add_argument("--train", type=Path, help="Parquet file with prompts")
    parser.add_argument("--sft", type=Path, help="Parquet file with chats")
    parser.add_argument("--epochs", help="passes over the chats")
    parser.add_argument("--decisions", default="1", help="consecutive decisions of an answer")
    options = parser.parse_args()
    hardware = load_hardware(options.hardware)
    num_devices = int(check_number("N_GPUS", options.n_gpus or str(hardware.num_devices), 1, whole=True))
    num_nodes = int(check_number("NNODES", options.nnodes, 1, whole=True))
    batch = int(check_number("BATCH_PROMPTS", options.batch_prompts, 1, whole=True))
    rollout_n = int(check_number("ROLLOUT_N", options.rollout_n, options.least_answers, whole=True))
    updates = int(check_number("UPDATES", options.updates, 1, whole=True))
    micro_text = options.micro_batch or str(hardware.micro_batch_size)
    micro_batch = int(check_number("MICRO_BATCH", micro_text, 1, whole=True))
    check_number("LORA_RANK", options.lora_rank, 0, whole=True)
    check_number("LEARNING_RATE", options.learning_rate, 0, whole=False, above=True)
    check_number("TEMPERATURE", options.temperature, 0, whole=False, above=True)
    check_number("KL", options.kl, 0, whole=False)
    check_number("STEPS", options.steps, 1, whole=True)
    if options.epochs is not None:
        # A pass holds no more chats than a step gives each worker.
        micro_batch = min(micro_batch, max(batch // num_devices, 1))
    check_batches(check_updates(batch, updates), rollout_n, micro_batch, num_devices * num_nodes)
    if options.model is not None:
        check_model_folder(options.model)
    if options.train is not None:
        check_parquet(options.train, "train", batch)
    check_decisions(options.decisions, options.train)
    if options.epochs is not None:
        epochs = int(check_number("EPOCHS", options.epochs, 1, whole=True))
        steps = check_parquet(options.sft, "sft", batch) // batch * epochs if options.sft is not None else 0
        print(steps, num_devices, micro_batch)


if __name__ == "__main__":
    run_main(main)
