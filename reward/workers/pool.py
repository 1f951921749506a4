"""Replays in the worker processes of this machine. Each has a time limit; one that crashed or hung is tried again."""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import tsc.errors
from reward.settings import ReplaySection
from reward.workers.connection import Connection, ServerAddress, ServerEnded
from tsc.cost.outcome import Outcomes, OutcomeSettings
from tsc.errors import ReplayError, TscError
from tsc.files import REPO_ROOT
from tsc.replays.request import ReplayRequest


@dataclass(frozen=True, kw_only=True)
class ReplayResult:
    """num_failed_attempts: crashes and time-outs before the attempt that gave the outcomes."""

    outcomes: Outcomes
    num_failed_attempts: int


class ReplayPool:
    """A client of the machine's replay server (reward.workers.server). It starts the server if there is none.

    All pools of all processes of a user share the server's workers: one for each core, or as many as the lowest
    `replay.workers` of the connected processes. Safe from many threads. The workers end soon after the last process
    that uses them has closed its pools or ended in any way.
    """

    def __init__(self, settings: ReplaySection) -> None:
        self._settings = settings
        self._python_path = _python_path()
        # twice the workers, so that a worker that is done finds the next request; no more, so that every process gets
        # its turn
        self._places = threading.BoundedSemaphore(2 * settings.num_workers)
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._is_closed = False
        self._counts: Counter[str] = Counter()
        _open_pools.add(self)

    def replay(self, request: ReplayRequest, settings: OutcomeSettings) -> ReplayResult:
        """The outcomes of both answers. Raises what `run` raises."""
        values, num_failed_attempts = self.run(self._settings.function, request, settings)
        return ReplayResult(outcomes=Outcomes.from_dict(values), num_failed_attempts=num_failed_attempts)

    def run(
        self,
        function: str,
        request: ReplayRequest,
        settings: OutcomeSettings,
        arguments: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Any], int]:
        """Calls `function` ("module:function") in a worker. Returns its result, as its as_dict() gives it, and the
        number of crashes and time-outs before.

        arguments: further keyword arguments of the function, plain JSON values.

        After a crash, a time-out, or an exception that is not one of tsc.errors, the call is tried again in a new
        worker. After the last attempt, ReplayError names state, junction and causes. An exception of tsc.errors would
        come again, so it is raised at once: StateError for a state that is missing or damaged, and so on.
        """
        line = self._line(function, request, settings, arguments or {})
        where = f"state {request.state_path} at junction {request.junction_id!r} (sample {request.sample_id})"
        causes: list[str] = []
        with self._places:
            for _ in range(1 + self._settings.retries):
                try:
                    reply = self._ask(line)
                except ServerEnded as error:
                    self._count("failed_attempts", "crashed")
                    causes.append(str(error))
                    continue
                if reply["started"]:
                    self._count("started")
                if "failed" in reply:
                    self._count("failed_attempts", reply["failed"])
                    causes.append(reply["message"])
                elif "result" in reply:
                    self._count("replays")
                    return reply["result"], len(causes)
                elif reply["ours"]:
                    message = reply["message"]
                    named = message if str(request.state_path) in message else f"replay of {where}: {message}"
                    self._count("failed_attempts", "failed_replays")
                    raise _class_of(reply)(named)
                else:
                    self._count("failed_attempts")
                    causes.append(f"{reply['error']}: {reply['message']}")
        self._count("failed_replays")
        raise ReplayError(f"replay of {where} failed {len(causes)} times: {'; then '.join(dict.fromkeys(causes))}")

    def _line(
        self, function: str, request: ReplayRequest, settings: OutcomeSettings, arguments: Mapping[str, Any]
    ) -> bytes:
        if not os.path.isabs(request.dataset_dir):  # the server has another working folder
            request = replace(request, dataset_dir=os.path.abspath(request.dataset_dir))
        header = {
            "function": function,
            "pythonpath": self._python_path,
            "net": request.sumo.net_sha256 or f"{request.dataset_dir}/{request.sumo.net_file}",
            "timeout_s": self._settings.timeout_s,
            "workers": self._settings.workers,
        }
        job = {"request": request.to_json(), "settings": settings.as_dict(), "arguments": arguments}
        return b"\t".join(json.dumps(part, separators=(",", ":")).encode() for part in (header, job))

    def _ask(self, line: bytes) -> dict[str, Any]:
        """Raises ServerEnded, and ReplayError if the server cannot be started or this pool was closed."""
        with self._connection() as connection:
            try:
                reply: dict[str, Any] = json.loads(connection.ask(line))
            except ServerEnded:
                if self._is_closed:
                    raise ReplayError("the replay pool is closed") from None
                raise
        return reply

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        connection = self._take()
        keep = False
        try:
            yield connection
            keep = True
        finally:
            with self._lock:
                self._busy.discard(connection)
                keep = keep and not self._is_closed
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def _take(self) -> Connection:
        while True:
            with self._lock:
                if self._is_closed:
                    raise ReplayError("the replay pool is closed")
                if not self._idle:
                    break
                connection = self._idle.pop()
                if connection.is_open:
                    self._busy.add(connection)
                    return connection
            connection.close()  # its server ended between two replays; this does not count as an attempt
        connection = ServerAddress.here().connect_or_start()
        with self._lock:
            self._busy.add(connection)
            was_closed = bool(self._is_closed)  # by another thread meanwhile
        if was_closed:
            connection.interrupt()
        return connection

    def _count(self, *names: str) -> None:
        with self._lock:
            self._counts.update(names)

    @property
    def counts(self) -> dict[str, int]:
        """Totals of this pool since its start: replays, failed_replays, failed_attempts, crashed, timed_out, and
        started, the workers that were started for its requests."""
        names = ("replays", "failed_replays", "failed_attempts", "crashed", "timed_out", "started")
        with self._lock:
            return {name: self._counts[name] for name in names}

    def worker_pids(self) -> list[int]:
        """Process ids of the workers of this machine's server, whoever uses them. Empty before this pool's first
        replay."""
        with self._lock:
            if not self._idle and not self._busy:
                return []
        return _told_by_server(b"workers")

    def close(self) -> None:
        """Leave the server. A replay that runs only for this pool is ended. May be called again."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            for connection in self._busy:
                connection.interrupt()  # the thread that uses it closes it
        for connection in idle:
            connection.close()

    def _leave_to_parent(self) -> None:
        """In a forked child, the connections belong to its parent. If the child kept them open, the server would take
        them for a client that is alive."""
        self._is_closed = True
        for connection in (*self._idle, *self._busy):
            connection.close()


_open_pools: weakref.WeakSet[ReplayPool] = weakref.WeakSet()


def _leave_all_to_parent() -> None:
    for pool in list(_open_pools):
        pool._leave_to_parent()


os.register_at_fork(after_in_child=_leave_all_to_parent)


def replays_under_way() -> list[tuple[float, str]]:
    """For each unfinished replay of this machine's server, its age (s) and its state file. The oldest comes first."""
    return [(age_s, state_file) for age_s, state_file in _told_by_server(b"replays")]


def _told_by_server(question: bytes) -> list[Any]:
    """The server's answer: a list, which is empty if no server runs."""
    connection = ServerAddress.here().connect()
    if connection is None:
        return []
    try:
        answer: list[Any] = json.loads(connection.ask(question))
    except ServerEnded:
        return []
    finally:
        connection.close()
    return answer


def _python_path() -> str:
    """The search path with which the workers find the modules that this process finds."""
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return os.pathsep.join([str(REPO_ROOT), *map(os.path.abspath, paths)])


def _class_of(reply: dict[str, Any]) -> type[TscError]:
    found = getattr(tsc.errors, reply["error"], None)
    return found if isinstance(found, type) and issubclass(found, TscError) else ReplayError
