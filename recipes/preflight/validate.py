"""Refuses now what verl would refuse minutes later, on any machine, with or without a GPU.

`validate` runs verl's own first checks: its validate_config and the dataclasses that its workers are built from (for
DPO: TRL's fields). It also finds what verl would silently ignore. Its errors name the key and the remedy. It does not
need the model's files.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import importlib
import importlib.util
import io
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from recipes.preflight.compose import POLICY_GRADIENT, leaves, meant_key, usual_config
from recipes.preflight.hardware import BF16_CAPABILITY, Hardware, check_layout
from recipes.preflight.run_settings import has_critic
from reward.compute_score import settings_for
from tsc.errors import ConfigError, did_you_mean
from tsc.yaml_file import validate_values

FSDP = ("fsdp", "fsdp2")
# vLLM's ways to compute attention on an NVIDIA GPU
ATTENTION_BACKENDS = ("FLASH_ATTN", "FLASHINFER", "FLEX_ATTENTION", "TRITON_ATTN")
# The largest of vLLM's LoRA kernels (vLLM: config/lora.py).
MAX_LORA_RANK = 512
# Sections that hand their keys on to something else. Any key may stand there; known keys are checked separately.
OPEN_SECTIONS = (
    *("override_config", "engine_kwargs", "ray_init", "trl", "sampler_kwargs", "custom", "kw_args"),
    "reward_kwargs",  # settings of the reward, which checks them
)
WORKER = "actor_rollout_ref"
OWN_REWARD = "pkg://reward.compute_score"
# what verl's own checks raise
REFUSALS = (HydraException, OmegaConfBaseException, AssertionError, ValueError, TypeError, NotImplementedError)
# Sections of dataclasses. Their fields are checked with them, because a dataclass has more fields than verl's files.
DATACLASS_SECTIONS = (
    *(f"{WORKER}.{part}." for part in ("actor", "ref", "rollout", "model")),
    *("critic.", "algorithm.", "model.", "engine.", "optim.", "checkpoint.", "profiler."),
)


def _check_choice(key: str, value: object, allowed: Sequence[str], also: str = "") -> None:
    if value not in allowed:
        meant = did_you_mean(str(value), allowed)
        raise ConfigError(f"{key}={value} is unknown: {meant}choose {also}{', '.join(allowed)}")


def validate(algorithm: str, config: DictConfig) -> None:
    """Check a composed configuration as far as possible without the run's GPU, data and model. Raises ConfigError.

    Imports verl (for DPO: TRL), which takes ten seconds on two cores. `config` stays as it is.
    """
    config = _resolved(config)
    values: Any = OmegaConf.to_container(config)
    _check_keys(algorithm, values)
    hardware = validate_values(values["hardware"], Hardware, where="hardware")
    if algorithm in POLICY_GRADIENT and has_critic(config) and algorithm != "ppo":
        raise ConfigError(
            f"algorithm.adv_estimator={config.algorithm.adv_estimator} with critic.enable={config.critic.enable} needs "
            f"a critic, whose settings are PPO's: use scripts/train_ppo.sh, or for {algorithm} another estimator"
        )
    _check_dtypes(config, values, hardware)
    if algorithm == "dpo":
        from recipes.preflight.trl_settings import check_trl_fields, passes

        check_trl_fields(config)
        passes(config, config.hardware.num_devices)
    elif algorithm == "sft":
        _check_sft(config)
    else:
        _check_policy_gradient(config)


def _resolved(config: DictConfig) -> DictConfig:
    """A copy with all interpolations resolved and every mandatory value present; open to new keys."""
    try:
        resolved: Any = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        said = str(error).splitlines()[0]
        raise ConfigError(
            f"{_full_key(error)} cannot be resolved ({said}): give the key that it refers to a value, or remove the "
            "override that removed it"
        ) from error
    missing = sorted(key for key in OmegaConf.missing_keys(resolved) if not key.startswith(_unused(resolved)))
    if missing:
        raise ConfigError(f"{missing[0]} has no value: add the override {missing[0]}=…")
    assert isinstance(resolved, DictConfig)
    return resolved


def _unused(config: DictConfig) -> tuple[str, ...]:
    """Prefixes of keys that nothing reads in this run: those of models that it does not use."""
    switches = {"reward.reward_model.": "enable", "distillation.": "enabled"}
    unused = [section for section, switch in switches.items() if not OmegaConf.select(config, section + switch)]
    if "critic" in config and not has_critic(config):
        unused.append("critic.")
    return tuple(unused)


def _check_keys(algorithm: str, values: dict[str, Any]) -> None:
    """Refuse a key that a '+' added and that nothing reads, and a value of the wrong kind."""
    known = usual_config(algorithm)
    for key in _added(values, known):
        if not key.startswith(DATACLASS_SECTIONS):
            meant = meant_key(key, [path for path, _ in leaves(known)])
            raise ConfigError(f"nothing in {algorithm} reads {key}: {meant}remove the override +{key}=…")
    for key, value, usual in _changed_types(values, known):
        if value == "after_each_epoch" and algorithm == "sft":
            continue  # what verl's SFT trainer takes as save_freq and test_freq
        raise ConfigError(f"{key}={value} is not {usual}: choose one")


def _changed_types(values: Any, known: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Key, value and expected kind where the value is of another kind than the default number or truth value."""
    if isinstance(values, dict) and isinstance(known, dict):
        for key in values.keys() & known.keys():
            yield from _changed_types(values[key], known[key], f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(known, bool):
        if not isinstance(values, bool):
            yield prefix, values, "true or false"
    elif isinstance(known, int | float) and values is not None:
        if isinstance(values, bool) or not isinstance(values, int | float):
            yield prefix, values, "a number"
        elif isinstance(known, int) and not isinstance(values, int):
            yield prefix, values, "a whole number"


def _added(values: Any, known: Any, prefix: str = "") -> Iterator[str]:
    """Keys of `values` that `known` does not have, outside the open sections."""
    if isinstance(values, dict) and isinstance(known, dict):
        for key, value in values.items():
            path = f"{prefix}.{key}" if prefix else str(key)
            if key not in known:
                yield path
            elif key not in OPEN_SECTIONS:
                yield from _added(value, known[key], path)


def _check_dtypes(config: DictConfig, values: dict[str, Any], hardware: Hardware) -> None:
    capability = hardware.compute_capability
    if capability is not None and capability < BF16_CAPABILITY:
        for key, value in leaves(values):
            # only the strategy fsdp_turbo reads turbo_config
            if (
                str(value).lower() in ("bf16", "bfloat16")
                and not key.startswith(_unused(config))
                and "turbo" not in key
            ):
                remedy = "fp32" if key.endswith("model_dtype") else "float16" if value == "bfloat16" else "fp16"
                raise ConfigError(
                    f"{key}={value}: {hardware.device_name} (compute capability {capability}) cannot compute in "
                    f"bfloat16, which needs {BF16_CAPABILITY}: choose {remedy}"
                )
    if hardware.param_dtype == "fp16" and hardware.device != "cuda":
        raise ConfigError(
            "hardware.param_dtype=fp16 needs an NVIDIA GPU: verl scales the loss with torch's ShardedGradScaler, which "
            "is off elsewhere, and small gradients would vanish: choose hardware.param_dtype=fp32"
        )


# ---------------------------------------------------------------------------------------------- verl


def _check_policy_gradient(config: DictConfig) -> None:
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
    from verl.utils.config import validate_config

    worker = config[WORKER]
    use_critic = has_critic(config)
    _check_rollout(config)
    engines = {f"{WORKER}.actor": worker.actor, **({"critic": config.critic} if use_critic else {})}
    for key, engine in engines.items():
        _check_engine(config, key, engine)
    _check_vllm(OmegaConf.to_container(worker.rollout.engine_kwargs))
    _check_dataclasses(f"{WORKER}.model", worker.model)
    _check_choice(
        f"{WORKER}.actor.policy_loss.loss_mode", worker.actor.policy_loss.loss_mode, sorted(POLICY_LOSS_REGISTRY)
    )
    _check_choice("algorithm.adv_estimator", config.algorithm.adv_estimator, sorted(ADV_ESTIMATOR_REGISTRY))
    _check_code(config)

    # as verl decides it (verl/trainer/ppo/utils.py, need_reference_policy)
    needs_reference = config.algorithm.use_kl_in_reward or worker.actor.use_kl_loss
    sections = {f"{WORKER}.rollout": worker.rollout, "algorithm": config.algorithm}
    if needs_reference:
        sections[f"{WORKER}.ref"] = _as_actor(worker.ref, worker.actor)
    for key, section in sections.items():
        _check_section(key, section)
    if use_critic:
        _check_dataclasses("critic.model", config.critic.model)
        # it is built from its own files, which this machine need not have
        config.critic.model = None
    for key, engine in engines.items():
        _check_dataclasses(key, engine)
    if worker.model.lora_rank > MAX_LORA_RANK and not worker.model.lora.merge:
        raise ConfigError(f"LORA_RANK={worker.model.lora_rank} is too large for vLLM: choose at most {MAX_LORA_RANK}")
    # verl would load vLLM, which takes 8 s, for the same check of the rank
    worker.model.lora.merge = True
    with _verl_notices():
        # this builds actor and critic
        _check_class(
            WORKER, lambda: validate_config(config, use_reference_policy=needs_reference, use_critic=use_critic)
        )


def _check_sft(config: DictConfig) -> None:
    _check_devices(
        config,
        sequences=config.data.train_batch_size,
        micro_batch=1 if config.data.use_dynamic_bsz else config.data.micro_batch_size_per_gpu,
    )
    _check_dataclasses("model", config.model)
    for key in ("engine", "optim", "checkpoint", "profiler"):
        _check_section(key, config[key])


def _check_rollout(config: DictConfig) -> None:
    rollout, data = config[WORKER].rollout, config.data
    tokens = data.max_prompt_length + data.max_response_length
    _check_choice(f"{WORKER}.rollout.name", rollout.name, ("vllm",))
    if rollout.max_model_len is not None and rollout.max_model_len < tokens:
        raise ConfigError(
            f"{WORKER}.rollout.max_model_len={rollout.max_model_len} tokens are fewer than data.max_prompt_length + "
            f"data.max_response_length = {tokens}: choose at least {tokens}"
        )
    if rollout.temperature <= 0:
        raise ConfigError(f"{WORKER}.rollout.temperature={rollout.temperature} samples nothing: choose TEMPERATURE > 0")


def _check_engine(config: DictConfig, key: str, engine: DictConfig) -> None:
    """The batches of the actor or the critic."""
    _check_choice(f"{key}.strategy", engine.strategy, FSDP)
    prompts = engine.ppo_mini_batch_size
    # each decision of an answer is a sequence of its own (recipes/verl_plugins/decision_loop.py)
    if config.data.train_batch_size * engine.get("decisions", 1) % prompts:
        raise ConfigError(
            f"{key}.ppo_mini_batch_size={prompts} prompts an update do not divide data.train_batch_size="
            f"{config.data.train_batch_size} prompts a step: choose BATCH_PROMPTS and UPDATES so that they do"
        )
    micro_batch = 1 if engine.use_dynamic_bsz else engine.ppo_micro_batch_size_per_gpu
    _check_devices(config, sequences=prompts * config[WORKER].rollout.n, micro_batch=micro_batch)


def _check_devices(config: DictConfig, *, sequences: int, micro_batch: int) -> None:
    rollout = OmegaConf.select(config, f"{WORKER}.rollout")
    heads, kv_heads = _heads(config.model.path if rollout is None else config[WORKER].model.path)
    check_layout(
        num_devices=config.trainer.n_gpus_per_node,
        nnodes=config.trainer.nnodes,
        tensor_parallel=1 if rollout is None else rollout.tensor_model_parallel_size,
        sequences=sequences,
        micro_batch=micro_batch,
        # torchrun, not Ray, starts the other trainings
        ray_num_cpus=None if rollout is None else OmegaConf.select(config, "ray_kwargs.ray_init.num_cpus"),
        num_heads=heads,
        num_kv_heads=kv_heads,
    )


def _heads(model: str | None) -> tuple[int | None, int | None]:
    """Attention heads and key-value heads of the model in a folder; None, None without its config.json."""
    file = Path(model, "config.json") if model else None
    if file is None or not file.is_file():
        return None, None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON ({error}): is the model's folder complete?") from error
    heads = values.get("num_attention_heads")
    return heads, values.get("num_key_value_heads", heads)


def _as_actor(ref: DictConfig, actor: DictConfig) -> DictConfig:
    """The reference's section in the form of verl's dataclass (verl/workers/engine_workers.py, init_model)."""
    ref = copy.deepcopy(ref)
    with open_dict(ref):
        ref.ppo_mini_batch_size = actor.ppo_mini_batch_size
        ref.ppo_micro_batch_size = ref.pop("log_prob_micro_batch_size", None)
        ref.ppo_micro_batch_size_per_gpu = ref.pop("log_prob_micro_batch_size_per_gpu", None)
        ref.use_dynamic_bsz = ref.pop("log_prob_use_dynamic_bsz", False)
        ref.ppo_max_token_len_per_gpu = ref.pop("log_prob_max_token_len_per_gpu", None)
    return ref


def _check_vllm(engine_kwargs: Any) -> None:
    """Refuse keys for vLLM's command line that are not arguments of its engine."""
    known = vllm_arguments()
    values = engine_kwargs.get("vllm") or {}
    for key, value in values.items():
        path = f"{WORKER}.rollout.engine_kwargs.vllm.{key}"
        if key not in known:
            meant = did_you_mean(key, known)
            raise ConfigError(f"{path} is not an argument of vLLM's engine: {meant}remove or correct the override")
        if key == "attention_backend" and value is not None:
            _check_choice(path, value, ATTENTION_BACKENDS, "null (vLLM's own choice), ")


def vllm_arguments() -> list[str]:
    """The fields of vLLM's AsyncEngineArgs, sorted, from its source: to load vLLM takes 8 s."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise ConfigError("vLLM is not installed: run scripts/setup_env.sh")
    source = Path(spec.origin).parent / "engine" / "arg_utils.py"
    classes = [node for node in ast.parse(source.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    return sorted(
        line.target.id
        for node in classes
        if node.name in ("EngineArgs", "AsyncEngineArgs")
        for line in node.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    )


def _check_code(config: DictConfig) -> None:
    """Refuse a path to code at which there is nothing, and wrong settings of our reward. verl would look for them
    later."""
    rollout = config[WORKER].rollout
    for key, path in (
        ("reward.custom_reward_function.path", config.reward.custom_reward_function.path),
        ("trainer.v1.sampler.custom_sampler.path", config.trainer.v1.sampler.custom_sampler.path),
        (f"{WORKER}.rollout.agent.agent_loop_config_path", rollout.agent.agent_loop_config_path),
    ):
        if path is None:
            continue
        package = str(path).removeprefix("pkg://")
        found = importlib.util.find_spec(package) if package != path else Path(path).is_file() or None
        if found is None:
            raise ConfigError(f"{key}={path} does not exist: give a file, or pkg:// and a module that can be imported")
    function = config.reward.custom_reward_function
    if function.path == OWN_REWARD:
        settings_for(OmegaConf.to_container(function.reward_kwargs, resolve=True))


def _check_section(key: str, section: DictConfig) -> None:
    """Build the dataclasses of a section as verl does, after a check of their keys."""
    from verl.utils.config import omega_conf_to_dataclass

    _check_dataclasses(key, section)
    _check_class(key, lambda: omega_conf_to_dataclass(section))


def _check_dataclasses(key: str, section: DictConfig) -> None:
    """Check the keys of a section's dataclasses. Building verl's HFModelConfig would load the model's tokenizer."""
    for path, values in _with_target(OmegaConf.to_container(section), key):
        name = values["_target_"]
        module, _, attribute = name.rpartition(".")
        try:
            cls = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{path}._target_={name} cannot be imported ({error}): remove the override") from error
        # nested dataclasses are checked on their own
        known = sorted(field.name for field in dataclasses.fields(cls))
        for unknown in (name for name in values if name not in ("_target_", *known)):
            raise ConfigError(
                f"verl's {cls.__name__} does not know {path}.{unknown}: {did_you_mean(unknown, known)}remove the "
                f"override +{path}.{unknown}=…"
            )


def _with_target(values: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(values, dict):
        if values.get("_target_"):
            yield path, values
        for key, value in values.items():
            yield from _with_target(value, f"{path}.{key}")


def _check_class(key: str, build: Callable[[], object]) -> None:
    """Turn what verl's own checks refuse into a ConfigError."""
    try:
        build()
    except REFUSALS as error:
        cause: BaseException = error
        while isinstance(cause, HydraException) and cause.__cause__ is not None:
            cause = cause.__cause__
        said = " ".join(str(cause).split())
        if not said:  # of a bare assert, only its line says what is wrong
            said = str(traceback.extract_tb(cause.__traceback__)[-1].line)
        raise ConfigError(
            f"{_full_key(error) or key}: verl refuses it: {said.rstrip('.')}. Change or remove the override"
        ) from error


def _full_key(error: Exception) -> str | None:
    """The key in a message of Hydra or OmegaConf, which has a line of its own."""
    line = re.search(r"^\s*full_key: (.+)$", str(error), re.MULTILINE)
    return line.group(1) if line else None


@contextlib.contextmanager
def _verl_notices() -> Iterator[None]:
    """verl prints while it checks. Its notices go to standard error; its report of success is dropped."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    finally:
        for line in said.getvalue().splitlines():
            if line.startswith(("NOTICE", "WARNING")):
                print(line, file=sys.stderr)
