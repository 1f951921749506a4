"""Write the results of an evaluation: summary.csv, results.json, figures and report.html."""

from __future__ import annotations

import base64
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tsc.evaluation import figures
from tsc.evaluation.disagreements import Disagreements, compare_with_lookahead
from tsc.evaluation.figures import Differences, Picture
from tsc.evaluation.machine import processor_name
from tsc.evaluation.metrics import COUNTED, GROUP_TITLES, METRICS, Group, Metric, metrics_of
from tsc.evaluation.reported import ReportedController, ReportedScenario
from tsc.evaluation.statistics import (
    ALL_SCENARIOS,
    DEFINITIONS,
    GAP_TO,
    QUEUE,
    QUEUE_RATIO,
    records,
    summarise,
    write_summary,
)
from tsc.evaluation.traces import Trace, decisions_file, load_decisions, load_trace, trace_file
from tsc.evaluation.wording import (
    MISSING,
    Row,
    Summary,
    chosen_controller,
    direction,
    findings,
    findings_over_all,
    number,
    p_value,
    percent,
    percent_range,
    printable,
    seed_numbers,
    signed,
    text_tables,
)
from tsc.files import write_atomically
from tsc.sumo.version import installed_sumo_version

TEMPLATE = "report.html.jinja"
_NUM_INVALID_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table: the number, and below it lines in small type, such as its interval."""

    text: str
    small: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Table:
    title: str
    header: Sequence[Cell]
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The decisions of one language model on one scenario, on the seeds whose decisions were compared with lookahead.

    shared_prompt: the messages with which the prompts of all the costliest decisions begin.
    invalid: the first decisions whose answer could not be read.
    """

    controller: str
    seeds: str
    compared: Disagreements
    shared_prompt: Sequence[dict[str, str]]
    invalid: Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ScenarioSection:
    facts: ReportedScenario
    seeds: str
    findings: Sequence[str]
    tables: Sequence[Table]
    notes: Sequence[str]
    pictures: Sequence[Picture]
    models: Sequence[ModelSection]


def write_results(
    out: Path,
    *,
    episodes: Sequence[dict[str, Any]],
    scenarios: Sequence[ReportedScenario],
    controllers: Sequence[ReportedController],
    settings: Mapping[str, Any],
    command: str,
    reference: str,
) -> str:
    """Write OUT/summary.csv, results.json, figures/SCENARIO-NAME.png and report.html. Returns the console's tables.

    episodes: the records, in any order: the same records give the same bytes. A record with `not_applicable` counts as
    not run. Traces and decisions are read from OUT; the report leaves out figures and sections whose files are missing.
    """
    ran = _in_order(episodes, scenarios, controllers)
    frame = pd.DataFrame(ran, columns=None if ran else ["scenario", "controller", "seed", *METRICS])
    rows = summarise(frame, reference)
    write_summary(rows, out)
    summary = Summary(records(rows))
    sections = [_section(out, ran, scenario, controllers, summary, reference) for scenario in scenarios]
    for section in sections:
        for picture in section.pictures:
            (out / "figures").mkdir(exist_ok=True)
            write_atomically(out / "figures" / f"{section.facts.name}-{picture.name}.png", picture.png)
    page = (
        _environment()
        .get_template(TEMPLATE)
        .render(
            command=command,
            reference=reference,
            gap_to=GAP_TO,
            controllers=controllers,
            sections=sections,
            overall=findings_over_all(summary, controllers, reference),
            overall_tables=_overall_tables(summary, scenarios, controllers, reference),
            counted=COUNTED,
            definitions={GROUP_TITLES[group]: metrics_of(group) for group in GROUP_TITLES},
            statistics=DEFINITIONS,
            settings=_flat(settings),
            machine=_machine(),
        )
    )
    write_atomically(out / "report.html", page.encode())
    seeds = {scenario.name: _seeds(ran, scenario.name) for scenario in scenarios}
    return text_tables(summary, scenarios, reference, seeds)


def _in_order(
    episodes: Sequence[dict[str, Any]], scenarios: Sequence[ReportedScenario], controllers: Sequence[ReportedController]
) -> list[dict[str, Any]]:
    places = {each.name: place for place, each in enumerate([*scenarios])}
    turns = {each.name: place for place, each in enumerate([*controllers])}
    ran = [
        record
        for record in episodes
        if "not_applicable" not in record and record["scenario"] in places and record["controller"] in turns
    ]
    return sorted(ran, key=lambda record: (places[record["scenario"]], turns[record["controller"]], record["seed"]))


