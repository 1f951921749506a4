"""Errors that name what went wrong, where, what is allowed and the remedy.

Entry points catch `TscError` (and what another user's file raises), print its message to standard error and exit with
status 2. Anything else is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn


class TscError(Exception):
    """Base of every error that a user can act on."""


class ConfigError(TscError):
    """A configuration file, option or environment variable has a wrong value."""


class ScenarioError(TscError):
    """A SUMO scenario is missing, broken, or has nothing to control."""


class NotApplicable(TscError):
    """A controller cannot run this net; the others can."""


class SimulationClosed(TscError):
    """A SUMO that someone else runs has closed the connection: its simulation has ended, or it was stopped."""


class EndpointError(TscError):
    """A language model's server stopped answering, or refuses what it is asked."""


class SampleError(TscError):
    """A sample of a dataset breaks the contract."""


class StateError(TscError):
    """A saved simulation state is missing, damaged, or belongs to other files or another SUMO."""


class ReplayError(TscError):
    """A replay could not be carried out. Never a number."""


class ReplayProcessDied(ReplayError):
    """The process of a replay ended without an answer: SUMO crashed, or it was killed. Another attempt may succeed."""


class UnknownJunction(TscError):
    """A junction id that the net does not have, or that has no signal program with two stages."""


def nearest_spelling(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` was probably meant to be, None where none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return close[0] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question for an error message, with a blank at its end; empty where none of `known` is close to `word`."""
    nearest = nearest_spelling(word, known)
    return f"did you mean {nearest!r}? " if nearest else ""


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run an entry point; print a `TscError`, or that a file is not this user's, as `error: …` and exit with status 2,
    with 130 on Ctrl-C."""
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
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
