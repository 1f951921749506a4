"""Reads from a sumocfg how SUMO is started."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from tsc.errors import ScenarioError, did_you_mean
from tsc.sumo.options import FILE_OPTIONS, shapes_traffic, sumo_options
from tsc.sumo.running import SumoFiles
from tsc.sumo.sumo_input import SumoInput

# SUMO's defaults for options that a sumocfg does not set
SUMO_DEFAULT_SEED = 23423
SUMO_DEFAULT_STEP_LENGTH_S = 1.0
SUMO_DEFAULT_TIME_TO_TELEPORT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class SumoConfig:
    """What a sumocfg says. File paths are absolute.

    begin_s, end_s: None if the sumocfg does not set them.
    traffic_options: words of SUMO's command line for all options that may change how traffic moves, except those that
    have a field here.
    """

    path: Path
    net_file: Path
    route_files: tuple[Path, ...]
    additional_files: tuple[Path, ...]
    seed: int = SUMO_DEFAULT_SEED
    step_length_s: float = SUMO_DEFAULT_STEP_LENGTH_S
    time_to_teleport_s: float = SUMO_DEFAULT_TIME_TO_TELEPORT_S
    begin_s: float | None = None
    end_s: float | None = None
    traffic_options: tuple[str, ...] = ()


def read_sumocfg(path: Path) -> SumoConfig:
    """Raises ScenarioError if the file is not a sumocfg, or if it or a file that it names does not exist."""
    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        raise ScenarioError(f"cannot read the sumocfg {path}: {error.strerror}") from error
    except ElementTree.ParseError as error:
        line, column = error.position
        raise ScenarioError(f"{path}:{line}:{column + 1}: broken XML: {error.msg}") from error

    known = sumo_options()
    options: dict[str, str] = {}
    section_of: dict[str, str] = {}
    for section in root:
        # old files name options without sections; a section may be empty
        for option in section if len(section) or not section.attrib else [section]:
            # sumo does not know all of sumo-gui's options, so these are recognised by their section
            name, section_name = known.get(option.tag, (option.tag, section.tag))
            options[name], section_of[name] = option.get("value", option.get("v", "")), section_name

    def files(name: str) -> tuple[Path, ...]:
        found = tuple(path.resolve().parent / part.strip() for part in options.get(name, "").split(",") if part.strip())
        for file in found:
            if not file.is_file():
                meant = did_you_mean(file.name, [other.name for other in sorted(file.parent.glob("*"))])
                raise ScenarioError(f"{path} names the {name} {file}, which does not exist. {meant}".rstrip())
        return found

    def number(name: str, default: float) -> float:
        try:
            return float(options.get(name, default))
        except ValueError as error:
            raise ScenarioError(f"{path}: {name} is {options[name]!r}: must be a number") from error

    def time_s(name: str) -> float | None:
        if name not in options:
            return None
        try:
            seconds = sumo_time_s(options[name])
        except ValueError as error:
            raise ScenarioError(f"{path}: {name} is {options[name]!r}: must be seconds, H:M:S or days:H:M:S") from error
        return seconds if seconds >= 0 else None  # -1 means that there is no end

    words: list[str] = []
    for name, value in options.items():
        if shapes_traffic(name, section_of[name]):
            if name in FILE_OPTIONS:
                value = ",".join(map(str, files(name)))
            words += [f"--{name}", value]

    net_files = files("net-file")
    if len(net_files) != 1:
        raise ScenarioError(f"{path} names {len(net_files)} net files: give it exactly one <net-file value=…/>")
    return SumoConfig(
        path=path,
        net_file=net_files[0],
        route_files=files("route-files"),
        additional_files=files("additional-files"),
        seed=int(number("seed", SUMO_DEFAULT_SEED)),
        step_length_s=number("step-length", SUMO_DEFAULT_STEP_LENGTH_S),
        time_to_teleport_s=number("time-to-teleport", SUMO_DEFAULT_TIME_TO_TELEPORT_S),
        begin_s=time_s("begin"),
        end_s=time_s("end"),
        traffic_options=tuple(words),
    )


def sumo_input(config: SumoConfig, dataset_dir: Path) -> SumoInput:
    """The `sumo` field of a sample. The dataset file is in dataset_dir."""
    files = SumoFiles(
        net_file=config.net_file,
        route_files=config.route_files,
        additional_files=config.additional_files,
        seed=config.seed,
        step_length_s=config.step_length_s,
        time_to_teleport_s=config.time_to_teleport_s,
        more_options=config.traffic_options,
    )
    return SumoInput.of(files, dataset_dir)


def sumo_time_s(text: str) -> float:
    """The seconds of one of SUMO's times: seconds, H:M:S or days:H:M:S. Raises ValueError for any other text."""
    parts = [float(part) for part in text.split(":")]
    if len(parts) not in (1, 3, 4):
        raise ValueError(text)
    return sum(part * unit_s for part, unit_s in zip(reversed(parts), (1, 60, 3600, 86400), strict=False))
