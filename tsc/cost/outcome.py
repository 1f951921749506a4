"""What an answer leads to: the cost of each of the two continuations, and the settings they were computed under."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from tsc.cost.measures import SCOPES, check_measure_name, measure_named
from tsc.errors import ConfigError
from tsc.files import remembered_sha256_of
from tsc.junction.decision import Decision
from tsc.user_code import USER_PREFIX, source_sha256
from tsc.yaml_file import load_yaml

TAILS = ("static", "gap_out", "max_pressure", "longest_queue", "actuated", "delay_based")
# a tail that is a student's file: student:/its/absolute/path
STUDENT_TAIL = "student:"
MAX_HORIZON_S = 600


@dataclass(frozen=True, kw_only=True)
class OutcomeSection:
    """How a decision is judged: the section `outcome` of configs/reward.yaml.

    horizon_s: simulated seconds after the decision, 1 to 600.
    tail: the controller of every junction, the tested one included, after the tested decision: one of TAILS, or
        student:FILE, a small copy of a policy.
    tail_step_s: seconds between the tail's decisions in a green, a divisor of green_extension_s; None for the latter.
    measure: one of tsc.cost.measures.MEASURES, or a user's own as pkg://module:function.
    scope: whose traffic counts: `junction` (the tested one), `neighbours` (and those one edge away) or `network` (all).

    Raises ConfigError for any other value.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    horizon_s: int = 45
    tail: str = "max_pressure"
    tail_step_s: int | None = None
    measure: str = "queue_veh_s"
    scope: str = "junction"

    def __post_init__(self) -> None:
        if not isinstance(self.horizon_s, int) or not 1 <= self.horizon_s <= MAX_HORIZON_S:
            raise ConfigError(f"horizon_s is {self.horizon_s!r}: choose whole seconds, 1–{MAX_HORIZON_S}")
        is_student = self.tail.startswith(STUDENT_TAIL)
        if is_student and not Path(self.tail.removeprefix(STUDENT_TAIL)).is_absolute():
            # a Ray worker has a working folder of its own
            raise ConfigError(f"tail is {self.tail!r}: name the student's file by an absolute path")
        tails = (self.tail,) if is_student else TAILS
        for name, value, allowed in (("tail", self.tail, tails), ("scope", self.scope, SCOPES)):
            if value not in allowed:
                more = f", or {STUDENT_TAIL}FILE" if name == "tail" else ""
                raise ConfigError(f"{name} is {value!r}: choose one of {', '.join(allowed)}{more}")
        if self.tail_step_s is not None and (not isinstance(self.tail_step_s, int) or self.tail_step_s < 1):
            raise ConfigError(f"tail_step_s is {self.tail_step_s!r}: choose a divisor of green_extension_s, or null")
        check_measure_name(self.measure)


