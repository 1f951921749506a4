"""The reward's settings: configs/reward.yaml, checked."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from tsc.cost.measures import check_measure_name
from tsc.cost.outcome import OutcomeSections, OutcomeSettings
from tsc.errors import ConfigError
from tsc.files import REPO_ROOT
from tsc.yaml_file import read_yaml, validate_values

DEFAULT_SETTINGS_FILE = REPO_ROOT / "configs" / "reward.yaml"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class WeightsSection(_Section):
    traffic: float = Field(default=1.0, gt=0)
    format: float = Field(default=1.0, ge=0)


class FormatSection(_Section):
    """The format part of the score for each form of an answer (tsc.junction.decision.AnswerForm)."""

    exact: float = 0.1
    embedded: float = 0.05
    invalid: float = -1.0


class ReplaySection(_Section):
    """function: the function that replays, as "module:function", with the signature of tsc.replays.replay.replay. Only
    the workers import it. Tests and other simulators set it, so configs/reward.yaml does not show it."""

    workers: int | None = Field(default=None, ge=1, le=1024)
    timeout_s: float = Field(default=60.0, gt=0)
    retries: int = Field(default=2, ge=0, le=10)
    function: str = Field(default="tsc.replays.replay:replay", pattern=r"^[\w.]+:\w+$")

    @property
    def num_workers(self) -> int:
        """The configured number. By default, one for each CPU core that this process may use."""
        return self.workers or len(os.sched_getaffinity(0))


def _weights_by_term(value: object) -> object:
    """The section `terms` as pairs, because a mapping cannot be hashed."""
    if value is None:  # the key without a value
        return ()
    if not isinstance(value, Mapping):
        return value
    for name, weight in value.items():
        check_measure_name(str(name))
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ValueError(f"the weight of {name} is {weight!r}: choose a number of at least 0")
    return tuple(sorted((name, float(weight)) for name, weight in value.items()))


Terms = Annotated[tuple[tuple[str, float], ...], BeforeValidator(_weights_by_term), PlainSerializer(dict)]


class CacheSection(_Section):
    """Outcomes that are kept on disk (reward.outcome_store). directory: null for the user's cache folder.
    size_limit_mb: with 0, outcomes are kept in memory only."""

    directory: Path | None = None
    size_limit_mb: int = Field(default=256, ge=0)

    @field_validator("directory")
    @classmethod
    def _is_the_same_from_everywhere(cls, value: Path | None) -> Path | None:
        if value is not None and not value.expanduser().is_absolute():
            # a Ray worker has a working folder of its own
            raise ValueError("choose an absolute path, or one that begins with ~")
        return value


class RewardSettings(_Section, OutcomeSections):
    """configs/reward.yaml. The checks across keys prevent that a policy gains by form what it loses in traffic.

    terms: pairs of a measure's name and its weight. In the file they are a mapping.
    """

    terms: Terms = ()
    normalisation: Literal["relative", "sign", "clipped"] = "relative"
    clipped_scale_veh_s: float = Field(default=60.0, gt=0)
    tie_threshold_veh_s: float = Field(default=0.0, ge=0)
    format: FormatSection = FormatSection()
    weights: WeightsSection = WeightsSection()
    audit_fraction: float = Field(default=0.02, ge=0, le=1)
    replay: ReplaySection = ReplaySection()
    cache: CacheSection = CacheSection()

    @model_validator(mode="after")
    def _format_does_not_outweigh_traffic(self) -> RewardSettings:
        form, weights = self.format, self.weights
        if not form.exact >= form.embedded >= form.invalid:
            raise ValueError(
                f"format scores are exact {form.exact:g}, embedded {form.embedded:g}, invalid {form.invalid:g}: "
                "choose exact >= embedded >= invalid"
            )
        gain = weights.format * (form.exact - form.embedded)
        if gain >= weights.traffic:
            raise ValueError(
                f"weights.format * (format.exact - format.embedded) is {gain:g}: must be below weights.traffic "
                f"{weights.traffic:g}, or the form of an answer counts more than what the answer does to the traffic"
            )
        # an answer may be the wrong one by the traffic and by every term at once
        worst_valid = weights.format * form.embedded - weights.traffic - sum(weight for _, weight in self.terms)
        if weights.format * form.invalid > worst_valid + 1e-9:
            remedy = (
                f"set format.invalid to at most {worst_valid / weights.format:g}"
                if weights.format
                else "set weights.format above 0"
            )
            raise ValueError(
                f"weights.format * format.invalid is {weights.format * form.invalid:g}, above the score of the worst "
                f"valid answer, {worst_valid:g}: a policy would learn to be unreadable when it is unsure: {remedy}"
            )
        return self

    def outcome_settings(self, scenario: str = "") -> OutcomeSettings:
        """How decisions of this scenario are judged. Raises ConfigError if a user's own measure cannot be found."""
        return OutcomeSettings.of(self.section_of(scenario), (name for name, _ in self.terms))


def load_settings(path: Path = DEFAULT_SETTINGS_FILE, overrides: Mapping[str, Any] | None = None) -> RewardSettings:
    """The settings in `path`, changed by `overrides` (the same keys; sections are merged).

    Raises ConfigError with file, key, value and what is allowed.
    """
    values = read_yaml(path)
    if overrides and isinstance(values, dict):
        values = _overridden(values, overrides)
    where = f"{path} with the overrides {', '.join(overrides)}" if overrides else str(path)
    settings = validate_values(values, RewardSettings, where=where)
    try:
        for scenario in ("", *settings.scenarios):
            settings.outcome_settings(scenario)  # raises if the file of a user's own measure is missing
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return settings


def _overridden(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(values)
    for key, value in overrides.items():
        section = changed.get(key)
        changed[key] = {**section, **value} if isinstance(section, dict) and isinstance(value, Mapping) else value
    return changed
