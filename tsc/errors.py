"""Errors that name what went wrong, where, what is allowed and the remedy.

Entry points run through `run_main`. It catches `TscError` (and an OSError for another user's file or a full disk),
prints the message to standard error and exits with status 2. Any other exception is a bug of ours and keeps its
traceback.
"""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

# of an OSError: no space left, a quota is used up, a file is too large for the file system
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TscError(Exception):
    """Base of every error that a user can act on."""


class ConfigError(TscError):
    """A configuration file, option or environment variable has a wrong value."""


class ScenarioError(TscError):
    """A SUMO scenario is missing, broken, or has nothing to control."""


class NotApplicable(TscError):
    """A controller cannot run this net. Other controllers can."""


class SimulationClosed(TscError):
    """A SUMO that someone else runs has closed the connection: its simulation ended, or it was stopped."""


class EndpointError(TscError):
    """A language model's server stopped answering, or refuses a request."""


class SampleError(TscError):
    """A sample of a dataset breaks the contract."""


class StateError(TscError):
    """A saved simulation state is missing, damaged, or belongs to other files or another SUMO."""


class ReplayError(TscError):
    """A replay could not be carried out. A failed replay never becomes a number."""


class ReplayProcessDied(ReplayError):
    """The process of a replay ended without an answer: SUMO crashed, or it was killed. Another attempt may succeed."""


class UnknownJunction(TscError):
    """The net does not have this junction, or the junction has no signal program with two stages."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question for an error message, with a blank at its end; empty if no word of `known` is close to `word`."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run an entry point and exit with its status.

    A `TscError`, a file that this user may not use, or a full disk, is printed as `error: …` and gives status 2; Ctrl-C
    gives 130.
    """
    try:
        sys.exit(main() or 0)
    except TscError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except PermissionError as error:
        if error.filename is None:
            raise
        print(
            f"error: user {os.getuid()} may not read or write {error.filename}: give it the rights, or choose another",
            file=sys.stderr,
        )
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        where = error.filename or "a file"
        print(
            f"error: cannot write {where}: {error.strerror}: make room, and run the same command again", file=sys.stderr
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
