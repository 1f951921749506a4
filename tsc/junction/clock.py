"""The clock of a junction as it is stored beside a saved state, which forgets how long a phase has lasted."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Clock(BaseModel):
    """Where a junction stands in its signal program.

    green: stage `stage` has been green for elapsed_green_s and is held. clearing: the program runs through its own
    yellow and all-red, and the present phase lasts for another phase_remaining_s. Fields of other generators are kept.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, frozen=True)

    mode: Literal["green", "clearing"]
    stage: int = Field(ge=0)
    elapsed_green_s: float = Field(ge=0)
    phase_remaining_s: float = Field(default=0.0, ge=0)
