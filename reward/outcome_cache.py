"""Keeps outcomes that were replayed before, and replays each missing one only once at a time.

Outcomes are kept in memory, and on disk if there is a store. The key covers everything that decides an outcome
(ReplayRequest.digest), so an entry can never be wrong, only missing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

Kept = TypeVar("Kept")


class Store(Protocol[Kept]):
    """What reward.outcome_store.OutcomeStore offers."""

    @property
    def num_faults(self) -> int: ...

    def get(self, key: str) -> Kept | None: ...

    def put(self, key: str, outcomes: Kept) -> None: ...

    def close(self) -> None: ...


class OutcomeCache(Generic[Kept]):
    """Once there are more than max_entries in memory (some 0.5 kB each), the least recently used one is forgotten.
    Safe from many threads."""

    def __init__(self, store: Store[Kept] | None = None, max_entries: int = 100_000) -> None:
        if max_entries < 1:
            raise ValueError(f"max_entries is {max_entries}: must be at least 1")
        self._store = store
        self._max_entries = max_entries
        self._lock = threading.Lock()
        self._outcomes: OrderedDict[str, Kept] = OrderedDict()
        self._in_flight: dict[str, Future[Kept]] = {}
        self._num_disk_hits = 0

    def __len__(self) -> int:
        with self._lock:
            return len(self._outcomes)

    def get_or_compute(self, key: str, compute: Callable[[], Kept], *, on_disk: bool = True) -> Kept:
        """The outcomes under `key`, from `compute()` if none are kept.

        If several threads ask for the same key at once, one computes and the others wait for it. An exception is raised
        in all of them and is not kept. on_disk: False if `key` is valid in this process only.
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
        store = self._store if on_disk else None
        try:
            stored = store.get(key) if store else None
            outcomes = compute() if stored is None else stored
        except BaseException as error:  # an interrupt, too, has to reach the threads that wait
            with self._lock:
                del self._in_flight[key]
            mine.set_exception(error)
            raise
        with self._lock:
            self._num_disk_hits += stored is not None
            self._outcomes[key] = outcomes
            if len(self._outcomes) > self._max_entries:
                self._outcomes.popitem(last=False)
            del self._in_flight[key]
        mine.set_result(outcomes)
        if store and stored is None:
            store.put(key, outcomes)  # after set_result: nobody waits for the disk
        return outcomes

    @property
    def counts(self) -> dict[str, int]:
        """Totals since the start: cache_disk_hits, the outcomes that were read from disk (and are then kept in memory),
        and cache_faults."""
        with self._lock:
            num_disk_hits = self._num_disk_hits
        return {"cache_disk_hits": num_disk_hits, "cache_faults": self._store.num_faults if self._store else 0}

    def close(self) -> None:
        if self._store:
            self._store.close()
