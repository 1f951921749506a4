from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tsc.sumo_process import in_new_process
from tsc.errors import ConfigError
from tsc.junction.signal_control import SignalControl
from tsc.junction.timing import Timing
from tsc.rules.max_pressure import MaxPressure
from tsc.scenarios.family import MAX_CYCLE_S, REFERENCE_CYCLE_S, critical_flow_ratio, load_scenarios, webster_greens_s
from tsc.scenarios.junction_net import Approach, exits_by_turn, planned_stages
from tsc.scenarios.scenario import Scenario, build_demand, build_net, load_scenario
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation

CROSSING = tuple(
    Approach(angle_deg=angle, lanes=2, speed_m_per_s=13.9, length_m=200, left_turn="protected", left_lane="own")
    for angle in (0.0, 90.0, 180.0, 270.0)
)


@pytest.fixture(scope="module")
def train(repo_root: Path) -> list[Scenario]:
    return load_scenarios(repo_root / "configs/scenarios/family_train.yaml")


@pytest.fixture(scope="module")
def unseen(repo_root: Path) -> list[Scenario]:
    return load_scenarios(repo_root / "configs/scenarios/family_unseen.yaml")


def changed(repo_root: Path, folder: Path, **changes: Any) -> Path:
    """family_train.yaml with other values; those of `ranges` one by one."""
    values = yaml.safe_load((repo_root / "configs/scenarios/family_train.yaml").read_text())
    ranges = {key: value for key, value in changes.items() if key in values["ranges"]}
    values["ranges"] |= ranges
    values |= {key: value for key, value in changes.items() if key not in ranges}
    path = folder / "family.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_same_file_same_members(repo_root: Path, train: list[Scenario]) -> None:
    assert load_scenarios(repo_root / "configs/scenarios/family_train.yaml") == train


def test_a_longer_family_begins_with_the_shorter_one(repo_root: Path, tmp_path: Path, train: list[Scenario]) -> None:
    assert load_scenarios(changed(repo_root, tmp_path, members=7)) == train[:7]


def test_another_family_seed_gives_other_junctions(train: list[Scenario], unseen: list[Scenario]) -> None:
    known = [scenario.junction for scenario in train]
    assert not any(scenario.junction in known for scenario in unseen)


def test_the_shipped_family_has_all_that_it_promises(train: list[Scenario]) -> None:
    junctions = [scenario.junction for scenario in train if scenario.junction]
    approaches = [approach for junction in junctions for approach in junction.approaches]
    assert [scenario.name for scenario in train] == [f"family_train_{number:02d}" for number in range(1, 41)]
    assert {len(junction.stages) for junction in junctions} == {2, 3, 4, 5, 6}
    assert {len(junction.approaches) for junction in junctions} == {3, 4, 5}
    assert {junction.layout for junction in junctions} == {"opposites", "incoming", "lead_lag"}
    assert {approach.lanes for approach in approaches} == {1, 2, 3, 4}
    assert {(approach.left_turn, approach.left_lane) for approach in approaches} == {
        ("permitted", "joint"),
        ("permitted", "own"),
        ("protected", "own"),
        ("both", "joint"),
        ("both", "own"),
    }
    assert {round(3.6 * approach.speed_m_per_s) for approach in approaches} == {30, 40, 50, 60, 70}
    assert all(150 <= approach.length_m <= 400 for approach in approaches)
    assert {approach.bay_m for approach in approaches} == {0, 50, 60, 70, 80, 90, 100}
    yellow_and_speed = {(j.yellow_s, round(3.6 * max(a.speed_m_per_s for a in j.approaches))) for j in junctions}
    assert yellow_and_speed <= {(3, 30), (3, 40), (3, 50), (4, 60), (5, 70)}


def test_tidal_demand_turns_and_the_other_shapes_keep_their_direction(repo_root: Path, tmp_path: Path) -> None:
    def rates_of(shape: str) -> list[Sequence[float]]:
        path = changed(repo_root, tmp_path, demand_shapes=[shape], members=3, approaches=[4, 4], stages=[2, 4])
        return [list(s.demand.entries_veh_per_h.values()) for s in load_scenarios(path)]  # type: ignore[misc]

    for entries in rates_of("flat"):
        assert all(len(set(rates)) == 1 for rates in entries)
    for entries in rates_of("rising"):
        assert all(list(rates) == sorted(rates) and rates[0] < rates[-1] for rates in entries)
    for entries in rates_of("peak"):
        assert all(rates[0] == pytest.approx(rates[-1]) and rates[0] < rates[2] for rates in entries)
    for entries in rates_of("tidal"):
        assert len({rates[0] > rates[-1] for rates in entries}) == 2


def volumes(**flows: float) -> dict[Any, float]:
    """of north, east, south, west, each straight on; nothing turns."""
    return {
        (number, turn): flows.get(name, 0.0) if turn == "straight" else flows.get(f"{name}_left", 0.0)
        for number, name in enumerate(("north", "east", "south", "west"))
        for turn in ("right", "straight", "left")
    } | {(number, "right"): 0.0 for number in range(4)}