@dataclass(frozen=True, kw_only=True)
class OutcomeSettings(OutcomeSection):
    """How a decision is judged, with the terms.

    terms: further measures to be taken, sorted, each once.
    sources: pairs of a user's own measure, or a student as tail, and the digest of its file. An outcome by a file that
    has been changed since is then not used. with_sources fills it in.
    """

    terms: tuple[str, ...] = ()
    sources: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.terms:
            check_measure_name(name)
        # one order, so that the same terms have the same digest
        object.__setattr__(self, "terms", tuple(sorted(set(self.terms))))
        sources = dict(self.sources)
        object.__setattr__(
            self, "sources", tuple((name, sources[name]) for name in sorted({*self.measures, self.tail} & set(sources)))
        )

    @classmethod
    def of(cls, section: OutcomeSection, terms: Iterable[str]) -> OutcomeSettings:
        """The section with these terms and the digests of the user's own measures. Raises ConfigError."""
        return cls(**vars(section), terms=tuple(terms)).with_sources()

    @property
    def measures(self) -> tuple[str, ...]:
        """The measure and the terms, in the order of their costs."""
        return (self.measure, *self.terms)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values. What was added to these settings later has no key where it is not used, so that earlier
        labels and digests still hold."""
        values = dict(vars(self))
        if self.tail_step_s is None:
            del values["tail_step_s"]
        terms, sources = values.pop("terms"), values.pop("sources")
        return values | ({"terms": list(terms)} if terms else {}) | ({"sources": dict(sources)} if sources else {})

    def without_terms(self) -> OutcomeSettings:
        return replace(self, terms=())

    def with_sources(self) -> OutcomeSettings:
        """The same with the digests of the user's own measures and of a student. Nothing is imported. Raises
        ConfigError if a file cannot be found."""
        own = [name for name in (*self.measures, self.tail) if name.startswith((USER_PREFIX, STUDENT_TAIL))]
        return replace(self, sources=tuple((name, _digest(name)) for name in own)) if own else self

    def covers(self, asked: OutcomeSettings) -> bool:
        """Whether outcomes under these settings can be used where `asked` is wanted. They may have further terms."""
        return self == asked or (
            replace(asked, terms=self.terms, sources=self.sources) == self
            and set(asked.terms) <= set(self.terms)
            and set(asked.sources) <= set(self.sources)
        )


class OutcomeSections(BaseModel):
    """The sections of configs/reward.yaml that say how decisions are judged.

    scenarios: by the name of a scenario, its own section. In the file, it holds only what differs from `outcome`.
    """

    outcome: OutcomeSection = OutcomeSection()
    scenarios: dict[str, OutcomeSection] = {}

    @model_validator(mode="before")
    @classmethod
    def _differ_from_outcome(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("scenarios"), dict):
            return values
        common = values.get("outcome") or {}
        sections = {
            name: {**common, **(own or {})} if isinstance(own, dict | None) and isinstance(common, dict) else own
            for name, own in values["scenarios"].items()
        }
        return {**values, "scenarios": sections}

    def section_of(self, scenario: str) -> OutcomeSection:
        return self.scenarios.get(scenario, self.outcome)


class _OutcomeFile(OutcomeSections):
    """All other sections of the file concern the reward only."""

    terms: dict[str, float] | None = None


def load_outcome_settings(path: Path, scenario: str = "") -> OutcomeSettings:
    """How configs/reward.yaml judges the decisions of a scenario, with the names in its section `terms`.

    Imports the user's own measures, so that a wrong name is reported at once. Raises ConfigError.
    """
    file = load_yaml(path, _OutcomeFile)
    try:
        settings = OutcomeSettings.of(file.section_of(scenario), file.terms or ())
        import_measures(settings)
        return settings
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def import_measures(settings: OutcomeSettings) -> None:
    """Imports the user's own measures once, in the process that forks, instead of in every fork.

    Raises ConfigError if one cannot be imported, or if its file has been changed since the settings were read.
    """
    for name in settings.measures:
        measure_named(name)
    for name, digest in settings.sources:
        if _digest(name) != digest:
            raise ConfigError(f"the file of {name!r} was changed after the settings were read: start again")


def _digest(name: str) -> str:
    """SHA-256 of the file of a user's own measure or of a student. Raises ConfigError if it does not exist."""
    if not name.startswith(STUDENT_TAIL):
        return source_sha256(name, "measure")
    path = Path(name.removeprefix(STUDENT_TAIL))
    if not path.is_file():
        raise ConfigError(f"tail {name}: {path} does not exist: make it with scripts/fit_student.py")
    return remembered_sha256_of(path)


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """The cost of each answer, in the unit of the measure (by default vehicle-seconds). Smaller is better.

    terms: the same for each further measure that was taken.
    """

    yes: float
    no: float
    terms: Mapping[str, Outcomes] = field(default_factory=dict, hash=False)

    @classmethod
    def from_costs(cls, settings: OutcomeSettings, yes: Sequence[float], no: Sequence[float]) -> Outcomes:
        """yes, no: the costs that tsc.cost.continuation.continue_with returns: of the measure, then of the terms."""
        pairs = [cls(yes=one, no=other) for one, other in zip(yes, no, strict=True)]
        return cls(yes=yes[0], no=no[0], terms=dict(zip(settings.terms, pairs[1:], strict=True)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Outcomes:
        """Reads what as_dict gives."""
        terms = {name: cls.from_dict(term) for name, term in values.get("terms", {}).items()}
        return cls(yes=float(values["yes"]), no=float(values["no"]), terms=terms)

    def cost(self, decision: Decision) -> float:
        return self.yes if decision is Decision.YES else self.no

    def saving(self, decision: Decision) -> float:
        """What `decision` saves compared with the other answer."""
        return self.cost(decision.other) - self.cost(decision)

    def better(self, tie_threshold: float = 0.0) -> Decision | None:
        """The cheaper answer. None if the two differ by no more than `tie_threshold`."""
        if abs(self.yes - self.no) <= tie_threshold:
            return None
        return Decision.YES if self.yes < self.no else Decision.NO

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: yes, no and, if there are any, terms."""
        values: dict[str, Any] = {"yes": self.yes, "no": self.no}
        return values | {"terms": {name: term.as_dict() for name, term in self.terms.items()}} if self.terms else values
