"""The nearest change of a run's settings that makes it fit: what to type, in the order of what it costs the user.

First come changes that leave the result as it is (smaller passes, recomputation, shares of memory), then those that
cost time, then those that change what is trained or on what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from recipes.models.model_shape import ModelShape
from recipes.preflight.memory_plan import MemoryPlan, kv_bytes_per_token, kv_cache_bytes, memory_plan, usable_bytes
from recipes.preflight.run_settings import MIB, EngineSettings, RunSettings

LORA_RANK = 32
MOST_GPUS = 8
# bfloat16 arithmetic
BF16_CAPABILITY = 8.0
LEAST_BUCKET_MB = 128
LEAST_SEQUENCES = 32
MEMORY_FRACTIONS = tuple(fraction / 100 for fraction in range(10, 91, 5))


@dataclass(frozen=True, kw_only=True)
class Change:
    """One knob at one value. words: as a user types it, before the command (NAME=value) or after it (a Hydra override,
    recognised by its dot). overrides: Hydra's, with the same effect."""

    words: str
    overrides: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """Changes that make a run fit, the settings they lead to, and the model, where that changes."""

    changes: tuple[Change, ...]
    settings: RunSettings
    facts: ModelShape

    @property
    def overrides(self) -> list[str]:
        return [override for change in self.changes for override in change.overrides]

    @property
    def before_command(self) -> str:
        return " ".join(change.words for change in self.changes if not _is_override(change))

    @property
    def after_command(self) -> str:
        return " ".join(change.words for change in self.changes if _is_override(change))


def _is_override(change: Change) -> bool:
    return "." in change.words.split("=", 1)[0]


Candidate = tuple[Change, RunSettings]
Knob = Callable[[ModelShape, RunSettings], Iterator[Candidate]]


def find_remedies(facts: ModelShape, settings: RunSettings, *, most: int = 3, more_gpus: bool = True) -> list[Remedy]:
    """Remedies, nearest first: up to `most` single changes, or else the one combination found; empty where none fits.

    A remedy's settings have a plan without problems. No other model is considered, nor, without more_gpus, other
    hardware.
    """
    knobs = KNOBS if more_gpus else KNOBS_OF_THE_MACHINE
    singles: list[Remedy] = []
    for knob in knobs:
        for change, changed in knob(facts, settings):
            if memory_plan(facts, changed).fits:
                singles.append(Remedy(changes=(change,), settings=changed, facts=facts))
                break
        if len(singles) == most:
            break
    if singles:
        return singles
    combined = _combination(facts, settings, knobs)
    return [combined] if combined else []


def shortage_bytes(plan: MemoryPlan, settings: RunSettings, facts: ModelShape) -> float:
    """By how much a run does not fit: what all phases lack together, and the cache that vLLM lacks for a sequence."""
    device = settings.device
    lacking = 0.0
    if not device.is_cpu and device.memory_bytes:
        lacking += sum(max(0, phase.total - usable_bytes(device.memory_bytes)) for phase in plan.phases)
    if device.host_bytes:
        lacking += max(0, plan.host_bytes - usable_bytes(device.host_bytes))
    if settings.rollout is not None and plan.kv_tokens is not None:
        wanted = settings.rollout.max_model_len * kv_bytes_per_token(facts, settings.rollout)
        lacking += max(0.0, wanted - kv_cache_bytes(facts, settings))
    return lacking


def least(facts: ModelShape, settings: RunSettings) -> RunSettings:
    """The settings with every knob but N_GPUS at the value that helps most, or as far as the run needs to fit."""
    return _most_frugal(facts, settings, KNOBS_OF_THE_MACHINE)[0]


def _most_frugal(
    facts: ModelShape, settings: RunSettings, knobs: Sequence[Knob]
) -> tuple[RunSettings, dict[Knob, str]]:
    """Take the knobs in order, each at the value that helps most, until the run fits: the words taken of each.

    Again from the first one as long as that helps: a share of the GPU that was too much may be right for what others
    have left.
    """
    taken: dict[Knob, str] = {}
    lacking = shortage_bytes(memory_plan(facts, settings), settings, facts)
    before = lacking + 1
    while 0 < lacking < before:
        before = lacking
        for knob in knobs:
            best = None
            for change, changed in knob(facts, settings):
                left = shortage_bytes(memory_plan(facts, changed), changed, facts)
                if left < lacking:
                    best, lacking = (change, changed), left
            if best is not None:
                taken[knob], settings = best[0].words, best[1]
            if lacking == 0:
                break
    return settings, taken


