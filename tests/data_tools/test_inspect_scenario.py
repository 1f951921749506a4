"""The look at a scenario: stages and their movements against the net's own text, bounds, demand, and trouble."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools import inspect_scenario
from data_tools.inspection import Counts, Run, growing_queue_veh, phase_words, stage_facts, standing_veh
from tsc.controllers.opening import opened
from tsc.controllers.signal_plans import PlannedSignals
from tsc.episodes.trace import Trace
from tsc.errors import ConfigError, ScenarioError, UnknownJunction
from tsc.scenarios.by_word import traffic_scenarios
from tsc.scenarios.network_file import load_network_file
from tsc.sumo.binaries import write_net
from tsc.sumo.running import SumoFiles
from tsc.sumo.signal_program import Phase, SignalPlan

# one signal with two lanes on each approach, and a crossing over each
GRID = [
    "--grid",
    "--grid.number",
    "1",
    "--grid.attach-length",
    "150",
    "-L",
    "2",
    "--sidewalks.guess",
    "--crossings.guess",
]


def sumocfg(folder: Path, *, rate_s: float = 6.0, first_s: int = 0, signals: bool = True) -> Path:
    """A scenario of 300 s in which a vehicle drives from west to east every rate_s seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = "traffic_light" if signals else "priority"
    write_net("netgenerate", [*GRID, "--default.junctions.type", kind], folder / "net.xml", what="the test")
    departs = (first_s + rate_s * number for number in range(round(300 / rate_s)))
    trips = [f'<trip id="{n}" depart="{s:.2f}" from="left0A0" to="A0right0"/>' for n, s in enumerate(departs)]
    (folder / "trips.xml").write_text(f"<routes>{''.join(trips)}</routes>")
    path = folder / "crossing.sumocfg"
    path.write_text(
        '<configuration><net-file value="net.xml"/><route-files value="trips.xml"/>'
        '<begin value="0"/><end value="300"/></configuration>'
    )
    return path


