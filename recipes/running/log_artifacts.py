"""Add artifacts to the wandb run of a training: its evaluation (tables, figures, report), its adapter.

    python recipes/running/log_artifacts.py --project tsc-grpo --eval runs/demo/eval
    python recipes/running/log_artifacts.py --project tsc-grpo --adapter runs/demo/grpo/adapter

Which run that is, and whether it is online, is in the environment (recipes/running/environment.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import wandb

from tsc.errors import run_main

FILES = ("summary.csv", "results.json", "report.html")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", required=True, help="wandb's project")
    parser.add_argument("--eval", type=Path, help="folder of the evaluation")
    parser.add_argument("--adapter", type=Path, help="folder of the adapter")
    options = parser.parse_args()
    with wandb.init(project=options.project) as run:
        if options.eval is not None:
            evaluation = wandb.Artifact(f"evaluation-{run.id}", type="evaluation")
            for name in FILES:
                evaluation.add_file(str(options.eval / name))
            evaluation.add_dir(str(options.eval / "figures"), name="figures")
            run.log_artifact(evaluation)
        if options.adapter is not None:
            adapter = wandb.Artifact(f"adapter-{run.id}", type="model")
            adapter.add_dir(str(options.adapter))
            run.log_artifact(adapter)


if __name__ == "__main__":
    run_main(main)
