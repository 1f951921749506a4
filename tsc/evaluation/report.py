"""Write the results of an evaluation: summary.csv, results.json, figures and report.html."""

from __future__ import annotations

import base64
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from tsc.episodes.trace import Trace, greens, load_trace
from tsc.evaluation import figures
from tsc.evaluation.approaches import ALL, LEVELS, Approach, by_approach
from tsc.evaluation.disagreements import compare_with_lookahead
from tsc.evaluation.figures import Picture
from tsc.evaluation.machine import processor_name
from tsc.evaluation.metrics import COUNTED, GROUP_TITLES, METRICS, METRICS_OF, Metric
from tsc.evaluation.protocol import Protocol
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
from tsc.evaluation.traces import decisions_file, load_decisions, trace_file
from tsc.evaluation.watch_command import WatchCommand
from tsc.evaluation.wording import (
    MISSING,
    Row,
    Summary,
    choice_lines,
    direction,
    findings,
    for_a_city,
    number,
    p_value,
    percent,
    percent_difference,
    percent_range,
    printable,
    seed_numbers,
    signed,
    span,
    subjects,
    text_tables,
)
from tsc.files import write_atomically
from tsc.junction.signal_control import skipped_lines
from tsc.sumo.version import installed_sumo_version

_NUM_INVALID_SHOWN = 5
_NUM_APPROACHES_SHOWN = 40
_REFERENCE = "reference"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table: the number, and below it lines in small type, such as its interval."""

    text: str
    small: Sequence[str] = ()


# its header, and its cell for each controller
Column = tuple[Cell, Callable[[str], Cell]]


@dataclass(frozen=True, kw_only=True)
class Table:
    title: str
    header: Sequence[Cell]
    rows: Sequence[tuple[str, Sequence[Cell]]]

    @classmethod
    def of_controllers(cls, title: str, names: Sequence[str], columns: Sequence[Column]) -> Table:
        return cls(
            title=title,
            header=[header for header, _ in columns],
            rows=[(name, [cell(name) for _, cell in columns]) for name in names],
        )


def write_results(
    out: Path,
    *,
    episodes: Sequence[dict[str, Any]],
    scenarios: Sequence[ReportedScenario],
    controllers: Sequence[ReportedController],
    settings: Mapping[str, Any],
    command: str,
    reference: str,
    protocol: Protocol | None = None,
    watch: WatchCommand | None = None,
) -> str:
    """Write OUT/summary.csv, results.json, figures/SCENARIO-NAME.png and report.html. Returns the console's tables.

    episodes: the records, in any order: the same records give the same bytes. A record with `not_applicable` counts as
    not run. Traces and decisions are read from OUT; the report leaves out figures and sections whose files are missing.
    reference: that of all scenarios together (tsc.evaluation.statistics.summarise).
    protocol: the benchmark whose published results stand beside ours. watch: how to show a decision.
    """
    ran = _in_order(episodes, scenarios, controllers)
    frame = pd.DataFrame(ran, columns=None if ran else ["scenario", "controller", "seed", *METRICS])
    references = {scenario.name: scenario.reference.name for scenario in scenarios} | {ALL_SCENARIOS: reference}
    rows = summarise(frame, references)
    write_summary(rows, out)
    results = _Results(
        out=out,
        ran=ran,
        summary=Summary(records(rows)),
        controllers=controllers,
        references=references,
        watch=watch,
    )
    sections = [results.section(scenario) for scenario in scenarios]
    for section in sections:
        for picture in section["pictures"]:
            (out / "figures").mkdir(exist_ok=True)
            write_atomically(out / "figures" / f"{section['facts'].name}-{picture.name}.png", picture.png)
    trainings = {each.name: each.training for each in controllers if each.training is not None}
    curves = {name: training for name, training in trainings.items() if training.curve}
    names = [scenario.name for scenario in scenarios]
    several = bool(results.summary.controllers(ALL_SCENARIOS))
    page = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            command=command,
            best_was_chosen=any(scenario.reference.delays_s for scenario in scenarios),
            gap_to=GAP_TO,
            controllers=controllers,
            sections=sections,
            overall=findings(results.summary, ALL_SCENARIOS, controllers, reference) if several else [],
            overall_tables=results.overall_tables(scenarios),
            protocol=protocol,
            protocol_table=None if protocol is None else results.protocol_table(protocol, names),
            counted=COUNTED,
            definitions={title: METRICS_OF[group] for group, title in GROUP_TITLES.items()},
            statistics=DEFINITIONS,
            levels=LEVELS,
            trainings=trainings,
            training_facts=list(dict.fromkeys(fact for each in trainings.values() for fact in each.facts)),
            training_curves=figures.training_curves(curves) if curves else None,
            settings=_flat(settings),
            machine=_machine(),
        )
    )
    write_atomically(out / "report.html", page.encode())
    seeds = {scenario.name: results.seeds(scenario.name) for scenario in scenarios}
    text = text_tables(results.summary, scenarios, reference, seeds)
    return text if protocol is None else f"{text}\n\n{protocol.text_table(results.summary, names)}"


def _in_order(
    episodes: Sequence[dict[str, Any]], scenarios: Sequence[ReportedScenario], controllers: Sequence[ReportedController]
) -> list[dict[str, Any]]:
    places, turns = ([each.name for each in them] for them in (scenarios, controllers))
    ran = [
        record
        for record in episodes
        if "not_applicable" not in record and record["scenario"] in places and record["controller"] in turns
    ]
    return sorted(
        ran, key=lambda record: (places.index(record["scenario"]), turns.index(record["controller"]), record["seed"])
    )


@dataclass(frozen=True, kw_only=True)
class _Results:
    """What the sections of the report are made from.

    ran: the records of the episodes, in the report's order. references: by scenario, and for ALL_SCENARIOS.
    """

    out: Path
    ran: Sequence[dict[str, Any]]
    summary: Summary
    controllers: Sequence[ReportedController]
    references: Mapping[str, str]
    watch: WatchCommand | None

    def seeds(self, scenario: str, controller: str | None = None) -> list[int]:
        return sorted(
            {
                int(record["seed"])
                for record in self.ran
                if record["scenario"] == scenario and controller in (None, record["controller"])
            }
        )

    def section(self, scenario: ReportedScenario) -> dict[str, Any]:
        """What the template shows of a scenario."""
        models = [self._model_section(scenario, each.name) for each in self.controllers if each.is_language_model]
        return {
            "facts": scenario,
            "seeds": seed_numbers(self.seeds(scenario.name)),
            "choice": choice_lines(scenario.reference),
            "findings": findings(self.summary, scenario.name, self.controllers, scenario.reference.name),
            "for_a_city": for_a_city(self.summary, scenario.name, self.controllers, scenario.reference.name),
            "tables": self._tables(scenario.name),
            "models_compared": self._table_of_models(scenario.name),
            "approaches": self._approach_table(scenario),
            "cycles": self._cycle_table(scenario),
            "notes": _notes(self.summary, scenario),
            "pictures": self._pictures(scenario),
            "models": [model for model in models if model is not None],
        }

    # Tables

    def _tables(self, scenario: str) -> list[Table]:
        summary, num_seeds = self.summary, len(self.seeds(scenario))
        there = summary.controllers(scenario)
        tables = []
        for group, title in GROUP_TITLES.items():
            columns = [
                self._mean_column(scenario, metric, num_seeds)
                for metric in METRICS_OF[group]
                if any(summary.mean(scenario, name, metric.key) is not None for name in there)
            ]
            names = there
            if group == "model":
                names = [name for name in there if summary.mean(scenario, name, "invalid_answers") is not None]
            # these stand next to the mean queue, which they are about
            if group == "main" and any(
                (summary.row(scenario, name) or {}).get("gap_closed") is not None for name in there
            ):
                columns.insert(1, self._gap_column(scenario))
            if group == "main" and self.references[scenario] in there and len(there) > 1:
                columns.insert(1, self._difference_column(scenario))
            if columns and names:
                tables.append(Table.of_controllers(title, names, columns))
        return tables

    def _table_of_models(self, scenario: str) -> Table | None:
        """Each language model against the one named before it, on the same seeds."""
        there = self.summary.controllers(scenario)
        models = [each.name for each in self.controllers if each.is_language_model and each.name in there]
        rows = []
        for before, model in pairwise(models):
            ran = [r for r in self.ran if r["scenario"] == scenario and r["controller"] in (before, model)]
            compared = Summary(records(summarise(pd.DataFrame(ran), {scenario: before})))
            cells = [_difference_cell(compared.row(scenario, model, key)) for key in (QUEUE, "delay_s")]
            rows.append((f"{model} against {before}", cells))
        header = [Cell(text="mean queue", small=("veh",)), Cell(text="delay", small=("s",))]
        return Table(title="Models against each other", header=header, rows=rows) if rows else None

    def _approach_table(self, scenario: ReportedScenario) -> Table | None:
        """Delay, level of service and queue of each approach, by controller; of many, the ones with most vehicles."""
        found = {
            name: by_approach([r for r in self.ran if r["scenario"] == scenario.name and r["controller"] == name])
            for name in self.summary.controllers(scenario.name)
        }
        places = list(dict.fromkeys(place for of_controller in found.values() for place in of_controller))
        if not places:
            return None
        vehicles = {place: max(each[place].vehicles for each in found.values() if place in each) for place in places}
        shown = sorted(places, key=vehicles.__getitem__, reverse=True)[:_NUM_APPROACHES_SHOWN]
        junctions = list(dict.fromkeys(junction for junction, _ in places))
        shown.sort(key=lambda place: (junctions.index(place[0]), place[1] == ALL, -vehicles[place]))
        names = {place: scenario.approach_names.get(place, place[1]) for place in shown}
        if scenario.approach_names:  # the others are not in the picture
            names |= {
                place: f"upstream ({place[1]})"
                for place in shown
                if place not in scenario.approach_names and place[1] != ALL
            }
        if len(junctions) > 1:
            names = {place: f"{place[0]}: {name}" for place, name in names.items()}
        return Table(
            title="Approaches: delay [s] and level of service, queue [veh]",
            header=[Cell(text=name) for name in found],
            rows=[
                (names[place], [_approach_cell(of_controller.get(place)) for of_controller in found.values()])
                for place in shown
            ],
        )

    def _cycle_table(self, scenario: ReportedScenario) -> Table | None:
        """Mean cycle and green shares of each junction, by controller, over the episodes with a trace."""
        found = {
            name: [
                trace
                for seed in self.seeds(scenario.name, name)
                if (trace := self._trace(scenario, name, seed)) is not None
            ]
            for name in self.summary.controllers(scenario.name)
        }
        traced = {name: traces for name, traces in found.items() if traces}
        junctions = list(dict.fromkeys(junction for traces in traced.values() for junction in traces[0].programs))
        if not junctions:
            return None
        return Table(
            title="Cycle [s] and shares of the green stages",
            header=[Cell(text=name) for name in traced],
            rows=[
                (
                    junction,
                    [
                        _cycle_cell([each.stages_of(junction, scenario.warm_up_s) for each in traces])
                        for traces in traced.values()
                    ],
                )
                for junction in junctions[:_NUM_APPROACHES_SHOWN]
            ],
        )

    def overall_tables(self, scenarios: Sequence[ReportedScenario]) -> list[Table]:
        """The tables over all scenarios: the mean queue by scenario and controller, and the means over the
        scenarios."""
        if len(scenarios) < 2:
            return []
        summary = self.summary
        names = [each.name for each in self.controllers if any(summary.row(s.name, each.name) for s in scenarios)]
        rows = [
            (scenario.name, [_queue_cell(summary.row(scenario.name, name)) for name in names]) for scenario in scenarios
        ]
        header = [Cell(text=name) for name in names]
        tables = [Table(title="Mean queue [veh]", header=header, rows=rows)] if names else []
        there = summary.controllers(ALL_SCENARIOS)
        if there:
            columns = [
                self._mean_column(ALL_SCENARIOS, METRICS[QUEUE]),
                self._difference_column(ALL_SCENARIOS),
                self._gap_column(ALL_SCENARIOS),
                (
                    Cell(
                        text="queue ratio",
                        small=(f"to {self.references[ALL_SCENARIOS]}", "all scenarios weigh the same"),
                    ),
                    lambda name: _mean_cell(summary.row(ALL_SCENARIOS, name, QUEUE_RATIO), 2),
                ),
            ]
            tables.append(Table.of_controllers("All scenarios together", there, columns))
        return tables

    def protocol_table(self, protocol: Protocol, scenarios: Sequence[str]) -> Table:
        """The published delays, and ours with their intervals."""
        return Table(
            title="Delay [s]",
            header=[Cell(text=name) for name in scenarios],
            rows=[
                (name, [_mean_cell(row, 1) for row in rows]) for name, rows in protocol.rows(self.summary, scenarios)
            ],
        )

    def _mean_column(self, scenario: str, metric: Metric, num_seeds: int = 0) -> Column:
        return (
            Cell(text=metric.name, small=_lines(metric.unit)),
            lambda name: _mean_cell(self.summary.row(scenario, name, metric.key), metric.decimals, num_seeds),
        )

    def _difference_column(self, scenario: str) -> Column:
        return (
            Cell(text=f"against {self.references[scenario]}", small=("veh",)),
            lambda name: _difference_cell(self.summary.row(scenario, name)),
        )

    def _gap_column(self, scenario: str) -> Column:
        return Cell(text="gap closed"), lambda name: _gap_cell(self.summary.row(scenario, name))

    # Figures

    def _pictures(self, scenario: ReportedScenario) -> list[Picture]:
        summary, reference, warm_up_s = self.summary, scenario.reference.name, scenario.warm_up_s
        sketches = scenario.sketches
        pictures = [figures.sketch(junction, png, number) for number, (junction, png) in enumerate(sketches.items())]
        rows = [summary.row(scenario.name, name) for name in summary.controllers(scenario.name)]
        compared = [row for row in rows if row is not None and row["difference"] is not None]
        if compared:
            queues = {(r["controller"], r["seed"]): r[QUEUE] for r in self.ran if r["scenario"] == scenario.name}
            by_seed_veh = {
                row["controller"]: [
                    queues[row["controller"], seed] - queues[reference, seed]
                    for seed in self.seeds(scenario.name, row["controller"])
                    if (reference, seed) in queues
                ]
                for row in compared
            }
            pictures.append(figures.paired_differences(compared, by_seed_veh, reference))
        traces: dict[str, list[Trace]] = {}
        for record in self.ran:
            if record["scenario"] == scenario.name:
                trace = self._trace(scenario, record["controller"], record["seed"])
                if trace is not None:
                    traces.setdefault(record["controller"], []).append(trace)
        if not traces:
            return pictures
        pictures.append(figures.queue_over_time(traces, reference, warm_up_s))
        # first the controllers that the report is about, then by mean queue
        about = subjects(summary, scenario.name, self.controllers, reference)[0][::-1]
        ranked = sorted(traces, key=lambda name: summary.mean(scenario.name, name, QUEUE) or 0.0)
        wanted = dict.fromkeys([*about[:1], reference, GAP_TO, "static", *about, *ranked])
        drawn = [name for name in wanted if name in traces][: figures.MAX_LINES]
        left_out = [name for name in traces if name not in drawn]
        pictures.append(
            figures.cumulative_trips({name: traces[name] for name in drawn}, reference, warm_up_s, left_out)
        )
        pair = [name for name in dict.fromkeys([reference, *about[:1], *drawn]) if name in traces][:2]
        common = sorted(set.intersection(*(set(self.seeds(scenario.name, name)) for name in pair)))
        for seed in common:
            of_seed = {name: self._trace(scenario, name, seed) for name in pair}
            both = {name: trace for name, trace in of_seed.items() if trace is not None}
            if len(both) == len(pair):
                pictures.append(figures.signal_timeline(both, seed, warm_up_s, pair[0]))
                break
        return pictures

    def _trace(self, scenario: ReportedScenario, controller: str, seed: int) -> Trace | None:
        """The trace of an episode. None if it is missing, or has another begin or end, from an earlier evaluation."""
        path = trace_file(self.out, scenario.name, controller, seed)
        trace = load_trace(path) if path.is_file() else None
        if trace is None or (trace.begin_s, len(trace.stage)) != (scenario.begin_s, scenario.end_s - scenario.begin_s):
            return None
        return trace

    # Language models

    def _model_section(self, scenario: ReportedScenario, controller: str) -> dict[str, Any] | None:
        """What the template shows of a language model's decisions, on the seeds on which they were compared with
        lookahead.

        shared_prompt: the messages with which the prompts of all the costliest decisions begin. invalid: the first
        decisions whose answer could not be read. watch: the command that shows the costliest decision, or None.
        """
        by_seed = {
            seed: load_decisions(decisions_file(self.out, scenario.name, controller, seed))
            for seed in self.seeds(scenario.name, controller)
        }
        decisions = [{**record, "seed": seed} for seed, of_seed in by_seed.items() for record in of_seed]
        compared = compare_with_lookahead(decisions)
        if compared is None:
            return None
        costliest = compared.costliest[0] if compared.costliest else None
        return {
            "controller": controller,
            "watch": self.watch.of(scenario, controller, costliest) if self.watch and costliest else None,
            "seeds": seed_numbers([seed for seed, of_seed in by_seed.items() if of_seed]),
            "compared": compared,
            "shared_prompt": _shared_beginning([record["prompt"] for record in compared.costliest]),
            "invalid": [record for record in decisions if record["fallback"] == "invalid"][:_NUM_INVALID_SHOWN],
        }


def _queue_cell(row: Row | None) -> Cell:
    if row is None:
        return Cell(text=MISSING)
    share = row["difference_percent"]
    small = _lines("" if share is None else f"{signed(share, 0)} %", direction(row))
    return Cell(text=number(row["mean"], 2), small=[_REFERENCE] if row["controller"] == row["reference"] else small)


def _mean_cell(row: Row | None, decimals: int, num_seeds: int = 0) -> Cell:
    """num_seeds: how many seeds ran; fewer in `row` are told."""
    if row is None:
        return Cell(text=MISSING)
    seeds = f"{row['num_seeds']} of {num_seeds} seeds" if row["num_seeds"] < num_seeds else ""
    low, high = row["ci95_low"], row["ci95_high"]
    interval = "" if low is None or low == high else span(low, high, decimals)
    return Cell(text=number(row["mean"], decimals), small=_lines(interval, seeds))


def _difference_cell(row: Row | None) -> Cell:
    if row is not None and row["controller"] == row["reference"]:
        return Cell(text=_REFERENCE)
    if row is None or row["difference"] is None:
        return Cell(text=MISSING)
    low, high = row["difference_ci95_low"], row["difference_ci95_high"]
    interval = "" if low is None else span(low, high, 2, signed)
    p = "" if row["wilcoxon_p"] is None else f", p {p_value(row['wilcoxon_p'])}"
    return Cell(text=signed(row["difference"], 2) + percent_difference(row), small=_lines(interval, direction(row) + p))


def _gap_cell(row: Row | None) -> Cell:
    if row is None or row["gap_closed"] is None:
        return Cell(text=MISSING)
    low, high = row["gap_closed_ci95_low"], row["gap_closed_ci95_high"]
    return Cell(text=percent(row["gap_closed"]), small=_lines("" if low == high else percent_range(low, high)))


def _approach_cell(approach: Approach | None) -> Cell:
    if approach is None or approach.delay_s is None:
        return Cell(text=MISSING)
    queue = f"queue {number(approach.mean_queue_veh, 1)}"
    p95 = "" if approach.p95_queue_veh is None else f"95 %: {number(approach.p95_queue_veh, 0)}"
    return Cell(text=f"{number(approach.delay_s, 1)} {approach.level}", small=_lines(queue, p95))


def _cycle_cell(stages: Sequence[NDArray[np.int8]]) -> Cell:
    """stages: of each episode, the green stage by second; -1 between stages."""
    seconds = sum(len(each) for each in stages)
    lengths_s = [np.bincount(each[each >= 0]) for each in stages]
    num_stages = max(map(len, lengths_s), default=0)
    num_greens = sum(greens(each, 0)[2] for each in stages)
    if not num_greens:
        return Cell(text=MISSING)
    green_s = np.sum([np.pad(each, (0, num_stages - len(each))) for each in lengths_s], axis=0)
    used = np.count_nonzero(green_s)
    shares = " / ".join(f"{100 * each / seconds:.0f}" for each in green_s)
    return Cell(text=number(seconds * used / num_greens, 0), small=(f"{shares} %",))


def _lines(*lines: str) -> list[str]:
    return [line for line in lines if line]


def _notes(summary: Summary, scenario: ReportedScenario) -> list[str]:
    """The limits of the comparison: greens outside the bounds, vehicles kept out, teleports, other signals, missing
    controllers."""
    notes = []
    for name in summary.controllers(scenario.name):
        outside, greens = (summary.mean(scenario.name, name, key) for key in ("greens_outside_bounds", "greens"))
        if outside and greens:
            notes.append(
                f"{name}: {number(outside, 1)} of {number(greens, 1)} greens per episode ({percent(outside / greens)}) "
                f"are outside the bounds ({scenario.bounds}), so it has more freedom than the controllers that keep to "
                "them."
            )
        entered = [summary.mean(scenario.name, name, key) for key in ("finished_veh", "unfinished_veh")]
        if entered == [0, 0]:
            notes.append(
                f"{name}: no vehicle entered the net, so its numbers say nothing: compare the departure times of the "
                f"route files with the simulated time, {scenario.begin_s} to {scenario.end_s} s."
            )
        for key, what in (
            ("not_inserted_veh", "found no room to enter; of the means, only the delays include them"),
            ("teleports", "were moved by SUMO past the jam in which they stood"),
        ):
            count = summary.mean(scenario.name, name, key)
            if count:
                notes.append(f"{name}: {number(count, 1)} vehicles per episode {what}.")
    notes += skipped_lines(scenario.skipped)
    notes += [f"{name} cannot run here: {reason}" for name, reason in sorted(scenario.not_applicable.items())]
    return notes


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
