"""A bound on what runs at once on one machine, over all processes of a user.

verl starts several reward processes and each has its own workers; without a common bound they would run many more
replays than there are cores, and time limits would strike for no fault of SUMO.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_RETRY_S = 0.005


class MachineSlots:
    """num_slots places, each an advisory lock on a file; the kernel frees the locks of a process that dies."""

    def __init__(self, num_slots: int, folder: Path | None = None) -> None:
        """folder: by default one for this user in the folder for temporary files."""
        self._folder = folder or Path(tempfile.gettempdir(), f"tsc-replay-slots-{os.getuid()}")
        self._paths = [self._folder / f"slot-{number}" for number in range(num_slots)]

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold one place; wait until one is free. Safe from many threads: each takes its own. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        slot_fd = self._try()
        while slot_fd is None:
            time.sleep(_RETRY_S)
            slot_fd = self._try()
        try:
            yield
        finally:
            os.close(slot_fd)

    def _try(self) -> int | None:
        for path in self._paths:
            # a descriptor of its own for each attempt, as flock() binds to it and not to the process
            slot_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(slot_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return slot_fd
            except BlockingIOError:
                os.close(slot_fd)
        return None
