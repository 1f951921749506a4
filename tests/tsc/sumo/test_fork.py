"""Functions called in a forked copy of the process."""

import contextlib
import os
import signal
import time

import psutil
import pytest

from tsc.errors import ReplayError, ReplayProcessDied, StateError
from tsc.sumo.fork import ForkedCall, in_fork


def test_the_result_comes_back_and_the_process_stays_as_it_was() -> None:
    values = [1]

    def change() -> list[int]:
        values.append(2)
        return values

    assert in_fork(change) == [1, 2]
    assert values == [1]


def test_an_error_of_ours_keeps_its_class_and_words() -> None:
    def fail() -> None:
        raise StateError("state x is damaged")

    with pytest.raises(StateError, match="state x is damaged"):
        in_fork(fail)


def test_any_other_error_comes_with_its_traceback() -> None:
    with pytest.raises(ReplayError, match="ZeroDivisionError"):
        in_fork(lambda: 1 / 0)


def test_a_copy_that_dies_is_told_from_one_that_fails() -> None:
    with pytest.raises(ReplayProcessDied, match="signal 9"):
        in_fork(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ReplayProcessDied, match="status 3"):
        in_fork(lambda: os._exit(3))


def _kill_self_beside_a_copy(write_end: int) -> None:
    ForkedCall(signal.pause)
    (copy,) = psutil.Process().children()
    os.write(write_end, str(copy.pid).encode())
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_takes_its_copies_along() -> None:
    read_end, write_end = os.pipe()
    parent = os.fork()
    if parent == 0:
        _kill_self_beside_a_copy(write_end)
    os.waitpid(parent, 0)
    copy_pid = int(os.read(read_end, 20))
    os.close(read_end)
    os.close(write_end)
    deadline = time.monotonic() + 5
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(copy_pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
