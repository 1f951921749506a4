"""Outcomes that were replayed before, and one replay at a time for each that was not.

In memory, for one process. The key says everything that decides an outcome (ReplayRequest.digest), so an entry can
never be wrong, only forgotten.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from tsc.outcome import Outcomes


class OutcomeCache:
    """Least recently used entries go first once there are more than max_entries. Safe from many threads."""

    def __init__(self, max_entries: int = 200_000) -> None:
        if max_entries < 1:
            raise ValueError(f"max_entries is {max_entries}: must be at least 1")
        self._max_entries = max_entries
        self._lock = threading.Lock()
        self._outcomes: OrderedDict[str, Outcomes] = OrderedDict()
        self._in_flight: dict[str, Future[Outcomes]] = {}

    def __len__(self) -> int:
        with self._lock:
            return len(self._outcomes)

    def get_or_compute(self, key: str, compute: Callable[[], Outcomes]) -> Outcomes:
        """The outcomes under `key`, from `compute()` where there are none.

        Of several threads that ask for the same key at once, one computes and the others wait for it. What it raises
        is raised in all of them and not kept.
        """
        with self._lock:
            known = self._outcomes.get(key)
            if known is not None:
                self._outcomes.move_to_end(key)
                return known
            awaited = self._in_flight.get(key)
            if awaited is None:
                mine = self._in_flight[key] = Future()
        if awaited is not None:
            return awaited.result()
        try:
            outcomes = compute()
        except BaseException as error:  # an interrupt too has to reach those who wait
            with self._lock:
                del self._in_flight[key]
            mine.set_exception(error)
            raise
        with self._lock:
            self._outcomes[key] = outcomes
            if len(self._outcomes) > self._max_entries:
                self._outcomes.popitem(last=False)
            del self._in_flight[key]
        mine.set_result(outcomes)
        return outcomes
