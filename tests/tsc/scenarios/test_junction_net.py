import math
from itertools import combinations
from pathlib import Path

import pytest
import sumolib

from tests.tsc.sumo_process import in_new_process
from tsc.errors import ConfigError, ScenarioError
from tsc.junction.signal_control import SignalControl
from tsc.junction.timing import Timing
from tsc.rules.max_pressure import MaxPressure
from tsc.scenarios.junction_net import (
    Approach,
    Junction,
    Layout,
    LeftLane,
    LeftTurn,
    Link,
    build_junction_net,
    exits_by_turn,
    links_of,
    opposing,
    planned_stages,
    stop_line_edge,
)
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation
from tsc.yaml_file import validate_values

CROSSING = (0.0, 90.0, 180.0, 270.0)


def approaches_at(
    angles_deg: tuple[float, ...],
    lanes: int | tuple[int, ...] = 2,
    left_turn: LeftTurn = "permitted",
    left_lane: LeftLane = "joint",
) -> tuple[Approach, ...]:
    each = lanes if isinstance(lanes, tuple) else (lanes,) * len(angles_deg)
    return tuple(
        Approach(
            angle_deg=angle, lanes=number, speed_m_per_s=13.89, length_m=150, left_turn=left_turn, left_lane=left_lane
        )
        for angle, number in zip(angles_deg, each, strict=True)
    )


def junction_at(approaches: tuple[Approach, ...], layout: Layout) -> Junction:
    return Junction(approaches=approaches, layout=layout, green_s=(20,) * len(planned_stages(approaches, layout)))


JUNCTIONS = {
    "crossing": junction_at(approaches_at(CROSSING), "opposites"),
    "one_lane": junction_at(approaches_at(CROSSING, 1), "opposites"),
    "protected": junction_at(approaches_at(CROSSING, 3, "protected", "own"), "opposites"),
    "lead_lag": junction_at(approaches_at(CROSSING, (4, 2, 3, 2), "protected", "own"), "lead_lag"),
    "both": junction_at(approaches_at(CROSSING, 2, "both"), "opposites"),
    "bays": junction_at(
        tuple(each.model_copy(update={"bay_m": 60.0}) for each in approaches_at(CROSSING, (2, 3, 2, 4), "both", "own")),
        "opposites",
    ),
    "t_protected": junction_at(approaches_at((10.0, 95.0, 190.0), 3, "both", "own"), "opposites"),
    "t": junction_at(approaches_at((10.0, 95.0, 190.0), 2, "permitted", "own"), "opposites"),
    "y": junction_at(approaches_at((0.0, 120.0, 240.0), 3), "incoming"),
    "five": junction_at(approaches_at((0.0, 45.0, 90.0, 180.0, 270.0), (3, 1, 2, 3, 2)), "opposites"),
    "five_incoming": junction_at(approaches_at((20.0, 92.0, 164.0, 236.0, 308.0), 4, "protected", "own"), "incoming"),
}


@pytest.fixture(scope="module", params=sorted(JUNCTIONS))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Junction, Path]:
    junction = JUNCTIONS[request.param]
    path = tmp_path_factory.mktemp(request.param) / "net.xml"
    build_junction_net(junction, path, what=request.param)
    return junction, path


def test_turns_are_told_by_the_angles() -> None:
    north, east, south, west = range(4)
    assert exits_by_turn(approaches_at(CROSSING), south) == {"right": [east], "straight": [north], "left": [west]}
    assert exits_by_turn(approaches_at((0.0, 90.0, 180.0)), 1) == {"right": [0], "straight": [], "left": [2]}
    assert opposing(approaches_at(CROSSING)) == {north: south, east: west, south: north, west: east}
    assert opposing(approaches_at((0.0, 90.0, 180.0))) == {0: 2, 2: 0}
    assert opposing(approaches_at((0.0, 120.0, 240.0))) == {}


