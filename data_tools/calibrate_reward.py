"""Find the reward settings that suit a network, by episodes on validation demand.

Examples:
    python data_tools/calibrate_reward.py --scenario mine.sumocfg --out data/mine
    python data_tools/calibrate_reward.py --scenario resco:cologne1 sumo:rilsa3 --out data/both --seeds 8
    python data_tools/calibrate_reward.py --scenario resco:ingolstadt7 --out data/ingolstadt7 --minutes 20

No tail, horizon and measure is best everywhere. So for each scenario this runs the classical controllers, the tails
alone, and lookahead with a small set of settings, on the same validation seeds. What is compared is the mean delay of a
vehicle: its time loss and its wait to enter. The rounds:
    tails    every tail alone, at decision points and every second; the best three go on
    tail     lookahead with these tails over 90 s; the best two go on
    horizon  these two over 45, 90, 180 and 400 s; the two best horizons go on, each with its best tail
    measure  queue, waiting time and time loss, of the junction, and in nets of several signals of the whole net, too;
             the two horizons go on, each with its best measure and scope
    final    these two and the settings of configs/reward.yaml, or of --reward. Of those within 2 % of the best, the one
             with the longest horizon is taken, because only a long horizon sees that a jam clears
Tails, classical controllers and the final round have an hour of each seed. The others have half an hour of one seed.
With --minutes, the rounds horizon and measure begin no episode after this time, short horizons first. The tables say
what was left out. How far the search comes then depends on the machine.

Writes OUT/reward.yaml for generate_dataset.py, train_*.sh and evaluate.py: a section of `scenarios` for each network,
with the tables as a comment. OUT/calibration.jsonl keeps the episodes, so a second call continues. If no lookahead
beats the best classical controller, it says so, and takes the best settings with the longest horizon that was tried.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from tqdm import tqdm

from tsc.controllers.lookahead import Lookahead
from tsc.controllers.opening import opened
from tsc.controllers.registry import CLASSICAL, CONTROLLERS, rule_controller
from tsc.controllers.signal_plans import plan_signals
from tsc.cost.outcome import TAILS, OutcomeSettings, load_outcome_settings
from tsc.episodes.episode import run_episode
from tsc.errors import NotApplicable, ScenarioError, run_main
from tsc.evaluation.episodes_file import EpisodesFile
from tsc.files import REPO_ROOT, folder_lock, this_command, write_atomically
from tsc.junction.signal_control import skipped_lines
from tsc.processes import each_in_a_process
from tsc.rules.controller import Controller
from tsc.rules.tail import tail_controller
from tsc.scenarios.by_word import WORDS_HELP, traffic_scenarios
from tsc.scenarios.command_line import add_scenario_options, at_least, settings_of
from tsc.scenarios.traffic_scenario import TrafficScenario
from tsc.sumo.version import installed_sumo_version
from tsc.yaml_file import read_yaml

DEFAULT_REWARD = REPO_ROOT / "configs" / "reward.yaml"

FIRST_HORIZON_S = 90
HORIZONS_S = (45, FIRST_HORIZON_S, 180, 400)
MEASURES = ("queue_veh_s", "waiting_time_s", "time_loss_s")
KEPT_TAILS, KEPT = 3, 2
TIE = 1.02  # delays of lookahead that differ by less are taken as equal
DEFAULT_SEEDS = 4
FINAL_DURATION_S, SEARCH_DURATION_S = 3600, 1800


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What runs an episode: a classical controller, a tail alone, or lookahead with settings.

    step_s: between decisions in a green.
    """

    name: str
    step_s: int
    controller: str = ""
    tail: str = ""
    settings: OutcomeSettings | None = None

    def definition(self) -> dict[str, Any]:
        judged = self.settings.as_dict() if self.settings else None
        return {"controller": self.controller, "tail": self.tail, "step_s": self.step_s, "lookahead": judged}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One episode of a candidate."""

    scenario: TrafficScenario
    candidate: Candidate
    seed: int

    @property
    def fingerprint(self) -> str:
        """A digest of everything that decides the result."""
        what = [self.scenario.definition(), self.candidate.definition(), self.seed, installed_sumo_version()]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def run_job(job: Job) -> dict[str, Any]:
    """The record of the episode; delay_s is None if the controller does not apply to the net. Runs in a process of its
    own, because libsumo has one simulation a process."""
    begin = time.monotonic()
    candidate, scenario = job.candidate, job.scenario
    kind = candidate.controller or "lookahead"  # a tail takes the same static copies of programs
    controller: Controller | None
    if candidate.settings:
        controller = Lookahead(candidate.settings)
    elif candidate.tail:
        controller = tail_controller(candidate.tail)
    elif CONTROLLERS[kind].by_sumo:
        controller = None
    else:
        controller = rule_controller(kind, seed=job.seed, lookahead=OutcomeSettings())
    signals = replace(scenario.signals, timing=replace(scenario.timing, green_extension_s=candidate.step_s))
    record = {
        "fingerprint": job.fingerprint,
        "scenario": scenario.name,
        "candidate": candidate.name,
        "seed": job.seed,
        "delay_s": None,
    }
    with tempfile.TemporaryDirectory(prefix="tsc-plans-") as folder:
        try:
            planned = plan_signals(kind, scenario.files(job.seed), signals, scenario.end_s, Path(folder))
        except NotApplicable as error:
            return {**record, "not_applicable": str(error)}
        metrics = run_episode(
            planned.files,
            end_s=scenario.end_s,
            settings=replace(signals, junction_ids=tuple(planned.plans)),
            controller=controller,
        ).metrics
    kept = {name: metrics[name] for name in ("delay_s", "mean_queue_veh", "decisions")}
    return {**record, **kept, "wall_s": round(time.monotonic() - begin, 2)}


def run_episodes(
    scenario: TrafficScenario,
    candidates: Sequence[Candidate],
    seeds: Sequence[int],
    *,
    file: Path,
    workers: int,
    until: float = math.inf,
) -> dict[Candidate, list[dict[str, Any]]]:
    """By candidate, one record a seed. Runs the episodes that the file does not have, in the order of the candidates.

    until: in time.monotonic(); no episode begins after it. Candidates that lack one are left out.
    """
    jobs = {
        (candidate, seed): Job(scenario=scenario, candidate=candidate, seed=seed)
        for candidate in candidates
        for seed in seeds
    }
    for seed in seeds:  # now, because two workers must not write one demand file
        scenario.files(seed)
    stored = EpisodesFile(file, {job.fingerprint for job in jobs.values()})
    records = {record["fingerprint"]: record for record in stored.episodes}
    missing = [job for job in jobs.values() if job.fingerprint not in records]
    at_once = len(missing) if math.isinf(until) else workers
    with tqdm(total=len(missing), disable=None, leave=False) as progress:
        while missing and time.monotonic() < until:
            for record in each_in_a_process(run_job, missing[:at_once], workers):
                stored.append(record)
                records[record["fingerprint"]] = record
                progress.update()
            del missing[:at_once]
    left_out = {job.candidate for job in missing}
    return {
        each: [records[jobs[each, seed].fingerprint] for seed in seeds] for each in candidates if each not in left_out
    }


def mean_delay_s(records: Sequence[Mapping[str, Any]]) -> float:
    """Infinite if the controller does not apply."""
    delays_s = [record["delay_s"] for record in records]
    return math.inf if None in delays_s else fmean(delays_s)


@dataclass(frozen=True, kw_only=True)
class Round:
    """The candidates of a round with their mean delays (s), the best first. kept: those that go on.

    duration_s: of an episode. left_out: candidates for which there was no time.
    """

    name: str
    num_seeds: int
    duration_s: int
    delays_s: Mapping[Candidate, float]
    kept: Sequence[Candidate]
    left_out: Sequence[Candidate]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """chosen, classical: the settings taken and the best classical controller, with their delay of each seed (s)."""

    scenario: str
    rounds: Sequence[Round]
    chosen: Candidate
    classical: Candidate
    chosen_delays_s: Sequence[float]
    classical_delays_s: Sequence[float]

    @property
    def ratio(self) -> float:
        return fmean(self.chosen_delays_s) / fmean(self.classical_delays_s)

    def lines(self) -> list[str]:
        """The tables and the result, for a reader."""
        lines = []
        for each in self.rounds:
            seeds = f"{each.num_seeds} seed{'s' if each.num_seeds > 1 else ''}"
            lines += ["", f"{self.scenario}, {each.name} ({seeds}, {each.duration_s} s), delay in s per vehicle"]
            for candidate, delay_s in each.delays_s.items():
                shown = "does not apply" if math.isinf(delay_s) else f"{delay_s:8.1f}"
                lines.append(f"  {shown}  {candidate.name}{'  *' if candidate in each.kept else ''}")
            lines += [f"  left out  {candidate.name}" for candidate in each.left_out]
        by_seed = ", ".join(
            f"{one / other:.2f}" for one, other in zip(self.chosen_delays_s, self.classical_delays_s, strict=True)
        )
        lines += [
            "",
            f"{self.scenario}: lookahead ({self.chosen.name}) {fmean(self.chosen_delays_s):.1f} s, best classical "
            f"controller ({self.classical.name}) {fmean(self.classical_delays_s):.1f} s, ratio {self.ratio:.2f} "
            f"(by seed {by_seed})",
        ]
        if self.ratio >= 1:
            lines.append(
                f"No lookahead beats {self.classical.name} here. The settings are the best with the longest horizon; a "
                "policy that is trained on them cannot be expected to beat it."
            )
        return lines


class _Search:
    """Runs the rounds of one scenario, and keeps what they found.

    base: the settings of which only what is searched changes. until: in time.monotonic(), for rounds that may stop.
    """

    def __init__(
        self,
        scenario: TrafficScenario,
        num_seeds: int,
        *,
        base: OutcomeSettings,
        file: Path,
        workers: int,
        until: float,
    ) -> None:
        self.extension_s = scenario.timing.green_extension_s
        self.rounds: list[Round] = []
        self.records: dict[Candidate, list[dict[str, Any]]] = {}  # of the rounds on all seeds
        self.searched_s: dict[Candidate, float] = {}  # the delay in the rounds on one seed
        self._scenario, self._base, self._file, self._workers, self._until = scenario, base, file, workers, until
        self._seeds = [scenario.episode_seed("validation", number) for number in range(num_seeds)]

    def lookahead(self, **changes: Any) -> Candidate:
        settings = replace(self._base, **changes)
        step = f" every {settings.tail_step_s} s" if settings.tail_step_s else ""
        name = f"{settings.tail}{step}, {settings.horizon_s} s, {settings.measure}, {settings.scope}"
        return Candidate(name=name, step_s=self.extension_s, settings=settings)

    def changed(self, candidates: Iterable[Candidate], **values: Sequence[Any]) -> list[Candidate]:
        """Each candidate with each combination of the values."""
        combinations = [dict(zip(values, each, strict=True)) for each in product(*values.values())]
        return [self.lookahead(**{**vars(each.settings), **changes}) for each in candidates for changes in combinations]

    def round(
        self,
        name: str,
        candidates: Sequence[Candidate],
        choose: Callable[[Mapping[Candidate, float]], list[Candidate]],
        *,
        all_seeds: bool,
        may_stop: bool = False,
    ) -> list[Candidate]:
        """What `choose` takes of the mean delays (s), the best first. Prints the first one.

        all_seeds: an hour of each instead of half an hour of one. may_stop: when the time is over; some of the
        candidates have their episodes from a round before.
        """
        seeds = self._seeds if all_seeds else self._seeds[:1]
        duration_s = min(self._scenario.duration_s, FINAL_DURATION_S if all_seeds else SEARCH_DURATION_S)
        scenario = replace(self._scenario, end_s=self._scenario.begin_s + duration_s)
        until = self._until if may_stop else math.inf
        ran = run_episodes(scenario, candidates, seeds, file=self._file, workers=self._workers, until=until)
        means_s = {each: mean_delay_s(records) for each, records in ran.items()}
        if all_seeds:
            self.records |= ran
        else:
            self.searched_s |= means_s
        delays_s = dict(sorted(means_s.items(), key=lambda pair: pair[1]))
        kept = choose(delays_s)
        left_out = [each for each in candidates if each not in ran]
        self.rounds.append(
            Round(
                name=name,
                num_seeds=len(seeds),
                duration_s=duration_s,
                delays_s=delays_s,
                kept=kept,
                left_out=left_out,
            )
        )
        no_time = f" (no time for {len(left_out)} more)" if left_out else ""
        print(f"{self._scenario.name}, {name}: best of {len(ran)} is {kept[0].name}{no_time}", flush=True)
        return kept


def best(number: int) -> Callable[[Mapping[Candidate, float]], list[Candidate]]:
    """Takes as many of the best."""
    return lambda delays_s: list(delays_s)[:number]


def best_of_horizons(delays_s: Mapping[Candidate, float]) -> list[Candidate]:
    """The best of each horizon; of as many horizons as go on."""
    of_horizon: dict[int, Candidate] = {}
    for each in delays_s:
        of_horizon.setdefault(horizon_s(each), each)
    return list(of_horizon.values())[:KEPT]


def longest_of_the_best(below_s: float) -> Callable[[Mapping[Candidate, float]], list[Candidate]]:
    """Takes the best, or of those that tie with it and have a delay below below_s, the one with the longest horizon."""

    def choose(delays_s: Mapping[Candidate, float]) -> list[Candidate]:
        first, *others = delays_s
        limit_s = min(delays_s[first] * TIE, below_s)
        return [max([first, *(each for each in others if delays_s[each] < limit_s)], key=horizon_s)]

    return choose


def horizon_s(candidate: Candidate) -> int:
    assert candidate.settings is not None
    return candidate.settings.horizon_s


def calibrate(
    scenario: TrafficScenario,
    num_signals: int,
    num_seeds: int,
    *,
    base: OutcomeSettings,
    file: Path,
    workers: int,
    minutes: float = math.inf,
) -> Calibration:
    """Run all rounds. base: the settings of which only what is searched changes. minutes: after which the rounds
    horizon and measure begin no episode."""
    until = time.monotonic() + 60 * minutes
    search = _Search(scenario, num_seeds, base=base, file=file, workers=workers, until=until)
    extension_s = search.extension_s
    controllers = [Candidate(name=name, step_s=extension_s, controller=name) for name in CLASSICAL]
    (classical,) = search.round("classical controllers", controllers, best(1), all_seeds=True)
    classical_s = mean_delay_s(search.records[classical])
    if not 0 < classical_s < math.inf:
        raise ScenarioError(
            f"scenario {scenario.name}: no vehicle is delayed from {scenario.begin_s} to {scenario.end_s} s, so "
            "nothing can be compared: choose another --begin or a longer --duration"
        )
    steps_s = dict.fromkeys([extension_s, 1])
    tails = [Candidate(name=f"{tail} every {step} s", step_s=step, tail=tail) for tail in TAILS for step in steps_s]
    first = [
        search.lookahead(
            tail=each.tail,
            tail_step_s=None if each.step_s == extension_s else each.step_s,
            horizon_s=FIRST_HORIZON_S,
        )
        for each in search.round("tails alone", tails, best(KEPT_TAILS), all_seeds=True)
    ]
    kept = search.round("lookahead, tail", first, best(KEPT), all_seeds=False)
    over = sorted(search.changed(kept, horizon_s=HORIZONS_S), key=horizon_s)
    kept = search.round("lookahead, horizon", over, best_of_horizons, all_seeds=False, may_stop=True)
    scopes = ("junction",) if num_signals == 1 else ("junction", "network")
    measured = [*kept, *search.changed(kept, measure=MEASURES, scope=scopes)]
    measured = sorted(dict.fromkeys(measured), key=horizon_s)
    finalists = search.round("lookahead, measure", measured, best_of_horizons, all_seeds=False, may_stop=True)
    final = list(dict.fromkeys([*finalists, search.lookahead()]))
    (chosen,) = search.round("lookahead, final", final, longest_of_the_best(classical_s), all_seeds=True)
    if mean_delay_s(search.records[chosen]) >= classical_s:
        chosen = min(search.searched_s, key=lambda each: (-horizon_s(each), search.searched_s[each]))
        search.round("lookahead, longest horizon", [chosen], best(1), all_seeds=True)
    return Calibration(
        scenario=scenario.name,
        rounds=search.rounds,
        chosen=chosen,
        classical=classical,
        chosen_delays_s=[record["delay_s"] for record in search.records[chosen]],
        classical_delays_s=[record["delay_s"] for record in search.records[classical]],
    )


def reward_text(calibrations: Sequence[Calibration], base: Mapping[str, Any]) -> str:
    """The content of reward.yaml. base: the values of the file that it is based on."""
    sections = dict(base.get("scenarios") or {})
    for each in calibrations:
        assert each.chosen.settings is not None
        values = vars(each.chosen.settings)
        sections[each.scenario] = {
            name: values[name] for name in ("tail", "tail_step_s", "horizon_s", "measure", "scope")
        }
    comment = [f"Made by: {this_command()}", *(line for each in calibrations for line in each.lines())]
    lines = "".join(f"# {line}".rstrip() + "\n" for line in comment)
    return lines + "\n" + yaml.safe_dump({**base, "scenarios": sections}, sort_keys=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scenario", action="extend", nargs="+", required=True, metavar="WORD", help=f"{WORDS_HELP}; one or more"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of reward.yaml: that of the dataset")
    parser.add_argument(
        "--seeds",
        type=at_least(1),
        metavar="N",
        help=f"validation seeds (default: {DEFAULT_SEEDS}; {DEFAULT_SEEDS // 2} for a net with several signals)",
    )
    parser.add_argument(
        "--workers", type=at_least(1), default=multiprocessing.cpu_count(), help="episodes at once (default: cores)"
    )
    parser.add_argument(
        "--reward", type=Path, help="a reward file of your own, whose other settings are kept (default: none)"
    )
    parser.add_argument(
        "--minutes",
        type=at_least(0),
        default=math.inf,
        metavar="N",
        help="time of a network for the rounds up to measure; the final round comes after it (default: no limit)",
    )
    parser.add_argument(
        "--max-signals", type=at_least(1), metavar="N", help="leave out networks with more signals (default: none)"
    )
    add_scenario_options(parser, source=f"the scenario's own; at most {FINAL_DURATION_S} s of it are used")
    arguments = parser.parse_args()
    base: Any = read_yaml(arguments.reward) if arguments.reward else {}
    settings = load_outcome_settings(arguments.reward or DEFAULT_REWARD).without_terms()
    out = arguments.out.resolve()
    with folder_lock(out, "the calibration"), tempfile.TemporaryDirectory(prefix="tsc-calibration-") as scratch:
        scenarios = traffic_scenarios(arguments.scenario, Path(scratch, "scenarios"), settings_of(arguments))
        signals = {each.name: opened(each, Path(scratch, each.name)) for each in scenarios}
        calibrations = []
        for scenario in scenarios:
            num_signals = len(signals[scenario.name].plans)
            if arguments.max_signals and num_signals > arguments.max_signals:
                print(f"{scenario.name} has {num_signals} signals, which takes long: left out (--max-signals)")
                continue
            for line in skipped_lines(signals[scenario.name].skipped):
                print(f"{scenario.name}: {line}")
            calibrations.append(
                calibrate(
                    scenario,
                    num_signals,
                    arguments.seeds or (DEFAULT_SEEDS if num_signals == 1 else DEFAULT_SEEDS // 2),
                    base=settings,
                    file=out / "calibration.jsonl",
                    workers=arguments.workers,
                    minutes=arguments.minutes,
                )
            )
        write_atomically(out / "reward.yaml", reward_text(calibrations, base).encode())
        for each in calibrations:
            print("\n".join(each.lines()))
    print(f"\nreward settings: {arguments.out / 'reward.yaml'}")


if __name__ == "__main__":
    run_main(main)
