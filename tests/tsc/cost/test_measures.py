"""The measures against hand-worked cases, against SUMO's own output files, and against what must hold of any cost."""

import itertools
import random
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.cost.continuation import continue_with, outcomes_by_fork
from tsc.cost.measures import MEASURES, SCOPES, Scene, measure_named
from tsc.cost.outcome import TAILS, Outcomes, OutcomeSettings
from tsc.errors import ConfigError, ReplayError
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.junction.timing import Timing
from tsc.rules.max_pressure import MaxPressure
from tsc.rules.random_choice import Random
from tsc.scenarios.scenario import build_demand, build_net, load_scenario
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation
from tsc.user_code import source_sha256

TERMS = tuple(name for name in MEASURES if name != "queue_veh_s")
ROUTES = {
    "left": "left0A0 A0right0",
    "right": "right0A0 A0left0",
    "top": "top0A0 A0bottom0",
    "bottom": "bottom0A0 A0top0",
}


def at_first_decision(files: SumoFiles) -> SignalControl:
    control = SignalControl(Simulation(files), Timing())
    control.start()
    while not control.due_junctions():
        control.advance({})
    return control


# Four vehicles stand at the stop line of a red light. All accelerate by 2.5 m/s², without any random part.


def standing_vehicles(folder: Path, net_file: Path, vehicles: list[tuple[int, str, int]]) -> SumoFiles:
    """vehicles: (depart in s, side, lane), each departing 1.4 m before the stop line with speed 0."""
    lines = ['<routes><vType id="car" sigma="0" speedDev="0" accel="2.5"/>']
    for number, (depart_s, side, lane) in enumerate(vehicles):
        lines.append(
            f'<vehicle id="{number}" type="car" depart="{depart_s}" departLane="{lane}" departPos="285" '
            f'departSpeed="0"><route edges="{ROUTES[side]}"/></vehicle>'
        )
    (folder / "rou.xml").write_text("\n".join([*lines, "</routes>"]))
    return SumoFiles(net_file=net_file, route_files=(folder / "rou.xml",), seed=1)


def outcomes_at_first_decision(files: SumoFiles, settings: OutcomeSettings) -> Outcomes:
    return outcomes_by_fork(at_first_decision(files), "A0", settings)


def test_costs_of_four_standing_vehicles_are_those_worked_out_by_hand(files: SumoFiles, tmp_path: Path) -> None:
    """The first decision falls at 10 s. `no`: 3 s of yellow, green from 13 s; `yes`: 5 s more of the other green, which
    the gap-out tail then ends. In the four seconds after the green begins, the vehicles drive at 2.5, 5, 7.5 and 10 m/s
    and so for 1.5, 6.5, 14 and 24 m into the 27.2 m of the junction; then they are on the way out."""
    standing = standing_vehicles(
        tmp_path, files.net_file, [(1, "left", 0), (1, "left", 1), (1, "left", 2), (1, "right", 1)]
    )
    settings = OutcomeSettings(horizon_s=30, tail="gap_out", measure="queue_veh_s", terms=TERMS)
    outcomes = in_new_process(outcomes_at_first_decision, standing, settings)
    starting_s = 4 * (4 - (2.5 + 5 + 7.5 + 10) / 13.89)
    assert (outcomes.no, outcomes.yes) == (4 * 3, 4 * 8)
    assert (outcomes.terms["waiting_time_s"].no, outcomes.terms["waiting_time_s"].yes) == (12, 32)
    assert outcomes.terms["time_loss_s"].no == pytest.approx(12 + starting_s)
    assert outcomes.terms["time_loss_s"].yes == pytest.approx(32 + starting_s)
    # one vehicle a lane upstream, none downstream, until they have left
    assert (outcomes.terms["pressure_veh_s"].no, outcomes.terms["pressure_veh_s"].yes) == (12, 32)
    # SUMO counts the wait from the second after the departure at 1 s, with the step that inserts
    assert outcomes.terms["longest_wait_s"].yes - outcomes.terms["longest_wait_s"].no == 5
    # the tail ends greens at 23 s and 36 s, or at 15 s and 28 s
    assert (outcomes.terms["switches"].no, outcomes.terms["switches"].yes) == (3, 2)
    assert (outcomes.terms["pedestrians_waiting_s"].no, outcomes.terms["pedestrians_waiting_s"].yes) == (0, 0)


