"""The results in words and numbers, for the console and the report."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tsc.evaluation.reference import BEST_CLASSICAL, Reference
from tsc.evaluation.reported import ReportedController, ReportedScenario
from tsc.evaluation.statistics import ALL_SCENARIOS, GAP_TO, MIN_SEEDS_TO_CLAIM, QUEUE, QUEUE_RATIO

MISSING = "–"

Row = Mapping[str, Any]


class Summary:
    """Looks up the rows of tsc.evaluation.statistics.summarise."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = {(row["scenario"], row["controller"], row["metric"]): row for row in rows}

    def row(self, scenario: str, controller: str, metric: str = QUEUE) -> Row | None:
        return self._rows.get((scenario, controller, metric))

    def mean(self, scenario: str, controller: str, metric: str) -> float | None:
        row = self.row(scenario, controller, metric)
        return None if row is None else row["mean"]

    def controllers(self, scenario: str) -> list[str]:
        """The controllers that have a mean queue, in the order of the episodes."""
        return [name for place, name, metric in self._rows if place == scenario and metric == QUEUE]


def number(value: float | None, decimals: int) -> str:
    return MISSING if value is None else f"{value:.{decimals}f}".replace("-", "−")


def signed(value: float | None, decimals: int) -> str:
    """The number with a plus or a true minus sign, without a sign if it rounds to 0."""
    if value is None:
        return MISSING
    return f"{value:+.{decimals}f}".replace("-", "−") if round(value, decimals) else f"{0:.{decimals}f}"


def p_value(value: float | None) -> str:
    return MISSING if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def percent(share: float | None) -> str:
    return MISSING if share is None else f"{number(100 * share, 0)} %".replace("−0 %", "0 %")


def span(low: float, high: float, decimals: int, form: Callable[[float, int], str] = number) -> str:
    return f"{form(low, decimals)} to {form(high, decimals)}"


def percent_range(low: float, high: float) -> str:
    return f"{percent(low).removesuffix(' %')} to {percent(high)}"


def seed_numbers(seeds: Sequence[int]) -> str:
    """1001–1010, or one by one if numbers are missing in between."""
    ordered = sorted(seeds)
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]}–{ordered[-1]}"
    return ", ".join(map(str, ordered))


def printable(text: str) -> str:
    """The text with control and formatting characters as \\u codes: in a model's answer they could garble the page or
    hide text."""
    return "".join(
        character if character == "\n" or unicodedata.category(character)[0] != "C" else f"\\u{ord(character):04x}"
        for character in text
    )


def percent_difference(row: Row) -> str:
    """The difference in percent, in brackets after a blank; empty if it is not known."""
    return "" if row["difference_percent"] is None else f" ({signed(row['difference_percent'], 0)} %)"


def direction(row: Row) -> str:
    """shorter, longer, or why neither can be claimed; empty if the row has no difference."""
    if row["difference"] is None:
        return ""
    if row["num_seeds"] < MIN_SEEDS_TO_CLAIM or row["difference_ci95_low"] is None:
        return "too few seeds"
    if row["difference_ci95_high"] < 0:
        return "shorter"
    return "longer" if row["difference_ci95_low"] > 0 else "no difference shown"


def in_words(reference: str) -> str:
    """The reference in a sentence about a scenario or about ALL_SCENARIOS."""
    return "the best classical controller of each scenario" if reference == BEST_CLASSICAL else reference


def choice_lines(reference: Reference) -> list[str]:
    """Why a scenario has this reference: its delay, and that of the second. Empty if it was not chosen."""
    if not reference.delays_s:
        return []
    seeds = seed_numbers(reference.seeds)
    (_, best_s), *others = reference.delays_s.items()
    lines = [f"delay {best_s:.1f} s on validation seed{'s' if len(reference.seeds) > 1 else ''} {seeds}"]
    for second, delay_s in others[:1]:
        share = f" ({signed(100 * (delay_s / best_s - 1), 0)} %)" if best_s else ""
        lines.append(f"second: {second}, {delay_s:.1f} s{share}")
    return lines


