"""Outcomes on disk: shared, bounded, and never wrong, whatever happens to the folder."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import multiprocessing
import os
import pickle
import random
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest

import reward.outcome_store as module
from reward.outcome_store import OutcomeStore
from reward.settings import CacheSection
from tsc.cost.outcome import Outcomes, OutcomeSettings

SOME = Outcomes(yes=90.5, no=1 / 3)


def costs_of(key: str) -> Outcomes:
    """What a replay of this key would give; a value that belongs to another key is seen at once."""
    number = int(hashlib.sha256(key.encode()).hexdigest()[:12], 16)
    return Outcomes(yes=number / 7, no=number / 3)


def key_of(number: int) -> str:
    return f"{number:064x}"


def open_store(folder: Path, size_limit_mb: int = 256) -> OutcomeStore:
    return OutcomeStore(CacheSection(directory=folder, size_limit_mb=size_limit_mb), OutcomeSettings())


def databases(folder: Path) -> list[Path]:
    return sorted(folder.rglob("cache.db"))


def fill(store: OutcomeStore, num_keys: int) -> None:
    for number in range(num_keys):
        store.put(key_of(number), costs_of(key_of(number)))


def num_right(store: OutcomeStore, num_keys: int) -> int:
    """How many of the keys are there; a wrong value fails the test."""
    found = {key_of(number): store.get(key_of(number)) for number in range(num_keys)}
    there = {key: outcomes for key, outcomes in found.items() if outcomes is not None}
    assert there == {key: costs_of(key) for key in there}
    return len(there)


def in_new_process(function: Callable[..., object], *arguments: object) -> object:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as processes:
        return processes.submit(function, *arguments).result(timeout=120)


# What is kept, and for whom


@pytest.mark.parametrize(
    "outcomes",
    [
        SOME,
        Outcomes(yes=0.0, no=0.0),
        Outcomes(yes=5e-324, no=1.7976931348623157e308),
        Outcomes(yes=0.1 + 0.2, no=-1.0),
    ],
)
def test_another_process_reads_exactly_what_was_written(tmp_path: Path, outcomes: Outcomes) -> None:
    open_store(tmp_path).put("key", outcomes)
    assert in_new_process(_get, tmp_path, "key") == outcomes
    assert in_new_process(_get, tmp_path, "another key") is None


def _get(folder: Path, key: str) -> Outcomes | None:
    return open_store(folder).get(key)


def test_costs_of_further_measures_are_kept_with_them(tmp_path: Path) -> None:
    settings = OutcomeSettings(terms=("waiting_time_s", "time_loss_s"))
    outcomes = Outcomes(yes=1.0, no=2.0, terms={name: Outcomes(yes=3.5, no=4.5) for name in settings.terms})
    OutcomeStore(CacheSection(directory=tmp_path), settings).put("key", outcomes)
    assert OutcomeStore(CacheSection(directory=tmp_path), settings).get("key") == outcomes
    without_terms = open_store(tmp_path)
    assert without_terms.get("key") is None


def test_outcomes_of_another_sumo_or_another_replay_code_are_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(tmp_path).put("key", SOME)
    with monkeypatch.context() as changed:
        changed.setattr(module, "installed_sumo_version", lambda: "1.29.0")
        assert open_store(tmp_path).get("key") is None
    with monkeypatch.context() as changed:
        changed.setattr(module, "code_digest", lambda *packages: "0" * 64)
        assert open_store(tmp_path).get("key") is None
    assert open_store(tmp_path).get("key") == SOME


def test_outcomes_of_other_code_go_when_nobody_uses_them(tmp_path: Path) -> None:
    old, recent = tmp_path / "replay-5-sumo-1.27.0", tmp_path / "replay-abc-sumo-1.28.0"
    for folder, age_days in ((old, 31), (recent, 29)):
        folder.mkdir()
        os.utime(folder, times=(time.time() - age_days * 86400,) * 2)
    open_store(tmp_path).put("key", SOME)
    assert not old.exists()
    assert recent.exists()


def test_without_a_directory_the_users_cache_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder_of_default_store() -> Path:
        store = OutcomeStore(CacheSection(), OutcomeSettings())
        store.put("key", SOME)
        (database,) = databases(tmp_path)
        found = database.relative_to(tmp_path).parents[2]
        store.close()
        database.unlink()
        return found

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert folder_of_default_store() == Path("mine/tsc-grpo/outcomes")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert folder_of_default_store() == Path("home/.cache/tsc-grpo/outcomes")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert folder_of_default_store() == Path("home/.cache/tsc-grpo/outcomes")


def test_nothing_is_written_before_it_is_needed(tmp_path: Path) -> None:
    open_store(tmp_path / "cache").close()
    assert list(tmp_path.iterdir()) == []


def test_only_the_owner_may_enter_the_folder(tmp_path: Path) -> None:
    open_store(tmp_path).put("key", SOME)
    (database,) = databases(tmp_path)
    assert [folder.stat().st_mode & 0o077 for folder in database.parents[:2]] == [0, 0]


def test_the_size_stays_within_its_limit_and_the_oldest_go_first(tmp_path: Path) -> None:
    store = open_store(tmp_path, size_limit_mb=1)
    fill(store, 6000)
    assert 1000 < num_right(store, 6000) < 5000
    assert store.get(key_of(0)) is None
    assert store.get(key_of(5999)) == costs_of(key_of(5999))
    store.close()
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 1.1e6
    assert store.num_faults == 0


# What a folder holds is not trusted


class _Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.file,)


def _write_row(folder: Path, key: str, **columns: object) -> None:
    (database,) = databases(folder)
    with sqlite3.connect(database) as connection:
        assignments = ", ".join(f"{name} = ?" for name in columns)
        changed = connection.execute(f"UPDATE Cache SET {assignments} WHERE key = ?", (*columns.values(), key))
        assert changed.rowcount == 1
    connection.close()


def test_a_pickle_in_the_database_is_never_loaded(tmp_path: Path) -> None:
    open_store(tmp_path).put("key", SOME)
    ran = tmp_path / "ran"
    payload = pickle.dumps(_Payload(ran))
    _write_row(tmp_path, "key", mode=4, value=payload)
    assert open_store(tmp_path).get("key") is None
    assert not ran.exists()
    pickle.loads(payload)
    assert ran.exists()  # so it would have been seen


@pytest.mark.parametrize("mode", [2, 3, 4])
def test_a_row_cannot_name_a_file_to_be_read_or_removed(tmp_path: Path, mode: int) -> None:
    folder, other = tmp_path / "cache", tmp_path / "other.txt"
    body = json.dumps(SOME.as_dict())
    other.write_text(f"{module._checksum('key', body)} {body}")
    open_store(folder).put("key", SOME)
    _write_row(folder, "key", mode=mode, value=None, filename=str(other))
    store = open_store(folder)
    assert store.get("key") is None
    store.put("key", SOME)
    assert store.get("key") == SOME
    assert other.exists()


def _signed(body: str, key: str = "key") -> str:
    return f"{module._checksum(key, body)} {body}"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "yes",
        '{"yes": 90.5, "no": 1.0}',  # no checksum
        _signed('{"yes": 90.5, "no": 1.0}').replace("90.5", "98.5"),  # one damaged digit
        _signed('{"yes": 90.5, "no": 1.0}', key="another key"),
        _signed('{"yes": NaN, "no": 1.0}'),
        _signed('{"yes": Infinity, "no": 1.0}'),
        _signed('{"yes": 1e999, "no": 1.0}'),
        _signed('{"yes": true, "no": 1.0}'),
        _signed('{"yes": "90.5", "no": 1.0}'),
        _signed('{"yes": null, "no": 1.0}'),
        _signed('{"yes": [90.5], "no": 1.0}'),
        _signed('{"yes": 90.5}'),
        _signed('{"yes": 90.5, "no": 1.0, "maybe": 2.0}'),
        _signed('{"yes": 90.5, "no": 1.0, "terms": {"co2_g": {"yes": 1.0, "no": 1.0}}}'),
        _signed('{"yes": 90.5, "no": 1.0, "terms": 7}'),
        _signed("[90.5, 1.0]"),
        _signed("[" * 100_000),
        _signed('{"yes": ' + "9" * 10_000 + ', "no": 1.0}'),
        b"\x00\xff",
        90.5,
        None,
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_value_that_was_not_written_so_is_not_used_and_is_replaced(
    tmp_path: Path, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    open_store(tmp_path).put("key", SOME)
    _write_row(tmp_path, "key", value=value)
    store = open_store(tmp_path)
    with caplog.at_level(logging.WARNING, "reward"):
        assert [store.get("key") for _ in range(3)] == [None] * 3
    assert store.num_faults >= 1
    assert len(caplog.records) == 1 and "damaged" in caplog.text
    store.put("key", SOME)
    assert open_store(tmp_path).get("key") == SOME


# Damage


def _overwrite_at_random(database: Path, seed: int) -> None:
    generator = random.Random(seed)
    with database.open("r+b") as file:
        size = database.stat().st_size
        for _ in range(generator.choice([1, 20, 400])):
            file.seek(generator.randrange(size))
            file.write(generator.randbytes(generator.choice([1, 64, 4096])))


def _only_noise(database: Path) -> None:
    database.write_bytes(random.Random(1).randbytes(100_000))


def _without_tables(database: Path) -> None:
    database.unlink()
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE Cache (other TEXT)")
    connection.close()


DAMAGES = {
    "noise": _only_noise,
    "another database": _without_tables,
    "empty": partial(os.truncate, length=0),
    "cut within the header": partial(os.truncate, length=50),
    "cut to one page": partial(os.truncate, length=4096),
    "cut in the middle": partial(os.truncate, length=50_000),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_database_is_left_behind_for_a_new_one(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path)
    fill(store, 400)
    store.close()
    (database,) = databases(tmp_path)
    damage(database)
    store = open_store(tmp_path)
    with caplog.at_level(logging.WARNING, "reward"):
        assert num_right(store, 400) < 400
        fill(store, 400)
        assert num_right(store, 400) == 400
    assert num_right(open_store(tmp_path), 400) == 400
    assert len(databases(tmp_path)) == 1  # the damaged one is gone
    assert len(caplog.records) <= 1
    if store.num_faults:
        assert "are damaged" in caplog.text and "starts again" in caplog.text


@pytest.mark.parametrize("seed", range(12))
def test_bytes_that_change_in_the_file_never_change_a_value(tmp_path: Path, seed: int) -> None:
    store = open_store(tmp_path)
    fill(store, 400)
    store.close()
    (database,) = databases(tmp_path)
    _overwrite_at_random(database, seed)
    store = open_store(tmp_path)
    num_right(store, 400)
    fill(store, 400)
    num_right(store, 400)
    fill(store, 400)
    assert num_right(store, 400) == 400


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_while_the_database_is_open_is_survived(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    # in a process of its own, for a crash would be one of SQLite's C code
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as processes:
        processes.submit(_damage_an_open_database, tmp_path, damage).result(timeout=120)


def _damage_an_open_database(folder: Path, damage: Callable[[Path], None]) -> None:
    store = open_store(folder)
    fill(store, 400)
    (database,) = databases(folder)
    # SQLite maps no file: one that is cut short while it is mapped kills every process that reads it
    assert {path.name for path in database.parent.iterdir()} <= {"cache.db", "cache.db-journal"}
    damage(database)
    for _ in range(2):
        num_right(store, 400)
        fill(store, 400)
    assert num_right(store, 400) == 400


def test_processes_agree_on_the_database_that_replaces_a_damaged_one(tmp_path: Path) -> None:
    here, there = open_store(tmp_path), open_store(tmp_path)
    fill(here, 100)
    assert num_right(there, 100) == 100
    _only_noise(databases(tmp_path)[0])
    here.close()  # and is opened again, as in a process that starts now
    fill(here, 100)
    thread = threading.Thread(target=fill, args=(there, 200))  # a new thread has a new connection
    thread.start()
    thread.join()
    assert num_right(here, 200) == num_right(open_store(tmp_path), 200) == 200
    assert len(databases(tmp_path)) == 1


def test_a_folder_that_is_emptied_while_in_use_is_made_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, 10)
    (database,) = databases(tmp_path)
    for file in database.parent.iterdir():
        file.unlink()
    database.parent.rmdir()
    thread = threading.Thread(target=fill, args=(store, 20))
    thread.start()
    thread.join()
    assert num_right(open_store(tmp_path), 20) == 20


# A folder that cannot be used


def _assert_bypassed(store: OutcomeStore, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "reward"):
        for _ in range(3):
            store.put("key", SOME)
            assert store.get("key") is None
    assert store.num_faults == 2  # one reading, one writing; then it is left alone for a while
    assert len(caplog.records) == 1 and "scores are not affected" in caplog.text


def test_a_folder_that_is_a_file_is_bypassed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("mine")
    _assert_bypassed(open_store(tmp_path / "cache"), caplog)
    assert (tmp_path / "cache").read_text() == "mine"


def test_a_database_that_is_a_folder_is_bypassed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_store(tmp_path).put("key", SOME)
    (database,) = databases(tmp_path)
    for file in database.parent.iterdir():
        file.unlink()
    database.mkdir()
    _assert_bypassed(open_store(tmp_path), caplog)


def test_a_user_without_a_home_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_home(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", no_home)
    _assert_bypassed(OutcomeStore(CacheSection(), OutcomeSettings()), caplog)
    assert "set cache.directory" in caplog.text


def test_a_folder_without_permission_is_bypassed(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o000)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as processes:
        assert processes.submit(_use_without_rights, tmp_path / "closed").result(timeout=60) == 2


def _use_without_rights(folder: Path) -> int:
    if os.geteuid() == 0:  # for root, no folder is closed
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    store = open_store(folder)
    for _ in range(3):
        store.put("key", SOME)
        assert store.get("key") is None
    return store.num_faults


def test_a_full_disk_costs_no_more_than_what_is_not_kept(tmp_path: Path) -> None:
    # a limit on the size of files stands in for the disk; it needs no rights and fails at the same calls
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as processes:
        num_kept, num_faults, num_messages = processes.submit(_fill_a_small_disk, tmp_path).result(timeout=120)
    assert 0 < num_kept < 3000
    assert num_faults > 0 and num_messages == 1
    store = open_store(tmp_path)  # there is room again
    assert num_right(store, 3000) > 0
    fill(store, 3000)
    assert num_right(store, 3000) == 3000
    assert store.num_faults == 0


def _fill_a_small_disk(folder: Path) -> tuple[int, int, int]:
    messages: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = messages.append  # type: ignore[method-assign]
    logging.getLogger("reward").addHandler(handler)
    module._REST_S = 0.0
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    store = open_store(folder)
    fill(store, 3000)
    return num_right(store, 3000), store.num_faults, len(messages)


def test_a_disk_that_is_full_from_the_start_is_bypassed(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as processes:
        assert processes.submit(_use_a_full_disk, tmp_path).result(timeout=60) == 2


def _use_a_full_disk(folder: Path) -> int:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    store = open_store(folder)
    for _ in range(3):
        store.put("key", SOME)
        assert store.get("key") is None
    return store.num_faults


def test_a_process_that_holds_the_database_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_BUSY_TIMEOUT_S", 0.2)
    store = open_store(tmp_path)
    fill(store, 10)
    (database,) = databases(tmp_path)
    stuck = sqlite3.connect(database, isolation_level=None)
    stuck.execute("BEGIN IMMEDIATE")
    began_s = time.monotonic()
    assert num_right(store, 10) == 10  # reading needs no lock
    fill(store, 20)
    assert time.monotonic() - began_s < 5
    assert store.num_faults == 1 and len(caplog.records) == 1
    stuck.execute("ROLLBACK")
    stuck.close()
    fill(open_store(tmp_path), 20)
    assert num_right(store, 20) == 20


# Several processes, and kills


def _hammer(folder: Path, seed: int, num_keys: int, num_rounds: int) -> tuple[int, int]:
    """Wrong values, faults."""
    generator, num_wrong, stores = random.Random(seed), 0, [open_store(folder)]
    for round_ in range(num_rounds):
        if round_ % 50 == 49:  # opens while others write
            stores[-1].close()
            stores.append(open_store(folder))
        store, key = stores[-1], key_of(generator.randrange(num_keys))
        found = store.get(key)
        if found is None:
            store.put(key, costs_of(key))
        else:
            num_wrong += found != costs_of(key)
    return num_wrong, sum(store.num_faults for store in stores)


@pytest.mark.parametrize("num_keys", [20, 5000])
def test_trainings_that_share_a_folder_read_right_values(tmp_path: Path, num_keys: int) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as processes:
        done = [processes.submit(_hammer, tmp_path, seed, num_keys, 1000) for seed in range(4)]
        assert [future.result(timeout=120) for future in done] == [(0, 0)] * 4
    assert num_right(open_store(tmp_path), num_keys) > 0.3 * num_keys


def test_threads_share_a_store(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    threads = [threading.Thread(target=fill, args=(store, 100)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert num_right(store, 100) == 100
    assert store.num_faults == 0


def test_a_fork_in_the_midst_of_writing_harms_neither_side(tmp_path: Path) -> None:
    store, stop = open_store(tmp_path), threading.Event()

    def write() -> None:
        while not stop.is_set():
            fill(store, 300)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        children = [
            multiprocessing.get_context("fork").Process(target=_write_in_a_fork, args=(store, n)) for n in range(8)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(timeout=60)
        assert [child.exitcode for child in children] == [0] * 8
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert num_right(store, 300) == num_right(open_store(tmp_path), 300) == 300
    assert store.num_faults == 0


def _write_in_a_fork(store: OutcomeStore, number: int) -> None:
    for key in range(1000 * number, 1000 * number + 50):
        store.put(key_of(key), costs_of(key_of(key)))
        assert store.get(key_of(key)) == costs_of(key_of(key))
    assert store.num_faults == 0


def _write_for_ever(folder: Path, number: int) -> None:
    store = open_store(folder, size_limit_mb=1)
    while True:
        store.put(key_of(number), costs_of(key_of(number)))
        number += 1


def test_kills_in_the_midst_of_writing_leave_right_values(tmp_path: Path) -> None:
    generator = random.Random(1)
    for kill in range(12):
        writer = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(tmp_path, 1000 * kill))
        writer.start()
        time.sleep(generator.random() * 0.4)  # the first kills fall into the making of the database
        writer.kill()
        writer.join()
        store = open_store(tmp_path, size_limit_mb=1)
        num_found = num_right(store, 1000 * (kill + 1))
        assert store.num_faults == 0
        store.close()
    assert num_found > 0
    (database,) = databases(tmp_path)
    connection = sqlite3.connect(database)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_costs_that_are_no_numbers_are_not_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.put("key", Outcomes(yes=math.nan, no=1.0))
    assert store.get("key") is None
