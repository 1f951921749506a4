"""The estimate of a step's time: what small models wait for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Qwen2Config

from recipes.models.model_shape import model_shape
from recipes.preflight.compose import compose
from recipes.preflight.run_settings import RunSettings, run_settings
from recipes.preflight.step_time import KERNEL_START_S, LAYER_KERNELS, step_time

# They start nothing on a GPU.
VIEWS = {
    *("alias", "as_strided", "detach", "empty", "empty_like", "empty_strided", "expand", "lift_fresh", "new_empty"),
    *("permute", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind"),
    *("unfold", "unsqueeze", "view", "_reshape_alias", "_unsafe_view"),
}


class Kernels(TorchDispatchMode):
    """Counts the operations that torch dispatches, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.number += function.name().split("::")[1].split(".")[0] not in VIEWS
        return function(*arguments, **(named or {}))


def kernels(layers: int, *, adapter: bool, checkpointing: bool) -> tuple[int, int]:
    """Of a forward pass, and of a pass with its backward pass."""
    config = Qwen2Config(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="sdpa",
    )
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if adapter:
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.train()
    ids = torch.zeros(2, 16, dtype=torch.long)
    with torch.no_grad(), Kernels() as forward, torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=ids, use_cache=False)
    with Kernels() as update:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, use_cache=False).logits.float().mean()
        loss.backward()
    return forward.number, update.number


@pytest.mark.parametrize(("adapter", "checkpointing"), list(LAYER_KERNELS))
def test_a_layer_has_the_kernels_that_torch_dispatches(adapter: bool, checkpointing: bool) -> None:
    few, more = (kernels(layers, adapter=adapter, checkpointing=checkpointing) for layers in (1, 2))
    of_a_layer = tuple(more[index] - few[index] for index in (0, 1))
    assert of_a_layer == LAYER_KERNELS[adapter, checkpointing]


def settings_of(hardware: str, *overrides: str) -> RunSettings:
    config = compose("grpo", [f"hardware={hardware}", *overrides])
    return run_settings("grpo", config, hardware=hardware)


def test_a_small_model_on_a_large_gpu_waits_for_its_kernels_to_start() -> None:
    small, settings = model_shape("smollm2"), settings_of("h100", "hardware.micro_batch_size=1")
    passes = settings.sequences
    assert step_time(small, settings)["update"] == pytest.approx(passes * small.layers * 334 * KERNEL_START_S)
    # with larger passes, arithmetic counts
    large, usual = model_shape("qwen2.5-7b"), settings_of("h100")
    assert step_time(large, usual)["update"] > 5 * usual.sequences / 32 * large.layers * 334 * KERNEL_START_S
