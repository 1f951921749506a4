"""Call a function in a forked copy of this process. This process itself stays as it was.

A fork of a running simulation continues bit-exactly. Whatever happens to it (a crash of SUMO, memory that is not freed)
ends with it. Only for processes without other threads.
"""

from __future__ import annotations

import gc
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Generic, TypeVar

from tsc.errors import ReplayError, ReplayProcessDied, TscError
from tsc.processes import die_with_parent

Result = TypeVar("Result")


class ForkedCall(Generic[Result]):
    """A call that starts at once in a fork; result() waits for it."""

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
            raise ReplayProcessDied(f"the process of a continuation {how} before it answered")
        answer = pickle.loads(message)
        if isinstance(answer, BaseException):
            raise answer
        result: Result = answer[0]
        return result


def in_fork(function: Callable[[], Result]) -> Result:
    """Call the function in a fork and wait for its result. Raises what ForkedCall.result raises."""
    return ForkedCall(function).result()


def _call_and_exit(function: Callable[[], Result], write_end: int, parent_id: int) -> None:
    die_with_parent(parent_id)
    # a collection visits every object and so copies every page, for a process that ends soon
    gc.disable()
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
