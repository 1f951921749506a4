"""A process that replays: `python -m reward.replay_worker MODULE:FUNCTION LIFELINE`, started by reward.replay_pool.

libsumo holds one simulation a process and is not safe from threads, hence a process. It is started afresh (never
forked, never through multiprocessing, which would run the parent's __main__ again), so it has nothing of the parent:
no Ray, no torch, no threads, no open files.

Protocol: JSON, one object a line. After the import of FUNCTION the worker says {"ready": true}. A job
{"request": …, "settings": …} is answered by {"yes": …, "no": …} or {"error": class name, "message": …, "ours": bool}.
End of input ends the worker.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import math
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import IO, Any

from tsc.errors import ReplayError, TscError
from tsc.outcome import Outcomes, OutcomeSettings
from tsc.replay_request import ReplayRequest

_GRACE_S = 5.0

ReplayFunction = Callable[[ReplayRequest, OutcomeSettings], Outcomes]


def _private_stdout() -> IO[bytes]:
    """The pipe to the parent; what SUMO prints on standard output goes to standard error from here on."""
    sys.stdout.flush()
    pipe = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return pipe


def _die_with_parent(lifeline_fd: int) -> None:
    """Let the kernel end this process when the parent's end of the lifeline, a pipe that nothing is written to, closes
    for whatever reason; even inside a SUMO call that never returns. SIGIO does it, which ends a process by default.
    (PR_SET_PDEATHSIG would kill the worker already when the *thread* that started it ends.)"""
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, fcntl.fcntl(lifeline_fd, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline_fd, 0)
    if poll.poll(0):  # hung up before the kernel was told to signal it
        os._exit(0)


def _answer(replay: ReplayFunction, job: dict[str, Any]) -> dict[str, Any]:
    try:
        outcomes = replay(ReplayRequest.from_json(job["request"]), OutcomeSettings(**job["settings"]))
        if not (math.isfinite(outcomes.yes) and math.isfinite(outcomes.no)):
            raise ReplayError(f"the replay ended in costs that are no numbers: yes {outcomes.yes}, no {outcomes.no}")
    except TscError as error:
        return {"error": type(error).__name__, "message": str(error), "ours": True}
    except Exception as error:  # whatever SUMO raises has to reach the parent, which names the state and the junction
        return {"error": type(error).__name__, "message": str(error), "ours": False}
    return outcomes.as_dict()


def _load(name: str) -> ReplayFunction:
    module_name, _, function_name = name.partition(":")
    function: ReplayFunction = getattr(importlib.import_module(module_name), function_name)
    return function


def main() -> None:
    _die_with_parent(int(sys.argv[2]))
    # Ctrl-C reaches every process of the terminal; the parent decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = _private_stdout()
    replay = _load(sys.argv[1])
    replies.write(b'{"ready": true}\n')
    for line in sys.stdin.buffer:
        job = json.loads(line)
        # the kernel ends a replay that the parent, for what reason ever, did not end
        signal.setitimer(signal.ITIMER_REAL, job["timeout_s"] + _GRACE_S)
        reply = _answer(replay, job)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps(reply).encode() + b"\n")
    # libsumo's destructors have nothing to save, and could still crash
    os._exit(0)


if __name__ == "__main__":
    main()
