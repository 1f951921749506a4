"""Forked continuations against the run itself, and what a decision means for the queue."""

from pathlib import Path

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.controllers.lookahead import Lookahead
from tsc.cost.continuation import continue_with, outcomes_by_fork
from tsc.cost.outcome import Outcomes, OutcomeSettings
from tsc.episodes.episode import run_episode
from tsc.errors import ReplayError
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.junction.signal_settings import SignalSettings
from tsc.junction.timing import Timing
from tsc.rules.max_pressure import MaxPressure
from tsc.rules.random_choice import Random
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation

SETTINGS = OutcomeSettings(horizon_s=45)


def _forked_and_lived(files: SumoFiles, decision: Decision, at_s: int) -> tuple[Outcomes, float, Outcomes]:
    """At the first decision after at_s: both outcomes by fork, the cost of `decision` in the simulation itself, and
    outcomes by fork again after it has gone on."""
    control = SignalControl(Simulation(files), Timing())
    control.start()
    draw = Random(3)
    while control.simulation.time_s < at_s or not control.due_junctions():
        control.advance(draw.decide(control, control.due_junctions()))
    forked = outcomes_by_fork(control, "A0", SETTINGS)
    again = outcomes_by_fork(control, "A0", SETTINGS)
    (lived,) = continue_with(control, "A0", decision, SETTINGS).costs
    return forked, lived, again


@pytest.mark.parametrize("decision", list(Decision))
def test_a_fork_foretells_what_then_happens(files: SumoFiles, decision: Decision) -> None:
    forked, lived, again = in_new_process(_forked_and_lived, files, decision, 100)
    assert forked.cost(decision) == lived
    assert forked == again
    assert forked.yes != forked.no


def _decide_in_yellow(files: SumoFiles) -> None:
    control = SignalControl(Simulation(files), Timing())
    control.start()
    for _ in range(11):
        control.advance(dict.fromkeys(control.due_junctions(), Decision.NO))
    continue_with(control, "A0", Decision.YES, SETTINGS)


def test_there_is_nothing_to_decide_in_yellow(files: SumoFiles) -> None:
    with pytest.raises(ReplayError, match="nothing to decide"):
        in_new_process(_decide_in_yellow, files)


def _fork_that_fails(files: SumoFiles) -> None:
    control = SignalControl(Simulation(files), Timing())
    control.start()
    outcomes_by_fork(control, "A0", SETTINGS)  # at 0 s there is nothing to decide


def test_a_failed_fork_is_an_error_with_its_cause(files: SumoFiles) -> None:
    with pytest.raises(ReplayError, match="nothing to decide"):
        in_new_process(_fork_that_fails, files)


def _one_car(folder: Path, edges: str, position_m: int) -> Outcomes:
    """A single car that departs at position_m of a lane of 290 m, 9 s before the first decision; stage 0 is green for
    north and south."""
    (folder / "rou.xml").write_text(
        f'<routes><vehicle id="v" depart="1" departPos="{position_m}" departSpeed="max">'
        f'<route edges="{edges}"/></vehicle></routes>'
    )
    files = SumoFiles(net_file=folder / "net.xml", route_files=(folder / "rou.xml",), seed=1)
    control = SignalControl(Simulation(files), Timing())
    control.start()
    while not control.due_junctions():
        control.advance({})
    return outcomes_by_fork(control, "A0", OutcomeSettings(horizon_s=30, tail="gap_out", measure="queue_veh_s"))


def test_ending_the_green_helps_a_lone_car_on_red_and_stops_one_on_green(
    files: SumoFiles,
    tmp_path: Path,
) -> None:
    (tmp_path / "net.xml").write_bytes(files.net_file.read_bytes())
    on_red = in_new_process(_one_car, tmp_path, "left0A0 A0right0", 200)
    on_green = in_new_process(_one_car, tmp_path, "top0A0 A0bottom0", 100)
    assert on_red.better() is Decision.NO
    assert on_green.better() is Decision.YES
    assert on_green.yes == 0  # it drives through


def _mean_queues(files: SumoFiles) -> dict[str, float]:
    controllers = {"plan": None, "max_pressure": MaxPressure(), "lookahead": Lookahead(SETTINGS)}
    return {
        name: run_episode(files, end_s=300, settings=SignalSettings(), controller=it).metrics["mean_queue_veh"]
        for name, it in controllers.items()
    }


def test_lookahead_beats_max_pressure_and_that_the_net_s_own_plan(files: SumoFiles) -> None:
    queues = in_new_process(_mean_queues, files)
    assert queues["lookahead"] < queues["max_pressure"] < queues["plan"]
