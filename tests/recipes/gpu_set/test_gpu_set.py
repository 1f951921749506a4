"""Parts of the checks of the GPU set that the CPU set can run. scripts/check_gpu_set.sh runs all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config

from recipes.gpu_set.checks import CHECKS, OF_ALL, table
from recipes.gpu_set.launch_config import largest_model, launch_config, settings_of
from recipes.gpu_set.pretended_gpu import SHARED_MEMORY, capability_of
from recipes.gpu_set.update_memory import planned_bytes
from recipes.models.model_shape import shape_of_config
from recipes.preflight.hardware import hardware_names, load_hardware
from tsc.files import REPO_ROOT

GPUS = [name for name in hardware_names() if load_hardware(name).device == "cuda"]


@pytest.mark.parametrize("profile", GPUS)
def test_a_check_asks_for_the_run_that_the_launcher_starts_there(profile: str) -> None:
    assert capability_of(load_hardware(profile)) in SHARED_MEMORY
    model = largest_model(profile)
    config = launch_config(profile, model)
    settings = settings_of(config, profile)
    assert config.actor_rollout_ref.model.path == f"{REPO_ROOT}/configs/models/{model}"
    assert settings.actor.lora_rank == 32 and settings.actor.logit_tokens == config.data.max_response_length


def test_larger_gpus_are_asked_about_larger_models() -> None:
    assert [largest_model(profile) for profile in ("t4", "l4", "h100")] == [
        "qwen2.5-1.5b",
        "qwen2.5-3b",
        "qwen2.5-7b",
    ]


@pytest.mark.slow
def test_the_trace_of_an_update_is_what_the_plan_says(tmp_path: Path) -> None:
    config = Qwen2Config(
        vocab_size=4000,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    config.save_pretrained(tmp_path)
    code = (
        "import torch\n"
        "from recipes.gpu_set.update_memory import peak_bytes\n"
        f"print(peak_bytes({str(tmp_path)!r}, sequences=8, tokens=528, answer_tokens=16, lora_rank=32, lora_alpha=64, "
        "compute=torch.bfloat16))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO_ROOT, env={**os.environ, "PYTHONPATH": str(REPO_ROOT)},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    settings = settings_of(launch_config("l4", "qwen2.5-0.5b"), "l4")
    assert (settings.actor.micro_batch, settings.sequence_tokens, settings.actor.compute_bytes) == (8, 528, 2)
    planned = planned_bytes(shape_of_config(config, name="small"), settings)
    assert planned == pytest.approx(int(done.stdout), rel=0.2)


def test_a_table_has_a_line_for_each_profile() -> None:
    assert set(OF_ALL) < set(CHECKS)
    assert table(["profile", "update"], [["t4", "failed"]]).splitlines() == [
        "| profile | update |",
        "|---|---|",
        "| t4 | failed |",
    ]


def test_a_check_that_fails_is_named_with_its_error_and_status_1(tmp_path: Path) -> None:
    if torch.version.cuda is not None:
        pytest.skip("in the GPU set it does not fail")
    done = subprocess.run(
        [sys.executable, "recipes/gpu_set/checks.py", "--profiles", "t4", "--checks", "kernels"],
        cwd=REPO_ROOT, env={**os.environ, "PYTHONPATH": str(REPO_ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "| t4 | qwen2.5-1.5b | failed |" in done.stdout
    assert "FAILED: t4 kernels of qwen2.5-1.5b: ModuleNotFoundError" in done.stderr
