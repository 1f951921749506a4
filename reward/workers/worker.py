"""A process that replays: `python -m reward.workers.worker MODULE:FUNCTION LIFELINE`, started by reward.workers.server.

libsumo holds one simulation a process and is not safe from threads, so each replay runs in a process. The process is
started from nothing. It is never forked, and never started by multiprocessing, which would run the parent's __main__
again. So it shares nothing with its parent: no Ray, no torch, no threads, no open files.

Protocol: lines. After the import of FUNCTION, the worker writes {"ready": true}. A job is a HEADER with "timeout_s", a
tab and {"request": …, "settings": …, "arguments": …}, both JSON. FUNCTION is called with the three, the arguments as
keywords. The worker answers with one of

    {"result": …}                                                          what the result's as_dict() gives
    {"error": class name, "message": …, "ours": bool, "ends": bool}        ours: one of tsc.errors, or SUMO's own
    {"failed": "crashed", "message": …, "ends": bool}                      a process that it forked died

"ends" means that SUMO may be left half loaded, so that the worker is of no more use. End of input ends the worker.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import IO, Any, Protocol

from tsc.cost.outcome import OutcomeSettings
from tsc.errors import (
    ConfigError,
    ReplayError,
    ReplayProcessDied,
    SampleError,
    StateError,
    TscError,
    UnknownJunction,
)
from tsc.processes import forbid_writing, limit_memory
from tsc.replays.embedded_files import UnpackedFiles
from tsc.replays.request import ReplayRequest

_GRACE_S = 5.0
# errors that are raised before the first step, while files are checked or loaded: the next load starts from nothing
_ERRORS_BEFORE_SUMO_RUNS = (ConfigError, SampleError, StateError, UnknownJunction)


class Result(Protocol):
    def as_dict(self) -> dict[str, Any]: ...


# (request, settings, **arguments)
ReplayFunction = Callable[..., Result]


def _private_stdout() -> IO[bytes]:
    """The pipe to the parent. From here on, what SUMO prints on standard output goes to standard error."""
    sys.stdout.flush()
    pipe = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return pipe


def _die_with_parent(lifeline_fd: int) -> None:
    """Let the kernel end this process and its forks when the parent ends, for whatever reason, even inside a SUMO call
    that never returns. The lifeline is a pipe that nothing is written to. When the parent's end of it closes, the
    kernel sends SIGIO, which ends a process by default. (PR_SET_PDEATHSIG would not reach forks.)"""
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, -os.getpgrp())  # the worker leads its process group
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, fcntl.fcntl(lifeline_fd, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline_fd, 0)
    if poll.poll(0):  # hung up before the kernel was told to signal it
        os._exit(0)


def _answer(replay: ReplayFunction, files: UnpackedFiles, job: dict[str, Any]) -> dict[str, Any]:
    try:
        request = files.unpack(ReplayRequest.from_json(job["request"]))
        result = replay(request, OutcomeSettings(**job["settings"]), **job["arguments"]).as_dict()
        try:
            json.dumps(result, allow_nan=False)
        except ValueError:
            raise ReplayError(f"the replay gave costs that are not numbers: {result}") from None
    except ReplayProcessDied as error:
        return {"failed": "crashed", "message": files.original_names(str(error)), "ends": True}
    except Exception as error:  # whatever is raised has to reach the client, which names the state and the junction
        name, message = type(error).__name__, files.original_names(str(error))
        is_of_sumo = type(error).__module__.partition(".")[0] == "libsumo"
        if is_of_sumo:  # it would come again, as one of ours would
            name, message = ReplayError.__name__, f"SUMO stopped: {message}"
        return {
            "error": name,
            "message": message,
            "ours": is_of_sumo or isinstance(error, TscError),
            "ends": not isinstance(error, _ERRORS_BEFORE_SUMO_RUNS),
        }
    return {"result": result}


def _load(name: str) -> ReplayFunction:
    module_name, _, function_name = name.partition(":")
    function: ReplayFunction = getattr(importlib.import_module(module_name), function_name)
    return function


def main() -> None:
    _die_with_parent(int(sys.argv[2]))
    limit_memory()
    # Ctrl-C reaches every process of the terminal; the parent decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = _private_stdout()
    replay = _load(sys.argv[1])
    if sys.argv[1].startswith("tsc."):  # a user's own function may write what it likes
        forbid_writing()
    replies.write(b'{"ready": true}\n')
    files = UnpackedFiles()
    for line in sys.stdin.buffer:
        header, _, job = line.partition(b"\t")
        # the kernel ends a replay that the parent, for whatever reason, did not end
        signal.setitimer(signal.ITIMER_REAL, json.loads(header)["timeout_s"] + _GRACE_S)
        reply = _answer(replay, files, json.loads(job))
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps(reply).encode() + b"\n")
    # libsumo's destructors have nothing to save, and could still crash
    os._exit(0)


if __name__ == "__main__":
    main()
