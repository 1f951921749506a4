"""Compare controllers and language models in closed loop, on demand that training never saw.

Examples:
    python scripts/evaluate.py --scenarios configs/scenarios/four_way.yaml --out runs/eval/mine --seeds 10 \\
        --controllers static actuated max_pressure lookahead llm:grpo=runs/demo/grpo/merged
    python scripts/evaluate.py --scenarios mine.sumocfg resco:cologne1 sumo:rilsa1 --out runs/eval/nets \\
        --controllers static max_pressure llm:mine=Qwen/Qwen2.5-0.5B-Instruct --base-url http://localhost:8000/v1

A word of --scenarios is a scenario or family file, a .sumocfg file, resco:NAME (needs the package sumo-rl) or
sumo:NAME. A language model is llm:NAME=FOLDER, llm:NAME=FOLDER+ADAPTER or llm:NAME=ADAPTER. vLLM serves it as long as
it is needed. With --base-url, llm:NAME=MODEL is a model of that server (key from OPENAI_API_KEY). A student that
scripts/fit_student.py has made is student:NAME=FILE, a program of scripts/export_program.py program:NAME=FILE.
On each scenario, the others are compared with the classical controller that is best on validation seeds, or with the
controller that --reference names. --protocol resco runs resco: scenarios as RESCO does, and puts its published delays
beside ours.
Writes OUT/episodes.jsonl (one line per episode; a second call continues), reference_episodes.jsonl (those that chose
the reference), summary.csv, results.json, figures/*.png and report.html. docs/evaluation.md defines the metrics and the
statistics.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsc.controllers.registry import CONTROLLERS
from tsc.errors import ConfigError, run_main
from tsc.evaluation.reference import BEST_CLASSICAL, best_of, reference_candidates
from tsc.files import REPO_ROOT, folder_lock, this_command, without_password
from tsc.junction.prompt import PROMPT_HELP, prompt_maker, prompt_version
from tsc.junction.signal_control import skipped_lines
from tsc.scenarios.command_line import add_scenario_options, at_least, given_options, words_of

if TYPE_CHECKING:
    from recipes.serving.model_choice import ModelChoice
    from tsc.controllers.signal_plans import PlannedSignals
    from tsc.episodes.runner import EpisodeJob
    from tsc.evaluation.episodes_file import EpisodesFile
    from tsc.evaluation.settings import EvaluationSettings
    from tsc.evaluation.watch_command import WatchCommand
    from tsc.scenarios.traffic_scenario import TrafficScenario

# Other modules are imported where they are used: every worker process imports this file, and needs little of it.

CONFIGS = REPO_ROOT / "configs"
# junctions of a scenario that the report draws
NUM_SKETCHES = 4


def warnings_of(
    model: ModelChoice, scenarios: Sequence[TrafficScenario], signals: Mapping[str, PlannedSignals], prompt: str
) -> list[str]:
    """What the scenarios ask that the model was not trained on, if its card says that; one line for equal differences.

    prompt: the name of the prompt maker. Raises ConfigError for a broken card.
    """
    from recipes.models.model_card import warning

    seen = model.seen()
    if seen is None:
        return []
    asked_by: dict[tuple[str, ...], list[str]] = {}
    for scenario in scenarios:
        plans = signals[scenario.name].plans.values()
        differences = seen.differences(
            prompt_version=prompt_version(prompt),
            num_stages=[len(plan.held_phases) for plan in plans],
            timings=[scenario.timing.within(bounds) for plan in plans for bounds in plan.green_bounds or (None,)],
        )
        if differences:
            asked_by.setdefault(tuple(differences), []).append(scenario.name)
    return [warning(model.name, ", ".join(names), differences) for differences, names in asked_by.items()]


def run_missing(
    jobs: Sequence[EpisodeJob],
    file: EpisodesFile,
    models: Mapping[str, ModelChoice],
    settings: EvaluationSettings,
    *,
    what: str,
    workers: int,
    out: Path,
) -> None:
    """Run the episodes that `file` does not have. what: names the episodes in what is printed."""
    from tqdm import tqdm

    from recipes.serving.controllers import run_with_models

    done = {record["fingerprint"] for record in file.episodes}
    missing = [job for job in jobs if job.fingerprint not in done]
    if done:
        print(f"{len(done)} of {len(jobs)} {what} are there already", flush=True)
    with tqdm(total=len(missing), unit=f" {what}", disable=None) as bar:
        for record in run_with_models(missing, models, settings.llm, workers=workers, log_file=out / "vllm.log"):
            file.append(record)
            bar.update()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="+", required=True, metavar="SCENARIO", help="see above")
    parser.add_argument(
        "--controllers",
        nargs="+",
        required=True,
        metavar="NAME",
        help=f"{', '.join(CONTROLLERS)}, llm:NAME=…, student:NAME=FILE, program:NAME=FILE",
    )
    parser.add_argument(
        "--seeds", type=at_least(1), default=5, metavar="N", help="episodes of each (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=at_least(1), default=multiprocessing.cpu_count(), help="episodes at once (default: cores)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for episodes and results")
    parser.add_argument("--base-url", metavar="URL", help="OpenAI-compatible server of the language models")
    parser.add_argument(
        "--reference", metavar="NAME", help=f"controller to compare with, or {BEST_CLASSICAL} (default: --config's)"
    )
    parser.add_argument("--prompt", metavar="NAME", help=f"what makes the models' prompts: {PROMPT_HELP}")
    parser.add_argument("--config", type=Path, default=CONFIGS / "evaluation.yaml", help="settings (%(default)s)")
    parser.add_argument("--reward", type=Path, default=CONFIGS / "reward.yaml", help="how lookahead judges decisions")
    parser.add_argument(
        "--protocol",
        choices=("resco",),
        help="conditions of a benchmark, with its published results: demand, simulated time, greens and yellow "
        "(%(choices)s; wins over --config)",
    )
    add_scenario_options(parser, source="--config's or the scenario's own")
    parser.add_argument("--warm-up", type=at_least(0), metavar="S", dest="warm_up_s", help="not measured, s")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    with folder_lock(arguments.out, "the evaluation"):
        evaluate(arguments)


def evaluate(arguments: argparse.Namespace) -> None:
    """Run what is missing in `arguments.out`, whose lock the caller holds, and write the results."""
    from recipes.serving.controllers import chosen_controllers, reported_controller
    from recipes.serving.model_choice import ModelChoice
    from tsc.controllers.opening import opened
    from tsc.cost.measures import unit_of
    from tsc.cost.outcome import load_outcome_settings
    from tsc.evaluation.episodes_file import EpisodesFile
    from tsc.evaluation.plan import Contestant, plan_jobs
    from tsc.evaluation.protocol import load_protocol
    from tsc.evaluation.reported import ReportedScenario
    from tsc.evaluation.settings import load_evaluation_settings
    from tsc.rules.student import StudentFile
    from tsc.scenarios.by_word import traffic_scenarios

    settings = load_evaluation_settings(arguments.config)
    changes = given_options(arguments)
    if arguments.warm_up_s is not None:
        changes["warm_up_s"] = arguments.warm_up_s
    protocol = None
    if arguments.protocol is not None:
        protocol = load_protocol(CONFIGS / "protocols" / f"{arguments.protocol}.yaml")
        protocol.check(arguments.scenarios)
        if changes:
            raise ConfigError(
                "--protocol resco itself sets demand, simulated time and signals: leave out --begin, --end, "
                "--duration, --warm-up, --teleport, --junctions, --green-bounds and --demand-as-filed"
            )
        settings = protocol.settings(settings)
    if arguments.prompt is not None:
        changes["prompt"] = arguments.prompt
    if arguments.reference is not None:
        changes["reference"] = arguments.reference
    settings = settings.changed(changes)
    prompt_maker(settings.llm.prompt)
    load_outcome_settings(arguments.reward)  # a wrong file is told before a net is built
    chosen = chosen_controllers(arguments.controllers, arguments.base_url)
    models = {name: model for name, model in chosen.items() if isinstance(model, ModelChoice)}
    candidates = reference_candidates(settings.reference, list(chosen))
    out = arguments.out.resolve()
    scenarios = traffic_scenarios(arguments.scenarios, out / "scenarios", settings.of_scenarios)
    lookahead = {scenario.name: load_outcome_settings(arguments.reward, scenario.name) for scenario in scenarios}
    if protocol is not None:
        scenarios = [protocol.scenario(scenario) for scenario in scenarios]
    with tempfile.TemporaryDirectory(prefix="tsc-signals-") as scratch:
        signals = {scenario.name: opened(scenario, Path(scratch, scenario.name)) for scenario in scenarios}
    for name, planned in signals.items():
        for line in skipped_lines(planned.skipped):
            print(f"{name}: {line}", flush=True)

    for model in models.values():
        for line in warnings_of(model, scenarios, signals, settings.llm.prompt):
            print(line, file=sys.stderr, flush=True)

    controllers = [reported_controller(name, model) for name, model in chosen.items()]
    contestants = [
        Contestant(
            name=each.name,
            kind=each.kind,
            model=models[each.name].identity() if each.name in models else None,
            student=given if isinstance(given := chosen[each.name], StudentFile) else None,
            program_file=given if isinstance(given, Path) else None,
        )
        for each in controllers
    ]
    plan = partial(plan_jobs, scenarios, out=out, settings=settings, lookahead=lookahead)
    jobs = plan(contestants, arguments.seeds)
    run = partial(run_missing, models=models, settings=settings, workers=arguments.workers, out=out)
    choice: list[dict[str, Any]] = []
    if len(candidates) > 1:
        among = [contestant for contestant in contestants if contestant.name in candidates]
        choosing = plan(among, settings.reference_seeds, split="validation")
        chosen_file = EpisodesFile(out / "reference_episodes.jsonl", {job.fingerprint for job in choosing})
        run(choosing, chosen_file, what="episodes that choose the reference")
        choice = chosen_file.episodes
    file = EpisodesFile(out / "episodes.jsonl", {job.fingerprint for job in jobs})
    run(jobs, file, what="episodes")

    sketched = {scenario.name: sketches(scenario, signals[scenario.name], file.episodes) for scenario in scenarios}
    # importing pandas, scipy and matplotlib takes seconds; an evaluation with a fault ends before
    from tsc.evaluation.report import write_results

    reported = [
        ReportedScenario(
            name=scenario.name,
            note=scenario.note,
            begin_s=scenario.begin_s,
            end_s=scenario.end_s,
            warm_up_s=settings.warm_up_s,
            timing=scenario.timing,
            junctions=list(signals[scenario.name].plans),
            green_bounds=[bounds for plan in signals[scenario.name].plans.values() for bounds in plan.green_bounds],
            skipped=signals[scenario.name].skipped,
            reference=best_of(candidates, [record for record in choice if record["scenario"] == scenario.name]),
            not_applicable={
                record["controller"]: record["not_applicable"]
                for record in file.episodes
                if record["scenario"] == scenario.name and "not_applicable" in record
            },
            cost_unit=unit_of(lookahead[scenario.name].measure),
            sketches=sketched[scenario.name][0],
            approach_names=sketched[scenario.name][1],
        )
        for scenario in scenarios
    ]
    shown = settings.model_dump(mode="json")
    if protocol is not None:  # the table of the scenarios shows the greens
        shown = {"protocol": arguments.protocol, **shown}
        del shown["timing"], shown["green_bounds"]
    print(
        write_results(
            out,
            episodes=file.episodes,
            scenarios=reported,
            controllers=controllers,
            settings={**shown, "lookahead": {name: judged.as_dict() for name, judged in lookahead.items()}},
            command=this_command(),
            reference=settings.reference,
            protocol=protocol,
            watch=None if protocol is not None else watch_command(arguments, [each.name for each in scenarios], chosen),
        )
    )
    print(f"\nreport: {arguments.out / 'report.html'}")


def sketches(
    scenario: TrafficScenario, planned: PlannedSignals, episodes: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, bytes], dict[tuple[str, str], str]]:
    """Pictures of the junctions with the most traffic, and the names of the approaches of all junctions, by junction
    and edge. The letters in the names are those of the pictures."""
    from data_tools.inspection import approach_facts, stage_facts
    from data_tools.junction_pictures import Ground, stages_picture
    from tsc.sumo.signal_links import read_net, signal_links

    vehicles = dict.fromkeys(planned.plans, 0.0)
    for record in episodes:
        for approach in record.get("approaches") or () if record["scenario"] == scenario.name else ():
            vehicles[approach["junction"]] += approach["vehicles"]
    busiest = sorted(planned.plans, key=vehicles.__getitem__, reverse=True)[:NUM_SKETCHES]
    net = read_net(scenario.net_file)
    ground, links = Ground(net), signal_links(net)
    pictures, names = {}, {}
    for junction, plan in planned.plans.items():
        approaches = approach_facts(links[junction], net, {}, 1)
        for each in approaches:
            letter = f"{each['letter']}, " if each["letter"] else ""
            names[junction, each["edge"]] = f"{letter}from {each['from']} ({each['edge']})"
        if junction in busiest:
            facts = {"stages": stage_facts(planned, junction, links[junction]), "approaches": approaches}
            pictures[junction] = stages_picture(ground, facts, plan, links[junction])
    return pictures, names


def watch_command(
    arguments: argparse.Namespace, scenarios: Sequence[str], controllers: Collection[str]
) -> WatchCommand:
    """scenarios, controllers: the names that the words of the arguments stand for, in their order."""
    from tsc.evaluation.watch_command import WatchCommand

    options = words_of(arguments)
    for name, default in (("config", CONFIGS / "evaluation.yaml"), ("reward", CONFIGS / "reward.yaml")):
        if getattr(arguments, name) != default:
            options += [f"--{name}", str(getattr(arguments, name))]
    if arguments.prompt is not None:
        options += ["--prompt", arguments.prompt]
    if arguments.base_url is not None:
        options += ["--base-url", without_password(arguments.base_url)]
    words = arguments.scenarios
    return WatchCommand(
        # a family is one word for many scenarios
        scenarios=dict(zip(scenarios, words, strict=True)) if len(scenarios) == len(words) else {},
        controllers=dict(zip(controllers, arguments.controllers, strict=True)),
        options=options,
    )


if __name__ == "__main__":
    run_main(main)
