"""Pictures of a junction: its lanes as the net has them, and for each stage the movements with green.

They must be readable in greyscale: a movement that yields is dashed, a green crossing is hatched.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Patch
from matplotlib.path import Path as Outline
from numpy.typing import NDArray

from data_tools.inspection import Facts
from tsc.player.junction_map import band, line
from tsc.sumo.signal_links import Link
from tsc.sumo.signal_program import SignalPlan

Points = NDArray[np.float64]
"""A line or the outline of an area, in m: one row for each point."""

_DOTS_PER_INCH = 120
_COLUMNS = 4
_MARGIN_M, _SMALLEST_M = 22.0, 75.0
_M_PER_INCH = 26.0
_LOWEST_INCH, _HIGHEST_INCH = 2.9, 6.5
_WIDEST_INCH = 14.0
_TITLE_INCH = 0.26

_ROAD, _FOOTPATH, _NODE = "#c9ccd1", "#e9ebee", "#d9dbdf"
_PRIORITY, _YIELDS, _STOPS = "#0a6b2d", "#37b24d", "#a86400"
_RED, _BLUE = "#c22f3d", "#1c5fa8"
_STYLE = {"font.family": "DejaVu Sans", "font.size": 8, "hatch.linewidth": 1.1}


class Ground:
    """The lanes and nodes of a net, to be drawn below the movements."""

    def __init__(self, net: Any) -> None:
        self._net = net
        lanes = [lane for edge in net.getEdges() if edge.getFunction() == "" for lane in edge.getLanes()]
        areas = [band(lane.getShape(), 0.93 * lane.getWidth()) for lane in lanes]
        colours = [_ROAD if lane.allows("passenger") or lane.allows("bus") else _FOOTPATH for lane in lanes]
        walks = [
            lane.getShape()
            for edge in net.getEdges()
            if edge.getFunction() == "walkingarea"
            for lane in edge.getLanes()
        ]
        nodes = [node.getShape() for node in net.getNodes() if len(node.getShape()) > 2]
        outlines = [np.array([point[:2] for point in shape]) for shape in (*nodes, *walks) if len(shape) > 2]
        self._areas = [*outlines, *areas]
        self._colours = [*[_NODE] * (len(outlines)), *colours]
        self._corners = np.array([(*area.min(axis=0), *area.max(axis=0)) for area in self._areas])

    def draw(self, axes: Axes, box: Sequence[float]) -> None:
        """box: west, south, east and north end of what is seen."""
        west, south, east, north = self._corners.T
        seen = np.flatnonzero((west < box[2]) & (east > box[0]) & (south < box[3]) & (north > box[1]))
        axes.add_collection(
            PolyCollection(
                [self._areas[place] for place in seen],
                facecolors=[self._colours[place] for place in seen],
                edgecolors="none",
                zorder=1,
            )
        )

    def way_inside(self, link: Link) -> list[Points]:
        """The lanes inside the junction that a movement follows; none in a net without them."""
        ways = []
        via = link.via_lane
        while via:
            lane = self._net.getLane(via)
            ways.append(line(lane.getShape()))
            via = next((onward.getViaLaneID() or "" for onward in lane.getOutgoing()), "")
        return ways

    def crossing(self, edge_id: str) -> tuple[Points, float]:
        """The middle line of a crossing and its width in m."""
        lane = self._net.getEdge(edge_id).getLanes()[0]
        return line(lane.getShape()), float(lane.getWidth())


def last_metres(points: Points, length_m: float) -> Points:
    """The end of a line; the whole line if it is shorter."""
    kept = [points[-1]]
    for one in points[-2::-1]:
        step_m = float(np.hypot(*(one - kept[-1])))
        if step_m >= length_m:
            kept.append(kept[-1] + (one - kept[-1]) * length_m / step_m)
            break
        kept.append(one)
        length_m -= step_m
    return np.array(kept[::-1])


def stages_picture(ground: Ground, facts: Facts, plan: SignalPlan, links: Sequence[Link]) -> bytes:
    """All stages of a junction side by side, as PNG. facts: of the junction (data_tools/inspection.py)."""
    box = _box(ground, links)
    width_m, height_m = box[2] - box[0], box[3] - box[1]
    longest_inch = min(_HIGHEST_INCH, max(_LOWEST_INCH, max(width_m, height_m) / _M_PER_INCH))
    panel_inch = np.array([width_m, height_m]) / max(width_m, height_m) * longest_inch
    panel_inch[0] = max(panel_inch[0], 2.3)  # room for the title
    stages = facts["stages"]
    columns = max(1, min(_COLUMNS, len(stages), int(_WIDEST_INCH / panel_inch[0])))
    rows = -(-len(stages) // columns)
    legend_inch = 0.32 if columns * panel_inch[0] > 6.2 else 0.5
    size = np.array([columns * (panel_inch[0] + 0.1), rows * (panel_inch[1] + _TITLE_INCH + 0.06) + legend_inch])
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=tuple(size))
        for number, stage in enumerate(stages):
            row, column = divmod(number, columns)
            left = column * (panel_inch[0] + 0.1) + 0.05
            bottom = size[1] - (row + 1) * (panel_inch[1] + _TITLE_INCH + 0.06)
            axes = figure.add_axes((left / size[0], bottom / size[1], *(panel_inch / size)))
            _draw_stage(axes, ground, box, stage, plan, links, facts["approaches"])
            if number == 0:
                _draw_scale(axes, box)
        figure.legend(
            handles=_legend(stages, links),
            loc="lower center",
            ncols=5 if legend_inch < 0.5 else 3,
            frameon=False,
            fontsize=7.5,
            handlelength=2.6,
            borderaxespad=0.2,
        )
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return data.getvalue()


def _box(ground: Ground, links: Sequence[Link]) -> tuple[float, float, float, float]:
    """The stop lines and the inside of the junction with a margin, and at least _SMALLEST_M in both directions."""
    points = []
    for link in links:
        if link.crossing:
            points.append(ground.crossing(link.crossing)[0])
        else:
            points += [
                line(link.from_lane.getShape())[-1:],
                line(link.to_lane.getShape())[:1],
                *ground.way_inside(link),
            ]
    every = np.vstack(points)
    low, high = every.min(axis=0) - _MARGIN_M, every.max(axis=0) + _MARGIN_M
    middle, half = (low + high) / 2, np.maximum((high - low) / 2, _SMALLEST_M / 2)
    return (*(middle - half), *(middle + half))


def _draw_stage(
    axes: Axes,
    ground: Ground,
    box: Sequence[float],
    stage: Facts,
    plan: SignalPlan,
    links: Sequence[Link],
    approaches: Sequence[Facts],
) -> None:
    axes.set(xlim=(box[0], box[2]), ylim=(box[1], box[3]), aspect="equal", xticks=[], yticks=[])
    axes.set_title(
        f"stage {stage['stage'] + 1} · {stage['min_green_s']}–{stage['max_green_s']} s · "
        f"planned {stage['planned_s']:g} s",
        fontsize=8.5,
        fontweight="bold",
        pad=4,
    )
    for spine in axes.spines.values():
        spine.set_color("#b6bac0")
    ground.draw(axes, box)
    letters = dict(enumerate(stage["state"]))
    _draw_crossings(axes, ground, links, letters)
    _draw_stop_lines(axes, links, letters)
    # those that yield lie above: they are narrower
    for link in sorted(links, key=lambda each: letters[each.index] != "G"):
        if not link.crossing and letters[link.index] in "Ggs":
            _draw_movement(axes, ground, link, letters[link.index])
    _draw_letters(axes, box, links, approaches)


def _draw_movement(axes: Axes, ground: Ground, link: Link, letter: str) -> None:
    ahead = last_metres(line(link.to_lane.getShape())[::-1], 6.0)[::-1]
    way = np.vstack([last_metres(line(link.from_lane.getShape()), 6.0), *ground.way_inside(link), ahead])
    looks: Mapping[str, Any] = {
        "G": {"color": _PRIORITY, "linewidth": 1.9, "zorder": 6},
        "g": {"color": _YIELDS, "linewidth": 1.3, "linestyle": (0, (3.2, 1.4)), "zorder": 7},
        "s": {"color": _STOPS, "linewidth": 1.1, "linestyle": (0, (1, 1.2)), "zorder": 7},
    }[letter]
    look = {key: value for key, value in looks.items() if key != "linestyle"}
    axes.plot(*way.T, **looks, solid_capstyle="butt", solid_joinstyle="round")
    axes.add_patch(FancyArrowPatch(path=Outline(last_metres(way, 1.5)), arrowstyle="-|>", mutation_scale=8, **look))


def _draw_crossings(axes: Axes, ground: Ground, links: Sequence[Link], letters: Mapping[int, str]) -> None:
    for link in links:
        if link.crossing:
            middle, width_m = ground.crossing(link.crossing)
            area = band(middle, min(width_m, 4.0))
            if letters[link.index] in "Gg":
                axes.fill(*area.T, facecolor="white", edgecolor=_BLUE, hatch="/////", linewidth=1.0, zorder=4)
            else:
                axes.fill(*area.T, facecolor="#f4f5f6", edgecolor="#a5aab1", linewidth=0.5, zorder=3)


def _draw_stop_lines(axes: Axes, links: Sequence[Link], letters: Mapping[int, str]) -> None:
    """A red bar at the end of each lane that has no green."""
    lanes = {link.from_lane.getID(): link.from_lane for link in links if not link.crossing}
    green = {link.from_lane.getID() for link in links if not link.crossing and letters[link.index] in "Ggs"}
    for name, lane in lanes.items():
        if name not in green:
            outline = band(last_metres(line(lane.getShape()), 2.0), 0.85 * lane.getWidth())
            right, left = outline[len(outline) // 2], outline[len(outline) // 2 - 1]
            axes.plot(*np.array([left, right]).T, color=_RED, linewidth=2.2, solid_capstyle="butt", zorder=5)


def _draw_letters(axes: Axes, box: Sequence[float], links: Sequence[Link], approaches: Sequence[Facts]) -> None:
    """The letter of each approach on its lanes, 15 m before the stop line."""
    for approach in approaches:
        if not approach["letter"]:
            continue
        lanes = {link.from_lane.getID(): link.from_lane for link in links if link.from_edge == approach["edge"]}
        middle = np.mean([last_metres(line(lane.getShape()), 15.0)[0] for lane in lanes.values()], axis=0)
        middle = np.clip(middle, np.array(box[:2]) + 3, np.array(box[2:]) - 3)
        axes.text(
            float(middle[0]),
            float(middle[1]),
            approach["letter"],
            fontsize=7.5,
            fontweight="bold",
            horizontalalignment="center",
            verticalalignment="center",
            zorder=8,
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "#555b63", "linewidth": 0.7},
        )


def _draw_scale(axes: Axes, box: Sequence[float]) -> None:
    x, y = box[0] + 3, box[1] + 3
    axes.plot([x, x + 20], [y, y], color="black", linewidth=1.6, solid_capstyle="butt", zorder=9)
    axes.text(x + 10, y + 1, "20 m", fontsize=7, horizontalalignment="center", verticalalignment="bottom", zorder=9)


def _legend(stages: Sequence[Facts], links: Sequence[Link]) -> list[Any]:
    """What occurs in the pictures."""
    shown = {stage["state"][link.index] for stage in stages for link in links if not link.crossing}
    handles = [
        ("G", Line2D([], [], color=_PRIORITY, linewidth=1.9, label="green (G)")),
        ("g", Line2D([], [], color=_YIELDS, linewidth=1.3, linestyle=(0, (3.2, 1.4)), label="green, yields (g)")),
        ("s", Line2D([], [], color=_STOPS, linewidth=1.1, linestyle=(0, (1, 1.2)), label="may go after a stop (s)")),
        ("r", Line2D([], [], color=_RED, linewidth=2.2, label="lane red")),
    ]
    crossing = Patch(facecolor="white", edgecolor=_BLUE, hatch="/////", label="crossing green")
    return [
        *(handle for letter, handle in handles if letter in shown),
        *([crossing] if any(link.crossing for link in links) else []),
    ]


def queue_picture(queues_veh: Mapping[str, NDArray[np.int64]]) -> bytes:
    """The queue of all approaches in every second of the runs, as PNG."""
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(8, 2.2), layout="constrained")
        axes = figure.subplots()
        looks: Sequence[Mapping[str, Any]] = ({"color": "black"}, {"color": _BLUE, "linestyle": (0, (3, 1.5))})
        for (name, queue_veh), look in zip(queues_veh.items(), looks, strict=False):
            axes.plot(np.arange(1, len(queue_veh) + 1) / 60, queue_veh, linewidth=1.3, label=name, **look)
        axes.set(xlabel="minutes after the begin", ylabel="queue [veh]", xlim=(0, None), ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92")
        axes.legend(frameon=False, loc="upper left")
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return data.getvalue()
