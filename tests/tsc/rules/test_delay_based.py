"""Which vehicles hold a green under delay-based control."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.junction.timing import Timing
from tsc.rules.delay_based import RANGE_M, DelayBased
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation

# The first stage is green for top and bottom. Vehicles need some 20 s to the junction.
# They do not overtake.
_DRIVER = 'sigma="0" speedDev="0" lcSpeedGain="0" lcKeepRight="0"'
TYPES = f'<vType id="car" {_DRIVER}/><vType id="slow" {_DRIVER} maxSpeed="5"/>'


def vehicle(name: str, edges: str, kind: str = "car", depart_s: int = 0) -> str:
    return (
        f'<vehicle id="{name}" type="{kind}" depart="{depart_s}" departSpeed="max" departPos="0" departLane="1">'
        f'<route edges="{edges}"/></vehicle>'
    )


FREE = vehicle("free", "top0A0 A0bottom0")
RED = vehicle("red", "right0A0 A0left0")
# the second vehicle would like to drive faster than the first
HELD_UP = vehicle("first", "top0A0 A0bottom0", "slow") + vehicle("held_up", "top0A0 A0bottom0", depart_s=1)


def decisions(files: SumoFiles, max_green_s: int, first_asked_s: int) -> dict[int, tuple[Decision, list[str]]]:
    """By second, the decision and the vehicles within range of the green stop line. The green is held to its end."""
    control = SignalControl(Simulation(files), Timing(min_green_s=1, green_extension_s=1, max_green_s=max_green_s))
    control.start()
    rule, found = DelayBased(), {}
    lanes = control.program("A0").stages[0].approach_lanes
    for second in range(1, max_green_s):
        control.advance({"A0": Decision.YES})
        if second >= first_asked_s:
            near = [each for lane in lanes for each in control.simulation.delayed(lane) if each.distance_m <= RANGE_M]
            found[second] = (rule.decide(control, ["A0"])["A0"], [each.name for each in near])
    return found


def decided(
    files: SumoFiles, folder: Path, vehicles: str, *, max_green_s: int = 80, first_asked_s: int = 1
) -> dict[int, tuple[Decision, list[str]]]:
    path = folder / "some.rou.xml"
    path.write_text(f"<routes>{TYPES}{vehicles}</routes>")
    return in_new_process(decisions, replace(files, route_files=(path,)), max_green_s, first_asked_s)


def test_a_green_goes_on_while_the_red_lanes_are_empty(files: SumoFiles, tmp_path: Path) -> None:
    assert {decision for decision, _ in decided(files, tmp_path, FREE).values()} == {Decision.YES}


def test_a_vehicle_that_nothing_delays_does_not_hold_a_green(files: SumoFiles, tmp_path: Path) -> None:
    found = decided(files, tmp_path, FREE + RED)
    ends_s = min(second for second, (decision, _) in found.items() if decision is Decision.NO)
    # as soon as the other one comes into range of the red light
    assert found[ends_s][1] == ["free"]
    assert all(decision is Decision.NO for second, (decision, _) in found.items() if second >= ends_s)


@pytest.mark.parametrize("first_asked_s", [1, 50])
def test_a_delayed_vehicle_holds_its_green_until_it_has_passed(
    files: SumoFiles, tmp_path: Path, first_asked_s: int
) -> None:
    found = decided(files, tmp_path, RED + HELD_UP, first_asked_s=first_asked_s)
    in_range = [second for second, (_, near) in found.items() if "held_up" in near]
    # it has to lose a second in range first, unless what it lost before is estimated
    since_s = in_range[0] + (3 if first_asked_s == 1 else 0)
    for second, (decision, _) in found.items():
        if second >= since_s:
            assert decision is (Decision.YES if second <= in_range[-1] else Decision.NO), second


def test_a_green_that_must_end_before_the_vehicle_can_pass_ends_at_once(files: SumoFiles, tmp_path: Path) -> None:
    found = decided(files, tmp_path, RED + HELD_UP, max_green_s=50)
    # at the speed limit, the last 100 m take 7.2 s
    last = [decision for second, (decision, near) in found.items() if "held_up" in near]
    assert last[-1] is Decision.NO and Decision.YES in last
