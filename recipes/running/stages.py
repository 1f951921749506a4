"""Runs the stages of a launch, each in a supervised process that leaves nothing behind, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

from tsc.files import REPO_ROOT

SUPERVISOR = REPO_ROOT / "recipes" / "running" / "supervise.py"
# marks every process of a launch, for the one case that the supervisor itself is killed
MARK = "TSC_LAUNCH"


class StageFailed(SystemExit):
    """A stage ended with this exit status; it said why."""


class Interrupted(BaseException):
    """The launch was asked to end by a signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.status = 128 + signum


def raise_on_signals() -> None:
    """From now on the first of Ctrl-C, SIGTERM and SIGHUP raises Interrupted, and later ones do not disturb its end."""

    def interrupt(signum: int, _frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(signum)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, interrupt)


class Stages:
    """environment: what every process of the launch gets, beside what a single stage adds."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = {**environment, MARK: str(os.getpid())}
        self._start_s = time.monotonic()

    @contextmanager
    def stage(self, title: str, done: object) -> Iterator[None]:
        """Says when the stage begins, and when it has ended well, where its result lies."""
        start_s = time.monotonic()
        say(f"== {title}")
        yield
        say(f"   done in {_minutes(time.monotonic() - start_s)}: {done}")

    def total_time(self) -> str:
        return _minutes(time.monotonic() - self._start_s)

    def python(self, script: str, *options: object) -> None:
        """Run one of our programs, given by its path in the repository. Raises StageFailed."""
        self.run([sys.executable, script, *map(str, options)], name=script)

    def run(
        self,
        command: Sequence[object],
        *,
        name: str,
        log: Path | None = None,
        watch_workers: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Run a command under recipes/running/supervise.py.

        log: takes its output; the metrics that verl writes (VERL_FILE_LOGGER_PATH) are shown instead.
        watch_workers: end it when a worker of Ray or vLLM dies. Raises StageFailed.
        """
        more = environment or {}
        supervisor = [sys.executable, str(SUPERVISOR), "--parent-pid", str(os.getpid()), "--name", name]
        if log is not None:
            supervisor += ["--log", str(log), "--metrics", more["VERL_FILE_LOGGER_PATH"]]
        if watch_workers:
            supervisor.append("--watch-workers")
        process = subprocess.Popen([*supervisor, "--", *map(str, command)], env={**self.environment, **more})
        try:
            status = process.wait()
        except BaseException:
            process.terminate()  # it ends what it has started, then itself
            process.wait()
            raise
        if status == -signal.SIGKILL:
            self._sweep()
        if status != 0:
            raise StageFailed(status if status > 0 else 128 - status)

    def _sweep(self) -> None:
        """Kill what a killed supervisor left behind."""
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(MARK) == str(os.getpid()):
                    process.kill()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue


def skipped(what: str, where: object) -> None:
    say(f"== {what}: already done, {where}")


def say(line: str) -> None:
    print(line, flush=True)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
