"""What stays on a GPU between the parts of a step: as much as fits, because moving it takes seconds a step.

vLLM can sleep while the trainer works (its weights wait in main memory), and the trainer's weights and optimizer can
wait there while vLLM generates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from recipes.models.model_shape import ModelShape
from recipes.preflight.memory_plan import memory_plan
from recipes.preflight.run_settings import RunSettings

SLEEP = "hardware.sleep_mode"
PARAMETERS, OPTIMIZER = "hardware.param_offload", "hardware.optimizer_offload"
# vLLM sleeps, weights move out, the optimizer moves out: the first that fits is the fastest
PLACEMENTS = ((False, False, False), (True, False, False), (True, False, True), (True, True, True))


def placement(model: ModelShape, settings: RunSettings, asked: Sequence[str] = ()) -> list[str]:
    """Hydra overrides for the first placement that fits. None if nothing fits, for a CPU, for DPO, and where the user
    has set one of the keys (in `asked`, Hydra overrides)."""
    keys = {override.partition("=")[0].lstrip("+") for override in asked}
    if not _is_free(settings) or keys & {SLEEP, PARAMETERS, OPTIMIZER}:
        return []
    for choice in PLACEMENTS:
        if memory_plan(model, _placed(settings, *choice)).fits:
            values = dict(zip((SLEEP, PARAMETERS, OPTIMIZER), choice, strict=True))
            if settings.rollout is None:
                del values[SLEEP]
            return [f"{key}={str(value).lower()}" for key, value in values.items()]
    return []


def most_moved(settings: RunSettings) -> RunSettings:
    """The same run with the placement that takes the least memory of a GPU; as it is for a CPU and for DPO."""
    return _placed(settings, *PLACEMENTS[-1]) if _is_free(settings) else settings


def _is_free(settings: RunSettings) -> bool:
    return not settings.device.is_cpu and settings.algorithm != "dpo"


def _placed(settings: RunSettings, sleeps: bool, parameters_out: bool, optimizer_out: bool) -> RunSettings:
    moved = settings.with_engines(
        lambda engine: replace(
            engine,
            param_offload=parameters_out and engine.trained,
            optimizer_offload=optimizer_out and engine.trained,
        )
    )
    return moved if moved.rollout is None else replace(moved, rollout=replace(moved.rollout, sleeps=sleeps))


def placement_line(settings: RunSettings) -> str:
    """For the plan: what moves between the parts of a step. Empty for a CPU and for DPO, where nothing does."""
    if not _is_free(settings):
        return ""
    parts = []
    if settings.rollout is not None:
        parts.append("vLLM sleeps in training" if settings.rollout.sleeps else "vLLM stays awake")
    where = {
        (False, False): "weights and optimizer stay on the GPU",
        (True, True): "weights and optimizer wait in main memory",
        (True, False): "weights wait in main memory",
        (False, True): "the optimizer waits in main memory",
    }
    parts.append(where[settings.actor.param_offload, settings.actor.optimizer_offload])
    return "between parts of a step: " + "; ".join(parts)