def _seeds(ran: Sequence[dict[str, Any]], scenario: str, controller: str | None = None) -> list[int]:
    return sorted(
        {
            int(record["seed"])
            for record in ran
            if record["scenario"] == scenario and controller in (None, record["controller"])
        }
    )


def _section(
    out: Path,
    ran: Sequence[dict[str, Any]],
    scenario: ReportedScenario,
    controllers: Sequence[ReportedController],
    summary: Summary,
    reference: str,
) -> ScenarioSection:
    seeds = _seeds(ran, scenario.name)
    return ScenarioSection(
        facts=scenario,
        seeds=seed_numbers(seeds),
        findings=findings(summary, scenario, controllers, reference),
        tables=_tables(summary, scenario.name, reference, len(seeds)),
        notes=_notes(summary, scenario),
        pictures=_pictures(out, ran, scenario, controllers, summary, reference),
        models=[
            section
            for each in controllers
            if each.is_language_model and (section := _model_section(out, ran, scenario.name, each.name))
        ],
    )


# Tables


def _tables(summary: Summary, scenario: str, reference: str, num_seeds: int) -> list[Table]:
    there = summary.controllers(scenario)
    if not there:
        return []
    tables = []
    for group in GROUP_TITLES:
        columns = [
            metric
            for metric in metrics_of(group)
            if any(summary.mean(scenario, name, metric.key) is not None for name in there)
        ]
        if group == "model":
            asked = {name for name in there if summary.mean(scenario, name, "invalid_answers") is not None}
        else:
            asked = set(there)
        if columns and asked:
            tables.append(
                _table(summary, scenario, reference, group, columns, [n for n in there if n in asked], num_seeds)
            )
    return tables


def _table(
    summary: Summary,
    scenario: str,
    reference: str,
    group: Group,
    columns: Sequence[Metric],
    names: Sequence[str],
    num_seeds: int,
) -> Table:
    header = [Cell(text=metric.name, small=_lines(metric.unit)) for metric in columns]
    differs = group == "main" and reference in names and len(names) > 1
    shares = group == "main" and any(
        (summary.row(scenario, name) or {}).get("gap_closed") is not None for name in names
    )
    # they stand next to the mean queue, which they are about
    added = [Cell(text=f"against {reference}", small=("veh",))] if differs else []
    added += [Cell(text="gap closed")] if shares else []
    rows = []
    for name in names:
        cells = [_mean_cell(summary.row(scenario, name, metric.key), metric, num_seeds) for metric in columns]
        queue = summary.row(scenario, name)
        assert queue is not None
        inserted = [_difference_cell(queue, reference)] if differs else []
        inserted += [_gap_cell(queue)] if shares else []
        rows.append((name, [*cells[:1], *inserted, *cells[1:]]))
    return Table(title=GROUP_TITLES[group], header=[*header[:1], *added, *header[1:]], rows=rows)


def _mean_cell(row: Row | None, metric: Metric, num_seeds: int) -> Cell:
    if row is None:
        return Cell(text=MISSING)
    seeds = f"{row['num_seeds']} of {num_seeds} seeds" if row["num_seeds"] < num_seeds else ""
    interval = _between(row["ci95_low"], row["ci95_high"], metric.decimals)
    return Cell(text=number(row["mean"], metric.decimals), small=_lines(interval, seeds))


def _difference_cell(row: Row, reference: str) -> Cell:
    if row["controller"] == reference:
        return Cell(text="reference")
    if row["difference"] is None:
        return Cell(text=MISSING)
    share = "" if row["difference_percent"] is None else f" ({signed(row['difference_percent'], 0)} %)"
    low, high = row["difference_ci95_low"], row["difference_ci95_high"]
    interval = "" if low is None else f"{signed(low, 2)} to {signed(high, 2)}"
    p = "" if row["wilcoxon_p"] is None else f", p {p_value(row['wilcoxon_p'])}"
    return Cell(text=signed(row["difference"], 2) + share, small=_lines(interval, direction(row) + p))


def _gap_cell(row: Row) -> Cell:
    if row["gap_closed"] is None:
        return Cell(text=MISSING)
    low, high = row["gap_closed_ci95_low"], row["gap_closed_ci95_high"]
    return Cell(text=percent(row["gap_closed"]), small=_lines("" if low == high else percent_range(low, high)))


def _lines(*lines: str) -> list[str]:
    return [line for line in lines if line]


