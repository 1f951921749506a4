"""Compare variants of the reward, the groups and the states by how well GRPO learns from them, in closed loop.

Example:
    python data_tools/json_to_parquet.py --input data/four_way --output data/four_way/parquet-all --ties keep
    python scripts/studies/shaping_study.py --data data/four_way/parquet-all \
        --start runs/demo/sft/merged --out runs/shaping

Every variant changes one thing of its group's reference. The reference of `demo` is scripts/train_grpo.sh's training of
its tiny model. Each variant is trained from the same start with several training seeds (scripts/studies/fast_grpo.py:
verl's arithmetic on the token that decides), and then runs the same hours of unseen demand. Differences to the
reference are paired by training seed.
Writes OUT/runs.jsonl (one line per run; a second call continues), OUT/results.md and OUT/results.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from horizon_study import json_row
from reward.settings import load_settings
from tsc.controllers.language_model import Ask, ask_function
from tsc.controllers.registry import LANGUAGE_MODEL
from tsc.cost.outcome import OutcomeSettings
from tsc.episodes.runner import EpisodeJob, run_jobs
from tsc.errors import ConfigError, TscError, did_you_mean, run_main
from tsc.evaluation.episodes_file import EpisodesFile
from tsc.evaluation.statistics import interval95, paired_difference
from tsc.files import REPO_ROOT, folder_lock, sha256_of, write_atomically
from tsc.junction.prompt import PROMPT_VERSION
from tsc.junction.signal_settings import SignalSettings
from tsc.scenarios.scenario import Scenario, build_demand, build_net, load_scenario
from tsc.sumo.running import SumoFiles
from tsc.sumo.version import installed_sumo_version

if TYPE_CHECKING:
    from fast_grpo import TrainedPolicy

# torch and verl are imported late: every episode's process imports this file and does not need them.

START = "start"
# The variant of each group that the others are compared with.
REFERENCES = {"decision": "reference", "format": "format_graded", "demo": "demo", "stretch": "1_decision"}
# For the groups `decision` and `format`, whose start has seen each label once and nearly always answers "no".
REFERENCE = {"balance": True, "normalise_std": True}
# These seeds are not used by training (1–500), validation (501–700) or scripts/evaluate.py (from 1001).
CHOOSING_SEEDS = (701, 702, 703, 704, 705)
CHECKED_PROMPTS = 64


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A variant. changes: the fields of fast_grpo.GrpoSettings that differ from the default; None for no training."""

    name: str
    what: str
    changes: dict[str, Any] | None
    group: str = "decision"


def _variant(group: str, fixed: dict[str, Any], name: str, what: str, **changes: Any) -> Variant:
    return Variant(name=name, what=what, changes=fixed | changes, group=group)


_one = partial(_variant, "decision", REFERENCE)
_demo = partial(_variant, "demo", {})
_stretch = partial(_variant, "stretch", {})


def _whole(name: str, what: str, exact: float, embedded: float) -> Variant:
    reward = {"format": {"exact": exact, "embedded": embedded, "invalid": -1.0}}
    return _variant("format", REFERENCE, name, what, whole_answers=True, reward=reward)


