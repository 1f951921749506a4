"""The rows of a conversion, of which only what is short stays in memory.

Many rows agree in most of what is asked about them. It is kept once, as the kind of these rows, so that a row takes 32
bytes.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from data_tools.dataset_split import Placed
from tsc.junction.decision import Decision
from tsc.junction.timing import Timing


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What many rows share.

    episode, side: as in Placed.
    answer: the better one; None on a tie, or if the outcomes are unknown.
    is_faithful: the mark of verify_states; None for a sample without a mark.
    num_stages: of the junction; None for a sample without an observation.
    """

    scenario: str
    episode: str
    side: str | None
    answer: Decision | None
    is_tie: bool
    is_faithful: bool | None
    junction_id: str
    prompt_version: str | None
    num_stages: int | None
    timing: Timing


class Rows:
    """Rows by number, in the order in which they were added. seed: of the values of `drawn`."""

    def __init__(self, *, seed: int) -> None:
        self._seed = seed
        self._number_of_kind: dict[Kind, int] = {}
        self._kinds: list[Kind] = []
        self._kind = array("L")
        self._time_s = array("d")  # -1: unknown
        self._state = array("Q")
        self._drawn = array("Q")

    def __len__(self) -> int:
        return len(self._kind)

    def __getitem__(self, number: int) -> Kind:
        return self._kinds[self._kind[number]]

    def add(self, kind: Kind, *, time_s: float | None, state: str, sample_id: str) -> None:
        """state: its digest or path."""
        self._kind.append(self._numbered(kind))
        self._time_s.append(-1.0 if time_s is None else time_s)
        # 64 bits tell a million states apart: two of them are taken for one with a probability of 3e-8
        self._state.append(_first_8(hashlib.blake2b(state.encode())))
        self._drawn.append(_first_8(hashlib.sha256(f"{self._seed}/balance/{sample_id}".encode())))

    def _numbered(self, kind: Kind) -> int:
        number = self._number_of_kind.setdefault(kind, len(self._kinds))
        if number == len(self._kinds):
            self._kinds.append(kind)
        return number

    def forget_side(self, number: int) -> None:
        self._kind[number] = self._numbered(replace(self[number], side=None))

    def drawn(self, number: int) -> int:
        """A random value, which depends on the sample's id and the seed alone."""
        return self._drawn[number]

    def placed(self, numbers: Iterable[int]) -> Iterator[Placed]:
        for number in numbers:
            kind, time_s = self[number], self._time_s[number]
            yield Placed(
                scenario=kind.scenario,
                episode=kind.episode,
                time_s=time_s if time_s >= 0 else None,
                state=self._state[number],
                side=kind.side,
            )


def _first_8(digest: Any) -> int:
    return int.from_bytes(digest.digest()[:8])
