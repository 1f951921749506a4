"""Replay the saved states of a dataset, and report how well the replays agree with the labels.

Examples:
    python data_tools/verify_states.py --data data/four_way
    python data_tools/verify_states.py --data data --sample 300 --workers 2 --json replays.json

Reports for each scenario, as shares of the states that were replayed:
    identical continuation  after either answer, every vehicle ends the horizon where the label's vehicle did
    identical outcomes      both answers cost what the label says, to the last bit
    same better answer      the same answer is cheaper, or both answers tie, as in the label
    gap error               the difference between replay and label in cost(yes) - cost(no)
A state that cannot be replayed counts as different. Every state that differs is listed with its cause, which
docs/replays.md explains. A sample without outcomes is replayed twice, and both replays have to end the same.

Labels by a measure of a user's own (pkg://module:function) run its code. A dataset may not choose code, so the measure
has to be in the reward file that --reward names.

--mark writes the verdict into each sample that was replayed. `json_to_parquet.py --replays drop` then leaves out the
samples that cannot be replayed or have another better answer.

Exit status 1: a scenario has fewer than 99.5 % same better answers, fewer than 95 % identical outcomes, or unlabelled
states whose two replays differ. Exit status 2: the data cannot be read, or another process writes to its folder.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_tools.dataset_checks import read_samples
from data_tools.json_objects import PACKED_SUFFIXES, Fault, read_objects
from data_tools.state_causes import CAUSES, lost_in, why_different, why_not_replayed
from tsc.cost.continuation import outcomes_of
from tsc.cost.measures import MEASURES, unit_of
from tsc.cost.outcome import Outcomes, OutcomeSettings, load_outcome_settings
from tsc.errors import ConfigError, SampleError, TscError, run_main
from tsc.files import folder_lock, sha256_of, write_atomically
from tsc.junction.decision import Decision
from tsc.processes import die_with_parent, forbid_writing, limit_memory
from tsc.replays.replay import completed, replay_continuations
from tsc.replays.request import ReplayRequest
from tsc.replays.sample import Sample, find_dataset_files
from tsc.replays.saved_state import state_text, with_decimal_places
from tsc.replays.state_archive import state_bytes
from tsc.scenarios.by_word import sumo_config_of
from tsc.scenarios.command_line import at_least
from tsc.scenarios.sumocfg import SumoConfig, sumo_input
from tsc.sumo.simulation import Simulation

SAME_ANSWER_MUST_REACH = 0.995
SAME_OUTCOMES_MUST_REACH = 0.95
MAX_PRINTED_STATES = 20
# No replay takes nearly as long: one that does has hung.
_TIME_LIMIT_S = 300


@dataclass(frozen=True, kw_only=True)
class Job:
    """A sample to verify.

    outcomes, ends: the label; None if the sample does not have one.
    as_saved: load the state as SUMO would have written it with so many decimal places. None: complete the state, as a
        replay does.
    """

    file: Path
    index: int
    scenario: str
    request: ReplayRequest
    time_s: float | None
    settings: OutcomeSettings
    outcomes: Outcomes | None
    ends: dict[Decision, str] | None
    as_saved: int | None = None

    def prepare(self, text: str, net: Simulation) -> str:
        return completed(text, net) if self.as_saved is None else with_decimal_places(text, self.as_saved)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How a replay agrees with its label.

    verdict: see tsc.replays.sample.ReplayMark.
    same_end, same_outcomes, same_answer: None if the sample does not have what is compared.
    gap_error: in the unit of the measure.
    lost: names of causes: what the state was saved without.
    message: the error's message, empty if there was no error.
    """

    verdict: str
    same_end: bool | None = None
    same_outcomes: bool | None = None
    same_answer: bool | None = None
    gap_error: float | None = None
    cause: str | None = None
    lost: tuple[str, ...] = ()
    message: str = ""

    def mark(self) -> dict[str, Any]:
        values = {"verdict": self.verdict, "gap_error": self.gap_error, "cause": self.cause}
        return {name: value for name, value in values.items() if value is not None}


# -- one sample, in a worker process


