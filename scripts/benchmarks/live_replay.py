"""Live replays as a worker does them. Imports what a replay worker imports, and no more."""

from __future__ import annotations

import itertools
import resource
from collections.abc import Sequence
from pathlib import Path

from benchmarks.stopwatch import Cost, cost_of
from tsc.cost.outcome import OutcomeSettings
from tsc.replays.replay import replay
from tsc.replays.request import ReplayRequest
from tsc.replays.stretch_replay import play


def live_cost(requests: Sequence[ReplayRequest], settings: OutcomeSettings) -> Cost:
    """tsc.replays.replay.replay in this process, both answers of each, after one that warms it up."""
    replay(requests[0], settings)
    return cost_of(lambda: [replay(request, settings) for request in requests], len(requests))


def stretch_cost(
    requests: Sequence[ReplayRequest], settings: OutcomeSettings, num_decisions: int, *, asked: bool
) -> Cost:
    """Stretches of decisions in turn yes and no, in this process. asked: with a replay for every question before the
    last decision, as a policy is asked; else each in one go, as in a simulation that waits for its answers."""
    decisions = [("yes", "no")[number % 2] for number in range(num_decisions)]

    def play_all() -> None:
        for request in requests:
            for made in range(0 if asked else num_decisions, num_decisions + 1):
                play(request, settings, decisions=decisions[:made], num_decisions=num_decisions)

    play(requests[0], settings, decisions=decisions, num_decisions=num_decisions)
    return cost_of(play_all, len(requests))


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
