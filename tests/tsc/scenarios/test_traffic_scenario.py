"""Scenarios by their words, with the installed packages and real SUMO."""

import dataclasses
import json
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import sumo

from tests.tsc.sumo_process import in_new_process
from tsc.controllers.opening import opened
from tsc.errors import ConfigError, ScenarioError, UnknownJunction
from tsc.junction.signal_control import SignalControl
from tsc.junction.timing import Timing
from tsc.scenarios.by_word import is_scenario_file, traffic_scenarios
from tsc.scenarios.demand_variation import DemandVariation
from tsc.scenarios.packaged import PACKAGED_WORDS
from tsc.scenarios.scenario import Split
from tsc.scenarios.traffic_scenario import ScenarioSettings, TrafficScenario
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation

# signals with two stages, counted in SUMO's own reading of the nets
NUM_JUNCTIONS = {
    **{"resco:cologne1": 1, "resco:cologne3": 3, "resco:cologne8": 8},
    **{"resco:ingolstadt1": 1, "resco:ingolstadt7": 7, "resco:ingolstadt21": 21},
    **{"resco:grid4x4": 16, "resco:arterial4x4": 16},
    **{"sumo:rilsa1": 1, "sumo:rilsa2": 1, "sumo:rilsa3": 1, "sumo:rilsa4": 1},
    **{"sumo:a10kw": 2, "sumo:corridor": 3, "sumo:cross": 1, "sumo:fkk_in": 2, "sumo:grid6": 6, "sumo:square": 4},
}


AS_FILED = DemandVariation(resample=False)


def scenario_of(word: str, folder: Path, **settings: Any) -> TrafficScenario:
    [scenario] = traffic_scenarios([word], folder, ScenarioSettings(**settings))
    return scenario


def controlled_junctions(scenario: TrafficScenario) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        return list(opened(scenario, Path(folder)).plans)


def episode_files(scenario: TrafficScenario, number: int = 0, split: Split = "evaluation") -> SumoFiles:
    return scenario.files(scenario.episode_seed(split, number))


def _run(files: SumoFiles, seconds: int) -> tuple[float, str]:
    control = SignalControl(Simulation(files), Timing())
    control.start()
    for _ in range(seconds):
        control.advance({})
    return control.simulation.time_s, control.simulation.traffic_digest()


def test_every_word_that_is_offered_has_its_number_of_junctions_here() -> None:
    assert sorted(PACKAGED_WORDS) == sorted(NUM_JUNCTIONS)


@pytest.mark.parametrize("word", NUM_JUNCTIONS)
def test_the_nets_of_others_open_with_their_junctions(word: str, tmp_path: Path) -> None:
    assert len(controlled_junctions(scenario_of(word, tmp_path))) == NUM_JUNCTIONS[word]


@pytest.mark.parametrize("word", ["resco:cologne1", "sumo:rilsa1", "sumo:cross"])
def test_the_seed_draws_the_drivers_of_fixed_demand_and_the_same_seed_the_same(word: str, tmp_path: Path) -> None:
    scenario = scenario_of(word, tmp_path, demand=AS_FILED)
    runs = []
    for number in (0, 1, 0):
        files = episode_files(scenario, number)
        assert files.seed == 1001 + number
        runs.append(in_new_process(_run, files, 60))
    assert {time_s for time_s, _ in runs} == {scenario.begin_s + 60.0}
    assert runs[0] == runs[2] != runs[1]


@pytest.mark.parametrize("word", ["sumo:cross", "configs/scenarios/four_way.yaml"])
def test_no_two_splits_share_a_seed(word: str, repo_root: Path, tmp_path: Path) -> None:
    scenario = scenario_of(word if ":" in word else str(repo_root / word), tmp_path)
    splits: list[Split] = ["train", "validation", "evaluation"]
    assert [scenario.episode_seed(split, 3) for split in splits] == [4, 504, 1004]
    with pytest.raises(ScenarioError, match="train has room for 500 episodes"):
        scenario.episode_seed("train", 500)


def test_a_scenario_of_ours_draws_other_vehicles_for_each_seed(short_scenario: Path, tmp_path: Path) -> None:
    scenario = scenario_of(str(short_scenario), tmp_path)
    files, others = episode_files(scenario, 0), episode_files(scenario, 1)
    assert scenario.draws_vehicles and not scenario_of("sumo:cross", tmp_path, demand=AS_FILED).draws_vehicles
    assert (files.seed, others.seed) == (1001, 1002)
    assert files.net_file == others.net_file
    assert files.route_files[0].read_bytes() != others.route_files[0].read_bytes()
    assert (scenario.begin_s, scenario.end_s, scenario.timing.min_green_s) == (0, 300, 10)
    assert controlled_junctions(scenario) == ["A0"]