def inspected(out: Path, *words: str | Path) -> dict[str, Any]:
    """The facts of the one scenario."""
    inspect_scenario.main([*map(str, words), "--out", str(out), "--demand-as-filed"])
    [path] = out.glob("*/inspect.json")
    return json.loads(path.read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def crossing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sumocfg(tmp_path_factory.mktemp("crossing"))


@pytest.fixture(scope="module")
def out(crossing: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("inspect")
    inspected(out, crossing, "--junctions", "A0")
    return out / "crossing"


@pytest.fixture(scope="module")
def junction(out: Path) -> dict[str, Any]:
    [junction] = json.loads((out / "inspect.json").read_text())["junctions"]
    return junction  # type: ignore[no-any-return]


def test_the_green_movements_are_those_of_the_nets_text(crossing: Path, junction: dict[str, Any]) -> None:
    net = ElementTree.parse(crossing.with_name("net.xml")).getroot()
    states = [phase.get("state", "") for phase in net.findall("tlLogic[@id='A0']/phase")]
    of_signal = [each for each in net.findall("connection") if each.get("tl") == "A0"]
    for_vehicles = {int(each.get("linkIndex", -1)) for each in of_signal if not each.get("from", "").startswith(":")}
    for stage in junction["stages"]:
        [state] = {states[index] for index in stage["phases"]}
        letters = {link: state[link] for link in for_vehicles if state[link] in "Gg"}
        assert {each["link"]: "g" if each["yields"] else "G" for each in stage["movements"]} == letters
        drawn = {(each["from_lane"], each["to_lane"]) for each in stage["movements"]}
        assert drawn == {
            (f"{each.get('from')}_{each.get('fromLane')}", f"{each.get('to')}_{each.get('toLane')}")
            for each in of_signal
            if int(each.get("linkIndex", -1)) in letters
        }
        green = {
            each.get("to")
            for each in of_signal
            if ":" in each.get("from", "") and state[int(each.get("linkIndex", -1))] in "Gg"
        }
        assert set(stage["crossings"]) == green and len(green) == 2


def test_a_transition_is_told_in_words(junction: dict[str, Any]) -> None:
    for stage in junction["stages"]:
        assert stage["transition"] == "pedestrians clear 5 s, yellow 3 s" and stage["transition_s"] == 8
        assert stage["without_yellow"] == []


def test_demand_and_saturation_are_those_of_the_trips(junction: dict[str, Any]) -> None:
    demand = {each["edge"]: (each["demand_veh_per_h"], each["from"]) for each in junction["approaches"]}
    # one vehicle every 6 s; the first and the last second may cost one
    assert demand.pop("left0A0") == (pytest.approx(600, abs=13), "west")
    assert {veh for veh, _ in demand.values()} == {0} and {side for _, side in demand.values()} == {
        "north",
        "east",
        "south",
    }
    served = [stage for stage in junction["stages"] if stage["flow_ratio"]]
    # 600 veh/h on two lanes of 1800 veh/h, in a green of 37 s and 5 s of a cycle of 90 s
    assert len(served) == 1 and served[0]["flow_ratio"] == pytest.approx(600 / 2 / 1800, rel=0.03)
    assert served[0]["saturation"] == pytest.approx(600 / 2 / 1800 / (42 / 90), rel=0.03)
    assert junction["saturation"] == pytest.approx(600 / 2 / 1800 * 90 / (90 - 6), rel=0.03)


def test_the_page_holds_all_pictures(out: Path, junction: dict[str, Any]) -> None:
    assert [path.name for path in (out / "junctions").iterdir()] == ["A0.png"]
    assert (out / junction["picture"]).read_bytes().startswith(b"\x89PNG")
    page = (out / "inspect.html").read_text()
    assert page.count('src="data:image/png;base64,') == page.count("<img ") == 2
    assert "3 approaches without any vehicle" in page and (out / "crossing.yaml").read_text()[:40] in page


def bounds(word: Path, folder: Path) -> dict[str, tuple[tuple[int, int], ...]]:
    [scenario] = traffic_scenarios([str(word)], folder)
    return {name: plan.green_bounds for name, plan in opened(scenario, folder / "signals").plans.items()}


def test_the_network_file_gives_the_same_bounds(
    out: Path, crossing: Path, junction: dict[str, Any], tmp_path: Path
) -> None:
    path = out / "crossing.yaml"
    shown = [(stage["min_green_s"], stage["max_green_s"]) for stage in junction["stages"]]
    assert bounds(path, tmp_path) == {"A0": tuple(shown)} == {"A0": ((10, 60), (10, 60))}
    edited = tmp_path / "edited.yaml"
    edited.write_text(path.read_text().replace("- [10, 60]  # stage 2", "- [5, 25]  # stage 2"))
    facts = inspected(tmp_path / "again", edited, "--simulate", "5", "--pictures", "0")
    [again] = facts["junctions"]
    assert [(stage["min_green_s"], stage["max_green_s"]) for stage in again["stages"]] == [(10, 60), (5, 25)]
    assert [stage["bounds_from"] for stage in again["stages"]] == ["greens of the scenario file"] * 2
    assert again["picture"] is None
    # a network file gives a network file on the same sumocfg
    written = load_network_file(tmp_path / "again/crossing/crossing.yaml")
    assert (written.sumocfg, written.greens) == (str(crossing), {"A0": [(10, 60), (5, 25)]})


def test_scenarios_of_every_kind_have_a_page(short_scenario: Path, tmp_path: Path, capsys) -> None:
    inspect_scenario.main(["sumo:cross", str(short_scenario), "--simulate", "60", "--out", str(tmp_path)])
    cross, four_way = (json.loads((tmp_path / name / "inspect.json").read_text()) for name in ("cross", "four_way"))
    [junction] = cross["junctions"]
    assert cross["step_length_s"] == 0.2 and junction["saturation"] is None
    assert {stage["bounds_from"] for stage in junction["stages"]} == {"the timing, as no green is planned"}
    assert {stage["bounds_from"] for stage in four_way["junctions"][0]["stages"]} == {"the same for all"}
    assert (tmp_path / "cross/cross.yaml").exists() and not (tmp_path / "four_way/four_way.yaml").exists()
    printed = capsys.readouterr().out
    assert "1      10-60 s  the same for all" in printed and f"page: {tmp_path}/four_way/inspect.html" in printed


def test_departures_outside_the_period_are_named(tmp_path: Path) -> None:
    facts = inspected(tmp_path / "out", sumocfg(tmp_path / "late", first_s=1000), "--simulate", "60")
    [trouble] = facts["trouble"]
    assert trouble.startswith(
        "no vehicle entered at all between 0 and 60 s: the departures of the route files are from 1000 to 1294"
    )


def test_vehicles_that_find_no_room_are_named(tmp_path: Path) -> None:
    facts = inspected(tmp_path / "out", sumocfg(tmp_path / "full", rate_s=0.5))
    refused = [line for line in facts["trouble"] if "could not enter by 300 s" in line]
    assert len(refused) == 2 and all("of 600 vehicles" in line for line in refused)


def test_a_net_without_signals_and_an_unknown_junction_are_refused(crossing: Path, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="has no signal: give its junctions traffic lights"):
        inspected(tmp_path / "out", sumocfg(tmp_path / "plain", signals=False))
    with pytest.raises(UnknownJunction, match="junction 'A1' has no signal in .*: the signals are A0"):
        inspected(tmp_path / "out", crossing, "--junctions", "A1")
    with pytest.raises(ConfigError, match="is unknown"):
        inspected(tmp_path / "out", "nothing")


def plan(*phases: tuple[str, float]) -> SignalPlan:
    return SignalPlan(
        junction_id="A0",
        program_id="0",
        type="static",
        offset_s=0,
        phases=tuple(Phase(state=state, duration_s=duration_s) for state, duration_s in phases),
        is_for_vehicles=(True, True, False),
        green_bounds=((10, 60), (10, 60)),
    )


def test_every_kind_of_phase_has_its_words() -> None:
    between = ("GrG", "Grr", "yrr", "rrr", "rrG", "rur", "rGr")
    one = plan(*((state, 5.0) for state in between))
    assert [phase_words(one, index, "GrG", "rGG") for index in range(len(between))] == [
        "the same green", "pedestrians clear", "yellow", "all red", "only pedestrians", "red and yellow",
        "next green, pedestrians wait",
    ]  # fmt: skip


def test_a_green_that_ends_without_yellow_is_found() -> None:
    one = plan(("Grr", 30), ("rrr", 2), ("rGr", 30), ("ryr", 3))
    planned = PlannedSignals(
        files=SumoFiles(net_file=Path(), route_files=()),
        plans={"A0": one},
        bounds_from={"A0": ("", "")},
        types={"A0": "static"},
        skipped={},
    )
    first, second = stage_facts(planned, "A0", [])
    assert (first["without_yellow"], first["transition"]) == ([0], "all red 2 s")
    assert (second["without_yellow"], second["transition"]) == ([], "yellow 3 s")


def run(halting_veh: list[list[int]], *, not_left: set[str]) -> Run:
    """halting_veh: of each lane, one number for each quarter of 1200 s."""
    trace = Trace(
        begin_s=0,
        lanes=tuple(f"lane_{number}" for number in range(len(halting_veh))),
        programs={},
        halting_veh=np.repeat(np.array(halting_veh, dtype=np.uint16).T, 300, axis=0),
        stage=np.zeros((1200, 1), dtype=np.int8),
        arrived_veh=np.zeros(1200, dtype=np.uint32),
    )
    return Run(
        record={}, trace=trace, counts=Counts(onto_edge={}, arrived={}, inner_lane={}, not_left=frozenset(not_left))
    )


def test_lanes_that_nobody_leaves_and_growing_queues_are_found() -> None:
    # somebody left the second lane, and nobody stands on the third
    assert standing_veh(run([[0, 1, 5, 7], [9, 9, 9, 9], [9, 9, 9, 0]], not_left={"lane_0", "lane_2"})) == {"lane_0": 7}
    assert growing_queue_veh(run([[0, 10, 20, 31]], not_left=set())) == (20, 31)
    assert growing_queue_veh(run([[0, 10, 20, 24]], not_left=set())) is None


def test_file_names_of_pictures_are_safe_and_differ() -> None:
    names = inspect_scenario._file_names(["a/b", "a b", "A_B", "x" * 300, "../.."])
    assert names == ["a_b.png", "a_b-2.png", "A_B-3.png", "x" * 80 + ".png", "_____.png"]
