"""The signal programs that junctions run under a controller, as additional files for SUMO.

A junction runs the program that is loaded last. The programs written here have the phases of the ones that they
replace, so pedestrian clearance, yellow and all-red stay the net's own, unless a length of yellow was asked for. Each
names the bounds of its greens, so that whoever loads it later, such as a replay, keeps to the same bounds.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tsc.controllers import registry
from tsc.controllers.actuated import detector_plan
from tsc.controllers.static_copy import is_plain_static, static_copy, with_yellow
from tsc.controllers.webster import webster_plans
from tsc.errors import NotApplicable
from tsc.files import write_atomically
from tsc.junction.signal_control import nothing_to_control, read_signals
from tsc.junction.signal_settings import SignalSettings
from tsc.sumo.additional_files import without_timetables
from tsc.sumo.running import SumoFiles
from tsc.sumo.signal_program import SignalPlan
from tsc.sumo.simulation import Simulation


@dataclass(frozen=True, kw_only=True)
class PlannedSignals:
    """What SUMO is started from under a controller.

    plans: of the controlled junctions, in the net's order, static with bounds. They are the same under every
    controller, so that all are measured on the same junctions. bounds_from: where the bounds of each of their stages
    come from, in words. types: of the programs that they replace (static, actuated, …). skipped: why not, of each other
    junction that was asked for.
    """

    files: SumoFiles
    plans: Mapping[str, SignalPlan]
    bounds_from: Mapping[str, tuple[str, ...]]
    types: Mapping[str, str]
    skipped: Mapping[str, str]

    def settings(self, asked: SignalSettings) -> SignalSettings:
        """The settings that were asked for, with the junctions and the bounds of greens that were found."""
        greens = {name: plan.green_bounds for name, plan in self.plans.items()}
        return replace(asked, junction_ids=tuple(self.plans), greens=greens)


def plan_signals(
    kind_name: str,
    files: SumoFiles,
    settings: SignalSettings,
    end_s: float,
    folder: Path,
    program_file: Path | None = None,
) -> PlannedSignals:
    """Write the programs for a controller of this kind into `folder`, if it needs any.

    program_file: of the kind PROGRAM, the additional file with its programs and their detectors.

    None are needed for `static`, nor for a controller that holds greens if all running programs are static and have
    the same bounds. Opens a simulation of `files` to see which programs run; the next simulation closes it.
    Raises ScenarioError, UnknownJunction, ConfigError, and NotApplicable if a controller of this kind cannot run the
    net.
    """
    # without vehicles: they are not needed here, and reading them may take long
    simulation = Simulation(replace(files, route_files=()))
    signals = read_signals(simulation, switched_by_sumo=True, junction_ids=settings.junction_ids)
    running = {name: simulation.signal_plan(name) for name in signals.programs}
    plans: dict[str, SignalPlan] = {}
    bounds_from: dict[str, tuple[str, ...]] = {}
    skipped = dict(signals.skipped)
    for name, plan in running.items():
        try:
            copy = static_copy(plan)
            if settings.yellow_s is not None:
                copy = with_yellow(copy, settings.yellow_s)
            # the type says what minDur and maxDur of the program mean
            typed = replace(copy, type=plan.type)
            plans[name] = replace(copy, green_bounds=settings.bounds_of(typed))
            bounds_from[name] = settings.source_of(typed)
        except NotApplicable as error:
            skipped[name] = str(error)
    if not plans:
        raise nothing_to_control(files.net_file, skipped)
    planned = PlannedSignals(
        files=files,
        plans=plans,
        bounds_from=bounds_from,
        types={name: running[name].type for name in plans},
        skipped=skipped,
    )
    if kind_name == "static":
        return planned
    files_without = _without_timetables(files, folder)
    match kind_name:
        case "actuated" | "delay_based":
            new = [detector_plan(plan, kind_name) for plan in plans.values()]
        case registry.PROGRAM:
            assert program_file is not None, "the kind PROGRAM needs a file"
            return replace(planned, files=_with(files_without, program_file))
        case "webster":
            new = webster_plans(files, list(plans.values()), end_s, folder)
        case _:
            as_they_are = files_without is files and settings.bounds_from == "same" and settings.yellow_s is None
            new = [
                plan
                for name, plan in plans.items()
                if not (as_they_are and name not in settings.greens and is_plain_static(running[name]))
            ]
    if not new:
        return planned
    additional = ElementTree.Element("additional")
    additional.extend(plan.element() for plan in new)
    ElementTree.indent(additional, "    ")
    path = folder / f"{kind_name}.add.xml"
    write_atomically(path, ElementTree.tostring(additional))
    return replace(planned, files=_with(files_without, path))


def _with(files: SumoFiles, additional_file: Path) -> SumoFiles:
    return replace(files, additional_files=(*files.additional_files, additional_file))


def _without_timetables(files: SumoFiles, folder: Path) -> SumoFiles:
    """The files, or copies of those that make SUMO change programs at set times: the programs would end our control."""

    def changed(path: Path) -> Path:
        copy = without_timetables(path)
        if copy is None:
            return path
        target = folder / path.name.removesuffix(".gz")
        write_atomically(target, copy)
        return target

    net_file = changed(files.net_file)
    additional_files = tuple(map(changed, files.additional_files))
    if (net_file, additional_files) == (files.net_file, files.additional_files):
        return files
    return replace(files, net_file=net_file, additional_files=additional_files)
