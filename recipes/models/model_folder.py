"""Folders with a language model in the Hugging Face layout: written as a whole or not at all, checked before use."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tsc.errors import ConfigError

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
ADAPTER_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")


@contextmanager
def new_model_folder(out: Path) -> Iterator[Path]:
    """A folder to write into. It becomes `out` when the block ends, and is removed if the block fails.

    Raises ConfigError if `out` exists and is not an empty folder, or cannot be written.
    """
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already: choose another place with --out, or remove it")
    # In the same folder as `out`, because a folder can only be renamed within one file system.
    partial = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(out)
    except OSError as error:
        raise ConfigError(f"cannot write the model to {out}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def no_progress_bars_in_logs() -> Iterator[None]:
    """Switch off transformers' progress bars in the block, unless standard error is a terminal."""
    from transformers.utils import logging

    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def read_json_object(file: Path) -> dict[str, Any]:
    """The content of a JSON file. Raises ConfigError if it cannot be read or is not a JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} does not hold a JSON object")
    return content


def missing_parts(path: Path) -> list[str]:
    """The files that a model folder lacks; empty if the model can be loaded with its tokenizer."""
    return _missing(path, (("config.json",), TOKENIZER_FILES, WEIGHT_FILES))


def _missing(path: Path, parts: Sequence[Sequence[str]]) -> list[str]:
    return [" or ".join(names) for names in parts if not any((path / name).is_file() for name in names)]


def check_model_folder(path: Path) -> None:
    """Raises ConfigError unless `path` is a complete folder of a model that chats."""
    if not path.is_dir():
        raise ConfigError(f"the model folder {path} does not exist")
    missing = missing_parts(path)
    if not missing:
        if not _has_chat_template(path):
            raise ConfigError(
                f"the model folder {path} has no chat template: use an instruct model, or add the template"
            )
        return
    remedy = "give the folder of a model saved with its tokenizer (save_pretrained)"
    if (path / "adapter_config.json").is_file():
        remedy = "this is a LoRA adapter: give its base model as the model, and this folder as the adapter"
    elif (path / "huggingface").is_dir() or any(path.glob("fsdp_config.json")):
        remedy = "this is a checkpoint of a training run: export it first (python scripts/export_model.py --help)"
    raise ConfigError(f"the model folder {path} does not have {', nor '.join(missing)}: {remedy}")


def _has_chat_template(path: Path) -> bool:
    if any((path / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    file = path / "tokenizer_config.json"
    return file.is_file() and bool(read_json_object(file).get("chat_template"))


def check_adapter_folder(path: Path) -> None:
    """Raises ConfigError unless `path` is a LoRA adapter as PEFT saves it."""
    if not path.is_dir():
        raise ConfigError(f"the adapter folder {path} does not exist")
    missing = _missing(path, (("adapter_config.json",), ADAPTER_WEIGHT_FILES))
    if missing:
        raise ConfigError(
            f"the adapter folder {path} does not have {', nor '.join(missing)}: give a LoRA adapter as PEFT saves it, "
            "such as the lora_adapter folder of a merged checkpoint"
        )
