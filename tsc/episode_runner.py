"""Runs evaluation episodes in processes of their own, and answers those that ask a language model in common batches."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from tsc.controllers.controller import Controller
from tsc.controllers.gap_out import GapOut
from tsc.controllers.language_model import Ask, Conversation, LanguageModelController, Reply
from tsc.controllers.lookahead import Lookahead
from tsc.controllers.max_pressure import MaxPressure
from tsc.controllers.random_choice import Random
from tsc.episode import run_episode
from tsc.errors import ConfigError, ReplayError, TscError
from tsc.outcome import OutcomeSettings
from tsc.simulation import SumoFiles
from tsc.timing import Timing

CLASSICAL_CONTROLLERS = ("static", "gap_out", "max_pressure", "random", "lookahead")
LANGUAGE_MODEL = "llm"


@dataclass(frozen=True, kw_only=True)
class EpisodeJob:
    """One episode of one controller. `kind` is one of CLASSICAL_CONTROLLERS or LANGUAGE_MODEL; `controller` is the name
    it is reported under."""

    scenario: str
    controller: str
    kind: str
    seed: int
    files: SumoFiles
    duration_s: int
    timing: Timing
    lookahead: OutcomeSettings


def make_controller(job: EpisodeJob, ask: Ask) -> Controller | None:
    """None stands for the net's own plan, which runs undisturbed. Raises ConfigError for an unknown name."""
    match job.kind:
        case "static":
            return None
        case "gap_out":
            return GapOut()
        case "max_pressure":
            return MaxPressure()
        case "random":
            return Random(job.seed)
        case "lookahead":
            return Lookahead(job.lookahead)
        case "llm":
            return LanguageModelController(ask)
    raise ConfigError(f"controller {job.kind!r} is unknown: choose of {', '.join(CLASSICAL_CONTROLLERS)}")


def _work(job: EpisodeJob, connection: Connection) -> None:
    """In the episode's process. Sends ("ask", prompts), then ("done", record) or ("failed", message, trace)."""

    def ask(conversations: list[Conversation]) -> list[Reply]:
        connection.send(("ask", conversations))
        replies: list[Reply] = connection.recv()
        return replies

    try:
        begin = time.monotonic()
        controller = make_controller(job, ask)
        metrics = run_episode(job.files, job.duration_s, job.timing, controller)
        record = {
            "scenario": job.scenario,
            "controller": job.controller,
            "seed": job.seed,
            **metrics.as_dict(),
            "invalid_answers": controller.invalid_answers if isinstance(controller, LanguageModelController) else 0,
            "wall_s": round(time.monotonic() - begin, 2),
        }
        connection.send(("done", record))
    except TscError as error:
        connection.send(("failed", str(error), ""))
    except KeyboardInterrupt:
        pass  # the parent has been interrupted as well and reports it
    except Exception as error:
        connection.send(("failed", repr(error), traceback.format_exc()))


def run_jobs(
    jobs: Sequence[EpisodeJob], workers: int, ask: Callable[[str], Ask] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield each episode's record as it ends.

    At most `workers` episodes run at once. Of those that ask a language model, all of one controller run together, so
    that their prompts share batches: the model is asked once every running episode waits for it, which also makes the
    batches the same in every run. `ask(controller)` gives the function that answers its prompts.
    Raises what an episode raises; no process is left behind.
    """
    classical = [job for job in jobs if job.kind != LANGUAGE_MODEL]
    yield from _run_together(classical, workers, None)
    for controller in dict.fromkeys(job.controller for job in jobs if job.kind == LANGUAGE_MODEL):
        if ask is None:
            raise ConfigError(f"controller {controller!r} needs a language model")
        asking = [job for job in jobs if job.kind == LANGUAGE_MODEL and job.controller == controller]
        yield from _run_together(asking, len(asking), ask(controller))


def _run_together(jobs: Sequence[EpisodeJob], at_once: int, ask: Ask | None) -> Iterator[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    waiting = list(jobs)
    running: dict[Connection, tuple[SpawnProcess, EpisodeJob]] = {}
    asked: dict[Connection, list[Conversation]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(job, theirs), daemon=True)
                process.start()
                theirs.close()
                running[ours] = (process, job)
            for connection in wait([connection for connection in running if connection not in asked]):
                assert isinstance(connection, Connection)
                process, job = running[connection]
                try:
                    kind, *content = connection.recv()
                except EOFError:
                    process.join()
                    raise ReplayError(
                        f"the episode of {job.controller} on {job.scenario}, seed {job.seed}, died with exit status "
                        f"{process.exitcode}: run the same command again, it continues"
                    ) from None
                if kind == "ask":
                    asked[connection] = content[0]
                    continue
                process.join()
                del running[connection]
                if kind == "failed":
                    message, trace = content
                    raise ReplayError(
                        f"{job.controller} on {job.scenario}, seed {job.seed}, failed: {message}\n{trace}"
                    )
                yield content[0]
            if asked and len(asked) == len(running) and ask is not None:
                _answer(asked, list(running), ask)
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


def _answer(asked: dict[Connection, list[Conversation]], order: list[Connection], ask: Ask) -> None:
    """Answer all waiting episodes with one call, in the order in which they were started."""
    waiting = [connection for connection in order if connection in asked]
    replies = ask([conversation for connection in waiting for conversation in asked[connection]])
    for connection in waiting:
        count = len(asked[connection])
        connection.send(replies[:count])
        replies = replies[count:]
    asked.clear()


def job_record(job: EpisodeJob) -> dict[str, Any]:
    """What decides an episode's result, for telling whether a stored one still holds."""
    record = asdict(job)
    record["files"] = [Path(path).name for path in (job.files.net_file, *job.files.route_files)]
    return record
