"""Look at a scenario before you train on it: stages on the map, bounds of greens, demand, and likely trouble.

Examples:
    python data_tools/inspect_scenario.py resco:cologne1
    python data_tools/inspect_scenario.py mine.sumocfg --begin 25200 --duration 3600 --out runs/mine

Writes for each scenario OUT/NAME/inspect.html (one page with everything), inspect.json (the same facts for programs),
junctions/ID.png (the stages of a junction), and for SUMO's own files NAME.yaml: a network file that holds the bounds of
all greens, ready to be edited and used as a scenario. The text on the screen is a short form of the page.

The scenario runs twice for some minutes, under its own programs and under max_pressure. Demand, saturation and trouble
come from these runs. The saturation is an estimate.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tqdm import tqdm

from data_tools.inspection import RUNS, Facts, Run, inspect, quick_runs
from data_tools.junction_pictures import Ground, queue_picture, stages_picture
from tsc.controllers.opening import opened
from tsc.controllers.signal_plans import PlannedSignals
from tsc.errors import run_main
from tsc.files import folder_lock, write_atomically
from tsc.junction.timing import Timing
from tsc.scenarios.by_word import WORDS_HELP, is_scenario_file, traffic_scenarios
from tsc.scenarios.command_line import add_scenario_options, at_least, settings_of
from tsc.scenarios.network_file import is_network_file, load_network_file
from tsc.scenarios.packaged import PACKAGED_WORDS
from tsc.scenarios.sumocfg_scenario import SumocfgScenario
from tsc.scenarios.traffic_scenario import TrafficScenario
from tsc.sumo.signal_links import read_net, signal_links

_MAX_NAME = 80  # characters of a picture's file name


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="+", metavar="SCENARIO", help=WORDS_HELP)
    parser.add_argument("--out", type=Path, default=Path("runs/inspect"), help="folder (default: %(default)s)")
    parser.add_argument(
        "--pictures",
        type=at_least(0),
        default=30,
        metavar="N",
        help="draw the N junctions with the most traffic (default: %(default)s); the text has all",
    )
    parser.add_argument(
        "--simulate",
        type=at_least(1),
        default=1800,
        metavar="S",
        help="run the first S seconds of the scenario (default: %(default)s)",
    )
    add_scenario_options(parser, source="the scenario's own")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="tsc-inspect-") as scratch:
        scenarios = traffic_scenarios(arguments.scenarios, Path(scratch), settings_of(arguments))
        sources = _sources(arguments.scenarios, scenarios)
        with folder_lock(arguments.out, "the inspection"):
            for scenario in scenarios:
                _inspect(scenario, sources.get(scenario.name), arguments.out / scenario.name, Path(scratch), arguments)


def _inspect(
    scenario: TrafficScenario, source: str | None, out: Path, scratch: Path, arguments: argparse.Namespace
) -> None:
    """source: see _sources. out: the folder of this scenario."""
    scenario.prepare()
    planned = opened(scenario, scratch / "signals" / scenario.name)
    seconds = min(arguments.simulate, scenario.duration_s)
    runs = quick_runs(scenario, seconds, scratch / "runs" / scenario.name)
    net = read_net(scenario.net_file)
    facts = inspect(scenario, planned, net, runs, seconds)
    network_file = "" if source is None else network_file_text(scenario, source, planned, facts)
    pictures = _draw_junctions(net, planned, facts, arguments.pictures)

    (out / "junctions").mkdir(parents=True, exist_ok=True)
    for junction in facts["junctions"]:
        junction["picture"] = None
    for path, junction in zip(_file_names(list(pictures)), pictures, strict=True):
        next(each for each in facts["junctions"] if each["id"] == junction)["picture"] = f"junctions/{path}"
        write_atomically(out / "junctions" / path, pictures[junction])
    for old in (out / "junctions").glob("*.png"):
        if f"junctions/{old.name}" not in {each["picture"] for each in facts["junctions"]}:
            old.unlink()
    if network_file:
        write_atomically(out / f"{scenario.name}.yaml", network_file.encode())
    write_atomically(out / "inspect.json", (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())
    page = _page(facts, scenario.timing, pictures, runs, network_file, out / f"{scenario.name}.yaml")
    write_atomically(out / "inspect.html", page.encode())
    print(text_of(facts))
    if network_file:
        print(f"bounds to edit: {out / f'{scenario.name}.yaml'} (use the file as the scenario)")
    print(f"page: {out / 'inspect.html'}\n")


def _sources(words: Sequence[str], scenarios: Sequence[TrafficScenario]) -> dict[str, str]:
    """For each scenario of SUMO's own files, what a network file names as its sumocfg."""
    sources = []
    for word in words:
        if word in PACKAGED_WORDS:
            sources.append(word)
        elif not is_scenario_file(word):
            sources.append(str(Path(word).resolve()))
        elif is_network_file(Path(word)):
            named = load_network_file(Path(word)).sumocfg
            sources.append(named if named in PACKAGED_WORDS else str((Path(word).parent / named).resolve()))
    own_files = [scenario.name for scenario in scenarios if isinstance(scenario, SumocfgScenario)]
    return dict(zip(own_files, sources, strict=True))


