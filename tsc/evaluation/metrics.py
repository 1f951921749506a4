"""The metrics of an episode. Tables, report and docs/evaluation.md take their names and definitions from here."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Literal

Group = Literal["main", "traffic", "signals", "model"]

GROUP_TITLES: dict[Group, str] = {
    "main": "The main numbers",
    "traffic": "More on the traffic",
    "signals": "What the signals did",
    "model": "Answers of the language models",
}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number in an episode's record.

    better: the direction that is good for road users; "neither" for a number that only describes.
    """

    key: str
    name: str
    unit: str = ""
    definition: str
    better: Literal["lower", "higher", "neither"] = "lower"
    decimals: int = 0

    @property
    def label(self) -> str:
        return f"{self.name} [{self.unit}]" if self.unit else self.name


_MAIN = (
    Metric(
        key="mean_queue_veh",
        name="mean queue",
        unit="veh",
        definition="Halting vehicles (speed below 0.1 m/s, SUMO's getLastStepHaltingNumber) on all lanes that lead to "
        "a controlled signal, summed over these lanes, mean over the measured seconds. Vehicles that wait outside the "
        "net for room to enter are not included: see the departure delay.",
        decimals=2,
    ),
    Metric(
        key="waiting_time_s",
        name="waiting time",
        unit="s",
        definition="Time that a vehicle stood (waitingTime of SUMO's tripinfo: speed at most 0.1 m/s, without "
        "scheduled stops), mean over the counted vehicles that entered the net. Trips that are unfinished at the end "
        "count with their time so far.",
        decimals=1,
    ),
    Metric(
        key="trip_duration_s",
        name="trip duration",
        unit="s",
        definition="Time from entering the net to arriving (tripinfo duration), mean over the counted vehicles that "
        "entered. Trips that are unfinished at the end count with their time so far.",
        decimals=1,
    ),
    Metric(
        key="delay_s",
        name="delay",
        unit="s",
        definition="Time lost before and during the trip: (sum of tripinfo timeLoss + sum of departDelay) / number of "
        "all counted vehicles. Vehicles that never entered the net count with their wait until the end, so a "
        "controller gains nothing by keeping vehicles out.",
        decimals=1,
    ),
    Metric(
        key="stops",
        name="stops",
        unit="per veh",
        definition="How often a vehicle stopped (tripinfo waitingCount), mean over the counted vehicles that entered.",
        decimals=2,
    ),
    Metric(
        key="worst_approach_wait_s",
        name="worst approach",
        unit="s per veh",
        definition="Halting vehicle-seconds on an approach (all lanes of one edge that lead to a controlled signal) in "
        "the measured period, divided by the vehicles that came onto it (entered + departed of SUMO's edgeData). The "
        "metric is the largest value of all approaches. It shows whether one side pays for the others.",
        decimals=1,
    ),
)
_TRAFFIC = (
    Metric(
        key="p95_queue_veh",
        name="95th percentile of the queue",
        unit="veh",
        definition="The queue (as in mean queue) that 95 % of the measured seconds do not exceed.",
        decimals=1,
    ),
    Metric(
        key="time_loss_s",
        name="time loss",
        unit="s",
        definition="Time lost by driving slower than the vehicle could and may (tripinfo timeLoss), mean over the "
        "counted vehicles that entered. Trips that are unfinished at the end count with their time so far.",
        decimals=1,
    ),
    Metric(
        key="depart_delay_s",
        name="departure delay",
        unit="s",
        definition="Wait outside the net for room to enter (tripinfo departDelay), mean over all counted vehicles. "
        "Vehicles that are still outside at the end count with their wait so far.",
        decimals=1,
    ),
    Metric(
        key="throughput_veh_per_h",
        name="throughput",
        unit="veh/h",
        definition="Counted vehicles that arrived at their destination, per hour of the measured period.",
        better="higher",
    ),
    Metric(
        key="co2_g_per_km",
        name="CO2",
        unit="g/km",
        definition="CO2 of the counted vehicles by SUMO's emission model (CO2_abs, with the emission class of each "
        "vehicle's type) divided by the distance that they drove (routeLength).",
    ),
    Metric(
        key="finished_veh",
        name="finished trips",
        unit="veh",
        definition="Counted vehicles that entered and arrived.",
        better="higher",
    ),
    Metric(
        key="unfinished_veh",
        name="unfinished trips",
        unit="veh",
        definition="Counted vehicles that entered and were still on their way at the end.",
    ),
    Metric(
        key="not_inserted_veh",
        name="not inserted",
        unit="veh",
        definition="Counted vehicles that found no room to enter before the end. Of the means, only departure delay "
        "and delay include them.",
    ),
    Metric(
        key="teleports",
        name="teleports",
        definition="Vehicles that SUMO took off the road and put back further on in the measured period, mostly "
        "because they had stood for longer than time-to-teleport (never if teleporting is off). Every teleport removes "
        "a part of a queue that a real street would still have.",
    ),
)
_SIGNALS = (
    Metric(
        key="switches_per_h",
        name="switches",
        unit="per h",
        definition="Greens that ended in the measured period, per controlled junction and hour.",
        better="neither",
    ),
    Metric(
        key="mean_green_s",
        name="mean green",
        unit="s",
        definition="Mean length of the greens (stages) that began and ended in the measured period.",
        better="neither",
        decimals=1,
    ),
    Metric(
        key="greens",
        name="greens",
        definition="Greens (stages) that began and ended in the measured period, all controlled junctions together.",
        better="neither",
    ),
    Metric(
        key="greens_outside_bounds",
        name="greens outside the bounds",
        definition="Those of the greens above that were shorter or longer than the bounds of their stage allow.",
    ),
    Metric(
        key="decisions",
        name="decisions",
        definition="How often the controller was asked whether to extend a green: at its minimum and every "
        "green_extension_s after it, before its maximum. The warm-up is counted, too. 0 if SUMO itself switches.",
        better="neither",
    ),
)
_MODEL = (
    Metric(
        key="invalid_answers",
        name="invalid answers",
        definition='Answers of a language model without a readable {"extend": "yes"} or {"extend": "no"}. The '
        "fallback, the net's own plan, decides instead.",
        decimals=1,
    ),
    Metric(
        key="late_answers",
        name="late answers",
        definition="Decisions for which no answer came within the time limit. The fallback, the net's own plan, "
        "decides instead.",
        decimals=1,
    ),
    Metric(
        key="latency_p50_s",
        name="latency, median",
        unit="s",
        definition="Real time from the question to the model's answer, while the questions of all junctions and "
        "running episodes are asked together: half of the decisions took at most this long. Late answers count with "
        "the time that was waited.",
        decimals=2,
    ),
    Metric(
        key="latency_p95_s",
        name="latency, 95 %",
        unit="s",
        definition="95 % of the decisions took at most this long.",
        decimals=2,
    ),
    Metric(
        key="latency_p99_s",
        name="latency, 99 %",
        unit="s",
        definition="99 % of the decisions took at most this long.",
        decimals=2,
    ),
    Metric(
        key="prompt_tokens",
        name="prompt tokens",
        unit="per decision",
        definition="Tokens of the prompt, mean over the decisions.",
        better="neither",
    ),
    Metric(
        key="completion_tokens",
        name="answer tokens",
        unit="per decision",
        definition="Tokens of the answer, mean over the decisions.",
        better="neither",
    ),
)

