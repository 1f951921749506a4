"""Show one junction under one or two controllers, side by side on the same traffic: in sumo-gui, a page or a film.

Examples:
    bash scripts/watch.sh --scenario configs/scenarios/four_way.yaml --controllers static max_pressure
    bash scripts/watch.sh --scenario resco:cologne1 --controllers max_pressure llm:grpo=runs/demo/grpo/merged
    bash scripts/watch.sh --scenario configs/scenarios/four_way.yaml --controllers max_pressure --out junction.gif

Without --out, and where there is a display ($DISPLAY), sumo-gui opens, with a window for each controller, both at the
same second. Otherwise a file is made. A page (.html) needs no network and no other file. At each decision of the
junction, it also shows what both answers lead to: each is continued in a copy of the simulation, and judged as the
reward judges it. A film (.gif, or .mp4 with ffmpeg) shows the junction alone, five times as fast.

A scenario or a controller is named as for scripts/evaluate.py. Without options, a page shows the first 10 minutes, and
a film the first one: --warm-up is what passes before, --shown how long it is. docs/player.md explains the page.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsc.controllers.registry import CONTROLLERS
from tsc.errors import ConfigError, NotApplicable, UnknownJunction, did_you_mean, run_main
from tsc.files import REPO_ROOT, install_command
from tsc.junction.prompt import PROMPT_HELP, prompt_maker
from tsc.scenarios.by_word import WORDS_HELP, traffic_scenarios
from tsc.scenarios.command_line import add_scenario_options, at_least, given_options

if TYPE_CHECKING:
    from tsc.controllers.signal_plans import PlannedSignals
    from tsc.episodes.runner import EpisodeJob

CONFIGS = REPO_ROOT / "configs"

SHOWN_S = 600
FILMED_S = 60
PAGE_SUFFIX, FILM_SUFFIXES = ".html", (".gif", ".mp4")
MOST_SHOWN_S = 7200  # a page of a longer time would be too large for a browser
MOST_CONTROLLERS = 2


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", required=True, metavar="SCENARIO", help=WORDS_HELP)
    parser.add_argument(
        "--controllers",
        nargs="+",
        required=True,
        metavar="NAME",
        help=f"one or two: {', '.join(CONTROLLERS)}, llm:NAME=…, student:NAME=FILE",
    )
    parser.add_argument("--seed", type=at_least(0), metavar="N", help="the traffic (default: evaluation's first seed)")
    parser.add_argument("--junction", metavar="ID", help="the signal to show (default: that with the longest queue)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="FILE.html, FILE.gif or FILE.mp4 (without a display: runs/watch/SCENARIO-seedN.html)",
    )
    parser.add_argument("--base-url", metavar="URL", help="OpenAI-compatible server of the language models")
    parser.add_argument("--prompt", metavar="NAME", help=f"what makes the models' prompts: {PROMPT_HELP}")
    parser.add_argument("--config", type=Path, default=CONFIGS / "evaluation.yaml", help="settings (%(default)s)")
    parser.add_argument("--reward", type=Path, default=CONFIGS / "reward.yaml", help="how decisions are judged")
    add_scenario_options(parser, source="--config's or the scenario's own")
    parser.add_argument("--warm-up", type=at_least(0), metavar="S", dest="warm_up_s", help="not shown, s")
    parser.add_argument(
        "--shown",
        type=at_least(1),
        metavar="S",
        dest="shown_s",
        help=f"show so long, s (default: {SHOWN_S}, of a film {FILMED_S}; with --duration or --end, all of it)",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="tsc-watch-") as scratch:
        watch(arguments, Path(scratch))


def watch(arguments: argparse.Namespace, scratch: Path) -> None:
    """Record the episodes and write the page. What is built on the way goes into `scratch`."""
    from tqdm import tqdm

    from recipes.serving.controllers import chosen_controllers, reported_controller, run_with_models
    from recipes.serving.model_choice import ModelChoice, answering
    from tsc.controllers.opening import opened
    from tsc.cost.outcome import load_outcome_settings
    from tsc.episodes.recording import View
    from tsc.episodes.runner import EpisodeJob
    from tsc.evaluation.settings import load_evaluation_settings
    from tsc.player.junction_map import junction_map
    from tsc.player.page import Shown, write_page
    from tsc.player.sumo_gui import check_kinds, play
    from tsc.rules.student import StudentFile

    changes = given_options(arguments)
    if arguments.warm_up_s is not None:
        changes["warm_up_s"] = arguments.warm_up_s
    if arguments.prompt is not None:
        changes["prompt"] = arguments.prompt
    settings = load_evaluation_settings(arguments.config).changed(changes)
    prompt_maker(settings.llm.prompt)
    load_outcome_settings(arguments.reward)  # a wrong file is told before a net is built
    is_film = arguments.out is not None and arguments.out.suffix in FILM_SUFFIXES
    if is_film:
        if importlib.util.find_spec("matplotlib") is None:
            raise ConfigError(f"a film needs the package matplotlib, which is missing: {install_command('figures')}")
        from tsc.player.film import check_film, write_film

        check_film(arguments.out)
    elif arguments.out is not None and arguments.out.suffix != PAGE_SUFFIX:
        raise ConfigError(f"--out {arguments.out}: the name ends in one of {PAGE_SUFFIX} {' '.join(FILM_SUFFIXES)}")
    if len(arguments.controllers) > MOST_CONTROLLERS:
        raise ConfigError(
            f"--controllers has {len(arguments.controllers)} words: a page shows one or two controllers side by side"
        )
    chosen = chosen_controllers(arguments.controllers, arguments.base_url)
    controllers = [reported_controller(name, model) for name, model in chosen.items()]
    in_sumo_gui = arguments.out is None and bool(os.environ.get("DISPLAY"))
    if in_sumo_gui:
        check_kinds({each.name: each.kind for each in controllers})
    scenarios = traffic_scenarios([arguments.scenario], scratch / "scenarios", settings.of_scenarios)
    if len(scenarios) > 1:
        raise ConfigError(
            f"{arguments.scenario} is a family of {len(scenarios)} scenarios: a page shows one scenario, so name the "
            "file of one"
        )
    (scenario,) = scenarios
    from_s = scenario.begin_s + settings.warm_up_s
    shown_s = arguments.shown_s
    if shown_s is None:
        shown_s = scenario.duration_s if {"duration_s", "end_s"} & changes.keys() else FILMED_S if is_film else SHOWN_S
    to_s = min(scenario.end_s, from_s + shown_s)
    if not 0 < to_s - from_s <= MOST_SHOWN_S:
        raise ConfigError(
            f"scenario {scenario.name} would be shown from {from_s} to {to_s} s: choose 1 to {MOST_SHOWN_S} s after "
            "the warm-up (--warm-up, --shown, --duration, --end)"
        )
    planned = opened(scenario, scratch / "signals")
    check_junction(arguments.junction, planned, scenario.name)
    seed = scenario.episode_seed("evaluation", 0) if arguments.seed is None else arguments.seed
    judged = load_outcome_settings(arguments.reward, scenario.name).without_terms()
    of_all = EpisodeJob(
        scenario=scenario.name,
        controller="static",
        kind="static",
        seed=seed,
        fingerprint="",  # nothing is kept
        files=scenario.files(seed),
        end_s=to_s,
        warm_up_s=settings.warm_up_s,
        signals=scenario.signals,
        lookahead=judged,
        prompt=settings.llm.prompt,
    )
    junction_id = arguments.junction or busiest_junction(of_all, planned, scratch)
    shown_map = junction_map(of_all.files.net_file, junction_id)
    view = View(junction_id=junction_id, box=shown_map.box, from_s=from_s)
    jobs = [
        replace(
            of_all,
            controller=each.name,
            kind=each.kind,
            student=given if isinstance(given := chosen[each.name], StudentFile) else None,
            program_file=given if isinstance(given, Path) else None,
            view=view,
        )
        for each in controllers
    ]
    models = {name: model for name, model in chosen.items() if isinstance(model, ModelChoice)}
    if in_sumo_gui:
        print(
            f"{scenario.name}, seed {seed}, until {to_s} s, in sumo-gui, from left to right: {', '.join(chosen)}",
            flush=True,
        )
        with ExitStack() as stack:
            asks = {
                name: stack.enter_context(
                    answering(
                        model,
                        max_answer_tokens=settings.llm.max_answer_tokens,
                        time_limit_s=settings.llm.decision_time_limit_s,
                        log_file=REPO_ROOT / "runs" / "watch" / "vllm.log",
                    )
                ).ask
                for name, model in models.items()
            }
            play(jobs, asks, shown_map.box, scratch)
        return
    path = arguments.out or REPO_ROOT / "runs" / "watch" / f"{scenario.name}-seed{seed}.html"
    print(
        f"{scenario.name}, seed {seed}, junction {junction_id}, {from_s} to {to_s} s: {', '.join(chosen)}", flush=True
    )
    records = {}
    with tqdm(total=len(jobs), unit=" episodes", disable=None) as bar:
        log_file = path.parent / "vllm.log"
        for record in run_with_models(
            jobs, models, settings.llm, workers=multiprocessing.cpu_count(), log_file=log_file
        ):
            if "not_applicable" in record:
                raise NotApplicable(
                    f"controller {record['controller']!r} cannot run {scenario.name}: {record['not_applicable']}"
                )
            records[record["controller"]] = record
            bar.update()
    shown = [
        Shown(controller=each.name, description=each.description, episode=records[each.name]["recorded"])
        for each in controllers
    ]
    what: dict[str, Any] = {
        "scenario": scenario.name, "junction_id": junction_id, "from_s": from_s, "junction_map": shown_map
    }  # fmt: skip
    if is_film:
        write_film(path, shown, **what)
    else:
        write_page(path, shown, seed=seed, settings=judged, **what)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)" + ("" if is_film else ": open it in a browser"))


def check_junction(junction_id: str | None, planned: PlannedSignals, scenario: str) -> None:
    """Raises UnknownJunction unless controllers run it."""
    if junction_id is None or junction_id in planned.plans:
        return
    if junction_id in planned.skipped:
        raise UnknownJunction(f"junction {junction_id!r} of {scenario} {planned.skipped[junction_id]}")
    raise UnknownJunction(
        f"junction {junction_id!r} is not a signal of {scenario}: {did_you_mean(junction_id, planned.plans)}choose one "
        f"of {', '.join(planned.plans)}"
    )


def busiest_junction(job: EpisodeJob, planned: PlannedSignals, scratch: Path) -> str:
    """The junction with the longest mean queue under the net's own plan. job: an episode of `static`."""
    from tsc.episodes.runner import run_jobs
    from tsc.episodes.trace import load_trace

    if len(planned.plans) == 1:
        return next(iter(planned.plans))
    trace_file = scratch / "static.npz"
    list(run_jobs([replace(job, trace_file=trace_file)], 1))
    trace = load_trace(trace_file)
    queue_veh = {name: trace.queue_on_veh(trace.programs[name]["lanes"]).mean() for name in planned.plans}
    return max(queue_veh, key=queue_veh.__getitem__)


if __name__ == "__main__":
    run_main(main)
