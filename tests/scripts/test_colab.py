"""The trainings of docs/colab.md, typed as they stand there, compose a configuration that is valid and fits a T4."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tsc.files import REPO_ROOT

CELLS = re.findall(r"^    !(.*)$", (REPO_ROOT / "docs/colab.md").read_text(), re.MULTILINE)
TRAININGS = [cell for cell in CELLS if "train_" in cell and "DRY_RUN" not in cell]


def test_the_page_has_a_training_for_one_gpu_and_one_for_two() -> None:
    assert ["N_GPUS=2" in cell for cell in TRAININGS] == [False, True]
    # what is planned is what is trained
    (plan,) = (cell for cell in CELLS if "DRY_RUN" in cell)
    assert set(plan.split()) - {"DRY_RUN=1"} <= set(TRAININGS[0].split())
    tool, *options = next(cell for cell in CELLS if "nvidia-smi" in cell).split()
    assert tool == "nvidia-smi" and "driver_version" in options[0]


@pytest.mark.parametrize("cell", TRAININGS)
def test_a_training_of_the_page_fits_and_is_valid(cell: str, tmp_path: Path) -> None:
    # the model without its weights, which a hub would give
    typed = cell.replace("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b")
    typed = re.sub(r"RUNS=\S+", f"DRY_RUN=1 RUNS={tmp_path}", typed)
    done = subprocess.run(
        ["bash", "-c", typed], cwd=REPO_ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("FITS: ") == 2  # the SFT and GRPO
    config = OmegaConf.load(tmp_path / "demo/grpo/dry_run/config.yaml")
    assert config.data.max_prompt_length == 192
    assert config.actor_rollout_ref.rollout.dtype == "float16"
    assert config.trainer.n_gpus_per_node == (2 if "N_GPUS=2" in cell else 1)
