"""Finds out from the state, the net and the routes why a saved state is not replayed as it was labelled.

Each cause has a name, one sentence that says what is wrong, and a remedy. docs/replays.md says how each was found. A
cause is certain if the files show that the state cannot hold what the simulation was. It is likely if SUMO has only
been seen to continue such states differently.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import html
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tsc.errors import StateError
from tsc.files import remembered_sha256_of
from tsc.replays.request import ReplayRequest
from tsc.replays.saved_state import occupied_internal_lanes, state_text, state_time_s
from tsc.replays.state_archive import state_bytes
from tsc.sumo.version import installed_sumo_version


@dataclass(frozen=True, kw_only=True)
class Cause:
    """what: what is wrong, to follow the word "states"."""

    what: str
    remedy: str
    is_likely_only: bool = False


_GENERATE = "generate the dataset again"

CAUSES = {
    "state missing": Cause(what="whose file is missing", remedy=f"put the file back, or {_GENERATE}"),
    "state changed": Cause(
        what="whose file has another SHA-256 than the sample says",
        remedy=f"put the file back that the sample was written with, or {_GENERATE}",
    ),
    "state damaged": Cause(what="whose file cannot be unpacked or ends too early", remedy=_GENERATE),
    "scenario missing": Cause(
        what="whose net, routes or additional files are missing", remedy=f"put the files back, or {_GENERATE}"
    ),
    "net changed": Cause(
        what="that were saved with another net",
        remedy=f"put the net back that the states were saved with, or {_GENERATE}",
    ),
    "routes changed": Cause(
        what="that were saved with other routes",
        remedy=f"put the routes back that the states were saved with, or {_GENERATE}",
    ),
    "another SUMO": Cause(
        what="that another version of SUMO saved", remedy=f"install the libsumo of that version, or {_GENERATE}"
    ),
    "detector-driven program": Cause(
        what="with a signal program that SUMO itself switches by detectors (actuated, delay_based, NEMA)",
        remedy="give the junctions static programs (netconvert --tls.default-type static) and " + _GENERATE,
    ),
    "program online": Cause(
        what="saved while the lights were set directly (setRedYellowGreenState) and the net's program did not run",
        remedy="drive the net's own program (setPhase, setPhaseDuration) while states are saved",
    ),
    "another second": Cause(
        what="saved at another second than the sample's", remedy=f"pair samples with their states, or {_GENERATE}"
    ),
    "clocks do not fit": Cause(
        what="whose signals show another stage than the sample's clocks",
        remedy=f"pair samples with their states, or {_GENERATE}",
    ),
    "missing RNG": Cause(
        what="without SUMO's random numbers (rngState)", remedy="save states with sumo's --save-state.rng"
    ),
    "low precision": Cause(
        what="whose numbers have too few decimal places to read back as they were",
        remedy="save states with --save-state.precision 21",
    ),
    "missing persons": Cause(
        what="without the persons and containers that the routes have",
        remedy="save states with --save-state.transportables, or leave persons out",
    ),
    "random flows": Cause(
        what='with flows at random intervals, period="exp(…)", which SUMO draws anew after a load',
        remedy="write the vehicles into the route file, or use flows with a fixed period or a probability",
    ),
    "walking persons": Cause(
        what="with persons on foot, whose places SUMO writes with a few digits whatever the precision",
        remedy="none known; leave persons out where they do not matter",
        is_likely_only=True,
    ),
    "unregistered vehicles": Cause(
        what="with vehicles inside a junction on a lane from which several links lead on, or none, so that they cannot "
        "be registered at the link ahead",
        remedy="none known; leave these samples out (json_to_parquet --replays drop)",
    ),
    "given departSpeed": Cause(
        what="with vehicles still to depart at a speed that is given as a number: if it exceeds a vehicle's own limit, "
        "SUMO draws the limit (speedFactor) again at the departure, but not after a load",
        remedy='give departSpeed="max" or "desired" in the route files',
        is_likely_only=True,
    ),
    "sublane model": Cause(
        what="of a simulation with sublanes (lateral-resolution), whose lateral movements SUMO does not save in full",
        remedy="none known; leave lateral-resolution out where it does not matter",
        is_likely_only=True,
    ),
    "lane choice inside a junction": Cause(
        what="with vehicles on parallel lanes inside a junction, which choose their lane by what was on the road ahead "
        "when they entered; SUMO does not save that",
        remedy="none known; leave these samples out (json_to_parquet --replays drop)",
        is_likely_only=True,
    ),
    "SUMO stopped": Cause(
        what="whose replay ended with an error or without an answer", remedy="see the message; " + _GENERATE
    ),
    "unknown": Cause(what="that differ for a reason that was not found", remedy=_GENERATE),
}

_PROGRAM = re.compile(r"<tlLogic\b[^>]*>")
_VEHICLE_NUMBERS = re.compile(r'<vehicle [^>]*\bpos="([^"]*)" speed="([^" ]*)')
_INTERNAL_CONNECTION = re.compile(r'<connection\b(?=[^>]*\bfrom="(:[^"]+)")(?=[^>]*\bfromLane="(\d+)")')


def why_not_replayed(request: ReplayRequest) -> str | None:
    """The name of the first cause that prevents a replay of the state. None if no such cause is found."""
    return next(_obstacles(request), None)


def why_different(request: ReplayRequest, time_s: float | None) -> str:
    """The name of the first cause why the replay of a state that loads differs from the label. Certain causes come
    before likely ones. time_s: the sample's second, if it has one."""
    return next(_differences(request, time_s), "unknown")


