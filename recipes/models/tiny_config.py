"""The sizes of the tiny Qwen3 that recipes/models/tiny_model.py builds, and its config: all that a memory plan needs.

It is a Qwen3 and not a Qwen2 (which has no normalised queries and keys), because transformers gives every Qwen2 the
word splitting of Qwen's own tokenizer, whatever its tokenizer.json says. That makes these prompts two to four times
longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tsc.errors import ConfigError

PAD_TOKEN = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (PAD_TOKEN, TURN_START, TURN_END)
NUM_SPECIAL_AND_BYTE_TOKENS = len(SPECIAL_TOKENS) + 256
MAX_POSITIONS = 2048


@dataclass(frozen=True, kw_only=True)
class TinyModelSize:
    """Sizes of the model. The defaults give about half a million parameters."""

    hidden: int = 128
    layers: int = 2
    heads: int = 4
    vocab_size: int = 768

    def __post_init__(self) -> None:
        if self.heads < 2 or self.heads % 2:
            raise ConfigError(
                f"--heads {self.heads} is not an even number of at least 2 (half as many key-value heads)"
            )
        if self.hidden < 1 or self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ConfigError(
                f"--hidden {self.hidden} does not divide into {self.heads} heads of an even size: "
                f"choose a multiple of {2 * self.heads}, e.g. {32 * self.heads}"
            )
        if self.layers < 1:
            raise ConfigError(f"--layers {self.layers} is less than 1")
        if self.vocab_size < NUM_SPECIAL_AND_BYTE_TOKENS:
            raise ConfigError(
                f"--vocab-size {self.vocab_size} has no room for the {NUM_SPECIAL_AND_BYTE_TOKENS} special and byte "
                f"tokens: choose at least that, e.g. {TinyModelSize.vocab_size}"
            )


def tiny_config(size: TinyModelSize, vocab_size: int) -> dict[str, Any]:
    """The values of the model's Qwen3Config without the ids of its tokenizer's special tokens."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": size.hidden,
        "intermediate_size": 3 * size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads // 2,
        "head_dim": size.hidden // size.heads,
        "max_position_embeddings": MAX_POSITIONS,
        "use_sliding_window": False,
        # An output row that is also an input embedding could not be scaled on its own.
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "dtype": "float32",
    }
