"""The table of networks: what a folder holds, what SUMO makes of a seed, and how the real tools fare."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from sumolib.net import readNet

from network_table import (
    Network,
    RecordsFile,
    _shortened,
    dataset_config,
    found_networks,
    random_networks,
    with_own_names,
    with_trainings,
)
from random_networks import build_network, draw_network, num_signals, vehicles_arrived
from tsc.errors import ConfigError

NET = '<net><edge id="a"><lane id="a_0"/></edge>{}</net>'
PROGRAM = '<tlLogic id="t"/><connection from="{}" to="b" tl="t"/>'


def written(path: Path, text: str = "<configuration/>") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def sumocfg(net: str, routes: str) -> str:
    return f'<configuration><n v="{net}"/><input><route-files value="{routes}"/></input></configuration>'


def test_a_message_is_one_line_without_the_folders_of_this_machine() -> None:
    text = "error: net /a/b-1/c.net.xml\nof 10/12 m: see ../x/y.xml,\n/d.xml"
    assert _shortened(text) == "error: net c.net.xml of 10/12 m: see ../x/y.xml, /d.xml"


def test_a_folder_gives_each_network_once(tmp_path: Path) -> None:
    folder = tmp_path / "nets"
    for name in ("a/a.net.xml", "b/b.net.xml.gz", "c/c.net.xml", "d/deep/d.net.xml", "a/a.rou.xml", "d/d.rou.xml"):
        written(folder / name)
    written(folder / "a/run.sumocfg", sumocfg("a.net.xml", "a.rou.xml"))
    written(folder / "a/run_12.sumocfg", sumocfg("a.net.xml", "a.rou.xml"))
    written(folder / "c/run.sumocfg", sumocfg("c.net.xml", "gone.rou.xml"))
    written(folder / "d/d.sumo.cfg", sumocfg("deep/d.net.xml", "d.rou.xml"))
    written(folder / "e/e.sumo.cfg", sumocfg("../d/deep/d.net.xml", "../d/d.rou.xml,gone.rou.xml"))
    found = found_networks([str(folder), "resco:cologne1", str(folder / "a")])
    assert [(network.name, network.net_file and network.net_file.name) for network in found] == [
        ("nets-a-run", None),
        ("nets-d-d", None),
        ("nets-e-e", None),
        ("nets-b-b", "b.net.xml.gz"),
        ("nets-c-c", "c.net.xml"),
        ("resco-cologne1", None),
    ]
    assert [network.group for network in found] == [f"{tmp_path.name}/nets"] * 5 + ["resco:"]
    assert [network.name for network in found if network.incomplete] == ["nets-e-e"]


def test_a_folder_without_networks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a sumocfg nor a net"):
        found_networks([str(tmp_path)])


def test_a_network_keeps_the_name_of_an_earlier_call() -> None:
    networks = [Network(source=source, name="run", group="files") for source in ("/x/run", "/y/run")]
    assert [network.name for network in with_own_names(networks, {})] == ["run", "run-2"]
    assert [network.name for network in with_own_names(networks, {"/y/run": "run"})] == ["run-2", "run"]


def test_each_nth_network_of_a_group_is_trained() -> None:
    networks = [*random_networks(5, 1), Network(source="x", name="x", group="files")]
    assert [network.is_trained for network in with_trainings(networks, 2)] == [True, False, True, False, True, True]


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    (network,) = random_networks(1, 7)
    path = tmp_path / "networks.jsonl"
    record = {"source": network.source, "name": network.name, "step": "inspect", "status": "ok", "duration_s": 60}
    path.write_text(f"{json.dumps(record)}\n{json.dumps(record)[:30]}")
    file = RecordsFile(path)
    file.append({**record, "step": "evaluate"})
    assert file.get(network, "inspect") == record
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == ["inspect", "evaluate"]


@pytest.mark.parametrize(
    ("inside", "count"),
    [
        ("", 0),
        (PROGRAM.format("a"), 1),
        ('<edge id="r"><lane id="r_0" allow="rail tram"/></edge>' + PROGRAM.format("r"), 0),
        ('<edge id="f"><lane id="f_0" disallow="all"/></edge>' + PROGRAM.format("f"), 0),
        ('<edge id="s"><lane id="s_0" allow="pedestrian bus"/></edge>' + PROGRAM.format("s"), 1),
        ('<tlLogic id="t"/><connection from="a" to="b"/>', 0),
    ],
)
def test_only_signals_at_roads_count(inside: str, count: int, tmp_path: Path) -> None:
    assert num_signals(written(tmp_path / "net.xml", NET.format(inside))) == count


def test_larger_nets_label_a_smaller_share() -> None:
    small, large = dataset_config(600, 1), dataset_config(600, 100)
    assert small["sample_share"] > 50 * large["sample_share"] > 0
    assert small["behaviours"]["lookahead"] > large["behaviours"]["lookahead"] == 0
    assert all(sum(config["behaviours"].values()) == 1 for config in (small, large))


def test_seeds_draw_different_networks_and_the_same_ones_again() -> None:
    assert len({draw_network(seed).described() for seed in range(50)}) == 50
    assert draw_network(7) == draw_network(7)


def test_a_random_network_runs_in_plain_sumo_and_is_the_same_again(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    path, drawn = build_network(32, folders[0])
    build_network(32, folders[1])
    for file in (folders[0] / "net.net.xml", *folders[0].glob("*.rou.xml*")):
        assert file.read_bytes() == (folders[1] / file.name).read_bytes()
    assert num_signals(folders[0] / "net.net.xml") == len(readNet(str(folders[0] / "net.net.xml")).getTrafficLights())
    begin_s = drawn.demand.begin_s
    assert vehicles_arrived(path, folders[0], begin_s=begin_s, end_s=begin_s + 300) > 0


@pytest.mark.slow
def test_networks_go_through_the_real_evaluation_and_a_second_call_runs_nothing(
    tmp_path: Path, repo_root: Path
) -> None:
    command = [sys.executable, str(repo_root / "scripts/studies/network_table.py"), "--out", str(tmp_path)]
    command += ["--networks", "resco:cologn1", "--random", "2", "--first-seed", "66"]
    command += ["--steps", "evaluate", "--seconds", "120"]
    for _ in range(2):
        subprocess.run(command, check=True, capture_output=True, timeout=200)
    records: list[dict[str, Any]] = [json.loads(line) for line in (tmp_path / "networks.jsonl").open()]
    assert [(record["name"], record["step"], record["status"]) for record in records] == [
        ("resco-cologn1", "prepare", "ok"),
        ("resco-cologn1", "evaluate", "refused"),
        ("random-0066", "prepare", "ok"),
        ("random-0066", "evaluate", "ok"),
        ("random-0067", "prepare", "ok"),
        ("random-0067", "evaluate", "ok"),
    ]
    assert "did you mean 'resco:cologne1'" in records[1]["message"]
    for prepared, evaluated in (records[2:4], records[4:6]):
        assert ElementTree.parse(prepared["word"]).getroot().tag == "configuration"
        assert all(evaluated["finished_veh"][name] > 0 for name in ("static", "max_pressure"))
    rows = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("|")]
    assert "| resco: | 1 | 0 (0 %) | 1 | 0 | 0 |" in rows
    assert "| random | 2 | 2 (100 %) | 0 | 0 | 0 |" in rows
    assert "| random-0066 | 4 | ok | – | – |" in rows
