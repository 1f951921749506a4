"""What to type when a run does not fit: a short list of changes, tried in the order of what they cost the user.

The first change is tried alone, then the first two together, and so on. A change that is not needed is left out.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from recipes.models.model_shape import ModelShape
from recipes.preflight.hardware import BF16_CAPABILITY
from recipes.preflight.memory_plan import memory_plan
from recipes.preflight.run_settings import RunSettings
from tsc.files import REPO_ROOT
from tsc.yaml_file import read_yaml

# the rank that the recipes give an adapter
_SHARED: Any = read_yaml(REPO_ROOT / "recipes" / "shared.yaml")
LORA_RANK = int(_SHARED["shared"]["lora_rank"])


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """Words that make a run fit, and the settings that they lead to.

    A word is typed before the command (NAME=value) or after it (a Hydra override; its key has a dot).
    """

    words: tuple[str, ...]
    settings: RunSettings

    def command(self, script: str) -> str:
        """The line for a shell; script: such as scripts/train_grpo.sh."""
        after = [word for word in self.words if "." in word.partition("=")[0]]
        before = [word for word in self.words if word not in after]
        return shlex.join([*before, "bash", script, *after])


# words and the settings that they lead to, the value nearest to the present one first
Choices = Iterator[tuple[str, RunSettings]]


def find_remedy(model: ModelShape, settings: RunSettings, *, more_gpus: bool = False) -> Remedy | None:
    """The first remedy whose plan has no problems, or None. more_gpus: the number of GPUs may change, too."""
    changes = (partial(_gpus, model.heads), *CHANGES) if more_gpus else CHANGES
    for end in range(1, len(changes) + 1):
        for remedy in _combinations(Remedy(words=(), settings=settings), changes[:end]):
            if memory_plan(model, remedy.settings).fits:
                return remedy
    return None


def _combinations(remedy: Remedy, changes: Sequence[Callable[[RunSettings], Choices]]) -> Iterator[Remedy]:
    """The remedy with each choice of each change, or without the change, which comes first."""
    if not changes:
        yield remedy
        return
    yield from _combinations(remedy, changes[1:])
    for words, settings in changes[0](remedy.settings):
        yield from _combinations(Remedy(words=(*remedy.words, *words.split()), settings=settings), changes[1:])


def _micro_batch(settings: RunSettings) -> Choices:
    sequences = settings.sequences_per_update
    for size in range(min(settings.actor.micro_batch, sequences) - 1, 0, -1):
        if sequences % size == size % settings.least_micro_batch == 0 and settings.actor.token_budget is None:
            yield f"MICRO_BATCH={size}", settings.with_micro_batch(size)


def _checkpointing(settings: RunSettings) -> Choices:
    if not settings.actor.gradient_checkpointing:
        recomputed = settings.with_engines(lambda engine: replace(engine, gradient_checkpointing=True))
        yield "hardware.gradient_checkpointing=true", recomputed


def _vllms_share(settings: RunSettings) -> Choices:
    rollout = settings.rollout
    if rollout is not None and not settings.device.is_cpu:
        for share in sorted((n / 10 for n in range(1, 10)), key=lambda share: abs(share - rollout.memory_fraction)):
            changed = replace(settings, rollout=replace(rollout, memory_fraction=share))
            yield f"hardware.gpu_memory_utilization={share:g}", changed


def _offload(settings: RunSettings) -> Choices:
    if not settings.device.is_cpu and settings.algorithm != "dpo":
        offloaded = settings.with_engines(
            lambda engine: replace(engine, param_offload=engine.trained, optimizer_offload=engine.trained)
        )
        yield "hardware.param_offload=true hardware.optimizer_offload=true", offloaded


def _lighter_weights(settings: RunSettings) -> Choices:
    """An adapter instead of all weights. Under an adapter: base weights of 4 bits (TRL) or 16 bits (verl)."""
    actor = settings.actor
    if actor.full:
        frozen_bytes = actor.compute_bytes if settings.algorithm == "dpo" else actor.master_bytes
        adapted = replace(settings, actor=replace(actor, lora_rank=LORA_RANK, master_bytes=frozen_bytes))
        if settings.reference == "separate":
            adapted = replace(adapted, reference="adapter_off", reference_engine=None)
        yield f"LORA_RANK={LORA_RANK}", adapted
    elif settings.algorithm == "dpo" and not actor.quantised and not settings.device.is_cpu:
        yield "QUANTIZE=4bit", replace(settings, actor=replace(actor, quantised=True))
    elif actor.fsdp_version and not settings.critic and settings.device.compute_capability >= BF16_CAPABILITY:
        # verl gives the adapter the type of the base
        halved = settings.with_engines(lambda engine: replace(engine, master_bytes=2, adapter_bytes=2))
        yield "hardware.model_dtype=bf16", halved


def _gpus(heads: int, settings: RunSettings) -> Choices:
    for count in (2, 4, 8):
        devices, sequences = settings.num_nodes * count, settings.sequences // settings.updates_per_batch
        even = settings.batch_prompts % devices == 0 and sequences % (devices * settings.actor.micro_batch) == 0
        if even and count > settings.devices_per_node and not settings.device.is_cpu:
            larger = settings.with_devices_per_node(count)
            yield f"N_GPUS={count}", larger
            if larger.rollout is not None:
                for split in (size for size in (2, 4, 8) if count % size == heads % size == 0):
                    rollout = replace(larger.rollout, tensor_parallel=split)
                    yield f"N_GPUS={count} TENSOR_PARALLEL={split}", replace(larger, rollout=rollout)


CHANGES = (_micro_batch, _checkpointing, _vllms_share, _offload, _lighter_weights)
