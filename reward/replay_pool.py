"""Replays in worker processes, with a time limit each; a worker that crashed or hangs is replaced."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tsc.errors
from reward.machine_slots import MachineSlots
from reward.settings import ReplaySection
from tsc.errors import ReplayError, TscError
from tsc.outcome import Outcomes, OutcomeSettings
from tsc.replay_request import ReplayRequest

# Start of Python and import of libsumo take about a second, but many may start at once on a busy machine.
_START_TIMEOUT_S = 120.0
_CHATTER_CHARS = 600
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[1])


class _WorkerFailed(Exception):
    """The worker is of no more use; the message is the cause."""


class _WorkerTimedOut(_WorkerFailed):
    pass


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """num_failed_attempts: crashes and time-outs before the attempt that gave the outcomes."""

    outcomes: Outcomes
    num_failed_attempts: int


class _Worker:
    """One worker process. Used by one thread at a time."""

    def __init__(self, replay_function: str) -> None:
        paths = [_PACKAGE_ROOT, os.environ.get("PYTHONPATH", "")]
        # append mode, so that the file can be emptied while the worker has it open
        self._chatter = tempfile.TemporaryFile("ab+")  # noqa: SIM115  closed in kill()
        lifeline_fd, self._lifeline_fd = os.pipe()
        try:
            self._process = subprocess.Popen(
                # -P: a `json.py` in the folder the user happens to be in must not be imported
                [sys.executable, "-P", "-m", "reward.replay_worker", replay_function, str(lifeline_fd)],
                pass_fds=[lifeline_fd],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._chatter,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            )
        except OSError:
            self._chatter.close()
            os.close(self._lifeline_fd)
            raise
        finally:
            os.close(lifeline_fd)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._unread = b""
        self._is_ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def run(self, job: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The worker's reply. Raises _WorkerFailed where it ended or did not answer in time."""
        if not self._is_ready:
            self._read_line(_START_TIMEOUT_S, doing="start")
            self._is_ready = True
        self._chatter.truncate(0)
        try:
            self._write(json.dumps(job).encode() + b"\n")
        except OSError as error:
            raise _WorkerFailed(f"the worker ended before the replay{self._last_words()}") from error
        reply: dict[str, Any] = json.loads(self._read_line(timeout_s, doing="replay"))
        return reply

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._stdin.write(view) :]

    def _read_line(self, timeout_s: float, *, doing: str) -> bytes:
        deadline = time.monotonic() + timeout_s
        poll = select.poll()  # unlike select(), it takes the high descriptors of a process with many open files
        poll.register(self._stdout, select.POLLIN)
        while b"\n" not in self._unread:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0 or not poll.poll(remaining_s * 1000):
                raise _WorkerTimedOut(f"no end of the {doing} within {timeout_s:g} s{self._last_words()}")
            chunk = os.read(self._stdout.fileno(), 65536)
            if not chunk:
                raise _WorkerFailed(f"the worker process {self._how_it_ended()} during the {doing}{self._last_words()}")
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"

    def _last_words(self) -> str:
        """What SUMO or Python printed last, as the end of a sentence."""
        self._chatter.seek(0)
        text = self._chatter.read().decode(errors="replace").strip()
        return f"; it said: {text[-_CHATTER_CHARS:]}" if text else ""

    def interrupt(self) -> None:
        """End the process; the thread that waits for its reply sees the pipe close."""
        self._process.kill()

    def kill(self) -> None:
        """End the process and wait for it; no error where it has ended."""
        self._process.kill()
        self._process.wait()
        os.close(self._lifeline_fd)
        for pipe in (self._stdin, self._stdout, self._chatter):
            with contextlib.suppress(OSError):  # a half-written job cannot be flushed, and need not
                pipe.close()


