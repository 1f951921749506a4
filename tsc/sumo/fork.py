"""Calls a function in a forked copy of this process, which itself stays as it was.

A forked copy continues a running simulation bit-exactly. Whatever happens to the copy (a crash of SUMO, memory that is
never freed) ends with it. Use it only in a process that has a single thread.
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from typing import Generic, TypeVar

from tsc.errors import ReplayError, ReplayProcessDied, TscError
from tsc.processes import die_with_parent

Result = TypeVar("Result")


class ForkedCall(Generic[Result]):
    """A call that starts at once. result() waits until it has ended."""

    def __init__(self, function: Callable[[], Result]) -> None:
        read_end, write_end = os.pipe()
        parent_id = os.getpid()
        self._process_id = os.fork()
        if self._process_id == 0:
            os.close(read_end)
            _call_and_exit(function, write_end, parent_id)
        os.close(write_end)
        self._read_end = read_end

    def result(self) -> Result:
        """Return what the function returned.

        Raises the function's own error if that is a TscError, and ReplayError with the traceback for any other error.
        Raises ReplayProcessDied if the copy ended without an answer.
        """
        with os.fdopen(self._read_end, "rb") as pipe:
            message = pipe.read()
        _, status = os.waitpid(self._process_id, 0)
        if status != 0:
            code = os.waitstatus_to_exitcode(status)
            how = f"ended with status {code}" if code > 0 else f"was ended by signal {-code}"
            raise ReplayProcessDied(f"the process of a continuation {how} before it answered")
        answer = pickle.loads(message)
        if isinstance(answer, BaseException):
            raise answer
        result: Result = answer[0]
        return result


def in_fork(function: Callable[[], Result]) -> Result:
    return ForkedCall(function).result()


def _call_and_exit(function: Callable[[], Result], write_end: int, parent_id: int) -> None:
    die_with_parent(parent_id)
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
        # The parent's exit handlers must not run here: they would close the parent's files a second time.
        os._exit(0)
