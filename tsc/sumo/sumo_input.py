"""What SUMO was started with, as a sample and a replay request name it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tsc.files import remembered_sha256_of
from tsc.sumo.options import check_replayable_options
from tsc.sumo.running import SumoFiles
from tsc.sumo.version import installed_sumo_version


class SumoInput(BaseModel):
    """File names are relative to the folder of the dataset file. The digests are SHA-256, None where unknown. options:
    further words of SUMO's command line that shape the traffic. Fields of other generators are kept."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, frozen=True)

    version: str
    net_file: str
    route_files: tuple[str, ...]
    additional_files: tuple[str, ...] = ()
    net_sha256: str | None = None
    route_sha256: tuple[str, ...] | None = None
    additional_sha256: tuple[str, ...] | None = None
    seed: int = 0
    step_length_s: float = Field(default=1.0, gt=0)
    time_to_teleport_s: float = -1.0
    options: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_digest_a_file(self) -> SumoInput:
        for kind in ("route", "additional"):
            digests, files = getattr(self, f"{kind}_sha256"), getattr(self, f"{kind}_files")
            if digests is not None and len(digests) != len(files):
                raise ValueError(f"{kind}_sha256 has {len(digests)} digests for {len(files)} {kind}_files")
        return self

    @classmethod
    def of(cls, files: SumoFiles, folder: Path) -> SumoInput:
        """Describes `files` for a dataset in `folder`, with their digests and the installed SUMO's version."""
        return cls(
            version=installed_sumo_version(),
            net_file=name_in_dataset(files.net_file, folder),
            route_files=tuple(name_in_dataset(path, folder) for path in files.route_files),
            additional_files=tuple(name_in_dataset(path, folder) for path in files.additional_files),
            net_sha256=remembered_sha256_of(files.net_file),
            route_sha256=tuple(map(remembered_sha256_of, files.route_files)),
            # a sample without additional files says nothing of them
            additional_sha256=tuple(map(remembered_sha256_of, files.additional_files)) or None,
            seed=files.seed,
            step_length_s=files.step_length_s,
            time_to_teleport_s=files.time_to_teleport_s,
            options=files.more_options,
        )

    @property
    def digests(self) -> dict[str, str | None]:
        """The digest of each file, by the file's name. None where it is unknown."""
        found: dict[str, str | None] = {self.net_file: self.net_sha256}
        for names, known in ((self.route_files, self.route_sha256), (self.additional_files, self.additional_sha256)):
            found |= zip(names, known or [None] * len(names), strict=True)
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values. Empty options, and missing digests of additional files, have no key, so that the digests
        of older requests still hold."""
        missing = {name for name in ("additional_sha256", "options") if not getattr(self, name)}
        return self.model_dump(mode="json", exclude=missing)

    def files_in(self, folder: Path) -> SumoFiles:
        """What a simulation is started from, where `folder` is the folder of the dataset file. Raises ScenarioError for
        options that a dataset may not choose."""
        check_replayable_options(self.options)
        return SumoFiles(
            net_file=folder / self.net_file,
            route_files=tuple(folder / name for name in self.route_files),
            additional_files=tuple(folder / name for name in self.additional_files),
            seed=self.seed,
            step_length_s=self.step_length_s,
            time_to_teleport_s=self.time_to_teleport_s,
            more_options=self.options,
        )


def name_in_dataset(file: Path, dataset_dir: Path) -> str:
    """How samples name a file: relative to dataset_dir if it is below it, so that the dataset can be moved, else by its
    absolute path."""
    file, dataset_dir = file.resolve(), dataset_dir.resolve()
    return str(file.relative_to(dataset_dir)) if file.is_relative_to(dataset_dir) else str(file)
