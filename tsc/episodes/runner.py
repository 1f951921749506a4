"""Run evaluation episodes in worker processes. Their questions to a language model are answered in common batches."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np

from tsc.controllers.language_model import Ask, Conversation, LanguageModelController, Reply
from tsc.controllers.registry import CONTROLLERS, LANGUAGE_MODEL, PROGRAM, STUDENT, rule_controller
from tsc.controllers.signal_plans import plan_signals
from tsc.cost.continuation import outcomes_by_fork
from tsc.cost.outcome import OutcomeSettings
from tsc.episodes.episode import OnRound, run_episode
from tsc.episodes.recording import EpisodeRecorder, View, decision_values
from tsc.errors import NotApplicable, ReplayError, TscError
from tsc.files import write_atomically
from tsc.junction.decision import Decision
from tsc.junction.prompt import OWN_PROMPT
from tsc.junction.signal_control import SignalControl
from tsc.junction.signal_settings import SignalSettings
from tsc.processes import die_with_parent
from tsc.rules.controller import Controller
from tsc.rules.student import Student, StudentFile
from tsc.sumo.running import SumoFiles


@dataclass(frozen=True, kw_only=True)
class EpisodeJob:
    """One episode of one controller.

    controller: the name in the results. kind: a name of tsc.controllers.registry.CONTROLLERS, LANGUAGE_MODEL, STUDENT
    or PROGRAM. student, program_file: of a controller of this kind.
    prompt: the name of what makes a language model's prompts (tsc.junction.prompt).
    fingerprint: digest of everything that decides the result; it is stored in the record.
    trace_file: where to write the trace; None writes none.
    decisions_file: where to write the decisions of a language model, each with the costs that lookahead finds for both
    answers in forks of the simulation; None writes none.
    view: what to record; the record then has a RecordedEpisode in `recorded`. Not together with decisions_file.
    """

    scenario: str
    controller: str
    kind: str
    seed: int
    fingerprint: str
    files: SumoFiles
    end_s: int
    warm_up_s: int
    signals: SignalSettings
    lookahead: OutcomeSettings
    student: StudentFile | None = None
    program_file: Path | None = None
    prompt: str = OWN_PROMPT
    trace_file: Path | None = None
    decisions_file: Path | None = None
    view: View | None = None

    @property
    def title(self) -> str:
        return f"{self.controller} on {self.scenario}, seed {self.seed}"


def run_job(job: EpisodeJob, ask: Ask | None) -> dict[str, Any]:
    """Run the episode, write its trace and decisions, and return its record.

    If the controller does not apply to the net, the record has the reason in `not_applicable`, and no metrics.
    Raises ScenarioError, and what `ask` raises.
    """
    begin = time.monotonic()
    record: dict[str, Any] = {
        "scenario": job.scenario,
        "controller": job.controller,
        "kind": job.kind,
        "seed": job.seed,
        "fingerprint": job.fingerprint,
        "begin_s": int(job.files.begin_s),
        "end_s": job.end_s,
        "warm_up_s": job.warm_up_s,
    }
    controller = controller_of(job, ask)
    model = controller if isinstance(controller, LanguageModelController) else None
    decisions: list[dict[str, Any]] = []
    compare = _compare_with_lookahead(model, job.lookahead, decisions) if model and job.decisions_file else None
    recorder = EpisodeRecorder(job.view, job.lookahead.without_terms(), model) if job.view else None
    with tempfile.TemporaryDirectory(prefix="tsc-plans-") as folder:
        try:
            planned = plan_signals(job.kind, job.files, job.signals, job.end_s, Path(folder), job.program_file)
        except NotApplicable as error:
            return {**record, "not_applicable": str(error)}
        episode = run_episode(
            planned.files,
            end_s=job.end_s,
            settings=planned.settings(job.signals),
            controller=controller,
            warm_up_s=job.warm_up_s,
            on_round=recorder.on_round if recorder else compare,
            on_second=recorder.on_second if recorder else None,
        )
    if job.trace_file is not None:
        episode.trace.write(job.trace_file)
    if job.decisions_file is not None and model is not None:
        job.decisions_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(job.decisions_file, "".join(json.dumps(each) + "\n" for each in decisions).encode())
    if recorder is not None:
        record["recorded"] = recorder.recorded(episode.trace)
    return {**record, **episode.metrics, **_asking(model), "wall_s": round(time.monotonic() - begin, 2)}


def controller_of(job: EpisodeJob, ask: Ask | None) -> Controller | None:
    """ask: for a language model. None for a controller by which SUMO switches."""
    if job.kind == LANGUAGE_MODEL:
        assert ask is not None, "a job with a language model needs `ask`"
        return LanguageModelController(ask, job.prompt)
    if job.kind == STUDENT:
        assert job.student is not None, "a job of a student needs `student`"
        return Student(job.student)
    if job.kind == PROGRAM or CONTROLLERS[job.kind].by_sumo:
        return None
    return rule_controller(job.kind, seed=job.seed, lookahead=job.lookahead)


def _compare_with_lookahead(
    model: LanguageModelController, settings: OutcomeSettings, decisions: list[dict[str, Any]]
) -> OnRound:
    """An OnRound that appends every decision, with the costs of both answers, to `decisions`."""

    def on_round(control: SignalControl, answers: Mapping[str, Decision]) -> None:
        for asked in model.last_round:
            outcomes = outcomes_by_fork(control, asked.junction_id, settings.without_terms())
            decisions.append(decision_values(control, asked.junction_id, asked.decision, asked, outcomes))

    return on_round


def _asking(model: LanguageModelController | None) -> dict[str, Any]:
    """Invalid and late answers, percentiles of the latency, and tokens per decision; None without a language model."""

    def mean(counts: Sequence[float | None]) -> float | None:
        known = [count for count in counts if count is not None]
        return sum(known) / len(known) if known else None

    latencies_s = model.latencies_s if model else []
    return {
        "invalid_answers": model.invalid_answers if model else None,
        "late_answers": model.late_answers if model else None,
        **{f"latency_p{n}_s": float(np.percentile(latencies_s, n)) if latencies_s else None for n in (50, 95, 99)},
        "prompt_tokens": mean(model.prompt_tokens) if model else None,
        "completion_tokens": mean(model.completion_tokens) if model else None,
    }


def _work(connection: Connection) -> None:
    """The work of a worker process: run the jobs that it receives, until None.

    It sends ("ask", conversations), and for each job ("done", record) or ("failed", message, trace).
    """
    die_with_parent(os.getppid())  # the parent is the fork server
    started_by = multiprocessing.parent_process()
    if started_by is None or not started_by.is_alive():
        os._exit(1)

    def ask(conversations: list[Conversation]) -> list[Reply]:
        connection.send(("ask", conversations))
        replies: list[Reply] = connection.recv()
        return replies

    try:
        while (job := connection.recv()) is not None:
            try:
                connection.send(("done", run_job(job, ask)))
            except TscError as error:
                connection.send(("failed", str(error), ""))
            except Exception as error:
                connection.send(("failed", repr(error), traceback.format_exc()))
    except (KeyboardInterrupt, EOFError, ConnectionError):
        pass  # the parent was stopped, or has ended, and reports it


def run_jobs(jobs: Sequence[EpisodeJob], workers: int, ask: Ask | None = None) -> Iterator[dict[str, Any]]:
    """Yield the record of each episode when it ends. At most `workers` episodes run at once.

    A language model is asked when every running episode waits for it. So the decisions of all junctions and all running
    episodes share one batch, and the batches are the same in every run.
    Raises ReplayError if an episode fails, and what `ask` raises. Leaves no process behind.
    """
    # A fork server loads this module once, and each worker is a fork of it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tsc.episodes.fork_server"])
    waiting = list(jobs)
    running: dict[Connection, EpisodeJob] = {}
    asked: dict[Connection, list[Conversation]] = {}
    processes: dict[Connection, ForkServerProcess] = {}
    try:
        for _ in range(min(workers, len(jobs))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            processes[ours] = process
            running[ours] = waiting.pop(0)
            ours.send(running[ours])
        while running:
            for connection in wait([connection for connection in running if connection not in asked]):
                assert isinstance(connection, Connection)
                job = running[connection]
                try:
                    kind, *content = connection.recv()
                except EOFError:
                    processes[connection].join()
                    raise ReplayError(
                        f"the process of {job.title} died with exit status {processes[connection].exitcode}: "
                        "run the same command again; it repeats only the episodes that are missing"
                    ) from None
                if kind == "ask":
                    asked[connection] = content[0]
                    continue
                del running[connection]
                if kind == "failed":
                    message, trace = content
                    raise ReplayError(f"{job.title} failed: {message}\n{trace}".rstrip())
                if waiting:
                    running[connection] = waiting.pop(0)
                    connection.send(running[connection])
                yield content[0]
            if asked and len(asked) == len(running):
                assert ask is not None, "a job with a language model needs `ask`"
                _answer(asked, list(running), ask)
    finally:
        for process in processes.values():
            process.terminate()
            process.join()


def _answer(asked: dict[Connection, list[Conversation]], order: Sequence[Connection], ask: Ask) -> None:
    """Answer all waiting episodes with one call of `ask`, in the order in which they were started."""
    waiting = [connection for connection in order if connection in asked]
    replies = ask([conversation for connection in waiting for conversation in asked[connection]])
    for connection in waiting:
        count = len(asked[connection])
        connection.send(replies[:count])
        replies = replies[count:]
    asked.clear()