def subjects(
    summary: Summary, scenario: str, controllers: Sequence[ReportedController], reference: str
) -> tuple[list[str], bool]:
    """The controllers that a report is about, and whether they are the language models.

    Without a language model it is the controller with the shortest queue, leaving out the reference, lookahead and
    random, which are not for use on a street. None if no episode was run.
    """
    there = summary.controllers(scenario)
    models = [each.name for each in controllers if each.is_language_model and each.name in there]
    others = [name for name in there if name not in (reference, GAP_TO, "random")]
    ranked = sorted(others, key=lambda name: summary.mean(scenario, name, QUEUE) or 0.0)
    return models or [*ranked, *(name for name in there if name != reference), *there][:1], bool(models)


def findings(summary: Summary, scenario: str, controllers: Sequence[ReportedController], reference: str) -> list[str]:
    """The result of a scenario, or of ALL_SCENARIOS, in plain sentences, which never claim more than the intervals
    show."""
    there = summary.controllers(scenario)
    if not there:
        return ["No episode was run."]
    about, are_models = subjects(summary, scenario, controllers, reference)
    sentences = []
    for name in about:
        row, ratio = summary.row(scenario, name), summary.row(scenario, name, QUEUE_RATIO)
        assert row is not None
        delays = (summary.row(scenario, each, "delay_s") for each in (name, reference))
        sentences.append(_against_reference(row, summary.row(scenario, reference), reference) + _of_delay(*delays))
        on_scale = [summary.row(scenario, end) for end in (reference, GAP_TO)]
        enough = all(each is not None and each["num_seeds"] >= MIN_SEEDS_TO_CLAIM for each in (row, *on_scale))
        if scenario == ALL_SCENARIOS:
            if ratio is not None and ratio["ci95_low"] is not None and ratio["num_seeds"] >= MIN_SEEDS_TO_CLAIM:
                sentences.append(
                    f"If every scenario weighs the same, its queue is {ratio['mean']:.2f} times that of "
                    f"{in_words(reference)} ({_interval_words(ratio)})."
                )
        elif row["gap_closed"] is not None and enough and name not in (reference, GAP_TO):
            sentences.append(_of_the_gap(row))
    queues = {name: summary.mean(scenario, name, QUEUE) or 0.0 for name in there}
    if scenario != ALL_SCENARIOS and len(there) > 2 and (not are_models or len(sentences) < 2):
        best, worst = min(queues, key=queues.__getitem__), max(queues, key=queues.__getitem__)
        sentences.append(
            f"Of the {len(there)} controllers, {best} had the shortest mean queue ({queues[best]:.2f} vehicles), and "
            f"{worst} had the longest ({queues[worst]:.2f} vehicles)."
        )
    return sentences


def for_a_city(summary: Summary, scenario: str, controllers: Sequence[ReportedController], reference: str) -> list[str]:
    """What else a city asks: the controls that it may have today, stops, CO2, the worst approach, and whether the
    answers come in time. Plain means, without a claim."""
    about, are_models = subjects(summary, scenario, controllers, reference)
    sentences = []
    for name in about:
        asked = {
            "the net's own plan": "static",
            "SUMO's actuated control": "actuated",
        }
        today = [
            f"{control} {delay_s:.1f} s"
            for control, other in asked.items()
            if other not in (name, reference) and (delay_s := summary.mean(scenario, other, "delay_s")) is not None
        ]
        own_s = summary.mean(scenario, name, "delay_s")
        if today and own_s is not None:
            sentences.append(f"Delay under {name}: {own_s:.1f} s; under {', '.join(today)}.")
        parts = []
        for key, text, decimals in _BESIDES:
            mean = summary.mean(scenario, name, key)
            if mean is not None:
                of_reference = summary.mean(scenario, reference, key) if name != reference else None
                beside = "" if of_reference is None else f" ({reference}: {number(of_reference, decimals)})"
                parts.append(f"{text.format(number(mean, decimals))}{beside}")
        if parts:
            sentences.append(f"Under {name}, {'; '.join(parts)}.")
        latency_s = summary.mean(scenario, name, "latency_p95_s") if are_models else None
        if latency_s is not None:
            counts = [
                summary.mean(scenario, name, key) or 0.0 for key in ("decisions", "invalid_answers", "late_answers")
            ]
            sentences.append(
                f"{name} answers 95 % of its questions within {number(latency_s, 2)} s. Of {counts[0]:.0f} answers an "
                f"episode, {counts[1]:.1f} could not be read and {counts[2]:.1f} came too late."
            )
    return sentences


