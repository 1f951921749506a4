"""Outcomes kept on disk, shared by the processes of a machine, bounded in size.

A fault of the disk never stops training. An outcome that cannot be read is replayed again, and one that cannot be
written is not kept. Such faults are counted, and the first of each kind is logged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import diskcache

from reward.settings import CacheSection
from tsc.cost.outcome import Outcomes, OutcomeSettings
from tsc.files import code_digest
from tsc.sumo.version import installed_sumo_version

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# How long another process may hold the database before this one continues without it.
_BUSY_TIMEOUT_S = 5.0
# After a fault that may pass (a full disk, a stuck process), reading or writing pauses for this long, plus ten times
# the time that the fault took: diskcache waits a minute for a database that is locked while it opens.
_REST_S = 60.0

# Outcomes of other code or another SUMO go once they have not been used for so long.
_UNUSED_S = 30 * 24 * 3600.0

# Faults of the surroundings. Every other fault is one of the database itself.
_SURROUNDINGS = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
}

# A fork in the middle of a transaction would leave the child with half of it. So only one thread at a time uses the
# disk, and forks wait for it.
_disk_lock = threading.Lock()
os.register_at_fork(before=_disk_lock.acquire, after_in_parent=_disk_lock.release, after_in_child=_disk_lock.release)


class _TextDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Keeps only text, and only inside the database.

    diskcache's own class unpickles a value if its row says so, and removes the file that a row names. With it, whoever
    can write to the folder could run code here. This class does neither.
    """

    def put(self, key: str) -> tuple[str, bool]:
        return key, True

    def get(self, key: object, raw: object) -> str:
        raise TypeError("keys are looked up, never listed")

    def store(self, value: str, read: bool, key: str | None = None) -> tuple[int, int, None, str]:
        return 0, diskcache.core.MODE_RAW, None, value

    def fetch(self, mode: object, filename: object, value: object, read: bool) -> str:
        if mode != diskcache.core.MODE_RAW or type(value) is not str:
            raise ValueError(f"a row of mode {mode!r} with a value of type {type(value).__name__}")
        return value

    def remove(self, file_path: object) -> None:
        """Does nothing, because no value lies in a file."""


class _SharedCache(diskcache.Cache):  # type: ignore[misc]  # diskcache has no types
    def drop_tag_index(self) -> None:
        """Does nothing, because no database here has this index.

        diskcache's own method is the one step of opening that does not wait while another process writes.
        """