def test_the_demand_is_written_where_the_caller_wants_it(short_scenario: Path, tmp_path: Path) -> None:
    scenario = scenario_of(str(short_scenario), tmp_path)
    there = scenario.files(7, demand_file=tmp_path / "episode" / "demand.rou.xml").route_files
    assert there == (tmp_path / "episode" / "demand.rou.xml",)
    assert there[0].read_bytes() == scenario.files(7).route_files[0].read_bytes()


def test_the_net_follows_a_changed_scenario_file_and_is_not_built_again_in_a_copy(
    short_scenario: Path, tmp_path: Path
) -> None:
    before = scenario_of(str(short_scenario), tmp_path).net_file.read_bytes()
    changed = tmp_path / short_scenario.name
    changed.write_text(short_scenario.read_text().replace("default.lanenumber: 3", "default.lanenumber: 2"))
    scenario = scenario_of(str(changed), tmp_path)
    scenario.prepare()
    assert scenario.net_file.read_bytes() != before
    scenario.net_file.write_text("left alone")
    assert pickle.loads(pickle.dumps(scenario)).net_file.read_text() == "left alone"


def test_a_family_file_gives_all_its_members(repo_root: Path, tmp_path: Path) -> None:
    scenarios = traffic_scenarios([str(repo_root / "configs/scenarios/family_unseen.yaml")], tmp_path)
    assert len({scenario.name for scenario in scenarios}) == len(scenarios) == 10


def test_the_licence_of_what_is_read_stands_in_the_note(tmp_path: Path) -> None:
    assert "CC BY-NC-SA 3.0 (TAPASCologne)" in scenario_of("resco:cologne3", tmp_path).note
    assert "GPL-3.0 (InTAS)" in scenario_of("resco:ingolstadt7", tmp_path).note
    assert "EPL-2.0" in scenario_of("sumo:rilsa3", tmp_path).note


def test_resco_is_read_where_it_is_installed(tmp_path: Path) -> None:
    files = episode_files(scenario_of("resco:cologne1", tmp_path, demand=AS_FILED))
    assert all("sumo_rl" in str(path) for path in (files.net_file, *files.route_files))
    assert list(tmp_path.iterdir()) == []


def test_begin_and_end_of_the_settings_override_those_of_the_scenario(tmp_path: Path) -> None:
    scenario = scenario_of("resco:cologne1", tmp_path, begin_s=26000)
    assert (scenario.begin_s, scenario.end_s, scenario.duration_s) == (26000, 28800, 2800)
    assert episode_files(scenario).begin_s == 26000
    with pytest.raises(ConfigError, match="cologne1 begins at 25200 s and ends at 25200 s: change begin_s or end_s"):
        scenario_of("resco:cologne1", tmp_path, end_s=25200)


# -- a sumocfg of the user's own ---------------------------------------------------------------------------------------

GAME = Path(sumo.SUMO_HOME, "tools", "game", "cross")


def write_sumocfg(
    folder: Path, *, net: Path | None = None, routes: str = "", additional: str = "", body: str = ""
) -> str:
    (folder / "mine.rou.xml").write_text(routes or "<routes/>")
    (folder / "mine.add.xml").write_text(additional or "<additional/>")
    path = folder / "mine.sumocfg"
    path.write_text(
        f'<configuration><input><net-file value="{net or GAME / "cross.net.xml"}"/><route-files value="mine.rou.xml"/>'
        f'<additional-files value="mine.add.xml"/></input>{body}</configuration>'
    )
    return str(path)


def test_a_sumocfg_without_an_end_runs_an_hour_and_says_so(tmp_path: Path) -> None:
    word = write_sumocfg(tmp_path, body='<time><begin value="0:30:0"/></time>')
    scenario = scenario_of(word, tmp_path)
    assert (scenario.name, scenario.begin_s, scenario.end_s) == ("mine", 1800, 5400)
    assert "no end in the sumocfg: 3600 s taken" in scenario.note
    assert "no end" not in scenario_of(word, tmp_path, end_s=2000).note
    shorter = scenario_of(word, tmp_path, duration_s=600)
    assert (shorter.begin_s, shorter.end_s) == (1800, 2400) and "no end" not in shorter.note