# the metrics of each table of the report
METRICS_OF: dict[Group, tuple[Metric, ...]] = {
    "main": _MAIN,
    "traffic": _TRAFFIC,
    "signals": _SIGNALS,
    "model": _MODEL,
}

METRICS: dict[str, Metric] = {metric.key: metric for metrics in METRICS_OF.values() for metric in metrics}

COUNTED = (
    "The measured period runs from begin + warm-up to the end. The counted vehicles are those whose departure time "
    "lies in the measured period, including those that are still on their way at the end (unfinished) and those that "
    "found no room to enter (not inserted). Vehicles that departed in the warm-up are on the road but are not counted. "
    "A number that cannot be computed is left out; it is never shown as 0."
)


def definitions_markdown() -> str:
    """The text for docs/evaluation.md: one list per group, with label, definition and which direction is better."""
    parts = [list_item(COUNTED, bullet="")]
    for group, title in GROUP_TITLES.items():
        parts.append(f"**{title}**")
        parts.append("\n".join(list_item(_definition(metric)) for metric in METRICS_OF[group]))
    return "\n\n".join(parts)


def _definition(metric: Metric) -> str:
    better = "" if metric.better == "neither" else f" {metric.better.capitalize()} is better."
    return f"`{metric.key}`, {metric.label}: {metric.definition}{better}"


def list_item(text: str, bullet: str = "- ") -> str:
    """A list item of Markdown, in lines of at most 120 characters."""
    indent = " " * len(bullet)
    return textwrap.fill(text, 120, initial_indent=bullet, subsequent_indent=indent, break_on_hyphens=False)
