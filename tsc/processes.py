"""Processes that end with the process that started them."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent_id: int) -> None:
    """Let the kernel kill this process as soon as its parent ends, even if the parent is killed itself.

    parent_id: the process id of the parent. If the parent has ended already, this process ends here, with status 1.
    The kernel watches the thread that started this process, so that thread has to live as long as the parent.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_id:
        os._exit(1)