def _combination(facts: ModelShape, settings: RunSettings, knobs: Sequence[Knob]) -> Remedy | None:
    """The knobs that are needed together, each at its nearest value that is enough while the others stay."""
    frugal, chosen = _most_frugal(facts, settings, knobs)
    if not memory_plan(facts, frugal).fits:
        return None
    for knob in list(chosen):
        without = {other: words for other, words in chosen.items() if other is not knob}
        if _follow(facts, settings, without) is not None:
            chosen = without
    for knob in list(chosen):
        others = {other: words for other, words in chosen.items() if other is not knob}
        for change, _ in knob(facts, _applied(facts, settings, others)[0]):
            nearer = chosen | {knob: change.words}
            if _follow(facts, settings, nearer) is not None:
                chosen = nearer
                break
    return _follow(facts, settings, chosen)


def _follow(facts: ModelShape, settings: RunSettings, chosen: dict[Knob, str]) -> Remedy | None:
    """The remedy of these knobs at these words; None where it is not enough, or a word is no choice any more."""
    settings, changes = _applied(facts, settings, chosen)
    if len(changes) < len(chosen) or not memory_plan(facts, settings).fits:
        return None
    return Remedy(changes=changes, settings=settings, facts=facts)


def _applied(
    facts: ModelShape, settings: RunSettings, chosen: dict[Knob, str]
) -> tuple[RunSettings, tuple[Change, ...]]:
    """The settings after these words, and the changes; without those that are no choice. GPUs come first: how a model
    or a batch can be divided depends on them."""
    changes: list[Change] = []
    for knob in sorted(chosen, key=lambda knob: (knob is not _gpus, KNOBS.index(knob))):
        for change, changed in knob(facts, settings):
            if change.words == chosen[knob]:
                changes.append(change)
                settings = changed
                break
    return settings, tuple(changes)


# ---------------------------------------------------------------------------------------------- knobs
# Each yields the values to try, the nearest to the present one first.


def _micro_batch(facts: ModelShape, settings: RunSettings) -> Iterator[Candidate]:
    engines = [engine for engine in (settings.actor, settings.critic, settings.reference_engine) if engine]
    if any(engine.token_budget is not None for engine in engines):
        return
    present = min(max(engine.micro_batch for engine in engines), settings.sequences_per_update)
    for size in range(present - 1, 0, -1):
        if settings.sequences_per_update % size == 0 and size % settings.least_micro_batch == 0:
            change = Change(words=f"MICRO_BATCH={size}", overrides=(f"hardware.micro_batch_size={size}",))
            yield change, settings.with_micro_batch(size)


def _gradient_checkpointing(facts: ModelShape, settings: RunSettings) -> Iterator[Candidate]:
    if not settings.actor.gradient_checkpointing:
        yield (
            _override("hardware.gradient_checkpointing=true"),
            settings.with_engines(lambda engine: replace(engine, gradient_checkpointing=True)),
        )


def _sleep(facts: ModelShape, settings: RunSettings) -> Iterator[Candidate]:
    rollout = settings.rollout
    if rollout is not None and not rollout.sleeps and not settings.device.is_cpu:
        yield _override("hardware.sleep_mode=true"), replace(settings, rollout=replace(rollout, sleeps=True))


def _memory_fraction(facts: ModelShape, settings: RunSettings) -> Iterator[Candidate]:
    rollout = settings.rollout
    if rollout is None or rollout.kv_cache_bytes is not None or settings.device.is_cpu:
        return
    present = rollout.memory_fraction
    for fraction in sorted(MEMORY_FRACTIONS, key=lambda fraction: abs(fraction - present)):
        if abs(fraction - present) > 0.01:
            yield (
                _override(f"hardware.gpu_memory_utilization={fraction:g}"),
                replace(settings, rollout=replace(rollout, memory_fraction=fraction)),
            )


def _kv_cache(facts: ModelShape, settings: RunSettings) -> Iterator[Candidate]:
    rollout = settings.rollout
    if rollout is None or rollout.kv_cache_bytes is None:
        return
    for size in sorted(
        {64 * MIB * 2**power for power in range(10)}, key=lambda size: abs(size - rollout.kv_cache_bytes)
    ):
        if size != rollout.kv_cache_bytes:
            yield (
                _override(f"hardware.kv_cache_memory_bytes={size}"),
                replace(settings, rollout=replace(rollout, kv_cache_bytes=size)),
            )


def _num_sequences(facts: ModelShape, settings: RunSettings) -> Iterator[Candidate]:
    rollout = settings.rollout
    if rollout is None:
        return
    size = rollout.max_num_seqs // 2
    while size >= LEAST_SEQUENCES:
        yield (
            _override(f"hardware.max_num_sequences={size}"),
            replace(settings, rollout=replace(rollout, max_num_seqs=size)),
        )
        size //= 2


def _bucket(facts: ModelShape, settings: RunSettings) -> Iterator[Candidate]:
    rollout = settings.rollout
    if rollout is None or settings.device.is_cpu:
        return
    size = rollout.bucket_bytes // MIB // 2
    while size >= LEAST_BUCKET_MB:
        yield (
            _override(f"hardware.weight_bucket_mb={size}"),
            replace(settings, rollout=replace(rollout, bucket_bytes=size * MIB)),
        )
        size //= 2


