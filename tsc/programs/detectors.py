"""Lane area detectors of a junction, which count the vehicles of each lane group by distance to the stop line."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tsc.junction.observation import MID_M, NEAR_M
from tsc.sumo.signal_program import SignalProgram

# as in an observation: from where to where before the stop line (m)
BANDS_M: Mapping[str, tuple[float, float]] = {
    "near": (0.0, NEAR_M),
    "mid": (NEAR_M, MID_M),
    "far": (MID_M, float("inf")),
}
# SUMO takes no shorter detector; so short a piece holds no vehicle of its own
SHORTEST_M = 1.0


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A detector on a part of a lane, from begin_m to end_m after the lane's begin."""

    name: str
    lane: str
    begin_m: float
    end_m: float

    def element(self) -> ElementTree.Element:
        """SUMO's laneAreaDetector. It writes nothing."""
        return ElementTree.Element(
            "laneAreaDetector",
            id=self.name,
            lane=self.lane,
            pos=f"{self.begin_m:.2f}",
            endPos=f"{self.end_m:.2f}",
            friendlyPos="true",
            period="86400",
            file="/dev/null",
        )


@dataclass(frozen=True, kw_only=True)
class JunctionDetectors:
    """The detectors of one junction.

    counts: by lane group (SignalProgram.lane_groups) and band (`near`, `mid`, `far`), the detectors whose vehicles are
    added up.
    """

    detectors: tuple[Detector, ...]
    counts: tuple[Mapping[str, tuple[str, ...]], ...]

    def features(self, count_of: Callable[[str], int]) -> list[int]:
        """The vehicles of each lane group in each band, as feature_names has them. count_of: a detector's vehicles."""
        return [sum(map(count_of, names)) for names in self.detectors_of_features]

    @property
    def detectors_of_features(self) -> list[tuple[str, ...]]:
        return [names for group in self.counts for names in group.values()]

    @property
    def feature_names(self) -> list[str]:
        return [f"{band}_{number}" for number, group in enumerate(self.counts) for band in group]


def place_detectors(program: SignalProgram, length_m: Callable[[str], float], prefix: str) -> JunctionDetectors:
    """Detectors on the approaches of all stages. length_m: of a lane. prefix: begins the names of the detectors."""
    distance_m = {part.lane: part.distance_m for group in program.lane_groups for part in group.approach}
    detectors: list[Detector] = []
    of_lane: dict[str, dict[str, str]] = {}
    for lane, ends_m in distance_m.items():
        length = length_m(lane)
        of_lane[lane] = {}
        for band, (from_m, to_m) in BANDS_M.items():
            begin_m = max(0.0, length - (to_m - ends_m))
            end_m = min(length, length - (from_m - ends_m))
            if end_m - begin_m >= SHORTEST_M:
                name = f"{prefix}_{len(detectors)}"
                detectors.append(Detector(name=name, lane=lane, begin_m=begin_m, end_m=end_m))
                of_lane[lane][band] = name
    return JunctionDetectors(
        detectors=tuple(detectors),
        counts=tuple(
            {
                band: tuple(of_lane[part.lane][band] for part in group.approach if band in of_lane[part.lane])
                for band in BANDS_M
            }
            for group in program.lane_groups
        ),
    )