def _obstacles(request: ReplayRequest) -> Iterator[str]:
    folder, sumo = Path(request.dataset_dir), request.sumo
    try:
        data = state_bytes(request.state_path)
    except FileNotFoundError:
        yield "state missing"
        return
    except StateError:
        yield "state damaged"
        return
    if request.state_sha256 not in (None, hashlib.sha256(data).hexdigest()):
        yield "state changed"
    try:
        text = state_text(data, request.state_path)
    except StateError:
        yield "state damaged"
        return
    routes = [folder / name for name in sumo.route_files]
    net = folder / sumo.net_file
    if not all(path.is_file() for path in (net, *routes, *(folder / name for name in sumo.additional_files))):
        yield "scenario missing"
        return
    if sumo.net_sha256 not in (None, remembered_sha256_of(net)):
        yield "net changed"
    digests = sumo.route_sha256 or ()
    if any(expected != remembered_sha256_of(path) for path, expected in zip(routes, digests, strict=False)):
        yield "routes changed"
    if _made_by(request, text).split(".")[:2] != installed_sumo_version().split(".")[:2]:
        yield "another SUMO"
    files = (net, *(folder / name for name in sumo.additional_files))
    programs = [program for path in files for program in _programs(path)]
    if _runs_detector_program(request.junction_id, text, programs):
        yield "detector-driven program"
    if not lanes_in(text) <= lanes_of(net):
        yield "net changed"
    if _has_online_program(text):
        yield "program online"


def _differences(request: ReplayRequest, time_s: float | None) -> Iterator[str]:
    text = state_text(state_bytes(request.state_path), request.state_path)
    folder = Path(request.dataset_dir)
    net = folder / request.sumo.net_file
    if _made_by(request, text) != installed_sumo_version():
        yield "another SUMO"
    if _has_online_program(text):
        yield "program online"
    if time_s is not None and time_s != state_time_s(text):
        yield "another second"
    yield from lost_in(text)
    if "<transportables" not in text and any(_has_persons(folder / name) for name in request.sumo.route_files):
        yield "missing persons"
    if re.search(r'<flowState [^>]*period="exp\(', text):
        yield "random flows"
    inside = occupied_internal_lanes(text)
    links = _num_links(net)
    if any(links[lane] != 1 for lane in inside):
        yield "unregistered vehicles"
    if "<transportables" in text and "<walk" in text:
        yield "walking persons"
    if re.search(r'<vehicle (?=[^>]*\bdepartSpeed="[\d.]+")(?=[^>]*\bstate="\d+ 9223372036854774807 )', text):
        yield "given departSpeed"
    if "--lateral-resolution" in request.sumo.options:
        yield "sublane model"
    if any({f"{lane.rpartition('_')[0]}_{number}" for number in (0, 1)} <= lanes_of(net) for lane in inside):
        yield "lane choice inside a junction"


