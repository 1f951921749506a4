"""The benchmarks of scripts/benchmark.py."""

import os

from tsc.files import REPO_ROOT


def with_benchmarks() -> dict[str, str]:
    """The environment for a program that imports this package. The package is not installed, so PYTHONPATH names it.

    The name traci means traci: libsumo would take it if LIBSUMO_AS_TRACI were set.
    """
    paths = [str(REPO_ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
    kept = {name: value for name, value in os.environ.items() if name != "LIBSUMO_AS_TRACI"}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
