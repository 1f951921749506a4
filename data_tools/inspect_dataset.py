"""Show what a dataset of decision points contains, or one sample in readable form.

Examples:
    python data_tools/inspect_dataset.py --input data/four_way --html runs/data.html
    python data_tools/inspect_dataset.py --input data/four_way --index 17
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_tools.dataset_summary import DatasetSummary, described_settings, page, summary_lines
from data_tools.json_objects import Fault, read_objects
from data_tools.prompt_lengths import load_tokenizer
from tsc.cost.measures import unit_of
from tsc.errors import SampleError, run_main
from tsc.files import write_atomically
from tsc.replays.sample import Sample, find_dataset_files
from tsc.replays.state_archive import is_saved, state_bytes


def find_sample(files: Sequence[Path], *, index: int | None, sample_id: str | None) -> tuple[Path, int, Any]:
    """Return file, index and raw object of the sample that is asked for. Raises SampleError if it is not found."""
    if index is not None and len(files) > 1:
        raise SampleError(
            f"--index counts within a file, but there are {len(files)}: name one with --input, or use --id: "
            + ", ".join(map(str, files))
        )
    num_seen = 0
    for file in files:
        for item in read_objects(file):
            if isinstance(item, Fault):
                continue
            found, raw = item
            num_seen += 1
            if found == index or (sample_id is not None and isinstance(raw, dict) and raw.get("id") == sample_id):
                return file, found, raw
    if index is not None:
        raise SampleError(f"{files[0]} has no sample {index}: it holds {num_seen:,}, counted from 0")
    raise SampleError(f"no sample has the id {sample_id!r} among the {num_seen:,} read")


def sample_lines(sample: Sample, file: Path, index: int) -> Iterator[str]:
    yield f"sample {index} of {file}" + (f": {sample.id}" if sample.id else "")
    time = "unknown time" if sample.time_s is None else f"{sample.time_s:g} s"
    yield (
        f"  scenario {sample.scenario}, episode {sample.episode}, {time}, split {sample.split or 'not placed'}, "
        f"prompt version {sample.prompt_version or 'unknown'}"
    )
    stages = "" if sample.stage is None else f": stage {sample.stage}, next {sample.next_stage}"
    yield f"  junction {sample.junction_id}{stages}"
    yield (
        f"  green for {sample.current_green_elapsed:g} s (min {sample.min_green:g} s, max {sample.max_green:g} s, "
        f"extension {sample.green_extension:g} s)"
    )
    for message in sample.prompt:
        yield f"\n[{message.role}]"
        yield message.content
    yield "\n[outcomes]"
    if sample.outcomes is None:
        yield "  none in the dataset: they are replayed when the reward needs them"
    else:
        unit = unit_of(sample.outcomes.outcome_settings.measure)
        yield f"  {described_settings(sample)}"
        for answer in ("yes", "no"):
            cost = getattr(sample.outcomes, answer)
            yield (f'  {{"extend": "{answer}"}}'.ljust(22) + f"costs {cost:g} {unit}").rstrip()
        better = sample.outcomes.outcomes.better()
        if better is None:
            yield f"  both answers cost {sample.outcomes.yes:g} {unit}".rstrip() + ": a tie"
        else:
            yield f"  {better.answer} saves {sample.outcomes.outcomes.saving(better):g} {unit}".rstrip()
        for name, term in sample.outcomes.outcomes.terms.items():
            yield f"  term {name}: yes {term.yes:g}, no {term.no:g} {unit_of(name)}".rstrip()
    yield "\n[clocks]"
    for name, clock in sample.clocks.items():
        what = "green for" if clock.mode == "green" else "clearing after a green of"
        rest = "" if clock.mode == "green" else f", {clock.phase_remaining_s:g} s of this phase to go"
        yield f"  {name}: stage {clock.stage}, {what} {clock.elapsed_green_s:g} s{rest}"
    if not sample.clocks:
        yield "  none"
    yield "\n[files]"
    yield _file_line("state", file.parent / sample.state_file)
    if sample.sumo is not None:
        yield _file_line("net", file.parent / sample.sumo.net_file)
        for route_file in sample.sumo.route_files:
            yield _file_line("routes", file.parent / route_file)
        yield f"  SUMO {sample.sumo.version}, seed {sample.sumo.seed}, step {sample.sumo.step_length_s:g} s"
    if sample.observation is not None:
        yield "\n[observation]"
        yield json.dumps(sample.observation, indent=2, ensure_ascii=False)


def _file_line(what: str, path: Path) -> str:
    if path.is_file():
        size = f"{path.stat().st_size:,} bytes"
    else:
        size = f"{len(state_bytes(path)):,} bytes, in an archive" if is_saved(path) else "MISSING"
    return f"  {what} {path} ({size})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Summarise a dataset of decision points, or show one sample in full.",
        epilog="example: python data_tools/inspect_dataset.py --input data/four_way --index 17",
    )
    parser.add_argument(
        "--input", type=Path, required=True, metavar="PATH", help="a dataset file, or a folder with datasets"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--index", type=int, metavar="N", help="show sample N of the file, counted from 0")
    which.add_argument("--id", dest="sample_id", metavar="ID", help="show the sample of this id")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="a model's folder: count prompt tokens instead of estimating them"
    )
    which.add_argument("--html", type=Path, metavar="FILE", help="also write the summary as a page for a browser")
    options = parser.parse_args(arguments)
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    files = find_dataset_files(options.input)
    if options.index is None and options.sample_id is None:
        summary = DatasetSummary(files, tokenizer)
        if options.html is not None:
            options.html.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(options.html, page(summary, str(options.input)).encode())
        lines = summary_lines(summary)
    else:
        file, index, raw = find_sample(files, index=options.index, sample_id=options.sample_id)
        try:
            sample = Sample.model_validate(raw)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise SampleError(f"sample {index} of {file} breaks the contract: {problems}") from error
        lines = sample_lines(sample, file, index)
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        # `| head` has read enough. Python would report the error again when it closes its standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    run_main(main)
