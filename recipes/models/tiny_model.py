"""A tiny Qwen3 with random weights, and its tokenizer, for the demonstration on a machine without a GPU.

The tokenizer is a byte-level BPE, trained on the chats that the model will see. A whole number below 1000 is a single
token, and embeddings of close numbers are alike at the start. Everything between two numbers may become one token, so
that a prompt is little more than its numbers. Any other text still encodes, byte by byte.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.models.model_folder import new_model_folder, no_progress_bars_in_logs
from recipes.models.tiny_config import (
    MAX_POSITIONS,
    NUM_NUMBERS,
    PAD_TOKEN,
    SPECIAL_TOKENS,
    TURN_END,
    TURN_START,
    TinyModelSize,
    tiny_config,
)
from tsc.errors import ConfigError, run_main

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

# ChatML without a default system message: a prompt is exactly the messages of the sample. Every turn is rendered on its
# own, so that the turns tokenised one by one (as verl's SFT dataset does) are the conversation tokenised at once.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# The punctuation of JSON is separate: {"extend": "yes"} is five tokens, {" extend ": " yes "}. Otherwise an answer
# would be one token, and a model could not make a mistake in its format.
JSON_PUNCTUATION = r'[{}\[\]"]+(?:[:,] ?[{}\[\]"]+)*'

MAX_CHATS_READ = 20_000


@dataclass(frozen=True, kw_only=True)
class BuiltModel:
    """What was built. `tokens_per_chat` is the mean over the first 100 chats, answer included."""

    num_parameters: int
    vocab_size: int
    tokens_per_chat: float


def read_chats(parquet_file: Path) -> list[list[dict[str, str]]]:
    """The chats of a Parquet file's `messages` (or else `prompt`) column, at most 20,000, evenly spaced."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not parquet_file.is_file():
        raise ConfigError(
            f"--texts {parquet_file} is not a file: give a Parquet file that data_tools/json_to_parquet.py wrote, "
            "such as sft_train.parquet"
        )
    try:
        columns = pq.read_schema(parquet_file).names
        column = next((name for name in ("messages", "prompt") if name in columns), None)
        if column is None:
            raise ConfigError(f"--texts {parquet_file} has neither a column `messages` nor `prompt`: it has {columns}")
        chats: list[list[dict[str, str]]] = pq.read_table(parquet_file, columns=[column])[column].to_pylist()
    except pa.ArrowInvalid as error:
        raise ConfigError(f"--texts {parquet_file} is not a Parquet file: {error}") from error
    if not chats:
        raise ConfigError(
            f"--texts {parquet_file} has no rows, so a tiny new model has nothing to learn from: name a model of your "
            "own with MODEL_PATH, or use a dataset with labels (outcomes of both answers)"
        )
    stride = math.ceil(len(chats) / MAX_CHATS_READ)
    return chats[::stride]


