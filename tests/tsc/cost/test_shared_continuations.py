"""Shared continuations against continuations that are each forked alone."""

from pathlib import Path

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.cost import shared_continuations
from tsc.cost.continuation import continuations_by_fork
from tsc.cost.outcome import OutcomeSettings
from tsc.cost.shared_continuations import SharedContinuations
from tsc.junction.signal_control import SignalControl
from tsc.junction.timing import Timing
from tsc.rules.max_pressure import MaxPressure
from tsc.rules.random_choice import Random
from tsc.scenarios.scenario import build_demand, build_net, load_scenario
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation

# of an episode: under max-pressure at first, then at random
SECONDS = 160


def _forks_and_decisions(files: SumoFiles, settings: OutcomeSettings, asked_each: int) -> tuple[int, int]:
    """How often the simulation was forked for how many decisions. asked_each: of decision points, every n-th is asked.

    Raises AssertionError if a continuation differs from one that is forked alone.
    """
    forked, forks = shared_continuations._forked, 0

    def counted(function):  # type: ignore[no-untyped-def]
        nonlocal forks
        forks += 1
        return forked(function)

    shared_continuations._forked = counted
    control = SignalControl(Simulation(files), Timing())
    control.start()
    shared = SharedContinuations(control, settings)
    random, points, decisions = Random(3), 0, 0
    for second in range(SECONDS):
        due = control.due_junctions()
        points += bool(due)
        if due and points % asked_each == 0:
            alone = {name: continuations_by_fork(control, name, settings) for name in due}
            assert shared.of(due) == alone, f"at {second} s"
            decisions += len(due)
        behaviour = MaxPressure() if second < SECONDS / 2 else random
        answers = behaviour.decide(control, due)
        shared.chose(answers)
        control.advance(answers)
    return forks, decisions


@pytest.mark.parametrize(
    ("tail", "step_s", "measure", "asked_each"),
    [
        ("max_pressure", None, "queue_veh_s", 1),
        ("max_pressure", None, "longest_wait_s", 2),
        ("gap_out", 1, "waiting_time_s", 1),
        ("static", None, "switches", 1),
    ],
)
def test_a_later_decision_of_a_lone_junction_is_known_from_an_earlier_one(
    files: SumoFiles, tail: str, step_s: int | None, measure: str, asked_each: int
) -> None:
    settings = OutcomeSettings(horizon_s=30, tail=tail, tail_step_s=step_s, measure=measure)
    forks, decisions = in_new_process(_forks_and_decisions, files, settings, asked_each)
    assert decisions >= 8
    assert decisions <= forks < 2 * decisions


@pytest.mark.parametrize("tail", ["actuated", "delay_based"])
def test_a_tail_that_remembers_begins_anew_at_each_decision(files: SumoFiles, tail: str) -> None:
    settings = OutcomeSettings(horizon_s=30, tail=tail, tail_step_s=1)
    forks, decisions = in_new_process(_forks_and_decisions, files, settings, 1)
    assert forks == 2 * decisions


@pytest.fixture(scope="module")
def arterial(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> SumoFiles:
    folder = tmp_path_factory.mktemp("arterial")
    scenario = load_scenario(repo_root / "configs/scenarios/arterial.yaml")
    build_net(scenario, folder / "net.xml")
    build_demand(scenario, folder / "net.xml", 1, folder / "rou.xml")
    return SumoFiles(net_file=folder / "net.xml", route_files=(folder / "rou.xml",), seed=1)


@pytest.mark.parametrize(("tail", "step_s"), [("max_pressure", None), ("actuated", 1), ("delay_based", 1)])
def test_junctions_that_are_due_together_share_the_tails_continuation(
    arterial: SumoFiles, tail: str, step_s: int | None
) -> None:
    settings = OutcomeSettings(horizon_s=30, tail=tail, tail_step_s=step_s)
    forks, decisions = in_new_process(_forks_and_decisions, arterial, settings, 1)
    assert decisions >= 20
    assert decisions < forks < 2 * decisions
