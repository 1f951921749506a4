"""The sample of a dataset (schema version 1) and where its files lie.

A sample is one decision point: the prompt, the saved SUMO state, the clocks of every controlled junction, and the
outcome of both answers. A sample is checked here, when it is read, and nowhere later. Fields beyond the contract are
kept.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from tsc.cost.measures import MEASURES
from tsc.cost.outcome import Outcomes, OutcomeSettings
from tsc.errors import SampleError
from tsc.junction.clock import Clock
from tsc.junction.decision import Decision
from tsc.junction.timing import MAX_TIMING_S, Timing
from tsc.sumo.sumo_input import SumoInput

SCHEMA_VERSION = 1
DATASET_NAMES = tuple(f"grpo_dataset.{kind}{packed}" for kind in ("json", "jsonl") for packed in ("", ".gz", ".zst"))


def _in_dataset(name: str) -> str:
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise ValueError(f"{name!r} leads out of the folder of the dataset file: states lie in it, or below it")
    return name


# how a sample names its saved state
StateFile = Annotated[str, Field(min_length=1), AfterValidator(_in_dataset)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class Message(_Record):
    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class CostPair(_Record):
    """Cost of either answer, in the unit of its measure."""

    yes: float
    no: float


class SampleOutcomes(_Record):
    """The costs by the measure and by each of the terms, and the settings that they were computed under.

    yes, no: cost of either answer, in the unit of the measure. ends: digest of the traffic at the end of the horizon
    after either answer (tsc.sumo.simulation.Simulation.traffic_digest). With it, data_tools/verify_states.py finds out
    whether a replay went the same way.
    """

    settings: dict[str, Any]
    yes: float
    no: float
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
        own = CostPair(yes=self.yes, no=self.no)
        for name, costs in [(settings.measure, own), *self.terms.items()]:
            # only a user's own function may count below zero
            if name in MEASURES and min(costs.yes, costs.no) < 0:
                raise ValueError(f"yes {costs.yes:g}, no {costs.no:g}: {name} is never negative")
        return self

    @property
    def outcome_settings(self) -> OutcomeSettings:
        return OutcomeSettings(**self.settings)

    @property
    def outcomes(self) -> Outcomes:
        terms = {name: Outcomes(yes=costs.yes, no=costs.no) for name, costs in self.terms.items()}
        return Outcomes(yes=self.yes, no=self.no, terms=terms)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values without `ends` and without fields beyond the contract."""
        return {"settings": self.settings, **self.outcomes.as_dict()}


class ReplayMark(_Record):
    """How the replay of the state compares with the label. data_tools/verify_states.py writes it.

    verdict, with a label:
      identical       the same costs and the same traffic at the end
      same_outcomes   the same costs, but other traffic at the end
      same_answer     other costs, but the same answer is the better one
      other_answer    the other answer is the better one
      failed          the state could not be replayed
    verdict, without a label: repeatable if two replays end the same, else not_repeatable
    gap_error: in the unit of the measure. cause: a name in docs/replays.md.
    """

    verdict: Literal[
        "identical", "same_outcomes", "same_answer", "other_answer", "failed", "repeatable", "not_repeatable"
    ]
    gap_error: float | None = Field(default=None, ge=0)
    cause: str | None = None

    @property
    def is_faithful(self) -> bool:
        """Whether rewards from the replay favour the answer that the label favours."""
        return self.verdict not in ("other_answer", "failed", "not_repeatable")


class Sample(_Record):
    """One decision point.

    prompt, state_file, junction_id, current_green_elapsed, min_green and max_green are required. A sample of another
    generator that has only these can be converted and trained on, too, once its SUMO input is given with --sumocfg.
    A prompt may be plain text, which becomes the user's message, and a junction_id may be a number.
    The fields stand in the order in which the generator writes them. behaviour: who decided while the state was
    recorded, a name of configs/dataset.yaml.
    """

    schema_version: Literal[1] = 1
    scenario: str = "unnamed"
    episode: int = 0
    split: Literal["train", "val"] | None = None
    behaviour: str | None = None
    time_s: float | None = Field(default=None, ge=0)
    prompt_version: str | None = None
    state_file: StateFile
    state_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    clocks: dict[str, Clock] = {}
    sumo: SumoInput | None = None
    id: str | None = None
    junction_id: str = Field(min_length=1)
    prompt: list[Message] = Field(min_length=1)
    current_green_elapsed: float = Field(ge=0)
    min_green: float = Field(gt=0, le=MAX_TIMING_S)
    max_green: float = Field(gt=0, le=MAX_TIMING_S)
    green_extension: float = Field(default=5.0, gt=0, le=MAX_TIMING_S)
    stage: int | None = Field(default=None, ge=0)
    next_stage: int | None = Field(default=None, ge=0)
    observation: dict[str, Any] | None = None
    outcomes: SampleOutcomes | None = None
    expert_decision: Decision | None = None
    replay: ReplayMark | None = None

    @field_validator("junction_id", mode="before")
    @classmethod
    def _number_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("prompt", mode="before")
    @classmethod
    def _text_as_message(cls, value: Any) -> Any:
        return [{"role": "user", "content": value}] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _green_lies_within_its_bounds(self) -> Sample:
        if self.max_green <= self.min_green:
            raise ValueError(f"max_green of {self.max_green:g} s does not exceed min_green of {self.min_green:g} s")
        if not self.min_green <= self.current_green_elapsed < self.max_green:
            raise ValueError(
                f"current_green_elapsed of {self.current_green_elapsed:g} s is not a decision point at junction "
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
        """Plain JSON values of the fields that were given and are not None."""
        return self.model_dump(mode="json", exclude_unset=True, exclude_none=True)


def find_dataset_files(path: Path) -> list[Path]:
    """The dataset file `path`, or every file named as in DATASET_NAMES at or below the folder `path`, sorted.

    Raises SampleError if there is none.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise SampleError(f"{path} does not exist: name a dataset file or a folder that holds {DATASET_NAMES[0]}")
    found = sorted(p for name in DATASET_NAMES for p in path.rglob(name))
    kinds: dict[Path, Path] = {}
    for file in found:
        # without .gz and .zst
        kind = file if file.suffix.startswith(".json") else file.with_suffix("")
        if kinds.setdefault(kind, file) != file:
            raise SampleError(f"{kinds[kind]} and {file} are both there, so samples would count twice: remove one")
    if not found:
        raise SampleError(
            f"no {DATASET_NAMES[0]} (.jsonl, .gz, .zst) in {path} or below: make one with "
            "data_tools/generate_dataset.py"
        )
    return found
