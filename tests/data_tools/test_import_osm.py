"""Scenarios from OpenStreetMap extracts, on a crossing that is drawn here: what is made, and what is refused how."""

from __future__ import annotations

import bz2
import gzip
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools import import_osm
from tsc.errors import ConfigError, ScenarioError
from tsc.scenarios.sumocfg import read_sumocfg
from tsc.sumo.binaries import sumo_binary

REPO_ROOT = Path(__file__).resolve().parents[2]
# 0.0018 degrees of latitude, and at 60° north 0.0036 degrees of longitude, are 200 m.
NODES = {1: (0, 0), 2: (0, 0.0018), 3: (0.0036, 0), 4: (0, -0.0018), 5: (-0.0036, 0)}
LON, LAT = 25.0, 60.0
STREET = '<tag k="highway" v="secondary"/><tag k="maxspeed" v="50"/><tag k="lanes" v="4"/>'
SIGNAL = '<tag k="highway" v="traffic_signals"/>'


def crossing(road_tags: str = STREET, node_tag: str = SIGNAL) -> str:
    """Two streets with two lanes in each direction cross at node 1, with four legs of 200 m."""
    nodes = "".join(
        f'<node id="{node}" version="1" lon="{LON + east:.4f}" lat="{LAT + north:.4f}">{node_tag * (node == 1)}</node>'
        for node, (east, north) in NODES.items()
    )
    ways = "".join(
        f'<way id="{way}" version="1"><nd ref="{a}"/><nd ref="1"/><nd ref="{b}"/>{road_tags}</way>\n'
        for way, a, b in ((10, 2, 4), (11, 5, 3))
    )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<osm version="0.6">\n{nodes}{ways}</osm>\n'


@pytest.fixture
def osm(tmp_path: Path) -> Path:
    path = tmp_path / "map.osm"
    path.write_text(crossing())
    return path


