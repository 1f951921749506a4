"""Which of SUMO's options change how traffic moves, and which of these a dataset may choose."""

from __future__ import annotations

import functools
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence

from tsc.errors import ScenarioError
from tsc.sumo.binaries import sumo_binary

# these sections decide what SUMO writes and shows, and when it starts and ends, but not how traffic moves
SECTIONS_WITHOUT_EFFECT = ("output", "report", "time", "gui_only", "traci_server")
# options that a simulation of ours is given one by one
OWN_OPTIONS = ("net-file", "route-files", "additional-files", "seed", "step-length", "time-to-teleport", "random")
# options whose values are files that SUMO reads
FILE_OPTIONS = ("weight-files", "load-state", "phemlight-path", "device.fcd-replay.files")

# sections of SUMO's options without any traffic option
_NO_TRAFFIC_SECTIONS = (
    *SECTIONS_WITHOUT_EFFECT,
    "configuration",
    "ssm_device",
    "fcd_device",
    "tripinfo_device",
    "vehroutes_device",
)
# options that are not traffic options either: the number of threads, how far ahead route files are read, and what SUMO
# always does by now
_NO_TRAFFIC_OPTIONS = (
    *OWN_OPTIONS,
    *("threads", "thread-rngs", "device.rerouting.threads", "route-steps", "sloppy-insert"),
)


@functools.cache
def sumo_options() -> Mapping[str, tuple[str, str]]:
    """The main name and the section of SUMO's options, by each of their names, as SUMO itself lists them."""
    # to standard output, because a worker that replays may not write files
    command = [str(sumo_binary("sumo")), "--save-template", "stdout"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ScenarioError(f"SUMO cannot list its options: {done.stderr.strip()}")
    root = ElementTree.fromstring(done.stdout.encode())
    return {
        name: (option.tag, section.tag)
        for section in root
        for option in section
        for name in (option.tag, *option.get("synonymes", "").split())
    }


def shapes_traffic(name: str, section: str) -> bool:
    return (
        name not in _NO_TRAFFIC_OPTIONS
        and section not in _NO_TRAFFIC_SECTIONS
        and not name.endswith((".output", ".file", "-output"))
        and not name.startswith("device.emissions.")  # they decide whose emissions are measured
    )


def check_replayable_options(words: Sequence[str]) -> None:
    """Raises ScenarioError unless the words, `--NAME VALUE …`, only shape the traffic and name no file.

    A dataset names the options of its simulation, and whoever replays it need not trust it.
    """
    for option, value in zip(words[::2], words[1::2], strict=False):
        name = option.removeprefix("--")
        known = sumo_options().get(name)
        if known is None or not option.startswith("--") or not shapes_traffic(name, known[1]):
            raise ScenarioError(f"SUMO's option {option} {value} does not shape the traffic: take it out")
        if name == "scale":
            raise ScenarioError(
                f"SUMO's option {option} {value} copies vehicles, and a state with copies cannot be loaded again: let "
                "each seed draw its vehicles (without --demand-as-filed), which keeps the scale"
            )
        if name in FILE_OPTIONS:
            raise ScenarioError(
                f"SUMO's option {option} {value} reads a file that a saved state does not hold, so it cannot be "
                "replayed: take the option out of the sumocfg, or choose a scenario without it"
            )
    if len(words) % 2:
        raise ScenarioError(f"SUMO's options {' '.join(words)} are not pairs of a name and a value")
