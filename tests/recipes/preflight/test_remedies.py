"""What the plan tells a user to type: following it makes the same run fit, through the composed configuration."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from recipes.models.model_shape import ModelShape, model_shape
from recipes.preflight.compose import compose
from recipes.preflight.memory_plan import memory_plan
from recipes.preflight.remedies import Change, Remedy, find_remedies, least, shortage_bytes
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
def facts_of(model: str) -> ModelShape:
    return model_shape(model)


def full_fine_tuning(algorithm: str) -> str:
    return "model.lora_rank=0" if algorithm in ("sft", "dpo") else "actor_rollout_ref.model.lora_rank=0"


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_remedy_typed_as_it_is_told_makes_the_next_plan_fit(algorithm: str, hardware: str) -> None:
    for overrides in (
        (),
        (full_fine_tuning(algorithm),),
        ("hardware.num_devices=2", "hardware.micro_batch_size=64", "hardware.gradient_checkpointing=false"),
    ):
        settings = settings_of(algorithm, hardware, overrides)
        for model in SIZES:
            facts = facts_of(model)
            if memory_plan(facts, settings).fits:
                continue
            for remedy in find_remedies(facts, settings):
                followed = settings_of(algorithm, hardware, (*overrides, *remedy.overrides))
                assert memory_plan(facts, followed).fits, (model, overrides, remedy.overrides)
                assert followed == remedy.settings, (model, overrides, remedy.overrides)


def test_the_combinations_above_ask_for_remedies_and_get_them() -> None:
    """Guards the test above against passing because there is nothing to remedy."""
    singles = combinations = hopeless = 0
    for algorithm in ALGORITHMS:
        for hardware in HARDWARE:
            settings = settings_of(algorithm, hardware, (full_fine_tuning(algorithm),))
            for model in SIZES:
                if memory_plan(facts_of(model), settings).fits:
                    continue
                remedies = find_remedies(facts_of(model), settings)
                hopeless += not remedies
                singles += any(len(remedy.changes) == 1 for remedy in remedies)
                combinations += any(len(remedy.changes) > 1 for remedy in remedies)
    assert singles > 20
    assert combinations > 5
    assert hopeless > 0


@hypothesis_settings(max_examples=60, deadline=None)
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
def test_every_remedy_fits_and_without_any_of_its_changes_the_run_does_not(
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
    facts = facts_of(model)
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
    plan = memory_plan(facts, settings)
    if plan.fits:
        assert shortage_bytes(plan, settings, facts) == 0
        return
    assert shortage_bytes(plan, settings, facts) > 0
    remedies = find_remedies(facts, settings)
    for remedy in remedies:
        assert memory_plan(facts, remedy.settings).fits
        assert remedy.changes
    if not remedies:
        assert not memory_plan(facts, least(facts, settings)).fits


def test_the_nearest_value_is_told_not_the_smallest() -> None:
    facts = facts_of("qwen2.5-0.5b")
    settings = settings_of("sft", "t4", ("hardware.micro_batch_size=64",))
    remedy = find_remedies(facts, settings, most=1)[0]
    (change,) = remedy.changes
    size = int(change.words.removeprefix("MICRO_BATCH="))
    assert memory_plan(facts, settings.with_micro_batch(size)).fits
    larger = [other for other in (2, 4, 8, 16, 32, 64) if other > size]
    assert larger and not any(memory_plan(facts, settings.with_micro_batch(other)).fits for other in larger)


def test_words_before_and_after_the_command_are_told_apart() -> None:
    words = ("MICRO_BATCH=2", "hardware.gradient_checkpointing=true")
    remedy = Remedy(
        changes=tuple(Change(words=word, overrides=(word,)) for word in words),
        settings=settings_of("grpo", "t4"),
        facts=facts_of("qwen2.5-0.5b"),
    )
    assert remedy.before_command == "MICRO_BATCH=2"
    assert remedy.after_command == "hardware.gradient_checkpointing=true"


def test_base_weights_in_bfloat16_are_not_told_where_the_gpu_lacks_it() -> None:
    facts = facts_of("qwen2.5-7b")
    for hardware, told in (("t4", False), ("l4", True)):
        settings = settings_of("grpo", hardware)
        settings = replace(settings, device=replace(settings.device, memory_bytes=34 * GIB))
        words = [change.words for remedy in find_remedies(facts, settings, most=20) for change in remedy.changes]
        assert ("hardware.model_dtype=bf16" in words) == told


COLUMNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "GRPO, GSPO (LoRA)": ("grpo", ()),
    "PPO (LoRA, full critic)": ("ppo", ()),
    "SFT, all weights": ("sft", ("model.lora_rank=0",)),
    "SFT, LoRA": ("sft", ("model.lora_rank=32",)),
    "DPO, LoRA": ("dpo", ()),
}
GPU_NAMES = {"A100 40 GB": "a100_40g", "A100 80 GB": "a100_80g"}


def test_the_table_of_what_fits_is_what_the_plans_say(repo_root: Path) -> None:
    section = (repo_root / "docs/hardware.md").read_text().split("## What fits on one GPU")[1].split("\n**")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    header, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert header[1:] == list(COLUMNS)
    gpus = [[GPU_NAMES.get(name, name.lower()) for name in row[0].split(", ")] for row in rows]
    assert sorted(name for names in gpus for name in names) == sorted(HARDWARE)
    for names, row in zip(gpus, rows, strict=True):
        for hardware in names:
            for column, cell in zip(header[1:], row[1:], strict=True):
                algorithm, overrides = COLUMNS[column]
                settings = settings_of(algorithm, hardware, overrides)
                fit = [model for model in SIZES if memory_plan(facts_of(model), settings).fits]
                assert fit == told_to_fit(cell), f"{hardware}, {column}"
                if ";" in cell:
                    (remedy,) = find_remedies(facts_of(SIZES[len(fit)]), settings, most=1, more_gpus=False)
                    assert " ".join(change.words for change in remedy.changes) in cell, f"{hardware}, {column}"


def told_to_fit(cell: str) -> list[str]:
    """`0.5B, 1.5B; 7B with …` and `to 3B`: those before the semicolon."""
    sizes = [size.strip().lower() for size in cell.split(";")[0].removeprefix("to ").split(",")]
    if cell.startswith("to "):
        return list(SIZES[: SIZES.index(f"qwen2.5-{sizes[0]}") + 1])
    return [f"qwen2.5-{size}" for size in sizes]
