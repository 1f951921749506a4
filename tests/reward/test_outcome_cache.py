"""One computation for each key at a time, a bound on what is kept, and the disk behind the memory."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reward.outcome_cache import OutcomeCache
from reward.outcome_store import OutcomeStore
from reward.settings import CacheSection
from tsc.cost.outcome import Outcomes, OutcomeSettings
from tsc.errors import ReplayError

SOME = Outcomes(yes=1.0, no=2.0)


def test_threads_that_ask_at_once_share_one_computation() -> None:
    cache, calls, together = OutcomeCache(), [], threading.Barrier(16)

    def compute() -> Outcomes:
        calls.append(1)
        time.sleep(0.1)
        return SOME

    def ask(_: int) -> Outcomes:
        together.wait()
        return cache.get_or_compute("key", compute)

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(ask, range(16))) == [SOME] * 16
    assert len(calls) == 1


def test_different_keys_are_computed_side_by_side() -> None:
    cache, together = OutcomeCache(), threading.Barrier(4)

    def compute() -> Outcomes:
        together.wait(timeout=10)  # passes only when all four are here
        return SOME

    with ThreadPoolExecutor(4) as threads:
        assert len(list(threads.map(lambda key: cache.get_or_compute(str(key), compute), range(4)))) == 4


def test_a_failure_reaches_all_who_wait_and_is_not_kept() -> None:
    cache, together = OutcomeCache(), threading.Barrier(4)

    def fail() -> Outcomes:
        time.sleep(0.1)
        raise ReplayError("state s1 at junction 'J4': crashed")

    def ask(_: int) -> str:
        together.wait()
        with pytest.raises(ReplayError) as caught:
            cache.get_or_compute("key", fail)
        return str(caught.value)

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(ask, range(4))) == {"state s1 at junction 'J4': crashed"}
    assert cache.get_or_compute("key", lambda: SOME) == SOME


def test_the_least_recently_used_entry_goes_first() -> None:
    cache = OutcomeCache(max_entries=2)
    for key in ("a", "b"):
        cache.get_or_compute(key, lambda: SOME)
    cache.get_or_compute("a", lambda: pytest.fail("kept"))
    cache.get_or_compute("c", lambda: SOME)
    assert len(cache) == 2
    cache.get_or_compute("a", lambda: pytest.fail("used after b"))
    computed_again = []
    cache.get_or_compute("b", lambda: computed_again.append(1) or SOME)
    assert computed_again


def store_in(folder: Path) -> OutcomeStore:
    return OutcomeStore(CacheSection(directory=folder), OutcomeSettings())


def test_the_disk_is_asked_once_and_memory_after_it(tmp_path: Path) -> None:
    OutcomeCache(store_in(tmp_path)).get_or_compute("key", lambda: SOME)
    cache = OutcomeCache(store_in(tmp_path))
    for _ in range(3):
        assert cache.get_or_compute("key", lambda: pytest.fail("kept on disk")) == SOME
    assert cache.counts == {"cache_disk_hits": 1, "cache_faults": 0}


def test_what_memory_has_no_room_for_is_read_from_the_disk(tmp_path: Path) -> None:
    cache = OutcomeCache(store_in(tmp_path), max_entries=2)
    for key in "abcd":
        cache.get_or_compute(key, lambda: SOME)
    for key in "abcd":
        assert cache.get_or_compute(key, lambda: pytest.fail("kept on disk")) == SOME
    assert len(cache) == 2


def test_a_key_that_holds_for_this_process_only_is_not_on_disk(tmp_path: Path) -> None:
    OutcomeCache(store_in(tmp_path)).get_or_compute("key", lambda: Outcomes(yes=7.0, no=7.0))
    cache = OutcomeCache(store_in(tmp_path))
    assert cache.get_or_compute("key", lambda: SOME, on_disk=False) == SOME
    assert cache.get_or_compute("other", lambda: SOME, on_disk=False) == SOME
    assert store_in(tmp_path).get("key") == Outcomes(yes=7.0, no=7.0)
    assert store_in(tmp_path).get("other") is None


def test_a_failure_is_not_kept_on_disk(tmp_path: Path) -> None:
    def fail() -> Outcomes:
        raise ReplayError("crashed")

    with pytest.raises(ReplayError):
        OutcomeCache(store_in(tmp_path)).get_or_compute("key", fail)
    assert store_in(tmp_path).get("key") is None
