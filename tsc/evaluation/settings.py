"""Settings of an evaluation, the same for all its scenarios and controllers (configs/evaluation.yaml)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tsc.junction.timing import Timing
from tsc.yaml_file import load_yaml


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LanguageModelSettings(_Section):
    """decision_time_limit_s: wall clock; None for no limit."""

    max_answer_tokens: int = Field(default=16, ge=1)
    decision_time_limit_s: float | None = Field(default=None, gt=0)
    concurrent_episodes: int = Field(default=16, ge=1)
    compared_seeds: int = Field(default=1, ge=0)


class EvaluationSettings(_Section):
    """begin_s and end_s: None for the scenario's own. time_to_teleport_s: -1 for never. timing: of scenarios that have
    none of their own."""

    begin_s: int | None = Field(default=None, ge=0)
    end_s: int | None = Field(default=None, ge=1)
    warm_up_s: int = Field(default=0, ge=0)
    time_to_teleport_s: int = -1
    timing: Timing = Timing()
    reference: str = "max_pressure"
    llm: LanguageModelSettings = LanguageModelSettings()

    @field_validator("time_to_teleport_s")
    @classmethod
    def _never_or_after_a_while(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError("choose -1 (never) or at least 1 s")
        return value

    @field_validator("timing", mode="before")
    @classmethod
    def _timing(cls, value: Any) -> Any:
        return Timing(**value) if isinstance(value, dict) and set(value) <= set(Timing.__dataclass_fields__) else value

    @model_validator(mode="after")
    def _ends_after_its_begin(self) -> EvaluationSettings:
        if self.begin_s is not None and self.end_s is not None and self.end_s <= self.begin_s + self.warm_up_s:
            raise ValueError(
                f"end_s is {self.end_s}: must be after begin_s + warm_up_s, which is {self.begin_s + self.warm_up_s} s"
            )
        return self


def load_evaluation_settings(path: Path) -> EvaluationSettings:
    """Raises ConfigError that names file, key, value and what is allowed."""
    return load_yaml(path, EvaluationSettings)
