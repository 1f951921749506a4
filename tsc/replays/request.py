"""What a replay needs, as plain values that travel in a Parquet row and over process borders."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tsc.cost.outcome import OutcomeSettings
from tsc.errors import SampleError
from tsc.junction.timing import Timing
from tsc.replays.sample import SCHEMA_VERSION, Sample

# Raise it with every change to what a replay computes: outcomes that another number kept on disk are then left alone.
REPLAY_VERSION = 5


@dataclass(frozen=True, kw_only=True)
class ReplayRequest:
    """One decision point to replay. Files are relative to dataset_dir; `clocks` maps each controlled junction to its
    mode, stage, elapsed_green_s and phase_remaining_s. `embedded` maps names of these files to their content, where
    they travel with the request (tsc.replays.embedded_files)."""

    sample_id: str
    dataset_dir: str
    junction_id: str
    state_file: str
    state_sha256: str | None
    current_green_elapsed_s: float
    min_green_s: int
    max_green_s: int
    green_extension_s: int
    clocks: dict[str, dict[str, Any]] = field(default_factory=dict)
    sumo: dict[str, Any] = field(default_factory=dict)
    embedded: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_sample(cls, sample: Sample, dataset_dir: Path) -> ReplayRequest:
        """Raises SampleError where the sample does not say which SUMO files it belongs to."""
        if sample.sumo is None:
            raise SampleError(
                f"sample {sample.id or sample.state_file!r} does not name its SUMO files (field 'sumo'): "
                "pass the scenario with --sumocfg"
            )
        return cls(
            sample_id=sample.id or sample.state_file,
            dataset_dir=str(dataset_dir),
            junction_id=sample.junction_id,
            state_file=sample.state_file,
            state_sha256=sample.state_sha256,
            current_green_elapsed_s=sample.current_green_elapsed,
            min_green_s=sample.timing.min_green_s,
            max_green_s=sample.timing.max_green_s,
            green_extension_s=sample.timing.green_extension_s,
            clocks={name: clock.model_dump(mode="json") for name, clock in sample.clocks.items()},
            sumo=sample.sumo.model_dump(mode="json"),
        )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ReplayRequest:
        try:
            return cls(**values)
        except TypeError as error:
            raise SampleError(
                f"not a replay request: {error}: convert the dataset again with json_to_parquet"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, not copied."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        if not self.embedded:
            del values["embedded"]
        return values

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
        sumo = self.sumo
        has_routes = bool(sumo.get("route_sha256")) or not sumo.get("route_files")
        return bool(self.state_sha256 and sumo.get("net_sha256") and has_routes and not sumo.get("additional_files"))

    def digest(self, settings: OutcomeSettings, sumo_version: str) -> str:
        """SHA-256 over exactly what decides the outcomes: not the sample's id, nor where its files lie."""
        sumo = self.sumo
        # without digests, the names are all there is to tell one net from another
        named = None if sumo.get("net_sha256") else [self.dataset_dir, sumo.get("net_file"), sumo.get("route_files")]
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
            "clocks": self.clocks,
            "sumo": {key: value for key, value in sumo.items() if key not in ("version", "net_file", "route_files")},
            "files": named,
            "settings": settings.as_dict(),
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