def network_file_text(scenario: TrafficScenario, source: str, planned: PlannedSignals, facts: Facts) -> str:
    """A network file (tsc/scenarios/network_file.py) with the present bounds of all controlled junctions."""
    assert isinstance(scenario, SumocfgScenario)
    timing, demand, seeds = scenario.timing, scenario.demand, scenario.seeds
    lines = [
        "# The bounds of the greens as they are now: edit them, and give this file as the scenario.",
        f"name: {_quoted(scenario.name)}",
        f"sumocfg: {_quoted(source)}",
        f"begin_s: {scenario.begin_s}",
        f"end_s: {scenario.end_s}",
        f"timing: {{min_green_s: {timing.min_green_s}, max_green_s: {timing.max_green_s}, "
        f"green_extension_s: {timing.green_extension_s}}}",
        "# of junctions that are not below",
        f"green_bounds: {scenario.signals.bounds_from}",
        "demand:",
        f"  scale: [{demand.scale.low!r}, {demand.scale.high!r}]",
        f"  resample: {str(demand.resample).lower()}",
        f"  jitter_s: {demand.jitter_s!r}",
        f"  shift_s: {demand.shift_s!r}",
        f"seeds: {{train: {seeds.train}, validation: {seeds.validation}, evaluation: {seeds.evaluation}}}",
        "# those that are controlled",
        "junctions:",
        *(f"  - {_quoted(name)}" for name in planned.plans),
        "# the shortest and the longest green of each stage, in s",
        "greens:",
    ]
    for junction in facts["junctions"]:
        lines.append(f"  {_quoted(junction['id'])}:")
        lines += [
            f"    - [{stage['min_green_s']}, {stage['max_green_s']}]  # stage {stage['stage'] + 1}: planned "
            f"{stage['planned_s']:g} s; from: {stage['bounds_from']}"
            for stage in junction["stages"]
        ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A text in JSON is also one in YAML."""
    return json.dumps(text, ensure_ascii=False)


def _draw_junctions(net: object, planned: PlannedSignals, facts: Facts, most: int) -> dict[str, bytes]:
    """The pictures of the junctions with the most traffic, by junction, in the order of the net."""
    busiest = sorted(facts["junctions"], key=lambda each: -each["demand_veh_per_h"])[:most]
    drawn = {each["id"] for each in busiest}
    drawn_in_order = [each for each in facts["junctions"] if each["id"] in drawn]
    ground, links = Ground(net), signal_links(net)
    return {
        each["id"]: stages_picture(ground, each, planned.plans[each["id"]], links[each["id"]])
        for each in tqdm(drawn_in_order, f"{facts['name']}: pictures", unit=" junctions", leave=False, disable=None)
    }


def _file_names(junction_ids: Sequence[str]) -> list[str]:
    """A file name for each junction: safe for any system, and no two alike."""
    names: list[str] = []
    for junction_id in junction_ids:
        stem = re.sub(r"[^\w-]", "_", junction_id, flags=re.ASCII)[:_MAX_NAME]
        name, number = f"{stem}.png", 2
        while name.lower() in {other.lower() for other in names}:
            name, number = f"{stem}-{number}.png", number + 1
        names.append(name)
    return names


# Text


def text_of(facts: Facts) -> str:
    lines = [
        f"{facts['name']}: controlled junctions: {len(facts['junctions'])}, {facts['begin_s']} to {facts['end_s']} s, "
        f"steps of {facts['step_length_s']:g} s, teleport {_teleport(facts)}",
        *([f"note: {facts['note']}"] if facts["note"] else []),
        *facts["skipped_lines"],
    ]
    for junction in facts["junctions"]:
        rows = [("stage", "bounds", "from", "planned", "green", "flow", "sat", "then")]
        rows += [
            (
                str(stage["stage"] + 1),
                f"{stage['min_green_s']}-{stage['max_green_s']} s",
                stage["bounds_from"],
                f"{stage['planned_s']:g} s",
                _green(stage),
                f"{stage['flow_ratio']:.2f}",
                _saturation(stage["saturation"]),
                stage["transition"] or "the next stage at once",
            )
            for stage in junction["stages"]
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines.append(
            f"\njunction {junction['id']} ({junction['type']}, cycle {junction['cycle_s']:g} s): "
            f"{junction['demand_veh_per_h']} veh/h, estimated flow ratio {junction['flow_ratio']:.2f}, degree of "
            f"saturation {_saturation(junction['saturation'])}"
        )
        lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.append("")
    lines += [f"trouble: {line}" for line in facts["trouble"]] or ["no trouble found"]
    return "\n".join(lines)


def _green(stage: Facts) -> str:
    """How many movements and crossings have green."""
    yielding = sum(movement["yields"] for movement in stage["movements"])
    words = f"{len(stage['movements'])}" + (f" ({yielding} yield)" if yielding else "")
    return words + (f" + {len(stage['crossings'])} crossings" if stage["crossings"] else "")


def _saturation(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _teleport(facts: Facts) -> str:
    return "never" if facts["time_to_teleport_s"] < 0 else f"after {facts['time_to_teleport_s']} s"


# The page


def _page(
    facts: Facts,
    timing: Timing,
    pictures: Mapping[str, bytes],
    runs: Mapping[str, Run],
    network_file: str,
    network_path: Path,
) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": _data_uri, "green": _green, "saturation": _saturation}
    queues = {RUNS[kind]: run.trace.queue_veh for kind, run in runs.items()}
    return environment.get_template("inspect_scenario.html.jinja").render(
        facts=facts,
        timing=timing,
        pictures=pictures,
        queue_png=queue_picture(queues),
        run_names=RUNS,
        teleport=_teleport(facts),
        network_file=network_file,
        network_path=network_path,
    )


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


if __name__ == "__main__":
    run_main(main)
