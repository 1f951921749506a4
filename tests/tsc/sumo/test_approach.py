"""How far upstream a junction sees, on nets with short incoming lanes."""

import subprocess
from pathlib import Path

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.junction.observation import observe
from tsc.junction.signal_control import SignalControl, read_signals
from tsc.junction.timing import Timing
from tsc.scenarios.by_word import traffic_scenarios
from tsc.sumo.binaries import sumo_binary
from tsc.sumo.running import SumoFiles
from tsc.sumo.signal_program import APPROACH_M
from tsc.sumo.simulation import Simulation, libsumo

# From the west a road in pieces, with a side road from s; from the east one from another signal; both ways everywhere.
#
#                        n
#                        |
#   r --------- q -- p -- j -- k ------- e        j and k have signals
#                    |         |
#                    s         m
NODES = {
    **{"r": (-400, 0), "q": (-90, 0), "p": (-40, 0), "j": (0, 0), "k": (60, 0), "e": (400, 0)},
    **{"n": (0, 300), "s": (-40, -200), "m": (60, -200)},
}
ROADS = ("rq", "qp", "pj", "jk", "ke", "jn", "sp", "mk")


@pytest.fixture(scope="module")
def short_lanes(tmp_path_factory: pytest.TempPathFactory) -> SumoFiles:
    folder = tmp_path_factory.mktemp("short_lanes")
    nodes = (
        f'<node id="{name}" x="{x}" y="{y}" type="{"traffic_light" if name in "jk" else "priority"}"/>'
        for name, (x, y) in NODES.items()
    )
    edges = (f'<edge id="{a}{b}" from="{a}" to="{b}"/>' for road in ROADS for a, b in (road, road[::-1]))
    (folder / "x.nod.xml").write_text(f"<nodes>{''.join(nodes)}</nodes>")
    (folder / "x.edg.xml").write_text(f"<edges>{''.join(edges)}</edges>")
    command = [sumo_binary("netconvert"), "-n", folder / "x.nod.xml", "-e", folder / "x.edg.xml"]
    subprocess.run([*map(str, command), "-o", str(folder / "x.net.xml")], check=True, capture_output=True)
    (folder / "x.rou.xml").write_text('<routes><trip id="v" depart="0" from="rq" to="jn" departPos="last"/></routes>')
    return SumoFiles(net_file=folder / "x.net.xml", route_files=(folder / "x.rou.xml",))


def _approach(files: SumoFiles, junction_id: str) -> tuple[dict[str, float], dict[str, float]]:
    """Distance to the stop line of each lane of the approach outside nodes, and the lengths of all lanes."""
    program = read_signals(Simulation(files)).programs[junction_id]
    parts = {part.lane: part.distance_m for stage in program.stages for part in stage.approach}
    assert set(parts) == set(program.approach_lanes)
    lengths_m = {lane: libsumo.lane.getLength(lane) for lane in libsumo.lane.getIDList()}
    return {lane: distance_m for lane, distance_m in parts.items() if not lane.startswith(":")}, lengths_m


def test_a_short_lane_is_continued_up_to_the_road_that_covers_the_distance(short_lanes: SumoFiles) -> None:
    parts, length_m = in_new_process(_approach, short_lanes, "j")
    assert set(parts) == {"nj_0", "kj_0", "pj_0", "qp_0", "sp_0", "rq_0"}
    assert parts["nj_0"] == parts["kj_0"] == parts["pj_0"] == 0.0
    # straight across the node p, and then across q
    assert length_m["pj_0"] < parts["qp_0"] < length_m["pj_0"] + 20
    assert parts["qp_0"] + length_m["qp_0"] <= parts["rq_0"] < APPROACH_M


def test_an_approach_does_not_reach_past_another_signal_nor_turn_around(short_lanes: SumoFiles) -> None:
    parts, length_m = in_new_process(_approach, short_lanes, "k")
    assert length_m["jk_0"] < APPROACH_M
    assert set(parts) == {"jk_0", "ek_0", "mk_0"}


def _seen(files: SumoFiles) -> list[tuple[float, int]]:
    """While a single vehicle approaches: SUMO's distance to the stop line, and the distance that the junction sees."""
    control = SignalControl(Simulation(files), Timing())
    control.start()
    seen = []
    for _ in range(200):
        control.advance({})
        if "v" not in libsumo.vehicle.getIDList():
            break
        signals = libsumo.vehicle.getNextTLS("v")
        if signals and signals[0][0] == "j" and not libsumo.vehicle.getRoadID("v").startswith(":"):
            counts = [
                (stage.moving_near_veh, stage.moving_mid_veh, stage.moving_far_veh, stage.queue_veh)
                for stage in observe(control, "j").stages
            ]
            place = max((values.index(1) for values in counts if sum(values)), default=-1)
            assert all(sum(values) <= 1 for values in counts)
            seen.append((signals[0][2], place))
    return seen


def test_a_junction_sees_a_vehicle_at_sumos_own_distance_through_all_pieces(short_lanes: SumoFiles) -> None:
    seen = in_new_process(_seen, short_lanes)
    assert {place for _, place in seen} >= {0, 1}
    for distance_m, place in seen:
        assert place == 3 or place == (distance_m >= 50) + (distance_m >= 100)


def _distances(files: SumoFiles) -> list[tuple[float, float]]:
    """The distances of vehicles to the stop line of their next signal, by SUMO and by us."""
    control = SignalControl(Simulation(files), Timing())
    control.start()
    for _ in range(200):
        control.advance({})
    pairs = []
    for junction_id, program in control.programs.items():
        for part in {part for stage in program.stages for part in stage.approach if part.distance_m > 0}:
            for name in libsumo.lane.getLastStepVehicleIDs(part.lane):
                signals = libsumo.vehicle.getNextTLS(name)
                if signals and signals[0][0] == junction_id:
                    rest_m = libsumo.lane.getLength(part.lane) - libsumo.vehicle.getLanePosition(name)
                    pairs.append((signals[0][2], part.distance_m + rest_m))
    return pairs


def test_distances_on_a_real_net_are_those_of_sumo(tmp_path: Path) -> None:
    [scenario] = traffic_scenarios(["resco:ingolstadt7"], tmp_path)
    pairs = in_new_process(_distances, scenario.files(1001))
    assert len(pairs) > 10
    # lanes that lead to several incoming lanes have the distance by the shortest of the ways
    assert all(ours == pytest.approx(sumos, abs=10) for sumos, ours in pairs)


def _programs_of(files: SumoFiles) -> list[tuple[tuple[str, ...], ...]]:
    programs = read_signals(Simulation(files)).programs.values()
    return [
        lanes
        for program in programs
        for lanes in (
            (program.incoming_lanes, program.approach_lanes),
            *((stage.incoming_lanes, stage.approach_lanes) for stage in program.stages),
        )
    ]


@pytest.mark.parametrize("name", ["four_way", "arterial", "grid"])
def test_the_approach_is_the_incoming_lanes_where_they_are_long(name: str, repo_root: Path, tmp_path: Path) -> None:
    path = repo_root / f"configs/scenarios/{name}.yaml"
    [scenario] = traffic_scenarios([str(path)], tmp_path)
    for incoming, approach in in_new_process(_programs_of, scenario.files(1001)):
        assert incoming == approach
