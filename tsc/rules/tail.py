"""The tail: the controller that runs all junctions after a tested decision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from tsc.errors import ConfigError
from tsc.files import remembered_sha256_of
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.rules.actuated import Actuated
from tsc.rules.controller import Rule
from tsc.rules.delay_based import DelayBased
from tsc.rules.gap_out import GapOut
from tsc.rules.longest_queue import LongestQueue
from tsc.rules.max_pressure import MaxPressure
from tsc.rules.static import Static
from tsc.rules.student import Student, load_student

_TAILS: dict[str, Callable[[], Rule]] = {
    "static": Static,
    "gap_out": GapOut,
    "max_pressure": MaxPressure,
    "longest_queue": LongestQueue,
    "actuated": Actuated,
    "delay_based": DelayBased,
}


def tail_controller(name: str) -> Rule:
    """The controller of this name, one of tsc.cost.outcome.TAILS or student:FILE. Raises ConfigError if FILE is not a
    student."""
    kind, _, file = name.partition(":")
    if not file:
        return _TAILS[kind]()
    return _student(Path(file), remembered_sha256_of(Path(file)))


@lru_cache(maxsize=8)
def _student(path: Path, sha256: str) -> Student:
    return Student(load_student(path))


class Tail:
    """Decides for every junction, except for one that others have just decided. Ask it once every second."""

    def __init__(self, control: SignalControl, name: str, step_s: int | None) -> None:
        """step_s: between its decisions in a green; None for the control's green_extension_s. Raises ConfigError if it
        does not divide that, because the tail could then not follow a decision where the junction is due again."""
        extension_s = control.timing.green_extension_s
        if step_s is not None and extension_s % step_s:
            allowed = ", ".join(str(each) for each in range(1, extension_s + 1) if extension_s % each == 0)
            raise ConfigError(
                f"tail_step_s is {step_s}, but one decision is due every {extension_s} s (green_extension_s): choose a "
                f"divisor of that ({allowed})"
            )
        self._control = control
        self._controller = tail_controller(name)
        self._step_s = step_s
        self._held: str | None = None

    @property
    def remembers(self) -> bool:
        return self._controller.remembers

    def decide(self, *, decided: str | None = None, also: Sequence[str] = ()) -> dict[str, Decision]:
        """The decisions of this second.

        decided: a junction that others decide now. The tail leaves it alone until its next decision point. also: due
        junctions beside those that the control says are due.
        """
        control = self._control
        if decided is not None:
            self._held = decided
        elif self._held is not None and (not control.clocks[self._held].green or self._held in control.due_junctions()):
            self._held = None
        due = dict.fromkeys([*control.due_junctions(self._step_s), *also])
        return self._controller.decide(control, [name for name in due if name != self._held])