@pytest.mark.parametrize(
    ("approaches", "layout", "num_stages"),
    [
        (approaches_at((0.0, 90.0, 180.0)), "opposites", 2),
        (approaches_at((0.0, 90.0, 180.0), 2, "protected", "own"), "opposites", 3),
        (approaches_at(CROSSING), "opposites", 2),
        (approaches_at(CROSSING, 2, "protected", "own"), "opposites", 4),
        (approaches_at(CROSSING, 2, "both"), "opposites", 4),
        (approaches_at(CROSSING), "incoming", 4),
        (approaches_at(CROSSING, 2, "protected", "own"), "lead_lag", 6),
        (approaches_at((0.0, 45.0, 90.0, 180.0, 270.0)), "opposites", 3),
        (approaches_at((0.0, 45.0, 90.0, 180.0, 270.0), 2, "protected", "own"), "opposites", 5),
    ],
)
def test_the_layout_gives_the_stages(approaches: tuple[Approach, ...], layout: Layout, num_stages: int) -> None:
    assert len(planned_stages(approaches, layout)) == num_stages


def test_where_only_one_of_two_opposing_approaches_turns_left_it_stays_green_for_it() -> None:
    together, after, third = planned_stages(approaches_at((0.0, 90.0, 180.0), 2, "both"), "opposites")
    assert together.priority == {(0, "straight"), (2, "straight"), (2, "right")}
    assert together.yielding == {(0, "left")}
    assert after.priority == {(0, "left"), (0, "straight")}
    assert third.priority == {(1, "left"), (1, "right")}


def paths_cross(approaches: tuple[Approach, ...], one: Link, other: Link) -> bool:
    """Where on the junction's rim two ways interleave they cross. Traffic keeps to the right, so that the exit of an
    approach lies clockwise of its entry, as seen from above."""

    def entry(number: int) -> float:
        return (approaches[number].angle_deg - 5) % 360

    def leave(number: int) -> float:
        return (approaches[number].angle_deg + 5) % 360

    begin, end = entry(one.approach), leave(one.exit)
    along = (end - begin) % 360
    within = [(point - begin) % 360 < along for point in (entry(other.approach), leave(other.exit))]
    return one.approach != other.approach and one.exit != other.exit and within[0] != within[1]


@pytest.mark.parametrize("name", sorted(JUNCTIONS))
def test_movements_that_have_priority_together_do_not_cross(name: str) -> None:
    junction = JUNCTIONS[name]
    for stage in junction.stages:
        links = [link for link in links_of(junction.approaches) if (link.approach, link.turn) in stage.priority]
        crossing = [pair for pair in combinations(links, 2) if paths_cross(junction.approaches, *pair)]
        assert not crossing


def test_every_movement_is_green_in_some_stage_and_every_lane_leads_somewhere() -> None:
    for junction in JUNCTIONS.values():
        links = links_of(junction.approaches)
        green = set().union(*(stage.green for stage in junction.stages))
        assert {(link.approach, link.turn) for link in links} == green
        lanes = {
            (number, lane) for number, approach in enumerate(junction.approaches) for lane in range(approach.lanes)
        }
        assert {(link.approach, link.lane) for link in links} == lanes
        ways = {(link.approach, link.exit) for link in links}
        assert len(ways) == len(junction.approaches) * (len(junction.approaches) - 1)


def test_the_net_has_the_approaches_of_the_file(built: tuple[Junction, Path]) -> None:
    junction, path = built
    net = sumolib.net.readNet(str(path))
    for number, approach in enumerate(junction.approaches):
        edge = net.getEdge(f"in{number}")
        if approach.bay_m:
            bay = net.getEdge(f"bay{number}")
            assert (bay.getLaneNumber(), edge.getLaneNumber()) == (approach.lanes, approach.lanes - 1)
            assert approach.bay_m - 40 < bay.getLength() < approach.bay_m
            assert {connection.getToLane().getIndex() for connection in edge.getOutgoing()[bay]} == {
                *range(approach.lanes)
            }
        else:
            assert edge.getLaneNumber() == approach.lanes
        assert edge.getSpeed() == pytest.approx(approach.speed_m_per_s, abs=0.01)
        x, y = edge.getFromNode().getCoord()
        assert math.hypot(x, y) == pytest.approx(approach.length_m, abs=0.1)
        assert math.degrees(math.atan2(x, y)) % 360 == pytest.approx(approach.angle_deg, abs=0.1)


