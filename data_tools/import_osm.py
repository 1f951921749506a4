"""Make a SUMO scenario (net, routes, sumocfg) from an OpenStreetMap extract, offline, with SUMO's own tools.

The net and the demand are made as SUMO's OSM wizard (osmWebWizard.py) makes them for cars. The demand is invented:
random trips, or with --counts random routes that match counted vehicles.

Example:
    python data_tools/import_osm.py area.osm.gz --out data/networks/area --bbox 24.93 60.16 24.95 60.18
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import os
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import sumo
import sumolib

from tsc.errors import ConfigError, ScenarioError, run_main
from tsc.files import folder_lock, install_command, strip_generated_comment
from tsc.sumo.binaries import sumo_binary

_TOOLS = Path(sumo.SUMO_HOME, "tools")

# The net of SUMO's OSM wizard (DEFAULT_NETCONVERT_OPTS in osmBuild.py, and osmWebWizard.py) with its choice "car-only
# network". SUMO's default finds roundabouts and takes the UTM projection of the data, for the wizard, too.
_NET_OPTIONS = (
    *("--type-files", str(Path(sumo.SUMO_HOME, "data", "typemap", "osmNetconvert.typ.xml"))),
    *("--geometry.remove", "--ramps.guess", "--junctions.join"),
    *("--tls.guess-signals", "--tls.discard-simple", "--tls.join"),
    *("--tls.default-type", "actuated"),
    *("--output.original-names", "--output.street-names"),
    *("--keep-edges.by-vclass", "passenger"),
    # Not the wizard's: its log repeats a message for each of thousands of bus stops and turn restrictions.
    *("--aggregate-warnings", "1"),
)
# The wizard's options for cars (vehicleParameters in osmWebWizard.py).
_TRIP_OPTIONS = (
    *("--trip-attributes", 'departLane="best"', "--fringe-start-attributes", 'departSpeed="max"'),
    *("--validate", "--remove-loops", "--lanes"),
    "--via-edge-types",
    "highway.motorway,highway.motorway_link,highway.trunk_link,highway.primary_link,highway.secondary_link,"
    "highway.tertiary_link",
    *("--vehicle-class", "passenger", "--vclass", "passenger", "--prefix", "veh"),
    *("--min-distance", "300", "--min-distance.fringe", "10", "--allow-fringe.min-length", "1000"),
)

# routeSampler.py can only use routes that it is given: of five times as many it matches more of the counts.
_CANDIDATES_PER_TRIP = 5
# by whether --guess-signals was given
_NO_SIGNALS = {
    False: "no junction has a node that is tagged highway=traffic_signals. With --guess-signals, SUMO puts signals on "
    "busy junctions",
    True: "no junction is busy enough for SUMO to guess one. Export a larger area",
}


def run_tool(words: Sequence[str | Path], what: str) -> str:
    """Run a program of SUMO and return what it prints. Raises ScenarioError with the program's last words."""
    env = {**os.environ, "SUMO_HOME": sumo.SUMO_HOME}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, errors="replace", check=False, env=env)
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        last = " / ".join(line for line in lines[-6:] if not line.startswith(("Warning", "Quitting")))
        raise ScenarioError(f"{what}: {last or f'exit status {done.returncode}'}")
    return done.stdout


def as_xml(osm: Path, work: Path) -> Path:
    """The extract as plain XML, which lies in `work` if `osm` is packed. Raises ConfigError if it cannot be read."""
    xml = work / "map.osm"
    if osm.suffix == ".pbf":
        roads_of_pbf(osm, xml)
    elif osm.suffix in (".gz", ".bz2"):
        try:
            with (gzip.open if osm.suffix == ".gz" else bz2.open)(osm, "rb") as packed, xml.open("wb") as file:
                shutil.copyfileobj(packed, file)
        except (EOFError, OSError, zlib.error) as error:
            if getattr(error, "errno", None):  # not of the content: a full disk, a file of another user
                raise
            raise ConfigError(f"cannot unpack {osm}: {error}: download it again") from error
    else:
        return osm
    return xml


def roads_of_pbf(osm: Path, xml: Path) -> None:
    """Write the roads and turn restrictions as XML, because netconvert reads no .pbf. Raises ConfigError."""
    try:
        import osmium
    except ImportError as error:
        raise ConfigError(
            f"{osm} needs the package osmium, which is not installed: {install_command('osm')}; or convert the file to "
            ".osm"
        ) from error
    try:
        with osmium.BackReferenceWriter(xml, osm, overwrite=True, remove_tags=False) as writer:
            for item in osmium.FileProcessor(osm, osmium.osm.WAY | osmium.osm.RELATION):
                # netconvert makes the same net of the whole extract, which is many times larger as XML
                if "highway" in item.tags or item.tags.get("type") == "restriction":
                    writer.add(item)
    except RuntimeError as error:
        raise ConfigError(f"cannot read {osm}: {error}: download it again") from error


