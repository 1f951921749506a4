"""SUMO's additional files without what they make SUMO write."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

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


def without_outputs(path: Path) -> bytes | None:
    """A copy of the additional file in which every output goes to /dev/null. None if it has no output.

    The copy names the files that SUMO reads by absolute paths, because SUMO looks for relative ones beside the
    additional file. Raises ScenarioError for broken XML.
    """
    try:
        tree = ElementTree.parse(path)
    except ElementTree.ParseError as error:
        line, column = error.position
        raise ScenarioError(f"{path}:{line}:{column + 1}: broken XML: {error.msg}") from error
    writes = False
    for element in tree.iter():
        written = _WRITES.get(element.tag)
        if written and element.get(written):
            element.set(written, _NOWHERE)
            writes = True
        elif element.get("file"):  # of rerouters and speed signs
            element.set("file", str(path.resolve().parent / element.get("file", "")))
    return ElementTree.tostring(tree.getroot()) if writes else None
