"""Base weights of 4 bits under a LoRA adapter (knob QUANTIZE; Dettmers et al. 2023, QLoRA): where that can be had."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tsc.errors import ConfigError
from tsc.files import write_atomically

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel

FOUR_BIT = "4bit"
NOTE = "quantised_weights.json"
# verl 0.9.1: its FSDP engine loads the weights without a quantization_config and then casts the whole model
# (workers/engine/fsdp/transformer_impl.py, _build_module), so frozen weights of 4 bits cannot be had. What it calls QAT
# (engine/fsdp.yaml, `qat`) trains all weights in full and rounds them to NVFP4 on the way to vLLM: it saves memory in
# vLLM only, and wants a GPU that computes in NVFP4. The rollout's own `quantization` (fp8, torchao) is vLLM's side too.
NOT_IN_VERL = (
    "verl 0.9.1 cannot train an adapter on 4-bit weights (its FSDP workers load all weights in full; its `qat` and "
    "rollout.quantization concern what vLLM holds): leave QUANTIZE empty and keep LORA_RANK above 0, which needs no "
    "gradients and no optimizer for the model's own weights; or choose a smaller model; or train on pairs, "
    "QUANTIZE=4bit bash scripts/train_dpo.sh"
)


def check_quantize(algorithm: str, quantize: str, lora_rank: int) -> None:
    """Raise ConfigError unless QUANTIZE=`quantize` works with this algorithm (grpo, gspo, ppo, sft, dpo) and rank."""
    if not quantize:
        return
    if quantize != FOUR_BIT:
        raise ConfigError(f"QUANTIZE={quantize} is unknown: choose {FOUR_BIT}, or leave it empty for full weights")
    if algorithm != "dpo":
        raise ConfigError(f"QUANTIZE={FOUR_BIT} with {algorithm.upper()}: {NOT_IN_VERL}")
    if lora_rank == 0:
        raise ConfigError(
            f"QUANTIZE={FOUR_BIT} with LORA_RANK=0: weights of 4 bits cannot be trained: leave LORA_RANK empty"
        )


def check_quantize_installed() -> None:
    """Raise ConfigError where the library that packs the weights is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"QUANTIZE={FOUR_BIT} needs bitsandbytes, which only the packages for GPUs have (requirements/gpu.txt): "
            "leave QUANTIZE empty on a CPU"
        )


def four_bit_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 weights that are multiplied in `dtype`."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        # the quantisation constants quantised, too: 0.4 bits a weight less (QLoRA, section 3)
        bnb_4bit_use_double_quant=True,
    )


def note_quantised(checkpoints: Path, dtype: torch.dtype) -> None:
    """Keep beside the checkpoints what weights their adapters belong to."""
    write_atomically(checkpoints / NOTE, json.dumps({"quantize": FOUR_BIT, "dtype": str(dtype)}).encode())


def quantised_base(checkpoints: Path, base: Path) -> PreTrainedModel | None:
    """The model in `base` with its weights rounded to 4 bits and back, if the checkpoints were trained on such.

    An adapter makes up for the rounding that it was trained with, so a merged model answers as the trained one only
    where it has the same rounding.
    """
    note = checkpoints / NOTE
    if not note.is_file():
        return None
    import torch
    from transformers import AutoModelForCausalLM

    check_quantize_installed()
    dtype = getattr(torch, json.loads(note.read_text(encoding="utf-8"))["dtype"].removeprefix("torch."))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, quantization_config=four_bit_config(dtype))
    whole: PreTrainedModel = model.dequantize(dtype).to("cpu")
    return whole
