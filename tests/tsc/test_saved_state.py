"""What SUMO leaves out of a saved state, and that it is put back."""

import gzip
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.decision import Decision
from tsc.errors import StateError
from tsc.fork import in_fork
from tsc.saved_state import (
    demand_until_s,
    occupied_internal_lanes,
    state_text,
    state_time_s,
    with_repeated_loader_second,
    with_right_of_way,
    without_departures_after,
)
from tsc.signal_control import SignalControl
from tsc.simulation import Simulation, SumoFiles
from tsc.timing import Timing

STATE = """<?xml version="1.0" encoding="UTF-8"?>
<snapshot type="micro" version="1.28.0" time="69.000">
    <delay number="3" begin="3" end="0" depart="0.00" time="0.00" loaderTime="75000"/>
    <route id="!a" state="0" edges="w e"/>
    <route id="!b" state="0" edges="w e"/>
    <vehicle id="a" depart="60.000" route="!a" state="20 60000 0"/>
    <vehicle id="b" depart="74.000" route="!b" state="20 9223372036854774807 0">
        <param key="x" value="1"/>
    </vehicle>
    <vehicle id="c" depart="74.500" route="!a" state="20 9223372036854774807 0"/>
    <lane id=":J_1_0">
        <vehicles value="a"/>
    </lane>
    <lane id="w_0">
        <vehicles value="d"/>
    </lane>
</snapshot>
"""


def test_a_vehicle_inside_a_junction_is_registered_at_the_link_ahead() -> None:
    assert occupied_internal_lanes(STATE) == [":J_1_0"]
    text = with_right_of_way(STATE, {":J_1_0": "e_0"})
    assert re.search(r'<lane id=":J_1_0">\s*<vehicles value="a"/><link to="e_0"><approaching id="a" ', text)
    assert occupied_internal_lanes(text) == []
    assert with_right_of_way(STATE, {}) == STATE


def test_later_departures_are_left_out_with_their_own_routes() -> None:
    text = without_departures_after(STATE, 73)
    assert re.findall('<vehicle id="(.)"', text) == ["a"]
    assert re.findall('<route id="!(.)"', text) == ["a"]
    assert "<param" not in text
    assert re.findall('<vehicle id="(.)"', without_departures_after(STATE, 74)) == ["a", "b"]
    assert without_departures_after(STATE, 75) == STATE


def test_the_state_tells_its_time_and_how_far_its_demand_reaches() -> None:
    assert state_time_s(STATE) == 69
    assert demand_until_s(STATE) == 75
    assert demand_until_s(with_repeated_loader_second(STATE)) == 74.999
    assert demand_until_s(STATE.replace(' loaderTime="75000"', "")) is None
    assert demand_until_s(STATE.replace("<lane", '<flowState id="f"/><lane', 1)) is None


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00\xff", gzip.compress(STATE.encode())[:-20], STATE[: len(STATE) // 2].encode(), b"<xml/>"],
    ids=["empty", "no text", "cut archive", "cut text", "another file"],
)
def test_a_damaged_state_is_named(data: bytes) -> None:
    with pytest.raises(StateError, match="states/t1.xml.gz"):
        state_text(data, Path("states/t1.xml.gz"))


def _ends(files: SumoFiles, folder: Path) -> list[tuple[str, str, str]]:
    """At every tenth second in which a vehicle stands inside the junction: the traffic 15 s later in a fork, after a
    load of the state as SUMO wrote it, and after a load of the state with the registrations."""
    simulation = Simulation(files, saves_states=True)
    control = SignalControl(simulation, Timing())
    control.start()
    state_file, completed_file = folder / "state.xml.gz", folder / "completed.xml"
    no_routes = replace(files, route_files=())

    def end(control: SignalControl) -> str:
        for _ in range(15):
            control.advance(dict.fromkeys(control.due_junctions(), Decision.NO))
        return control.simulation.traffic_digest()

    def end_of_load(path: Path) -> str:
        loaded = SignalControl(Simulation(no_routes, state_file=path), Timing())
        loaded.restore(control.stored_clocks())
        return end(loaded)

    found = []
    for _ in range(600):
        control.advance(dict.fromkeys(control.due_junctions(), Decision.NO))
        simulation.save_state(state_file)
        text = state_text(state_file.read_bytes(), state_file)
        lanes = occupied_internal_lanes(text)
        if sum(simulation.queue_veh([lane]) for lane in lanes) == 0:
            continue
        next_lanes = {lane: simulation.next_lane(lane) for lane in lanes}
        completed_file.write_text(with_right_of_way(text, {lane: to for lane, to in next_lanes.items() if to}))
        found.append(
            (
                in_fork(lambda: end(control)),
                in_fork(lambda: end_of_load(state_file)),
                in_fork(lambda: end_of_load(completed_file)),
            )
        )
        if len(found) == 12:
            break
    return found


def test_vehicles_that_wait_inside_a_junction_keep_waiting_once_they_are_registered(
    files: SumoFiles, tmp_path: Path
) -> None:
    ends = in_new_process(_ends, files, tmp_path)
    assert len(ends) >= 5
    assert [completed for _, _, completed in ends] == [forked for forked, _, _ in ends]
    # SUMO 1.28 as it is; the day this fails, with_right_of_way is not needed any more
    assert [as_saved for _, as_saved, _ in ends] != [forked for forked, _, _ in ends]
