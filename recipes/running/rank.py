"""One process of torchrun, which ends when torchrun is killed. Otherwise it would go on training unseen, and the same
command would start a second training in its folder.

    torchrun … -m recipes.running.rank MODULE ARGUMENT…
"""

from __future__ import annotations

import os
import runpy
import sys

from tsc.processes import die_with_parent

if __name__ == "__main__":
    die_with_parent(os.getppid())
    _, module, *arguments = sys.argv
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