def _between(low: float | None, high: float | None, decimals: int) -> str:
    return "" if low is None or low == high else f"{number(low, decimals)} to {number(high, decimals)}"


def _notes(summary: Summary, scenario: ReportedScenario) -> list[str]:
    """The limits of the comparison: greens outside the bounds, vehicles kept out, teleports, missing controllers."""
    notes = []
    for name in summary.controllers(scenario.name):
        outside, greens = (summary.mean(scenario.name, name, key) for key in ("greens_outside_bounds", "greens"))
        if outside and greens:
            notes.append(
                f"{name}: {number(outside, 1)} of {number(greens, 1)} greens per episode ({percent(outside / greens)}) "
                f"are outside {scenario.timing.min_green_s}–{scenario.timing.max_green_s} s, so it has more freedom "
                "than the controllers that keep to these bounds."
            )
        for key, what in (
            ("not_inserted_veh", "found no room to enter; of the means, only the delays include them"),
            ("teleports", "were moved by SUMO past the jam in which they stood"),
        ):
            count = summary.mean(scenario.name, name, key)
            if count:
                notes.append(f"{name}: {number(count, 1)} vehicles per episode {what}.")
    notes += [f"{name} cannot run here: {reason}" for name, reason in sorted(scenario.not_applicable.items())]
    return notes


def _overall_tables(
    summary: Summary, scenarios: Sequence[ReportedScenario], controllers: Sequence[ReportedController], reference: str
) -> list[Table]:
    """The tables over all scenarios: the mean queue by scenario and controller, and the means over the scenarios."""
    if len(scenarios) < 2:
        return []
    names = [each.name for each in controllers if any(summary.row(s.name, each.name) for s in scenarios)]
    rows = []
    for scenario in scenarios:
        cells = []
        for name in names:
            row = summary.row(scenario.name, name)
            share = row["difference_percent"] if row else None
            small = () if row is None or share is None else (f"{signed(share, 0)} %", direction(row))
            cells.append(Cell(text=number(row["mean"] if row else None, 2), small=small))
        rows.append((scenario.name, cells))
    tables = [Table(title="Mean queue [veh]", header=[Cell(text=name) for name in names], rows=rows)] if names else []
    there = summary.controllers(ALL_SCENARIOS)
    if there:
        rows = []
        for name in there:
            row, ratio = summary.row(ALL_SCENARIOS, name), summary.row(ALL_SCENARIOS, name, QUEUE_RATIO)
            assert row is not None
            cells = [_mean_cell(row, METRICS[QUEUE], row["num_seeds"]), _difference_cell(row, reference)]
            cells += [_gap_cell(row)]
            low, high = (ratio["ci95_low"], ratio["ci95_high"]) if ratio else (None, None)
            cells += [Cell(text=number(ratio["mean"] if ratio else None, 2), small=_lines(_between(low, high, 2)))]
            rows.append((name, cells))
        header = [
            Cell(text="mean queue", small=("veh",)),
            Cell(text=f"against {reference}", small=("veh",)),
            Cell(text="gap closed"),
            Cell(text="queue ratio", small=(f"to {reference}", "all scenarios weigh the same")),
        ]
        tables.append(Table(title="All scenarios together", header=header, rows=rows))
    return tables


# Figures


def _pictures(
    out: Path,
    ran: Sequence[dict[str, Any]],
    scenario: ReportedScenario,
    controllers: Sequence[ReportedController],
    summary: Summary,
    reference: str,
) -> list[Picture]:
    pictures = []
    differences = _differences(ran, scenario.name, summary, reference)
    if differences:
        pictures.append(figures.paired_differences(differences, reference))
    traces = _traces(out, ran, scenario)
    if not traces:
        return pictures
    pictures.append(figures.queue_over_time(traces, reference, scenario.warm_up_s))
    drawn = _drawn(summary, scenario.name, controllers, reference, traces)
    left_out = [name for name in traces if name not in drawn]
    pictures.append(
        figures.cumulative_trips({name: traces[name] for name in drawn}, reference, scenario.warm_up_s, left_out)
    )
    chosen = chosen_controller(summary, scenario.name, controllers, reference)
    pair = [name for name in dict.fromkeys([reference, chosen, *drawn]) if name in traces][:2]
    common = sorted(set.intersection(*(set(_seeds(ran, scenario.name, name)) for name in pair)))
    for seed in common:
        of_seed = {name: _trace(out, scenario, name, seed) for name in pair}
        both = {name: trace for name, trace in of_seed.items() if trace is not None}
        if len(both) == len(pair):
            pictures.append(figures.signal_timeline(both, seed, scenario.warm_up_s, pair[0]))
            break
    return pictures


