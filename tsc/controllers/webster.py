"""Fixed-time plans by Webster's formula, computed by SUMO's tlsCycleAdaptation from the demand of the episode.

Webster, F. V.: Traffic signal settings. Road Research Technical Paper 39, 1958.
"""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import sumo
from sumolib.miscutils import openz

from tsc.errors import NotApplicable
from tsc.sumo.binaries import sumo_binary
from tsc.sumo.running import SumoFiles
from tsc.sumo.signal_program import Phase, SignalPlan

_TOOL = Path(sumo.SUMO_HOME, "tools", "tlsCycleAdaptation.py")


def webster_plans(files: SumoFiles, plans: Sequence[SignalPlan], end_s: float, folder: Path) -> list[SignalPlan]:
    """The static plans with the greens of their stages set to Webster's, at least to their minimum. The phases between
    the stages keep their duration, even if the tool would change the yellow.

    The tool knows beforehand all vehicles of the first hour, which no controller in the field does. It ignores vehicles
    after that hour, and its flows are too low if the demand is shorter than an hour. Each junction is planned alone,
    with SUMO's defaults (cycles of 20 to 120 s, 4 s lost per stage, 2 s saturation headway). A junction that no vehicle
    passes keeps its greens, raised to the minimum green if shorter. duarouter turns flows into vehicles, with its own
    random numbers.

    `folder` gets working files. Raises NotApplicable if
    - the scenario has no route files,
    - no vehicle of the hour passes any of the junctions,
    - a junction's links and the letters of its states are not one to one (the tool takes link n for letter n), or
    - duarouter or the tool stops with an error.
    """
    if not files.route_files:
        raise NotApplicable("webster plans from the vehicles of route files, but the scenario names none")
    net_file, routes_file = folder / "webster.net.xml", folder / "webster.rou.xml"
    _write_net(files.net_file, plans, net_file)
    _route(files, end_s, routes_file)
    # the tool has one minimum for all
    min_green_s = min(shortest_s for plan in plans for shortest_s, _ in plan.green_bounds)
    greens_s: dict[str, list[float]] = {}
    for yellow_s, all_red_s in dict.fromkeys(map(_clearance_s, plans)):
        output_file = folder / f"webster-{yellow_s}-{all_red_s}.add.xml"
        command = [sys.executable, str(_TOOL), "--net-file", str(net_file), "--route-files", str(routes_file)]
        command += ["--output-file", str(output_file), "--begin", f"{files.begin_s:.10g}"]
        command += ["--yellow-time", str(yellow_s), "--all-red", str(all_red_s), "--min-green", str(min_green_s)]
        _run("tlsCycleAdaptation", command)
        found = _durations_s(output_file)
        for plan in plans:
            if _clearance_s(plan) == (yellow_s, all_red_s) and plan.junction_id in found:
                greens_s[plan.junction_id] = found[plan.junction_id]
    if not greens_s:
        raise NotApplicable("no vehicle of the first hour passes a junction with signals, so webster has no flows")
    return [_with_greens(plan, greens_s.get(plan.junction_id)) for plan in plans]


def _with_greens(plan: SignalPlan, durations_s: Sequence[float] | None) -> SignalPlan:
    if durations_s is None:
        durations_s = [phase.duration_s for phase in plan.phases]
    phases = list(plan.phases)
    for held, (shortest_s, _) in zip(plan.held_phases, plan.green_bounds, strict=True):
        for index in held:
            phases[index] = replace(phases[index], duration_s=max(durations_s[index], shortest_s))
    return replace(plan, program_id="tsc_webster", phases=tuple(phases))


def _clearance_s(plan: SignalPlan) -> tuple[int, int]:
    """The most frequent yellow of the plan, and the all-red of a cycle, both in whole seconds for the tool."""

    def has(phase: Phase, letters: str) -> bool:
        return bool(set(phase.state) & set(letters))

    yellows_s = [round(phase.duration_s) for phase in plan.phases if has(phase, "yY")]
    all_red_s = sum(phase.duration_s for phase in plan.phases if not has(phase, "yYgG"))
    return max(yellows_s, key=yellows_s.count, default=0), round(all_red_s)


def _write_net(net_file: Path, plans: Sequence[SignalPlan], copy: Path) -> None:
    """Copy the net with these plans as its only programs: the tool plans every program of the net, and does not read
    additional files."""
    with openz(str(net_file), "rb") as stream:
        net = ElementTree.parse(stream)
    root = net.getroot()
    assert root is not None
    _check_links(root, plans)
    logics = root.findall("tlLogic")
    position = list(root).index(logics[0]) if logics else 0
    for logic in logics:
        root.remove(logic)
    for plan in reversed(plans):
        root.insert(position, plan.element())
    net.write(copy, encoding="utf-8")


def _check_links(root: ElementTree.Element, plans: Sequence[SignalPlan]) -> None:
    letters: dict[str, list[int]] = {plan.junction_id: [] for plan in plans}
    for link in root.iterfind("connection[@tl]"):
        if link.attrib["tl"] in letters:
            letters[link.attrib["tl"]].append(int(link.attrib["linkIndex"]))
    for plan in plans:
        num_letters = len(plan.phases[0].state)
        if sorted(letters[plan.junction_id]) != list(range(num_letters)):
            raise NotApplicable(
                f"the {len(letters[plan.junction_id])} links of junction {plan.junction_id!r} and the {num_letters} "
                "letters of its states are not one to one, which tlsCycleAdaptation, the tool behind webster, requires"
            )


def _route(files: SumoFiles, end_s: float, routes_file: Path) -> None:
    """Write every vehicle with its route and departure: the tool does not count trips and flows."""
    command = [str(sumo_binary("duarouter")), "--net-file", str(files.net_file), "--output-file", str(routes_file)]
    command += ["--route-files", ",".join(map(str, files.route_files)), "--seed", str(files.seed)]
    if files.additional_files:
        command += ["--additional-files", ",".join(map(str, files.additional_files))]
    command += ["--begin", f"{files.begin_s:.10g}", "--end", f"{end_s:.10g}"]
    # a vehicle without a route cannot be counted; SUMO reports it when the episode runs, if it is an error
    command += ["--ignore-errors", "--no-step-log", "--no-warnings"]
    _run("duarouter", command)


def _run(name: str, command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or ["it does not say why"]
        raise NotApplicable(f"{name}, which webster needs, stops with an error: {words[-1]}")


def _durations_s(additional_file: Path) -> dict[str, list[float]]:
    return {
        str(logic.get("id")): [float(str(phase.get("duration"))) for phase in logic.findall("phase")]
        for logic in ElementTree.parse(additional_file).getroot().findall("tlLogic")
    }