def why_no_net(xml: Path, bbox: Sequence[float] | None) -> str:
    """What is wrong with an extract in which netconvert finds no roads, with the remedy."""
    nodes, roads = [], 0
    try:
        for _, element in ElementTree.iterparse(xml):
            if element.tag == "node":
                nodes.append((float(element.get("lon", "nan")), float(element.get("lat", "nan"))))
            roads += element.tag == "way" and any(tag.get("k") == "highway" for tag in element.iter("tag"))
            if element.tag in ("node", "way", "relation"):
                element.clear()
    except (ElementTree.ParseError, ValueError):
        return "it is broken XML, so export or download it again"
    if not nodes:
        return "it is not an OpenStreetMap extract, because it has no nodes"
    if not roads:
        return "it has no roads (no way is tagged highway=…), so export a larger area"
    if bbox:
        (west, east), (south, north) = ((min(values), max(values)) for values in zip(*nodes, strict=True))
        return (
            f"no road for cars is inside --bbox {' '.join(map(str, bbox))} (W S E N), "
            f"the data are inside {west} {south} {east} {north}"
        )
    return "it has no roads for cars, so export a larger area"


def make_net(xml: Path, net: Path, arguments: argparse.Namespace) -> None:
    """Raises ScenarioError with the reason if netconvert refuses the extract."""
    options: list[str | Path] = [*_NET_OPTIONS, "--osm-files", xml, "--output-file", net]
    if arguments.bbox:
        # The wizard cuts when it downloads. netconvert cuts every kind of extract in the same way.
        options += ["--keep-edges.in-geo-boundary", ",".join(map(str, arguments.bbox))]
    options += ["--tls.guess"] * arguments.guess_signals + ["--lefthand"] * arguments.left_hand
    try:
        run_tool([sumo_binary("netconvert"), *options], "netconvert")
    except ScenarioError as error:
        in_the_data = any(words in str(error) for words in ("No nodes loaded", "No edges loaded", "At line/column"))
        why = f"{why_no_net(xml, arguments.bbox)} ({error})" if in_the_data else str(error)
        raise ScenarioError(f"cannot make a net of {arguments.osm}: {why}") from error
    net.write_bytes(strip_generated_comment(net.read_bytes()))


def count_attribute(counts: Path, end_s: int) -> tuple[str, float]:
    """The attribute of SUMO's edgedata that has the counts, and the seconds of an interval. Raises ConfigError."""
    try:
        intervals = list(ElementTree.parse(counts).getroot().iter("interval"))
        times_s = [(float(interval.get("begin", "")), float(interval.get("end", ""))) for interval in intervals]
    except OSError as error:
        raise ConfigError(f"cannot read the counts {counts}: {error.strerror}") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise ConfigError(f"{counts} is not an edgedata file of SUMO: {error}") from error
    if not any(begin_s < end_s and end > 0 for begin_s, end in times_s):
        raise ConfigError(
            f"{counts} has no interval between 0 and {end_s} s (--end), only {times_s}: the simulation begins at 0, so "
            "count the intervals from there"
        )
    for name in ("entered", "count"):
        if any(edge.get(name) for interval in intervals for edge in interval.iter("edge")):
            return name, min(times_s[0][1] - times_s[0][0], end_s)
    raise ConfigError(f"no <edge> of {counts} has the attribute entered or count: vehicles per interval")


def make_routes(net: Path, routes: Path, arguments: argparse.Namespace, counted: tuple[str, float] | None) -> int:
    """Return the number of vehicles. counted: of count_attribute. Raises ScenarioError if no trip has a route."""
    density, seed = arguments.insertion_density * (_CANDIDATES_PER_TRIP if counted else 1), str(arguments.seed)
    words: list[str | Path] = [sys.executable, _TOOLS / "randomTrips.py", "--net-file", net, "--seed", seed]
    words += [
        "--end",
        str(arguments.end),
        "--insertion-density",
        str(density),
        "--fringe-factor",
        str(arguments.fringe_factor),
    ]
    # The wizard keeps trips, which SUMO routes when they depart. A replay of a saved state needs no router with routes.
    words += ["--output-trip-file", routes.with_suffix(".trips"), "--route-file", routes]
    run_tool([*words, *_TRIP_OPTIONS], f"randomTrips.py finds no trips in the net of {arguments.osm}")
    if counted and routes.exists():
        attribute, interval_s = counted
        candidates = routes.rename(routes.with_suffix(".candidates"))
        words = [sys.executable, _TOOLS / "routeSampler.py", "--route-files", candidates, "--output-file", routes]
        words += ["--edgedata-files", arguments.counts, "--edgedata-attribute", attribute, "--optimize", "full"]
        words += ["--begin", "0", "--end", str(arguments.end), "--interval", str(interval_s), "--prefix", "veh"]
        words += ["--attributes", 'departLane="best" departSpeed="max"', "--seed", seed]
        printed = run_tool(words, f"routeSampler.py cannot match {arguments.counts}").splitlines()
        print("\n".join(line for line in printed if "Wrote " in line), flush=True)
    # randomTrips.py puts a comment with the time of day before duarouter's own
    data = strip_generated_comment(strip_generated_comment(routes.read_bytes())) if routes.exists() else b""
    routes.write_bytes(data)
    if not (vehicles := data.count(b"<vehicle ")):
        raise ScenarioError(
            f"no trip in the net of {arguments.osm} has a route. If the roads are short or not connected, export a "
            "larger area; else raise --insertion-density or --end"
            + (f". Are the edges of {arguments.counts} those of this net?" if counted else "")
        )
    return vehicles


