"""The options of our programs that say how the scenarios they are given are used."""

from __future__ import annotations

import argparse
from typing import Any

from tsc.junction.signal_settings import SignalSettings
from tsc.scenarios.demand_variation import DemandVariation
from tsc.scenarios.traffic_scenario import ScenarioSettings


def add_scenario_options(parser: argparse.ArgumentParser, *, source: str) -> None:
    """source: whose values hold where an option is not given, for the help."""
    group = parser.add_argument_group(f"how scenarios are used (instead of {source})")
    group.add_argument("--begin", type=at_least(0), metavar="S", dest="begin_s", help="s of simulated time")
    group.add_argument("--end", type=at_least(1), metavar="S", dest="end_s", help="s of simulated time")
    group.add_argument(
        "--duration", type=at_least(1), metavar="S", dest="duration_s", help="simulate for so long from the begin, s"
    )
    group.add_argument(
        "--teleport",
        type=at_least(-1),
        metavar="S",
        dest="time_to_teleport_s",
        help="move a vehicle past the jam after standing for so long; -1: never",
    )
    group.add_argument(
        "--junctions",
        nargs="+",
        metavar="ID",
        help="control these signals only; the others keep their programs (default: all)",
    )
    group.add_argument(
        "--green-bounds",
        choices=("net", "same"),
        help="of greens in SUMO's own networks: those of its programs, or the same for all",
    )
    group.add_argument(
        "--demand-as-filed",
        action="store_true",
        default=None,
        help="every episode has the vehicles of the route files, instead of a draw from them",
    )


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, by the names of tsc.evaluation.settings.EvaluationSettings."""
    names = ("begin_s", "end_s", "duration_s", "time_to_teleport_s", "junctions", "green_bounds", "demand_as_filed")
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def words_of(arguments: argparse.Namespace) -> list[str]:
    """The options that were given, as they are typed."""
    words = []
    for name, value in given_options(arguments).items():
        option = {"time_to_teleport_s": "teleport"}.get(name, name.removesuffix("_s").replace("_", "-"))
        values = [] if value is True else value if isinstance(value, list) else [value]
        words += [f"--{option}", *map(str, values)]
    return words


def settings_of(arguments: argparse.Namespace) -> ScenarioSettings:
    """What the options ask of every scenario. For programs that do not read a file of settings."""
    options = given_options(arguments)
    signals = SignalSettings(
        bounds_from=options.pop("green_bounds", "net"), junction_ids=tuple(options.pop("junctions", ()))
    )
    demand = DemandVariation(resample=not options.pop("demand_as_filed", False))
    return ScenarioSettings(signals=signals, demand=demand, **options)


def at_least(lowest: int) -> Any:
    """The type of an option that is a whole number."""

    def whole_number(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {lowest}")
        return int(text)

    return whole_number
