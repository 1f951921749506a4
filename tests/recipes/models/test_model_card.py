"""The card of an exported model."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from recipes.models.export_model import export
from recipes.models.model_card import CARD_FILE, read_card, seen_in, warning
from recipes.models.tiny_model import TinyModelSize, build_tiny_model
from recipes.serving.model_choice import LocalModelChoice
from tsc.errors import ConfigError
from tsc.junction.seen_decisions import SeenDecisions
from tsc.junction.timing import Timing

SEEN = SeenDecisions.of({("four_way", "A0")}, prompt_versions=["1"], num_stages={2}, timings={Timing()})


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Of a tiny model in tmp_path/base, as verl writes one of a single rank."""
    torch.set_num_threads(1)
    chats = [[{"role": "user", "content": f"queue {n}"}, {"role": "assistant", "content": "no"}] for n in range(3)]
    pq.write_table(pa.table({"messages": chats}), tmp_path / "texts.parquet")
    build_tiny_model(tmp_path / "texts.parquet", tmp_path / "base", TinyModelSize(hidden=64, layers=1, heads=2), seed=1)
    shards = tmp_path / "checkpoints/global_step_1"
    shards.mkdir(parents=True)
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).state_dict()
    torch.save(weights, shards / "model_world_size_1_rank_0.pt")
    (shards / "fsdp_config.json").write_text('{"world_size": 1}')
    (shards.parent / "latest_checkpointed_iteration.txt").write_text("1")
    return shards.parent


def test_an_export_says_what_the_model_was_trained_on_and_the_card_is_no_part_of_the_model(
    checkpoints: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "parquet", tmp_path / "out"
    data.mkdir()
    (data / "summary.json").write_text(json.dumps({"trained_on": SEEN.model_dump(mode="json")}))
    export(checkpoints, "", tmp_path / "base", out)
    without = LocalModelChoice(name="m", model=out / "merged")
    assert without.seen() is None
    identity = without.identity()
    export(checkpoints, "", tmp_path / "base", out, data)
    assert without.seen() == SEEN and without.identity() == identity
    card = (out / "merged" / CARD_FILE).read_bytes()
    export(checkpoints, "", tmp_path / "base", out, data)
    assert (out / "merged" / CARD_FILE).read_bytes() == card


def test_data_of_another_program_give_no_card(tmp_path: Path) -> None:
    assert seen_in(tmp_path) is None
    (tmp_path / "summary.json").write_text('{"files": {}}')
    assert seen_in(tmp_path) is None


def test_the_card_of_an_adapter_is_the_one_that_counts(tmp_path: Path) -> None:
    for name, stages in (("model", 2), ("adapter", 3)):
        (tmp_path / name).mkdir()
        seen = SEEN.model_copy(update={"num_stages": (2, stages)})
        (tmp_path / name / CARD_FILE).write_text(seen.model_dump_json())
    found = read_card(tmp_path / "model", tmp_path / "adapter")
    assert found is not None and found.num_stages == (2, 3)


def test_a_broken_card_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / CARD_FILE).write_text('{"scenarios": 5}')
    with pytest.raises(ConfigError, match=f"{CARD_FILE}: scenarios: .*: export the model again, or remove the file"):
        read_card(tmp_path)


def test_the_warning_is_one_line_with_all_differences() -> None:
    differences = SEEN.differences(prompt_version="2", num_stages=[4], timings=[])
    assert warning("mine", "grid", differences) == (
        "warning: grid asks mine about decisions that it was not trained on: prompts of version 2 (trained on 1); a "
        "junction with 4 stages (trained on 2). Its answers may be poor or invalid: train it on such decisions, too"
    )
