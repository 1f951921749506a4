"""Measure real time and CPU time."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of `num_units` units of work, such as replays.

    cpu_s: user and system time of this process and of its children that have ended.
    """

    num_units: int
    wall_s: float
    cpu_s: float

    @property
    def rate_per_s(self) -> float:
        return self.num_units / self.wall_s

    @property
    def rate_per_core_s(self) -> float:
        return self.num_units / self.cpu_s


def cpu_time_s() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def cost_of(work: Callable[[], object], num_units: int) -> Cost:
    begin, cpu_begin_s = time.perf_counter(), cpu_time_s()
    work()
    return Cost(num_units=num_units, wall_s=time.perf_counter() - begin, cpu_s=cpu_time_s() - cpu_begin_s)


def in_turn(repetitions: int, *sides: Callable[[], Cost]) -> list[list[Cost]]:
    """The costs of each side, measured as A B A B …, so that a slower machine slows both."""
    rounds = [[side() for side in sides] for _ in range(repetitions)]
    return [list(costs) for costs in zip(*rounds, strict=True)]


def loop_s() -> float:
    """The real time of a loop of five million additions: how fast a core is just now."""
    begin = time.perf_counter()
    total = 0
    for number in range(5_000_000):
        total += number
    return time.perf_counter() - begin