def has_low_precision(text: str) -> bool:
    """Whether a position or speed in the state is written with too few decimal places to read back as the same number
    of 64 bits."""
    return any(
        _is_rounded(number)
        for positions, speed in _VEHICLE_NUMBERS.findall(text)
        for number in (*positions.split(), speed)
    )


def _is_rounded(number: str) -> bool:
    value, num_places = float(number), len(number.partition(".")[2])
    return value != 0 and math.ulp(value) < 10.0**-num_places


def _made_by(request: ReplayRequest, text: str) -> str:
    """The SUMO version in the sample, if it is another one than the installed, else that in the state itself."""
    in_state = re.search(r'<snapshot\b[^>]*\bversion="([^"]*)"', text)
    in_sample = request.sumo.version
    if in_sample != installed_sumo_version() or in_state is None:
        return in_sample
    return in_state.group(1).removeprefix("v").replace("_", ".")


def _runs_detector_program(junction_id: str, text: str, programs: Sequence[str]) -> bool:
    """Whether SUMO itself switches the junction. text: of the state. programs: the tlLogic tags of net and additional
    files."""

    def attribute(tag: str, name: str) -> str:
        found = re.search(rf'\b{name}="([^"]*)"', tag)
        return html.unescape(found[1]) if found else ""

    running = {
        attribute(tag, "programID")
        for tag in _PROGRAM.findall(text)
        if attribute(tag, "id") == junction_id and attribute(tag, "active") == "1"
    }
    types = {
        attribute(tag, "type")
        for tag in programs
        if attribute(tag, "id") == junction_id and attribute(tag, "programID") in running
    }
    return bool(types - {"static", ""})


def lanes_in(text: str) -> set[str]:
    """The lanes in a net or a state. A state names those that are occupied."""
    return set(re.findall(r'<lane id="([^"]*)"', text))


def lost_in(text: str) -> list[str]:
    """The names of the causes that concern how a state was saved: a replay of it is repeatable, but does not continue
    as the simulation that was saved."""
    causes = [] if "<rngState" in text else ["missing RNG"]
    return [*causes, "low precision"] if has_low_precision(text) else causes


def _has_online_program(text: str) -> bool:
    return any('programID="online"' in program and 'active="1"' in program for program in _PROGRAM.findall(text))


# Many states share a net and routes; a worker reads each file once.


@functools.lru_cache(maxsize=4)
def _text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode(errors="replace")


@functools.lru_cache(maxsize=16)
def lanes_of(net: Path) -> frozenset[str]:
    return frozenset(lanes_in(_text(net)))


@functools.lru_cache(maxsize=16)
def _programs(net: Path) -> tuple[str, ...]:
    return tuple(_PROGRAM.findall(_text(net)))


@functools.lru_cache(maxsize=16)
def _num_links(net: Path) -> Counter[str]:
    """The number of links that lead on from each lane inside a junction."""
    return Counter(f"{edge}_{lane}" for edge, lane in _INTERNAL_CONNECTION.findall(_text(net)))


@functools.lru_cache(maxsize=256)
def _has_persons(routes: Path) -> bool:
    return re.search(r"<(person|container)(Flow)?\b", _text(routes)) is not None
