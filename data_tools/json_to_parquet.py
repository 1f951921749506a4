"""Convert datasets of decision points (JSON) to the Parquet files that verl trains on.

Example:
    python data_tools/json_to_parquet.py --input data/four_way --output data/four_way/parquet

Writes to the output folder:
    train.parquet, val.parquet          for GRPO: the prompt, and `ground_truth`, which the reward needs
    sft_train.parquet, sft_val.parquet  for SFT: the prompt with the better answer
The files for validation are left out if they would be empty.
    summary.json                        the figures that are printed
A folder that has train.parquet is complete, and all its files come from the same conversion.

Every sample is checked, with the files that it names, before anything is written. A fault ends the conversion with
status 2 and is listed with its file, sample and field. `--on-error skip` leaves faulty samples out instead, and says
how many they are.
Fields that training does not need stay in the dataset. `extra_info.sample_id` says which sample a row comes from.
Rewards replay the saved states, so every machine that computes rewards needs them: in a folder that all machines share,
or inside `ground_truth` (`--embed-states`; see docs/cluster_replays.md).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from data_tools.dataset_checks import CheckedSample, DatasetChecker
from data_tools.dataset_rows import Kind, Rows
from data_tools.dataset_split import TRAIN, VAL, Group, chosen_groups, episode_key, joined_groups, split
from data_tools.prompt_lengths import QUANTILES, how_counted, load_tokenizer, quantiles
from data_tools.row_spool import Prompt, RowSpool, Texts
from data_tools.state_causes import CAUSES
from tsc.errors import ConfigError, SampleError, run_main
from tsc.files import folder_lock, write_atomically
from tsc.junction.decision import Decision
from tsc.junction.seen_decisions import SeenDecisions
from tsc.replays.embedded_files import MAX_SCENARIO_BYTES, FileEmbedder
from tsc.replays.request import ReplayRequest
from tsc.replays.sample import find_dataset_files
from tsc.scenarios.by_word import sumo_config_of
from tsc.sumo.version import installed_sumo_version

ABILITY = "traffic_signal_control"
ERRORS_FILE = "errors.txt"
SUMMARY_FILE = "summary.json"
MAX_PRINTED_FAULTS = 50
_UNFINISHED = ".unfinished-"
_ROW_GROUP = 10_000
# Embedded states are large: a small row group keeps few of them in memory at once.
_EMBEDDED_ROW_GROUP = 250
_BATCH = 250
# These files are placed last, in this order: whoever finds one of them also finds the files that belong to it.
_MAY_BE_LEFT_OUT = ("val.parquet", "sft_val.parquet")
_PLACED_LAST = ("sft_train.parquet", "train.parquet")

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
GRPO_SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", _MESSAGES),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        ("extra_info", pa.struct([("index", pa.int64()), ("split", pa.string()), ("sample_id", pa.string())])),
    ]
)
SFT_SCHEMA = pa.schema([("messages", _MESSAGES)])


def grpo_row(texts: Texts, scenario: str, *, index: int, side: str, embedder: FileEmbedder | None) -> dict[str, Any]:
    """With an embedder, the row gets the files that its replay needs. Raises SampleError if one cannot be read."""
    ground_truth = texts.ground_truth
    if embedder is not None:
        truth = json.loads(ground_truth)
        truth["request"] = embedder.embed(ReplayRequest.from_json(truth["request"])).to_json()
        ground_truth = _json_text(truth)
    return {
        "data_source": f"tsc/{scenario}",
        "prompt": texts.prompt,
        "ability": ABILITY,
        "reward_model": {"style": "rule", "ground_truth": ground_truth},
        "extra_info": {"index": index, "split": side, "sample_id": texts.sample_id},
    }


def sft_row(prompt: Prompt, answer: Decision | None) -> dict[str, Any]:
    assert answer is not None
    return {"messages": [*prompt, {"role": "assistant", "content": answer.answer}]}


def _json_text(values: dict[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False)


def add_row(checked: CheckedSample, rows: Rows, spool: RowSpool) -> None:
    """Add a sample to the rows and its texts to the spool."""
    sample = checked.sample
    request = ReplayRequest.from_sample(sample, _folder_of(checked.file))
    outcomes = sample.outcomes
    costs = outcomes.outcomes if outcomes is not None else None
    better = costs.better() if costs is not None else None
    answer = sample.expert_decision or better
    truth = {
        "scenario": sample.scenario,
        "request": request.to_json(),
        "outcomes": {"settings": outcomes.settings, **costs.as_dict()}
        if outcomes is not None and costs is not None
        else None,
    }
    kind = Kind(
        scenario=sample.scenario,
        episode=episode_key(sample),
        side=sample.split,
        answer=answer,
        is_tie=outcomes is not None and better is None,
        is_faithful=sample.replay.is_faithful if sample.replay is not None else None,
        junction_id=sample.junction_id,
        prompt_version=sample.prompt_version,
        num_stages=len(stages) if sample.observation and (stages := sample.observation.get("stages")) else None,
        timing=request.timing,
    )
    rows.add(kind, time_s=sample.time_s, state=checked.state, sample_id=request.sample_id)
    prompt = [{"role": each.role, "content": each.content} for each in sample.prompt]
    spool.add(Texts(prompt, _json_text(truth), request.sample_id))


@cache
def _folder_of(file: Path) -> Path:
    return file.resolve().parent


def read_rows(
    files: Mapping[Path, str], checker: DatasetChecker, spool: RowSpool, *, seed: int
) -> tuple[Rows, list[range]]:
    """The rows that have no fault, and the numbers of those of each file. `checker` collects the faults of the others.

    files: with their names in messages. seed: of Rows.
    """
    rows, of_files = Rows(seed=seed), []
    with tqdm(unit=" samples", desc="checking", disable=None) as progress:
        for file, name in files.items():
            begin = len(rows)
            for checked in checker.check_file(file, name):
                add_row(checked, rows, spool)
                progress.update(checker.num_read - progress.n)
            of_files.append(range(begin, len(rows)))
    return rows, of_files


@contextlib.contextmanager
def written_together(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder. When the block ends without an error, its files replace those of `folder`.

    A kill leaves only whole files. It never leaves old files beside new ones: all old files are removed, those of
    _PLACED_LAST first, before the first new one is placed. The caller holds the lock of `folder`.
    """
    for left_by_a_kill in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))
    try:
        yield temporary
        names = sorted(file.name for file in temporary.iterdir())
        names.sort(key=lambda name: _PLACED_LAST.index(name) if name in _PLACED_LAST else -1)
        for name in (*reversed(names), *_MAY_BE_LEFT_OUT):
            (folder / name).unlink(missing_ok=True)
        for name in names:
            os.replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class ParquetRows:
    """A Parquet file that is written row by row."""

    def __init__(self, path: Path, schema: pa.Schema, *, row_group: int) -> None:
        self._schema = schema
        self._row_group = row_group
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        # rows of the present group, which take less memory so
        self._batches: list[pa.RecordBatch] = []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == _BATCH:
            self._end_batch()
            if len(self._batches) * _BATCH >= self._row_group:
                self._end_group()

    def _end_batch(self) -> None:
        self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def _end_group(self) -> None:
        self._writer.write_table(pa.Table.from_batches(self._batches, schema=self._schema))
        self._batches = []

    def close(self) -> None:
        self._end_batch()
        self._end_group()
        self._writer.close()


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Which rows are converted, and which file each of them goes to.

    numbers: of the converted rows, in `rows`. All else counts the converted rows from 0.
    sides, groups: of each converted row.
    surplus: the training rows that are left out so that both answers are equally frequent.
    files: by file name, its rows.
    """

    rows: Rows
    numbers: array[int]
    sides: list[str]
    groups: list[Group]
    surplus: set[int]
    files: dict[str, array[int]]

    def kind(self, i: int) -> Kind:
        return self.rows[self.numbers[i]]

    def counts(self, name: str) -> dict[str, int]:
        """The figures of one file."""
        own = self.files[name]
        kinds = Counter(map(self.kind, own))
        answers: Counter[Decision | None] = Counter()
        for kind, count in kinds.items():
            answers[kind.answer] += count
        num_ties = sum(count for kind, count in kinds.items() if kind.is_tie)
        return {
            "samples": len(own),
            "groups": len({self.groups[i] for i in own}),
            "yes": answers[Decision.YES],
            "no": answers[Decision.NO],
            "ties": num_ties,
            "unlabelled": answers[None] - num_ties,
        }


def surplus_of_majority(rows: Rows, numbers: array[int], labelled: Iterable[int]) -> set[int]:
    """Draw the labelled rows to leave out so that "yes" and "no" are the better answer equally often. Rows are counted
    as in Conversion.

    If one answer is better in two of three states, a policy gains at once by always giving it. It then stops exploring
    before it learns when the other answer is better. Imitation of such labels makes it start there.
    """
    with_answer: dict[Decision | None, list[int]] = {decision: [] for decision in Decision}
    for i in labelled:
        with_answer[rows[numbers[i]].answer].append(i)
    less, more = sorted(with_answer.values(), key=len)
    return set(sorted(more, key=lambda i: rows.drawn(numbers[i]))[len(less) :])


def arrange(rows: Rows, numbers: array[int], options: argparse.Namespace) -> Conversion:
    groups = joined_groups(rows.placed(numbers), options.block_s)
    sides = split(
        rows.placed(numbers), groups, val_fraction=options.val_fraction, seed=options.seed, block_s=options.block_s
    )
    train, val = (array("L", (i for i, own in enumerate(sides) if own == side)) for side in (TRAIN, VAL))

    def has_answer(i: int) -> bool:
        return rows[numbers[i]].answer is not None

    labelled = array("L", filter(has_answer, train))
    sft_groups = chosen_groups((groups[i] for i in labelled), options.sft_fraction, seed=options.seed, purpose="sft")
    surplus = surplus_of_majority(rows, numbers, labelled) if options.balance else set()
    files = {
        "train.parquet": array("L", (i for i in train if options.balance != "all" or i not in surplus)),
        "val.parquet": val,
        "sft_train.parquet": array("L", (i for i in labelled if groups[i] in sft_groups and i not in surplus)),
        "sft_val.parquet": array("L", filter(has_answer, val)),
    }
    return Conversion(rows=rows, numbers=numbers, sides=sides, groups=groups, surplus=surplus, files=files)


def write_files(
    folder: Path, conversion: Conversion, spool: RowSpool, summary: dict[str, Any], embedder: FileEmbedder | None
) -> None:
    row_group = _ROW_GROUP if embedder is None else _EMBEDDED_ROW_GROUP
    with written_together(folder) as temporary:
        grpo_files = {side: temporary / f"{side}.parquet" for side in (TRAIN, VAL)}
        grpo = {side: ParquetRows(path, GRPO_SCHEMA, row_group=row_group) for side, path in grpo_files.items()}
        sft_files = {side: temporary / f"sft_{side}.parquet" for side in grpo_files}
        sft = {side: ParquetRows(path, SFT_SCHEMA, row_group=_ROW_GROUP) for side, path in sft_files.items()}
        # both go through the rows in their order
        in_grpo, in_sft = (
            {side: iter(conversion.files[f"{prefix}{side}.parquet"]) for side in grpo_files} for prefix in ("", "sft_")
        )
        next_grpo, next_sft = ({side: next(those, None) for side, those in each.items()} for each in (in_grpo, in_sft))
        spooled = enumerate(spool.rows())
        for i, number in enumerate(conversion.numbers):
            texts = next(texts for spool_number, texts in spooled if spool_number == number)
            side, kind = conversion.sides[i], conversion.kind(i)
            if next_grpo[side] == i:
                grpo[side].add(grpo_row(texts, kind.scenario, index=i, side=side, embedder=embedder))
                next_grpo[side] = next(in_grpo[side], None)
            if next_sft[side] == i:
                # validation is on the better answers, whoever teaches
                sft[side].add(sft_row(texts.prompt, kind.answer))
                next_sft[side] = next(in_sft[side], None)
        for file in (*grpo.values(), *sft.values()):
            file.close()
        for name in _MAY_BE_LEFT_OUT:
            if not conversion.files[name]:  # verl stops at an empty file
                (temporary / name).unlink()
        if embedder is not None:
            summary["embedded"] = {
                "states": embedder.num_states,
                "state_chars": embedder.state_chars,
                "scenario_chars": embedder.scenario_chars,
                "parquet_bytes": sum(path.stat().st_size for path in grpo_files.values() if path.is_file()),
                "left_out": sorted(map(str, embedder.left_out)),
            }
        (temporary / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def summarise(
    conversion: Conversion,
    *,
    ties_left_out: Counter[str],
    num_unfaithful: int,
    num_faulty: int,
    spool: RowSpool,
    is_exact: bool,
) -> dict[str, Any]:
    lengths = array("L", map(spool.num_tokens, conversion.numbers))
    placed = Counter((conversion.kind(i).scenario, side) for i, side in enumerate(conversion.sides))
    return {
        "files": {name: conversion.counts(name) for name in conversion.files},
        "scenarios": {
            name: {side: placed[name, side] for side in (TRAIN, VAL)} | {"ties_left_out": ties_left_out[name]}
            for name in sorted({scenario for scenario, _ in placed})
        },
        "ties_left_out": ties_left_out.total(),
        "surplus_left_out": len(conversion.surplus),
        "unfaithful_left_out": num_unfaithful,
        "faulty_left_out": num_faulty,
        "prompt_tokens": {**quantiles(lengths), "exact": is_exact},
        "trained_on": seen_decisions({conversion.kind(i) for i in conversion.files["train.parquet"]}),
    }


def seen_decisions(kinds: Collection[Kind]) -> dict[str, Any] | None:
    """What the card of a model says that is trained on rows of these kinds (recipes/models/model_card.py)."""
    if not kinds:
        return None
    seen = SeenDecisions.of(
        {(kind.scenario, kind.junction_id) for kind in kinds},
        prompt_versions=[kind.prompt_version for kind in kinds if kind.prompt_version is not None],
        num_stages={kind.num_stages for kind in kinds if kind.num_stages is not None},
        timings={kind.timing for kind in kinds},
    )
    return seen.model_dump(mode="json")


def print_summary(summary: dict[str, Any], folder: Path, tokenizer: Any | None) -> None:
    print(f"  {'':<18}{'samples':>9}{'groups':>8}{'yes':>8}{'no':>8}{'tie':>8}{'unlabelled':>12}")
    for name, counts in summary["files"].items():
        num_samples = counts["samples"]
        yes, no, tie, unlabelled = (
            f"{100 * counts[key] / num_samples:.1f} %" if num_samples else "-"
            for key in ("yes", "no", "ties", "unlabelled")
        )
        print(f"  {name:<18}{num_samples:>9,}{counts['groups']:>8,}{yes:>8}{no:>8}{tie:>8}{unlabelled:>12}")
    for name, counts in summary["scenarios"].items():
        print(
            f"  scenario {name}: {counts[TRAIN]:,} train, {counts[VAL]:,} val, "
            f"{counts['ties_left_out']:,} ties left out"
        )
    if summary["ties_left_out"]:
        print("  ties: both answers cost the same, so neither earns a reward; --ties keep keeps them for GRPO")
    if summary["unfaithful_left_out"]:
        print(
            f"  replays: {summary['unfaithful_left_out']:,} samples left out: verify_states has marked that their "
            "states cannot be replayed, or that the replay favours another answer than the label"
        )
    if summary["surplus_left_out"]:
        print(f"  balanced: {summary['surplus_left_out']:,} samples with the more frequent answer left out")
    tokens = ", ".join(f"{name} {summary['prompt_tokens'][name]:g}" for name in QUANTILES)
    print(f"  prompt tokens: {tokens} ({how_counted(tokenizer)})")
    if embedded := summary.get("embedded"):
        state_kb, scenario_kb = (
            embedded[key] / max(1, embedded["states"]) / 1e3 for key in ("state_chars", "scenario_chars")
        )
        print(
            f"  embedded in {embedded['states']:,} rows: a state ({state_kb:.1f} kB of text per row) and nets and "
            f"routes ({scenario_kb:.1f} kB per row); train.parquet and val.parquet take "
            f"{embedded['parquet_bytes'] / 1e6:.1f} MB"
        )
        if left_out := embedded["left_out"]:
            print(
                f"  not embedded, because a row would have over {MAX_SCENARIO_BYTES // 1024} KiB (compressed) of them: "
                f"{len(left_out):,} nets and routes, which every machine needs at this path: {', '.join(left_out[:3])}"
                f"{', … (all in ' + SUMMARY_FILE + ')' if len(left_out) > 3 else ''}"
            )
    if not summary["files"]["sft_train.parquet"]["samples"]:
        print("  sft_train.parquet is empty: none of its samples has a better answer, so SFT has nothing to learn from")
    print(f"  written to {folder}")


def report_faults(checker: DatasetChecker, folder: Path, *, skipping: bool) -> None:
    """Print the first faults and write all of them to errors.txt. Without faults there is no such file.

    Raises SampleError if there are faults and they are not to be skipped.
    """
    path = folder / ERRORS_FILE
    if not checker.faults:
        path.unlink(missing_ok=True)
        return
    write_atomically(path, "".join(f"{fault}\n" for fault in checker.faults).encode())
    for fault in checker.faults[:MAX_PRINTED_FAULTS]:
        print(fault, file=sys.stderr)
    hidden = len(checker.faults) - MAX_PRINTED_FAULTS
    if hidden > 0:
        print(f"… and {hidden:,} more", file=sys.stderr)
    verdict = "left out" if skipping else "nothing was converted: correct them, or leave them out with --on-error skip"
    message = f"{checker.num_faulty:,} of {checker.num_read:,} samples have faults, listed in {path}: {verdict}"
    if not skipping:
        raise SampleError(message)
    print(f"warning: {message}", file=sys.stderr)


def convert(files: Mapping[Path, str], options: argparse.Namespace) -> None:
    """Convert the dataset files, each with its name in messages, to the folder `options.output`, whose lock the caller
    holds."""
    asked = " ".join(map(str, options.input))
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    started = time.monotonic()
    sumocfg = sumo_config_of(options.sumocfg) if options.sumocfg else None
    checker = DatasetChecker(
        installed_sumo=installed_sumo_version(), check_states=options.check_states, sumocfg=sumocfg
    )
    spool = RowSpool(options.output, tokenizer)
    rows, of_files = read_rows(files, checker, spool, seed=options.seed)
    report_faults(checker, options.output, skipping=options.on_error == "skip")
    checker.forget_ids()
    split_is_given = False
    for file, of_file in zip(files, of_files, strict=True):
        # a file's own split is kept only if every row has one
        num_placed = sum(rows[number].side is not None for number in of_file)
        keeps_split = num_placed == len(of_file) and not options.resplit
        split_is_given |= keeps_split and num_placed > 0
        if 0 < num_placed < len(of_file) and not options.resplit:
            print(f"note: {file}: only {num_placed:,} of {len(of_file):,} samples have a split, so none is used")
        if not keeps_split:
            for number in of_file:
                rows.forget_side(number)
    numbers = array("L", range(len(rows)))
    if options.replays == "drop":
        if all(rows[number].is_faithful is None for number in numbers):
            raise SampleError(
                f"--replays drop: no sample of {asked} is marked: run data_tools/verify_states.py --data FOLDER --mark "
                "first"
            )
        numbers = array("L", (number for number in numbers if rows[number].is_faithful is not False))
    num_unfaithful = len(rows) - len(numbers)
    ties_left_out: Counter[str] = Counter()
    if options.ties == "drop":
        ties_left_out.update(rows[number].scenario for number in numbers if rows[number].is_tie)
        numbers = array("L", (number for number in numbers if not rows[number].is_tie))
    if not numbers:
        raise SampleError(
            f"{asked} has no sample to train on: {checker.num_read:,} read, {checker.num_faulty:,} faulty, "
            f"{num_unfaithful:,} do not replay as labelled, {ties_left_out.total():,} ties"
        )
    conversion = arrange(rows, numbers, options)
    summary = summarise(
        conversion,
        ties_left_out=ties_left_out,
        num_unfaithful=num_unfaithful,
        num_faulty=checker.num_faulty,
        spool=spool,
        is_exact=tokenizer is not None,
    )
    write_files(options.output, conversion, spool, summary, FileEmbedder() if options.embed_states else None)

    seconds = time.monotonic() - started
    print(
        f"{asked}: {checker.num_read:,} samples in {len(files)} file(s), converted in {seconds:.1f} s "
        f"({checker.num_read / seconds:,.0f} samples/s)"
    )
    how = "as the dataset says" if split_is_given else f"by time blocks of {options.block_s:g} s"
    print(f"  split {how}; no group (scenario, episode, time block) is on both sides")
    if sumocfg is not None:
        print(f"  {checker.num_with_sumocfg:,} samples did not name SUMO files and got those of {sumocfg.path}")
    for name, count in sorted(checker.num_lost.items()):
        print(
            f"  note: {count:,} states {CAUSES[name].what}: their replays are repeatable, but do not continue as the "
            f"simulation did. Next time, {CAUSES[name].remedy}"
        )
    print_summary(summary, options.output, tokenizer)


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Check datasets of decision points and convert them to the Parquet files that verl trains on.",
        epilog="example: python data_tools/json_to_parquet.py --input data/four_way --output data/four_way/parquet",
    )
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="datasets (JSON array or JSON Lines), or folders that contain grpo_dataset.json(l), also in subfolders",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the Parquet files")
    parser.add_argument(
        "--on-error",
        choices=("fail", "skip"),
        default="fail",
        help="if samples are faulty, write nothing (fail, the default), or leave them out and say how many (skip)",
    )
    parser.add_argument(
        "--val-fraction",
        type=_fraction,
        default=0.1,
        metavar="F",
        help="share of the groups that validate, if the dataset does not have its own split; 0: none (default 0.1)",
    )
    parser.add_argument(
        "--sft-fraction",
        type=_fraction,
        default=0.5,
        metavar="F",
        help="share of the training groups whose better answers go to sft_train.parquet (default 0.5); GRPO gets all",
    )
    parser.add_argument(
        "--block-s",
        type=float,
        default=600,
        metavar="S",
        help="length of a time block in seconds (default 600); samples of one block of an episode stay together",
    )
    parser.add_argument("--resplit", action="store_true", help="ignore the dataset's own `split`")
    parser.add_argument("--seed", type=int, default=0, help="draws the groups for validation and SFT (default 0)")
    parser.add_argument(
        "--ties",
        choices=("drop", "keep"),
        default="drop",
        help="samples whose answers cost the same: leave them out (default), or keep them for GRPO; SFT never gets any",
    )
    parser.add_argument(
        "--replays",
        choices=("keep", "drop"),
        default="keep",
        help="samples that do not replay, or whose replay favours another answer than the label, as verify_states "
        "--mark found: keep them (default), or leave them out; samples without a mark are kept",
    )
    parser.add_argument(
        "--balance",
        nargs="?",
        const="all",
        choices=("all", "sft"),
        help="leave samples out until each answer is the better one equally often: in train.parquet and "
        "sft_train.parquet (all, the default), or only in sft_train.parquet (sft)",
    )
    parser.add_argument(
        "--sumocfg",
        metavar="WORD",
        help="the scenario for samples that do not name SUMO files (datasets of other generators)",
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="a model's folder: count prompt tokens instead of estimating them"
    )
    parser.add_argument(
        "--embed-states",
        action="store_true",
        help="put the saved states into train.parquet and val.parquet, with net and routes if they are small, for "
        "machines that do not share the dataset's folder",
    )
    parser.add_argument(
        "--check-states",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="check that every state file exists and has the digest that the sample gives",
    )
    options = parser.parse_args(arguments)
    if options.block_s <= 0:
        raise ConfigError(f"--block-s is {options.block_s:g}: choose more than 0 seconds")
    if options.embed_states and not options.check_states:
        raise ConfigError("--embed-states must not carry unchecked states to other machines: drop --no-check-states")
    if options.val_fraction == 1:
        raise ConfigError("--val-fraction is 1: nothing would be left to train on; choose less than 1")
    files = {
        file: str(file.relative_to(path)) if path.is_dir() else file.name
        for path in options.input
        for file in find_dataset_files(path)
    }
    with folder_lock(options.output, "Parquet files"):
        convert(files, options)


if __name__ == "__main__":
    run_main(main)
