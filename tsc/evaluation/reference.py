"""The reference of a scenario: the controller that its other controllers are compared with.

By default it is the best classical controller of the scenario, chosen on validation seeds. It is not chosen on the
evaluation seeds: the smallest of several means is partly luck, and on the seeds of the results this luck would make the
reference look better than it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from tsc.controllers.registry import CLASSICAL
from tsc.errors import ConfigError

BEST_CLASSICAL = "best_classical"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The controller that the others are compared with.

    delays_s: the mean delay of each candidate over `seeds`, the smallest first, in s per vehicle. Both are empty if
    there was nothing to choose.
    """

    name: str
    delays_s: Mapping[str, float] = field(default_factory=dict)
    seeds: Sequence[int] = ()


def reference_candidates(asked: str, names: Sequence[str]) -> list[str]:
    """The controllers among which the reference of each scenario is chosen: the one asked for, or, for BEST_CLASSICAL,
    the classical ones of `names`. Raises ConfigError if none of them takes part."""
    if asked != BEST_CLASSICAL:
        if asked not in names:
            raise ConfigError(
                f"the reference {asked!r} does not take part: choose --reference from {BEST_CLASSICAL}, "
                f"{', '.join(names)}; or add it to --controllers"
            )
        return [asked]
    classical = [name for name in names if name in CLASSICAL]
    if not classical:
        raise ConfigError(
            f"no classical controller takes part ({', '.join(names)}), but the reference is the best of them: add one "
            f"of {', '.join(CLASSICAL)} to --controllers (a training's EVAL_CONTROLLERS), or name the reference, as in "
            f"--reference {names[0]}"
        )
    return classical


def best_of(candidates: Sequence[str], episodes: Sequence[Mapping[str, Any]]) -> Reference:
    """The candidate with the smallest mean of `delay_s`, which counts unfinished trips and vehicles that wait to enter.

    episodes: the records of one scenario on validation seeds, in any order. A candidate that one of them says nothing
    of (it is not applicable, or no vehicle was counted) is not chosen. If no candidate is left, the first is taken.
    """
    delays_s = {}
    for name in candidates:
        of_candidate = [record for record in episodes if record["controller"] == name]
        if of_candidate and all(record.get("delay_s") is not None for record in of_candidate):
            delays_s[name] = fmean(record["delay_s"] for record in of_candidate)
    ranked = dict(sorted(delays_s.items(), key=lambda item: item[1]))
    return Reference(
        name=next(iter(ranked), candidates[0]),
        delays_s=ranked,
        seeds=sorted({record["seed"] for record in episodes if record["controller"] in ranked}),
    )
