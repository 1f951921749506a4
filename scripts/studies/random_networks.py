"""Random networks with traffic signals, and random demand for networks that come without.

A seed decides everything: the shape of the net, its signal programs, its vehicles and the options of its sumocfg.
SUMO's netgenerate and netconvert make the net, and its randomTrips.py makes the demand.
"""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sumo

from tsc.errors import ScenarioError
from tsc.files import strip_generated_comment, write_atomically
from tsc.sumo.binaries import sumo_binary, write_net

# netgenerate places no signal where guessing finds no junction that is busy enough; then the seed's next draw is taken
MAX_DRAWS = 20
# SUMO's vehicle classes that need no road
_NO_ROAD = {
    "pedestrian", "wheelchair", "tram", "rail_urban", "rail", "rail_electric", "rail_fast", "subway", "cable_car",
    "ship", "container", "aircraft", "drone",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What randomTrips.py is asked for.

    rate_veh_per_h: of cars; other vehicles and persons come at a part of this rate.
    as_routes: write whole routes. Otherwise SUMO finds the routes of trips when they depart.
    num_flows: 0 for single vehicles.
    others: further vehicle classes, or "pedestrian".
    """

    seed: int
    begin_s: int = 0
    duration_s: int = 3600
    rate_veh_per_h: int
    fringe_factor: int = 5
    as_routes: bool = False
    num_flows: int = 0
    others: tuple[str, ...] = ()
    is_gzipped: bool = False


@dataclass(frozen=True, kw_only=True)
class RandomNetwork:
    """One draw of a seed.

    generate: options of netgenerate.
    convert: options of netconvert, for a second pass over the net; None if there is no second pass.
    rate_per_signal_veh_per_h: the demand grows with the net.
    """

    seed: int
    generate: tuple[str, ...]
    convert: tuple[str, ...] | None
    demand: Demand
    rate_per_signal_veh_per_h: int
    sumocfg: dict[str, str]

    def described(self) -> str:
        convert = "" if self.convert is None else f"; netconvert {' '.join(self.convert)}"
        demand = self.demand
        kind = f"{demand.num_flows} flows" if demand.num_flows else "routes" if demand.as_routes else "trips"
        words = [kind, *demand.others, f"for {demand.duration_s} s", *(["gzipped"] if demand.is_gzipped else [])]
        options = " ".join(f"{name}={value}" for name, value in self.sumocfg.items())
        return (
            f"netgenerate {' '.join(self.generate)}{convert}; {' '.join(words)}, fringe factor {demand.fringe_factor}; "
            f"begin={demand.begin_s} {options}"
        )


def draw_network(seed: int, number: int = 0) -> RandomNetwork:
    """The seed's draw of this number, counted from 0. No file is read or written."""
    draw = random.Random(f"network/{seed}/{number}")

    def happens(share: float) -> bool:
        return draw.random() < share

    has_sidewalks, has_bike_lanes = happens(0.35), happens(0.15)
    generate = [*_shape(draw), "--seed", str(seed)]
    generate += ["--default.lanenumber", str(draw.choice((1, 1, 2, 2, 3, 4)))]
    generate += ["--default.speed", draw.choice(("8.33", "13.89", "13.89", "16.67", "22.22"))]
    if happens(0.3):
        generate += ["--random-lanenumber"]
    if happens(0.35):
        generate += ["--turn-lanes", str(draw.choice((1, 1, 2))), "--turn-lanes.length", str(draw.randint(20, 60))]
    signals = draw.choice(("all", "all", "right on red", "guess", "guess"))
    if signals == "guess":
        generate += ["--tls.guess", "--tls.guess.threshold", str(draw.randint(20, 70))]
        generate += ["--default.junctions.type", draw.choice(("priority", "right_before_left"))]
    else:
        kind = "traffic_light" if signals == "all" else "traffic_light_right_on_red"
        generate += ["--default.junctions.type", kind]

    programs = ["--tls.default-type", draw.choice(("static", "static", "actuated", "delay_based"))]
    if happens(0.7):
        programs += ["--tls.layout", draw.choice(("opposites", "incoming", "alternateOneWay"))]
    if happens(0.3):
        programs += ["--tls.cycle.time", str(draw.randint(50, 130))]
    elif happens(0.4):
        programs += ["--tls.green.time", str(draw.randint(8, 50))]
    if happens(0.5):
        programs += ["--tls.yellow.time", str(draw.randint(2, 6))]
    if happens(0.4):
        programs += ["--tls.allred.time", str(draw.randint(0, 4))]
    if happens(0.3):
        programs += ["--tls.left-green.time", str(draw.randint(3, 12))]
    programs += [name for name in ("--tls.no-mixed", "--tls.group-signals") if happens(0.1)]

    sides = ["--lefthand"] if happens(0.15) else []
    roads: list[str] = []
    if happens(0.5):
        roads += ["--no-turnarounds"]
    if happens(0.2):
        roads += ["--junctions.join", "--junctions.join-dist", str(draw.randint(10, 60))]
    if happens(0.15):
        roads += ["--tls.join"]
    if has_sidewalks:
        roads += ["--sidewalks.guess", "--sidewalks.guess.max-speed", "30"]
        roads += ["--crossings.guess"] if happens(0.8) else []
    if has_bike_lanes:
        roads += ["--bikelanes.guess", "--bikelanes.guess.max-speed", "30"]
    convert = None
    if happens(0.4):  # signals of a net that is read are kept, unless they are built anew
        rebuild = ["--tls.rebuild"] if happens(0.5) else []
        convert = (*sides, *roads, *rebuild, *(programs if rebuild else []))
        roads = []
    generate += [*sides, *roads, *programs]

    others = ["pedestrian"] if has_sidewalks and happens(0.7) else []
    others += ["bicycle"] if has_bike_lanes else []
    others += [draw.choice(("truck", "bus", "motorcycle"))] if happens(0.25) else []
    demand = Demand(
        seed=seed,
        begin_s=draw.choice((0, 0, 25200)),
        duration_s=draw.choice((900, 1800, 3600)),
        rate_veh_per_h=0,  # set once the net is there
        fringe_factor=draw.choice((1, 5, 10)),
        as_routes=happens(0.5),
        num_flows=draw.randint(10, 40) if happens(0.25) else 0,
        others=tuple(others),
        is_gzipped=happens(0.25),
    )
    sumocfg = {"step-length": draw.choice(("1", "1", "0.5"))}
    if happens(0.15):
        sumocfg["lateral-resolution"] = "0.8"
    if happens(0.3):
        sumocfg["ignore-route-errors"] = "true"
    if happens(0.2):
        sumocfg["device.rerouting.probability"] = "0.3"
    if happens(0.3):
        sumocfg["time-to-teleport"] = draw.choice(("-1", "120", "300"))
    if "pedestrian" in others and happens(0.3):
        sumocfg["pedestrian.model"] = draw.choice(("nonInteracting", "striping"))
    return RandomNetwork(
        seed=seed,
        generate=tuple(generate),
        convert=convert,
        demand=demand,
        rate_per_signal_veh_per_h=draw.randint(100, 300),
        sumocfg=sumocfg,
    )


def _shape(draw: random.Random) -> list[str]:
    """Options of a grid, a spider's web, or roads at random, with 1 to some 20 junctions."""
    shape = draw.choice(("grid", "grid", "spider", "rand"))
    if shape == "grid":
        columns, rows = draw.randint(1, 4), draw.randint(1, 4)
        # a grid of one junction consists of nothing but the streets that are attached at its boundary
        attached_m = draw.randint(100, 300) if min(columns, rows) == 1 or draw.random() < 0.7 else 0
        words = ["--grid", "--grid.x-number", str(columns), "--grid.y-number", str(rows)]
        words += ["--grid.x-length", str(draw.randint(80, 300)), "--grid.y-length", str(draw.randint(80, 300))]
        words += ["--grid.attach-length", str(attached_m)] if attached_m else []
        if draw.random() < 0.3:
            words += ["--perturb-x", "norm(0,12)", "--perturb-y", "norm(0,12)"]
        return words
    if shape == "spider":
        words = ["--spider", "--spider.arm-number", str(draw.randint(3, 7))]
        words += ["--spider.circle-number", str(draw.randint(1, 3))]
        words += ["--spider.space-radius", str(draw.randint(80, 200))]
        words += ["--spider.omit-center"] if draw.random() < 0.3 else []
        words += ["--spider.attach-length", str(draw.randint(80, 200))] if draw.random() < 0.5 else []
        return words
    words = ["--rand", "--rand.iterations", str(draw.randint(10, 35))]
    words += ["--rand.min-distance", str(draw.randint(80, 150)), "--rand.max-distance", str(draw.randint(200, 350))]
    words += ["--rand.grid"] if draw.random() < 0.3 else []
    return words


def build_network(seed: int, folder: Path) -> tuple[Path, RandomNetwork]:
    """Write the network of this seed into `folder`. Returns its sumocfg and the draw that has a signal.

    Raises ScenarioError if one of SUMO's programs fails, or if no draw has a signal.
    """
    for number in range(MAX_DRAWS):
        network = draw_network(seed, number)
        net_file = folder / "net.net.xml"
        write_net("netgenerate", network.generate, net_file, what=f"random network {seed}")
        if network.convert is not None:
            options = ["--sumo-net-file", str(net_file), *network.convert]
            write_net("netconvert", options, net_file, what=f"random network {seed}")
        signals = num_signals(net_file)
        if signals:
            rate = max(200, min(3000, signals * network.rate_per_signal_veh_per_h))
            demand = Demand(**{**vars(network.demand), "rate_veh_per_h": rate})
            route_files = write_demand(demand, net_file, folder)
            path = folder / f"random{seed:04d}.sumocfg"
            end_s = demand.begin_s + demand.duration_s
            write_sumocfg(path, net_file, route_files, begin_s=demand.begin_s, end_s=end_s, **network.sumocfg)
            return path, network
    raise ScenarioError(f"none of {MAX_DRAWS} draws of random network {seed} has a traffic signal")


def write_demand(demand: Demand, net_file: Path, folder: Path) -> list[Path]:
    """Write the route files into `folder`. Raises ScenarioError if randomTrips.py fails."""
    paths = []
    for index, kind in enumerate(("passenger", *demand.others)):
        rate = demand.rate_veh_per_h if index == 0 else max(60, demand.rate_veh_per_h // 5)
        options = ["--net-file", str(net_file), "--seed", str(demand.seed + 1000 * index), "--prefix", kind]
        options += ["--begin", str(demand.begin_s), "--end", str(demand.begin_s + demand.duration_s)]
        options += ["--insertion-rate", str(rate), "--fringe-factor", str(demand.fringe_factor)]
        if kind == "pedestrian":
            options += ["--pedestrians", "--max-distance", "800"]
        else:
            options += ["--vehicle-class", kind, "--trip-attributes", 'departLane="best" departSpeed="max"']
        if demand.num_flows and kind != "pedestrian":
            options += ["--flows", str(demand.num_flows)]
        data = _random_trips(options, as_routes=demand.as_routes)
        path = folder / (f"{kind}.rou.xml.gz" if demand.is_gzipped else f"{kind}.rou.xml")
        write_atomically(path, gzip.compress(data, mtime=0) if demand.is_gzipped else data)
        paths.append(path)
    return paths


def _random_trips(options: Sequence[str], *, as_routes: bool) -> bytes:
    """What randomTrips.py writes, without the time of day. Trips without a way are left out."""
    script = Path(sumo.SUMO_HOME, "tools", "randomTrips.py")
    outputs = ["--output-trip-file", "trips.xml", *(["--route-file", "routes.xml"] if as_routes else ["--validate"])]
    with tempfile.TemporaryDirectory(prefix="tsc-demand-") as folder:  # it also writes files that nobody asks for
        done = subprocess.run(
            [sys.executable, str(script), *options, *outputs],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "SUMO_HOME": sumo.SUMO_HOME},
        )
        if done.returncode != 0:
            reason = (done.stderr or done.stdout).strip()[-500:]
            raise ScenarioError(f"randomTrips.py {' '.join(options)} fails: {reason}")
        data = Path(folder, "routes.xml" if as_routes else "trips.xml").read_bytes()
    while (stripped := strip_generated_comment(data)) != data:  # each program that had the file adds a comment
        data = stripped
    return data


def write_sumocfg(
    path: Path, net_file: Path, route_files: Sequence[Path], *, begin_s: int, end_s: int, **options: str
) -> None:
    root = ElementTree.Element("configuration")
    files = {"net-file": str(net_file), "route-files": ",".join(map(str, route_files))}
    for name, value in {**files, "begin": str(begin_s), "end": str(end_s), **options}.items():
        ElementTree.SubElement(root, name, value=value)
    ElementTree.indent(root)
    write_atomically(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def num_signals(net_file: Path) -> int:
    """The number of signal programs of the net that stand before a road, counted in the file itself.

    Signals for rails, and those of pedestrians alone, do not count. Raises OSError and ElementTree.ParseError.
    """
    programs: set[str] = set()
    signals: set[str] = set()
    roads: set[str] = set()
    with gzip.open(net_file) if net_file.suffix == ".gz" else net_file.open("rb") as file:
        for _, element in ElementTree.iterparse(file):
            if element.tag == "edge":
                if any(_is_road(lane) for lane in element.iter("lane")):
                    roads.add(element.get("id", ""))
            elif element.tag == "tlLogic":
                programs.add(element.get("id", ""))
            elif element.tag == "connection" and element.get("from") in roads and "tl" in element.attrib:
                signals.add(element.get("tl", ""))
            if element.tag != "lane":  # an edge needs its lanes until it ends
                element.clear()
    return len(programs & signals)


def _is_road(lane: ElementTree.Element) -> bool:
    if "allow" in lane.attrib:
        return bool(set(lane.get("allow", "").split()) - _NO_ROAD)
    return lane.get("disallow") != "all"


def vehicles_arrived(sumocfg: Path, folder: Path, *, begin_s: int, end_s: int) -> int:
    """How many vehicles plain SUMO brings to their ends in this time. Raises ScenarioError if it fails."""
    statistics = folder / "statistics.xml"
    options = ["--configuration-file", str(sumocfg), "--begin", str(begin_s), "--end", str(end_s), "--no-step-log"]
    done = subprocess.run(
        [str(sumo_binary("sumo")), *options, "--duration-log.statistics", "--statistic-output", str(statistics)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line and not line.startswith(("Warning", "Quitting"))]
        raise ScenarioError(f"plain SUMO cannot run {sumocfg}: {' '.join(errors)[:500]}")
    trips = ElementTree.parse(statistics).getroot().find("vehicleTripStatistics")
    return 0 if trips is None else int(trips.get("count", "0"))
