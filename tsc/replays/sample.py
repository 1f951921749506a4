"""The sample of a dataset (schema version 1) and where its files lie.

A sample is one decision point: the prompt, the saved SUMO state, the clocks of every controlled junction, and the
outcome of both answers. This is the file boundary: everything is checked here, and nowhere later. Fields beyond the
contract are kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tsc.cost.measures import MEASURES
from tsc.cost.outcome import Outcomes, OutcomeSettings
from tsc.errors import SampleError
from tsc.junction.decision import Decision
from tsc.junction.timing import Timing

SCHEMA_VERSION = 1
DATASET_NAMES = ("grpo_dataset.json", "grpo_dataset.jsonl")


class _Record(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class Message(_Record):
    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class Clock(_Record):
    """Where a junction stands in its program. `green`: stage `stage` has been green for elapsed_green_s and is held;
    `clearing`: the program runs through its own yellow and all-red, phase_remaining_s to go in the present phase."""

    mode: Literal["green", "clearing"]
    stage: int = Field(ge=0)
    elapsed_green_s: float = Field(ge=0)
    phase_remaining_s: float = Field(default=0.0, ge=0)


class SumoInput(_Record):
    """What SUMO was started with. File names are relative to the folder of the dataset file."""

    version: str
    net_file: str
    route_files: list[str]
    additional_files: list[str] = []
    net_sha256: str | None = None
    route_sha256: list[str] | None = None
    seed: int = 0
    step_length_s: float = Field(default=1.0, gt=0)
    time_to_teleport_s: float = -1.0

    @model_validator(mode="after")
    def _one_digest_a_route_file(self) -> SumoInput:
        if self.route_sha256 is not None and len(self.route_sha256) != len(self.route_files):
            raise ValueError(
                f"route_sha256 has {len(self.route_sha256)} digests for {len(self.route_files)} route_files"
            )
        return self


class CostPair(_Record):
    """Cost of either answer, in the unit of its measure."""

    yes: float
    no: float


class SampleOutcomes(CostPair):
    """The costs by the measure and by each of the terms, and the settings they were computed under. ends: digests of
    the traffic at the end of the horizon after either answer, by which data_tools/verify_states.py tells whether a
    replay went the same way (tsc.sumo.simulation.Simulation.traffic_digest)."""

    settings: dict[str, Any]
    terms: dict[str, CostPair] = {}
    ends: dict[Decision, str] | None = None

    @model_validator(mode="after")
    def _settings_are_known(self) -> SampleOutcomes:
        try:
            settings = OutcomeSettings(**self.settings)
        except Exception as error:
            raise ValueError(f"settings: {error}") from error
        if set(self.terms) != set(settings.terms):
            raise ValueError(
                f"settings: terms are {', '.join(settings.terms) or 'none'}, but there are costs for "
                f"{', '.join(sorted(self.terms)) or 'none'}"
            )
        for name, costs in [(settings.measure, self), *self.terms.items()]:
            # only a user's own function may count below zero
            if name in MEASURES and min(costs.yes, costs.no) < 0:
                raise ValueError(f"yes {costs.yes:g}, no {costs.no:g}: {name} is never negative")
        return self

    @property
    def outcome_settings(self) -> OutcomeSettings:
        return OutcomeSettings(**self.settings)

    @property
    def outcomes(self) -> Outcomes:
        return Outcomes.from_dict(self.model_dump(include={"yes", "no", "terms"}))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without fields beyond the contract."""
        return {"settings": self.settings, **self.outcomes.as_dict()}


class ReplayMark(_Record):
    """How the replay of the state compares with the label; data_tools/verify_states.py writes it.

    verdict: `identical`; `same_outcomes`, though the traffic ends otherwise; `same_answer` better, at other costs;
    `other_answer` better; `failed`, it could not be replayed. Without a label: `repeatable`, two replays end the same,
    or `not_repeatable`. gap_error: in the unit of the measure. cause: a name of docs/replays.md.
    """

    verdict: Literal[
        "identical", "same_outcomes", "same_answer", "other_answer", "failed", "repeatable", "not_repeatable"
    ]
    gap_error: float | None = Field(default=None, ge=0)
    cause: str | None = None

    @property
    def is_faithful(self) -> bool:
        """Whether rewards that come from the replay favour the answer that the label favours."""
        return self.verdict not in ("other_answer", "failed", "not_repeatable")


class Sample(_Record):
    """One decision point. Required are prompt, state_file, junction_id, current_green_elapsed, min_green and max_green;
    a sample of another generator that has only these converts and trains too, once it is told its SUMO input."""

    schema_version: Literal[1] = 1
    id: str | None = None
    scenario: str = "unnamed"
    episode: int = 0
    split: Literal["train", "val"] | None = None
    junction_id: str = Field(min_length=1)
    time_s: float | None = Field(default=None, ge=0)
    prompt_version: str | None = None
    prompt: list[Message] = Field(min_length=1)
    state_file: str = Field(min_length=1)
    state_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    current_green_elapsed: float = Field(ge=0)
    min_green: float = Field(gt=0)
    max_green: float = Field(gt=0)
    green_extension: float = Field(default=5.0, gt=0)
    stage: int | None = Field(default=None, ge=0)
    next_stage: int | None = Field(default=None, ge=0)
    observation: dict[str, Any] | None = None
    clocks: dict[str, Clock] = {}
    sumo: SumoInput | None = None
    outcomes: SampleOutcomes | None = None
    expert_decision: Decision | None = None
    replay: ReplayMark | None = None

    @model_validator(mode="after")
    def _green_lies_within_its_bounds(self) -> Sample:
        if self.max_green <= self.min_green:
            raise ValueError(f"max_green of {self.max_green:g} s does not exceed min_green of {self.min_green:g} s")
        if not self.min_green <= self.current_green_elapsed < self.max_green:
            raise ValueError(
                f"current_green_elapsed of {self.current_green_elapsed:g} s is no decision point at junction "
                f"{self.junction_id!r}: must be at least min_green {self.min_green:g} s and below max_green "
                f"{self.max_green:g} s"
            )
        return self

    @model_validator(mode="after")
    def _expert_is_the_better_answer(self) -> Sample:
        if self.outcomes is not None and self.expert_decision is not None:
            better = self.outcomes.outcomes.better()
            if self.expert_decision != better:
                raise ValueError(
                    f"expert_decision is {self.expert_decision.value!r}, but the outcomes (yes {self.outcomes.yes:g}, "
                    f"no {self.outcomes.no:g}) say {better.value if better else 'a tie'}"
                )
        return self

    @property
    def timing(self) -> Timing:
        return Timing(
            min_green_s=int(self.min_green),
            max_green_s=int(self.max_green),
            green_extension_s=int(self.green_extension),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, fields that are absent left out."""
        return self.model_dump(mode="json", exclude_none=True)


def find_dataset_files(path: Path) -> list[Path]:
    """The dataset file `path`, or every grpo_dataset.json(l) at or below the folder `path`, sorted.

    Raises SampleError where there is none.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise SampleError(f"{path} does not exist: name a dataset file or a folder that holds {DATASET_NAMES[0]}")
    found = sorted(p for name in DATASET_NAMES for p in path.rglob(name))
    if not found:
        raise SampleError(
            f"no {' or '.join(DATASET_NAMES)} in {path} or below: make one with data_tools/generate_dataset.py"
        )
    return found