def _differences(ran: Sequence[dict[str, Any]], scenario: str, summary: Summary, reference: str) -> list[Differences]:
    queues = {(r["controller"], r["seed"]): r[QUEUE] for r in ran if r["scenario"] == scenario}
    found = []
    for name in summary.controllers(scenario):
        row = summary.row(scenario, name)
        if row is None or row["difference"] is None:
            continue
        seeds = [seed for seed in _seeds(ran, scenario, name) if (reference, seed) in queues]
        low, high = row["difference_ci95_low"], row["difference_ci95_high"]
        found.append(
            Differences(
                controller=name,
                by_seed_veh=[queues[name, seed] - queues[reference, seed] for seed in seeds],
                mean_veh=row["difference"],
                interval_veh=None if low is None else (low, high),
                percent=row["difference_percent"],
            )
        )
    return found


def _trace(out: Path, scenario: ReportedScenario, controller: str, seed: int) -> Trace | None:
    """The trace of an episode. None if it is missing, or has another begin or end, from an earlier evaluation."""
    trace = load_trace(trace_file(out, scenario.name, controller, seed))
    if trace is None or (trace.begin_s, len(trace.stage)) != (scenario.begin_s, scenario.end_s - scenario.begin_s):
        return None
    return trace


def _traces(out: Path, ran: Sequence[dict[str, Any]], scenario: ReportedScenario) -> dict[str, list[Trace]]:
    """The traces by controller; controllers without traces are left out."""
    found: dict[str, list[Trace]] = {}
    for record in ran:
        if record["scenario"] == scenario.name:
            trace = _trace(out, scenario, record["controller"], record["seed"])
            if trace is not None:
                found.setdefault(record["controller"], []).append(trace)
    return found


def _drawn(
    summary: Summary,
    scenario: str,
    controllers: Sequence[ReportedController],
    reference: str,
    traces: Mapping[str, Any],
) -> list[str]:
    """The controllers to draw, at most MAX_LINES: first those that the report is about, then by mean queue."""
    models = [each.name for each in controllers if each.is_language_model][::-1]
    ranked = sorted(traces, key=lambda name: summary.mean(scenario, name, QUEUE) or 0.0)
    chosen = chosen_controller(summary, scenario, controllers, reference)
    wanted = dict.fromkeys([chosen, reference, GAP_TO, "static", *models, *ranked])
    return [name for name in wanted if name is not None and name in traces][: figures.MAX_LINES]


# Language models


def _model_section(out: Path, ran: Sequence[dict[str, Any]], scenario: str, controller: str) -> ModelSection | None:
    decisions = []
    seeds = []
    for seed in _seeds(ran, scenario, controller):
        of_seed = load_decisions(decisions_file(out, scenario, controller, seed))
        decisions += [{**record, "seed": seed} for record in of_seed]
        seeds += [seed] if of_seed else []
    compared = compare_with_lookahead(decisions)
    if compared is None:
        return None
    return ModelSection(
        controller=controller,
        seeds=seed_numbers(seeds),
        compared=compared,
        shared_prompt=_shared_beginning([record["prompt"] for record in compared.costliest]),
        invalid=[record for record in decisions if record["fallback"] == "invalid"][:_NUM_INVALID_SHOWN],
    )


def _shared_beginning(prompts: Sequence[list[dict[str, str]]]) -> list[dict[str, str]]:
    """The messages with which several prompts begin; none for a single prompt."""
    if len(prompts) < 2:
        return []
    shared = []
    for messages in zip(*prompts, strict=False):
        if any(message != messages[0] for message in messages):
            break
        shared.append(messages[0])
    return shared


# The page


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names, notes and above all the model's answers are text that we do not control
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "printable": printable,
        "number": number,
        "unbroken": lambda sentences: " ".join(sentences).replace(" %", "\u00a0%"),
        "data_uri": lambda png: "data:image/png;base64," + base64.b64encode(png).decode(),
    }
    return environment


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The nested settings with dotted keys."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat


def _machine() -> dict[str, str]:
    """Return what the results were computed with. Times measured here would give the same episodes another report."""
    return {
        "SUMO": installed_sumo_version(),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{processor_name()}, {os.cpu_count()} cores",
    }
