"""Why a saved state is not replayed as it was labelled, read from the state, the net and the routes themselves.

Each cause has a name, one sentence that says what is wrong, and what to do about it. docs/replays.md tells how each was
found. A cause is certain where the files show that the state cannot hold what the simulation was; it is likely where
the files only show that SUMO has been seen to go on differently from such a state.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tsc.errors import StateError
from tsc.replays.request import ReplayRequest
from tsc.replays.saved_state import occupied_internal_lanes, state_text, state_time_s
from tsc.sumo.version import installed_sumo_version


@dataclass(frozen=True, kw_only=True)
class Cause:
    """what: continues "states …"."""

    what: str
    remedy: str
    is_likely_only: bool = False


_GENERATE = "generate the dataset again"

CAUSES = {
    "state missing": Cause(what="whose file is not there", remedy=f"put the file back, or {_GENERATE}"),
    "state changed": Cause(
        what="whose file has another SHA-256 than the sample says",
        remedy=f"put the file back that the sample was written with, or {_GENERATE}",
    ),
    "state damaged": Cause(what="whose file cannot be unpacked or ends too early", remedy=_GENERATE),
    "scenario missing": Cause(
        what="whose net, routes or additional files are not there", remedy=f"put the files back, or {_GENERATE}"
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
    "lane choice inside a junction": Cause(
        what="with vehicles on parallel lanes inside a junction, which choose their lane by what was on the road ahead "
        "when they entered; SUMO does not save that",
        remedy="none known; leave these samples out (json_to_parquet --replays drop)",
        is_likely_only=True,
    ),
    "SUMO stopped": Cause(
        what="whose replay ended with an error or without an answer", remedy="see the message; " + _GENERATE
    ),
    "unknown": Cause(what="that differ for no reason found here", remedy=_GENERATE),
}

_PROGRAM = re.compile(r"<tlLogic\b[^>]*>")
_VEHICLE_NUMBERS = re.compile(r'<vehicle [^>]*\bpos="([^"]*)" speed="([^" ]*)')
_INTERNAL_CONNECTION = re.compile(r'<connection\b(?=[^>]*\bfrom="(:[^"]+)")(?=[^>]*\bfromLane="(\d+)")')


def why_not_replayed(request: ReplayRequest) -> str | None:
    """The name of the first cause that keeps the state from being replayed at all; None where none is found here."""
    return next(_obstacles(request), None)


def why_different(request: ReplayRequest, time_s: float | None) -> str:
    """The name of the first cause, certain ones ahead of likely ones, why the replay of a state that loads goes another
    way. time_s: the sample's second, where it has one."""
    return next(_differences(request, time_s), "unknown")


def _obstacles(request: ReplayRequest) -> Iterator[str]:
    folder, sumo = Path(request.dataset_dir), request.sumo
    try:
        data = request.state_path.read_bytes()
    except FileNotFoundError:
        yield "state missing"
        return
    if request.state_sha256 not in (None, hashlib.sha256(data).hexdigest()):
        yield "state changed"
    try:
        text = state_text(data, request.state_path)
    except StateError:
        yield "state damaged"
        return
    routes = [folder / name for name in sumo["route_files"]]
    net = folder / sumo["net_file"]
    if not all(
        path.is_file() for path in (net, *routes, *(folder / name for name in sumo.get("additional_files", [])))
    ):
        yield "scenario missing"
        return
    if sumo.get("net_sha256") not in (None, _sha256(net)):
        yield "net changed"
    digests = sumo.get("route_sha256") or []
    if any(expected not in (None, _sha256(path)) for path, expected in zip(routes, digests, strict=False)):
        yield "routes changed"
    if _made_by(request, text).split(".")[:2] != installed_sumo_version().split(".")[:2]:
        yield "another SUMO"
    if any('type="' in program and 'type="static"' not in program for program in _programs(net)):
        yield "detector-driven program"
    if not set(re.findall(r'<lane id="([^"]*)"', text)) <= _lanes(net):
        yield "net changed"
    if _has_online_program(text):
        yield "program online"


def _differences(request: ReplayRequest, time_s: float | None) -> Iterator[str]:
    text = state_text(request.state_path.read_bytes(), request.state_path)
    folder = Path(request.dataset_dir)
    net = folder / request.sumo["net_file"]
    if _made_by(request, text) != installed_sumo_version():
        yield "another SUMO"
    if _has_online_program(text):
        yield "program online"
    if time_s is not None and time_s != state_time_s(text):
        yield "another second"
    if "<rngState" not in text:
        yield "missing RNG"
    if has_low_precision(text):
        yield "low precision"
    if "<transportables" not in text and any(_has_persons(folder / name) for name in request.sumo["route_files"]):
        yield "missing persons"
    if re.search(r'<flowState [^>]*period="exp\(', text):
        yield "random flows"
    inside = occupied_internal_lanes(text)
    links = _num_links(net)
    if any(links[lane] != 1 for lane in inside):
        yield "unregistered vehicles"
    if "<transportables" in text and "<walk" in text:
        yield "walking persons"
    if any({f"{lane.rpartition('_')[0]}_{number}" for number in (0, 1)} <= _lanes(net) for lane in inside):
        yield "lane choice inside a junction"


def has_low_precision(text: str) -> bool:
    """Whether a position or speed in the state is written with fewer decimal places than tell it from the next number
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
    """The version that the sample tells, or the state itself."""
    told = re.search(r'<snapshot\b[^>]*\bversion="([^"]*)"', text)
    in_sample = request.sumo.get("version")
    if in_sample is not None and in_sample != installed_sumo_version():
        return str(in_sample)
    return told.group(1).removeprefix("v").replace("_", ".") if told else str(in_sample)


def _has_online_program(text: str) -> bool:
    return any('programID="online"' in program and 'active="1"' in program for program in _PROGRAM.findall(text))


# Nets and routes are shared by many states; a worker reads each once.


@functools.lru_cache(maxsize=256)
def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.lru_cache(maxsize=4)
def _text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode(errors="replace")


@functools.lru_cache(maxsize=16)
def _lanes(net: Path) -> frozenset[str]:
    return frozenset(re.findall(r'<lane id="([^"]*)"', _text(net)))


@functools.lru_cache(maxsize=16)
def _programs(net: Path) -> tuple[str, ...]:
    return tuple(_PROGRAM.findall(_text(net)))


@functools.lru_cache(maxsize=16)
def _num_links(net: Path) -> Counter[str]:
    """For each lane inside a junction, how many links lead on from it."""
    return Counter(f"{edge}_{lane}" for edge, lane in _INTERNAL_CONNECTION.findall(_text(net)))


@functools.lru_cache(maxsize=256)
def _has_persons(routes: Path) -> bool:
    return re.search(r"<(person|container)(Flow)?\b", _text(routes)) is not None
