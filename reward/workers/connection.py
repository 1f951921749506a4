"""How a process reaches the replay server of its machine, and starts it if there is none.

One server serves all processes of a user that run the same code, in the same environment, on the same CPU cores. Its
socket lies in the folder for temporary files, in a folder of the user's own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tsc.errors import ReplayError
from tsc.files import REPO_ROOT, code_digest
from tsc.sumo.version import installed_sumo_version

# Python may take long to start on a busy machine or from a slow disk.
_START_TIMEOUT_S = 120.0
_MAX_STARTS = 5
# what a Unix socket's address holds
_MAX_PATH_BYTES = 107
_LOG_CHARS = 600


class ServerEnded(Exception):
    """The server ended before it answered."""


class Connection:
    """Sends one line to the server and receives one line. Used by one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._unread = b""

    def ask(self, line: bytes) -> bytes:
        """The answer to `line`, which is given without a line end. Raises ServerEnded."""
        try:
            self._socket.sendall(line + b"\n")
        except OSError as error:
            raise ServerEnded(f"the replay server ended before the replay: {error}") from error
        return self.read_line()

    def read_line(self) -> bytes:
        parts = []
        while True:
            try:
                chunk = self._socket.recv(65536)
            except OSError as error:
                raise ServerEnded(f"the replay server ended during the replay: {error}") from error
            if not chunk:
                raise ServerEnded("the replay server ended during the replay")
            parts.append(chunk)
            if chunk.endswith(b"\n"):  # the server only answers, so nothing follows
                return b"".join(parts)[:-1]

    @property
    def is_open(self) -> bool:
        """Whether the server was still there a moment ago."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def interrupt(self) -> None:
        """Wake the thread that waits for an answer. ServerEnded is raised in it."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # the server was faster
            return

    def close(self) -> None:
        self._socket.close()


@dataclass(frozen=True, kw_only=True)
class ServerAddress:
    """socket: where the server listens. lock: held while any server of the user starts or ends. log: the server's
    errors."""

    socket: Path
    lock: Path
    log: Path

    @classmethod
    def here(cls) -> ServerAddress:
        """The address for this process. Raises ReplayError if the folder is unsafe or its name is too long."""
        # a launch has a folder for temporary files of its own, but shares the server
        shared = os.environ.get("TSC_REPLAY_FOLDER") or tempfile.gettempdir()
        folder = Path(shared, f"tsc-replay-{os.getuid()}")
        remedy = "set TMPDIR to a folder of your own"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            status = folder.lstat()
        except OSError as error:
            raise ReplayError(f"cannot make {folder} for the replay server: {error.strerror}: {remedy}") from error
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise ReplayError(f"{folder} is not a folder that only this user can use: remove it, or {remedy}")
        name = _server_name()
        path = folder / f"{name}.sock"
        if len(os.fsencode(path)) > _MAX_PATH_BYTES:
            raise ReplayError(f"the socket's name {path} is longer than {_MAX_PATH_BYTES} bytes: {remedy}")
        return cls(socket=path, lock=folder / "lock", log=folder / f"{name}.log")

    def connect(self) -> Connection | None:
        """None if no server listens."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection = Connection(sock)
        try:
            sock.connect(str(self.socket))
            connection.read_line()  # its greeting; a server that is about to end does not greet
        except (FileNotFoundError, ConnectionRefusedError, ServerEnded):
            sock.close()
            return None
        except BaseException:
            sock.close()
            raise
        return connection

    def connect_or_start(self) -> Connection:
        """If several processes and threads come at once, one of them starts the server. Raises ReplayError."""
        try:
            for _ in range(_MAX_STARTS):
                connection = self.connect()
                if connection is None:
                    with self._locked():
                        connection = self.connect()
                        if connection is None:
                            self._start()
                            connection = self.connect()
                if connection is not None:
                    return connection
        except OSError as error:
            raise ReplayError(f"cannot reach the replay server: {error}") from error
        raise ReplayError(f"the replay server ended {_MAX_STARTS} times as soon as it was started{self.last_words()}")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # each thread has a descriptor of its own, because flock() belongs to the descriptor and not to the process
        lock_fd = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX)
            yield
        finally:
            # a child that another thread forks meanwhile has the descriptor, too, so closing it here would not unlock
            fcntl.flock(lock_fd, fcntl.LOCK_UN)
            os.close(lock_fd)

    def _start(self) -> None:
        """Returns once the server listens. The server detaches itself, so that we wait for its start only."""
        paths = [str(REPO_ROOT), os.environ.get("PYTHONPATH", "")]
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                # -P: a `json.py` in the working folder must not be imported
                [sys.executable, "-P", "-m", "reward.workers.server", str(self.socket), str(self.lock)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            )
        try:
            status = process.wait(_START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise ReplayError(
                f"the replay server did not start within {_START_TIMEOUT_S:g} s{self.last_words()}"
            ) from None
        if status > 0:  # killed by somebody, it is started again
            raise ReplayError(f"the replay server cannot start (status {status}){self.last_words()}")

    def last_words(self) -> str:
        """The end of the server's log, as the end of a sentence."""
        text = self.log.read_text(errors="replace").strip() if self.log.exists() else ""
        return f"; it said: {text[-_LOG_CHARS:]}" if text else ""


@lru_cache(maxsize=1)
def _server_name() -> str:
    """The same for processes with the same code, SUMO, interpreter, cores and view of the file system."""
    place = (
        str(REPO_ROOT),
        sys.executable,
        installed_sumo_version(),
        socket.gethostname(),  # the folder for temporary files may be shared between machines
        os.readlink("/proc/self/ns/mnt"),
        sorted(os.sched_getaffinity(0)),
    )
    return hashlib.sha256(f"{code_digest('reward', 'tsc')} {place!r}".encode()).hexdigest()[:12]
