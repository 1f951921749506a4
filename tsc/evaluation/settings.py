"""The settings of an evaluation (configs/evaluation.yaml). They hold for all its scenarios and controllers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from tsc.evaluation.reference import BEST_CLASSICAL
from tsc.junction.prompt import OWN_PROMPT
from tsc.junction.signal_settings import BoundsFrom, SignalSettings
from tsc.junction.timing import Timing
from tsc.scenarios.demand_variation import DemandVariation
from tsc.scenarios.scenario import TimingSection
from tsc.scenarios.traffic_scenario import ScenarioSettings
from tsc.yaml_file import Section, load_yaml, validate_values


class LanguageModelSettings(Section):
    """How language models are asked.

    max_answer_tokens: the most tokens of an answer.
    decision_time_limit_s: of wall clock; None means no limit.
    concurrent_episodes: how many episodes ask the server at the same time.
    compared_seeds: for so many of the first seeds, each decision is compared with that of lookahead.
    prompt: what makes the prompts (tsc.junction.prompt).
    """

    max_answer_tokens: int = Field(default=16, ge=1)
    decision_time_limit_s: float | None = Field(default=None, gt=0)
    concurrent_episodes: int = Field(default=16, ge=1)
    compared_seeds: int = Field(default=1, ge=0)
    prompt: str = OWN_PROMPT


class EvaluationSettings(Section):
    """How the episodes of an evaluation run, and what is measured.

    begin_s, end_s, duration_s, time_to_teleport_s, demand: see ScenarioSettings.
    timing, green_bounds, junctions: see SignalSettings; of scenarios that do not say it themselves.
    warm_up_s: simulated after the begin, but not measured.
    reference: the controller that the others are compared with, or BEST_CLASSICAL, which is chosen for each scenario on
    its first reference_seeds validation seeds (tsc.evaluation.reference).
    """

    begin_s: int | None = Field(default=None, ge=0)
    end_s: int | None = Field(default=None, ge=1)
    duration_s: int | None = Field(default=None, ge=1)
    warm_up_s: int = Field(default=0, ge=0)
    time_to_teleport_s: int = -1
    timing: TimingSection = Timing()
    green_bounds: BoundsFrom = "net"
    junctions: tuple[str, ...] = ()
    demand: DemandVariation = DemandVariation()
    reference: str = BEST_CLASSICAL
    reference_seeds: int = Field(default=2, ge=1)
    llm: LanguageModelSettings = LanguageModelSettings()

    @field_validator("time_to_teleport_s")
    @classmethod
    def _never_or_after_a_while(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError("choose -1 (never) or at least 1 s")
        return value

    @model_validator(mode="after")
    def _ends_after_its_begin(self) -> EvaluationSettings:
        if self.begin_s is not None and self.end_s is not None and self.end_s <= self.begin_s + self.warm_up_s:
            raise ValueError(
                f"end_s is {self.end_s}: must be after begin_s + warm_up_s, which is {self.begin_s + self.warm_up_s} s"
            )
        return self

    def changed(self, options: Mapping[str, Any]) -> EvaluationSettings:
        """With the options of a command line (tsc.scenarios.command_line). Raises ConfigError."""
        changes = dict(options)
        if "prompt" in changes:
            changes["llm"] = self.llm.model_copy(update={"prompt": changes.pop("prompt")})
        if changes.pop("demand_as_filed", False):
            changes["demand"] = DemandVariation(resample=False)
        return validate_values({**dict(self), **changes}, EvaluationSettings, where="the command line")

    @property
    def of_scenarios(self) -> ScenarioSettings:
        """What is asked of every scenario."""
        return ScenarioSettings(
            begin_s=self.begin_s,
            end_s=self.end_s,
            duration_s=self.duration_s,
            time_to_teleport_s=self.time_to_teleport_s,
            signals=SignalSettings(
                timing=self.timing, bounds_from=self.green_bounds, junction_ids=tuple(self.junctions)
            ),
            demand=self.demand,
        )


def load_evaluation_settings(path: Path) -> EvaluationSettings:
    """Raises ConfigError that names file, key, value and what is allowed."""
    return load_yaml(path, EvaluationSettings)
