"""The benchmarks of scripts/benchmark.py."""

import os

from tsc.files import REPO_ROOT


def with_benchmarks() -> dict[str, str]:
    """The environment for a program that imports this package. The package is not installed, so PYTHONPATH names it."""
    paths = [str(REPO_ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
