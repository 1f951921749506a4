"""Add an evaluation to the wandb run of its training: an artifact with the figures, summary.csv and the report.

    python recipes/running/log_evaluation.py --eval runs/demo/eval --project tsc-grpo

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
    parser.add_argument("--eval", type=Path, required=True, help="folder of the evaluation")
    parser.add_argument("--project", required=True, help="wandb's project")
    options = parser.parse_args()
    with wandb.init(project=options.project) as run:
        artifact = wandb.Artifact(f"evaluation-{run.id}", type="evaluation")
        for name in FILES:
            artifact.add_file(str(options.eval / name))
        artifact.add_dir(str(options.eval / "figures"), name="figures")
        run.log_artifact(artifact)


if __name__ == "__main__":
    run_main(main)