# metric, its words and its decimals
_BESIDES = (
    ("stops", "a vehicle stops {} times", 2),
    ("co2_g_per_km", "it emits {} g of CO2 a km", 0),
    ("worst_approach_wait_s", "on the worst approach it stands for {} s", 1),
)


def _against_reference(row: Row, of_reference: Row | None, reference: str) -> str:
    name = row["controller"]
    mean = f"{name} had a mean queue of {row['mean']:.2f} vehicles"
    if of_reference is None or row["difference"] is None:
        interval = f" ({_interval_words(row)})" if row["ci95_low"] is not None else ""
        why = "" if name == reference else f" It cannot be compared with {in_words(reference)}, which did not run."
        return f"{mean}{interval}.{why}"
    if row["num_seeds"] < MIN_SEEDS_TO_CLAIM:
        seeds = "one seed" if row["num_seeds"] == 1 else f"{row['num_seeds']} seeds"
        return (
            f"{mean}; {in_words(reference)} had {of_reference['mean']:.2f}. With {seeds}, no difference can be "
            f"claimed: at least {MIN_SEEDS_TO_CLAIM} seeds are needed."
        )
    interval = (
        f"95 % interval {span(row['difference_ci95_low'], row['difference_ci95_high'], 2, signed)}, "
        f"p {p_value(row['wilcoxon_p'])}, {row['num_seeds']} seeds"
    )
    said = direction(row)
    if said == "no difference shown":
        return (
            f"No difference is shown between {name} and {in_words(reference)}: their mean queues are {row['mean']:.2f} "
            f"and {of_reference['mean']:.2f} vehicles, a difference of {signed(row['difference'], 2)} ({interval})."
        )
    share = f"{abs(row['difference_percent']):.0f} % " if row["difference_percent"] is not None else ""
    return (
        f"{mean}, {share}{said} than {in_words(reference)} with {of_reference['mean']:.2f}: a difference of "
        f"{signed(row['difference'], 2)} ({interval})."
    )


def _of_delay(row: Row | None, of_reference: Row | None) -> str:
    """The delay, after a blank: a controller may have a shorter queue than the reference, but a longer delay."""
    said = direction(row) if row else ""
    if row is None or of_reference is None or said in ("", "too few seeds"):
        return ""
    interval = f"95 % interval {span(row['difference_ci95_low'], row['difference_ci95_high'], 1, signed)}"
    compared = "with no difference shown to" if said == "no difference shown" else f"{said} than"
    return f" Its delay is {row['mean']:.1f} s per vehicle, {compared} {of_reference['mean']:.1f} s ({interval})."


def _of_the_gap(row: Row) -> str:
    low, high = row["gap_closed_ci95_low"], row["gap_closed_ci95_high"]
    interval = f"95 % interval {percent_range(low, high)}"
    gap = f"the gap between {row['reference']} and {GAP_TO}, which knows the future demand"
    if low <= 0:
        shown = "It closes none" if high <= 0 else "It is not shown to close any"
        return f"{shown} of {gap} ({percent(row['gap_closed'])}, {interval})."
    return f"It closes {percent(row['gap_closed'])} ({interval}) of {gap}."


def _interval_words(row: Row) -> str:
    return f"95 % interval {span(row['ci95_low'], row['ci95_high'], 2)}"


