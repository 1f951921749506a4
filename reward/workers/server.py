"""The replay server of a machine: one process that owns the workers and serves every process of a user.

    python -m reward.workers.server SOCKET LOCK      started by reward.workers.connection; detaches when it listens

However many processes and threads ask, no more workers run at once than there are cores, or than the lowest
`replay.workers` that a connected process has set. Requests are served in the order of their arrival, but a worker
prefers those of the net that it has read. The number of requests under way is limited for each process
(reward.workers.pool), so none crowds out the others. Equal requests under way are replayed once.

The server ends, with its workers, soon after its last client is gone. The workers end with it however it ends.

Protocol: lines. The server greets a client with its process id. A client sends HEADER, a tab, JOB, both JSON, and gets
one line: the worker's own (reward.workers.worker), or {"failed": "crashed" | "timed_out", "message": …}; with
"started", whether a worker was started for it. The line `workers` is answered by the process ids of the workers.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

_LINGER_S = 3.0
# Starting Python and importing libsumo takes about a second, but many workers may start at once on a busy machine.
_WORKER_START_TIMEOUT_S = 120.0
# How many later requests, which suit the workers better, may overtake the oldest one.
_MAX_OVERTAKEN = 16
# How long an idle worker of one function is kept while a request for another waits.
_KEEP_IDLE_S = 0.5
_CHATTER_CHARS = 600


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a worker is started for: the function that replays, and the search path on which it is found."""

    function: str
    pythonpath: str


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the server has to know of a request. net: names the net that is replayed. workers: the most workers that the
    client allows, None if it has not set a number."""

    kind: Kind
    net: str
    timeout_s: float
    workers: int | None


@lru_cache(maxsize=1024)
def _parse_header(text: bytes) -> Header:
    values = json.loads(text)
    kind = Kind(function=values["function"], pythonpath=values["pythonpath"])
    return Header(kind=kind, net=values["net"], timeout_s=values["timeout_s"], workers=values["workers"])


@dataclass(eq=False, kw_only=True)
class _Job:
    """A replay that one or more clients wait for."""

    key: tuple[Kind, float, bytes]
    kind: Kind
    net: str
    timeout_s: float
    line: bytes
    queued_s: float
    num_overtaken: int = 0
    waiting: list[_Client] = field(default_factory=list)


class _Channel:
    """Sends and receives lines over a socket, without ever waiting for the other side."""

    def __init__(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._selector = selector
        self._read = bytearray()
        self._unsent = b""
        selector.register(sock, selectors.EVENT_READ, self)

    def send(self, data: bytes) -> None:
        """Send what the socket accepts now, and the rest later. If the other side has ended, reading will show it."""
        self._unsent += data
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        if self._selector.get_key(self._socket).events != events:
            self._selector.modify(self._socket, events, self)

    def send_rest(self) -> None:
        self.send(b"")

    def receive(self) -> tuple[list[bytes], bool]:
        """The lines that have arrived, without their ends, and whether the other side is gone."""
        try:
            chunk = self._socket.recv(1 << 18)
        except BlockingIOError:
            return [], False
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            return [], True
        self._read += chunk
        if b"\n" not in chunk:
            return [], False
        *lines, rest = bytes(self._read).split(b"\n")
        self._read = bytearray(rest)
        return lines, False

    def close(self) -> None:
        self._selector.unregister(self._socket)
        self._socket.close()


class _Client(_Channel):
    """One connection of a process."""

    def __init__(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        super().__init__(sock, selector)
        self.job: _Job | None = None
        # the most workers that it allows; None until its first request
        self.allows: int | None = None


class _Worker(_Channel):
    """A worker process and its present job."""

    def __init__(self, kind: Kind, selector: selectors.BaseSelector) -> None:
        """Raises OSError if the process cannot be started."""
        ours, theirs = socket.socketpair()
        # append mode, so that the file can be emptied while the worker has it open
        self._chatter = tempfile.TemporaryFile("ab+")  # noqa: SIM115  closed in kill()
        lifeline_fd, self._lifeline_fd = os.pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "reward.workers.worker", kind.function, str(lifeline_fd)],
                pass_fds=[lifeline_fd],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._chatter,
                # a process group of its own, so that its forks end with it
                process_group=0,
                env={**os.environ, "PYTHONPATH": kind.pythonpath},
            )
        except OSError:
            ours.close()
            self._chatter.close()
            os.close(self._lifeline_fd)
            raise
        finally:
            theirs.close()
            os.close(lifeline_fd)
        super().__init__(ours, selector)
        self.kind = kind
        self.job: _Job | None = None
        self.net: str | None = None
        self.is_ready = False
        self.num_jobs = 0
        self.deadline_s = time.monotonic() + _WORKER_START_TIMEOUT_S

    def start(self, job: _Job, now_s: float) -> None:
        self.job = job
        self.net = job.net
        self.num_jobs += 1
        if self.is_ready:
            self.deadline_s = now_s + job.timeout_s
        self._chatter.truncate(0)
        self.send(job.line + b"\n")

    def how_it_ended(self) -> str:
        try:
            status = self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"

    def last_words(self) -> str:
        """The last output of SUMO or Python, as the end of a sentence."""
        self._chatter.seek(0)
        text = self._chatter.read().decode(errors="replace").strip()
        return f"; it said: {text[-_CHATTER_CHARS:]}" if text else ""

    def kill(self) -> None:
        """End the process and its forks, without waiting for them."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.close()
        self._chatter.close()
        os.close(self._lifeline_fd)