def verify(job: Job) -> Verification:
    """Replay one state. If it cannot be replayed, the returned verification says why."""
    try:
        continuations = replay_continuations(job.request, job.settings, job.prepare)
        if job.outcomes is None:
            is_repeatable = replay_continuations(job.request, job.settings, job.prepare) == continuations
            cause = None if is_repeatable else why_different(job.request, job.time_s)
            verdict = "repeatable" if is_repeatable else "not_repeatable"
            lost = lost_in(state_text(state_bytes(job.request.state_path), job.request.state_path))
            return Verification(verdict=verdict, cause=cause, lost=tuple(lost))
    except TscError as error:
        return failed(job, str(error))
    outcomes = outcomes_of(continuations, job.settings)
    ends = {decision: each.end for decision, each in continuations.items()}
    same_end = None if job.ends is None else ends == job.ends
    same_outcomes = outcomes == job.outcomes
    same_answer = outcomes.better() == job.outcomes.better()
    if same_outcomes:
        verdict = "same_outcomes" if same_end is False else "identical"
    else:
        verdict = "same_answer" if same_answer else "other_answer"
    return Verification(
        verdict=verdict,
        same_end=same_end,
        same_outcomes=same_outcomes,
        same_answer=same_answer,
        gap_error=abs((outcomes.yes - outcomes.no) - (job.outcomes.yes - job.outcomes.no)),
        cause=None if verdict == "identical" else why_different(job.request, job.time_s),
    )


def failed(job: Job, message: str) -> Verification:
    is_labelled = job.outcomes is not None
    cause = why_not_replayed(job.request)
    if cause is None:
        cause = "clocks do not fit" if "do not belong together" in message else "SUMO stopped"
    return Verification(
        verdict="failed",
        same_end=None if job.ends is None else False,
        same_outcomes=False if is_labelled else None,
        same_answer=False if is_labelled else None,
        cause=cause,
        message=message,
    )


def _serve(connection: Connection, parent_id: int) -> None:
    """Answer jobs until the other end is closed."""
    die_with_parent(parent_id)
    limit_memory()
    forbid_writing()
    # Ctrl-C reaches every process of the terminal, and the parent ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        signal.alarm(_TIME_LIMIT_S)
        try:
            answer: Verification | str = verify(job)
        except Exception:  # a defect of this program, which the parent raises
            answer = traceback.format_exc()
        signal.alarm(0)
        connection.send(answer)


class _Worker:
    """A process for replays. libsumo can have only one simulation per process."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
        self._process.start()
        theirs.close()
        self.job: Job | None = None

    def begin(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(BrokenPipeError):  # it was killed while it was idle, which answer() reports
            self.connection.send(job)

    def answer(self) -> Verification:
        """Return the verification of the job that was begun. If the process died, the verification says so."""
        assert self.job is not None
        try:
            answer: Verification | str = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            how = (
                f"took more than {_TIME_LIMIT_S} s" if code == -signal.SIGALRM else f"ended its process (status {code})"
            )
            return failed(self.job, f"the replay of {self.job.request.state_path} {how}")
        if isinstance(answer, str):
            raise RuntimeError(f"verifying sample {self.job.request.sample_id} failed:\n{answer}")
        self.job = None
        return answer

    def close(self) -> None:
        self.connection.close()
        self._process.terminate()
        self._process.join()


def verify_all(jobs: Sequence[Job], num_workers: int) -> Iterator[tuple[int, Verification]]:
    """Yield (number of the job, verification) in the order of completion. A worker that dies is replaced."""
    workers = [_Worker() for _ in range(min(num_workers, len(jobs)))]
    waiting = iter(enumerate(jobs))
    running: dict[Connection, tuple[int, _Worker]] = {}

    def begin(worker: _Worker) -> None:
        item = next(waiting, None)
        if item is not None:
            worker.begin(item[1])
            running[worker.connection] = (item[0], worker)

    try:
        for worker in workers:
            begin(worker)
        while running:
            for connection in wait(list(running)):
                number, worker = running.pop(connection)  # type: ignore[call-overload]
                yield number, worker.answer()
                if worker.job is not None:  # it died
                    worker.close()
                    workers[workers.index(worker)] = worker = _Worker()
                begin(worker)
    finally:
        for worker in workers:
            worker.close()


# -- what to verify


def read_jobs(
    files: Sequence[Path], sumocfg: SumoConfig | None = None, own_measures: Collection[str] = ()
) -> list[Job]:
    """Return a job for every sample of the files.

    own_measures: the user's own measures that labels may be by. Raises SampleError at the first sample that breaks the
    contract, or whose label is by another one.
    """
    jobs = []
    for file, index, sample in read_samples(files):
        job = _job(sample, file, index, file.resolve().parent, sumocfg)
        foreign = set(job.settings.measures) - {*MEASURES, *own_measures}
        if foreign:
            raise SampleError(
                f"{file}: sample {index}: its label is by {', '.join(sorted(foreign))}, which is code: name the "
                "reward file that has it with --reward, if you trust it"
            )
        jobs.append(job)
    return jobs


def _job(sample: Sample, file: Path, index: int, folder: Path, sumocfg: SumoConfig | None) -> Job:
    if sample.sumo is None and sumocfg is not None:
        sample = sample.model_copy(update={"sumo": sumo_input(sumocfg, folder)})
    label = sample.outcomes
    return Job(
        file=file,
        index=index,
        scenario=sample.scenario if "scenario" in sample.model_fields_set else folder.name,
        request=ReplayRequest.from_sample(sample, folder),
        time_s=sample.time_s,
        settings=label.outcome_settings if label else OutcomeSettings(),
        outcomes=label.outcomes if label else None,
        ends=label.ends if label else None,
    )


def chosen(jobs: Sequence[Job], num_a_scenario: int | None, seed: int) -> list[Job]:
    """Draw num_a_scenario jobs of each scenario by hash, or all if it has fewer. Return them in the dataset's order."""
    if num_a_scenario is None:
        return list(jobs)

    def rank(job: Job) -> bytes:
        return hashlib.sha256(f"{seed}/verify/{job.scenario}/{job.index}/{job.request.sample_id}".encode()).digest()

    taken = {
        id(job) for of_scenario in by_scenario(jobs).values() for job in sorted(of_scenario, key=rank)[:num_a_scenario]
    }
    return [job for job in jobs if id(job) in taken]


