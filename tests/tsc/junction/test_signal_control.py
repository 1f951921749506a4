"""On the real four_way net in SUMO."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.errors import ReplayError, StateError, UnknownJunction
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl, read_signals
from tsc.junction.timing import Timing
from tsc.rules.max_pressure import MaxPressure
from tsc.sumo.binaries import sumo_binary
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation, libsumo


def _phases_and_stages(files: SumoFiles, answer: Decision, seconds: int) -> list[tuple[int, bool, int, float]]:
    control = SignalControl(Simulation(files), Timing())
    control.start()
    seen = []
    for _ in range(seconds):
        due = control.due_junctions()
        control.advance(dict.fromkeys(due, answer))
        clock = control.clocks["A0"]
        seen.append((control.simulation.phase_index("A0"), clock.green, clock.stage, clock.elapsed_green_s))
    return seen


def test_always_no_gives_the_minimum_green_and_the_programs_own_yellow(files: SumoFiles) -> None:
    seen = in_new_process(_phases_and_stages, files, Decision.NO, 39)
    assert [phase for phase, *_ in seen] == [0] * 10 + [1] * 3 + [2] * 10 + [3] * 3 + [0] * 10 + [1] * 3


def test_always_yes_runs_to_the_maximum_green(files: SumoFiles) -> None:
    seen = in_new_process(_phases_and_stages, files, Decision.YES, 66)
    assert [phase for phase, *_ in seen] == [0] * 60 + [1] * 3 + [2] * 3


def test_the_clock_counts_the_seconds_of_its_green(files: SumoFiles) -> None:
    seen = in_new_process(_phases_and_stages, files, Decision.NO, 26)
    greens = [(stage, elapsed) for phase, green, stage, elapsed in seen if green]
    assert greens == [(0, float(s)) for s in range(1, 11)] + [(1, float(s)) for s in range(1, 11)]


def _restore(files: SumoFiles, folder: Path, wrong: dict[str, object]) -> tuple[list[int], list[int]]:
    """Phases over 80 s of an uninterrupted run and of one restored at 27 s, both under gap-free static answers."""
    control = SignalControl(Simulation(files), Timing())
    control.start()
    for _ in range(27):
        control.advance(dict.fromkeys(control.due_junctions(), Decision.NO))
    control.simulation.save_state(folder / "state.xml.gz")
    clocks = control.stored_clocks()
    straight = []
    for _ in range(80):
        control.advance(dict.fromkeys(control.due_junctions(), Decision.NO))
        straight.append(control.simulation.phase_index("A0"))
    clocks["A0"] = clocks["A0"].model_copy(update=wrong)
    restored = SignalControl(Simulation(files, state_file=folder / "state.xml.gz"), Timing())
    restored.restore(clocks)
    again = []
    for _ in range(80):
        restored.advance(dict.fromkeys(restored.due_junctions(), Decision.NO))
        again.append(restored.simulation.phase_index("A0"))
    return straight, again


def test_a_restored_control_goes_on_as_the_uninterrupted_one(files: SumoFiles, tmp_path: Path) -> None:
    straight, again = in_new_process(_restore, files, tmp_path, {})
    assert straight == again


def test_a_clock_that_contradicts_the_state_is_rejected(files: SumoFiles, tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="do not belong together"):
        in_new_process(_restore, files, tmp_path, {"mode": "green", "stage": 1})


def _program_of(files: SumoFiles, junction_id: str) -> None:
    SignalControl(Simulation(files), Timing()).program(junction_id)


def test_an_unknown_junction_is_told_with_the_known_ones(files: SumoFiles) -> None:
    with pytest.raises(UnknownJunction, match="'B7'.*choose one of A0"):
        in_new_process(_program_of, files, "B7")


def _save(files: SumoFiles, path: Path, simulations_before: int) -> None:
    for _ in range(simulations_before):
        Simulation(files).step()
    simulation = Simulation(files)
    for _ in range(50):
        simulation.step()
    simulation.save_state(path)


def test_the_same_simulation_saves_the_same_bytes(files: SumoFiles, tmp_path: Path) -> None:
    for name in ("a", "b"):
        in_new_process(_save, files, tmp_path / f"{name}.xml.gz", 0)
    assert (tmp_path / "a.xml.gz").read_bytes() == (tmp_path / "b.xml.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.xml.gz", "b.xml.gz"]


def test_a_used_process_refuses_to_save_since_sumo_would_count_its_random_numbers_wrong(
    files: SumoFiles, tmp_path: Path
) -> None:
    with pytest.raises(StateError, match="new process"):
        in_new_process(_save, files, tmp_path / "a.xml.gz", 1)


NODES = """<nodes>
    <node id="w" x="-200" y="0"/><node id="j" x="0" y="0" type="traffic_light"/><node id="e" x="300" y="0"/>
    <node id="n" x="0" y="200"/><node id="s" x="0" y="-200"/>
    <node id="c" x="150" y="0" type="rail_crossing"/><node id="rs" x="150" y="100" type="rail_signal"/>
    <node id="rn" x="150" y="200"/><node id="rb" x="150" y="-200"/>
