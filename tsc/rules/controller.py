"""The interface of a controller, which decides for each junction that is due, and of a rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl


class Controller(Protocol):
    """Decides for all due junctions of one second together: a controller that asks a model can then ask once."""

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]: ...


class Rule(ABC):
    """A controller that decides for each junction by itself.

    remembers: whether it decides by more than what is on the road and the signals' clocks now.
    """

    remembers = False

    @abstractmethod
    def extends(self, control: SignalControl, junction_id: str) -> bool:
        """Whether the current green of the due junction is extended."""

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]:
        return {name: Decision.YES if self.extends(control, name) else Decision.NO for name in junction_ids}
