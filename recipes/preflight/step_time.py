"""A rough estimate of a step's time: its operations and bytes, divided by what a device reaches of its data sheet.

It is good enough to tell minutes from hours, but not to compare two runs.
"""

from __future__ import annotations

import math

from recipes.models.model_shape import ModelShape
from recipes.preflight.memory_plan import kv_bytes_per_token, kv_cache_tokens, rollout_weight_bytes
from recipes.preflight.run_settings import EngineSettings, RunSettings

# Shares of the data sheet's figures. verl's public runs of Qwen2.5 1.5B and 7B with LoRA on H100s (docs/hardware.md
# names them) reached 0.20 of the arithmetic in a forward pass, and 0.07 and 0.09 in an update.
FORWARD_SHARE = 0.2
TRAINING_SHARE = 0.08
BANDWIDTH_SHARE = 0.6
# Kernels of a decoder layer of Qwen2 under torch, forward alone and with the backward pass: the operations that torch
# dispatches, without views (tests/recipes/preflight/test_step_time.py counts them), by whether there is an adapter on
# all its linear layers, and whether activations are recomputed. The start of one is a rule of thumb, not measured here.
LAYER_KERNELS = {
    (False, False): (51, 144),
    (False, True): (51, 193),
    (True, False): (102, 236),
    (True, True): (102, 334),
}
KERNEL_START_S = 12e-6
# Each token of an answer takes a pass through all layers, whose kernels have to be started, however small they are.
LAYER_S_EAGER = 1.5e-3
LAYER_S_IN_GRAPHS = 0.2e-3
# What verl's agent loop and vLLM's server, one process each, spend on an answer: 6.5 s for 512 short ones of the demo.
ANSWER_S = 0.012
# What a CPU is assumed to reach: the passes of the demo's tiny model reach 25 in one thread of an AMD EPYC.
CPU_GFLOPS = 25
CPU_BANDWIDTH_GB_PER_S = 10
# The start of passes, Ray's calls and the wait for the slowest process, which a model of any size needs.
FIXED_S = 2.0


def step_time(model: ModelShape, settings: RunSettings) -> dict[str, float]:
    """Seconds of one step by part, from 2 operations a parameter and token forward and 4 backward. 2 of the 4 are for
    the weights' gradients, which a frozen base does not need; recomputed activations take 2 more (Kaplan et al. 2020,
    arXiv:2001.08361, section 2.1). On a GPU, a pass takes at least as long as the start of its kernels."""
    forward, training = (
        flops_per_s(settings, share) * settings.num_devices for share in (FORWARD_SHARE, TRAINING_SHARE)
    )
    tokens = settings.sequences * settings.sequence_tokens
    parts: dict[str, float] = {}
    if settings.rollout is not None:
        parts["generate"] = generation_s(model, settings)
    passes = int(settings.old_log_prob_pass) + int(settings.reference != "none")
    if passes:
        engine = settings.reference_engine or settings.actor
        computing = 2 * model.num_matmul_parameters * tokens / forward
        size = settings.forward_micro_batch or engine.micro_batch
        parts["log-probs"] = passes * max(computing, starting_s(model, settings, engine, size, trained=False))
    if settings.critic is not None:
        critic = settings.critic
        computing = model.layers * model.num_layer * tokens * (2 / forward + training_operations(critic) / training)
        starting = sum(
            starting_s(model, settings, critic, critic.micro_batch, trained=trained) for trained in (False, True)
        )
        parts["critic"] = max(computing, starting)
    actor = settings.actor
    computing = training_operations(actor) * model.num_matmul_parameters * tokens / training
    parts["update"] = max(computing, starting_s(model, settings, actor, actor.micro_batch, trained=True))
    parts["the rest"] = FIXED_S
    return parts


def training_operations(engine: EngineSettings) -> int:
    """Operations of a forward and backward pass for each parameter and token."""
    return 2 + (4 if engine.full else 2) + (2 if engine.gradient_checkpointing else 0)


def starting_s(
    model: ModelShape, settings: RunSettings, engine: EngineSettings, micro_batch: int, *, trained: bool
) -> float:
    """Seconds to start the kernels of all passes of a step on one GPU. micro_batch: sequences of a pass."""
    if settings.device.is_cpu:
        return 0.0
    sequences = settings.sequences / settings.num_devices
    if engine.token_budget is not None:
        micro_batch = max(1, engine.token_budget // settings.sequence_tokens)
    passes = math.ceil(sequences / micro_batch)
    kernels = LAYER_KERNELS[not engine.full, engine.gradient_checkpointing][trained]
    return passes * model.layers * kernels * KERNEL_START_S


def flops_per_s(settings: RunSettings, share: float) -> float:
    """Operations a second that one device is assumed to reach. share: the share of a GPU's data sheet."""
    if not settings.device.peak_tflops:
        return CPU_GFLOPS * 1e9 / settings.devices_per_node
    return share * settings.device.peak_tflops * 1e12


def generation_s(model: ModelShape, settings: RunSettings) -> float:
    """Seconds to process each group's prompt once (prefix caching), and then to make a pass for each token of the
    answers. Such a pass reads all weights and the sequences' keys and values; the slowest of reading, computing and
    starting kernels counts."""
    rollout = settings.rollout
    assert rollout is not None
    flops = flops_per_s(settings, FORWARD_SHARE)
    bandwidth = 1e9 * (BANDWIDTH_SHARE * settings.device.bandwidth_gb_per_s or CPU_BANDWIDTH_GB_PER_S)
    copies = max(1, settings.num_devices // rollout.tensor_parallel)
    sequences = math.ceil(settings.sequences / copies)
    # the answers of a group share their prompt; each decision of a stretch has a new one
    groups = settings.batch_prompts if settings.sequences_per_sample == 1 else settings.sequences
    prompts = math.ceil(groups / copies)
    prefill = 2 * model.num_matmul_parameters * prompts * settings.prompt_tokens / (flops * rollout.tensor_parallel)
    room = max(1, kv_cache_tokens(model, settings) // settings.sequence_tokens)
    together = min(sequences, rollout.max_num_seqs, room)
    cache = together * settings.sequence_tokens * kv_bytes_per_token(model, rollout)
    reading = (rollout_weight_bytes(model, rollout) + cache) / bandwidth
    computing = 2 * model.num_matmul_parameters * together / (flops * rollout.tensor_parallel)
    starting = 0.0
    if not settings.device.is_cpu:
        starting = model.layers * (LAYER_S_EAGER if rollout.eager else LAYER_S_IN_GRAPHS)
    handling = sequences * copies * ANSWER_S / max(1, settings.num_agent_workers)
    decoding = math.ceil(sequences / together) * settings.answer_tokens * max(reading, computing, starting)
    return prefill + decoding + handling
