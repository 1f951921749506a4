"""Live replays as a worker runs them. Imports only what a replay worker imports."""

from __future__ import annotations

import itertools
import resource
from collections.abc import Sequence
from pathlib import Path

from benchmarks.stopwatch import Cost, cost_of
from tsc.cost.outcome import OutcomeSettings
from tsc.junction.signal_control import SignalControl
from tsc.replays.replay import continue_state, replay
from tsc.replays.request import ReplayRequest
from tsc.replays.stretch_replay import play


def live_cost(requests: Sequence[ReplayRequest], settings: OutcomeSettings) -> Cost:
    """The cost of tsc.replays.replay.replay in this process, with both answers, after one replay to warm up."""
    replay(requests[0], settings)
    return cost_of(lambda: [replay(request, settings) for request in requests], len(requests))


def start_cost(requests: Sequence[ReplayRequest], settings: OutcomeSettings) -> Cost:
    """The same without the seconds that are simulated: files, the net's copy, the state loaded, the second copy."""

    def start_all() -> None:
        for request in requests:
            continue_state(request, [_nothing, _nothing], length_s=settings.horizon_s)

    start_all()
    return cost_of(start_all, len(requests))


def _nothing(_: SignalControl) -> None:
    pass


def stretch_cost(
    requests: Sequence[ReplayRequest], settings: OutcomeSettings, num_decisions: int, *, asked: bool
) -> Cost:
    """The cost of stretches whose decisions are yes and no in turn, in this process.

    asked: with a replay for every question before the last decision, as a policy is asked. Otherwise each stretch is
    one replay, as in a simulation that waits for the answers.
    """
    decisions = [("yes", "no")[number % 2] for number in range(num_decisions)]

    def play_all() -> None:
        for request in requests:
            for made in range(0 if asked else num_decisions, num_decisions + 1):
                play(request, settings, decisions=decisions[:made], num_decisions=num_decisions)

    play(requests[0], settings, decisions=decisions, num_decisions=num_decisions)
    return cost_of(play_all, len(requests))


def replay_in_circles(requests: Sequence[ReplayRequest], settings: OutcomeSettings, count: int) -> float:
    """Run `count` replays, over and over. Returns resident_mib after them."""
    for request in itertools.islice(itertools.cycle(requests), count):
        replay(request, settings)
    return resident_mib()


def resident_mib() -> float:
    """The memory of this process plus that of its largest fork so far. Memory that both share counts twice."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    largest_fork_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (pages * resource.getpagesize() / 1024 + largest_fork_kib) / 1024
