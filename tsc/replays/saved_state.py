"""Reads the XML text of a saved SUMO state, and completes it with what SUMO leaves out.

SUMO 1.28 writes states that continue differently from the simulation that they were saved from. Four reasons were found
by comparing every vehicle, second by second, with the simulation that ran on:

* Except at rail junctions, SUMO does not write that a vehicle inside a junction is registered at the link that it is
  about to take. A vehicle that waits inside the junction yields only to registered ones, so it drives off. SUMO reads
  such registrations if they are there; with_right_of_way writes them.
* Vehicles that depart in the very second up to which the route files were read are lost, unless they were read already.
  with_repeated_loader_second makes SUMO read that second again. SUMO skips the vehicles that it knows.
* When a state is loaded, the lanes are filled one after the other, in the order of the net, those inside junctions
  first. A vehicle inside a junction counts the vehicles on the road ahead at that moment only. It finds none, and later
  picks another lane. with_junctions_last fills those lanes last.
* Numbers are written with the decimal places that were asked for. SUMO's default moves every vehicle a little. With 21,
  a number reads back as it was.
"""

from __future__ import annotations

import gzip
import html
import io
import math
import re
import zlib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

from tsc.errors import StateError

# Of a file, and of its XML. A vehicle takes some 0.8 kB of XML.
MAX_STATE_BYTES = 256 << 20

_DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.])")
_SNAPSHOT = re.compile(r'<snapshot\b[^>]*\btime="([\d.]+)"')
_VEHICLE = re.compile(r'\s*<vehicle id="([^"]*)"[^>]*? depart="([\d.]+)"')
_OWN_ROUTE = re.compile(r'\s*<route id="!([^"]*)"')
_OCCUPIED_INTERNAL_LANE = re.compile(r'<lane id="(:[^"]*)">\s*<vehicles value="([^"]*)"/>(?!\s*<link\b)')
_INTERNAL_LANE = re.compile(r'\s*<lane id=":[^"]*">.*?</lane>', re.DOTALL)
_BEYOND_VEHICLES = ("<flowState", "<person", "<container", "<transportables")
_PROGRAM = re.compile(r"<tlLogic\b[^>]*>")
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')
_LOADER_TIME = re.compile(r'loaderTime="(\d+)"')


def state_text(data: bytes, path: Path) -> str:
    """The XML in a state file's bytes, which may be compressed. path: for messages only. Raises StateError."""
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(MAX_STATE_BYTES + 1)
        if len(data) > MAX_STATE_BYTES:
            raise StateError(
                f"state {path} has more than {MAX_STATE_BYTES >> 20} MiB of XML: no replay can have saved it"
            )
        text = data.decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise StateError(f"state {path} is damaged ({error}): generate the dataset again") from error
    if _SNAPSHOT.search(text) is None or "</snapshot>" not in text[-200:]:
        raise StateError(f"state {path} is not a complete SUMO state: generate the dataset again")
    return text


def state_time_s(text: str) -> float:
    """The simulated second that the state was saved at."""
    match = _SNAPSHOT.search(text)
    assert match is not None  # state_text has checked it
    return float(match.group(1))


def demand_until_s(text: str) -> float:
    """The second up to which the state itself holds every vehicle that departs: how far SUMO had read the route files,
    infinity if it had read all. With flows or persons, whose future is only in the route files, it is the state's own
    second."""
    if any(tag in text for tag in _BEYOND_VEHICLES):
        return state_time_s(text)
    match = _LOADER_TIME.search(text)
    return int(match.group(1)) / 1000 if match is not None else math.inf


def running_phases(text: str) -> dict[str, tuple[int, float]]:
    """By junction, the phase of its running program and how long the phase has lasted (s)."""
    found = {}
    for tag in _PROGRAM.findall(text):
        values = dict(_ATTRIBUTE.findall(tag))
        if values.get("active", "1") == "1" and {"id", "phase", "duration"} <= values.keys():
            found[html.unescape(values["id"])] = (int(values["phase"]), int(values["duration"]) / 1000)
    return found


def occupied_internal_lanes(text: str) -> list[str]:
    """Lanes inside junctions with vehicles on them, for which the state has no registrations at the link ahead."""
    return [match.group(1) for match in _OCCUPIED_INTERNAL_LANE.finditer(text)]


def with_right_of_way(text: str, next_lanes: Mapping[str, str]) -> str:
    """Registers every vehicle on a lane inside a junction at the one link that leads on from there.

    next_lanes: for each lane of occupied_internal_lanes, the lane that its link leads to, if there is one. It matters
    that a vehicle is registered and requests to drive on. The times and speeds of a registration do not matter, because
    the first step replaces them before they are read.
    """
    now_ms = round(state_time_s(text) * 1000)

    def registered(match: re.Match[str]) -> str:
        lane, vehicles = match.groups()
        if lane not in next_lanes:
            return match.group(0)
        approaching = "".join(
            f'<approaching id="{vehicle}" arrivalTime="{now_ms}" arrivalSpeed="0" departSpeed="0" request="1" '
            f'arrivalTimeBraking="{now_ms}" arrivalSpeedBraking="0" waitingTime="0" distance="0"/>'
            for vehicle in vehicles.split()
        )
        return f'{match.group(0)}<link to="{next_lanes[lane]}">{approaching}</link>'

    return _OCCUPIED_INTERNAL_LANE.sub(registered, text)


def with_junctions_last(text: str) -> str:
    """Puts the lanes inside junctions after all others, so that SUMO fills them last."""
    first = text.find("<lane ")
    if first < 0:
        return text
    begin = len(text[:first].rstrip())
    before, lanes = text[:begin], text[begin:]
    inside = "".join(_INTERNAL_LANE.findall(lanes))
    others, end, rest = _INTERNAL_LANE.sub("", lanes).rpartition("</lane>")
    return f"{before}{others}{end}{inside}{rest}"


def with_repeated_loader_second(text: str) -> str:
    """Makes SUMO continue reading the route files one millisecond before the point where it had stopped."""
    return _LOADER_TIME.sub(lambda match: f'loaderTime="{max(0, int(match.group(1)) - 1)}"', text)


def with_decimal_places(text: str, places: int) -> str:
    """The state as SUMO would have written it with this --save-state.precision."""
    return _DECIMAL.sub(lambda match: f"{Decimal(match.group(0)):.{places}f}", text)


def without_departures_after(text: str, time_s: float) -> str:
    """The state without the vehicles that depart later than `time_s`, and without the routes that only they use."""
    lines = text.split("\n")
    vehicles = (match for line in lines if (match := _VEHICLE.match(line)) is not None)
    late = {vehicle.group(1) for vehicle in vehicles if float(vehicle.group(2)) > time_s}
    if not late:
        return text
    kept = []
    inside_late = False
    for line in lines:
        if inside_late:
            inside_late = "</vehicle>" not in line
            continue
        vehicle = _VEHICLE.match(line)
        if vehicle is not None and vehicle.group(1) in late:
            inside_late = not line.rstrip().endswith("/>")
            continue
        route = _OWN_ROUTE.match(line)
        if route is not None and route.group(1) in late:
            continue
        kept.append(line)
    return "\n".join(kept)