def imported(osm: Path, out: Path, *more: str | Path) -> dict[str, bytes]:
    """The files that are made."""
    import_osm.main([str(osm), "--out", str(out), "--end", "900", "--insertion-density", "300", *map(str, more)])
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_a_crossing_becomes_a_scenario_in_which_vehicles_arrive(osm: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "two streets"
    files = imported(osm, out)
    assert list(files) == ["two streets.net.xml", "two streets.rou.xml", "two streets.sumocfg"]
    sumocfg = out / "two streets.sumocfg"
    config = read_sumocfg(sumocfg)
    assert (config.begin_s, config.end_s, config.time_to_teleport_s) == (0, 900, 300)

    tripinfo = tmp_path / "tripinfo.xml"
    subprocess.run(
        [sumo_binary("sumo"), "-c", sumocfg, "--end", "600", "--tripinfo-output", tripinfo, "--no-step-log"], check=True
    )
    # 3.0 lane km (8 edges of 200 m with two lanes, less the junction) × 300 vehicles an hour are 150 in 600 s
    arrived = list(ElementTree.parse(tripinfo).getroot())
    assert 100 < len(arrived) <= 155
    assert all(380 < float(trip.get("routeLength", 0)) < 420 for trip in arrived)

    signals = ElementTree.parse(config.net_file).getroot().findall("tlLogic")
    assert [signal.get("type") for signal in signals] == ["actuated"]
    vehicles = files["two streets.rou.xml"].count(b"<vehicle ")
    printed = capsys.readouterr().out
    assert f"two streets: 8 edges (3.0 lane km), signals: 1, vehicles: {vehicles}" in printed
    assert f"python data_tools/inspect_scenario.py '{sumocfg}'" in printed


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_trips(osm: Path, tmp_path: Path) -> None:
    first, again, other = (imported(osm, tmp_path / name / "x", "--seed", name[0]) for name in ("1", "1 again", "2"))
    assert first == again
    assert first["x.net.xml"] == other["x.net.xml"]
    assert first["x.rou.xml"] != other["x.rou.xml"]


def test_a_packed_extract_gives_the_same_scenario(osm: Path, tmp_path: Path) -> None:
    plain = imported(osm, tmp_path / "plain" / "x")
    for ending, pack in ((".gz", gzip.compress), (".bz2", bz2.compress)):
        packed = tmp_path / f"map.osm{ending}"
        packed.write_bytes(pack(osm.read_bytes()))
        assert imported(packed, tmp_path / ending / "x") == plain
        packed.write_bytes(packed.read_bytes()[:-20])
        with pytest.raises(ConfigError, match=f"cannot unpack .*{ending}: .*: download it again"):
            imported(packed, tmp_path / "cut")


def test_a_pbf_extract_gives_the_same_scenario(osm: Path, tmp_path: Path) -> None:
    osmium = pytest.importorskip("osmium", reason="the extra osm is not installed")
    pbf = tmp_path / "map.osm.pbf"
    with osmium.SimpleWriter(pbf) as writer:
        for item in osmium.FileProcessor(osm):
            writer.add(item)
    assert imported(pbf, tmp_path / "pbf" / "x") == imported(osm, tmp_path / "plain" / "x")
    pbf.write_bytes(pbf.read_bytes()[:-20])
    with pytest.raises(ConfigError, match="cannot read .*pbf: .*: download it again"):
        imported(pbf, tmp_path / "cut")


def test_a_pbf_extract_without_osmium_names_the_package(osm: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "osmium", None)
    pbf = osm.rename(tmp_path / "map.osm.pbf")
    with pytest.raises(ConfigError, match=r"osmium, which is not installed: (\.uv/bin/)?uv pip install .*'.\[osm\]'"):
        imported(pbf, tmp_path / "out")


def test_a_bounding_box_keeps_the_roads_that_it_touches(osm: Path, tmp_path: Path) -> None:
    # The northern leg continues from 60.0018 to 60.0036. There it has a speed limit of its own, so it stays an edge.
    north = '<node id="6" lon="25" lat="60.0036"/><way id="12"><nd ref="2"/><nd ref="6"/>' + STREET.replace("50", "30")
    osm.write_text(crossing().replace('<way id="10"', north + '</way><way id="10"'))

    def num_edges(out: str, *more: str) -> int:
        net = ElementTree.fromstring(imported(osm, tmp_path / out, *more)[f"{out}.net.xml"])
        return len([edge for edge in net.iter("edge") if edge.get("function") is None])

    assert num_edges("far", "--bbox", "24.99", "59.99", "25.01", "60.0020") == 10
    assert num_edges("near", "--bbox", "24.99", "59.99", "25.01", "60.0017") == 8


def counted(path: Path, name: str, edges: dict[str, int], begin_s: int = 0) -> Path:
    lines = "".join(f'<edge id="{edge}" {name}="{number}"/>' for edge, number in edges.items())
    path.write_text(f'<data><interval begin="{begin_s}" end="{begin_s + 900}">{lines}</interval></data>')
    return path


@pytest.mark.parametrize("name", ["entered", "count"])
def test_the_vehicles_match_the_counts(osm: Path, tmp_path: Path, name: str) -> None:
    net = ElementTree.fromstring(imported(osm, tmp_path / "net")["net.net.xml"])
    into = [edge.get("id", "") for edge in net.iterfind("edge[@to='1']") if edge.get("function") is None]
    assert len(into) == 4
    wanted = dict(zip(into, (30, 20, 10, 0), strict=True))
    out = tmp_path / "counted"
    files = imported(osm, out, "--counts", counted(tmp_path / "counts.xml", name, wanted))
    routes = ElementTree.fromstring(files["counted.rou.xml"])
    first_edges = [route.get("edges", "").split()[0] for route in routes.iter("route")]
    assert {edge: first_edges.count(edge) for edge in into} == wanted


@pytest.mark.parametrize(
    ("name", "begin_s", "message"),
    [
        ("flow", 0, "no <edge> of .* has the attribute entered or count"),
        ("count", 25200, "no interval between 0 and 900"),
    ],
)
def test_counts_that_cannot_be_used_are_refused(
    osm: Path, tmp_path: Path, name: str, begin_s: int, message: str
) -> None:
    counts = counted(tmp_path / "counts.xml", name, {"10#0": 3}, begin_s)
    with pytest.raises(ConfigError, match=message):
        imported(osm, tmp_path / "out", "--counts", counts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lambda: crossing()[:-50], "it is broken XML, .*At line/column"),
        (lambda: "no map", "it is broken XML"),
        (lambda: "<note>no map</note>", "it is not an OpenStreetMap extract, .*No nodes loaded"),
        (lambda: crossing(road_tags='<tag k="waterway" v="river"/>'), "it has no roads"),
        (lambda: crossing(road_tags='<tag k="highway" v="footway"/>'), "it has no roads for cars"),
        (lambda: crossing(node_tag=""), "has no signals: .*highway=traffic_signals.* --guess-signals"),
    ],
)
def test_an_extract_without_a_net_is_refused_with_the_reason(
    osm: Path, tmp_path: Path, text: Callable[[], str], message: str
) -> None:
    osm.write_text(text())
    with pytest.raises(ScenarioError, match=message):
        imported(osm, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_signals_can_be_guessed(osm: Path, tmp_path: Path) -> None:
    osm.write_text(crossing(node_tag=""))
    assert b"<tlLogic" in imported(osm, tmp_path / "out", "--guess-signals")["out.net.xml"]


def test_a_box_outside_of_the_data_names_their_box(osm: Path, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="the data are inside 24.9964 59.9982 25.0036 60.0018"):
        imported(osm, tmp_path / "out", "--bbox", "10", "50", "11", "51")
    with pytest.raises(ConfigError, match="west before east"):
        imported(osm, tmp_path / "out", "--bbox", "11", "50", "10", "51")


def test_roads_without_a_trip_are_refused(osm: Path, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="raise --insertion-density or --end"):
        imported(osm, tmp_path / "out", "--counts", counted(tmp_path / "counts.xml", "count", {"another": 3}))


def test_a_refused_import_leaves_the_scenario_of_before(osm: Path, tmp_path: Path) -> None:
    before = imported(osm, tmp_path / "out")
    osm.write_text("no map")
    with pytest.raises(ScenarioError):
        imported(osm, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_the_command_ends_with_status_2_and_no_traceback(tmp_path: Path) -> None:
    words = [sys.executable, "data_tools/import_osm.py", "missing.osm", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=REPO_ROOT, env={"PYTHONPATH": "."}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: missing.osm is not a file") and "Traceback" not in done.stderr