class ReplayPool:
    """Up to settings.num_workers processes, started when needed. Safe from many threads. Of all pools on this machine
    together no more than that many replay at once.

    The workers end with `close()`, with the interpreter, and when this process ends in any way.
    """

    def __init__(self, settings: ReplaySection) -> None:
        self._settings = settings
        self._free_slots = threading.BoundedSemaphore(settings.num_workers)
        self._machine_slots = MachineSlots(settings.num_workers)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._is_closed = False
        self._owner_pid = os.getpid()
        self._counts: Counter[str] = Counter()
        atexit.register(self.close)

    def replay(self, request: ReplayRequest, settings: OutcomeSettings) -> Replayed:
        """The outcomes of both answers.

        A crash, a time-out or an error inside SUMO is tried again in a new worker. What cannot change by that (a
        missing or damaged state, an unknown junction) is raised at once, as the class it is. Raises ReplayError
        that names state, junction and cause after the last attempt.
        """
        job = {
            "request": request.to_json(),
            "settings": settings.as_dict(),
            "timeout_s": self._settings.timeout_s,
        }
        causes: list[str] = []
        with self._place():
            for _ in range(1 + self._settings.retries):
                try:
                    reply = self._run(job)
                except _WorkerFailed as error:
                    causes.append(str(error))
                    continue
                if "error" not in reply:
                    self._count("replays")
                    outcomes = Outcomes.from_dict(reply)
                    return Replayed(outcomes=outcomes, num_failed_attempts=len(causes))
                error_class = _class_of(reply)
                if error_class is not None and error_class is not ReplayError:
                    raise error_class(reply["message"])
                causes.append(reply["message"] if error_class else f"{reply['error']}: {reply['message']}")
        self._count("failed_replays")
        raise ReplayError(
            f"replay of state {request.state_path} at junction {request.junction_id!r} (sample {request.sample_id}) "
            f"failed {len(causes)} times: {'; then '.join(dict.fromkeys(causes))}"
        )

    @contextmanager
    def _place(self) -> Iterator[None]:
        """A place in this process and on this machine."""
        with self._free_slots, ExitStack() as stack:
            try:
                stack.enter_context(self._machine_slots.taken())
            except OSError as error:
                raise ReplayError(
                    f"cannot count the replays on this machine: {error}: set TMPDIR to a folder that you may write to"
                ) from error
            yield

    def _run(self, job: dict[str, Any]) -> dict[str, Any]:
        worker = self._take()
        keep = False
        try:
            reply = worker.run(job, self._settings.timeout_s)
            # after an error inside SUMO the simulation may be left half loaded
            keep = "error" not in reply or _class_of(reply) not in (None, ReplayError)
            if not keep:
                self._count("failed_attempts")
            return reply
        except _WorkerFailed as error:
            self._count("failed_attempts")
            self._count("timed_out" if isinstance(error, _WorkerTimedOut) else "crashed")
            raise
        finally:
            self._give_back(worker, keep=keep)

    def _take(self) -> _Worker:
        with self._lock:
            if self._is_closed or os.getpid() != self._owner_pid:
                raise ReplayError("the replay pool is closed")
            while self._idle:
                worker = self._idle.pop()  # the one used last: the others may stay unstarted
                if worker.is_alive:
                    self._busy.add(worker)
                    return worker
                worker.kill()
            try:
                worker = _Worker(self._settings.function)
            except OSError as error:
                raise ReplayError(f"cannot start a replay worker: {error}") from error
            self._counts["started"] += 1
            self._busy.add(worker)
            return worker

    def _give_back(self, worker: _Worker, *, keep: bool) -> None:
        with self._lock:
            self._busy.discard(worker)
            keep = keep and not self._is_closed
            if keep:
                self._idle.append(worker)
        if not keep:
            worker.kill()

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    @property
    def counts(self) -> dict[str, int]:
        """Totals since the start: replays, failed_replays, failed_attempts, crashed, timed_out, started workers."""
        names = ("replays", "failed_replays", "failed_attempts", "crashed", "timed_out", "started")
        with self._lock:
            return {name: self._counts[name] for name in names}

    def worker_pids(self) -> list[int]:
        with self._lock:
            return [worker.pid for worker in (*self._idle, *self._busy)]

    def close(self) -> None:
        """End all workers, a replay that runs included. May be called again."""
        if os.getpid() != self._owner_pid:
            return  # a fork of the owner: the workers are not ours
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            for worker in self._busy:
                worker.interrupt()  # the thread that uses it collects it
        for worker in idle:
            worker.kill()
        atexit.unregister(self.close)


def _class_of(reply: dict[str, Any]) -> type[TscError] | None:
    """The class of ours that the worker raised, None for any other."""
    found = getattr(tsc.errors, reply["error"], None) if reply["ours"] else None
    return found if isinstance(found, type) and issubclass(found, TscError) else None
