"""The number of tokens in prompts: counted with a tokenizer, or estimated from their characters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tsc.errors import ConfigError

Messages = Sequence[dict[str, str]]

# Measured with SmolLM2-135M on this project's prompts. Half of their text is numbers, and each digit is a token.
CHARS_A_TOKEN = 2.6
_TOKENS_A_MESSAGE = 4  # the chat template's marks around a message (ChatML)
_BATCH = 1024


# Shares of the values. The quantiles are by nearest rank, so that each of them is one of the values.
QUANTILES = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Return the QUANTILES of one value or more."""
    ordered = sorted(values)
    return {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in QUANTILES.items()}


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a model's folder. Raises ConfigError if it is missing or lacks a chat template."""
    if not folder.is_dir():
        raise ConfigError(f"--tokenizer {folder}: no such folder: give a folder with a tokenizer.json")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigError("--tokenizer needs the package transformers: run scripts/setup_env.sh") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--tokenizer {folder}: cannot be loaded: {error}") from error
    if not tokenizer.chat_template:
        raise ConfigError(f"--tokenizer {folder}: has no chat template: give the folder of a chat model")
    return tokenizer


def prompt_tokens(prompts: Sequence[Messages], tokenizer: Any | None) -> list[int]:
    """Return the tokens of each prompt, with the generation prompt. They are estimated if tokenizer is None."""
    if tokenizer is None:
        return [
            round(sum(len(message["content"]) / CHARS_A_TOKEN + _TOKENS_A_MESSAGE for message in messages))
            for messages in prompts
        ]
    lengths: list[int] = []
    for start in range(0, len(prompts), _BATCH):
        texts = tokenizer.apply_chat_template(
            [list(messages) for messages in prompts[start : start + _BATCH]], add_generation_prompt=True, tokenize=False
        )
        lengths.extend(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    return lengths


def how_counted(tokenizer: Any | None) -> str:
    return (
        "counted with the tokenizer" if tokenizer is not None else "estimated from characters; --tokenizer counts them"
    )
