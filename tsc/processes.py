"""Processes of our own: run jobs in them, end them with the process that started them, keep them from doing harm."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_libc = ctypes.CDLL(None, use_errno=True)

# linux/landlock.h; the numbers of the calls are the same on x86-64 and ARM64
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_ONLY, _PATH_BENEATH = 1, 1
_WRITE_FILE = 1 << 1
# remove and make files and folders of any kind
_CHANGE_FOLDERS = sum(1 << bit for bit in range(4, 13))
_TRUNCATE = 1 << 14

# Of addresses. A process with libsumo has 0.9 GiB before it reads a net, and 1.2 GiB with RESCO's ingolstadt21.
MAX_MEMORY_BYTES = 16 << 30


def die_with_parent(parent_id: int) -> None:
    """Let the kernel kill this process as soon as its parent ends, even if the parent is killed itself.

    parent_id: the process id of the parent. If the parent has ended already, this process ends here, with status 1.
    The kernel watches the thread that started this process, so that thread has to live as long as the parent.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_id:
        os._exit(1)


def each_in_a_process(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """Yield the result of each job as it ends. Each runs in a new process of its own, at most `workers` at once.

    Raises what a job raises. No process is left behind.
    """
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        max_tasks_per_child=1,
        initializer=die_with_parent,
        initargs=(os.getpid(),),
    )
    with pool:
        try:
            for future in as_completed([pool.submit(function, job) for job in jobs]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise


def limit_memory(max_bytes: int = MAX_MEMORY_BYTES) -> None:
    """Limit the addresses of this process and of each that it starts. One that needs more fails with a MemoryError, or
    SUMO aborts it, before the machine runs out of memory."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(
        resource.RLIMIT_AS, (max_bytes if hard == resource.RLIM_INFINITY else min(max_bytes, hard), hard)
    )


def landlock_version() -> int:
    """The version of Landlock (Linux 5.13 and later) that this process may use. Below 1: none."""
    version: int = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_ONLY)
    return version


def forbid_writing() -> bool:
    """Forbid this process and those that it starts to change any file, folder or device by its name, except /dev/null.

    Files that are open already, and files in memory, can still be written. Other threads of this process are not bound.
    For SUMO on files of others, because vehicles and additional files may name files for SUMO to write. Returns False
    if the kernel does not offer Landlock.
    """
    version = landlock_version()
    if version < 1:
        return False
    handled = struct.pack("=Q", _WRITE_FILE | _CHANGE_FOLDERS | (_TRUNCATE if version >= 3 else 0))
    ruleset = _libc.syscall(_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    null = os.open(os.devnull, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", _WRITE_FILE, null)
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if (
            ruleset < 0
            or _libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0) != 0
            or _libc.syscall(_RESTRICT_SELF, ruleset, 0) != 0
        ):
            raise OSError(ctypes.get_errno(), "cannot restrict this process with Landlock")
    finally:
        os.close(null)
        if ruleset >= 0:
            os.close(ruleset)
    return True