class OutcomeStore:
    """Returns exactly what was put under a key, or None. No fault of the disk raises. Safe from many threads and
    processes.

    The folder is named after the digest of the code of tsc, which decides outcomes, and the installed SUMO, so that
    outcomes of other versions are never found. In it, every database has a numbered folder of its own. If a database is
    damaged, all processes go over to the next number, and the damaged one is removed. A path is never used twice,
    because processes that use SQLite find each other's files by path.
    """

    def __init__(self, settings: CacheSection, outcome_settings: OutcomeSettings) -> None:
        directory = settings.directory or user_cache_folder() / "tsc-grpo" / "outcomes"
        self._folder = directory / f"replay-{code_digest('tsc')[:12]}-sumo-{installed_sumo_version()}"
        self._size_limit_bytes = settings.size_limit_mb * 10**6
        self._terms = outcome_settings.terms
        self._cache: diskcache.Cache | None = None
        self._number = 0
        self._rests_until_s = {"read": 0.0, "write": 0.0}
        self._num_faults = 0
        self._warned: set[str] = set()

    @property
    def num_faults(self) -> int:
        return self._num_faults

    def get(self, key: str) -> Outcomes | None:
        text = self._use("read", lambda cache: cache.get(key))
        if text is None:
            return None
        outcomes = _outcomes_in(text, key, self._terms)
        if outcomes is None:
            with _disk_lock:
                self._note("value", "an outcome kept in %s is damaged: it is replayed again", self._database_folder)
        return outcomes

    def put(self, key: str, outcomes: Outcomes) -> None:
        body = _body_of(outcomes)
        self._use("write", lambda cache: cache.set(key, f"{_checksum(key, body)} {body}"))

    def close(self) -> None:
        with _disk_lock:
            self._forget()

    def _use(self, doing: Literal["read", "write"], operation: Callable[[diskcache.Cache], _Result]) -> _Result | None:
        with _disk_lock:
            began_s = time.monotonic()
            if began_s < self._rests_until_s[doing]:
                return None
            for _ in range(2):
                was_open = self._cache is not None
                try:
                    if self._cache is None:
                        self._cache = self._open()
                    return operation(self._cache)
                except Exception as error:  # a damaged database makes diskcache raise nearly anything
                    if was_open and not os.path.isdir(self._database_folder):
                        self._forget()  # another process found it damaged, or somebody has emptied the folder
                    elif _is_damage(error):
                        self._leave_behind(error)
                    else:
                        self._note_surroundings(error)
                        break
            ended_s = time.monotonic()
            self._rests_until_s[doing] = ended_s + _REST_S + 10 * (ended_s - began_s)
            return None

    def _forget(self) -> None:
        cache, self._cache = self._cache, None
        if cache is not None:
            try:
                cache.close()  # this thread's connection; the others close when they are garbage-collected
            except sqlite3.Error as error:
                logger.debug("%s: %r", self._database_folder, error)

    def _open(self) -> diskcache.Cache:
        """The newest database, or a new one if there is none. Removes the older ones."""
        try:
            self._folder = self._folder.expanduser()
        except RuntimeError as error:  # this user does not have a home folder
            raise FileNotFoundError(str(error)) from error
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(self._folder)
        for other in self._folder.parent.glob("replay-*-sumo-*"):
            with contextlib.suppress(FileNotFoundError):  # another process removes it, too
                if other.stat().st_mtime < time.time() - _UNUSED_S:
                    shutil.rmtree(other, ignore_errors=True)
        numbers = [int(path.name) for path in self._folder.iterdir() if re.fullmatch("[0-9]{1,9}", path.name)]
        self._number = max(self._number, *numbers, 0)
        self._database_folder.mkdir(mode=0o700, exist_ok=True)
        cache = _SharedCache(
            str(self._database_folder),
            timeout=_BUSY_TIMEOUT_S,
            disk=_TextDisk,
            size_limit=self._size_limit_bytes,
            eviction_policy="least-recently-stored",
            cull_limit=10,
            statistics=0,
            tag_index=0,
            # A file that is cut short while it is mapped would kill the process; the journal "wal" maps one, too.
            sqlite_mmap_size=0,
            sqlite_journal_mode="truncate",
            sqlite_synchronous=0,  # a power failure may damage the database, which is then left behind
        )
        for number in numbers:
            if number < self._number:
                shutil.rmtree(self._folder / str(number), ignore_errors=True)
        return cache

    def _note_surroundings(self, error: Exception) -> None:
        self._note(
            "surroundings",
            "outcomes cannot be kept in %s (%r): scores are not affected, but replays are repeated; make room or "
            "set cache.directory to a local folder that you may write to",
            self._folder,
            error,
        )

    def _leave_behind(self, error: Exception) -> None:
        self._note(
            "damage",
            "the outcomes kept in %s are damaged (%r): they are removed, and the cache starts again",
            self._database_folder,
            error,
        )
        self._forget()
        self._number += 1

    def _note(self, kind: str, message: str, *arguments: object) -> None:
        self._num_faults += 1
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message, *arguments)

    @property
    def _database_folder(self) -> Path:
        return self._folder / str(self._number)


def user_cache_folder() -> Path:
    """XDG_CACHE_HOME if it is an absolute path, as the XDG Base Directory Specification says, else ~/.cache."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path("~/.cache")


def _is_damage(error: Exception) -> bool:
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF not in _SURROUNDINGS
    return not isinstance(error, OSError | MemoryError | diskcache.Timeout)


def _body_of(outcomes: Outcomes) -> str:
    return json.dumps(outcomes.as_dict(), allow_nan=False)


def _checksum(key: str, body: str) -> str:
    # SQLite does not have checksums: if a page is damaged in the middle of a number, another number is read
    return hashlib.sha256(f"{key} {body}".encode()).hexdigest()[:16]


def _outcomes_in(text: str, key: str, terms: tuple[str, ...]) -> Outcomes | None:
    """The outcomes that `put` wrote under `key`. None for any other text."""
    checksum, _, body = text.partition(" ")
    if checksum != _checksum(key, body):
        return None
    try:
        outcomes = Outcomes.from_dict(json.loads(body))
        is_exact = _body_of(outcomes) == body  # fails for NaN too
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    is_whole = tuple(outcomes.terms) == terms and not any(term.terms for term in outcomes.terms.values())
    return outcomes if is_exact and is_whole else None