@pytest.mark.parametrize(
    ("layout", "ratio"),
    [
        # one lane straight on, one to the left (each of which counts 1.1): worked by hand
        ("opposites", (900 + 1.1 * 90 + 360) / 1800),
        ("incoming", (900 + 450 + 360 + 180) / 1800),
        # north alone, both, south alone: north's left turn goes beside nothing, straight on goes through two stages
        ("lead_lag", (900 + 1.1 * 0 + 360) / 1800),
    ],
)
def test_the_critical_flow_ratio_of_a_crossing(layout: Any, ratio: float) -> None:
    flows = volumes(north=900, south=450, east=360, west=180, north_left=90)
    assert critical_flow_ratio(CROSSING, planned_stages(CROSSING, layout), flows) == pytest.approx(ratio)


def test_the_plan_gives_the_heavier_street_more_green_within_its_bounds() -> None:
    timing = Timing(min_green_s=8, max_green_s=50, green_extension_s=5)
    greens_s = webster_greens_s(CROSSING, "incoming", volumes(north=700, south=350, east=200, west=1), 5, timing)
    assert greens_s[0] > greens_s[2] > greens_s[1] >= greens_s[3] == 8
    assert sum(greens_s) + 4 * 5 <= MAX_CYCLE_S + 8


def test_the_busiest_period_has_the_degree_of_saturation_of_the_file(repo_root: Path, tmp_path: Path) -> None:
    for scenario in load_scenarios(changed(repo_root, tmp_path, saturation=[0.6, 0.6], members=10)):
        junction, demand = scenario.junction, scenario.demand
        assert junction is not None
        lost_s = len(junction.stages) * (junction.yellow_s + junction.all_red_s)
        ratios = []
        for period in range(len(demand.period_begin_s)):
            flows: dict[Any, float] = {}
            for number in range(len(junction.approaches)):
                for turn, exits in exits_by_turn(junction.approaches, number).items():
                    share = sum(demand.exits[f"in{number}"][f"out{leave}"] for leave in exits)
                    flows[number, turn] = demand.entries_veh_per_h[f"in{number}"][period] * share
            ratios.append(critical_flow_ratio(junction.approaches, junction.stages, flows))
        assert max(ratios) / (1 - lost_s / REFERENCE_CYCLE_S) == pytest.approx(0.6, abs=0.01)


def run_under_max_pressure(net_file: Path, route_file: Path, timing: Timing, duration_s: int) -> tuple[int, int]:
    """Stages that came, and vehicles on the incoming lanes at the end."""
    simulation = Simulation(SumoFiles(net_file=net_file, route_files=(route_file,), seed=1))
    control = SignalControl(simulation, timing)
    control.start()
    controller = MaxPressure()
    (clock,) = control.clocks.values()
    seen = set()
    for _ in range(duration_s):
        due = control.due_junctions()
        control.advance(controller.decide(control, due) if due else {})
        if clock.green:
            seen.add(clock.stage)
    on_lanes = simulation.vehicles_veh(control.incoming_lanes())
    simulation.close()
    return len(seen), on_lanes


@pytest.mark.parametrize("number", range(5))
def test_a_member_of_each_number_of_stages_runs(train: list[Scenario], number: int, tmp_path: Path) -> None:
    scenario = train[number]
    assert scenario.junction is not None
    net_file, route_file = tmp_path / "net.xml", tmp_path / "rou.xml"
    build_net(scenario, net_file)
    build_demand(scenario, net_file, 1, route_file)
    stages, on_lanes = in_new_process(run_under_max_pressure, net_file, route_file, scenario.timing, 300)
    assert stages == len(scenario.junction.stages)
    assert on_lanes > 0


def test_a_scenario_file_is_a_family_of_one(repo_root: Path) -> None:
    path = repo_root / "configs/scenarios/four_way.yaml"
    assert load_scenarios(path) == [load_scenario(path)]


def test_a_scenario_has_one_net(repo_root: Path, tmp_path: Path, train: list[Scenario]) -> None:
    values = yaml.safe_load((repo_root / "configs/scenarios/four_way.yaml").read_text())
    path = tmp_path / "scenario.yaml"
    for section in ({"junction": train[0].model_dump(mode="json")["junction"]}, {"net": None}):
        path.write_text(yaml.safe_dump({**values, **section}))
        with pytest.raises(ConfigError, match=r"give either net .* or junction .*, not both"):
            load_scenarios(path)


def test_a_member_written_as_a_scenario_file_is_the_member(tmp_path: Path, train: list[Scenario]) -> None:
    path = tmp_path / "member.yaml"
    path.write_text(yaml.safe_dump(train[3].model_dump(mode="json")))
    assert load_scenario(path) == train[3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": [3, 2]}, "ranges.lanes is [3, 2]: from 3 to 2 is an empty range: give the lowest value first"),
        ({"lanes": [1, 2, 3]}, "ranges.lanes is [1, 2, 3]: has 3 numbers: give the lowest and the highest value"),
        ({"lanes": [0, 4]}, "lanes from 0 to 4: choose within 1 to 4"),
        ({"aproaches": [3, 4]}, "unknown key 'aproaches'"),
        ({"layouts": ["oposites"]}, "layouts.0 is 'oposites': input should be 'opposites', 'incoming' or 'lead_lag'"),
        ({"layouts": []}, "layouts"),
        ({"members": 0}, "members is 0"),
        ({"timing": {"min_green_s": 70}}, "max_green_s of 60 s is below min_green_s of 70 s"),
        ({"stages": [2, 8]}, "no junction with 8 stages in 60 draws of each layout and number of approaches"),
    ],
)
def test_a_wrong_family_is_told_what_is_wrong(
    repo_root: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_scenarios(changed(repo_root, tmp_path, **changes))
    assert message in str(error.value)
