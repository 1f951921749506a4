"""What a sumocfg tells about how SUMO was started, as far as a replay needs it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsc.errors import ScenarioError

# SUMO's own values for what a sumocfg leaves out
SUMO_DEFAULT_SEED = 23423
SUMO_DEFAULT_STEP_LENGTH_S = 1.0
SUMO_DEFAULT_TIME_TO_TELEPORT_S = 300.0

_LONG_NAMES = {
    "net": "net-file",
    "n": "net-file",
    "routes": "route-files",
    "r": "route-files",
    "additional": "additional-files",
    "a": "additional-files",
}
# these shape what SUMO writes, shows or when it starts and ends, not how traffic moves
_SECTIONS_WITHOUT_EFFECT = ("output", "report", "time", "gui_only", "traci_server")
_READ = ("net-file", "route-files", "additional-files", "seed", "step-length", "time-to-teleport", "random")


@dataclass(frozen=True, kw_only=True)
class SumoConfig:
    """File paths are absolute. `options_not_replayed`: options that may change how traffic moves, which a replay does
    not set."""

    path: Path
    net_file: Path
    route_files: tuple[Path, ...]
    additional_files: tuple[Path, ...]
    seed: int
    step_length_s: float
    time_to_teleport_s: float
    options_not_replayed: tuple[str, ...]


def read_sumocfg(path: Path) -> SumoConfig:
    """Raises ScenarioError where the file or a file it names is missing, or where it is no sumocfg."""
    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        raise ScenarioError(f"cannot read the sumocfg {path}: {error.strerror}") from error
    except ElementTree.ParseError as error:
        line, column = error.position
        raise ScenarioError(f"{path}:{line}:{column + 1}: broken XML: {error.msg}") from error

    options: dict[str, str] = {}
    not_replayed = []
    for section in root:
        for option in section if len(section) else [section]:
            name = _LONG_NAMES.get(option.tag, option.tag)
            options[name] = option.get("value", option.get("v", ""))
            if name not in _READ and section.tag not in _SECTIONS_WITHOUT_EFFECT:
                not_replayed.append(f"{name}={options[name]}")

    def files(name: str) -> tuple[Path, ...]:
        found = tuple(path.resolve().parent / part.strip() for part in options.get(name, "").split(",") if part.strip())
        for file in found:
            if not file.is_file():
                raise ScenarioError(f"{path} names the {name} {file}, which does not exist")
        return found

    def number(name: str, default: float) -> float:
        try:
            return float(options.get(name, default))
        except ValueError as error:
            raise ScenarioError(f"{path}: {name} is {options[name]!r}: must be a number") from error

    net_files = files("net-file")
    if len(net_files) != 1:
        raise ScenarioError(
            f"{path} names {len(net_files)} net files: a sumocfg with one <net-file value=…/> is needed"
        )
    return SumoConfig(
        path=path,
        net_file=net_files[0],
        route_files=files("route-files"),
        additional_files=files("additional-files"),
        seed=int(number("seed", SUMO_DEFAULT_SEED)),
        step_length_s=number("step-length", SUMO_DEFAULT_STEP_LENGTH_S),
        time_to_teleport_s=number("time-to-teleport", SUMO_DEFAULT_TIME_TO_TELEPORT_S),
        options_not_replayed=tuple(not_replayed),
    )


def sumo_input(config: SumoConfig, *, version: str, dataset_dir: Path) -> dict[str, Any]:
    """The `sumo` field of a sample whose dataset lies in dataset_dir; digests are not part of it."""
    folder = dataset_dir.resolve()

    def name(file: Path) -> str:
        file = file.resolve()
        return str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)

    return {
        "version": version,
        "net_file": name(config.net_file),
        "route_files": [name(file) for file in config.route_files],
        "additional_files": [name(file) for file in config.additional_files],
        "seed": config.seed,
        "step_length_s": config.step_length_s,
        "time_to_teleport_s": config.time_to_teleport_s,
    }
