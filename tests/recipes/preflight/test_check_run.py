"""Bad knobs are refused with value, bound and remedy, before anything expensive starts."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from recipes.models.model_shape import model_shape
from recipes.preflight.check_run import (
    adapter_modules,
    check_decisions,
    check_numbers,
    check_parquet,
    prompts_of_update,
)
from recipes.preflight.compose import ALGORITHMS, compose
from tsc.errors import ConfigError

W = "actor_rollout_ref"


@pytest.mark.parametrize(
    ("algorithm", "override", "message"),
    [
        ("grpo", "trainer.total_training_steps=x", r"STEPS=x \(trainer.total_training_steps\) is not a whole number"),
        ("grpo", f"{W}.rollout.n=1", "ROLLOUT_N=1 .* is too small: choose a whole number of at least 2"),
        ("ppo", f"{W}.rollout.n=0", "ROLLOUT_N=0 .* is too small: choose a whole number of at least 1"),
        ("grpo", "data.train_batch_size=1.5", "BATCH_PROMPTS=1.5 .* is not a whole number"),
        ("grpo", f"{W}.actor.optim.lr=0", "LEARNING_RATE=0 .* is too small: choose a number above 0"),
        (
            "grpo",
            "knobs.decisions=33",
            "DECISIONS=33 .* is too large: choose .* at most 32",
        ),
        ("dpo", "trl.beta=0", "BETA=0 .* is too small: choose a number above 0"),
        ("sft", "trainer.total_epochs=0", "EPOCHS=0 .* is too small"),
    ],
)
def test_a_number_out_of_bounds_is_refused_with_knob_and_key(algorithm: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_numbers(algorithm, compose(algorithm, [override]))


def test_every_default_is_within_its_bounds() -> None:
    for algorithm in ALGORITHMS:
        check_numbers(algorithm, compose(algorithm, []))


def test_prompts_that_cannot_be_divided_among_the_updates_are_refused() -> None:
    config = compose("grpo", ["data.train_batch_size=8", "knobs.updates=2", "knobs.decisions=3"])
    assert prompts_of_update(config) == 12
    config.knobs.updates = 3
    with pytest.raises(ConfigError, match="BATCH_PROMPTS=8 cannot be divided among UPDATES=3: choose a divisor of 8"):
        prompts_of_update(config)


def test_missing_broken_and_foreign_parquet_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    with pytest.raises(ConfigError, match="does not exist"):
        check_parquet(file, "train", 1)
    file.write_text("no parquet")
    with pytest.raises(ConfigError, match="is not a Parquet file"):
        check_parquet(file, "train", 1)
    pd.DataFrame({"prompt": ["x"]}).to_parquet(file)
    with pytest.raises(ConfigError, match="lacks the column data_source, reward_model"):
        check_parquet(file, "train", 1)


def test_fewer_rows_than_a_batch_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "sft_train.parquet"
    pd.DataFrame({"messages": ["x"] * 3}).to_parquet(file)
    assert check_parquet(file, "sft", 3) == 3
    with pytest.raises(ConfigError, match="3 rows, fewer than one batch of 4"):
        check_parquet(file, "sft", 4)


@pytest.mark.parametrize(
    ("knob", "value", "message"),
    [
        ("HARDWARE", "h2o", "HARDWARE=h2o is unknown"),
        ("MODEL_PATH", "no/such/model", "no/such/model"),
        ("DATA", "no/such/data", "DATA=no/such/data does not exist"),
        ("BATCH_PROMPTS", "7", "multiple of the micro-batch"),
        ("ROLLOUT_N", "1", "ROLLOUT_N=1 "),
        ("SFT", "maybe", "SFT=maybe is unknown"),
    ],
)
def test_the_launcher_stops_at_once_on_a_bad_knob(
    repo_root: Path, tmp_path: Path, knob: str, value: str, message: str
) -> None:
    environment = os.environ | {"HARDWARE": "cpu", "RUNS": str(tmp_path), knob: value}
    done = subprocess.run(
        ["bash", "scripts/train_grpo.sh"], cwd=repo_root, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "==" not in done.stdout


def ground_truth_rows(folder: Path, texts: list[str]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / "train.parquet"
    pq.write_table(pa.table({"reward_model": [{"style": "rule", "ground_truth": text} for text in texts]}), file)
    return file


def test_rows_that_no_stretch_can_be_played_from_are_named_before_the_run(tmp_path: Path) -> None:
    request = {
        "sample_id": "one", "dataset_dir": str(tmp_path), "junction_id": "A0", "state_file": "one.xml.gz",
        "state_sha256": None, "current_green_elapsed_s": 10.0, "min_green_s": 10, "max_green_s": 60,
        "green_extension_s": 5,
        "sumo": {"version": "1.28.0", "net_file": "net.xml", "route_files": []},
    }  # fmt: skip
    there = json.dumps({"request": request})
    missing = json.dumps({"request": request | {"state_file": "two.xml.gz"}})
    (tmp_path / "one.xml.gz").touch()
    check_decisions(4, ground_truth_rows(tmp_path, [there, there]))
    with pytest.raises(ConfigError, match=r"that of row 1 of .*two\.xml\.gz, does not exist"):
        check_decisions(4, ground_truth_rows(tmp_path, [there, missing]))
    with pytest.raises(ConfigError, match="row 0 of .* does not say how: ground_truth has no object 'request'"):
        check_decisions(4, ground_truth_rows(tmp_path, ['{"outcomes": null}']))
    check_decisions(1, ground_truth_rows(tmp_path, ['{"outcomes": null}']))


def test_the_targets_of_an_adapter_are_the_word_all_linear_or_names_of_the_models_modules() -> None:
    assert adapter_modules(["all-linear"]) == adapter_modules("all-linear") == "all-linear"
    assert adapter_modules(["v_proj", "q_proj", "v_proj"]) == ["v_proj", "q_proj"]
    model_shape("tiny").lora_linears(["q_proj", "gate_proj"])
    with pytest.raises(ConfigError) as raised:
        model_shape("tiny").lora_linears(["q_proj", "v_prj"])
    text = str(raised.value)
    assert "v_prj, which tiny does not have: did you mean 'v_proj'?" in text
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "all-linear"):
        assert name in text
    with pytest.raises(ConfigError, match="LORA_TARGETS is empty"):
        adapter_modules([])


def test_peft_finds_the_modules_that_were_checked() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen3Config

    from recipes.models.tiny_model import TinyModelSize, tiny_config

    model = AutoModelForCausalLM.from_config(Qwen3Config(**tiny_config(TinyModelSize(), vocab_size=300)))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "gate_proj"], task_type="CAUSAL_LM"))
    assert set(adapted.targeted_module_names) == {
        f"model.layers.{layer}.{module}"
        for layer in range(TinyModelSize.layers)
        for module in ("self_attn.q_proj", "mlp.gate_proj")
    }


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed here")
def test_where_bitsandbytes_is_missing_a_run_says_so_and_a_dry_run_goes_through(
    repo_root: Path, tmp_path: Path
) -> None:
    overrides = ["hardware=t4", "model.quantize=4bit", "data.train_files=a", "model.path=b"]
    overrides.append("trainer.default_local_dir=c")
    training = {"algorithm": "dpo", "model": "qwen2.5-0.5b", "overrides": overrides}
    command = [sys.executable, "recipes/preflight/check_run.py"]

    def call(values: dict[str, object]) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, json.dumps(values)], cwd=repo_root, capture_output=True, text=True)

    run = call(training)
    assert run.returncode == 2
    assert "requirements/gpu.txt" in run.stderr
    dry = call(training | {"out": str(tmp_path)})
    assert dry.returncode == 0, dry.stderr
