"""The report's figures, as PNG bytes. The same input gives the same bytes.

They must be readable in print, in greyscale and by colour-blind readers: nothing is shown by colour alone, and the
colours differ in lightness (Paul Tol's high-contrast set).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tsc.episodes.trace import Trace
from tsc.evaluation.reported import ReportedTraining
from tsc.evaluation.wording import Row, percent_difference, signed

SMOOTHING_S = 120
TIMELINE_S = 600
CURVES_A_ROW = 3
# largest value / smallest value of a curve that a linear axis would flatten
LOG_FROM = 50

_DOTS_PER_INCH = 150
_BLUE, _RED, _YELLOW = "#004488", "#bb5566", "#ddaa33"
_LINES: tuple[dict[str, Any], ...] = (
    {"color": "black", "linestyle": "-", "linewidth": 2.0},
    {"color": _RED, "linestyle": (0, (4, 1.5)), "linewidth": 1.8},
    {"color": _YELLOW, "linestyle": "-", "linewidth": 2.4},
    {"color": _BLUE, "linestyle": (0, (1, 1)), "linewidth": 2.0},
    {"color": "0.55", "linestyle": (0, (5, 1.2, 1, 1.2)), "linewidth": 1.6},
)
MAX_LINES = len(_LINES)
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.8,
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure of the report. name: the file's name. alt: the content in words, for readers who cannot see it."""

    name: str
    title: str
    caption: str
    alt: str
    png: bytes


def paired_differences(rows: Sequence[Row], by_seed_veh: Mapping[str, Sequence[float]], reference: str) -> Picture:
    """Draw the differences of each controller to the reference, in the order of `rows`, the results of the mean queue.

    by_seed_veh: the differences by controller, one per seed.
    """
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(9, 1.0 + 0.46 * len(rows)), layout="constrained")
        axes = figure.subplots()
        low, high = _difference_limits(rows, by_seed_veh)
        for place, row in enumerate(rows):
            shown = [value for value in by_seed_veh[row["controller"]] if low <= value <= high]
            # A fixed zigzag keeps equal values apart.
            heights = [place - 0.20 + 0.10 * (number % 3 - 1) for number in range(len(shown))]
            axes.plot(shown, heights, "o", markersize=4, markerfacecolor="white", markeredgecolor="0.35", clip_on=False)
            mean, *interval = _mean_and_interval(row)
            if low <= mean <= high:
                if interval:
                    ends = np.clip(interval, low, high)
                    axes.plot(ends, [place + 0.15] * 2, "-", color=_BLUE, linewidth=3, solid_capstyle="butt")
                axes.plot([mean], [place + 0.15], "D", color="black", markersize=6.5)
            else:
                end, sign = (high, ">") if mean > high else (low, "<")
                axes.plot([end], [place + 0.15], sign, color="black", markersize=8, clip_on=False)
            axes.annotate(
                _difference_label(row),
                (1.02, place),
                xycoords=("axes fraction", "data"),
                verticalalignment="center",
                fontsize=8.5,
            )
        axes.axvline(0, color="black", linewidth=1)
        axes.set_xlim(low, high)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [row["controller"] for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color="0.9")
        axes.set_xlabel(f"mean queue minus that of {reference} on the same seed [veh]     ← shorter | longer →")
        return Picture(
            name="paired_differences",
            title=f"Mean queue against {reference}, seed by seed",
            caption="Each circle is one seed. The diamond is their mean, and the bar is its 95 % interval. If the bar "
            "crosses the line at 0, no difference is shown. An arrowhead at the edge means that the mean lies outside "
            "the scale. The mean is written on the right.",
            alt="; ".join(f"{row['controller']}: {_difference_label(row)}" for row in rows),
            png=_png(figure),
        )


def sketch(junction_id: str, png: bytes, number: int) -> Picture:
    """The picture of a junction and its stages as a figure of the report. number: of the junction, from 0."""
    return Picture(
        name=f"junction{number}",
        title=f"Junction {junction_id}",
        caption="What is controlled: the movements with green in each stage, which follow one another in this order. "
        "Above each stage: its shortest and longest green, and the green that the net’s own plan gives it.",
        alt=f"Map of junction {junction_id} for each stage",
        png=png,
    )


