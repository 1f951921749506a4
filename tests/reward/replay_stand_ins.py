"""Replay functions that stand in for SUMO in a real worker process: tests name them as the pool's replay_function.

What they do is told by the request's state file, so one function can behave differently from call to call.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import sys
import time
from pathlib import Path

from tsc.cost.outcome import Outcomes, OutcomeSettings
from tsc.errors import ReplayError, ReplayProcessDied, StateError
from tsc.replays.request import ReplayRequest
from tsc.replays.stretch import Question, StretchProgress


def costs_of(state_file: str, settings: OutcomeSettings) -> Outcomes:
    """Costs that only the state and the settings decide."""
    number = int(hashlib.sha256(state_file.encode()).hexdigest()[:6], 16)
    return Outcomes(yes=float(number % 97 + settings.horizon_s), no=float(number % 89 + settings.horizon_s))


def _note_call(request: ReplayRequest) -> int:
    """Number of this call for this state, over all processes, kept in the dataset folder."""
    with Path(request.dataset_dir, f"{request.state_file}.calls").open("a") as calls:
        calls.write("x")
        return calls.tell()


def replay(request: ReplayRequest, settings: OutcomeSettings) -> Outcomes:
    call = _note_call(request)
    behaviour = request.state_file.split("-")[0]
    if behaviour == "slow":
        time.sleep(0.3)
    elif behaviour == "crash_once" and call == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    elif behaviour == "abort_once" and call == 1:
        print("terminate called after throwing an instance of 'ProcessError'", file=sys.stderr, flush=True)
        os.abort()
    elif behaviour == "fork" and call == 1:
        # a replay that forks, as one that tries both answers may; it says who it was and hangs in both processes
        with Path(request.dataset_dir, "forked.pids").open("a") as pids:
            pids.write(f"{os.fork() or os.getpid()}\n")
        time.sleep(3600)
    elif behaviour == "fork_dies" and call == 1:
        raise ReplayProcessDied("the process of a continuation was ended by signal 6")
    elif behaviour == "crash":
        print("Error: vehicle 'v7' has no route.", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    elif (behaviour == "hang_once" and call == 1) or behaviour == "hang":
        time.sleep(3600)
    elif behaviour == "hang_in_c":
        # PyDLL keeps the GIL, as a SUMO call that never returns does
        ctypes.PyDLL(None).sleep(3600)
    elif behaviour == "missing":
        raise StateError(f"state {request.state_path} does not exist")
    elif behaviour == "fatal":
        raise ReplayError("SUMO stopped: Vehicle 'v7' has no route")
    elif behaviour == "defect":
        raise KeyError("stage")
    elif behaviour == "nan":
        return Outcomes(yes=float("nan"), no=1.0)
    elif behaviour == "chatter":
        print("Step #100.00")
        sys.stdout.flush()
        os.write(1, b'Step #101.00\n{"yes": 0.0, "no": 0.0}\n')
    return costs_of(request.state_file, settings)


def play(
    request: ReplayRequest, settings: OutcomeSettings, *, decisions: list[str], num_decisions: int, prompt: str
) -> StretchProgress:
    """Always asks once more."""
    replay(request, settings)
    return StretchProgress(question=Question(prompt=({"role": "user", "content": str(decisions)},), time_s=0.0))


def replay_backwards(request: ReplayRequest, settings: OutcomeSettings) -> Outcomes:
    """Another function, with other costs."""
    outcomes = replay(request, settings)
    return Outcomes(yes=outcomes.no, no=outcomes.yes)


def note_order(request: ReplayRequest, settings: OutcomeSettings) -> Outcomes:
    """Takes 20 ms and notes who came when."""
    time.sleep(0.02)
    with Path(request.dataset_dir, "order").open("a") as order:
        order.write(f"{request.state_file}\n")
    return costs_of(request.state_file, settings)


def report_modules(request: ReplayRequest, settings: OutcomeSettings) -> Outcomes:
    """Costs of 1 for each of the modules that a worker must not have."""
    return Outcomes(yes=float("ray" in sys.modules or "torch" in sys.modules), no=float("libsumo" in sys.modules))
