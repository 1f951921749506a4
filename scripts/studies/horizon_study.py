"""Compare ways to judge a decision: horizon, tail controller, measure and scope, one at a time around the default.

Example:
    python scripts/studies/horizon_study.py --scenarios four_way arterial --seeds 5 --duration 900 --out data/horizons

Each setting implies a policy: at every decision point, fork the simulation, try both answers, take the cheaper. The
study runs this policy over whole episodes. It reports how often both answers cost the same, how often `yes` was the
better one, and the mean queue and waiting time, compared with the default on the same seeds.

Writes OUT/episodes.jsonl (one line per episode; a second call continues), the table OUT/horizon_study.md and the figure
OUT/horizon_study.png. The same arguments give the same table. The demand periods of a scenario file are squeezed into
--duration, so that a short episode sees all of them. Of a .sumocfg file, resco:NAME and sumo:NAME, the first --duration
seconds are simulated.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tqdm import tqdm

from tsc.controllers.lookahead import Lookahead
from tsc.controllers.signal_plans import plan_signals
from tsc.cost.measures import SCOPES
from tsc.cost.outcome import OutcomeSettings, load_outcome_settings
from tsc.episodes.episode import run_episode
from tsc.errors import ConfigError, run_main
from tsc.evaluation.episodes_file import EpisodesFile
from tsc.evaluation.statistics import interval95, paired_difference
from tsc.files import REPO_ROOT, folder_lock, write_atomically
from tsc.junction.decision import Decision
from tsc.processes import each_in_a_process
from tsc.scenarios.by_word import WORDS_HELP, traffic_scenarios
from tsc.scenarios.drawn_scenario import DrawnScenario
from tsc.scenarios.scenario import Scenario
from tsc.scenarios.traffic_scenario import TrafficScenario
from tsc.sumo.running import SumoFiles
from tsc.sumo.version import installed_sumo_version

CONFIGS = REPO_ROOT / "configs"

HORIZONS_S = (5, 10, 20, 30, 45, 60, 90, 120)
MEASURES = ("queue_veh_s", "waiting_time_s", "time_loss_s", "pressure_veh_s")
TAILS = ("static", "gap_out", "max_pressure")
FACTORS = {"horizon_s": HORIZONS_S, "tail": TAILS, "measure": MEASURES, "scope": SCOPES}
DEFAULT = "default"


def settings_to_compare(default: OutcomeSettings) -> dict[str, OutcomeSettings]:
    """Name → settings: the default, then each other value of each factor with the rest as in the default."""
    settings = {DEFAULT: default}
    for factor, values in FACTORS.items():
        for value in values:
            if value != getattr(default, factor):
                settings[f"{factor}={value}"] = replace(default, **{factor: value})
    return settings


def squeezed(scenario: Scenario, duration_s: int) -> Scenario:
    """The scenario with the periods of its demand squeezed into duration_s. The rates stay the same."""
    begins = [begin * duration_s // scenario.duration_s for begin in scenario.demand.period_begin_s]
    demand = scenario.demand.model_copy(update={"period_begin_s": begins})
    return scenario.model_copy(update={"duration_s": duration_s, "demand": demand})


def shortened(scenario: TrafficScenario, duration_s: int) -> TrafficScenario:
    """The scenario with a length of duration_s."""
    end_s = scenario.begin_s + duration_s
    if isinstance(scenario, DrawnScenario):
        return replace(scenario, scenario=squeezed(scenario.scenario, duration_s), end_s=end_s)
    return replace(scenario, end_s=end_s)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One episode of the policy that one setting implies."""

    scenario: TrafficScenario
    name: str
    settings: OutcomeSettings
    seed: int
    files: SumoFiles

    @property
    def fingerprint(self) -> str:
        """A digest of everything that decides the result. A stored episode with another fingerprint is run again."""
        what = {
            "scenario": self.scenario.definition(),
            "settings": self.settings.as_dict(),
            "seed": self.seed,
            "sumo": installed_sumo_version(),
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def run_job(job: Job) -> dict[str, Any]:
    """Runs in a process of its own: libsumo has one simulation each."""
    begin = time.monotonic()
    lookahead = Lookahead(job.settings)
    scenario = job.scenario
    with tempfile.TemporaryDirectory(prefix="tsc-plans-") as folder:
        planned = plan_signals("lookahead", job.files, scenario.signals, scenario.end_s, Path(folder))
        settings = replace(scenario.signals, junction_ids=tuple(planned.plans))
        metrics = run_episode(planned.files, end_s=scenario.end_s, settings=settings, controller=lookahead).metrics
    decisions = max(1, metrics["decisions"])
    decided = max(1, metrics["decisions"] - lookahead.found[None])
    return {
        "fingerprint": job.fingerprint,
        "scenario": job.scenario.name,
        "controller": job.name,
        "seed": job.seed,
        "duration_s": job.scenario.duration_s,
        **metrics,
        "tie_share": lookahead.found[None] / decisions,
        "yes_share": lookahead.found[Decision.YES] / decided,
        "wall_s": round(time.monotonic() - begin, 2),
    }


def plan_jobs(
    scenarios: Sequence[TrafficScenario], num_seeds: Sequence[int], settings: dict[str, OutcomeSettings]
) -> list[Job]:
    """One job for each seed, scenario and setting, in this order, so that a study that is cut short has its first seeds
    complete."""
    jobs = []
    for number in range(max(num_seeds)):
        for scenario, seeds in zip(scenarios, num_seeds, strict=True):
            if number >= seeds:
                continue
            seed = scenario.episode_seed("validation", number)
            files = scenario.files(seed)
            jobs += [
                Job(scenario=scenario, name=name, settings=setting, seed=seed, files=files)
                for name, setting in settings.items()
            ]
    return jobs


@dataclass(frozen=True, kw_only=True)
class Result:
    """One setting in one scenario. Intervals are (mean, low, high), 95 % by Student's t over the seeds; differences are
    to the default on the same seed, of mean queue, relative ones one a seed."""

    scenario: str
    name: str
    num_seeds: int
    duration_s: int
    tie_share: float
    yes_share: float
    queue_veh: tuple[float, float, float]
    waiting_time_s: tuple[float, float, float]
    difference_veh: tuple[float, float, float]
    relative_differences: tuple[float, ...]


def results_of(episodes: Sequence[dict[str, Any]], names: Sequence[str]) -> list[Result]:
    """In the order of the episodes' scenarios and of `names`."""
    results = []
    for scenario in dict.fromkeys(episode["scenario"] for episode in episodes):
        ours = [episode for episode in episodes if episode["scenario"] == scenario]
        reference = {e["seed"]: e["mean_queue_veh"] for e in ours if e["controller"] == DEFAULT}
        for name in names:
            of_name = [episode for episode in ours if episode["controller"] == name]
            if not of_name:
                continue
            relative = [e["mean_queue_veh"] / reference[e["seed"]] - 1 for e in of_name if reference.get(e["seed"])]
            results.append(
                Result(
                    scenario=scenario,
                    name=name,
                    num_seeds=len(of_name),
                    duration_s=of_name[0]["duration_s"],
                    tie_share=float(np.mean([e["tie_share"] for e in of_name])),
                    yes_share=float(np.mean([e["yes_share"] for e in of_name])),
                    queue_veh=interval95([e["mean_queue_veh"] for e in of_name]),
                    waiting_time_s=interval95([e["waiting_time_s"] for e in of_name]),
                    difference_veh=paired_difference(ours, scenario, "mean_queue_veh", name, DEFAULT),
                    relative_differences=tuple(relative),
                )
            )
    return results


def over_scenarios(results: Sequence[Result], name: str, level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of the relative difference of mean queue to the default, every scenario with the same weight;
    interval of this level with Welch and Satterthwaite's degrees of freedom, since scenarios differ in spread."""
    differences = [np.array(result.relative_differences) for result in results if result.name == name]
    mean = float(np.mean([values.mean() for values in differences]))
    variances = [values.var(ddof=1) / len(values) if len(values) > 1 else 0.0 for values in differences]
    if not sum(variances):
        return mean, mean, mean
    freedom = sum(variances) ** 2 / sum(v**2 / (len(d) - 1) for v, d in zip(variances, differences, strict=True) if v)
    half = float(stats.t.ppf(0.5 + level / 2, freedom) * math.sqrt(sum(variances)) / len(differences))
    return mean, mean - half, mean + half


def _half(interval: tuple[float, float, float]) -> float:
    return (interval[2] - interval[1]) / 2


def tables(results: Sequence[Result], names: Sequence[str], default: OutcomeSettings) -> str:
    """Markdown: one table a scenario, then all scenarios together."""
    described = f"{default.horizon_s} s, {default.tail} tail, {default.measure}, scope {default.scope}"
    scenarios = list(dict.fromkeys(result.scenario for result in results))
    lines = []
    for scenario in scenarios:
        ours = [result for result in results if result.scenario == scenario]
        lines += [
            f"**{scenario}**, {ours[0].num_seeds} seeds of {ours[0].duration_s} s",
            "",
            "| setting | ties [%] | yes better [%] | mean queue [veh] | minus default [veh] | waiting time [s] |",
            "|:---|---:|---:|---:|---:|---:|",
        ]
        for result in ours:
            label, minus = f"default ({described})", ""
            if result.name != DEFAULT:
                label, minus = result.name, f"{result.difference_veh[0]:+.2f} ± {_half(result.difference_veh):.2f}"
            lines.append(
                f"| {label} | {100 * result.tie_share:.1f} | {100 * result.yes_share:.0f} | "
                f"{result.queue_veh[0]:.2f} ± {_half(result.queue_veh):.2f} | {minus} | "
                f"{result.waiting_time_s[0]:.1f} ± {_half(result.waiting_time_s):.1f} |"
            )
        lines.append("")
    lines += [
        f"**Mean queue against the default, in %**, mean over {', '.join(scenarios)} [95 % interval]",
        "",
        "| setting | difference [%] |",
        "|:---|---:|",
    ]
    there = {result.name for result in results} - {DEFAULT}
    intervals = {name: over_scenarios(results, name) for name in names if name in there}
    ordered = sorted(intervals, key=lambda name: intervals[name][0])
    for name in ordered:
        mean, low, high = (100 * value for value in intervals[name])
        lines.append(f"| {name} | {mean:+.1f} [{low:+.1f}, {high:+.1f}] |")
    return "\n".join([*lines, "", *verdict(results, ordered)])


def verdict(results: Sequence[Result], ordered: Sequence[str]) -> list[str]:
    """In words, which settings differ from the default by more than the spread over seeds.

    Of many settings some look better by chance, so the intervals are those that hold for all of them together with
    95 % (Bonferroni).
    """
    level = 1 - 0.05 / len(ordered)
    intervals = {name: over_scenarios(results, name, level) for name in ordered}
    better = [name for name, (_, _, high) in intervals.items() if high < 0]
    worse = [name for name, (_, low, _) in intervals.items() if low > 0]
    alike = [name for name in ordered if name not in better and name not in worse]
    return [
        f"With intervals that hold for all {len(ordered)} settings together:",
        "",
        f"- shorter queues than the default, beyond the spread: {', '.join(better) or 'none'}",
        f"- longer queues than the default, beyond the spread: {', '.join(worse) or 'none'}",
        f"- within the spread: {', '.join(alike) or 'none'}",
    ]


def json_row(name: str, value: float, beside: float | None, **more: Any) -> dict[str, Any]:
    """A queue and the one that it is compared with, as in the rows of scripts/benchmark.py."""
    ratio = value / beside if beside else None
    row = {"name": name, "value": value, "unit": "veh", "beside": beside, "ratio": ratio}
    return row | {"must_reach": None, "ok": None} | more


def json_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Mean queue of each setting beside that of the default."""
    reference = {result.scenario: result.queue_veh[0] for result in results if result.name == DEFAULT}
    return [
        json_row(f"{each.scenario}: mean queue, {each.name}", each.queue_veh[0], reference[each.scenario])
        for each in results
    ]


def draw(results: Sequence[Result], default: OutcomeSettings, path: Path) -> None:
    """Figure of the table. Scenarios differ by marker and line, so that it reads in greyscale."""
    from matplotlib.figure import Figure

    scenarios = list(dict.fromkeys(result.scenario for result in results))
    looks = zip(("black", "#4477aa", "#cc6677") * 2, ("-", "--", ":") * 2, ("o", "s", "^", "D", "v", "P"), strict=True)
    categories = [(factor, value) for factor in ("tail", "measure", "scope") for value in FACTORS[factor]]
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    horizon_queue, choices, horizon_ties, horizon_yes = axes.flat
    horizon_queue.set_ylabel("mean queue against the default [%]")
    choices.set_ylabel("mean queue against the default [%]")
    horizon_ties.set_ylabel("both answers cost the same [%]")
    horizon_yes.set_ylabel("yes is better, of those that differ [%]")
    for axis in axes.flat:
        axis.grid(axis="y", color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in (horizon_queue, horizon_ties, horizon_yes):
        axis.set_xscale("log")
        axis.set_xticks(HORIZONS_S, list(map(str, HORIZONS_S)))
        axis.minorticks_off()
        axis.set_xlabel("horizon [s]")
    for index, (scenario, (color, line, marker)) in enumerate(zip(scenarios, looks, strict=False)):
        look = {"color": color, "linestyle": line, "marker": marker, "markersize": 5, "linewidth": 1.4}
        found = {result.name: result for result in results if result.scenario == scenario}

        def there(factor: str, value: object, found: dict[str, Result] = found) -> Result | None:
            return found.get(DEFAULT if value == getattr(default, factor) else f"{factor}={value}")

        of_horizon = {value: result for value in HORIZONS_S if (result := there("horizon_s", value))}
        means, errors = _in_percent(of_horizon.values())
        horizon_queue.errorbar(of_horizon.keys(), means, errors, label=scenario, capsize=2, **look)
        horizon_ties.plot(of_horizon.keys(), [100 * result.tie_share for result in of_horizon.values()], **look)
        horizon_yes.plot(of_horizon.keys(), [100 * result.yes_share for result in of_horizon.values()], **look)
        of_choice = {place: result for place, each in enumerate(categories) if (result := there(*each))}
        means, errors = _in_percent(of_choice.values())
        shift = 0.18 * (index - (len(scenarios) - 1) / 2)
        places = [place + shift for place in of_choice]
        choices.errorbar(places, means, errors, capsize=2, **look | {"linestyle": "none"})
    labels = [f"{value}" + (" *" if value == getattr(default, factor) else "") for factor, value in categories]
    choices.set_xticks(range(len(categories)), labels, rotation=40, ha="right")
    choices.set_xlabel("tail, measure, scope (* the default)")
    for place, (factor, _) in enumerate(categories[1:], 1):
        if factor != categories[place - 1][0]:
            choices.axvline(place - 0.5, color="0.7", linewidth=0.8)
    largest = max(abs(100 * float(np.mean(result.relative_differences))) for result in results)
    for axis in (horizon_queue, choices):
        axis.axhline(0, color="0.4", linewidth=0.8)
        # the means fill the panel; of few seeds, an interval may be far wider, and is then cut off
        axis.set_ylim(-0.6 * largest - 5, 1.2 * largest + 5)
    horizon_queue.legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=130)
    write_atomically(path, png.getvalue())


def _in_percent(results: Iterable[Result]) -> tuple[list[float], list[float]]:
    intervals = [interval95(result.relative_differences) for result in results]
    return [100 * interval[0] for interval in intervals], [100 * _half(interval) for interval in intervals]


def one_for_each(values: Sequence[int], count: int, option: str) -> list[int]:
    """One value for all scenarios, or one for each. Raises ConfigError."""
    if min(values) < 1:
        raise ConfigError(f"{option} is {min(values)}: choose at least 1")
    if len(values) not in (1, count):
        raise ConfigError(f"{option} has {len(values)} values for {count} scenarios: give one for all, or one for each")
    return list(values) * count if len(values) == 1 else list(values)


def scenario_word(name: str) -> str:
    """The file NAME.yaml in configs/scenarios for its name; any other word as it is."""
    return name if Path(name).suffix or ":" in name else str(CONFIGS / "scenarios" / f"{name}.yaml")


def scenarios_to_compare(words: Sequence[str], durations_s: Sequence[int], folder: Path) -> list[TrafficScenario]:
    """One scenario for each word and duration. Raises ConfigError for an unknown word or a family file."""
    found = traffic_scenarios(words, folder)
    if len(found) != len(words):
        raise ConfigError(
            f"{' '.join(words)} are {len(found)} scenarios: a family file stands for many; give files of one scenario"
        )
    return [shortened(scenario, duration_s) for scenario, duration_s in zip(found, durations_s, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scenarios",
        nargs="+",
        required=True,
        metavar="NAME",
        help=f"names of configs/scenarios/NAME.yaml, or {WORDS_HELP}; no family files",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[5], help="validation seeds: for all, or per scenario")
    parser.add_argument(
        "--duration",
        type=int,
        nargs="+",
        default=[900],
        metavar="S",
        help="seconds simulated: for all, or per scenario",
    )
    parser.add_argument(
        "--workers", type=int, default=multiprocessing.cpu_count(), help="episodes at once (default: cores)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for episodes, table and figure")
    parser.add_argument("--json", type=Path, help="write the mean queues as rows of name, value, unit, beside, ratio")
    parser.add_argument(
        "--reward", type=Path, default=CONFIGS / "reward.yaml", help="its section `outcome`: the default"
    )
    arguments = parser.parse_args()
    if arguments.workers < 1:
        raise ConfigError(f"--workers is {arguments.workers}: choose at least 1")
    count = len(arguments.scenarios)
    num_seeds = one_for_each(arguments.seeds, count, "--seeds")
    durations_s = one_for_each(arguments.duration, count, "--duration")
    out = arguments.out.resolve()
    words = [scenario_word(name) for name in arguments.scenarios]
    scenarios = scenarios_to_compare(words, durations_s, out / "scenarios")
    default = load_outcome_settings(arguments.reward).without_terms()
    settings = settings_to_compare(default)
    jobs = plan_jobs(scenarios, num_seeds, settings)
    with folder_lock(out, "the study"):
        file = EpisodesFile(out / "episodes.jsonl", {job.fingerprint for job in jobs})
        if file.episodes:
            print(f"{len(file.episodes)} of {len(jobs)} episodes are there already")
        done = {episode["fingerprint"] for episode in file.episodes}
        missing = [job for job in jobs if job.fingerprint not in done]
        records = each_in_a_process(run_job, missing, arguments.workers)
        for record in tqdm(records, total=len(missing), unit=" episodes", disable=None):
            file.append(record)

        # in the order of the plan, whatever order they ended in
        episodes = {episode["fingerprint"]: episode for episode in file.episodes}
        results = results_of([episodes[job.fingerprint] for job in jobs], list(settings))
        text = tables(results, list(settings), default)
        write_atomically(out / "horizon_study.md", f"{text}\n".encode())
        draw(results, default, out / "horizon_study.png")
        if arguments.json:
            write_atomically(arguments.json, (json.dumps(json_rows(results), indent=1) + "\n").encode())
        print(text)
        print(f"\ntable and figure: {out / 'horizon_study.md'}, {out / 'horizon_study.png'}")


if __name__ == "__main__":
    run_main(main)
