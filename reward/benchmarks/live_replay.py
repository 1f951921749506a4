"""Live replays as a worker does them. Imports what a replay worker imports, and no more."""

from __future__ import annotations

import itertools
import resource
from collections.abc import Sequence
from pathlib import Path

from reward.benchmarks.stopwatch import Cost, cost_of
from tsc.outcome import OutcomeSettings
from tsc.replay import replay
from tsc.replay_request import ReplayRequest


def live_cost(requests: Sequence[ReplayRequest], settings: OutcomeSettings) -> Cost:
    """tsc.replay.replay in this process, both answers of each, after one that warms it up."""
    replay(requests[0], settings)
    return cost_of(lambda: [replay(request, settings) for request in requests], len(requests))


def replay_in_circles(requests: Sequence[ReplayRequest], settings: OutcomeSettings, count: int) -> float:
    """`count` replays over and over; resident_mib after them."""
    for request in itertools.islice(itertools.cycle(requests), count):
        replay(request, settings)
    return resident_mib()


def resident_mib() -> float:
    """Of this process, and of the largest that it forked so far; what the two share counts twice."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    largest_fork_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (pages * resource.getpagesize() / 1024 + largest_fork_kib) / 1024
