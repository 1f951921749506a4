"""Reads from a sumocfg how SUMO is started."""

from __future__ import annotations

import functools
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tsc.errors import ScenarioError
from tsc.sumo.binaries import sumo_binary
from tsc.sumo.running import SumoFiles
from tsc.sumo.sumo_input import SumoInput

# SUMO's defaults for options that a sumocfg does not set
SUMO_DEFAULT_SEED = 23423
SUMO_DEFAULT_STEP_LENGTH_S = 1.0
SUMO_DEFAULT_TIME_TO_TELEPORT_S = 300.0

# these sections decide what SUMO writes and shows, and when it starts and ends, but not how traffic moves
_SECTIONS_WITHOUT_EFFECT = ("output", "report", "time", "gui_only", "traci_server")
_READ = ("net-file", "route-files", "additional-files", "seed", "step-length", "time-to-teleport", "random")

# sections of SUMO's options without any traffic option
_NO_TRAFFIC_SECTIONS = (
    *_SECTIONS_WITHOUT_EFFECT,
    "configuration",
    "ssm_device",
    "fcd_device",
    "tripinfo_device",
    "vehroutes_device",
)
# options that are not traffic options either: the number of threads, and how far ahead route files are read
_NO_TRAFFIC_OPTIONS = (*_READ, "threads", "thread-rngs", "device.rerouting.threads", "route-steps")
_FILE_OPTIONS = ("weight-files", "load-state", "phemlight-path", "device.fcd-replay.files")


@dataclass(frozen=True, kw_only=True)
class SumoConfig:
    """What a sumocfg says. File paths are absolute.

    begin_s, end_s: None if the sumocfg does not set them.
    options_not_replayed: options that may change how traffic moves, and that a replay does not set.
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
    options_not_replayed: tuple[str, ...] = ()
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

    known = _sumo_options()
    options: dict[str, str] = {}
    section_of: dict[str, str] = {}
    not_replayed = []
    for section in root:
        for option in section if len(section) else [section]:
            # sumo does not know all of sumo-gui's options, so these are recognised by their section
            name, section_name = known.get(option.tag, (option.tag, section.tag))
            options[name], section_of[name] = option.get("value", option.get("v", "")), section_name
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

    def time_s(name: str) -> float | None:
        if name not in options:
            return None
        try:
            seconds = _seconds(options[name])
        except ValueError as error:
            raise ScenarioError(f"{path}: {name} is {options[name]!r}: must be seconds, H:M:S or days:H:M:S") from error
        return seconds if seconds >= 0 else None  # -1 means that there is no end

    words: list[str] = []
    for name, value in options.items():
        if _shapes_traffic(name, section_of[name]):
            if name in _FILE_OPTIONS:
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
        options_not_replayed=tuple(not_replayed),
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
    )
    return SumoInput.of(files, dataset_dir)


def _seconds(text: str) -> float:
    """The seconds of one of SUMO's times: seconds, H:M:S or days:H:M:S. Raises ValueError for any other text."""
    parts = [float(part) for part in text.split(":")]
    if len(parts) not in (1, 3, 4):
        raise ValueError(text)
    return sum(part * unit_s for part, unit_s in zip(reversed(parts), (1, 60, 3600, 86400), strict=False))


@functools.cache
def _sumo_options() -> Mapping[str, tuple[str, str]]:
    """The main name and the section of SUMO's options, by each of their names, as SUMO itself lists them."""
    with tempfile.TemporaryDirectory(prefix="tsc-options-") as folder:
        template = Path(folder, "template.xml")
        command = [str(sumo_binary("sumo")), "--save-template", str(template)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ScenarioError(f"SUMO cannot list its options: {done.stderr.strip()}")
        root = ElementTree.parse(template).getroot()
    return {
        name: (option.tag, section.tag)
        for section in root
        for option in section
        for name in (option.tag, *option.get("synonymes", "").split())
    }


def _shapes_traffic(name: str, section: str) -> bool:
    return (
        name not in _NO_TRAFFIC_OPTIONS
        and section not in _NO_TRAFFIC_SECTIONS
        and not name.endswith((".output", ".file"))
        and not name.startswith("device.emissions.")  # they decide whose emissions are measured
    )