def _workers(facts: ModelShape, settings: RunSettings) -> Iterator[Candidate]:
    """Fewer processes that drive generation and compute rewards: each holds some main memory."""
    agents, rewards = settings.num_agent_workers, settings.num_reward_workers
    while max(agents, rewards) > 1:
        agents, rewards = max(1, agents // 2), max(1, rewards // 2)
        words = f"hardware.num_agent_workers={agents} hardware.num_reward_workers={rewards}"
        yield (
            Change(words=words, overrides=tuple(words.split())),
            replace(settings, num_agent_workers=agents, num_reward_workers=rewards),
        )


def _offload(facts: ModelShape, settings: RunSettings) -> Iterator[Candidate]:
    if settings.device.is_cpu or settings.algorithm == "dpo":
        return
    if not (settings.actor.param_offload and settings.actor.optimizer_offload):

        def offloaded(engine: EngineSettings) -> EngineSettings:
            return replace(engine, param_offload=True, optimizer_offload=True) if engine.trained else engine

        words = "hardware.param_offload=true hardware.optimizer_offload=true"
        yield (
            Change(words=words, overrides=tuple(words.split())),
            settings.with_engines(offloaded),
        )


def _lora(facts: ModelShape, settings: RunSettings) -> Iterator[Candidate]:
    if not settings.actor.full:
        return
    key = "actor_rollout_ref.model.lora_rank" if settings.rollout else "model.lora_rank"
    actor = replace(settings.actor, lora_rank=LORA_RANK)
    if settings.algorithm == "dpo":
        actor = replace(actor, master_bytes=actor.compute_bytes)
    changed = replace(settings, actor=actor)
    if settings.reference == "separate":
        changed = replace(changed, reference="adapter_off", reference_engine=None)
    yield Change(words=f"LORA_RANK={LORA_RANK}", overrides=(f"{key}={LORA_RANK}",)), changed


def _quantise(facts: ModelShape, settings: RunSettings) -> Iterator[Candidate]:
    """recipes/models/quantisation.py: verl cannot, TRL can, with LoRA, on a GPU."""
    actor = settings.actor
    if settings.algorithm == "dpo" and not actor.full and not actor.quantised and not settings.device.is_cpu:
        yield (
            Change(words="QUANTIZE=4bit", overrides=("model.quantize=4bit",)),
            replace(settings, actor=replace(actor, quantised=True)),
        )


def _tensor_parallel(facts: ModelShape, settings: RunSettings) -> Iterator[Candidate]:
    rollout = settings.rollout
    if rollout is None or settings.device.is_cpu:
        return
    size = rollout.tensor_parallel * 2
    while settings.devices_per_node % size == 0 and facts.heads % size == 0:
        yield (
            Change(words=f"TENSOR_PARALLEL={size}", overrides=(f"hardware.tensor_parallel={size}",)),
            replace(settings, rollout=replace(rollout, tensor_parallel=size)),
        )
        size *= 2


def _gpus(facts: ModelShape, settings: RunSettings) -> Iterator[Candidate]:
    if settings.device.is_cpu:
        return
    count = settings.devices_per_node * 2
    while count <= MOST_GPUS:
        world = settings.num_nodes * count
        per_update = settings.sequences // settings.updates_per_batch
        if settings.batch_prompts % world == 0 and per_update // world % settings.actor.micro_batch == 0:

            def sharded(engine: EngineSettings, world: int = world) -> EngineSettings:
                of_all = engine.fsdp_version > 0 and engine.shards == settings.num_devices
                return replace(engine, shards=world if of_all else engine.shards)

            yield (
                Change(words=f"N_GPUS={count}", overrides=(f"hardware.num_devices={count}",)),
                replace(settings.with_engines(sharded), devices_per_node=count),
            )
        count *= 2


def _base_dtype(facts: ModelShape, settings: RunSettings) -> Iterator[Candidate]:
    """Base weights in bf16, which verl takes for the adapter, too: the last resort before a smaller model."""
    actor, capability = settings.actor, settings.device.compute_capability
    if capability is not None and capability < BF16_CAPABILITY:
        return
    if settings.critic is not None or actor.fsdp_version == 0 or actor.full:
        return
    if actor.master_bytes == 4 and actor.compute_bytes == 2:
        yield (
            _override("hardware.model_dtype=bf16"),
            settings.with_engines(lambda engine: replace(engine, master_bytes=2, adapter_bytes=2)),
        )


KNOBS: tuple[Knob, ...] = (
    _micro_batch,
    _gradient_checkpointing,
    _sleep,
    _memory_fraction,
    _kv_cache,
    _bucket,
    _num_sequences,
    _workers,
    _offload,
    _lora,
    _quantise,
    _tensor_parallel,
    _gpus,
    _base_dtype,
)
KNOBS_OF_THE_MACHINE = tuple(knob for knob in KNOBS if knob is not _gpus)


def _override(words: str) -> Change:
    return Change(words=words, overrides=(words,))
