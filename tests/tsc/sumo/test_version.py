"""The installed version is read from the package's metadata, here from metadata made for the test."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from tsc.sumo.version import installed_sumo_version
print(installed_sumo_version())
"""


def version_with(folder: Path, version: str) -> subprocess.CompletedProcess[str]:
    metadata = folder / f"libsumo-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: libsumo\nVersion: {version}\n")
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("version", ["1.28.0", "1.30.1", "2.0.0"])
def test_a_sumo_that_is_new_enough_is_named(tmp_path: Path, version: str) -> None:
    assert version_with(tmp_path, version).stdout.strip() == version


def test_an_old_sumo_is_refused_with_the_remedy(tmp_path: Path) -> None:
    done = version_with(tmp_path, "1.9.2")
    assert done.returncode != 0
    assert "libsumo is 1.9.2, but at least 1.28 is needed: run scripts/setup_env.sh" in done.stderr