VARIANTS = (
    Variant(name=START, what="the start, without GRPO", changes=None),
    _one("reference", "128 prompts × 4 answers, std, balanced, KL 0.3, T 1"),
    _one("std_off", "advantages not divided by the group's std", normalise_std=False),
    _one(
        "sign_std_off",
        "traffic score ±1, not divided by std",
        normalise_std=False,
        reward={"normalisation": "sign"},
    ),
    _one(
        "clipped_std_off",
        "traffic score saving / 60 veh·s cut at ±1, not divided by std",
        normalise_std=False,
        reward={"normalisation": "clipped"},
    ),
    _one("ties_kept", "states whose answers cost the same stay", drop_within_veh_s=None),
    _one("near_ties_dropped", "states with a gap of at most 5 veh·s left out", drop_within_veh_s=5.0),
    _one("gap_weighted", "states drawn in proportion to their relative gap", weigh_by_gap=True),
    _one("filter_groups", "groups of equal scores replaced (DAPO)", filter_groups=True),
    _one("unbalanced", "states as they come, two of three better with no", balance=False),
    _one("kl_0", "no KL loss", kl=0.0),
    _one("kl_0.1", "KL loss of weight 0.1", kl=0.1),
    _one("temperature_0.7", "sampled at temperature 0.7", temperature=0.7),
    _one("temperature_1.3", "sampled at temperature 1.3", temperature=1.3),
    _one("2_answers", "128 prompts × 2 answers", rollout_n=2),
    _one("8_answers", "128 prompts × 8 answers", rollout_n=8),
    _one("256x2", "256 prompts × 2 answers: as many answers as the reference", batch_prompts=256, rollout_n=2),
    _one("64x8", "64 prompts × 8 answers: as many answers", batch_prompts=64, rollout_n=8),
    _one("32x16", "32 prompts × 16 answers: as many answers", batch_prompts=32, rollout_n=16),
    _one("whole_answers", "the reference, with every token of an answer sampled", whole_answers=True),
    _demo("demo", "as scripts/train_grpo.sh trains its tiny model: states as they come, not divided by std"),
    _demo("demo_balanced", "balanced states", balance=True),
    _demo("demo_balanced_std", "balanced states, divided by the group's std", balance=True, normalise_std=True),
    _stretch("1_decision", "128 prompts × 4 answers of one decision, as `demo`"),
    _stretch("2_decisions", "64 prompts × 4 answers of two: as many decisions", decisions=2, batch_prompts=64),
    _stretch("4_decisions", "32 prompts × 4 answers of four: as many decisions", decisions=4, batch_prompts=32),
    _stretch("1_decision_std", "one decision, divided by the group's std", normalise_std=True),
    _stretch("1_decision_kl_0.05", "one decision, KL loss of weight 0.05", kl=0.05),
    _stretch("4_decisions_kl_0.05", "four decisions, KL loss of weight 0.05", kl=0.05, decisions=4, batch_prompts=32),
    _stretch("4_decisions_std", "four decisions, divided by std", normalise_std=True, decisions=4, batch_prompts=32),
    _whole("format_graded", "exact 0.1, embedded 0.05, unreadable −1", 0.1, 0.05),
    _whole("format_flat", "exact 0, embedded 0, unreadable −1", 0.0, 0.0),
    _whole("format_steep", "exact 0.5, embedded 0.25, unreadable −1", 0.5, 0.25),
)


def chosen_variants(names: Sequence[str]) -> list[Variant]:
    """The variants of these names. The name of a group stands for all its variants. Raises ConfigError."""
    known = {variant.name: variant for variant in VARIANTS}
    groups = {variant.group for variant in VARIANTS}
    chosen: dict[str, Variant] = {}
    for name in names:
        if name in groups:
            chosen.update({v.name: v for v in VARIANTS if v.group == name})
        elif name in known:
            chosen[name] = known[name]
        else:
            meant = did_you_mean(name, [*groups, *known])
            raise ConfigError(
                f"--variants {name!r} is unknown: {meant}choose from {', '.join([*sorted(groups), *known])}"
            )
    return list(chosen.values())


def closed_loop_jobs(scenario: Scenario, seeds: Sequence[int], folder: Path, name: str) -> list[EpisodeJob]:
    """One episode (an hour) per seed, all of one controller. Builds the net and the demands that are missing."""
    net_file = folder / f"{scenario.name}.net.xml"
    build_net(scenario, net_file)
    jobs = []
    for seed in seeds:
        route_file = folder / f"seed{seed}.rou.xml"
        build_demand(scenario, net_file, seed, route_file)
        jobs.append(
            EpisodeJob(
                scenario=scenario.name,
                controller=name,
                kind=LANGUAGE_MODEL,
                seed=seed,
                fingerprint="",
                files=SumoFiles(net_file=net_file, route_files=(route_file,), seed=seed),
                end_s=scenario.duration_s,
                warm_up_s=0,
                signals=SignalSettings(timing=scenario.timing),
                lookahead=OutcomeSettings(),
            )
        )
    return jobs


