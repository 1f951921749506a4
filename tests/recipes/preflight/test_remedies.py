"""What the plan tells a user to type: following it makes the same run fit, through the composed configuration."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from recipes.models.model_shape import ModelShape, model_shape
from recipes.preflight.compose import compose
from recipes.preflight.memory_plan import memory_plan
from recipes.preflight.remedies import Remedy, find_remedy
from recipes.preflight.run_settings import GIB, RunSettings, run_settings

ALGORITHMS = ("grpo", "gspo", "ppo", "sft", "dpo")
HARDWARE = ("t4", "l4", "a10g", "a100_40g", "a100_80g", "h100", "h200")
SIZES = ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b")


@cache
def composed(algorithm: str, hardware: str):
    return compose(algorithm, [f"hardware={hardware}"])


@cache
def settings_of(algorithm: str, hardware: str, overrides: tuple[str, ...] = ()) -> RunSettings:
    config = composed(algorithm, hardware).copy()
    for override in overrides:
        key, value = override.split("=", 1)
        OmegaConf.update(config, key, OmegaConf.create(f"value: {value}").value)
    return run_settings(algorithm, config, hardware=hardware)


@cache
def shape_of(model: str) -> ModelShape:
    return model_shape(model)


def lora_rank(algorithm: str) -> str:
    return "model.lora_rank" if algorithm in ("sft", "dpo") else "actor_rollout_ref.model.lora_rank"


def as_overrides(algorithm: str, remedy: Remedy) -> list[str]:
    """What a shell and then the launcher make of the line that the user is told to type."""
    knobs = {
        "MICRO_BATCH": "hardware.micro_batch_size",
        "N_GPUS": "hardware.num_devices",
        "TENSOR_PARALLEL": "hardware.tensor_parallel",
        "LORA_RANK": lora_rank(algorithm),
        "QUANTIZE": "model.quantize",
    }
    words = shlex.split(remedy.command(f"scripts/train_{algorithm}.sh"))
    at = words.index("bash")
    before, script, after = words[:at], words[at + 1], words[at + 2 :]
    assert script == f"scripts/train_{algorithm}.sh"
    assert all(re.fullmatch(r"[A-Z_]+=\w+", word) for word in before)
    assert all(re.fullmatch(r"hardware\.\w+=[\w.]+", word) for word in after)
    named = dict(word.split("=", 1) for word in before)
    return [*(f"{knobs[name]}={value}" for name, value in named.items()), *after]


@pytest.mark.parametrize("hardware", ["t4", "a10g", "a100_80g"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_remedy_typed_as_it_is_told_makes_the_next_plan_fit(algorithm: str, hardware: str) -> None:
    for overrides in (
        (),
        (f"{lora_rank(algorithm)}=0",),
        ("hardware.num_devices=2", "hardware.micro_batch_size=64", "hardware.gradient_checkpointing=false"),
    ):
        settings = settings_of(algorithm, hardware, overrides)
        for model in SIZES:
            shape = shape_of(model)
            for more_gpus in (False, True):
                remedy = find_remedy(shape, settings, more_gpus=more_gpus)
                if remedy is None or not remedy.words:
                    assert (remedy is None) != memory_plan(shape, settings).fits
                    continue
                told = as_overrides(algorithm, remedy)
                followed = settings_of(algorithm, hardware, (*overrides, *told))
                assert memory_plan(shape, followed).fits, (model, overrides, told)
                assert followed == remedy.settings, (model, overrides, told)


def test_the_combinations_above_ask_for_remedies_and_get_them() -> None:
    """Guards the test above against passing because there is nothing to remedy."""
    singles = combined = hopeless = more_gpus = 0
    for algorithm in ALGORITHMS:
        for hardware in HARDWARE:
            settings = settings_of(algorithm, hardware, (f"{lora_rank(algorithm)}=0",))
            for model in SIZES:
                remedy = find_remedy(shape_of(model), settings)
                if remedy is None:
                    hopeless += 1
                    more_gpus += find_remedy(shape_of(model), settings, more_gpus=True) is not None
                else:
                    singles += len(remedy.words) == 1
                    combined += len(remedy.words) > 1
    assert singles > 20
    assert combined > 5
    assert hopeless > 0
    assert more_gpus > 0


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    algorithm=st.sampled_from(ALGORITHMS),
    model=st.sampled_from(SIZES),
    memory_gib=st.integers(8, 160),
    fraction=st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]),
    micro_batch=st.sampled_from([1, 2, 4, 8, 16, 32, 64]),
    lora_rank=st.sampled_from([0, 8, 64]),
    checkpointing=st.booleans(),
    sleeps=st.booleans(),
    prompt_tokens=st.sampled_from([128, 512, 4096]),
)
def test_every_remedy_fits_whatever_the_gpu_and_the_settings(
    algorithm: str,
    model: str,
    memory_gib: int,
    fraction: float,
    micro_batch: int,
    lora_rank: int,
    checkpointing: bool,
    sleeps: bool,
    prompt_tokens: int,
) -> None:
    shape = shape_of(model)
    settings = settings_of(algorithm, "a100_40g").with_micro_batch(micro_batch)
    settings = replace(
        settings,
        device=replace(settings.device, memory_bytes=memory_gib * GIB),
        prompt_tokens=prompt_tokens,
        actor=replace(settings.actor, lora_rank=lora_rank, gradient_checkpointing=checkpointing),
    )
    if settings.rollout is not None:
        rollout = replace(settings.rollout, memory_fraction=fraction, sleeps=sleeps, max_model_len=prompt_tokens + 16)
        settings = replace(settings, rollout=rollout)
    remedy = find_remedy(shape, settings, more_gpus=True)
    if remedy is not None:
        assert memory_plan(shape, remedy.settings).fits
        assert bool(remedy.words) != memory_plan(shape, settings).fits


def test_the_largest_micro_batch_that_fits_is_told() -> None:
    shape = shape_of("qwen2.5-0.5b")
    settings = settings_of("sft", "t4", ("hardware.micro_batch_size=64", "model.lora_rank=0"))
    remedy = find_remedy(shape, settings)
    assert remedy is not None
    (word,) = remedy.words
    size = int(word.removeprefix("MICRO_BATCH="))
    assert memory_plan(shape, settings.with_micro_batch(size)).fits
    larger = [other for other in (2, 4, 8, 16, 32, 64) if other > size]
    assert larger and not any(memory_plan(shape, settings.with_micro_batch(other)).fits for other in larger)


def test_environment_variables_stand_before_the_command_and_overrides_after_it() -> None:
    remedy = Remedy(words=("hardware.gradient_checkpointing=true", "MICRO_BATCH=2"), settings=settings_of("grpo", "t4"))
    line = "MICRO_BATCH=2 bash scripts/train_grpo.sh hardware.gradient_checkpointing=true"
    assert remedy.command("scripts/train_grpo.sh") == line


def test_base_weights_in_bfloat16_are_not_told_where_the_gpu_lacks_it() -> None:
    shape = shape_of("qwen2.5-7b")
    for hardware, told in (("t4", False), ("l4", True)):
        settings = settings_of("sft", hardware, ("model.lora_rank=32",))
        settings = replace(settings, device=replace(settings.device, memory_bytes=24 * GIB))
        remedy = find_remedy(shape, settings)
        assert (remedy is not None and "hardware.model_dtype=bf16" in remedy.words) == told
