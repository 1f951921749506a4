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
# Whole numbers below this are single tokens.
NUM_NUMBERS = 1000
# special tokens, bytes (the digits among them) and the other numbers
NUM_FIXED_TOKENS = len(SPECIAL_TOKENS) + 256 + NUM_NUMBERS - 10
# vLLM has no attention for CPUs with smaller heads.
HEAD_SIZE = 32
MAX_POSITIONS = 2048


@dataclass(frozen=True, kw_only=True)
class TinyModelSize:
    """Sizes of the model. The defaults give about 0.9 million parameters.

    heads: of 32 each. With 8, a model learns faster than with 4 which of a prompt's numbers counts for what.
    """

    hidden: int = 128
    layers: int = 2
    heads: int = 8
    vocab_size: int = 2048

    def __post_init__(self) -> None:
        if self.heads < 2 or self.heads % 2:
            raise ConfigError(
                f"--heads {self.heads} is not an even number of at least 2 (half as many key-value heads)"
            )
        if self.hidden < 2 or self.hidden % 2:
            raise ConfigError(f"--hidden {self.hidden} is not an even number of at least 2")
        if self.layers < 1:
            raise ConfigError(f"--layers {self.layers} is less than 1")
        if self.vocab_size < NUM_FIXED_TOKENS:
            raise ConfigError(
                f"--vocab-size {self.vocab_size} has no room for the {NUM_FIXED_TOKENS} tokens of bytes, numbers and "
                f"turns: choose at least that, e.g. {TinyModelSize.vocab_size}"
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
        "head_dim": HEAD_SIZE,
        "max_position_embeddings": MAX_POSITIONS,
        "use_sliding_window": False,
        # An output row that is also an input embedding could not be scaled on its own.
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "dtype": "float32",
    }