def training_curves(trainings: Mapping[str, ReportedTraining]) -> Picture:
    """Draw the progress of the trainings, each in axes of its own. trainings: by model; each has a curve."""
    rows = -(-len(trainings) // CURVES_A_ROW)
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(9, 2.5 * rows), layout="constrained")
        panels = figure.subplots(rows, min(len(trainings), CURVES_A_ROW), squeeze=False).ravel()
        for axes, (name, training) in zip(panels, trainings.items(), strict=False):
            steps, values = list(training.curve), list(training.curve.values())
            axes.plot(steps, values, "o-" if len(steps) == 1 else "-", color=_BLUE, linewidth=1.4, markersize=4)
            if min(values) > 0 and max(values) > LOG_FROM * min(values):
                axes.set_yscale("log")
            axes.set_title(name)
            axes.set_xlabel("step")
            axes.set_ylabel(training.measure)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(color="0.92")
        for axes in panels[len(trainings) :]:
            axes.set_visible(False)
        return Picture(
            name="training_curves",
            title="Training",
            caption="Progress of each training, step by step, as its metrics have it. Each step of GRPO has other "
            "decisions, some harder than others, so its score goes up and down: judge by the evaluation.",
            alt="; ".join(
                f"{name}: {training.measure} from {training.curve[min(training.curve)]:.3g} "
                f"to {training.curve[max(training.curve)]:.3g} at step {max(training.curve)}"
                for name, training in trainings.items()
            ),
            png=_png(figure),
        )


def _mean_and_interval(row: Row) -> list[float]:
    """The mean difference and, if there is more than one seed, both ends of its interval."""
    keys = ("difference", "difference_ci95_low", "difference_ci95_high")
    return [row[key] for key in keys if row[key] is not None]


