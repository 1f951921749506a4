"""DRY_RUN=1 of every launcher: the plan of a machine that is not here, and the configuration verl would get."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml


def dry_run(repo_root: Path, runs: Path, script: str, **knobs: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DRY_RUN": "1", "RUNS": str(runs), "RUN_NAME": "dry"} | knobs
    command = ["bash", f"scripts/train_{script}.sh"]
    return subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize(
    ("script", "hardware", "model", "n_gpus"),
    [
        ("gspo", "l4", "qwen2.5-1.5b", "2"),
        ("sft", "a100_80g", "qwen2.5-7b", "1"),
        ("dpo", "a10g", "qwen2.5-3b", "1"),
    ],
)
def test_a_dry_run_prints_the_plan_and_writes_the_configuration(
    repo_root: Path, tmp_path: Path, script: str, hardware: str, model: str, n_gpus: str
) -> None:
    done = dry_run(repo_root, tmp_path, script, HARDWARE=hardware, MODEL_PATH=model, LORA_RANK="32", N_GPUS=n_gpus)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{script.upper()} of {model}" in done.stdout
    assert "FITS: " in done.stdout
    assert "the configuration is valid" in done.stdout
    assert "[transformers]" not in done.stderr  # of parts that no check needs
    config = yaml.safe_load((tmp_path / f"dry/{script}/dry_run/config.yaml").read_text())
    assert config["hardware"]["name"] == hardware
    assert config["hardware"]["num_devices"] == int(n_gpus)
    # verl would wait for ever for three a GPU and two more
    assert config["hardware"]["ray_num_cpus"] == 3 * int(n_gpus) + 2
    # nothing was trained, and nothing else written
    assert [path.name for path in tmp_path.glob("dry/*/*")] == ["dry_run"]


def test_the_sft_before_it_is_planned_too(repo_root: Path, tmp_path: Path) -> None:
    done = dry_run(repo_root, tmp_path, "grpo", HARDWARE="t4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.index("SFT of tiny") < done.stdout.index("GRPO of tiny")


def test_what_does_not_fit_ends_the_run_with_what_to_type_instead(repo_root: Path, tmp_path: Path) -> None:
    done = dry_run(repo_root, tmp_path, "grpo", HARDWARE="t4", MODEL_PATH="qwen2.5-3b")
    assert done.returncode == 2
    assert "DOES NOT FIT" in done.stdout
    remedy = done.stdout.split("To make it fit")[1]
    assert "bash scripts/train_grpo.sh" in remedy


def test_a_plan_can_be_ignored(repo_root: Path, tmp_path: Path) -> None:
    done = dry_run(repo_root, tmp_path, "sft", HARDWARE="t4", MODEL_PATH="qwen2.5-3b", FIT="ignore")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DOES NOT FIT" in done.stdout
    assert "FIT=ignore: continuing" in done.stdout


def test_a_profile_without_its_gpu_only_runs_dry(repo_root: Path, tmp_path: Path) -> None:
    done = dry_run(repo_root, tmp_path, "grpo", HARDWARE="t4", DRY_RUN="0")
    assert done.returncode == 2
    assert "needs an NVIDIA GPU" in done.stderr
    assert "DRY_RUN=1" in done.stderr