def stages_seen_by_sumo(net_file: Path, duration_s: int) -> tuple[list[tuple[set[str], float]], float, int]:
    """Of each stage the edges that are green and its duration; then the junction runs under max-pressure."""
    simulation = Simulation(SumoFiles(net_file=net_file, route_files=()))
    control = SignalControl(simulation, Timing())
    (program,) = control.programs.values()
    control.start()
    controller = MaxPressure()
    for _ in range(duration_s):
        due = control.due_junctions()
        control.advance(controller.decide(control, due) if due else {})
    stages = [({lane.rpartition("_")[0] for lane in s.incoming_lanes}, s.duration_s) for s in program.stages]
    time_s = simulation.time_s
    simulation.close()
    return stages, time_s, len(program.incoming_lanes)


def test_sumo_sees_the_stages_as_laid_out(built: tuple[Junction, Path]) -> None:
    junction, path = built
    stages, time_s, num_lanes = in_new_process(stages_seen_by_sumo, path, 100)
    planned = [
        ({stop_line_edge(junction.approaches, number) for number, _ in stage.green}, 20.0) for stage in junction.stages
    ]
    assert stages == planned
    assert time_s == 100
    assert num_lanes == sum(approach.lanes for approach in junction.approaches)


def test_same_junction_same_bytes(built: tuple[Junction, Path], tmp_path: Path) -> None:
    junction, path = built
    build_junction_net(junction, tmp_path / "elsewhere" / "again.net.xml", what="again")
    assert (tmp_path / "elsewhere" / "again.net.xml").read_bytes() == path.read_bytes()


SECTION = {
    "approaches": [
        {
            "angle_deg": angle,
            "lanes": 2,
            "speed_m_per_s": 13.9,
            "length_m": 200,
            "left_turn": "protected",
            "left_lane": "own",
        }
        for angle in CROSSING
    ],
    "layout": "opposites",
    "green_s": [30, 10, 30, 10],
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "oposites"}, "layout is 'oposites': input should be 'opposites', 'incoming' or 'lead_lag'"),
        ({"yelow_s": 3}, "unknown key 'yelow_s': did you mean 'yellow_s'?"),
        ({"green_s": [30, 30]}, "green_s has 2 times, the least 30 s: give 4, one a stage, each at least 5 s"),
        ({"green_s": [30, 4, 30, 10]}, "the least 4 s: give 4, one a stage, each at least 5 s"),
        ({"approaches": SECTION["approaches"][:2]}, "approaches"),  # type: ignore[index]
    ],
)
def test_a_wrong_junction_is_told_what_is_wrong(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate_values({**SECTION, **changes}, Junction, where="crossing.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 1}, "approach 0 has 1 lane, but left_lane own needs one besides"),
        ({"left_lane": "joint"}, "approach 0: left_turn protected needs left_lane own"),
        ({"angle_deg": 80}, "two approaches are 10° apart: choose angle_deg at least 30° apart"),
        ({"angle_deg": 360}, "angle_deg is 360: input should be less than 360"),
        ({"bay_m": 170}, "bay_m of 170 with 2 lane(s) and length_m 200: choose 0, or 40 to length_m - 40"),
        ({"lanes": 5}, "lanes is 5: input should be less than or equal to 4"),
    ],
)
def test_a_wrong_approach_is_told_what_is_wrong(changes: dict[str, object], message: str) -> None:
    first, *others = SECTION["approaches"]  # type: ignore[misc]
    with pytest.raises(ConfigError) as error:
        validate_values({**SECTION, "approaches": [{**first, **changes}, *others]}, Junction, where="crossing.yaml")
    assert message in str(error.value)


def test_lead_lag_needs_protected_left_turns() -> None:
    with pytest.raises(ValueError, match="layout lead_lag: approach 0 needs left_turn protected"):
        junction_at(approaches_at(CROSSING), "lead_lag")


def test_what_netconvert_refuses_is_told_with_its_words(tmp_path: Path) -> None:
    broken = JUNCTIONS["crossing"].model_copy(update={"yellow_s": -3})
    with pytest.raises(ScenarioError, match="netconvert cannot make the net of broken: .*"):
        build_junction_net(broken, tmp_path / "net.xml", what="broken")
