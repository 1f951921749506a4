"""Run the signals of a SUMO or sumo-gui that someone else started, over TraCI.

Examples:
    sumo-gui --net-file my.net.xml --route-files my.rou.xml --remote-port 8813 --start --delay 200 &
    python scripts/run_controller.py --port 8813 --controller max_pressure --verbose
    python scripts/run_controller.py --port 8813 --controller llm:mine=runs/demo/grpo/merged

A language model is llm:NAME=FOLDER, llm:NAME=FOLDER+ADAPTER or llm:NAME=ADAPTER; vLLM serves it during the run. With
--base-url, llm:NAME=MODEL is a model of that server, and llm is its only model (key from OPENAI_API_KEY).
This program steps the simulation by whole seconds. It ends at SUMO's --end, or without --end when no vehicle is left,
and on Ctrl-C. It then hands the signals back to their own programs. docs/run_controller.md says how to watch it, and
how to use it in another study.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING

from tsc.controllers.language_model import LanguageModelController
from tsc.controllers.registry import CONTROLLERS, LANGUAGE_MODEL, rule_controller
from tsc.controllers.static_copy import is_plain_static, static_copy
from tsc.cost.outcome import OutcomeSettings
from tsc.errors import (
    ConfigError,
    EndpointError,
    NotApplicable,
    ScenarioError,
    SimulationClosed,
    did_you_mean,
    run_main,
)
from tsc.evaluation.settings import LanguageModelSettings, load_evaluation_settings
from tsc.files import REPO_ROOT
from tsc.junction.decision import Decision
from tsc.junction.prompt import PROMPT_HELP, prompt_version
from tsc.junction.signal_control import SignalControl, nothing_to_control, read_signals, skipped_lines
from tsc.junction.signal_settings import SignalSettings
from tsc.junction.timing import Timing
from tsc.rules.controller import Controller
from tsc.sumo.attached import AttachedSimulation
from tsc.sumo.signal_program import SignalProgram

if TYPE_CHECKING:
    from recipes.serving.model_choice import ModelChoice

CONFIGS = REPO_ROOT / "configs"

# long enough to start SUMO and this program in one line of a shell
WAIT_FOR_SUMO_S = 10.0

ELSEWHERE = "compare with it in scripts/evaluate.py"
CANNOT_RUN_HERE = {
    "static": "without this program, the signals are static anyway",
    "lookahead": "it tries both answers in forks of the simulation, and a SUMO in another process cannot be forked: "
    f"{ELSEWHERE}",
}
BY_SUMO = f"SUMO itself switches by programs that it loads at its start: {ELSEWHERE}"
RULES = [name for name, kind in CONTROLLERS.items() if not kind.by_sumo and name not in CANNOT_RUN_HERE]


@contextmanager
def stop_request() -> Iterator[Event]:
    """A request that the first Ctrl-C or SIGTERM makes: it sets the event. The second one ends the program at once.

    The first one does not interrupt anything: SUMO has to answer the present call before it can take the signals back.
    """
    request = Event()

    def make(number: int, frame: FrameType | None) -> None:
        restore()  # first, so that no second signal interrupts the event, which would wait for itself
        request.set()
        print("stopping after this second; press Ctrl-C again to stop at once, and SUMO with it", flush=True)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, make) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        restore()


def model_named(word: str, base_url: str | None) -> ModelChoice | None:
    """The language model that --controller names, or None for a rule. Does not load the model.

    Raises ConfigError for a model that cannot be served, and for a rule that is unknown or cannot run someone else's
    SUMO.
    """
    if word.partition(":")[0] == LANGUAGE_MODEL:
        from recipes.serving.model_choice import checked, parse_model_choice

        return checked(parse_model_choice(word, base_url))
    if base_url is not None:
        raise ConfigError(f"--base-url is for language models, but controller {word!r} is not one: leave it out")
    if word in RULES:
        return None
    if word in CONTROLLERS:
        raise ConfigError(f"controller {word!r} cannot run here: {CANNOT_RUN_HERE.get(word, BY_SUMO)}")
    meant = did_you_mean(word, RULES)
    raise ConfigError(f"controller {word!r} is unknown: {meant}choose from {', '.join(RULES)}, llm:NAME=FOLDER")


@contextmanager
def controller_for(word: str, model: ModelChoice | None, settings: LanguageModelSettings) -> Iterator[Controller]:
    """The controller; a local model is served during the block. Raises ConfigError and EndpointError."""
    if model is None:
        yield rule_controller(word, seed=0, lookahead=OutcomeSettings())
        return
    from recipes.serving.model_choice import answering

    with answering(
        model,
        max_answer_tokens=settings.max_answer_tokens,
        time_limit_s=settings.decision_time_limit_s,
        log_file=Path("runs", "run_controller", f"vllm-{model.name}.log"),
    ) as endpoint:
        yield LanguageModelController(endpoint.ask, settings.prompt)


@dataclass(frozen=True, kw_only=True)
class SignalsToRun:
    """programs: of the junctions that are run, in the net's order. skipped: why not, of the others that were asked for.
    replaced: by junction, the program that SUMO itself switches, and that a static copy replaces during the run."""

    programs: dict[str, SignalProgram]
    skipped: dict[str, str]
    replaced: dict[str, str]


def signals_to_run(simulation: AttachedSimulation, settings: SignalSettings) -> SignalsToRun:
    """Takes over the junctions of the settings, or all that can be controlled.

    Raises ScenarioError if one of the named cannot be controlled, or none can, and UnknownJunction.
    """
    signals = read_signals(simulation, switched_by_sumo=True, junction_ids=settings.junction_ids)
    programs, skipped, replaced = {}, dict(signals.skipped), {}
    for name in signals.programs:
        plan = simulation.signal_plan(name)
        try:
            bounds = settings.bounds_of(plan) if is_plain_static(plan) else ()
            if not bounds:
                copy = static_copy(plan)
                bounds = settings.bounds_of(replace(copy, type=plan.type))
                simulation.run_program(copy)
                replaced[name] = plan.program_id
        except NotApplicable as error:
            skipped[name] = str(error)
            continue
        programs[name] = simulation.program(name).bounded(bounds)
    for name in settings.junction_ids:
        if name in skipped:
            raise ScenarioError(f"junction {name!r} {skipped[name]}")
    if not programs:
        raise nothing_to_control(simulation.files.net_file, skipped)
    return SignalsToRun(programs=programs, skipped=skipped, replaced=replaced)


def card_warning(model: ModelChoice, signals: SignalsToRun, timing: Timing, prompt: str) -> str | None:
    """What the signals ask that the model was not trained on. None if its card names no difference, or there is none.

    Raises ConfigError for a broken card.
    """
    from recipes.models.model_card import warning

    seen = model.seen()
    if seen is None:
        return None
    programs = signals.programs.values()
    differences = seen.differences(
        prompt_version=prompt_version(prompt),
        num_stages=[len(program.stages) for program in programs],
        timings=[timing.within(stage.green_bounds) for program in programs for stage in program.stages],
    )
    return warning(model.name, "the net", differences) if differences else None


def drive(
    control: SignalControl, simulation: AttachedSimulation, controller: Controller, stop: Event, *, verbose: bool
) -> None:
    """Run the signals until SUMO's --end, or without --end until no vehicle is left, or until a stop request. Prints
    the counts of the run at the end.

    Raises ScenarioError if SUMO ends earlier, and EndpointError.
    """
    num_decisions = num_switches = 0  # switches: greens ended by a decision or at their maximum
    time_s = simulation.time_s
    control.start()
    try:
        while not stop.is_set() and not simulation.is_over():
            due = control.due_junctions()
            decisions = controller.decide(control, due) if due else {}
            if verbose:
                for name in due:
                    print(decision_line(control, controller, name, decisions[name], time_s), flush=True)
            green = [clock for clock in control.clocks.values() if clock.green]
            control.apply(decisions)
            num_decisions += len(due)
            num_switches += sum(not clock.green for clock in green)
            simulation.step()
            control.after_step()
            time_s += 1.0
    except SimulationClosed:
        raise ScenarioError(f"SUMO closed the connection after {time_s:g} s: its own messages say why") from None
    except EndpointError:
        control.release()
        if not stop.is_set():  # Ctrl-C in a terminal also ends our own server
            raise
    except BaseException:
        control.release()
        raise
    else:
        control.release()
    finally:
        line = f"until {time_s:g} s: {num_decisions} decisions, {num_switches} switches"
        if isinstance(controller, LanguageModelController):
            line += f", {controller.invalid_answers} invalid and {controller.late_answers} late answers"
        print(line, flush=True)


def decision_line(
    control: SignalControl, controller: Controller, junction_id: str, decision: Decision, time_s: float
) -> str:
    clock = control.clocks[junction_id]
    stage = f"stage {clock.stage + 1}, green for {clock.elapsed_green_s:g} s"
    line = f"{time_s:>7g} s  {junction_id}  {stage}  {decision.value}"
    if isinstance(controller, LanguageModelController):
        asked = next(asked for asked in controller.last_round if asked.junction_id == junction_id)
        if asked.fallback is not None:
            line += f" (from the net's own plan, because the answer is {asked.fallback})"
        line += f"  {asked.reply.text or ''}"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True, help="SUMO's --remote-port")
    parser.add_argument("--host", default="localhost", help="host on which SUMO runs (default: %(default)s)")
    parser.add_argument("--order", type=int, metavar="N", help="this client's own number among several TraCI clients")
    parser.add_argument("--controller", required=True, metavar="NAME", help=f"{', '.join(RULES)}, llm:NAME=…")
    parser.add_argument("--base-url", metavar="URL", help="an OpenAI-compatible server that has the model")
    parser.add_argument("--junctions", nargs="+", default=[], metavar="ID", help="run these only (default: all)")
    parser.add_argument(
        "--config",
        type=Path,
        default=CONFIGS / "evaluation.yaml",
        help="file whose timing and llm settings are used (default: configs/evaluation.yaml)",
    )
    for option in ("min-green-s", "max-green-s", "green-extension-s"):
        parser.add_argument(f"--{option}", type=int, metavar="S", help="seconds (default: that of --config)")
    parser.add_argument("--prompt", metavar="NAME", help=f"what makes a model's prompts: {PROMPT_HELP}")
    parser.add_argument("--verbose", action="store_true", help="print a line for each decision")
    arguments = parser.parse_args()

    settings = load_evaluation_settings(arguments.config)
    if arguments.prompt is not None:
        settings = settings.changed({"prompt": arguments.prompt})
    given = {name: getattr(arguments, name) for name in asdict(settings.timing)}
    timing = replace(settings.timing, **{name: seconds for name, seconds in given.items() if seconds is not None})
    model = model_named(arguments.controller, arguments.base_url)
    attached = AttachedSimulation(arguments.port, host=arguments.host, order=arguments.order, wait_s=WAIT_FOR_SUMO_S)
    with stop_request() as stop, closing(attached) as simulation:
        bounded = replace(settings.of_scenarios.signals, timing=timing, junction_ids=tuple(arguments.junctions))
        if any(given[name] is not None for name in ("min_green_s", "max_green_s")):
            bounded = replace(bounded, bounds_from="same")
        signals = signals_to_run(simulation, bounded)
        programs = signals.programs
        where = f"{arguments.host}:{arguments.port}"
        print(
            f"{simulation.sumo_version} on {where} at {simulation.time_s:g} s, {simulation.files.net_file}", flush=True
        )
        if model is not None and (line := card_warning(model, signals, timing, settings.llm.prompt)):
            print(line, file=sys.stderr, flush=True)
        with controller_for(arguments.controller, model, settings.llm) as controller:
            name = model.name if model else arguments.controller
            num_signals = len(simulation.junction_ids())
            print(f"{name} runs {len(programs)} of {num_signals} signals: {', '.join(programs)}", flush=True)
            for line in skipped_lines(signals.skipped):
                print(line, flush=True)
            control = SignalControl(simulation, timing, programs)
            try:
                drive(control, simulation, controller, stop, verbose=arguments.verbose)
            finally:
                with suppress(SimulationClosed):
                    for junction_id, program_id in signals.replaced.items():
                        simulation.return_to_program(junction_id, program_id)
    if stop.is_set():
        raise KeyboardInterrupt


if __name__ == "__main__":
    run_main(main)
