"""RESCO's conditions and published delays."""

from itertools import groupby
from pathlib import Path

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.controllers.signal_plans import plan_signals
from tsc.errors import ConfigError
from tsc.evaluation.protocol import Protocol, load_protocol
from tsc.evaluation.settings import EvaluationSettings
from tsc.junction.signal_control import SignalControl
from tsc.rules.max_pressure import MaxPressure
from tsc.scenarios.by_word import traffic_scenarios
from tsc.scenarios.demand_variation import DemandVariation
from tsc.scenarios.packaged import RESCO_LICENCES, RESCO_PREFIX
from tsc.scenarios.traffic_scenario import TrafficScenario
from tsc.sumo.simulation import Simulation


@pytest.fixture(scope="module")
def protocol(repo_root: Path) -> Protocol:
    return load_protocol(repo_root / "configs/protocols/resco.yaml")


def scenario_of(word: str, protocol: Protocol, folder: Path) -> TrafficScenario:
    [scenario] = traffic_scenarios([word], folder, protocol.settings(EvaluationSettings()).of_scenarios)
    return protocol.scenario(scenario)


def test_it_has_every_network_of_resco(protocol: Protocol) -> None:
    assert list(protocol.networks) == list(RESCO_LICENCES)
    protocol.check([RESCO_PREFIX + name for name in RESCO_LICENCES])


def test_a_delay_too_few_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "source: a\nmax_green_s: 60\ndiffers: []\ncontrollers: [greedy, IDQN]\n"
        "networks: {cologne1: {step_s: 10, yellow_s: 3, delay_s: [27.81]}}\n"
    )
    with pytest.raises(ConfigError, match="cologne1 has 1 delays for 2 controllers"):
        load_protocol(path)


def test_it_wins_over_the_settings_of_a_file(protocol: Protocol) -> None:
    asked = EvaluationSettings(begin_s=100, end_s=900, duration_s=60, warm_up_s=60, junctions=("J",))
    settings = protocol.settings(asked.changed({"time_to_teleport_s": 300}))
    assert (settings.begin_s, settings.end_s, settings.duration_s, settings.warm_up_s) == (None, None, None, 0)
    assert (settings.junctions, settings.time_to_teleport_s) == ((), -1)
    assert settings.demand == DemandVariation(resample=False)


@pytest.mark.parametrize(
    ("word", "period_s", "timing_s", "yellow_s"),
    [
        ("resco:cologne1", (25200, 28800), (7, 60, 10), 3),
        ("resco:ingolstadt21", (57600, 61200), (7, 60, 10), 3),
        ("resco:arterial4x4", (0, 3600), (3, 60, 5), 2),
    ],
)
def test_a_scenario_has_the_time_the_greens_and_the_yellow_of_resco(
    protocol: Protocol,
    tmp_path: Path,
    word: str,
    period_s: tuple[int, int],
    timing_s: tuple[int, int, int],
    yellow_s: int,
) -> None:
    scenario = scenario_of(word, protocol, tmp_path)
    assert (scenario.begin_s, scenario.end_s) == period_s and not scenario.draws_vehicles
    timing = scenario.timing
    assert (timing.min_green_s, timing.max_green_s, timing.green_extension_s) == timing_s
    assert (scenario.signals.bounds_from, scenario.signals.yellow_s) == ("same", yellow_s)
    assert scenario.fingerprint()["yellow_s"] == yellow_s
    assert f"every yellow lasts {yellow_s} s" in scenario.note


def _signals_of_seconds(kind: str, scenario: TrafficScenario, folder: Path) -> list[str]:
    """What the only junction shows in each of 200 s: its letters."""
    planned = plan_signals(kind, scenario.files(1), scenario.signals, scenario.end_s, folder)
    [name] = planned.plans
    simulation = Simulation(planned.files)
    control = SignalControl(simulation, scenario.timing) if kind == "max_pressure" else None
    if control is not None:
        control.start()
    phases = simulation.signal_plan(name).phases
    shown = []
    for _ in range(200):
        if control is None:
            simulation.step()
        else:
            due = control.due_junctions()
            control.advance(MaxPressure().decide(control, due) if due else {})
        shown.append(phases[simulation.phase_index(name)].state)
    return shown


@pytest.mark.parametrize(("kind", "yellow_s"), [("static", 5), ("actuated", 3), ("max_pressure", 3)])
def test_the_signals_show_the_yellow_of_resco_and_the_net_s_own_under_static(
    protocol: Protocol, tmp_path: Path, kind: str, yellow_s: int
) -> None:
    scenario = scenario_of("resco:cologne1", protocol, tmp_path)
    shown = in_new_process(_signals_of_seconds, kind, scenario, tmp_path)
    lengths_s = [(state, len(list(run))) for state, run in groupby(shown)][1:-1]  # the first and the last are cut
    assert {length for state, length in lengths_s if "y" in state} == {yellow_s}
    if kind == "max_pressure":
        assert {length % 10 for state, length in lengths_s if "y" not in state} == {7}


def test_the_manual_says_what_differs(protocol: Protocol, repo_root: Path) -> None:
    manual = " ".join((repo_root / "docs/evaluation.md").read_text(encoding="utf-8").split())
    for line in protocol.differs:
        assert f"- {line}" in manual, "put the line of configs/protocols/resco.yaml there"
