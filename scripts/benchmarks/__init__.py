"""What scripts/benchmark.py times."""

import os

from tsc.files import REPO_ROOT


def with_benchmarks() -> dict[str, str]:
    """The environment for a program that imports this package by name. It is not installed: scripts/ is no package."""
    paths = [str(REPO_ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