def train_tokenizer(chats: list[list[dict[str, str]]], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` tokens. It has fewer if the texts repeat fewer phrases than that."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def turns() -> Iterator[str]:
        for chat in chats:
            for message in chat:
                yield f"{message['role']}\n{message['content']}"

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # A token never continues past a line's end. So the prompt, which ends with "assistant" and a line's end,
            # has the same tokens whatever answer follows.
            pre_tokenizers.Split("\n", behavior="merged_with_previous"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(JSON_PUNCTUATION), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - (NUM_NUMBERS - 10),
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(turns(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=_with_numbers(tokenizer),
        eos_token=TURN_END,
        pad_token=PAD_TOKEN,
        extra_special_tokens=[TURN_START],
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _with_numbers(tokenizer: Tokenizer) -> Tokenizer:
    """The same with a token for each number from 10 to 999, which BPE merges from its digits."""
    from tokenizers import Tokenizer

    values = json.loads(tokenizer.to_str())
    vocabulary, merges = values["model"]["vocab"], values["model"]["merges"]
    (digits,) = (each for each in values["pre_tokenizer"]["pretokenizers"] if each["type"] == "Digits")
    digits["individual_digits"] = False
    numbers = [str(number) for number in range(10, NUM_NUMBERS)]
    vocabulary.update({number: len(vocabulary) + i for i, number in enumerate(numbers)})
    merges += [[number[:-1], number[-1]] for number in numbers]
    # where the last two digits are merged before the first two, as in 110
    merges += [[number[0], number[1:]] for number in numbers if number[1:] in vocabulary and len(number) > 2]
    return Tokenizer.from_str(json.dumps(values))


def _waves(width: int) -> torch.Tensor:
    """Embeddings [1000, width] of the numbers from 0: sines and cosines with wavelengths from 4 to 1000."""
    import torch

    wavelengths = torch.logspace(math.log10(4), math.log10(NUM_NUMBERS), width // 2)
    angles = 2 * math.pi * torch.arange(NUM_NUMBERS)[:, None] / wavelengths
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def random_model(size: TinyModelSize, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights in fp32, fit for LoRA."""
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**tiny_config(size, len(tokenizer)))
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).to(torch.float32)
        # LoRA on all linear layers leaves the head as it is. The head's input has length sqrt(hidden), so no logit
        # exceeds sqrt(hidden) times the length of its row. At hidden 128 and the usual deviation 0.02 that is 2.6, and
        # no token of 400 gets a probability above 0.03. Rows of length 1 give logits of variance 1 at the start and up
        # to 11.3 later. 120 LoRA steps from random weights end at a loss of 3.61 a token with the usual deviation, and
        # at 0.10 with this one. If the head is trained too, the two are alike.
        torch.nn.init.normal_(model.lm_head.weight, std=1 / math.sqrt(size.hidden))
    numbers = tokenizer.convert_tokens_to_ids([str(number) for number in range(NUM_NUMBERS)])
    with torch.no_grad():
        # as long as the embeddings of other tokens
        model.model.embed_tokens.weight[numbers] = math.sqrt(2) * config.initializer_range * _waves(size.hidden)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def build_tiny_model(texts: Path, out: Path, size: TinyModelSize, seed: int) -> BuiltModel:
    """Write model and tokenizer to the new folder `out`; the same texts, size and seed give the same bytes."""
    with new_model_folder(out) as folder:
        chats = read_chats(texts)
        tokenizer = train_tokenizer(chats, size.vocab_size)
        model = random_model(size, tokenizer, seed)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    sample = chats[:100]
    num_tokens = sum(len(tokenizer(tokenizer.apply_chat_template(chat, tokenize=False)).input_ids) for chat in sample)
    return BuiltModel(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocab_size=len(tokenizer),
        tokens_per_chat=num_tokens / len(sample),
    )


def main() -> None:
    defaults = TinyModelSize()
    parser = argparse.ArgumentParser(
        description="Make a tiny Qwen3 with random weights, and a tokenizer trained on the given chats.",
        epilog="example: python recipes/models/tiny_model.py --texts data/mine/sft_train.parquet --out models/tiny",
    )
    parser.add_argument("--texts", type=Path, required=True, help="Parquet file with chats in `messages` or `prompt`")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; must not exist")
    parser.add_argument("--hidden", type=int, default=defaults.hidden, help="width (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=defaults.layers, help="number of layers (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=defaults.heads, help="attention heads (default: %(default)s)")
    parser.add_argument(
        "--vocab-size", type=int, default=defaults.vocab_size, help="tokens, at most (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the random weights (default: %(default)s)")
    options = parser.parse_args()
    size = TinyModelSize(
        hidden=options.hidden, layers=options.layers, heads=options.heads, vocab_size=options.vocab_size
    )
    with no_progress_bars_in_logs():
        built = build_tiny_model(options.texts, options.out, size, options.seed)
    print(
        f"wrote a model of {built.num_parameters / 1e6:.2f} million parameters and a tokenizer of {built.vocab_size} "
        f"tokens (a chat has {built.tokens_per_chat:.0f}) to {options.out}"
    )


if __name__ == "__main__":
    run_main(main)