</nodes>"""


def _controlled(files: SumoFiles, switched_by_sumo: bool) -> tuple[set[str], list[str]]:
    simulation = Simulation(files)
    return set(simulation.junction_ids()), list(read_signals(simulation, switched_by_sumo=switched_by_sumo).programs)


def test_the_signals_of_a_railway_are_left_to_sumo(tmp_path: Path) -> None:
    roads = [f'<edge id="{a}{b}" from="{a}" to="{b}"/>' for a, b in ("wj", "jw", "nj", "jn", "sj", "js", "jc", "ce")]
    rails = [
        f'<edge id="{a}{b}" from="{a}" to="{b}" allow="rail"/>' for a, b in (("rn", "rs"), ("rs", "c"), ("c", "rb"))
    ]
    (tmp_path / "x.nod.xml").write_text(NODES)
    (tmp_path / "x.edg.xml").write_text(f"<edges>{''.join(roads + rails)}</edges>")
    command = [sumo_binary("netconvert"), "-n", tmp_path / "x.nod.xml", "-e", tmp_path / "x.edg.xml"]
    subprocess.run([*map(str, command), "-o", str(tmp_path / "x.net.xml")], check=True, capture_output=True)
    files = SumoFiles(net_file=tmp_path / "x.net.xml", route_files=())
    for switched_by_sumo in (False, True):
        assert in_new_process(_controlled, files, switched_by_sumo) == ({"j", "c", "rs"}, ["j"])


def _seen_greens(files: SumoFiles, seconds: int) -> tuple[int, list[str]]:
    """Under max-pressure: how many seconds of green were seen, and what contradicts the definition of a stage."""
    simulation = Simulation(files)
    control = SignalControl(simulation, Timing())
    control.start()
    green_s, wrong = 0, []
    unchanged: dict[str, tuple[frozenset[int], int]] = {}
    for second in range(seconds):
        control.advance(MaxPressure().decide(control, control.due_junctions()))
        for name, clock in control.clocks.items():
            plan = simulation.signal_plan(name)
            state = libsumo.trafficlight.getRedYellowGreenState(name)
            green = frozenset(n for n, letter in enumerate(state) if letter in "Gg" and plan.is_for_vehicles[n])
            held = plan.held_phases[clock.stage][0]
            if clock.green:
                green_s += 1
                if state != plan.phases[held].state:
                    wrong.append(f"{name} at {second} s: {state} is not stage {clock.stage}")
            before, since = unchanged.get(name, (frozenset(), second))
            if green != before:
                unchanged[name] = (green, second)
            # the maximum green, and a pedestrian clearance of some seconds
            elif green and second - since > Timing().max_green_s + 10:
                wrong.append(f"{name} at {second} s: the same movements have been green for {second - since} s")
    return green_s, wrong


@pytest.mark.parametrize("options", [[], ["--crossings.guess", "--sidewalks.guess"], ["--tls.layout", "incoming"]])
def test_stages_are_what_the_signals_of_an_episode_show(tmp_path: Path, options: list[str]) -> None:
    path = tmp_path / "x.net.xml"
    shape = ["--grid", "--grid.x-number", "2", "--grid.y-number", "1", "--grid.attach-length", "150", "-L", "2"]
    signals = ["--default.junctions.type", "traffic_light", "--no-turnarounds", "--turn-lanes", "1"]
    command = [str(sumo_binary("netgenerate")), *shape, *signals, "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    command = [str(sumo_binary("netconvert")), "-s", str(path), "-o", str(path), "--tls.rebuild", *options]
    subprocess.run(command, check=True, capture_output=True)
    routes = tmp_path / "x.rou.xml"
    routes.write_text(
        '<routes><flow id="a" begin="0" end="600" period="6" from="left0A0" to="B0right0"/>'
        '<flow id="b" begin="0" end="600" period="9" from="bottom0A0" to="A0top0"/></routes>'
    )
    green_s, wrong = in_new_process(_seen_greens, SumoFiles(net_file=path, route_files=(routes,)), 400)
    assert wrong == [] and green_s > 400


def _greens_in_half_steps(files: SumoFiles, seconds: int) -> tuple[list[float], float]:
    control = SignalControl(Simulation(replace(files, step_length_s=0.5)), Timing())
    control.start()
    ended = []
    for _ in range(seconds):
        clock = control.clocks["A0"]
        green, elapsed_s = clock.green, clock.elapsed_green_s
        control.advance(dict.fromkeys(control.due_junctions(), Decision.NO))
        if green and not control.clocks["A0"].green:
            ended.append(elapsed_s)
    return ended, control.simulation.time_s


def test_decisions_fall_on_whole_seconds_where_steps_are_shorter(files: SumoFiles) -> None:
    ended, time_s = in_new_process(_greens_in_half_steps, files, 60)
    assert time_s == 60.0 and len(ended) >= 4 and set(ended) == {10.0}
