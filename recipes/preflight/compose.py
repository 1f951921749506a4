"""Compose the configuration of a training as verl would get it, on any machine, with or without a GPU.

`compose` puts recipes/<algorithm>.yaml, verl's own files, the hardware profile and overrides together. It imports
neither verl nor torch, and does not need the model's files. Its errors name the key and the remedy.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipes.preflight.hardware import load_hardware
from tsc.errors import ConfigError, did_you_mean
from tsc.files import REPO_ROOT

RECIPES = REPO_ROOT / "recipes"
POLICY_GRADIENT = ("grpo", "gspo", "ppo")
ALGORITHMS = (*POLICY_GRADIENT, "sft", "dpo")


def compose(algorithm: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration of recipes/<algorithm>.yaml with Hydra overrides, unresolved. Later overrides win.

    Raises ConfigError for an unknown algorithm, hardware profile or key, and for a malformed override.
    """
    if algorithm not in ALGORITHMS:
        raise ConfigError(f"algorithm {algorithm!r} is unknown: choose one of {', '.join(ALGORITHMS)}")
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "hardware":
            load_hardware(value)
    # verl's folder by path: Hydra would import verl, and torch with it, to find pkg://verl.trainer.config
    verl = importlib.util.find_spec("verl")
    if verl is None or not verl.submodule_search_locations:
        raise ConfigError("verl is not installed: run scripts/setup_env.sh")
    folders = [Path(verl.submodule_search_locations[0]) / "trainer" / "config", REPO_ROOT / "configs"]
    searchpath = ",".join(f"'file://{folder}'" for folder in folders)
    try:
        with initialize_config_dir(config_dir=str(RECIPES), version_base=None):
            return hydra_compose(algorithm, overrides=[f"hydra.searchpath=[{searchpath}]", *overrides])
    except OverrideParseException as error:
        raise ConfigError(
            f"override '{error.override}' is not in Hydra's form: write key=value, and put a value with blanks, "
            "commas or brackets in quotes within quotes ('key=\"a, b\"')"
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_composition_fault(algorithm, overrides, error)) from error


def _composition_fault(algorithm: str, overrides: Sequence[str], error: Exception) -> str:
    """What Hydra cannot place, with the nearest known key."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    unknown = getattr(cause, "full_key", None)
    for override in overrides:
        key = override.partition("=")[0].lstrip("~")
        if unknown and (key == unknown or key.startswith(f"{unknown}.")):
            known = [path for path, _ in leaves(usual_config(algorithm))]
            return f"override '{override}': {algorithm} has no key {key}: {meant_key(key, known)}correct or remove it"
    return f"{algorithm} cannot be composed: {' '.join(str(error).split())}"


@functools.cache
def usual_config(algorithm: str) -> Any:
    """The configuration without overrides; interpolations are resolved, for the types of their values."""
    return OmegaConf.to_container(compose(algorithm, []), resolve=True, throw_on_missing=False)


def meant_key(key: str, known: Sequence[str]) -> str:
    """did_you_mean for keys. The same last word in another section counts as near: users forget whole sections."""
    last = key.rpartition(".")[2]
    same = [candidate for candidate in known if candidate.rpartition(".")[2] == last]
    return did_you_mean(key, same) or did_you_mean(key, known)


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values