def test_the_options_of_a_sumocfg_that_shape_traffic_hold_in_the_simulation(tmp_path: Path) -> None:
    routes = '<routes><flow id="f" begin="0" end="60" period="2" from="1si" to="2o"/></routes>'
    body = '<processing><scale value="0"/><step-length value="0.5"/></processing>'
    scenario = scenario_of(write_sumocfg(tmp_path, routes=routes, body=body), tmp_path, demand=AS_FILED)
    assert "steps of 0.5 s" in scenario.note
    with_scale = in_new_process(_run, episode_files(scenario), 20)
    without_demand = scenario_of(write_sumocfg(tmp_path, body=body), tmp_path, demand=AS_FILED)
    assert with_scale == in_new_process(_run, episode_files(without_demand), 20)
    everyone = scenario_of(write_sumocfg(tmp_path, routes=routes), tmp_path, demand=AS_FILED)
    assert with_scale != in_new_process(_run, episode_files(everyone), 20)
    assert scenario.fingerprint() != everyone.fingerprint()


def test_what_an_additional_file_would_write_is_not_written(tmp_path: Path) -> None:
    source, work = tmp_path / "source", tmp_path / "work"
    source.mkdir()
    additional = '<additional><edgeData id="e" file="dump.xml"/><e1Detector id="d" lane="1si_0" pos="1" file="d.xml"/>'
    word = write_sumocfg(source, additional=f"{additional}</additional>")
    scenario = scenario_of(word, work, demand=AS_FILED)
    in_new_process(_run, episode_files(scenario), 5)
    assert sorted(path.name for path in source.iterdir()) == ["mine.add.xml", "mine.rou.xml", "mine.sumocfg"]
    assert [path.name for path in (work / "mine").iterdir()] == ["mine.add.xml"]


def test_the_fingerprint_is_json_and_changes_with_the_traffic_only(tmp_path: Path) -> None:
    scenario = scenario_of(write_sumocfg(tmp_path), tmp_path)
    first = scenario.fingerprint()
    assert json.loads(json.dumps(first)) == first
    assert dataclasses.replace(scenario, end_s=10).fingerprint() != first
    assert scenario_of(write_sumocfg(tmp_path), tmp_path / "elsewhere").fingerprint() == first
    assert (
        scenario_of(write_sumocfg(tmp_path, routes='<routes><vType id="v"/></routes>'), tmp_path).fingerprint() != first
    )


def test_two_sumocfgs_of_one_name_are_named_with_their_folders(tmp_path: Path) -> None:
    words = []
    for parent in ("north", "south"):
        (tmp_path / parent).mkdir()
        words.append(write_sumocfg(tmp_path / parent))
    names = [scenario.name for scenario in traffic_scenarios([*words, "sumo:cross"], tmp_path / "work")]
    assert names == ["north_mine", "south_mine", "cross"]


def test_each_seed_draws_a_demand_of_its_own_unless_it_is_as_filed(tmp_path: Path) -> None:
    routes = '<routes><flow id="f" begin="0" end="600" period="2" from="1si" to="2o"/></routes>'
    word = write_sumocfg(tmp_path, routes=routes)
    drawn = scenario_of(word, tmp_path / "work", end_s=600)
    one, other = (episode_files(drawn, number).route_files[0].read_bytes() for number in (0, 1))
    assert one != other and one == episode_files(drawn, 0).route_files[0].read_bytes()
    assert "each seed draws its vehicles from the route files, 1 times as many" in drawn.note
    filed = scenario_of(word, tmp_path / "work", demand=AS_FILED)
    assert episode_files(filed).route_files == ((tmp_path / "mine.rou.xml").resolve(),)
    assert filed.fingerprint() != drawn.fingerprint()