def run_closed_loop(jobs: Sequence[EpisodeJob], ask: Ask) -> dict[str, dict[str, float]]:
    """Run the episodes. Returns mean_queue_veh, waiting_time_s and invalid_answers by seed."""
    keys = ("mean_queue_veh", "waiting_time_s", "invalid_answers")
    records = run_jobs(jobs, len(jobs), ask)
    found = {str(record["seed"]): {key: float(record[key]) for key in keys} for record in records}
    return dict(sorted(found.items()))


@dataclass(frozen=True, kw_only=True)
class Study:
    """The settings that are the same in all runs."""

    data: Path
    start: Path
    scenario: Scenario
    hours: tuple[int, ...]
    out: Path
    steps: int

    @cached_property
    def _digest(self) -> str:
        """A digest of everything that all runs share and that decides their results."""
        from fast_grpo import ARITHMETIC_VERSION

        reward = load_settings()
        what = {
            "steps": self.steps,
            "hours": self.hours,
            "scenario": self.scenario.model_dump(mode="json"),
            "data": [sha256_of(self.data / name) for name in ("train.parquet", "val.parquet")],
            "start": [sha256_of(path) for path in sorted(self.start.glob("*.safetensors"))],
            "reward": [
                reward.normalisation,
                reward.clipped_scale_veh_s,
                reward.tie_threshold_veh_s,
                [reward.format.exact, reward.format.embedded, reward.format.invalid],
                [reward.weights.traffic, reward.weights.format],
            ],
            "arithmetic_version": ARITHMETIC_VERSION,
            "prompt_version": PROMPT_VERSION,
            "sumo": installed_sumo_version(),
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def fingerprint(self, variant: Variant, seed: int) -> str:
        """A digest of everything that decides a run's result. A stored run with another fingerprint is not used."""
        text = json.dumps([self._digest, variant.changes, seed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Runner:
    """Does the runs one after the other, and prepares once what they share."""

    def __init__(self, study: Study) -> None:
        import torch

        from fast_grpo import Policy, load_states

        # A pass of a tiny model ends before a second thread could help, and one thread makes a run repeatable.
        torch.set_num_threads(1)
        self._study = study
        self._states = load_states(study.data / "train.parquet")
        self._unseen = load_states(study.data / "val.parquet")
        self._start = start = Policy(study.start, rank=1, alpha=1, seed=0)
        rows = start.prompt_tokens([state.prompt for state in self._states])
        self._start_logits = start.decision_logits([row + start.shape.before for row in rows])
        self.start_certainty = start.certainty([state.prompt for state in self._unseen])

    def run(self, variant: Variant, seed: int) -> dict[str, Any]:
        from fast_grpo import GrpoSettings, train

        begin = time.monotonic()
        scenario = self._study.scenario
        folder = self._study.out / "scenarios" / scenario.name
        jobs = closed_loop_jobs(scenario, self._study.hours, folder, variant.name)
        if variant.changes is None:
            hours = run_closed_loop(jobs, ask_function(self._start.answers))
            return {"hours": hours, "metrics": {}, "train_s": 0.0, "wall_s": round(time.monotonic() - begin, 1)}
        settings = GrpoSettings(**{"steps": self._study.steps, **variant.changes})
        trained: TrainedPolicy = train(
            self._study.start,
            self._states,
            settings,
            seed=seed,
            start_logits=None if settings.whole_answers else self._start_logits,
        )
        train_s = time.monotonic() - begin
        metrics = trained.metrics | self._on_unseen_states(trained)
        hours = run_closed_loop(jobs, self._ask(trained, whole=settings.whole_answers))
        return {
            "hours": hours,
            "metrics": {name: round(value, 4) for name, value in metrics.items()},
            "settings": asdict(settings),
            "train_s": round(train_s, 1),
            "wall_s": round(time.monotonic() - begin, 1),
        }

    def _on_unseen_states(self, trained: TrainedPolicy) -> dict[str, float]:
        """The greedy policy on the validation states: its share of yes, of better answers, and of the gap saved."""
        from tsc.junction.decision import Decision, parse_answer

        prompts = [state.prompt for state in self._unseen]
        decisions = [parse_answer(text).decision for text in trained.policy.decide(prompts)]
        labelled = [(d, s.outcomes) for d, s in zip(decisions, self._unseen, strict=True) if s.outcomes.better()]
        gap = sum(abs(outcomes.saving(Decision.YES)) for _, outcomes in labelled)
        return {
            "greedy_yes": sum(d is Decision.YES for d in decisions) / len(decisions),
            "greedy_better": sum(d is outcomes.better() for d, outcomes in labelled) / len(labelled),
            "greedy_captured": sum(outcomes.saving(d) for d, outcomes in labelled if d) / gap,
            "certainty": trained.policy.certainty(prompts),
        }

    def _ask(self, trained: TrainedPolicy, *, whole: bool) -> Ask:
        """The policy as a model to evaluate.

        Unless `whole`, only the decision token is computed, which takes a fifth of the time. Its answers are first
        checked against greedy generation.
        """
        if whole:
            return ask_function(trained.policy.answers)
        prompts: list[list[dict[str, str]]] = [state.prompt for state in self._unseen[:CHECKED_PROMPTS]]
        if trained.policy.decide(prompts) != trained.policy.answers(prompts):
            raise TscError(
                "the greedy answers of a trained model differ from those of its decision token, because it is not "
                "certain enough of the format: train the start for longer"
            )
        return ask_function(trained.policy.decide)


def queue_by_run(runs: Sequence[dict[str, Any]], scenario: str) -> list[dict[str, Any]]:
    """One record per run for tsc.evaluation.statistics. `seed` is the training seed; the queue is the hours' mean."""
    return [
        {
            "scenario": scenario,
            "controller": run["variant"],
            "seed": run["seed"],
            "mean_queue_veh": sum(hour["mean_queue_veh"] for hour in run["hours"].values()) / len(run["hours"]),
        }
        for run in runs
    ]


def columns_of(group: str) -> dict[str, str]:
    """The metrics of a run in the table's last columns."""
    if group == "format":
        return {"exact at start": "exact_at_start", "exact at end": "exact_at_end", "greedy better": "greedy_better"}
    return {"greedy yes": "greedy_yes", "greedy better": "greedy_better"}


def result_table(group: str, runs: Sequence[dict[str, Any]], scenario: str) -> tuple[str, list[dict[str, Any]]]:
    """A Markdown table of one group's variants, and its rows for --json: one for each variant that has runs."""
    reference = REFERENCES[group]
    records = queue_by_run(runs, scenario)
    header = ["variant", "what", "seeds", "mean queue [veh]", "worst", f"minus {reference}, paired [95 %]"]
    header += columns_of(group)
    lines = ["| " + " | ".join(header) + " |", "|---|---|" + "--:|" * (len(header) - 2)]
    rows = []
    for variant in VARIANTS:
        ours = [run for run in runs if run["variant"] == variant.name]
        if variant.group != group or not ours:
            continue
        queues = [r["mean_queue_veh"] for r in records if r["controller"] == variant.name]
        mean, low, high = interval95(queues)
        pairs = {r["seed"] for r in records if r["controller"] == reference} & {run["seed"] for run in ours}
        difference = None
        if variant.name not in (START, reference) and len(pairs) > 1:
            difference = paired_difference(records, scenario, "mean_queue_veh", variant.name, reference)
        cells = [
            variant.name,
            variant.what,
            str(len(ours)),
            f"{mean:.3f} ± {(high - low) / 2:.3f}" if len(queues) > 1 else f"{mean:.3f}",
            f"{max(queues):.3f}",
            "{:+.3f} [{:+.3f}, {:+.3f}]".format(*difference) if difference else "",
        ]
        for metric in columns_of(group).values():
            values = [run["metrics"][metric] for run in ours if metric in run["metrics"]]
            cells.append(f"{100 * sum(values) / len(values):.0f} %" if values else "")
        lines.append("| " + " | ".join(cells) + " |")
        beside = None if difference is None else mean - difference[0]
        more = {"seeds": [run["seed"] for run in ours], "ci95": [low, high], "paired_difference": difference}
        rows.append(json_row(f"mean queue, {variant.name}", mean, beside, **more))
    return "\n".join(lines), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet (--ties keep), val.parquet")
    parser.add_argument("--start", type=Path, required=True, help="model to train from, such as runs/demo/sft/merged")
    parser.add_argument(
        "--scenario",
        type=Path,
        default=REPO_ROOT / "configs/scenarios/four_way.yaml",
        help="scenario of the closed loop",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=["decision"],
        metavar="NAME",
        help="variants, or groups: decision, format, demo, stretch (default: decision)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="training seeds of each variant (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="training steps of each run (default: %(default)s)")
    parser.add_argument(
        "--hours",
        type=int,
        nargs="+",
        default=list(CHOOSING_SEEDS),
        metavar="SEED",
        help="demand seeds of the closed loop (default: 701 to 705)",
    )
    parser.add_argument("--json", type=Path, help="write the table's rows to this file, too")
    arguments = parser.parse_args()
    for name in ("seeds", "steps"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} is {getattr(arguments, name)}: choose at least 1")
    variants = chosen_variants(arguments.variants)
    study = Study(
        data=arguments.data,
        start=arguments.start,
        scenario=load_scenario(arguments.scenario),
        hours=tuple(arguments.hours),
        out=arguments.out.resolve(),
        steps=arguments.steps,
    )
    for file in (study.data / "train.parquet", study.data / "val.parquet", study.start / "config.json"):
        if not file.is_file():
            raise ConfigError(f"{file} does not exist: see the example in --help")

    # The order is seed by seed: a study that is stopped early has compared all variants on the seeds that it has.
    wanted = {
        study.fingerprint(variant, seed): (variant, seed)
        for seed in range(1, arguments.seeds + 1)
        for variant in variants
        if variant.changes is not None or seed == 1
    }
    with folder_lock(study.out, "the study"):
        file = EpisodesFile(study.out / "runs.jsonl", wanted)
        if file.episodes:
            print(f"{len(file.episodes)} of {len(wanted)} runs are there already")
        done = {run["fingerprint"] for run in file.episodes}
        missing = {name: what for name, what in wanted.items() if name not in done}
        if missing:
            runner = Runner(study)
            print(f"the start's answers are exact with a probability of at least {runner.start_certainty:.3f}")
        for fingerprint, (variant, seed) in tqdm(missing.items(), unit=" runs", disable=None):
            run = {"variant": variant.name, "seed": seed, "fingerprint": fingerprint, **runner.run(variant, seed)}
            file.append(run)
            queue = queue_by_run([run], study.scenario.name)[0]["mean_queue_veh"]
            print(f"{variant.name}, seed {seed}: mean queue {queue:.3f} veh ({run['wall_s']:.0f} s)", flush=True)
        groups = dict.fromkeys(variant.group for variant in variants)
        tables, rows = zip(*(result_table(each, file.episodes, study.scenario.name) for each in groups), strict=True)
        text = "\n\n".join(tables)
        write_atomically(study.out / "results.md", (text + "\n").encode())
        for path in filter(None, (study.out / "results.json", arguments.json)):
            write_atomically(path, (json.dumps(list(chain.from_iterable(rows)), indent=1) + "\n").encode())
    print(f"\n{study.scenario.name}, hours {', '.join(map(str, study.hours))}, {study.steps} steps a run\n\n{text}")


if __name__ == "__main__":
    run_main(main)