def by_scenario(jobs: Iterable[Job]) -> dict[str, list[Job]]:
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.scenario, []).append(job)
    return groups


# -- the report


def _share(values: Iterable[bool | None]) -> float | None:
    """Return the share of true values among those that are not None, or None if all are None."""
    told = [value for value in values if value is not None]
    return sum(told) / len(told) if told else None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of one scenario.

    Shares lie in [0, 1] and are None if no sample has what is compared. A state that could not be replayed counts as
    different.
    mean_gap_error, max_gap_error: in `unit`, over the states that were replayed. None if no state was replayed, or if
        samples were labelled by different measures.
    """

    scenario: str
    num_states: int
    num_failed: int
    same_end: float | None
    same_outcomes: float | None
    same_answer: float | None
    repeatable: float | None
    mean_gap_error: float | None
    max_gap_error: float | None
    unit: str

    @property
    def ok(self) -> bool:
        return (
            (self.same_outcomes is None or self.same_outcomes >= SAME_OUTCOMES_MUST_REACH)
            and (self.same_answer is None or self.same_answer >= SAME_ANSWER_MUST_REACH)
            and self.repeatable in (None, 1.0)
        )


def figures_of(scenario: str, results: Sequence[tuple[Job, Verification]]) -> Figures:
    units = {unit_of(job.settings.measure) for job, _ in results if job.outcomes is not None}
    errors = [each.gap_error for _, each in results if each.gap_error is not None] if len(units) == 1 else []
    return Figures(
        scenario=scenario,
        num_states=len(results),
        num_failed=sum(each.verdict == "failed" for _, each in results),
        same_end=_share(each.same_end for _, each in results),
        same_outcomes=_share(each.same_outcomes for _, each in results),
        same_answer=_share(each.same_answer for _, each in results),
        repeatable=_share(each.verdict == "repeatable" for job, each in results if job.outcomes is None),
        mean_gap_error=math.fsum(errors) / len(errors) if errors else None,
        max_gap_error=max(errors) if errors else None,
        unit=units.pop() if len(units) == 1 else "",
    )


def _percent(share: float | None) -> str:
    # Shares are rounded down, so 100.0 % means all.
    return "not told" if share is None else f"{math.floor(1000 * share) / 10:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table with the first column aligned left and the others aligned right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = [f"{'-' * (width - 1)}:" if i else f":{'-' * (width - 1)}" for i, width in enumerate(widths)]
    return [line(rows[0]), f"| {' | '.join(rule)} |", *map(line, rows[1:])]


def table(figures: Sequence[Figures]) -> str:
    has_unlabelled = any(each.repeatable is not None for each in figures)
    head = ["scenario", "states", "not replayed", "identical continuation", "identical outcomes", "same better answer"]
    head += ["mean gap error", "max gap error", *(["same twice"] if has_unlabelled else [])]
    rows = [head]
    for each in figures:
        shares = [_percent(share) for share in (each.same_end, each.same_outcomes, each.same_answer)]
        row = [each.scenario, f"{each.num_states:,}", f"{each.num_failed:,}", *shares]
        row += [_number(each.mean_gap_error), _number(each.max_gap_error)]
        rows.append([*row, _percent(each.repeatable)] if has_unlabelled else row)
    lines = [
        *aligned(rows),
        "",
        f"must reach: identical outcomes {100 * SAME_OUTCOMES_MUST_REACH:g} %, same better answer "
        f"{100 * SAME_ANSWER_MUST_REACH:g} %",
    ]
    units = {each.unit for each in figures if each.mean_gap_error is not None}
    if len(units) == 1 and "" not in units:
        lines.append(f"gap error: in {units.pop()}; the gap is cost(yes) - cost(no)")
    return "\n".join(lines)


def causes_report(results: Sequence[tuple[Job, Verification]]) -> str:
    """List the states that differ or cannot be replayed with their causes, then each cause with its remedy.

    Empty if no state differs.
    """
    told = [(job, each) for job, each in results if each.cause is not None]
    if not told:
        return ""
    lines = ["States that were not replayed as labelled:"]
    for job, each in told[:MAX_PRINTED_STATES]:
        assert each.cause is not None
        cause = f"likely {each.cause}" if CAUSES[each.cause].is_likely_only else each.cause
        error = "" if each.gap_error is None else f", gap error {each.gap_error:.4g}"
        detail = f" ({each.message})" if each.cause == "SUMO stopped" else ""
        lines.append(f"  {job.request.sample_id}: {each.verdict.replace('_', ' ')}{error}: {cause}{detail}")
    if len(told) > MAX_PRINTED_STATES:
        lines.append(f"  … and {len(told) - MAX_PRINTED_STATES:,} more; --mark writes all into the samples")
    lines.append("Causes:")
    counts = Counter(each.cause for _, each in told)
    for name, known in CAUSES.items():
        if counts[name]:
            likely = "likely; " if known.is_likely_only else ""
            lines.append(f"  {name} ({likely}{counts[name]:,} states): states {known.what}. Remedy: {known.remedy}")
    return "\n".join(lines)


def json_rows(figures: Sequence[Figures], results: Sequence[tuple[Job, Verification]]) -> list[dict[str, Any]]:
    rows = []

    def add(name: str, value: float | None, unit: str, must_reach: float | None = None) -> None:
        ok = None if must_reach is None or value is None else value >= must_reach
        row = {"name": name, "value": value, "unit": unit, "beside": None, "ratio": None}
        rows.append({**row, "must_reach": must_reach, "ok": ok})

    for each in figures:
        add(f"{each.scenario}: states", each.num_states, "states")
        add(f"{each.scenario}: not replayed", each.num_failed, "states")
        add(f"{each.scenario}: identical continuation", each.same_end, "share")
        add(f"{each.scenario}: identical outcomes", each.same_outcomes, "share", SAME_OUTCOMES_MUST_REACH)
        add(f"{each.scenario}: same better answer", each.same_answer, "share", SAME_ANSWER_MUST_REACH)
        add(f"{each.scenario}: mean gap error", each.mean_gap_error, each.unit)
        add(f"{each.scenario}: max gap error", each.max_gap_error, each.unit)
        if each.repeatable is not None:
            add(f"{each.scenario}: same twice", each.repeatable, "share", 1.0)
    counts = Counter((job.scenario, each.cause) for job, each in results if each.cause is not None)
    for (scenario, cause), count in sorted(counts.items()):
        add(f"{scenario}: cause {cause}", count, "states")
    return rows


# -- marks


def write_marks(file: Path, marks: dict[int, dict[str, Any]], *, sha256: str) -> None:
    """Set `replay` in the samples, which are given by their index in the file. The file is replaced as a whole.

    sha256: the digest of the file when it was read. Raises SampleError if the file has changed since then.
    """
    if sha256_of(file) != sha256:
        raise SampleError(f"{file} has changed while its states were replayed, so nothing was marked: run again")
    lines = []
    for item in read_objects(file):
        assert not isinstance(item, Fault)  # read_jobs raises for a fault
        index, sample = item
        assert isinstance(sample, dict)
        if index in marks:
            sample["replay"] = marks[index]
        lines.append(json.dumps(sample, separators=(",", ":")))
    is_array = file.read_text(encoding="utf-8-sig").lstrip().startswith("[")
    text = "[\n" + ",\n".join(lines) + "\n]\n" if is_array else "".join(f"{line}\n" for line in lines)
    write_atomically(file, text.encode())


# -- the command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="PATH",
        help="a dataset, or a folder that contains datasets, also in subfolders",
    )
    parser.add_argument(
        "--sample", type=at_least(1), metavar="N", help="replay N states of each scenario (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the states of --sample (default: %(default)s)")
    parser.add_argument(
        "--workers", type=at_least(1), default=multiprocessing.cpu_count(), help="processes (default: all cores)"
    )
    parser.add_argument("--sumocfg", metavar="WORD", help="the scenario for samples without SUMO files")
    parser.add_argument("--reward", type=Path, metavar="FILE", help="whose measures of your own labels may be by")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument(
        "--as-saved",
        type=at_least(1),
        metavar="PLACES",
        help="load the states as SUMO would have written them with PLACES decimal places, without what a replay adds",
    )
    parser.add_argument("--mark", action="store_true", help="write each verdict into its sample")
    options = parser.parse_args(arguments)
    if options.as_saved is not None and options.mark:
        raise ConfigError("--as-saved does not replay as training does, so its verdicts cannot be marks: omit --mark")

    files = find_dataset_files(options.data)
    if options.mark and (packed := [file for file in files if file.suffix in PACKED_SUFFIXES]):
        raise ConfigError(
            f"--mark writes into the dataset, and {packed[0]} is compressed: unpack it first (gunzip, unzstd)"
        )
    with contextlib.ExitStack() as locks:
        if options.mark:
            for folder in {file.resolve().parent: None for file in files}:
                locks.enter_context(folder_lock(folder, "marks"))
        return verify_files(files, options)


def verify_files(files: Sequence[Path], options: argparse.Namespace) -> int:
    """Verify, report and mark as the options say. Returns the exit status."""
    digests = {file: sha256_of(file) for file in files}
    sumocfg = sumo_config_of(options.sumocfg) if options.sumocfg else None
    own_measures = load_outcome_settings(options.reward).measures if options.reward else ()
    jobs = chosen(read_jobs(files, sumocfg, own_measures), options.sample, options.seed)
    jobs = [replace(job, as_saved=options.as_saved) for job in jobs]
    begin = time.monotonic()
    answers: dict[int, Verification] = {}
    with tqdm(total=len(jobs), unit=" states", disable=None) as bar:
        for number, verification in verify_all(jobs, options.workers):
            answers[number] = verification
            bar.update()
    elapsed_s = time.monotonic() - begin
    results = [(job, answers[number]) for number, job in enumerate(jobs)]
    figures = [
        figures_of(scenario, [(job, each) for job, each in results if job.scenario == scenario])
        for scenario in by_scenario(jobs)
    ]
    print(table(figures))
    report = causes_report(results)
    if report:
        print(f"\n{report}")
    for name, count in Counter(name for each in answers.values() for name in each.lost).items():
        print(
            f"\nnote: {count:,} states {CAUSES[name].what}: their replays are repeatable, but do not continue as the "
            f"simulation did. Next time, {CAUSES[name].remedy}"
        )
    print(f"\n{len(jobs):,} states of {len(files)} file(s) in {elapsed_s:.1f} s ({len(jobs) / elapsed_s:.1f} states/s)")
    if options.json is not None:
        write_atomically(options.json, (json.dumps(json_rows(figures, results), indent=1) + "\n").encode())
    if options.mark:
        for file in files:
            marks = {job.index: each.mark() for job, each in results if job.file == file}
            if marks:
                write_marks(file, marks, sha256=digests[file])
        print(f"marked {len(jobs):,} samples: json_to_parquet.py --replays drop leaves out what does not replay")
    return 0 if all(each.ok for each in figures) else 1


if __name__ == "__main__":
    run_main(main)