def test_waiting_time_counts_the_vehicle_that_finds_no_room_to_enter_and_the_queue_does_not(
    files: SumoFiles, tmp_path: Path
) -> None:
    """The fourth vehicle departs where the second stands."""
    standing = standing_vehicles(
        tmp_path, files.net_file, [(1, "left", 0), (1, "left", 1), (1, "left", 2), (2, "left", 1)]
    )
    settings = OutcomeSettings(horizon_s=3, measure="queue_veh_s", terms=("waiting_time_s",))
    outcomes = in_new_process(outcomes_at_first_decision, standing, settings)
    assert outcomes.no == 3 * 3
    assert outcomes.terms["waiting_time_s"].no == 4 * 3


# Against what SUMO itself writes about the same seconds

HORIZON_S = 45
OUTPUTS = """<additional>
    <timedEvent type="SaveTLSStates" source="{junction}" dest="signals.xml"/>
</additional>"""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One continuation: when it began, its costs by measure, and the lanes of the junction."""

    begin_s: int
    costs: dict[str, float]
    incoming: tuple[str, ...]
    inner: tuple[str, ...]
    outgoing: tuple[str, ...]
    lanes_downstream: dict[str, tuple[str, ...]]
    pedestrian_edges: tuple[str, ...]


def _observe(files: SumoFiles, folder: Path, junction_id: str, at_s: int) -> Observed:
    """A continuation with `no` from the first decision after at_s, during which SUMO writes outputs into `folder`."""
    (folder / "outputs.xml").write_text(OUTPUTS.format(junction=junction_id))
    files = replace(files, additional_files=(folder / "outputs.xml",))
    outputs = ["--fcd-output", str(folder / "fcd.xml"), "--fcd-output.attributes", "lane,edge,speed"]
    outputs += ["--emission-output", str(folder / "emissions.xml"), "--precision", "8"]
    control = SignalControl(Simulation(files, outputs=outputs), Timing())
    control.start()
    draw = Random(3)
    while control.simulation.time_s < at_s or junction_id not in control.due_junctions():
        control.advance(draw.decide(control, control.due_junctions()))
    settings = OutcomeSettings(horizon_s=HORIZON_S, terms=MEASURES)
    scene = Scene(control, junction_id, settings.scope)
    begin_s = int(control.simulation.time_s)
    inner, pedestrian_edges = scene.inner_lanes, control.simulation.pedestrian_edges(scene.junction_ids)
    costs = continue_with(control, junction_id, Decision.NO, settings).costs
    control.simulation.close()
    return Observed(
        begin_s=begin_s,
        costs=dict(zip(settings.terms, costs[1:], strict=True)),
        incoming=scene.incoming_lanes,
        inner=inner,
        outgoing=scene.outgoing_lanes,
        lanes_downstream=dict(control.programs[junction_id].lanes_downstream),
        pedestrian_edges=pedestrian_edges,
    )


class Record:
    """What SUMO's output files say about the seconds of one continuation."""

    def __init__(self, seen: Observed, folder: Path) -> None:
        self.seen = seen
        self.folder = folder

    def seconds(self, name: str, begin_s: int | None = None) -> list[ElementTree.Element]:
        """The seconds of an output file, from begin_s (by default the decision) to the horizon's end."""
        begin_s = self.seen.begin_s if begin_s is None else begin_s
        found = [
            second
            for second in ElementTree.parse(self.folder / name).getroot().iter("timestep")
            if begin_s <= float(second.attrib["time"]) < self.seen.begin_s + HORIZON_S
        ]
        assert len(found) == self.seen.begin_s + HORIZON_S - begin_s
        return found

    def halting(self, lanes: tuple[str, ...]) -> int:
        return sum(
            vehicle.attrib["lane"] in lanes and float(vehicle.attrib["speed"]) < 0.1
            for second in self.seconds("fcd.xml")
            for vehicle in second.iter("vehicle")
        )


