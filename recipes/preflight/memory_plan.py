"""The memory a run takes, phase by phase, from its settings and the model's sizes. It is arithmetic; nothing starts.

Each function says what it counts and where its formula comes from. Sources named "verl" are files of verl 0.9.1. The
plan leaves out some kernels' workspaces, tensors of a few bytes a token, and the memory of other programs.
docs/hardware.md compares plans with measurements.

All sizes are bytes of one GPU, or of the machine for a CPU run. Sequences are as long as the configuration allows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from recipes.models.model_shape import ModelShape
from recipes.preflight.run_settings import GIB, MIB, EngineSettings, RolloutSettings, RunSettings

# What a process holds on a GPU before its first tensor: CUDA's context, cuBLAS' workspace, loaded kernels. 0.3–0.6 GiB.
CUDA_CONTEXT_BYTES = GIB // 2
# NCCL's buffers, if there are several GPUs.
NCCL_BYTES = GIB // 2
# vLLM's CUDA graphs stay when it sleeps, and so does what its allocator does not own.
CUDA_GRAPHS_BYTES = 3 * GIB // 4
VLLM_LEFTOVER_BYTES = GIB // 4
# Share of the trainer's tensors that torch's caching allocator holds in gaps between them.
FRAGMENTATION = 0.05
# NF4 with quantised constants: 4 bits and 0.127 a weight (Dettmers et al. 2023, QLoRA, section 3).
QUANTISED_BYTES = 4.127 / 8
# The share that must stay free, because a plan is an estimate.
SAFETY = 0.03

# Main memory of a run's processes: their proportional set sizes (/proc/PID/smaps_rollup) in a run of the tiny model.
# FIXED: the driver, Ray's and the transfer queue's processes. AGENT, REWARD: one process that drives generation or
# computes rewards (with its share of the replay workers). DEVICE: a trainer and vLLM's worker, engine and server.
FIXED_PROCESSES_BYTES = 2600 * MIB
AGENT_PROCESS_BYTES = 600 * MIB
REWARD_PROCESS_BYTES = 400 * MIB
DEVICE_PROCESSES_BYTES = 2200 * MIB
TRAINER_PROCESS_BYTES = 700 * MIB
# A process that computes on a GPU holds more in main memory: CUDA's libraries and pinned buffers.
CUDA_HOST_BYTES = GIB


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Bytes on one GPU at the fullest moment of a phase, by part."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What a run takes. problems: sentences, none if it fits. host_bytes: main memory of one machine.

    kv_tokens: tokens for which the cache of one copy of the model in vLLM has room; None without a rollout.
    """

    phases: tuple[Phase, ...]
    host_parts: dict[str, int]
    kv_tokens: int | None
    problems: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return not self.problems

    @property
    def fullest(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def host_bytes(self) -> int:
        return sum(self.host_parts.values())


def memory_plan(model: ModelShape, settings: RunSettings) -> MemoryPlan:
    """The plan of a run. Raises ConfigError for LoRA targets that the model does not have."""
    plan = MemoryPlan(
        phases=_phases(model, settings),
        host_parts=_host_parts(model, settings),
        kv_tokens=kv_cache_tokens(model, settings) if settings.rollout else None,
    )
    if settings.device.is_cpu:
        # The tensors of the fullest phase and the processes share one memory.
        tensors = {"the trainer's and vLLM's tensors": plan.fullest.total}
        plan = replace(plan, host_parts=tensors | plan.host_parts)
    return replace(plan, problems=_problems(settings, plan))


# ---------------------------------------------------------------------------------------------- tensors of a model


def trained_parameters(model: ModelShape, engine: EngineSettings) -> int:
    """Parameters with a gradient and an optimizer state: all of them, or the adapter's."""
    return parameters(model, engine) if engine.full else model.lora_parameters(engine.lora_rank, engine.lora_targets)


def trained_bytes(model: ModelShape, engine: EngineSettings) -> int:
    """The trained weights in their own type, over all shards."""
    return trained_parameters(model, engine) * (engine.master_bytes if engine.full else engine.adapter_bytes)


def parameters(model: ModelShape, engine: EngineSettings) -> int:
    """Parameters of the model without an adapter."""
    return model.num_parameters if engine.has_lm_head else model.num_value_head_model


def weight_bytes(model: ModelShape, engine: EngineSettings) -> int:
    """Weights on one GPU while the engine works, divided by FSDP over `shards` (verl: engine/fsdp/transformer_impl.py).

    The weights are kept in model_dtype, fp32 by default. With FSDP2's offload policy they are in main memory instead.
    """
    if engine.cpu_offload_policy:
        return 0
    count = parameters(model, engine)
    if engine.quantised:
        in_layers = sum(linear.count * linear.num_in * linear.num_out for linear in model.linears)
        return int(in_layers * QUANTISED_BYTES + (count - in_layers) * engine.master_bytes)
    return int(count * engine.master_bytes / engine.shards)


def adapter_bytes(model: ModelShape, engine: EngineSettings) -> int:
    """LoRA's weights on one GPU."""
    if engine.full or engine.cpu_offload_policy:
        return 0
    return int(trained_bytes(model, engine) / engine.shards)


def gathered_bytes(model: ModelShape, engine: EngineSettings) -> int:
    """Weights that FSDP gathers for a pass, in the type of the computation: two layers (one works while the next
    comes), and the root's embedding and head, which stay gathered (torch: fully_shard). Without FSDP, autocast keeps a
    copy of fp32 weights in the type of the computation, and a quantised layer is unpacked when its turn comes."""
    if engine.fsdp_version == 0:
        if engine.quantised:
            return engine.compute_bytes * model.num_layer
        return engine.compute_bytes * parameters(model, engine) if engine.compute_bytes < engine.master_bytes else 0
    outside = parameters(model, engine) - model.layers * model.num_layer
    return engine.compute_bytes * (outside + 2 * model.num_layer)


def gradient_bytes(model: ModelShape, engine: EngineSettings) -> int:
    """Gradients in the weights' own type, sharded like them. If the embedding is trained: also its gathered gradient on
    the way to its shards, computed in compute_bytes and added up in fp32."""
    if not engine.trained:
        return 0
    sharded = 0 if engine.cpu_offload_policy else trained_bytes(model, engine) / engine.shards
    gathered = model.num_embedding * (engine.compute_bytes + 4) if engine.full and engine.shards > 1 else 0
    return int(sharded + gathered)


def optimizer_bytes(model: ModelShape, engine: EngineSettings) -> int:
    """Adam's two moments in the trained weights' type (torch.optim.AdamW; Kingma and Ba 2015)."""
    if not engine.trained or engine.cpu_offload_policy:
        return 0
    return int(2 * trained_bytes(model, engine) / engine.shards)


def layer_activation_bytes_per_token(model: ModelShape, engine: EngineSettings) -> float:
    """What one decoder layer keeps of one token for its backward pass, without recomputation.

    The count follows Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1) for transformers' Qwen and Llama layers
    with sdpa, at c bytes an activation. There are two norms. Attention keeps query, key, value, and its output twice
    (once for the projection); sdpa with a mask needs keys and values repeated for all heads. The gated MLP keeps four
    tensors of the intermediate width. LoRA adds `rank` numbers for each adapted layer.
    """
    c = engine.compute_bytes
    width = model.heads * model.head_dim
    attention = c * 5 * width + 4 * model.heads
    mlp = c * 4 * model.intermediate
    adapted = 0 if engine.full else sum(linear.count for linear in model.lora_linears(engine.lora_targets))
    lora = c * engine.lora_rank * adapted / model.layers
    return 2 * norm_activation_bytes_per_token(model, engine) + attention + mlp + lora


def norm_activation_bytes_per_token(model: ModelShape, engine: EngineSettings) -> int:
    """A norm keeps its input in fp32 and its output, and also the normalised input if its weights are trained."""
    return model.hidden * (4 + engine.compute_bytes * (2 if engine.full else 1))


def activation_bytes(model: ModelShape, engine: EngineSettings, tokens: int) -> tuple[int, int]:
    """Activations of a training pass over `tokens`: those kept through the whole pass (layers and the last norm), and
    those of the layer in work. With gradient checkpointing only the input of each layer is kept; the rest is recomputed
    layer by layer."""
    layer = layer_activation_bytes_per_token(model, engine)
    last = norm_activation_bytes_per_token(model, engine)
    # gradients of the widest tensors of a layer, while the backward pass is in it
    backward = engine.compute_bytes * (3 * model.intermediate + 2 * model.hidden)
    if engine.gradient_checkpointing:
        kept = model.layers * model.hidden * engine.compute_bytes
        return int(tokens * (kept + last)), int(tokens * (layer + backward))
    return int(tokens * (model.layers * layer + last)), int(tokens * backward)


def forward_bytes(model: ModelShape, engine: EngineSettings, tokens: int) -> int:
    """The widest moment of a pass without gradients: a layer's MLP and the residual stream."""
    return int(tokens * (engine.compute_bytes * (3 * model.intermediate + 2 * model.hidden) + 4 * model.hidden))


def logits_bytes(model: ModelShape, engine: EngineSettings, tokens: int, *, trained: bool) -> int:
    """Logits and their copies at the fullest moment, for `tokens` and every word of the vocabulary.

    verl (prepare_model_outputs, logprobs_from_logits_v2) holds the logits in the type of the computation, a copy
    without the padding, and a copy for a temperature other than 1. Training in 16 bits adds their log-softmax in fp32,
    which is kept for the backward pass. Training in fp32 adds three copies in the backward pass, when the copy for the
    temperature is gone. The entropy adds a softmax and its product with the logits. Where only answers get logits
    (recipes/verl_plugins/answer_engine.py, recipes/dpo/train_dpo.py), the log-softmax and two gradients are in fp32.

    flash-attn's cross-entropy, which needs one copy, is not among the pinned packages. verl's fused kernels never hold
    all logits.
    """
    if not engine.has_lm_head or engine.fused_log_probs:
        return 0
    c = engine.compute_bytes
    padded = 0 if engine.remove_padding else c
    if engine.logit_tokens is not None:
        copies = 12 if trained else 8 + c
    else:
        copies = c + padded + (c if engine.scaled_logits else 0)
        if trained:
            copies = 4 * c + padded if c == 4 else copies + 4
    if engine.entropy:
        copies += 8
    return int(tokens * model.vocab * copies)


# ---------------------------------------------------------------------------------------------- vLLM


def rollout_weight_bytes(model: ModelShape, rollout: RolloutSettings) -> int:
    """vLLM's weights on one GPU, divided by tensor parallelism."""
    return int(model.num_parameters * rollout.weight_bytes / rollout.tensor_parallel)


def rollout_working_bytes(model: ModelShape, rollout: RolloutSettings) -> int:
    """What vLLM reserves in addition to weights and cache, from trial passes at its start: the widest layer of
    max_num_batched_tokens, or the sampler's logits of max_num_seqs in fp32, sorted and as probabilities (vLLM:
    gpu_worker.py, determine_available_memory)."""
    layer = 2 * rollout.max_batched_tokens * (3 * model.intermediate // rollout.tensor_parallel + 2 * model.hidden)
    sampler = rollout.max_num_seqs * model.vocab * 4 * 3
    graphs = 0 if rollout.eager else CUDA_GRAPHS_BYTES
    return max(layer, sampler) + graphs


def kv_bytes_per_token(model: ModelShape, rollout: RolloutSettings) -> float:
    """A key and a value in every layer. With more GPUs than KV heads each GPU keeps one head."""
    heads = max(1, model.kv_heads // rollout.tensor_parallel)
    return 2 * model.layers * heads * model.head_dim * rollout.kv_bytes


def kv_cache_bytes(model: ModelShape, settings: RunSettings) -> int:
    """vLLM's KV cache on one GPU: as set, or what its share of the GPU leaves. Negative if the share is too small."""
    rollout = settings.rollout
    assert rollout is not None
    if rollout.kv_cache_bytes is not None:
        return rollout.kv_cache_bytes
    share = int(rollout.memory_fraction * settings.device.memory_bytes)
    return share - rollout_weight_bytes(model, rollout) - rollout_working_bytes(model, rollout)


def kv_cache_tokens(model: ModelShape, settings: RunSettings) -> int:
    assert settings.rollout is not None
    return int(max(0, kv_cache_bytes(model, settings)) / kv_bytes_per_token(model, settings.rollout))


def rollout_bytes(model: ModelShape, settings: RunSettings) -> int:
    """All of vLLM on one GPU while it generates."""
    rollout = settings.rollout
    assert rollout is not None
    if rollout.kv_cache_bytes is None and not settings.device.is_cpu:
        return int(rollout.memory_fraction * settings.device.memory_bytes)
    working = 0 if settings.device.is_cpu else rollout_working_bytes(model, rollout)
    return rollout_weight_bytes(model, rollout) + working + kv_cache_bytes(model, settings)


def rollout_resting_bytes(model: ModelShape, settings: RunSettings) -> int:
    """vLLM on one GPU while the trainer works: its CUDA graphs and leftovers if it sleeps, otherwise all of it."""
    rollout = settings.rollout
    if rollout is None:
        return 0
    if not rollout.sleeps:
        return rollout_bytes(model, settings)
    return VLLM_LEFTOVER_BYTES + (0 if rollout.eager else CUDA_GRAPHS_BYTES)


# ---------------------------------------------------------------------------------------------- phases

WEIGHTS, ADAPTER, GRADIENTS, OPTIMIZER = "weights", "LoRA adapter", "gradients", "optimizer"
ACTIVATIONS, LOGITS, CRITIC, VLLM = "activations", "logits", "critic at rest", "vLLM"
TRANSFER, OVERHEAD = "weights on their way", "CUDA, fragments"
PARTS = (WEIGHTS, ADAPTER, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS, CRITIC, VLLM, TRANSFER, OVERHEAD)


def _phases(model: ModelShape, settings: RunSettings) -> tuple[Phase, ...]:
    actor, critic = settings.actor, settings.critic
    at_rest = {CRITIC: _resident(model, critic), VLLM: rollout_resting_bytes(model, settings)}
    parts: dict[str, dict[str, int]] = {}
    if settings.rollout is not None:
        parts["generate"] = _at_rest(model, actor) | at_rest | {VLLM: rollout_bytes(model, settings)}
    if settings.reference != "none" or settings.old_log_prob_pass:
        parts["log-probs"] = _forward(model, settings) | at_rest
    if critic is not None:
        resting = {"actor at rest": _resident(model, actor), VLLM: at_rest[VLLM]}
        parts["critic"] = _backward(model, settings, critic) | resting
    parts["update"] = _backward(model, settings, actor) | at_rest
    parts["Adam step"] = _step(model, settings, actor) | at_rest
    if settings.rollout is not None:
        parts["send weights"] = _send(model, settings) | {CRITIC: at_rest[CRITIC]}
    return tuple(_phase(settings, name, each) for name, each in parts.items())


def _phase(settings: RunSettings, name: str, parts: dict[str, int]) -> Phase:
    parts = {part: size for part, size in parts.items() if size > 0}
    if not settings.device.is_cpu:
        tensors = sum(size for part, size in parts.items() if part != VLLM)
        processes = 1 if settings.rollout is None else 2
        nccl = NCCL_BYTES if settings.num_devices > 1 else 0
        parts[OVERHEAD] = int(processes * CUDA_CONTEXT_BYTES + nccl + FRAGMENTATION * tensors)
    return Phase(name=name, parts=parts)


def _at_rest(model: ModelShape, engine: EngineSettings) -> dict[str, int]:
    """What stays on the GPU while the engine does nothing (verl: param_offload, optimizer_offload)."""
    weights = {} if engine.param_offload else _weights(model, engine)
    return weights | ({} if engine.optimizer_offload else {OPTIMIZER: optimizer_bytes(model, engine)})


def _weights(model: ModelShape, engine: EngineSettings) -> dict[str, int]:
    return {WEIGHTS: weight_bytes(model, engine), ADAPTER: adapter_bytes(model, engine)}


def _resident(model: ModelShape, engine: EngineSettings | None) -> int:
    return sum(_at_rest(model, engine).values()) if engine else 0


def _forward(model: ModelShape, settings: RunSettings) -> dict[str, int]:
    """The tensors of a pass that computes log-probs: of the reference, while the actor rests, or of the actor."""
    actor, engine = settings.actor, settings.reference_engine or settings.actor
    if engine is actor and settings.forward_micro_batch and actor.token_budget is None:
        actor = engine = replace(actor, micro_batch=settings.forward_micro_batch)
    parts = _weights(model, engine)
    if engine is not actor:
        for part, size in _at_rest(model, actor).items():
            parts[part] = parts.get(part, 0) + size
    elif not engine.optimizer_offload:
        parts[OPTIMIZER] = optimizer_bytes(model, engine)
    parts[WEIGHTS] += gathered_bytes(model, engine)
    parts[LOGITS] = logits = logits_bytes(model, engine, settings.logit_tokens(engine), trained=False)
    parts[ACTIVATIONS] = max(0, forward_bytes(model, engine, settings.pass_tokens(engine)) - logits)
    return parts


def _backward(model: ModelShape, settings: RunSettings, engine: EngineSettings) -> dict[str, int]:
    """verl brings offloaded weights and optimizer back to the GPU for the whole of an update."""
    kept, in_layer = activation_bytes(model, engine, settings.pass_tokens(engine))
    logits = logits_bytes(model, engine, settings.logit_tokens(engine), trained=True)
    weights = _weights(model, engine)
    weights[WEIGHTS] += gathered_bytes(model, engine)
    return weights | {
        GRADIENTS: _gradients(model, settings, engine),
        OPTIMIZER: optimizer_bytes(model, engine),
        # When the backward pass works on a layer, the logits are gone.
        ACTIVATIONS: kept + max(0, in_layer - logits),
        LOGITS: logits,
    }


def _gradients(model: ModelShape, settings: RunSettings, engine: EngineSettings) -> int:
    """Without FSDP, torch's DistributedDataParallel adds gradients up in its own buckets, which are a second copy."""
    copies = 2 if engine.fsdp_version == 0 and settings.num_devices > 1 else 1
    return copies * gradient_bytes(model, engine)


def _step(model: ModelShape, settings: RunSettings, engine: EngineSettings) -> dict[str, int]:
    """Adam over all tensors at once (torch's foreach) needs one more copy of the trained weights."""
    optimizer = optimizer_bytes(model, engine)
    return _weights(model, engine) | {
        GRADIENTS: _gradients(model, settings, engine),
        OPTIMIZER: optimizer + optimizer // 2,
    }


def _send(model: ModelShape, settings: RunSettings) -> dict[str, int]:
    """New weights on their way to vLLM, whose weights are back and whose cache is not (verl: update_weights).

    verl allocates the whole buffer (weight_bucket_mb). All weights, or the adapter merged into them, need it and the
    largest tensor, gathered; the adapter alone needs it and its tensors. FSDP1 gathers the whole model to merge an
    adapter, and to send one unless layered_summon is on.
    """
    rollout, actor = settings.rollout, settings.actor
    assert rollout is not None
    parts = _weights(model, actor) | ({} if actor.optimizer_offload else {OPTIMIZER: optimizer_bytes(model, actor)})
    if not actor.full and not rollout.merge_lora:
        moved = rollout.bucket_bytes + adapter_bytes(model, actor) * actor.shards
    else:
        moved = rollout.bucket_bytes + int(model.num_embedding * actor.master_bytes)
    gathers_all = actor.fsdp_version == 1 and actor.shards > 1 and not actor.full
    if gathers_all and (rollout.merge_lora or not rollout.layered_summon):
        moved += int(model.num_parameters * actor.master_bytes)
    awake = rollout_weight_bytes(model, rollout) + rollout_resting_bytes(model, settings)
    if not rollout.sleeps:
        awake = rollout_bytes(model, settings)
    return parts | {TRANSFER: moved, VLLM: awake}


# ---------------------------------------------------------------------------------------------- main memory


def _host_parts(model: ModelShape, settings: RunSettings) -> dict[str, int]:
    """Main memory of one machine: processes, what was moved out of the GPUs, Ray's object store."""
    actor, critic, rollout = settings.actor, settings.critic, settings.rollout
    devices = settings.devices_per_node
    cpu = settings.device.is_cpu
    parts: dict[str, int] = {}
    cuda_host = 0 if cpu else CUDA_HOST_BYTES
    if rollout is None:
        parts["processes"] = devices * (TRAINER_PROCESS_BYTES + cuda_host)
    else:
        workers = settings.num_agent_workers * AGENT_PROCESS_BYTES + settings.num_reward_workers * REWARD_PROCESS_BYTES
        parts["processes"] = FIXED_PROCESSES_BYTES + workers + devices * (DEVICE_PROCESSES_BYTES + 2 * cuda_host)
        parts["Ray's object store"] = settings.object_store_bytes
    offloaded = 0.0
    for engine in filter(None, (actor, critic, settings.reference_engine)):
        trained = trained_bytes(model, engine) if engine.trained else 0
        share = devices / engine.shards
        if engine.param_offload or engine.cpu_offload_policy:
            offloaded += share * parameters(model, engine) * engine.master_bytes
        if engine.cpu_offload_policy:
            offloaded += share * 3 * trained
        elif engine.optimizer_offload:
            offloaded += share * 2 * trained
    if rollout is not None and not actor.full and not cpu:
        if rollout.merge_lora:
            # verl keeps the unmerged weights while it sends the merged ones.
            offloaded += devices / actor.shards * model.num_parameters * actor.master_bytes
        elif rollout.sleeps:
            # At sleep level 1 vLLM's weights wait in main memory.
            offloaded += devices / rollout.tensor_parallel * model.num_parameters * rollout.weight_bytes
    parts["weights and optimizer moved out"] = int(offloaded)
    if not cpu:
        # With FSDP the first process reads the model for all processes, unless its embedding is also its head (verl:
        # get_init_weight_context_manager).
        readers = devices if model.tied_embedding or actor.fsdp_version == 0 else 1
        parts["reading the model"] = int(max(0.0, readers * model.num_parameters * actor.master_bytes - offloaded))
    return {part: size for part, size in parts.items() if size}


# ---------------------------------------------------------------------------------------------- does it fit


def longest_fitting_tokens(model: ModelShape, settings: RunSettings) -> int:
    """Tokens of the longest sequences with which the run fits, in eighths of the longest allowed; 0 if none fits."""
    for eighths in range(8, 0, -1):
        tokens = settings.sequence_tokens * eighths // 8
        shorter = replace(settings, prompt_tokens=max(1, tokens - settings.answer_tokens))
        if memory_plan(model, shorter).fits:
            return shorter.sequence_tokens
    return 0


def usable_bytes(memory_bytes: int) -> int:
    return int(memory_bytes * (1 - SAFETY))


def _problems(settings: RunSettings, plan: MemoryPlan) -> tuple[str, ...]:
    problems: list[str] = []
    device, rollout = settings.device, settings.rollout
    if device.memory_bytes and not device.is_cpu:
        usable = usable_bytes(device.memory_bytes)
        for phase in plan.phases:
            if phase.total > usable:
                largest = max(phase.parts, key=lambda part: phase.parts[part])
                problems.append(
                    f"{phase.name}: {gib(phase.total)} GiB of {gib(usable)} usable, most of it {largest} "
                    f"({gib(phase.parts[largest])} GiB)"
                )
    usable = usable_bytes(device.host_bytes)
    if device.host_bytes and plan.host_bytes > usable:
        problems.append(f"main memory: {gib(plan.host_bytes)} GiB of {gib(usable)} usable")
    if rollout is not None and plan.kv_tokens is not None and plan.kv_tokens < rollout.max_model_len:
        share = "its share of the GPU" if rollout.kv_cache_bytes is None else "kv_cache_memory_bytes"
        problems.append(
            f"vLLM: {share} leaves a cache of {plan.kv_tokens} tokens, less than one sequence of "
            f"{rollout.max_model_len}"
        )
    return tuple(problems)


def gib(size: float) -> str:
    """GiB with one decimal."""
    return f"{size / GIB:.1f}"