class ReplayServer:
    """One thread that waits for the next event: a client, a request, a reply, a time limit."""

    def __init__(self, listener: socket.socket, socket_path: Path, lock_path: Path) -> None:
        self._listener = listener
        self._socket_path = socket_path
        self._lock_path = lock_path
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._clients: set[_Client] = set()
        self._workers: dict[int, _Worker] = {}  # by process id, in the order of their start
        self._idle: list[_Worker] = []  # the one used last at the end
        self._ended: list[subprocess.Popen[bytes]] = []  # killed and not yet collected
        self._jobs: dict[tuple[Kind, float, bytes], _Job] = {}  # all under way
        self._queue: dict[tuple[Kind, float, bytes], _Job] = {}  # those without a worker, oldest first
        self._num_cores = num_cores()
        self._bound = self._num_cores
        self._deserted_s: float | None = time.monotonic()

    def run(self) -> None:
        """Serve until no client is left for a while."""
        while True:
            for key, events in self._selector.select(self._wait_s()):
                channel = key.data
                if channel is None:
                    self._accept()
                    continue
                if isinstance(channel, _Worker) and channel.process.pid not in self._workers:
                    continue  # ended by an event before this one
                if events & selectors.EVENT_WRITE:
                    channel.send_rest()
                if events & selectors.EVENT_READ and isinstance(channel, _Client):
                    self._hear_client(channel)
                elif events & selectors.EVENT_READ:
                    self._hear_worker(channel)
            now_s = time.monotonic()
            self._end_overdue(now_s)
            self._hand_out(now_s)
            self._ended = [process for process in self._ended if process.poll() is None]
            if self._deserted_s is not None and now_s - self._deserted_s >= _LINGER_S and self._has_ended():
                return

    def _wait_s(self) -> float | None:
        now_s = time.monotonic()
        times_s = [worker.deadline_s for worker in self._workers.values() if worker.job or not worker.is_ready]
        if self._queue and self._idle:
            times_s.append(next(iter(self._queue.values())).queued_s + _KEEP_IDLE_S)
        if self._deserted_s is not None:
            times_s.append(max(self._deserted_s + _LINGER_S, now_s + 0.05))
        if self._ended:
            times_s.append(now_s + 0.05)
        return max(0.0, min(times_s) - now_s) if times_s else None

    # Clients

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:  # gone again, or no descriptor free
            print(f"cannot take a client: {error}", file=sys.stderr, flush=True)
            time.sleep(0.01)
            return
        client = _Client(sock, self._selector)
        self._clients.add(client)
        self._deserted_s = None
        client.send(b"%d\n" % os.getpid())

    def _hear_client(self, client: _Client) -> None:
        lines, is_gone = client.receive()
        for line in lines:
            if line == b"workers":
                client.send(json.dumps(list(self._workers)).encode() + b"\n")
            elif line == b"replays":
                client.send(json.dumps(self._under_way()).encode() + b"\n")
            else:
                self._take_request(client, line)
        if is_gone:
            self._drop_client(client)

    def _under_way(self) -> list[tuple[float, str]]:
        """How long ago each replay was asked for (s), and its state; the oldest first."""
        now_s = time.monotonic()
        requests = [(job.queued_s, json.loads(job.line.partition(b"\t")[2])["request"]) for job in self._jobs.values()]
        return [(now_s - queued_s, request["state_file"]) for queued_s, request in requests]

    def _take_request(self, client: _Client, line: bytes) -> None:
        text, _, body = line.partition(b"\t")
        header = _parse_header(text)
        allows = self._num_cores if header.workers is None else header.workers
        if client.allows != allows:
            client.allows = allows
            self._set_bound()
        key = (header.kind, header.timeout_s, body)
        job = self._jobs.get(key)
        if job is None:
            job = _Job(
                key=key,
                kind=header.kind,
                net=header.net,
                timeout_s=header.timeout_s,
                line=line,
                queued_s=time.monotonic(),
            )
            self._jobs[key] = self._queue[key] = job
        job.waiting.append(client)
        client.job = job

    def _drop_client(self, client: _Client) -> None:
        self._clients.discard(client)
        client.close()
        job = client.job
        if job is not None:
            job.waiting.remove(client)
            if not job.waiting:
                self._forget(job)
        if not self._clients:
            self._deserted_s = time.monotonic()
        self._set_bound()

    def _forget(self, job: _Job) -> None:
        """Drop a job that no client waits for any more."""
        del self._jobs[job.key]
        self._queue.pop(job.key, None)
        for worker in list(self._workers.values()):
            if worker.job is job:
                self._end(worker)

    def _set_bound(self) -> None:
        """Set the number of workers to the lowest that a client allows. A client that has not set a number allows one
        for each core."""
        self._bound = min((one.allows for one in self._clients if one.allows is not None), default=self._bound)
        while len(self._workers) > self._bound and self._idle:
            self._end(self._idle[0])

    def _reply(self, job: _Job, reply: dict[str, Any], *, started: bool) -> None:
        del self._jobs[job.key]
        for client in job.waiting:
            client.job = None
            client.send(json.dumps(reply | {"started": started}).encode() + b"\n")
            started = False  # only one client counts the start, so that sums are right

    # Workers

    def _hand_out(self, now_s: float) -> None:
        """Give jobs to workers: first the oldest if it was overtaken too often, then those whose net a worker has
        read, then the others."""
        if self._queue:  # the end of an idle worker may not have been heard yet
            for idle in [idle for idle in self._idle if idle.process.poll() is not None]:
                self._end(idle)
        for find in (self._if_overtaken, self._prepared_worker, self._any_worker, self._displaced_worker):
            for job in list(self._queue.values()) if self._has_place() else ():
                if not self._has_place():
                    return
                try:
                    worker = find(job, now_s)
                except OSError as error:
                    del self._queue[job.key]
                    message = f"cannot start a replay worker: {error}"
                    self._reply(job, {"failed": "crashed", "message": message}, started=False)
                    continue
                if worker is not None:
                    del self._queue[job.key]
                    worker.start(job, now_s)
                    oldest = next(iter(self._queue.values()), None)
                    if oldest is not None and oldest.queued_s < job.queued_s:
                        oldest.num_overtaken += 1

    def _has_place(self) -> bool:
        return bool(self._idle) or len(self._workers) < self._bound

    def _if_overtaken(self, job: _Job, now_s: float) -> _Worker | None:
        if job.num_overtaken < _MAX_OVERTAKEN:
            return None
        return self._prepared_worker(job, now_s) or self._any_worker(job, now_s) or self._in_place_of_idle(job)

    def _prepared_worker(self, job: _Job, now_s: float) -> _Worker | None:
        for worker in reversed(self._idle):
            if worker.kind == job.kind and worker.net == job.net:
                self._idle.remove(worker)
                return worker
        return None

    def _any_worker(self, job: _Job, now_s: float) -> _Worker | None:
        for worker in self._idle:
            if worker.kind == job.kind:
                self._idle.remove(worker)
                return worker
        return self._new_worker(job.kind) if len(self._workers) < self._bound else None

    def _displaced_worker(self, job: _Job, now_s: float) -> _Worker | None:
        """Replaces an idle worker of another function, which no other request needs."""
        return self._in_place_of_idle(job) if now_s - job.queued_s >= _KEEP_IDLE_S else None

    def _in_place_of_idle(self, job: _Job) -> _Worker:
        self._end(self._idle[0])
        return self._new_worker(job.kind)

    def _new_worker(self, kind: Kind) -> _Worker:
        worker = _Worker(kind, self._selector)
        self._workers[worker.process.pid] = worker
        return worker

    def _hear_worker(self, worker: _Worker) -> None:
        lines, is_gone = worker.receive()
        for line in lines:
            if not worker.is_ready:
                worker.is_ready = True
                if worker.job is not None:
                    worker.deadline_s = time.monotonic() + worker.job.timeout_s
                continue
            job = worker.job
            assert job is not None
            worker.job = None
            reply = json.loads(line)
            self._reply(job, reply, started=worker.num_jobs == 1)
            if reply.get("ends") or len(self._workers) > self._bound:
                self._end(worker)
                return
            self._idle.append(worker)
        if is_gone:
            doing = "replay" if worker.is_ready else "start"
            self._fail(worker, "crashed", f"the worker process {worker.how_it_ended()} during the {doing}")

    def _end_overdue(self, now_s: float) -> None:
        for worker in list(self._workers.values()):
            if (worker.job or not worker.is_ready) and now_s >= worker.deadline_s:
                doing, limit_s = "start", _WORKER_START_TIMEOUT_S
                if worker.job and worker.is_ready:
                    doing, limit_s = "replay", worker.job.timeout_s
                self._fail(worker, "timed_out", f"no end of the {doing} within {limit_s:g} s")

    def _fail(self, worker: _Worker, how: str, message: str) -> None:
        job = worker.job
        worker.job = None
        if job is not None:
            reply = {"failed": how, "message": f"{message}{worker.last_words()}"}
            self._reply(job, reply, started=worker.num_jobs == 1)
        self._end(worker)

    def _end(self, worker: _Worker) -> None:
        del self._workers[worker.process.pid]
        if worker in self._idle:
            self._idle.remove(worker)
        worker.kill()
        self._ended.append(worker.process)

    # The end

    def _has_ended(self) -> bool:
        """End everything, unless a process is just about to start a server or to connect."""
        lock_fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock_fd)
            return False
        for worker in list(self._workers.values()):
            self._end(worker)
        for process in self._ended:
            with contextlib.suppress(subprocess.TimeoutExpired):  # held by the kernel, as on a dead file server
                process.wait(timeout=5)
        # a client that connects before this line is not greeted, waits for the lock, and starts the next server
        self._socket_path.unlink(missing_ok=True)
        self._listener.close()
        log = self._socket_path.with_suffix(".log")
        if log.exists() and log.stat().st_size == 0:
            log.unlink()
        os.close(lock_fd)
        return True