def build(arguments: argparse.Namespace) -> None:
    """Make the files in arguments.out, whose lock the caller holds, and print what was made."""
    out, counts = arguments.out, arguments.counts
    name = out.resolve().name
    work = out / ".import"
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    work.mkdir()
    net, routes, sumocfg = (work / f"{name}.{ending}" for ending in ("net.xml", "rou.xml", "sumocfg"))
    try:
        counted = count_attribute(counts, arguments.end) if counts else None
        print(f"net of {arguments.osm} (netconvert) …", flush=True)
        make_net(as_xml(arguments.osm, work), net, arguments)
        graph = sumolib.net.readNet(str(net))
        edges, num_signals = graph.getEdges(), len(graph.getTrafficLights())
        if not num_signals:
            raise ScenarioError(f"the net of {arguments.osm} has no signals: {_NO_SIGNALS[arguments.guess_signals]}")
        print(f"demand (randomTrips.py{', routeSampler.py' if counts else ''}) …", flush=True)
        num_vehicles = make_routes(net, routes, arguments, counted)
        # 300 s is SUMO's default, which the wizard keeps. The wizard's other options are for its trips and its window.
        sumocfg.write_text(
            "<configuration>\n"
            f"    <net-file value={quoteattr(net.name)}/>\n    <route-files value={quoteattr(routes.name)}/>\n"
            f'    <begin value="0"/>\n    <end value="{arguments.end}"/>\n    <time-to-teleport value="300"/>\n'
            "</configuration>\n",
            encoding="utf-8",
        )
        # It goes first and comes last: a folder with a sumocfg is complete.
        (out / sumocfg.name).unlink(missing_ok=True)
        for path in (net, routes, sumocfg):
            path.replace(out / path.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    lane_km = sum(edge.getLength() * edge.getLaneNumber() for edge in edges) / 1000
    print(f"{name}: {len(edges)} edges ({lane_km:.1f} lane km), signals: {num_signals}, vehicles: {num_vehicles}")
    print("The map data are © OpenStreetMap contributors (ODbL 1.0): say so where you publish them.")
    print(f"look at it with: python data_tools/inspect_scenario.py {shlex.quote(str(out / sumocfg.name))}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("osm", type=Path, metavar="OSM", help="extract: .osm or .xml, also .gz or .bz2; .osm.pbf")
    parser.add_argument("--out", type=Path, required=True, help="folder; its name is the name of the scenario")
    parser.add_argument(
        "--bbox", nargs=4, type=float, metavar=("W", "S", "E", "N"), help="in degrees: keep the roads that it touches"
    )
    parser.add_argument("--end", type=int, default=3600, help="seconds of demand (default: %(default)s)")
    parser.add_argument("--insertion-density", type=float, default=12, help="veh per hour and lane km (default: 12)")
    parser.add_argument("--fringe-factor", type=float, default=5, help="weight of ends at the map's edge (default: 5)")
    parser.add_argument("--counts", type=Path, help="SUMO's edgedata for this net, with vehicles as entered or count")
    parser.add_argument("--guess-signals", action="store_true", help="let SUMO put signals on busy junctions, too")
    parser.add_argument("--left-hand", action="store_true", help="traffic drives on the left")
    parser.add_argument("--seed", type=int, default=1, help="of the random trips (default: %(default)s)")
    arguments = parser.parse_args(argv)
    for path in filter(None, (arguments.osm, arguments.counts)):
        if not path.is_file():
            raise ConfigError(f"{path} is not a file: give an extract of OpenStreetMap, or counts, that you have here")
    if arguments.end <= 0 or arguments.insertion_density <= 0 or arguments.fringe_factor < 0:
        raise ConfigError("--end and --insertion-density must be more than 0, --fringe-factor at least 0")
    if arguments.bbox:
        west, south, east, north = arguments.bbox
        if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
            raise ConfigError("--bbox is W S E N in degrees: west before east, south before north")
    with folder_lock(arguments.out, "a scenario"):
        build(arguments)


if __name__ == "__main__":
    run_main(main)
