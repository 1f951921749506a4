"""The settings in a composed configuration that decide how much memory and time a run takes.

The configuration is the one that verl (or, for DPO, recipes/dpo/train_dpo.py) would get, with every override of the
user's. So a plan describes the run that would start. Byte counts are those of one number: 4 for fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipes.models.model_shape import ALL_LINEAR
from tsc.errors import ConfigError

GIB = 2**30
MIB = 2**20

BYTES_OF_DTYPE = {"fp32": 4, "float32": 4, **dict.fromkeys(("bf16", "bfloat16", "fp16", "float16", "half"), 2)}
# Positions of a chat that need logits in SFT and DPO: the answer, and in DPO the padding between prompts of different
# length.
CHAT_LOGIT_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class DeviceSettings:
    """One GPU, or the whole machine of a CPU run. hardware: name of the file in configs/hardware.

    memory_bytes: the GPU's, as torch sees it. host_bytes: main memory of the machine. peak_tflops, bandwidth_gb_per_s:
    the data sheet's. Numbers are 0 if unknown.
    """

    hardware: str
    is_cpu: bool
    memory_bytes: int
    host_bytes: int = 0
    compute_capability: float
    peak_tflops: float
    bandwidth_gb_per_s: float

    @property
    def title(self) -> str:
        return "this CPU machine" if self.is_cpu else self.hardware.upper().replace("_", " ")


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """A model that is trained, or only computes log-probs (trained=False), by FSDP or, for DPO, by TRL.

    master_bytes: of a weight at rest. adapter_bytes: of a weight of the adapter. quantised: the layers' weights take 4
    bits, and master_bytes holds for the others. compute_bytes: of weights and activations in a pass. lora_rank: 0
    trains all weights. shards: processes among which weights, gradients and optimizer are divided. fsdp_version: 0 for
    a plain copy of the model in each process. micro_batch: sequences in one pass. token_budget: tokens in one pass
    instead, for batches of varying size. logit_tokens: tokens of a sequence that get logits, None for all of them.
    """

    master_bytes: int
    adapter_bytes: int
    compute_bytes: int
    lora_rank: int
    lora_targets: str | tuple[str, ...]
    micro_batch: int
    gradient_checkpointing: bool
    trained: bool = True
    quantised: bool = False
    shards: int = 1
    fsdp_version: int = 0
    token_budget: int | None = None
    param_offload: bool = False
    optimizer_offload: bool = False
    # FSDP2's policy: weights, gradients and optimizer stay in main memory, and layers come to the GPU when needed
    cpu_offload_policy: bool = False
    remove_padding: bool = False
    fused_log_probs: bool = False
    entropy: bool = False
    # a temperature other than 1 takes one more copy of the logits
    scaled_logits: bool = False
    has_lm_head: bool = True
    logit_tokens: int | None = None

    @property
    def full(self) -> bool:
        return self.lora_rank == 0


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """vLLM, which shares the GPU with the trainer. memory_fraction: the share that vLLM takes while it is awake."""

    weight_bytes: int
    kv_bytes: int
    tensor_parallel: int
    memory_fraction: float
    kv_cache_bytes: int | None
    max_model_len: int
    max_num_seqs: int
    max_batched_tokens: int
    sleeps: bool
    eager: bool
    bucket_bytes: int
    merge_lora: bool
    layered_summon: bool


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """A run. Batches are those of one step over all devices; tokens are the longest that the configuration allows.

    reference: "none", "adapter_off" (the actor without its adapter) or "separate" (a model of its own).
    """

    algorithm: str
    device: DeviceSettings
    num_nodes: int
    devices_per_node: int
    batch_prompts: int
    prompt_tokens: int
    actor: EngineSettings
    critic: EngineSettings | None = None
    reference: str = "none"
    reference_engine: EngineSettings | None = None
    answers: int = 1
    answer_tokens: int = 0
    old_log_prob_pass: bool = False
    # sequences of a pass of the actor that only computes log-probs
    forward_micro_batch: int | None = None
    rollout: RolloutSettings | None = None
    updates_per_batch: int = 1
    # DPO: the two answers of a pair, which share a pass; otherwise the decisions of an answer, each one sequence
    sequences_per_sample: int = 1
    object_store_bytes: int = 0
    num_agent_workers: int = 0
    num_reward_workers: int = 0

    @property
    def num_devices(self) -> int:
        return self.num_nodes * self.devices_per_node

    @property
    def sequences(self) -> int:
        """Sequences of a step: answers or their decisions, chats, or both answers of every pair."""
        return self.batch_prompts * self.answers * self.sequences_per_sample

    @property
    def least_micro_batch(self) -> int:
        """Sequences that must be in one pass: the two of a pair in DPO."""
        return 2 if self.algorithm == "dpo" else 1

    @property
    def sequences_per_update(self) -> int:
        """Sequences of one update on one device."""
        return max(1, self.sequences // self.num_devices // self.updates_per_batch)

    @property
    def sequence_tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens

    def pass_tokens(self, engine: EngineSettings) -> int:
        """Tokens of one forward and backward pass on one device, at most."""
        if engine.token_budget is not None:
            # A sequence is never split.
            return max(engine.token_budget, self.sequence_tokens)
        return min(engine.micro_batch, self.sequences_per_update) * self.sequence_tokens

    def logit_tokens(self, engine: EngineSettings) -> int:
        """The number of pass_tokens that get logits."""
        if engine.logit_tokens is None:
            return self.pass_tokens(engine)
        return min(engine.micro_batch, self.sequences_per_update) * min(engine.logit_tokens, self.sequence_tokens)

    def with_micro_batch(self, micro_batch: int) -> RunSettings:
        """The same run with another number of sequences in a pass of every engine; token budgets change with it."""

        def smaller(engine: EngineSettings) -> EngineSettings:
            budget = engine.token_budget
            if budget is not None:
                budget = micro_batch * self.sequence_tokens
            return replace(engine, micro_batch=micro_batch, token_budget=budget)

        forward = self.forward_micro_batch and self.forward_micro_batch * micro_batch // self.actor.micro_batch
        return replace(self.with_engines(smaller), forward_micro_batch=forward)

    def with_devices_per_node(self, count: int) -> RunSettings:
        """The same run on another number of GPUs. What FSDP divides over all GPUs, it divides over the new number."""
        world = self.num_nodes * count

        def sharded(engine: EngineSettings) -> EngineSettings:
            over_all = engine.fsdp_version > 0 and engine.shards == self.num_devices
            return replace(engine, shards=world if over_all else engine.shards)

        return replace(self.with_engines(sharded), devices_per_node=count)

    def with_engines(self, change: Callable[[EngineSettings], EngineSettings]) -> RunSettings:
        """The same run with `change` applied to actor, critic and reference."""
        return replace(
            self,
            actor=change(self.actor),
            critic=change(self.critic) if self.critic else None,
            reference_engine=change(self.reference_engine) if self.reference_engine else None,
        )


def run_settings(algorithm: str, config: DictConfig, *, hardware: str) -> RunSettings:
    """The settings of a composed configuration (recipes.preflight.compose). Raises ConfigError that names a missing or
    wrong key."""
    read = _Reader(config)
    if algorithm == "dpo":
        num_nodes, devices_per_node = 1, read.integer("hardware.num_devices", 1, least=1)
        of_algorithm = _dpo(read)
    else:
        num_nodes, devices_per_node = (read.integer(f"trainer.{key}", least=1) for key in ("nnodes", "n_gpus_per_node"))
        of_algorithm = (_sft if algorithm == "sft" else _policy_gradient)(read, num_nodes * devices_per_node)
    return RunSettings(
        algorithm=algorithm,
        device=DeviceSettings(
            hardware=hardware,
            is_cpu=read.get("hardware.device", "cuda") == "cpu",
            memory_bytes=int(read.number("hardware.memory_gib", 0) * GIB),
            compute_capability=read.number("hardware.compute_capability", 0),
            peak_tflops=read.number("hardware.peak_tflops", 0),
            bandwidth_gb_per_s=read.number("hardware.memory_bandwidth_gb_per_s", 0),
        ),
        num_nodes=num_nodes,
        devices_per_node=devices_per_node,
        batch_prompts=read.integer("data.train_batch_size", least=1),
        **of_algorithm,
    )


def has_critic(config: DictConfig) -> bool:
    """As verl decides it (verl/trainer/ppo/utils.py, need_critic)."""
    enabled = config.critic.enable
    return config.algorithm.adv_estimator == "gae" if enabled is None else bool(enabled)


class _Reader:
    """Reads and converts values of a configuration by key. Every error names the key."""

    def __init__(self, config: DictConfig) -> None:
        self.config = config

    def get(self, key: str, default: Any = None) -> Any:
        try:
            value = OmegaConf.select(self.config, key, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"the configuration's {key} cannot be read: {str(error).splitlines()[0]}") from error
        if value is None:
            return default
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value

    def integer(self, key: str, default: int | None = None, *, least: int = 0) -> int:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{key}={value} is not a whole number of at least {least}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{key}={value} is not a number")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{key}={value} is neither true nor false")
        return value

    def dtype_bytes(self, key: str, default: str) -> int:
        value = str(self.get(key, default))
        if value not in BYTES_OF_DTYPE:
            raise ConfigError(f"{key}={value} is unknown: choose one of {', '.join(BYTES_OF_DTYPE)}")
        return BYTES_OF_DTYPE[value]

    def targets(self, section: str) -> str | tuple[str, ...]:
        value = self.get(f"{section}.target_modules", ALL_LINEAR)
        return value if isinstance(value, str) else tuple(value)


def _policy_gradient(read: _Reader, world: int) -> dict[str, Any]:
    """The fields of RunSettings that this kind of training has of its own; so do _sft and _dpo."""
    worker = "actor_rollout_ref"
    rollout = f"{worker}.rollout"
    lora_rank = read.integer(f"{worker}.model.lora_rank", 0)
    prompt_tokens = read.integer("data.max_prompt_length", least=1)
    answer_tokens = read.integer("data.max_response_length", least=1)
    fused, packed = (
        read.flag(f"{worker}.model.use_fused_kernels"),
        read.flag(f"{worker}.model.use_remove_padding", True),
    )
    shared = {
        "lora_targets": read.targets(f"{worker}.model"),
        "fused_log_probs": fused,
        "scaled_logits": read.number(f"{rollout}.temperature", 1.0) != 1.0,
        # recipes/verl_plugins/answer_engine.py; verl's own code, which the other settings need, takes all tokens
        "logit_tokens": None if fused or packed else answer_tokens,
    }
    actor = _engine(
        read,
        world,
        model=f"{worker}.model",
        fsdp=f"{worker}.actor.fsdp_config",
        strategy=f"{worker}.actor.strategy",
        sizes=f"{worker}.actor.ppo_",
        dynamic=f"{worker}.actor.use_dynamic_bsz",
        entropy=read.flag(f"{worker}.actor.calculate_entropy") or read.number(f"{worker}.actor.entropy_coeff", 0) != 0,
        **shared,
    )
    reference, reference_engine, critic = "none", None, None
    if read.flag(f"{worker}.actor.use_kl_loss") or read.flag("algorithm.use_kl_in_reward"):
        reference = "adapter_off" if lora_rank else "separate"
    if reference == "separate":
        reference_engine = _engine(
            read,
            world,
            model=f"{worker}.model",
            fsdp=f"{worker}.ref.fsdp_config",
            strategy=f"{worker}.ref.strategy",
            sizes=f"{worker}.ref.log_prob_",
            dynamic=f"{worker}.ref.log_prob_use_dynamic_bsz",
            trained=False,
            **shared,
        )
    if has_critic(read.config):
        critic = _engine(
            read,
            world,
            model="critic.model",
            fsdp="critic.fsdp",
            strategy="critic.strategy",
            sizes="critic.ppo_",
            dynamic="critic.use_dynamic_bsz",
            has_lm_head=False,
            **shared,
        )
    # recipes/verl_plugins/decision_loop.py: each decision is a sequence of its own
    decisions = read.integer(f"{worker}.actor.decisions", 1, least=1)
    sequences = read.integer("data.train_batch_size", least=1) * decisions
    updates = max(1, sequences // read.integer(f"{worker}.actor.ppo_mini_batch_size", least=1))
    kv_cache = read.get(f"{rollout}.engine_kwargs.vllm.kv_cache_memory_bytes")
    rollout_bytes = read.dtype_bytes(f"{rollout}.dtype", "bfloat16")
    return {
        "answers": read.integer(f"{rollout}.n", 1, least=1),
        "prompt_tokens": prompt_tokens,
        "answer_tokens": answer_tokens,
        "actor": actor,
        "critic": critic,
        "reference": reference,
        "reference_engine": reference_engine,
        "forward_micro_batch": read.integer(f"{rollout}.log_prob_micro_batch_size_per_gpu", actor.micro_batch, least=1),
        "old_log_prob_pass": not read.flag("algorithm.rollout_correction.bypass_mode"),
        "rollout": RolloutSettings(
            weight_bytes=1 if read.get(f"{rollout}.quantization") == "fp8" else rollout_bytes,
            kv_bytes=rollout_bytes,
            tensor_parallel=read.integer(f"{rollout}.tensor_model_parallel_size", 1, least=1),
            memory_fraction=read.number(f"{rollout}.gpu_memory_utilization", 0.5),
            kv_cache_bytes=None if kv_cache is None else int(kv_cache),
            max_model_len=read.integer(f"{rollout}.max_model_len", prompt_tokens + answer_tokens, least=1),
            max_num_seqs=read.integer(f"{rollout}.max_num_seqs", 256, least=1),
            max_batched_tokens=read.integer(f"{rollout}.max_num_batched_tokens", 8192, least=1),
            sleeps=read.flag(f"{rollout}.free_cache_engine", True) and read.flag(f"{rollout}.enable_sleep_mode", True),
            eager=read.flag(f"{rollout}.enforce_eager"),
            bucket_bytes=read.integer(f"{rollout}.checkpoint_engine.update_weights_bucket_megabytes", 2048) * MIB,
            merge_lora=read.flag(f"{worker}.model.lora.merge"),
            layered_summon=read.flag(f"{rollout}.layered_summon"),
        ),
        "updates_per_batch": updates * read.integer(f"{worker}.actor.ppo_epochs", 1, least=1),
        "sequences_per_sample": decisions,
        "object_store_bytes": int(read.get("ray_kwargs.ray_init.object_store_memory", 0)),
        "num_agent_workers": read.integer(f"{rollout}.agent.num_workers", 8),
        "num_reward_workers": read.integer("reward.num_workers", 8),
    }


def _sft(read: _Reader, world: int) -> dict[str, Any]:
    fused, packed = read.flag("model.use_fused_kernels"), read.flag("model.use_remove_padding", True)
    actor = _engine(
        read,
        world,
        model="model",
        fsdp="engine",
        strategy="engine.strategy",
        sizes="data.",
        dynamic="data.use_dynamic_bsz",
        lora_targets=read.targets("model"),
        fused_log_probs=fused,
        logit_tokens=None if fused or packed else CHAT_LOGIT_TOKENS,
    )
    return {"actor": actor, "prompt_tokens": read.integer("data.max_length", least=1)}


def _engine(
    read: _Reader,
    world: int,
    *,
    model: str,
    fsdp: str,
    strategy: str,
    sizes: str,
    dynamic: str,
    trained: bool = True,
    **others: Any,
) -> EngineSettings:
    """An engine of verl. model, fsdp: sections; strategy, dynamic: keys; sizes: how the keys of its passes' sizes
    begin."""
    sharded_over = read.integer(f"{fsdp}.fsdp_size", -1, least=-1)
    uses_budget = read.flag(dynamic)
    # Unless it is set, verl takes fp32 for a model that is trained and bf16 for one that is not.
    master = read.dtype_bytes(f"{fsdp}.model_dtype", "fp32" if trained else "bf16")
    return EngineSettings(
        trained=trained,
        master_bytes=master,
        # verl casts the adapter to the type of the base.
        adapter_bytes=master,
        compute_bytes=read.dtype_bytes(f"{fsdp}.mixed_precision.param_dtype", "bf16"),
        lora_rank=read.integer(f"{model}.lora_rank", 0),
        shards=world if sharded_over < 1 or sharded_over >= world else sharded_over,
        fsdp_version=2 if read.get(strategy) == "fsdp2" else 1,
        micro_batch=1 if uses_budget else read.integer(f"{sizes}micro_batch_size_per_gpu", least=1),
        token_budget=read.integer(f"{sizes}max_token_len_per_gpu", least=1) if uses_budget else None,
        gradient_checkpointing=read.flag(f"{model}.enable_gradient_checkpointing", True),
        param_offload=read.flag(f"{fsdp}.param_offload"),
        optimizer_offload=read.flag(f"{fsdp}.optimizer_offload"),
        # verl keeps a model that is not trained in main memory, and brings its layers to the GPU one by one.
        cpu_offload_policy=read.flag(f"{fsdp}.offload_policy") or not trained,
        remove_padding=read.flag(f"{model}.use_remove_padding", True),
        **others,
    )


def _dpo(read: _Reader) -> dict[str, Any]:
    """TRL (recipes/dpo/train_dpo.py): a copy of the model in each process. The starting model's log-probs are computed
    once, before the training."""
    lora_rank = read.integer("model.lora_rank", 0)
    compute = read.dtype_bytes("hardware.param_dtype", "bf16")
    actor = EngineSettings(
        # load_model keeps trained weights in fp32 and loads frozen ones in the type of the computation
        master_bytes=compute if lora_rank else 4,
        adapter_bytes=4,
        quantised=read.get("model.quantize") == "4bit",
        compute_bytes=compute,
        lora_rank=lora_rank,
        lora_targets=read.targets("model"),
        # sequences, two for each pair; at least one pair
        micro_batch=2 * max(1, read.integer("hardware.micro_batch_size", least=1) // 2),
        gradient_checkpointing=read.flag("trl.gradient_checkpointing"),
        logit_tokens=CHAT_LOGIT_TOKENS,
    )
    return {"actor": actor, "prompt_tokens": read.integer("data.max_length", least=1), "sequences_per_sample": 2}