def text_tables(
    summary: Summary, scenarios: Sequence[ReportedScenario], reference: str, seeds: Mapping[str, Sequence[int]]
) -> str:
    """The tables for the console: one per scenario, at most 120 columns wide for names of up to 16 characters.

    reference: that of all scenarios together.
    """
    lines = []
    for scenario in scenarios:
        of_scenario = seeds[scenario.name]
        if of_scenario:
            count = "1 seed" if len(of_scenario) == 1 else f"{len(of_scenario)} seeds"
            warm_up = f" after {scenario.warm_up_s} s of warm-up" if scenario.warm_up_s else ""
            measured = f"{scenario.measured_s} s measured{warm_up}"
            lines.append(f"{scenario.name}: {count} ({seed_numbers(of_scenario)}), {measured}")
            if choice := choice_lines(scenario.reference):
                lines.append(f"  reference: {'; '.join([f'{scenario.reference.name}, {choice[0]}', *choice[1:]])}")
            lines += _text_table(summary, scenario.name, scenario.reference.name)
        else:
            lines.append(f"{scenario.name}: no episode was run")
        lines += [f"  {name} cannot run here: {reason}" for name, reason in sorted(scenario.not_applicable.items())]
        lines.append("")
    if summary.controllers(ALL_SCENARIOS):
        lines += [f"{ALL_SCENARIOS} together: mean of their mean queues"]
        if reference == BEST_CLASSICAL:
            lines += [f"  {reference}: {in_words(reference)} (the reference of its table)"]
        lines += [*_text_table(summary, ALL_SCENARIOS, reference), ""]
    lines += [
        "Means over the seeds [95 % bootstrap interval]. Queues in halting vehicles, times in s per vehicle.",
        "vs: mean queue minus that of the reference on the same seeds; p: Wilcoxon's signed-rank test;",
        f"gap: the share of the gap between the reference and {GAP_TO} that the controller closes.",
    ]
    return "\n".join(lines)


def _text_table(summary: Summary, scenario: str, reference: str) -> list[str]:
    table = [["", "mean queue", "waiting", "trip", "delay", "invalid", f"vs {reference}", "p", "gap"]]
    for name in summary.controllers(scenario):
        row = summary.row(scenario, name)
        assert row is not None
        invalid = summary.mean(scenario, name, "invalid_answers")
        table.append(
            [
                name,
                _with_interval(row["mean"], row["ci95_low"], row["ci95_high"], number, _decimals(row)),
                *(
                    number(summary.mean(scenario, name, key), 1)
                    for key in ("waiting_time_s", "trip_duration_s", "delay_s")
                ),
                "" if invalid is None else number(invalid, 1),
                "reference" if name == reference else _difference_text(row),
                "" if row["difference"] is None else p_value(row["wilcoxon_p"]),
                "" if row["gap_closed"] is None else percent(row["gap_closed"]),
            ]
        )
    # without empty columns: the table of all scenarios together has no waiting times, for example
    columns = [column for column in zip(*table, strict=True) if any(cell not in ("", MISSING) for cell in column[1:])]
    return aligned(list(zip(*columns, strict=True)))


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table for the console. The first column is aligned to the left."""
    columns = [
        [f"{cell:{'>' if place else '<'}{max(map(len, column))}}" for cell in column]
        for place, column in enumerate(zip(*table, strict=True))
    ]
    return ["  " + "  ".join(line).rstrip() for line in zip(*columns, strict=True)]


def _difference_text(row: Row) -> str:
    if row["difference"] is None:
        return ""
    share = "" if row["difference_percent"] is None else f" {signed(row['difference_percent'], 0)} %"
    low, high = row["difference_ci95_low"], row["difference_ci95_high"]
    return _with_interval(row["difference"], low, high, signed, _decimals(row)) + share


def _decimals(row: Row) -> int:
    return 2 if row["mean"] < 100 else 1


def _with_interval(
    mean: float, low: float | None, high: float | None, form: Callable[[float, int], str], decimals: int
) -> str:
    interval = "" if low is None or high is None else f" [{form(low, decimals)}, {form(high, decimals)}]"
    return form(mean, decimals) + interval
