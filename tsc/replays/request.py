"""What a replay needs, as one value that travels in a Parquet row and over process borders."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tsc.cost.outcome import OutcomeSettings
from tsc.errors import ConfigError, SampleError
from tsc.junction.clock import Clock
from tsc.junction.timing import Timing
from tsc.replays.sample import SCHEMA_VERSION, Sample, StateFile
from tsc.sumo.sumo_input import SumoInput

# What `digest` leaves out of `sumo`: digests say it better.
_BESIDE_DIGESTS = ("version", "net_file", "route_files")

_REMEDY = "convert the dataset again with json_to_parquet"


@dataclass(frozen=True, kw_only=True)
class ReplayRequest:
    """One decision point to replay.

    state_file and the files of `sumo` are relative to dataset_dir. clocks: the clock of each controlled junction.
    embedded: the content of files that travel with the request, by their names (tsc.replays.embedded_files).
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    sample_id: str
    dataset_dir: str
    junction_id: str
    state_file: StateFile
    state_sha256: str | None
    current_green_elapsed_s: float
    min_green_s: int
    max_green_s: int
    green_extension_s: int
    clocks: dict[str, Clock] = field(default_factory=dict)
    sumo: SumoInput
    embedded: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_sample(cls, sample: Sample, dataset_dir: Path) -> ReplayRequest:
        """Raises SampleError if the sample does not say which SUMO files it belongs to."""
        if sample.sumo is None:
            raise SampleError(
                f"sample {sample.id or sample.state_file!r} does not name its SUMO files (field 'sumo'): "
                "pass the scenario with --sumocfg"
            )
        timing = sample.timing
        return cls(
            sample_id=sample.id or sample.state_file,
            dataset_dir=str(dataset_dir),
            junction_id=sample.junction_id,
            state_file=sample.state_file,
            state_sha256=sample.state_sha256,
            current_green_elapsed_s=sample.current_green_elapsed,
            min_green_s=timing.min_green_s,
            max_green_s=timing.max_green_s,
            green_extension_s=timing.green_extension_s,
            clocks=sample.clocks,
            sumo=sample.sumo,
        )

    @classmethod
    def from_json(cls, values: object) -> ReplayRequest:
        """Reads what to_json gives. Raises SampleError that names each wrong field."""
        try:
            request = _REQUEST.validate_python(values)
            timing = request.timing
        except ValidationError as error:
            raise SampleError(f"not a replay request: {faults_in(error)}: {_REMEDY}") from error
        except ConfigError as error:
            raise SampleError(f"not a replay request: {error}: {_REMEDY}") from error
        if not timing.may_decide(request.current_green_elapsed_s):
            raise SampleError(
                f"not a replay request: current_green_elapsed_s is {request.current_green_elapsed_s:g}: must be at "
                f"least min_green_s {timing.min_green_s} and below max_green_s {timing.max_green_s}: {_REMEDY}"
            )
        return request

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, which share the request's texts."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["clocks"] = self._clocks_json()
        values["sumo"] = self.sumo.to_json()
        if not self.embedded:
            del values["embedded"]
        return values

    def _clocks_json(self) -> dict[str, Any]:
        return {junction_id: clock.model_dump(mode="json") for junction_id, clock in self.clocks.items()}

    @property
    def timing(self) -> Timing:
        return Timing(
            min_green_s=self.min_green_s, max_green_s=self.max_green_s, green_extension_s=self.green_extension_s
        )

    @property
    def state_path(self) -> Path:
        return Path(self.dataset_dir, self.state_file)

    @property
    def has_all_digests(self) -> bool:
        """Whether every file that decides the outcomes is named by its content, so that `digest` holds for good."""
        # an additional file may name further files
        return bool(self.state_sha256 and all(self.sumo.digests.values()) and not self.sumo.additional_files)

    def digest(self, settings: OutcomeSettings, sumo_version: str) -> str:
        """SHA-256 over exactly what decides the outcomes: not the sample's id, nor where its files lie."""
        sumo = self.sumo
        # without digests, only the names tell one file from another
        named = None if all(sumo.digests.values()) else [self.dataset_dir, sumo.net_file, sumo.route_files]
        what = {
            "schema_version": SCHEMA_VERSION,
            "sumo_version": sumo_version,
            "state": self.state_sha256 or str(self.state_path),
            "junction_id": self.junction_id,
            "current_green_elapsed_s": self.current_green_elapsed_s,
            "timing": {
                "min_green_s": self.min_green_s,
                "max_green_s": self.max_green_s,
                "green_extension_s": self.green_extension_s,
            },
            "clocks": self._clocks_json(),
            "sumo": {name: value for name, value in sumo.to_json().items() if name not in _BESIDE_DIGESTS},
            "files": named,
            "settings": settings.as_dict(),
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


_REQUEST = TypeAdapter(ReplayRequest)


def faults_in(error: ValidationError) -> str:
    """Each wrong field with what is wrong with it, in one line."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, detail['loc'])) or 'value'}: {detail['msg']}" for detail in details)
