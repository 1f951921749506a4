"""Signal programs that SUMO switches by itself, as additional files."""

from __future__ import annotations

from pathlib import Path

from tsc.simulation import SumoFiles
from tsc.timing import Timing


def plan_files(kind_name: str, files: SumoFiles, timing: Timing, end_s: float, folder: Path) -> tuple[Path, ...]:
    """To be loaded beside files.additional_files for a controller of this kind. Raises NotApplicable."""
    return ()
