"""Call a function in a forked copy of this process. This process itself stays as it was.

A fork of a running simulation continues bit-exactly. Whatever happens to it (a crash of SUMO, memory that is not freed)
ends with it. Only for processes without other threads.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from typing import Generic, TypeVar

from tsc.errors import ReplayError, ReplayProcessDied, TscError

Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ForkedCall(Generic[Result]):
    """A call that starts at once in a fork; result() waits for it."""

    def __init__(self, function: Callable[[], Result]) -> None:
        read_end, write_end = os.pipe()
        self._process_id = os.fork()
        if self._process_id == 0:
            os.close(read_end)
            _call_and_exit(function, write_end)
        os.close(write_end)
        self._read_end = read_end

    def result(self) -> Result:
        """The function's return value.

        Raises the function's own TscError, ReplayError with the traceback for any other exception, and
        ReplayProcessDied if the fork ended without an answer.
        """
        with os.fdopen(self._read_end, "rb") as pipe:
            message = pipe.read()
        _, status = os.waitpid(self._process_id, 0)
        if status != 0:
            code = os.waitstatus_to_exitcode(status)
            how = f"ended with status {code}" if code > 0 else f"was ended by signal {-code}"
            raise ReplayProcessDied(f"the process of a continuation {how}, without an answer")
        answer = pickle.loads(message)
        if isinstance(answer, BaseException):
            raise answer
        result: Result = answer[0]
        return result


def in_fork(function: Callable[[], Result]) -> Result:
    """Call the function in a fork and wait for its result. Raises what ForkedCall.result raises."""
    return ForkedCall(function).result()


def die_with_parent() -> None:
    """From now on, the kernel kills this process when its parent ends, for whatever reason."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _call_and_exit(function: Callable[[], Result], write_end: int) -> None:
    die_with_parent()
    answer: object
    try:
        answer = (function(),)
    except TscError as error:
        answer = error
    except BaseException:
        answer = ReplayError(f"a continuation failed:\n{traceback.format_exc()[-4000:]}")
    try:
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
    finally:
        # without the parent's exit handlers, which would close the parent's files a second time
        os._exit(0)
