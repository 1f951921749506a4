"""The interface of a controller: it decides for each junction that is due."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl


class Controller(Protocol):
    """Decides for all due junctions of one second together: a controller that asks a model can then ask once."""

    def decide(self, control: SignalControl, junction_ids: Sequence[str]) -> dict[str, Decision]: ...


def yes_if(condition: bool) -> Decision:
    return Decision.YES if condition else Decision.NO