def test_a_network_file_says_how_a_sumocfg_is_used(tmp_path: Path) -> None:
    routes = '<routes><flow id="f" begin="0" end="600" period="2" from="1si" to="2o"/></routes>'
    write_sumocfg(tmp_path, routes=routes)
    path = tmp_path / "crossing.yaml"
    path.write_text(
        "name: crossing\nsumocfg: mine.sumocfg\nend_s: 300\ndemand: {scale: [0.5, 1.5], jitter_s: 10}\n"
        "greens: {'0': [[8, 40], [9, 50], [8, 41], [9, 51]]}\nseeds: {train: 1, validation: 101, evaluation: 201}\n"
    )
    scenario = scenario_of(str(path), tmp_path / "work")
    assert (scenario.name, scenario.end_s, scenario.episode_seed("evaluation", 0)) == ("crossing", 300, 201)
    assert "0.5 to 1.5 times as many, with Poisson variation, jitter by up to 10 s" in scenario.note
    planned = opened(scenario, tmp_path / "plans")
    assert planned.plans["0"].green_bounds == ((8, 40), (9, 50), (8, 41), (9, 51))
    path.write_text("name: crossing\nsumocfg: sumo:cross\njunctions: ['7']\n")
    with pytest.raises(UnknownJunction, match="'7' has no signal in .*the signals are 0"):
        opened(scenario_of(str(path), tmp_path / "work"), tmp_path / "plans")
    path.write_text("name: crossing\nsumocfg: mine.sumocfg\ngreens: {'0': [[8, 4]]}\n")
    with pytest.raises(ConfigError, match="8 to 4 s: give the shortest and the longest green"):
        scenario_of(str(path), tmp_path / "work")


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("resco:cologn1", "did you mean 'resco:cologne1'"),
        ("sumo:rilsa", "did you mean 'sumo:rilsa"),
        ("cologne1", "did you mean 'resco:cologne1'"),
        ("four_way", "give a .yaml or .sumocfg file"),
        ("gone.yaml", "cannot read gone.yaml"),
    ],
)
def test_a_word_that_names_nothing_is_refused(word: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        traffic_scenarios([word], tmp_path)


def test_a_missing_sumocfg_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="cannot read the sumocfg gone.sumocfg"):
        traffic_scenarios(["gone.sumocfg"], tmp_path)


def test_two_scenarios_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two scenarios are named 'mine'"):
        traffic_scenarios([write_sumocfg(tmp_path)] * 2, tmp_path)


def test_only_yaml_files_are_scenario_files() -> None:
    words = ["a.yaml", "a/b.yml", "c.sumocfg", "resco:cologne1", "sumo:cross"]
    assert [is_scenario_file(word) for word in words] == [True, True, False, False, False]


def test_resco_without_its_package_tells_how_to_install_it(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\n"
        "from tsc.scenarios import by_word, packaged\n"
        "packaged.importlib.util.find_spec = lambda name: None\n"
        "by_word.traffic_scenarios(['resco:cologne1'], Path())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert re.search(r"sumo-rl, which is not installed: (\.uv/bin/)?uv pip install", done.stderr)


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        (
            '<routes><vehicle id="a" depart="2000"><route edges="1si nope"/></vehicle></routes>',
            "edge 'nope'.*is not known",
        ),
        ('<routes><vehicle id="a" depart="0"><route edg', "mine.rou.xml"),
    ],
)
def test_broken_demand_is_told_in_sumos_words_before_an_episode_runs(routes: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=f"(?s){message}"):
        controlled_junctions(scenario_of(write_sumocfg(tmp_path, routes=routes), tmp_path))


def test_a_net_without_signals_is_refused(tmp_path: Path) -> None:
    net = Path(sumo.SUMO_HOME, "tools", "game", "ramp", "ramp.net.xml")
    with pytest.raises(ScenarioError, match="scenario mine: none of the 1 signals of .*: gneJ16 has only one stage"):
        controlled_junctions(scenario_of(write_sumocfg(tmp_path, net=net), tmp_path))


def test_a_net_of_a_newer_sumo_is_refused(tmp_path: Path) -> None:
    net = tmp_path / "newer.net.xml"
    text = (GAME / "cross.net.xml").read_text()
    net.write_text(re.sub(r'<net version="[^"]*"', '<net version="9.30"', text))
    with pytest.raises(ScenarioError, match=r"newer.net.xml is a net of version 9.30, but the installed SUMO"):
        controlled_junctions(scenario_of(write_sumocfg(tmp_path, net=net), tmp_path))


def test_an_option_that_sumo_does_not_know_is_told_in_its_words(tmp_path: Path) -> None:
    word = write_sumocfg(tmp_path, body="<processing><time-to-teleprot value='1'/></processing>")
    with pytest.raises(ScenarioError, match="time-to-teleprot"):
        controlled_junctions(scenario_of(word, tmp_path))
