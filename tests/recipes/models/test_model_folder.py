"""Folders that cannot be used as a model or an adapter are refused with what they lack."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.models.model_folder import check_adapter_folder, check_model_folder
from tsc.errors import ConfigError

PARTS = ("config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja")


def folder_of(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text("{}")
    return path


def test_a_model_with_tokenizer_and_chat_template_is_complete(tmp_path: Path) -> None:
    check_model_folder(folder_of(tmp_path / "model", *PARTS))
    of_old = folder_of(tmp_path / "old", "config.json", "vocab.json", "pytorch_model.bin")
    (of_old / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    check_model_folder(of_old)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", r"does not have config\.json"),
        ("tokenizer.json", r"does not have tokenizer\.json"),
        ("model.safetensors", r"does not have model\.safetensors"),
        ("chat_template.jinja", "has no chat template: use an instruct model"),
    ],
)
def test_an_incomplete_model_is_refused_with_what_it_lacks(tmp_path: Path, missing: str, message: str) -> None:
    folder = folder_of(tmp_path / "model", *(name for name in PARTS if name != missing))
    with pytest.raises(ConfigError, match=message):
        check_model_folder(folder)


def test_what_is_taken_for_a_model_or_an_adapter_is_explained(tmp_path: Path) -> None:
    adapter = folder_of(tmp_path / "adapter", "adapter_config.json", "adapter_model.safetensors")
    check_adapter_folder(adapter)
    with pytest.raises(ConfigError, match="this is a LoRA adapter: give its base model as the model"):
        check_model_folder(adapter)
    with pytest.raises(ConfigError, match=r"this is a checkpoint of a training run: export it first"):
        check_model_folder(folder_of(tmp_path / "checkpoint", "fsdp_config.json"))
    with pytest.raises(ConfigError, match=r"does not have adapter_config\.json"):
        check_adapter_folder(folder_of(tmp_path / "model", *PARTS))
    with pytest.raises(ConfigError, match="the model folder .*nowhere does not exist"):
        check_model_folder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="the adapter folder .*nowhere does not exist"):
        check_adapter_folder(tmp_path / "nowhere")