def num_cores() -> int:
    """The number of CPU cores that this process may use, by its affinity and by the quotas of its control groups
    (containers)."""
    return min([len(os.sched_getaffinity(0)), *(max(1, round(quota)) for quota in cpu_quotas())])


def cpu_quotas(of: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[float]:
    """The quotas, in cores, of a process's control group (version 2) and of the groups above it."""
    quotas = []
    for line in of.read_text().splitlines() if of.exists() else ():
        _, controllers, name = line.split(":", 2)
        if controllers:
            continue  # version 1
        own = root / name.strip("/")
        for folder in (own, *own.parents):
            if not folder.is_relative_to(root):
                break
            with contextlib.suppress(OSError):  # neither the root nor the groups outside a container have this file
                quota, period = (folder / "cpu.max").read_text().split()
                if quota != "max":
                    quotas.append(int(quota) / int(period))
    return quotas


def main() -> None:
    socket_path, lock_path = Path(sys.argv[1]), Path(sys.argv[2])
    socket_path.unlink(missing_ok=True)  # of a server that was killed; the starter holds the lock
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(socket_path))
    listener.listen(1024)
    # many processes on many cores may need more connections than the usual soft limit of 1024 descriptors
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if os.fork():
        os._exit(0)  # the starter waits for this: the server listens
    ReplayServer(listener, socket_path, lock_path).run()


if __name__ == "__main__":
    main()
