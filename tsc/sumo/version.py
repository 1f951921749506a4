"""The version of the installed SUMO, found without loading it."""

from __future__ import annotations

import importlib.metadata
import re
from functools import cache

from tsc.errors import ScenarioError

MINIMUM_SUMO = (1, 28)


@cache  # looked up for every score, it would cost more than everything else
def installed_sumo_version() -> str:
    """The version of the installed libsumo, for example 1.28.0.

    Raises ScenarioError if libsumo is missing, or older than 1.28, whose states and options this project relies on.
    """
    try:
        version = importlib.metadata.version("libsumo")
    except importlib.metadata.PackageNotFoundError as error:
        raise ScenarioError("libsumo is not installed: run scripts/setup_env.sh") from error
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < MINIMUM_SUMO:
        minimum = ".".join(map(str, MINIMUM_SUMO))
        raise ScenarioError(f"libsumo is {version}, but at least {minimum} is needed: run scripts/setup_env.sh")
    return version
