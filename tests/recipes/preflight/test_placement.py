"""What stays on a GPU between the parts of a step: the launcher chooses the first placement that fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from recipes.models.model_shape import model_shape
from recipes.preflight.compose import compose
from recipes.preflight.memory_plan import memory_plan
from recipes.preflight.placement import placement, placement_line
from recipes.preflight.plan import chosen_placement
from recipes.preflight.run_settings import GIB, RunSettings, run_settings

ALL_STAYS = ["hardware.sleep_mode=false", "hardware.param_offload=false", "hardware.optimizer_offload=false"]
SLEEPS = ["hardware.sleep_mode=true", *ALL_STAYS[1:]]


def settings_of(algorithm: str, *overrides: str) -> RunSettings:
    config = compose(algorithm, overrides)
    return run_settings(algorithm, config, hardware=config.hardware.name)


@pytest.mark.parametrize(
    ("hardware", "model", "chosen"),
    [
        ("h100", "qwen2.5-0.5b", ALL_STAYS),
        ("l4", "qwen2.5-1.5b", ALL_STAYS),
        ("t4", "qwen2.5-1.5b", SLEEPS),
        ("t4", "qwen2.5-0.5b", ALL_STAYS),
    ],
)
def test_as_much_stays_on_the_gpu_as_fits(hardware: str, model: str, chosen: list[str]) -> None:
    overrides = [f"hardware={hardware}"]
    assert chosen_placement("grpo", overrides, model=model, asked=[]) == chosen
    followed = settings_of("grpo", *overrides, *chosen)
    assert memory_plan(model_shape(model), followed).fits


def test_the_less_memory_a_gpu_has_the_more_moves() -> None:
    """All weights of 1.5 billion parameters, and an adapter of 3 billion."""
    found = set()
    for model, lora_rank in (("qwen2.5-1.5b", 0), ("qwen2.5-3b", 32)):
        shape = model_shape(model)
        settings = settings_of("grpo", "hardware=a100_80g", f"actor_rollout_ref.model.lora_rank={lora_rank}")
        before = 0
        for memory_gib in range(80, 8, -1):
            smaller = replace(settings, device=replace(settings.device, memory_bytes=memory_gib * GIB))
            chosen = placement(shape, smaller)
            if chosen:
                moved = sum(word.endswith("true") for word in chosen)
                assert moved >= before, (model, memory_gib)
                before = moved
                found.add(moved)
    assert found == {0, 1, 2, 3}


def test_a_training_without_vllm_has_nothing_that_sleeps() -> None:
    settings = settings_of("sft", "hardware=h100")
    assert placement(model_shape("qwen2.5-0.5b"), settings) == ALL_STAYS[1:]


def test_a_users_own_placement_a_cpu_and_dpo_are_left_alone() -> None:
    for asked in ("hardware.sleep_mode=true", "++hardware.param_offload=true"):
        assert chosen_placement("grpo", ["hardware=h100", asked], model="qwen2.5-0.5b", asked=[asked]) == []
    assert chosen_placement("grpo", ["hardware=cpu"], model="tiny", asked=[]) == []
    assert chosen_placement("dpo", ["hardware=h100"], model="qwen2.5-0.5b", asked=[]) == []
    # nothing fits: the profile stays, and the plan says what to change
    assert chosen_placement("grpo", ["hardware=t4"], model="qwen2.5-7b", asked=[]) == []


def test_the_plan_says_what_moves() -> None:
    assert placement_line(settings_of("grpo", "hardware=h100", *SLEEPS)) == (
        "between parts of a step: vLLM sleeps in training; weights and optimizer stay on the GPU"
    )
    line = placement_line(settings_of("sft", "hardware=h100", "hardware.optimizer_offload=true"))
    assert line == "between parts of a step: the optimizer waits in main memory"
    assert not placement_line(settings_of("grpo", "hardware=cpu"))