def _difference_limits(rows: Sequence[Row], by_seed_veh: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """A scale on which all controllers fit, except those that would squeeze the others together."""
    reach = sorted(max(map(abs, _mean_and_interval(row))) for row in rows)
    limit = 5 * max(float(np.median(reach)), 0.02)
    values = [0.0]
    for row in rows:
        if abs(row["difference"]) <= limit:
            values += [*_mean_and_interval(row), *by_seed_veh[row["controller"]]]
    low, high = max(min(values), -2 * limit), min(max(values), 2 * limit)
    margin = 0.06 * max(high - low, 0.02)
    return low - margin, high + margin


def _difference_label(row: Row) -> str:
    return f"{signed(row['difference'], 2)} veh{percent_difference(row)}"


def queue_over_time(traces: Mapping[str, Sequence[Trace]], reference: str, warm_up_s: int) -> Picture:
    """Draw one panel per controller. traces: for each controller, one trace per seed."""
    queues = {
        name: np.array([smoothed(trace.queue_veh, SMOOTHING_S) for trace in of_controller])
        for name, of_controller in traces.items()
    }
    tops = {name: float(queue.max()) for name, queue in queues.items()}
    usual = sorted(tops.values())[(len(tops) - 1) // 2]
    top = max(min(max(tops.values()), 6 * usual), 1.0) * 1.08
    columns = min(3, len(queues))
    rows = -(-len(queues) // columns)
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(9, 0.6 + 1.75 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in panels.flat[len(queues) :]:
            axes.set_visible(False)
        for place, (axes, (name, queue)) in enumerate(zip(panels.flat, queues.items(), strict=False)):
            minutes = np.arange(1, queue.shape[1] + 1) / 60
            _set_time_axis(axes, minutes, warm_up_s)
            axes.fill_between(minutes, queue.min(axis=0), queue.max(axis=0), color="0.8", linewidth=0)
            if reference in queues and name != reference:
                axes.plot(minutes, queues[reference].mean(axis=0), color=_BLUE, linestyle=(0, (2, 1.5)), linewidth=1.1)
            axes.plot(minutes, queue.mean(axis=0), color="black", linewidth=1.7)
            axes.set_title(name + (" (the reference)" if name == reference else ""), fontweight="bold")
            axes.set_ylim(0, top)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            if tops[name] > top:
                axes.annotate(
                    f"beyond the scale: up to {tops[name]:.0f} veh",
                    (0.98, 0.97),
                    xycoords="axes fraction",
                    horizontalalignment="right",
                    verticalalignment="top",
                    fontsize=8,
                    bbox={"facecolor": "white", "edgecolor": "0.6", "boxstyle": "square,pad=0.2", "linewidth": 0.6},
                )
            axes.tick_params(labelbottom=place >= len(queues) - columns)
            if place % columns == 0:
                axes.set_ylabel("queue [veh]")
        figure.supxlabel("minutes after the begin", fontsize=9)
        compares = reference in queues and len(queues) > 1
        dashed = f" Dashed line: the mean of {reference}, for comparison." if compares else ""
        several = max(len(of_controller) for of_controller in traces.values()) > 1
        band = " Grey band: from the lowest to the highest seed." if several else ""
        return Picture(
            name="queue_over_time",
            title="Queue over time",
            caption=f"Halting vehicles on all controlled approaches, mean of the last {SMOOTHING_S} s. Black line: "
            f"mean over the seeds.{band}{dashed}{_warm_up_words(warm_up_s)}",
            alt="Queue over time, one panel per controller: " + ", ".join(queues),
            png=_png(figure),
        )


def cumulative_trips(
    traces: Mapping[str, Sequence[Trace]], reference: str, warm_up_s: int, left_out: Sequence[str]
) -> Picture:
    """Draw at most MAX_LINES controllers. left_out: the controllers that are not drawn, for the caption."""
    arrived = {
        name: np.array([trace.arrived_veh for trace in of_controller], dtype=float).mean(axis=0)
        for name, of_controller in traces.items()
    }
    compares = reference in arrived and len(arrived) > 1
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(9, 4.6 if compares else 2.6), layout="constrained")
        panels = figure.subplots(2 if compares else 1, 1, sharex=True, squeeze=False)[:, 0]
        looks = dict(zip(arrived, _LINES, strict=False))
        for name, trips in arrived.items():
            minutes = np.arange(1, len(trips) + 1) / 60
            panels[0].plot(minutes, trips, label=name, **looks[name])
            if compares:
                # The reference's own line is at 0.
                panels[1].plot(minutes, smoothed(trips - arrived[reference], SMOOTHING_S), **looks[name])
        panels[0].set_ylabel("trips finished")
        panels[0].legend(loc="upper left", handlelength=3.2, framealpha=1, edgecolor="none")
        if compares:
            ends = {name: float(np.mean((t - arrived[reference])[-SMOOTHING_S:])) for name, t in arrived.items()}
            panels[1].set_ylabel(f"more or fewer\nthan {reference}")
            _label_line_ends(panels[1], ends)
        for axes in panels:
            _set_time_axis(axes, minutes, warm_up_s)
        panels[-1].set_xlabel("minutes after the begin")
        below = (
            f" Lower panel: how many more (or fewer) than under {reference} by the same time, mean of the last "
            f"{SMOOTHING_S} s."
        )
        also = f" Left out to keep the figure readable: {', '.join(left_out)}." if left_out else ""
        return Picture(
            name="cumulative_trips",
            title="Trips finished so far",
            caption=f"Vehicles that have arrived since the begin, mean over the seeds.{below if compares else ''}"
            f"{also}{_warm_up_words(warm_up_s)}",
            alt="Trips finished by the end: " + ", ".join(f"{name} {t[-1]:.0f}" for name, t in arrived.items()),
            png=_png(figure),
        )


def signal_timeline(traces: Mapping[str, Trace], seed: int, warm_up_s: int, looked_for_in: str) -> Picture:
    """Draw the greens and queues of one junction under one or two controllers on the same seed, one below the other.

    The figure shows the junction and the TIMELINE_S seconds with the longest queue under the controller
    `looked_for_in`.
    """
    one = traces[looked_for_in]
    junction_id, begin, end = busiest_window(one, warm_up_s)
    stage_lanes = one.programs[junction_id]["stages"]
    num_stages = len(stage_lanes)
    queues = {name: [trace.queue_on_veh(lanes)[begin:end] for lanes in stage_lanes] for name, trace in traces.items()}
    top = max(4, *(int(queue.max()) for of_controller in queues.values() for queue in of_controller))
    minutes = np.arange(begin, end + 1) / 60
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(9, 0.7 + len(traces) * (0.3 + 0.85 * num_stages)), layout="constrained")
        groups = figure.subfigures(len(traces), 1, squeeze=False, hspace=0.02)[:, 0]
        for group, (name, trace) in zip(groups, traces.items(), strict=True):
            mean_queue = trace.queue_on_veh(one.programs[junction_id]["lanes"])[begin:end].mean()
            group.suptitle(
                f"{name}: mean queue of the junction {mean_queue:.1f} veh in this window",
                x=0.01,
                horizontalalignment="left",
                fontweight="bold",
                fontsize=9.5,
            )
            panels = group.subplots(num_stages, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
            stages = trace.stage[begin:end, list(trace.programs).index(junction_id)]
            for number, axes in enumerate(panels):
                _draw_stage(axes, minutes, queues[name][number], stages == number, top)
                axes.set_ylabel(
                    f"stage {number + 1}\n{_approaches(stage_lanes[number])}",
                    rotation=0,
                    horizontalalignment="right",
                    verticalalignment="center",
                    fontsize=8,
                )
            panels[-1].set_xlabel("minutes after the begin", fontsize=8.5)
        return Picture(
            name="signal_timeline",
            title=f"Signal of junction {junction_id} minute by minute",
            caption=f"Dark bar: the stage is green; the number is the length of the green in seconds. Between the bars "
            f"are yellow and all-red. Grey area: halting vehicles on the lanes of the stage (a lane that is green in "
            f"several stages counts in each). All panels have the same scale. The figure shows seed {seed}, and the "
            f"junction and the {(end - begin) / 60:.0f} minutes with the longest queue under {looked_for_in}.",
            alt=f"Greens and queues of junction {junction_id} under " + " and ".join(traces),
            png=_png(figure),
        )


def busiest_window(trace: Trace, warm_up_s: int) -> tuple[str, int, int]:
    """(junction, first row, row after the last) of the window around the longest queue of any junction, measured as
    the mean of a minute."""
    queues = {
        name: smoothed(trace.queue_on_veh(each["lanes"]), 60)[warm_up_s:] for name, each in trace.programs.items()
    }
    junction_id = max(queues, key=lambda name: queues[name].max())
    second = warm_up_s + int(queues[junction_id].argmax())
    last = len(trace.stage)
    begin = max(warm_up_s, min(second - TIMELINE_S // 2, last - TIMELINE_S))
    return junction_id, begin, min(begin + TIMELINE_S, last)


def smoothed(values: NDArray[Any], window_s: int) -> NDArray[np.float64]:
    """The mean of the last window_s seconds; of fewer seconds at the begin."""
    total = np.concatenate(([0.0], np.cumsum(values, dtype=float)))
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(0, ends - window_s)
    return np.asarray((total[ends] - total[begins]) / (ends - begins))


def _draw_stage(axes: Axes, minutes: NDArray[Any], queue: NDArray[Any], green: NDArray[Any], top: int) -> None:
    """Draw one stage. minutes: the begin of each second and the end of the last one, so one value more than `queue` and
    `green` have."""
    axes.stairs(queue, minutes, fill=True, color="0.78")
    axes.stairs(queue, minutes, color="0.35", linewidth=0.9)
    bar_low, bar_high = -0.55 * top, -0.12 * top
    changes = np.flatnonzero(np.diff(np.concatenate(([0], green.astype(int), [0]))))
    for begin, end in zip(changes[::2], changes[1::2], strict=True):
        axes.fill_between(minutes[[begin, end]], bar_low, bar_high, color=_BLUE, linewidth=0)
        cut_by_window = begin == 0 or end == len(green)
        if end - begin >= 10 and not cut_by_window:
            axes.text(
                (minutes[begin] + minutes[end]) / 2,
                (bar_low + bar_high) / 2,
                str(end - begin),
                color="white",
                fontsize=6.5,
                horizontalalignment="center",
                verticalalignment="center_baseline",
            )
    axes.axhline(0, color="0.35", linewidth=0.6)
    axes.set_ylim(-0.62 * top, 1.08 * top)
    axes.set_yticks([0, top])
    axes.tick_params(axis="y", labelsize=7.5)
    axes.set_xlim(minutes[0], minutes[-1])
    axes.grid(axis="x", color="0.9")


def _approaches(lanes: Sequence[str], width: int = 22) -> str:
    """The edges of the lanes, shortened to `width` characters."""
    text = ", ".join(dict.fromkeys(lane.rpartition("_")[0] for lane in lanes))
    return text if len(text) <= width else text[: width - 1] + "…"


def _label_line_ends(axes: Axes, ends: Mapping[str, float]) -> None:
    """Write the names on the right, moved apart if lines end close together."""
    low, high = axes.get_ylim()
    apart = 0.14 * (high - low)
    places: dict[str, float] = {}
    free_from = -np.inf
    for name in sorted(ends, key=ends.__getitem__):
        places[name] = free_from = max(ends[name], free_from)
        free_from += apart
    free_until = high
    for name in reversed(places):
        places[name] = free_until = min(places[name], free_until)
        free_until -= apart
    for name, place in places.items():
        axes.annotate(
            f"{name} {signed(ends[name], 0)}",
            (1.0, ends[name]),
            xycoords=("axes fraction", "data"),
            xytext=(1.03, place),
            textcoords=("axes fraction", "data"),
            verticalalignment="center",
            fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
        )


def _set_time_axis(axes: Axes, minutes: NDArray[Any], warm_up_s: int) -> None:
    if warm_up_s:
        axes.axvspan(0, warm_up_s / 60, facecolor="none", edgecolor="0.8", hatch="////", linewidth=0)
    axes.set_xlim(0, minutes[-1])
    axes.grid(color="0.92")


def _warm_up_words(warm_up_s: int) -> str:
    return " Hatched: the warm-up, which is not measured." if warm_up_s else ""


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    # The version of the program would give the same input other bytes.
    figure.savefig(data, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return data.getvalue()
