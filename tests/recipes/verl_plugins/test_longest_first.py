"""The longest prompt in the first pass, in verl's own datasets under the samplers of its trainers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from sumolib.miscutils import getFreeSocketPort
from torch.utils.data import DistributedSampler
from torchdata.stateful_dataloader.sampler import RandomSampler

from recipes.models.tiny_config import TinyModelSize
from recipes.preflight.compose import compose
from recipes.running.environment import run_environment
from recipes.verl_plugins.longest_first import (
    LongestFirstRLDataset,
    LongestFirstSFTDataset,
    first_of_shuffled,
    swapped_rows,
)


def chat(length: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "x" * length}]


def test_only_the_longest_and_the_first_row_change_places() -> None:
    assert swapped_rows([chat(3), chat(9), chat(5)], first=2) == {2: 1, 1: 2}
    assert swapped_rows([chat(3), chat(9), chat(5)], first=1) == {1: 1}


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_first_row_is_the_one_that_the_samplers_draw_first(seed: int) -> None:
    rows = range(50)
    drawn = RandomSampler(data_source=rows, generator=torch.Generator().manual_seed(seed))
    assert next(iter(drawn)) == first_of_shuffled(50, seed)
    distributed = DistributedSampler(rows, num_replicas=2, rank=0, shuffle=True, drop_last=True, seed=seed)
    assert next(iter(distributed)) == first_of_shuffled(50, seed)


@pytest.fixture(scope="module")
def parquet_and_model(small_dataset: Path, repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from recipes.models.tiny_model import build_tiny_model

    folder = tmp_path_factory.mktemp("longest")
    command = [
        sys.executable,
        "data_tools/json_to_parquet.py",
        "--input",
        small_dataset,
        "--output",
        folder / "parquet",
    ]
    subprocess.run(command, cwd=repo_root, check=True)
    size = TinyModelSize(hidden=32, layers=2)
    build_tiny_model(folder / "parquet/sft_train.parquet", folder / "model", size, seed=1)
    return folder / "parquet", folder / "model"


def test_verls_datasets_give_every_row_once_and_the_longest_first(parquet_and_model: Any) -> None:
    from transformers import AutoTokenizer

    parquet, model = parquet_and_model
    tokenizer = AutoTokenizer.from_pretrained(model)

    def contents(rows: Any, key: str) -> list[str]:
        return ["".join(message["content"] for message in row[key]) for row in rows]

    config = compose("grpo", ["hardware=cpu", f"data.train_files={parquet}/train.parquet"]).data
    rl = LongestFirstRLDataset(str(parquet / "train.parquet"), tokenizer, config)
    (path, name) = config.custom_cls.path, config.custom_cls.name
    assert (path, name) == (f"pkg://{LongestFirstRLDataset.__module__}", LongestFirstRLDataset.__name__)
    drawn = RandomSampler(data_source=rl, generator=torch.Generator().manual_seed(config.seed))
    texts = contents([rl[index] for index in drawn], "raw_prompt")
    assert len(texts[0]) == max(map(len, texts)) > min(map(len, texts))
    assert sorted(texts) == sorted(contents(rl.dataframe, "prompt"))

    config = compose("sft", ["hardware=cpu", f"data.train_files={parquet}/sft_train.parquet"]).data
    sft = LongestFirstSFTDataset(str(parquet / "sft_train.parquet"), tokenizer, config)
    assert config.custom_cls.name == LongestFirstSFTDataset.__name__
    sampler = DistributedSampler(sft, num_replicas=1, rank=0, shuffle=True, drop_last=True)
    texts = [tokenizer.decode(sft[index]["input_ids"]) for index in sampler]
    assert len(texts[0]) == max(map(len, texts)) > min(map(len, texts))
    assert sorted(texts) == sorted(tokenizer.decode(sft[index]["input_ids"]) for index in range(len(sft)))


# Starts verl's SFT with so little memory that eager attention over the long chat does not fit.
CAPPED = """
import resource, runpy, sys
import psutil, verl.trainer.sft_trainer
size = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (size + 1_000_000_000, resource.RLIM_INFINITY))
runpy.run_module("verl.trainer.sft_trainer", run_name="__main__", alter_sys=True)
"""


def test_a_lack_of_memory_shows_in_the_first_step_and_names_the_knob(
    parquet_and_model: Any, repo_root: Path, tmp_path: Path
) -> None:
    parquet, model = parquet_and_model
    chats = pd.read_parquet(parquet / "sft_train.parquet").head(20)
    chats.at[19, "messages"] = [
        message if message["role"] == "assistant" else {**message, "content": 30 * message["content"]}
        for message in chats.at[19, "messages"]
    ]
    chats.to_parquet(tmp_path / "chats.parquet")
    overrides = [
        "hardware=cpu", f"data.train_files={tmp_path}/chats.parquet", f"model.path={model}", "data.max_length=32768",
        "data.train_batch_size=1", "data.micro_batch_size_per_gpu=1", "trainer.logger=[file]",
        f"trainer.default_local_dir={tmp_path}/checkpoints", "model.override_config.attn_implementation=eager",
    ]  # fmt: skip
    command = [sys.executable, "recipes/running/supervise.py", "--log", tmp_path / "log", "--name", "verl (SFT)", "--"]
    command += [sys.executable, "-c", CAPPED, "--config-path", repo_root / "recipes", "--config-name", "sft"]
    environment = os.environ | run_environment("cpu", {}) | {"VERL_FILE_LOGGER_PATH": str(tmp_path / "metrics.jsonl")}
    environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(getFreeSocketPort()), "PYTHONPATH": str(repo_root)}
    done = subprocess.run(
        [*command, *overrides], cwd=repo_root, env=environment, capture_output=True, text=True, timeout=250
    )
    log = (tmp_path / "log").read_text()
    assert done.returncode == 1, log
    assert "main memory ran out: end other programs, halve MICRO_BATCH" in done.stderr, log
    metrics = tmp_path / "metrics.jsonl"
    assert not metrics.is_file() or "train/loss" not in metrics.read_text()
