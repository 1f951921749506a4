"""The map of a junction and its surroundings: what the page draws below the vehicles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsc.sumo.running import Box
from tsc.sumo.signal_links import Link, read_net, signal_links

# how far around the signals vehicles are recorded, and how far the page shows at first
RECORDED_MARGIN_M = 150.0
SHOWN_MARGIN_M = 65.0

_STOP_LINE_SHARE = 0.86  # of the lane's width

Points = list[tuple[float, float]]
"""In m from the south-west corner of the box."""


@dataclass(frozen=True, kw_only=True)
class JunctionMap:
    """box: the part of the net that is recorded, in the net's coordinates. shown: the first view, in m from the box's
    south-west corner.

    nodes: the outlines of junctions. lanes: the middle line, the width in m, and the kind: `road`, `path` or `rail`.
    stop_lines: for each link of the shown signal its index in the state, and the ends of its part of the stop line.
    crossings: the index, the middle line and the width of each signalled pedestrian crossing.
    """

    box: Box
    shown: Box
    nodes: Sequence[Points]
    lanes: Sequence[tuple[Points, float, str]]
    stop_lines: Sequence[tuple[int, Points]]
    crossings: Sequence[tuple[int, Points, float]]


def junction_map(net_file: Path, junction_id: str) -> JunctionMap:
    """junction_id: a signal of the net."""
    net = read_net(net_file)
    links = signal_links(net)[junction_id]
    ends = [point for link in links for point in _ends(link)]
    box = _around(ends, RECORDED_MARGIN_M)
    shown = _around(ends, SHOWN_MARGIN_M)

    def placed(shape: Iterable[Sequence[float]]) -> Points:
        return [(round(point[0] - box[0], 2), round(point[1] - box[1], 2)) for point in shape]

    seen = [edge for edge in net.getEdges(withInternal=True) if _overlap(edge.getBoundingBox(), box)]
    nodes = [node.getShape() for node in net.getNodes() if len(node.getShape()) > 2]
    # an area for walking is a polygon: its lane's shape goes around it
    nodes += [edge.getLanes()[0].getShape() for edge in seen if edge.getFunction() == "walkingarea"]
    return JunctionMap(
        box=box,
        shown=(shown[0] - box[0], shown[1] - box[1], shown[2] - box[0], shown[3] - box[1]),
        nodes=[placed(shape) for shape in nodes if _overlap(_bounds(shape), box)],
        lanes=[
            (placed(lane.getShape()), float(lane.getWidth()), _kind(lane))
            for edge in seen
            if edge.getFunction() == ""
            for lane in edge.getLanes()
        ],
        stop_lines=[(index, placed(line)) for index, line in _stop_lines(links)],
        crossings=[
            (link.index, placed(lane.getShape()), float(lane.getWidth()))
            for link in links
            if link.crossing
            for lane in net.getEdge(link.crossing).getLanes()
        ],
    )


def _ends(link: Link) -> list[Sequence[float]]:
    return [link.from_lane.getShape()[-1], link.to_lane.getShape()[0]]


def _bounds(points: Iterable[Sequence[float]]) -> Box:
    xs, ys = zip(*((point[0], point[1]) for point in points), strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _around(points: Iterable[Sequence[float]], margin_m: float) -> Box:
    west, south, east, north = _bounds(points)
    return west - margin_m, south - margin_m, east + margin_m, north + margin_m


def _overlap(one: Sequence[float], other: Box) -> bool:
    return one[0] <= other[2] and one[2] >= other[0] and one[1] <= other[3] and one[3] >= other[1]


def _kind(lane: Any) -> str:
    if lane.allows("passenger") or lane.allows("bus"):
        return "road"
    return "path" if lane.allows("pedestrian") or lane.allows("bicycle") else "rail"


def _stop_lines(links: Sequence[Link]) -> list[tuple[int, Points]]:
    """Across the end of each lane, one part for each of its links: the leftmost link has the leftmost part."""
    of_lane: dict[str, list[Link]] = {}
    for link in links:
        if not link.crossing:
            of_lane.setdefault(link.from_lane.getID(), []).append(link)
    found = []
    for own in of_lane.values():
        lane = own[0].from_lane
        (before_x, before_y), (x, y) = (point[:2] for point in lane.getShape()[-2:])
        length = ((x - before_x) ** 2 + (y - before_y) ** 2) ** 0.5 or 1.0
        aside = (-(y - before_y) / length, (x - before_x) / length)  # to the left
        width_m = lane.getWidth() * _STOP_LINE_SHARE
        part_m = width_m / len(own)
        for number, link in enumerate(sorted(own, key=lambda each: _LEFT_TO_RIGHT.find(each.direction))):
            left_m = width_m / 2 - number * part_m
            ends = [(x + aside[0] * at, y + aside[1] * at) for at in (left_m, left_m - part_m)]
            found.append((link.index, ends))
    return found


# SUMO's letters of directions
_LEFT_TO_RIGHT = "tTLlsRr"


def line(shape: Iterable[Sequence[float]]) -> NDArray[np.float64]:
    """The points of a shape without heights, and without points that lie on one another."""
    points = np.array([point[:2] for point in shape], dtype=float)
    apart = np.r_[True, np.hypot(*np.diff(points, axis=0).T) > 0.01]
    return points[apart] if apart.sum() > 1 else np.array([points[0], points[0] + 0.1])


def band(shape: Iterable[Sequence[float]], width_m: float) -> NDArray[np.float64]:
    """The outline of a strip along a line."""
    points = line(shape)
    along = np.diff(points, axis=0)
    along /= np.hypot(*along.T)[:, None]
    # at a bend, the mean of the directions before and after it
    at_points = np.vstack([along[:1], along[:-1] + along[1:], along[-1:]])
    at_points /= np.maximum(np.hypot(*at_points.T)[:, None], 0.2)
    aside = np.column_stack([-at_points[:, 1], at_points[:, 0]]) * width_m / 2
    return np.vstack([points + aside, (points - aside)[::-1]])
