"""Copies of SUMO's additional files without what they make SUMO write, or without timetables of signal programs."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from sumolib.miscutils import openz

from tsc.errors import ScenarioError

# by the kind of element, the attribute that names a file which SUMO writes
_WRITES = {
    "calibrator": "output",
    "e1Detector": "file",
    "inductionLoop": "file",
    "e2Detector": "file",
    "laneAreaDetector": "file",
    "e3Detector": "file",
    "entryExitDetector": "file",
    "instantInductionLoop": "file",
    "edgeData": "file",
    "laneData": "file",
    "routeProbe": "file",
    "vTypeProbe": "file",
    "timedEvent": "dest",
}
_NOWHERE = "/dev/null"


# elements that make SUMO change signal programs at set times
_TIMETABLES = ("WAUT", "wautJunction")


def without_outputs(path: Path) -> bytes | None:
    """A copy of the additional file in which every output goes to /dev/null. None if it has no output.

    The copy names the files that SUMO reads by absolute paths, because SUMO looks for relative ones beside the
    additional file. Raises ScenarioError for broken XML.
    """
    root = _parse(path)
    writes = False
    for element in root.iter():
        written = _WRITES.get(element.tag)
        if written and element.get(written):
            element.set(written, _NOWHERE)
            writes = True
    return _copy(root, path) if writes else None


def without_timetables(path: Path) -> bytes | None:
    """A copy of the net or additional file without the elements that change signal programs at set times (WAUT).

    None if it has none. Outputs go to the same files as before. Raises ScenarioError for broken XML.
    """
    with openz(str(path), "rb") as stream:
        if b"<WAUT" not in stream.read():
            return None
    root = _parse(path)
    for name in _TIMETABLES:
        for element in root.findall(name):
            root.remove(element)
    return _copy(root, path)


def _parse(path: Path) -> ElementTree.Element:
    try:
        with openz(str(path), "rb") as stream:
            root = ElementTree.parse(stream).getroot()
    except ElementTree.ParseError as error:
        line, column = error.position
        raise ScenarioError(f"{path}:{line}:{column + 1}: broken XML: {error.msg}") from error
    assert root is not None
    return root


def _copy(root: ElementTree.Element, path: Path) -> bytes:
    for element in root.iter():
        for name in {"file", _WRITES.get(element.tag, "file")}:
            named = element.get(name)
            # rerouters and speed signs read files, the others write them
            if named and named != _NOWHERE:
                element.set(name, str(path.resolve().parent / named))
    return ElementTree.tostring(root)
