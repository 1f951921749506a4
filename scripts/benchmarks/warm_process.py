"""A process that keeps its state between the functions called in it. libsumo has one simulation per process.

It imports only the modules of these functions, so that a replay in it costs as much as in a replay worker: the more a
process has loaded, the longer a fork takes.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from benchmarks import with_benchmarks
from tsc.errors import ReplayProcessDied
from tsc.processes import die_with_parent

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class WarmProcess:
    """Calls one function at a time. The function, its arguments and its result must be picklable."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.warm_process", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=with_benchmarks(),
        )

    def call(
        self, function: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
    ) -> Result:
        """The function's result. Raises what the function raises, and ReplayProcessDied if the process has ended."""
        calls, answers = self._process.stdin, self._process.stdout
        assert calls is not None and answers is not None
        pickle.dump((function, arguments, options), calls)
        calls.flush()
        result: Result
        try:
            result, error = pickle.load(answers)
        except EOFError:
            status = self._process.wait()
            if status == -signal.SIGINT:
                raise KeyboardInterrupt from None
            raise ReplayProcessDied(f"a process of the benchmark ended with status {status}") from None
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@contextmanager
def warm_processes(count: int) -> Iterator[list[WarmProcess]]:
    processes = [WarmProcess() for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.close()


def main() -> None:
    # Ctrl-C reaches every process of the terminal, and ends this one without a word.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with_parent(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # SUMO's output goes to standard error
    while True:
        answer: tuple[Any, BaseException | None]
        try:
            function, arguments, options = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = function(*arguments, **options), None
        except Exception as error:  # the parent raises it
            answer = None, error
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
