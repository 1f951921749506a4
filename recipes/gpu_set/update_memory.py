"""Traces the memory of an update at its real size, with tensors that hold no data, and compares it with the plan.

The update is that of verl's FSDP2 engine with our AnswerEngine: LoRA, gradient checkpointing, logits of the answers
only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from recipes.gpu_set.launch_config import launch_config, settings_of
from recipes.models.model_shape import ModelShape, model_shape
from recipes.preflight.memory_plan import OVERHEAD, VLLM, memory_plan
from recipes.preflight.run_settings import RunSettings
from tsc.errors import ConfigError
from tsc.files import REPO_ROOT

DTYPES = {2: torch.bfloat16, 4: torch.float32}
# The plan may be above the trace, but hardly below it.
LOWEST, HIGHEST = 0.95, 1.25


def check(profile: str, model: str) -> str:
    """Raises ConfigError if the plan's update differs too much from the trace."""
    config = launch_config(profile, model)
    settings = settings_of(config, profile)
    engine = settings.actor
    planned = planned_bytes(model_shape(model), settings)
    traced = peak_bytes(
        model,
        sequences=engine.micro_batch,
        tokens=settings.sequence_tokens,
        answer_tokens=engine.logit_tokens or settings.sequence_tokens,
        lora_rank=engine.lora_rank,
        lora_alpha=config.actor_rollout_ref.model.lora_alpha,
        compute=DTYPES[engine.compute_bytes],
    )
    shown = f"plan / trace {planned / 2**30:.1f} / {traced / 2**30:.1f} GiB"
    if not LOWEST <= planned / traced <= HIGHEST:
        raise ConfigError(f"{shown}: the ratio should be from {LOWEST} to {HIGHEST}")
    return shown


def planned_bytes(shape: ModelShape, settings: RunSettings) -> int:
    """What the trainer's tensors take in the fuller part of an update, by the plan."""
    phases = {phase.name: phase.parts for phase in memory_plan(shape, settings).phases}
    return max(
        sum(size for part, size in phases[name].items() if part not in (VLLM, OVERHEAD))
        for name in ("update", "Adam step")
    )


def peak_bytes(
    model: str,
    *,
    sequences: int,
    tokens: int,
    answer_tokens: int,
    lora_rank: int,
    lora_alpha: int,
    compute: torch.dtype,
) -> int:
    """The fullest moment of the second update, whose optimizer has its moments."""
    import peft.tuners.tuners_utils
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    shape = AutoConfig.from_pretrained(REPO_ROOT / "configs/models" / model, attn_implementation="sdpa")
    with torch.device("meta"):
        policy = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy.enable_input_require_grads()
    tuner: Any = peft.tuners.tuners_utils.BaseTunerLayer
    tuner._move_adapter_to_device_of_base_layer = lambda *_, **__: None
    lora = LoraConfig(r=lora_rank, lora_alpha=lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = get_peft_model(policy, lora)
    for parameter in policy.parameters():
        parameter.data = parameter.data.to("meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        policy.to_empty(device="cpu")
        base = policy.get_base_model()
        if shape.tie_word_embeddings:
            base.lm_head.weight = base.model.embed_tokens.weight
        precision = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=True)
        sharding: dict[str, Any] = {"mesh": mesh, "mp_policy": precision, "reshard_after_forward": True}
        for name, module in policy.named_modules():
            is_embedding = name.rpartition(".")[2] in ("embed_tokens", "lm_head") and not shape.tie_word_embeddings
            if type(module).__name__.endswith("DecoderLayer") or is_embedding:
                fully_shard(module, **sharding)
        fully_shard(policy, **sharding)
        optimizer = torch.optim.AdamW([each for each in policy.parameters() if each.requires_grad], lr=1e-5)
        ids = torch.zeros(sequences, tokens, dtype=torch.long)
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones(sequences, 1, tokens, tokens, dtype=torch.bool),
            "position_ids": torch.arange(tokens).expand(sequences, tokens),
            "use_cache": False,
            "logits_to_keep": answer_tokens,
        }
        policy.train()
        tracker = FSDPMemTracker(policy, optimizer)
        tracker.track_inputs((ids,))
        with tracker:
            for _ in range(2):
                with torch.autocast("cpu", dtype=compute, enabled=compute != torch.float32):
                    logits = policy(**inputs).logits
                    # as recipes.verl_plugins.answer_engine does it
                    logits = logits.flatten(0, 1).float() / torch.ones(sequences * answer_tokens)[:, None]
                    log_probs = logits.log_softmax(-1).gather(-1, ids[:, -answer_tokens:].reshape(-1, 1))
                    loss = log_probs.mean()
                loss.backward()
                del logits, log_probs, loss
                optimizer.step()
                optimizer.zero_grad()
                tracker.reset_mod_stats()
        peaks = tracker.get_tracker_snapshot("peak")
    torch.distributed.destroy_process_group()
    return max(int(sum(v for k, v in each.items() if "TOTAL" in str(k).upper())) for each in peaks.values())