@pytest.fixture(scope="module")
def busy_files(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> SumoFiles:
    """The four-way junction with sidewalks and crossings, its rush in the first minutes, and people who cross."""
    folder = tmp_path_factory.mktemp("busy")
    text = (repo_root / "configs/scenarios/four_way.yaml").read_text()
    text = text.replace("duration_s: 3600", "duration_s: 300").replace("[0, 900, 1800, 2700]", "[0, 60, 120, 240]")
    text = text.replace("  grid: true\n", "  grid: true\n  sidewalks.guess: true\n  crossings.guess: true\n")
    (folder / "scenario.yaml").write_text(text)
    scenario = load_scenario(folder / "scenario.yaml")
    build_net(scenario, folder / "net.xml")
    build_demand(scenario, folder / "net.xml", 1, folder / "rou.xml")
    people = [
        f'<person id="p{depart_s}" depart="{depart_s}" departPos="220"><walk from="{start}" to="{end}"/></person>'
        for depart_s, (start, end) in enumerate([("left0A0", "A0top0"), ("top0A0", "A0bottom0")] * 40, 20)
    ]
    (folder / "people.xml").write_text("\n".join(["<routes>", *people, "</routes>"]))
    return SumoFiles(net_file=folder / "net.xml", route_files=(folder / "rou.xml", folder / "people.xml"), seed=1)


@pytest.fixture(scope="module")
def record(busy_files: SumoFiles, tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("outputs")
    return Record(in_new_process(_observe, busy_files, folder, "A0", 150), folder)


def test_the_queue_is_that_of_sumos_floating_car_data(record: Record) -> None:
    assert record.seen.costs["queue_veh_s"] == record.halting(record.seen.incoming) > 100


def test_the_waiting_time_is_that_of_sumos_floating_car_data_with_the_inside_of_the_junction(record: Record) -> None:
    """No vehicle waits to enter in this scenario, and of those who turn left some wait inside."""
    expected = record.halting(record.seen.incoming + record.seen.inner)
    assert record.seen.costs["waiting_time_s"] == expected > record.seen.costs["queue_veh_s"]


def _time_loss_of_a_run(files: SumoFiles, tripinfo: Path) -> float:
    simulation = Simulation(files, outputs=["--tripinfo-output", str(tripinfo), "--tripinfo-output.write-unfinished"])
    control = SignalControl(simulation, Timing())
    scene = Scene(control, "A0", "junction")
    control.start()
    # on this net these are all lanes there are
    lanes = scene.incoming_lanes + scene.inner_lanes + scene.outgoing_lanes
    lost_s = 0.0
    for _ in range(300):
        control.advance(MaxPressure().decide(control, control.due_junctions()))
        lost_s += simulation.time_loss_s(lanes)
    simulation.close()
    return lost_s


def test_the_time_loss_of_all_lanes_is_that_of_sumos_trips(busy_files: SumoFiles, tmp_path: Path) -> None:
    lost_s = in_new_process(_time_loss_of_a_run, busy_files, tmp_path / "tripinfo.xml")
    trips = ElementTree.parse(tmp_path / "tripinfo.xml").getroot().iter("tripinfo")
    assert lost_s == pytest.approx(sum(float(trip.attrib["timeLoss"]) for trip in trips), rel=0.01)
    assert lost_s > 1000


def test_emissions_are_those_of_sumos_emission_output(record: Record) -> None:
    lanes = record.seen.incoming + record.seen.inner + record.seen.outgoing
    expected_mg = sum(
        float(vehicle.attrib["CO2"])
        for second in record.seconds("emissions.xml")
        for vehicle in second.iter("vehicle")
        if vehicle.attrib["lane"] in lanes
    )
    assert record.seen.costs["emissions_co2_g"] == pytest.approx(expected_mg / 1000, rel=1e-6)


def test_pressure_is_that_of_the_vehicles_in_sumos_floating_car_data(record: Record) -> None:
    pressure = 0.0
    for second in record.seconds("fcd.xml"):
        on_lane = Counter(vehicle.attrib["lane"] for vehicle in second.iter("vehicle"))
        for lane, downstream in record.seen.lanes_downstream.items():
            pressure += max(0.0, on_lane[lane] - sum(on_lane[name] for name in downstream) / len(downstream))
    assert record.seen.costs["pressure_veh_s"] == pytest.approx(pressure)
    assert pressure > 100


def test_the_longest_wait_is_that_of_the_vehicles_in_sumos_floating_car_data(record: Record) -> None:
    waits_s: Counter[str] = Counter()
    longest_s = 0
    for second in record.seconds("fcd.xml", begin_s=0):
        for vehicle in second.iter("vehicle"):
            halts = float(vehicle.attrib["speed"]) < 0.1
            waits_s[vehicle.attrib["id"]] = waits_s[vehicle.attrib["id"]] + 1 if halts else 0
            if vehicle.attrib["lane"] in record.seen.incoming and float(second.attrib["time"]) >= record.seen.begin_s:
                longest_s = max(longest_s, waits_s[vehicle.attrib["id"]])
    assert record.seen.costs["longest_wait_s"] == longest_s > 10


def test_waiting_pedestrians_are_those_of_sumos_floating_car_data(record: Record) -> None:
    waiting = sum(
        person.attrib["edge"] in record.seen.pedestrian_edges and float(person.attrib["speed"]) < 0.1
        for second in record.seconds("fcd.xml")
        for person in second.iter("person")
    )
    assert record.seen.costs["pedestrians_waiting_s"] == waiting > 20


def test_switches_are_the_stages_that_sumos_signal_states_show_to_end(record: Record) -> None:
    states = {
        float(state.attrib["time"]): state.attrib["state"]
        for state in ElementTree.parse(record.folder / "signals.xml").getroot()
    }
    seconds = [states[time_s] for time_s in range(record.seen.begin_s - 1, record.seen.begin_s + HORIZON_S)]
    # a pedestrian clearance comes before the yellow, and belongs to the change
    ended = sum("y" not in before and "y" in after for before, after in itertools.pairwise(seconds))
    assert record.seen.costs["switches"] == ended >= 2


# What must hold of any cost


def _outcomes_along(
    files: SumoFiles, seconds: int, settings: OutcomeSettings, timing: Timing
) -> dict[tuple[str, int], Outcomes]:
    """Outcomes of all decisions of the first seconds under max-pressure."""
    control = SignalControl(Simulation(files), timing)
    control.start()
    found = {}
    for second in range(seconds):
        for name in control.due_junctions():
            found[name, second] = outcomes_by_fork(control, name, settings)
        control.advance(MaxPressure().decide(control, control.due_junctions()))
    return found


def demand(folder: Path, net_file: Path, departs_s: dict[str, list[int]]) -> SumoFiles:
    """Vehicles of one type without any random part that depart at these seconds on these sides, straight on."""
    folder.mkdir(exist_ok=True)
    vehicles = sorted((depart_s, side) for side, all_s in departs_s.items() for depart_s in all_s)
    lines = ['<routes><vType id="car" sigma="0" speedDev="0"/>']
    for depart_s, side in vehicles:
        lines.append(
            f'<vehicle id="{side}{depart_s}" type="car" depart="{depart_s}" departLane="1" departSpeed="max">'
            f'<route edges="{ROUTES[side]}"/></vehicle>'
        )
    (folder / "rou.xml").write_text("\n".join([*lines, "</routes>"]))
    return SumoFiles(net_file=net_file, route_files=(folder / "rou.xml",), seed=1)


def test_mirrored_demand_has_mirrored_costs(files: SumoFiles, tmp_path: Path) -> None:
    """The net looks the same from the opposite side, and opposite sides share a stage."""
    draw = random.Random(5)
    departs_s = {side: sorted(draw.sample(range(150), number)) for side, number in (("left", 50), ("top", 20))}
    opposite = {"right": departs_s["left"], "bottom": departs_s["top"]}
    settings = OutcomeSettings(terms=MEASURES)
    costs = [
        in_new_process(_outcomes_along, demand(tmp_path / name, files.net_file, sides), 120, settings, Timing())
        for name, sides in (("one", departs_s), ("other", opposite))
    ]
    assert costs[0].keys() == costs[1].keys() and len(costs[0]) > 8
    for decision_point, outcomes in costs[0].items():
        for name, term in outcomes.terms.items():
            mirrored = costs[1][decision_point].terms[name]
            assert (term.yes, term.no) == pytest.approx((mirrored.yes, mirrored.no)), (decision_point, name)
    assert {outcomes.better() for outcomes in costs[0].values()} >= {Decision.YES, Decision.NO}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_empty_red_side_never_argues_for_ending_a_busy_green(files: SumoFiles, tmp_path: Path, seed: int) -> None:
    """Stage 0 is green for top and bottom, and only they have traffic, with no gap that would end a green. The first
    vehicles reach the junction after 25 s. Where the maximum green ends a green within the horizon, an end of one's
    own choice may come at a better moment, so here it lies beyond."""
    timing = Timing(max_green_s=200)
    draw = random.Random(seed)
    departs_s = {side: list(itertools.accumulate(draw.choices((1, 2, 3), k=60))) for side in ("top", "bottom")}
    measures = ("queue_veh_s", "waiting_time_s", "time_loss_s", "pressure_veh_s", "switches", "longest_wait_s")
    for tail in TAILS:
        settings = OutcomeSettings(tail=tail, terms=measures)
        found = in_new_process(_outcomes_along, demand(tmp_path, files.net_file, departs_s), 60, settings, timing)
        busy = {decision_point: outcomes for decision_point, outcomes in found.items() if decision_point[1] >= 25}
        assert len(busy) == 7  # each 5 s
        for decision_point, outcomes in busy.items():
            for name, term in outcomes.terms.items():
                assert term.yes <= term.no, (tail, decision_point, name)
            assert outcomes.better() is Decision.YES


# Scopes


def _scope_junctions(scenario_file: Path, folder: Path, junction_id: str) -> dict[str, tuple[str, ...]]:
    scenario = load_scenario(scenario_file)
    build_net(scenario, folder / "net.xml")
    (folder / "rou.xml").write_text("<routes/>")
    files = SumoFiles(net_file=folder / "net.xml", route_files=(folder / "rou.xml",))
    control = SignalControl(Simulation(files), Timing())
    return {scope: Scene(control, junction_id, scope).junction_ids for scope in SCOPES}


def test_neighbours_are_the_controlled_junctions_one_edge_away(repo_root: Path, tmp_path: Path) -> None:
    scopes = in_new_process(_scope_junctions, repo_root / "configs/scenarios/grid.yaml", tmp_path, "B1")
    assert scopes["junction"] == ("B1",)
    assert set(scopes["neighbours"]) == {"B1", "A1", "C1", "B0", "B2"}
    assert len(scopes["network"]) == 9
    corner = in_new_process(_scope_junctions, repo_root / "configs/scenarios/grid.yaml", tmp_path, "A0")
    assert set(corner["neighbours"]) == {"A0", "A1", "B0"}


def test_a_wider_scope_counts_the_queues_of_more_junctions(repo_root: Path, tmp_path: Path) -> None:
    scenario = load_scenario(repo_root / "configs/scenarios/grid.yaml")
    build_net(scenario, tmp_path / "net.xml")
    build_demand(scenario, tmp_path / "net.xml", 1, tmp_path / "rou.xml")
    grid = SumoFiles(net_file=tmp_path / "net.xml", route_files=(tmp_path / "rou.xml",), seed=1)
    costs = in_new_process(_costs_by_scope, grid)
    assert 0 < costs["junction"] < costs["neighbours"] < costs["network"]


def _costs_by_scope(files: SumoFiles) -> dict[str, float]:
    control = SignalControl(Simulation(files), Timing())
    control.start()
    for _ in range(200):
        control.advance(MaxPressure().decide(control, control.due_junctions()))
    while "B1" not in control.due_junctions():
        control.advance({})
    return {scope: outcomes_by_fork(control, "B1", OutcomeSettings(scope=scope)).yes for scope in SCOPES}


# Names, and functions of the user's own


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("queue", "did you mean 'queue_veh_s'?"),
        ("switch", "did you mean 'switches'?"),
        ("noise", "choose one of queue_veh_s, waiting_time_s"),
        ("pkg://mine", "write a function of your own as pkg://module:function"),
        ("pkg://no_such_module:cost", "put the folder that holds it on PYTHONPATH"),
        ("pkg://tsc.junction.timing:cost", "has no function 'cost'"),
    ],
)
def test_a_measure_that_is_not_there_is_told_with_the_remedy(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        measure_named(name)


def test_a_module_that_fails_on_import_is_told_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_written.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    source_sha256("pkg://half_written:cost", "measure")  # it is found, and not imported
    with pytest.raises(ConfigError, match="No module named 'no_such_package'"):
        measure_named("pkg://half_written:cost")


def _own_cost(files: SumoFiles, folder: Path, name: str) -> float:
    sys.path.insert(0, str(folder))
    return outcomes_at_first_decision(files, OutcomeSettings(horizon_s=10, measure=f"pkg://own_costs:{name}")).yes


def _costs_before_and_after_a_change(files: SumoFiles, folder: Path) -> tuple[float, float, str]:
    sys.path.insert(0, str(folder))
    module = folder / "edited_costs.py"

    def cost(settings: OutcomeSettings) -> float:
        return outcomes_by_fork(control, "A0", settings).yes

    module.write_text("def cost(simulation, lanes):\n    return 1.0\n")
    plain = OutcomeSettings(horizon_s=10, measure="pkg://edited_costs:cost")
    settings = plain.with_sources()
    control = at_first_decision(files)
    before = cost(settings)
    module.write_text("def cost(simulation, lanes):\n    return 20.0\n")
    try:
        cost(settings)
    except ConfigError as error:
        told = str(error)
    return before, cost(plain.with_sources()), told


def test_a_process_that_goes_on_sees_a_function_that_was_changed(files: SumoFiles, tmp_path: Path) -> None:
    before, after, told = in_new_process(_costs_before_and_after_a_change, files, tmp_path)
    assert (before, after) == (10.0, 200.0)
    assert "was changed after the settings were read" in told


def test_a_function_of_the_users_own_is_called_after_every_second(files: SumoFiles, tmp_path: Path) -> None:
    (tmp_path / "own_costs.py").write_text(
        "def seconds(simulation, lanes):\n    assert len(lanes) == 12\n    return -simulation.time_s\n"
        "def nothing(simulation, lanes):\n    pass\n"
    )
    # the first decision falls at 10 s
    assert in_new_process(_own_cost, files, tmp_path, "seconds") == -sum(range(11, 21))
    with pytest.raises(ReplayError, match="returned None at 11 s: it must return a finite number"):
        in_new_process(_own_cost, files, tmp_path, "nothing")
