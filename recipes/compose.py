"""Compose the configuration of a training as verl would get it, and check it on any machine, GPU or none.

`compose` puts recipes/<algorithm>.yaml, verl's own files, the hardware profile and overrides together, and imports
neither verl nor torch. `validate` then runs what verl would run first: its validate_config and the dataclasses that
its workers are built from (for DPO: TRL's fields), and looks for what verl would pass over in silence or stumble upon
minutes later. Both raise ConfigError that names the key and the remedy. No model file is needed.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import importlib.util
import io
import json
import sys
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError

from recipes.hardware import Hardware, check_layout, load_hardware
from tsc.errors import ConfigError
from tsc.yaml_file import nearest_spelling, validate_values

RECIPES = Path(__file__).resolve().parent
POLICY_GRADIENT = ("grpo", "gspo", "ppo")
ALGORITHMS = (*POLICY_GRADIENT, "sft", "dpo")
# bfloat16 arithmetic
BF16_CAPABILITY = 8.0
# Sections that hand their keys on to something else, where any key may stand; what is known of them is checked apart.
OPEN_SECTIONS = ("override_config", "engine_kwargs", "ray_init", "trl", "sampler_kwargs", "custom", "kw_args")
WORKER = "actor_rollout_ref"
# Sections of dataclasses, whose fields are checked with them; a dataclass has more fields than verl's files show.
DATACLASS_SECTIONS = (
    *(f"{WORKER}.{part}." for part in ("actor", "ref", "rollout", "model")),
    *("critic.", "algorithm.", "model.", "engine.", "optim.", "checkpoint.", "profiler."),
)


def compose(algorithm: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration of recipes/<algorithm>.yaml with Hydra overrides, later ones over earlier; unresolved.

    Raises ConfigError for an unknown algorithm, hardware profile or key and for what is no override.
    """
    if algorithm not in ALGORITHMS:
        raise ConfigError(f"algorithm {algorithm!r} is unknown: choose one of {', '.join(ALGORITHMS)}")
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "hardware":
            load_hardware(value)
    # verl's folder by path: Hydra would import verl, and torch with it, to find pkg://verl.trainer.config
    verl = importlib.util.find_spec("verl")
    if verl is None or not verl.submodule_search_locations:
        raise ConfigError("verl is not installed: run scripts/setup_env.sh")
    folders = [Path(verl.submodule_search_locations[0]) / "trainer" / "config", RECIPES.parent / "configs"]
    searchpath = ",".join(f"'file://{folder}'" for folder in folders)
    try:
        with initialize_config_dir(config_dir=str(RECIPES), version_base=None):
            return hydra_compose(algorithm, overrides=[f"hydra.searchpath=[{searchpath}]", *overrides])
    except OverrideParseException as error:
        raise ConfigError(
            f"override '{error.override}' is not in Hydra's form: write key=value, values with blanks, commas or "
            "brackets in quotes within quotes ('key=\"a, b\"')"
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_composition_fault(algorithm, overrides, error)) from error


def _composition_fault(algorithm: str, overrides: Sequence[str], error: Exception) -> str:
    """What Hydra cannot place, with the nearest key that there is."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    unknown = getattr(cause, "full_key", None)
    for override in overrides:
        key = override.partition("=")[0].lstrip("~")
        if unknown and (key == unknown or key.startswith(f"{unknown}.")):
            known = sorted(_leaves(OmegaConf.to_container(compose(algorithm, []), resolve=False)))
            nearest = _nearest_key(key, known)
            meant = f": did you mean {nearest}?" if nearest else ""
            return f"override '{override}': {algorithm} has no key {key}{meant}"
    return f"{algorithm} cannot be composed: {' '.join(str(error).split())}"


def _nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The same last word elsewhere counts as near, for whole sections are easily forgotten."""
    last = key.rpartition(".")[2]
    same = [candidate for candidate in known if candidate.rpartition(".")[2] == last]
    return nearest_spelling(key, same) or nearest_spelling(key, known)


def _leaves(values: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix


def validate(algorithm: str, config: DictConfig) -> None:
    """Check the composed configuration of a training as far as that goes without its GPU, data and model.

    Imports verl and vLLM (for DPO: TRL), which takes a quarter of a minute on two cores. Leaves `config` as it is.
    Raises ConfigError.
    """
    if algorithm not in ALGORITHMS:
        raise ConfigError(f"algorithm {algorithm!r} is unknown: choose one of {', '.join(ALGORITHMS)}")
    config = _resolved(config)
    _check_keys(algorithm, config)
    hardware = validate_values(OmegaConf.to_container(config.hardware), Hardware, where="hardware")
    _check_dtypes(hardware)
    if algorithm == "dpo":
        _check_dpo(config)
        return
    # the CPU set's vLLM has another name than verl asks for; elsewhere this does nothing
    from recipes.verl_cpu import vllm_metadata

    vllm_metadata.install()
    if algorithm == "sft":
        _check_sft(config, hardware)
    else:
        _check_policy_gradient(config, hardware)


def _resolved(config: DictConfig) -> DictConfig:
    """A copy with all interpolations resolved and every mandatory value there."""
    config = copy.deepcopy(config)
    # verl's files have sections for models that no recipe here uses; they need no values until someone does
    unused = [
        f"{section}."
        for section, switch in (("reward.reward_model", "enable"), ("distillation", "enabled"))
        if not OmegaConf.select(config, f"{section}.{switch}")
    ]
    missing = sorted(key for key in OmegaConf.missing_keys(config) if not key.startswith(tuple(unused)))
    if missing:
        raise ConfigError(f"{missing[0]} has no value: add the override {missing[0]}=…")
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{error.full_key}: its value refers to a key that is not there ({str(error).splitlines()[0]}): "
            "give it a value, or remove the override that removed the other"
        ) from error
    return config


def _check_keys(algorithm: str, config: DictConfig) -> None:
    """No key that a '+' slipped in without anything reading it."""
    known = OmegaConf.to_container(compose(algorithm, []), resolve=False)
    for key in _added(OmegaConf.to_container(config), known):
        if not key.startswith(DATACLASS_SECTIONS):
            nearest = _nearest_key(key, sorted(_leaves(known)))
            meant = f": did you mean {nearest}?" if nearest else "."
            raise ConfigError(f"{key} is read by nothing in {algorithm}{meant} Remove the override +{key}=…")


def _added(values: Any, known: Any, prefix: str = "") -> Iterator[str]:
    """Keys of `values` that `known` has not, outside of the open sections."""
    if isinstance(values, dict) and isinstance(known, dict):
        for key, value in values.items():
            path = f"{prefix}.{key}" if prefix else str(key)
            if key not in known:
                yield path
            elif key not in OPEN_SECTIONS:
                yield from _added(value, known[key], path)


def _check_dtypes(hardware: Hardware) -> None:
    types = {key: getattr(hardware, key) for key in ("model_dtype", "param_dtype", "reduce_dtype", "rollout_dtype")}
    bf16 = [key for key, value in types.items() if value.startswith("bf")]
    if bf16 and hardware.compute_capability is not None and hardware.compute_capability < BF16_CAPABILITY:
        remedy = {"rollout_dtype": "float16", "param_dtype": "fp16"}.get(bf16[0], "fp32")
        raise ConfigError(
            f"hardware.{bf16[0]}={types[bf16[0]]}: {hardware.device_name} (compute capability "
            f"{hardware.compute_capability}) has no bfloat16, which came with {BF16_CAPABILITY}: "
            f"choose hardware.{bf16[0]}={remedy}"
        )
    if hardware.param_dtype == "fp16" and hardware.device != "cuda":
        raise ConfigError(
            "hardware.param_dtype=fp16 needs an NVIDIA GPU: verl scales the loss with torch's ShardedGradScaler, which "
            "is off elsewhere, and small gradients would vanish: choose hardware.param_dtype=fp32"
        )


# ---------------------------------------------------------------------------------------------- verl


def _check_policy_gradient(config: DictConfig, hardware: Hardware) -> None:
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    worker, trainer = config[WORKER], config.trainer
    with warnings.catch_warnings():
        # that no critic is trained, which is meant
        warnings.filterwarnings("ignore", "Disabled critic", UserWarning)
        use_critic = need_critic(config)
    _check_lengths(config)
    sequences = {"actor": worker.actor.ppo_mini_batch_size * worker.rollout.n}
    micro_batches = {"actor": worker.actor.ppo_micro_batch_size_per_gpu}
    if use_critic:
        sequences["critic"] = config.critic.ppo_mini_batch_size * worker.rollout.n
        micro_batches["critic"] = config.critic.ppo_micro_batch_size_per_gpu
    for role, count in sequences.items():
        dynamic = config.critic.use_dynamic_bsz if role == "critic" else worker.actor.use_dynamic_bsz
        _check_devices(config, hardware, sequences=count, micro_batch=1 if dynamic else micro_batches[role])
    # with several decisions to an answer each is a sequence of its own (recipes/decision_loop.py)
    if config.data.train_batch_size * worker.actor.get("decisions", 1) % worker.actor.ppo_mini_batch_size:
        raise ConfigError(
            f"{WORKER}.actor.ppo_mini_batch_size={worker.actor.ppo_mini_batch_size} prompts an update do not divide "
            f"data.train_batch_size={config.data.train_batch_size} prompts a step: choose BATCH_PROMPTS and UPDATES so "
            "that they do"
        )
    if worker.actor.use_dynamic_bsz != worker.rollout.log_prob_use_dynamic_bsz:
        raise ConfigError(
            f"{WORKER}.actor.use_dynamic_bsz and {WORKER}.rollout.log_prob_use_dynamic_bsz differ, and verl stops at "
            "that: give both the same value"
        )
    _check_vllm(OmegaConf.to_container(worker.rollout.engine_kwargs))
    _check_model(worker.model, f"{WORKER}.model")
    _check_class(
        f"{WORKER}.actor.policy_loss.loss_mode", lambda: get_policy_loss_fn(worker.actor.policy_loss.loss_mode)
    )
    _check_class("algorithm.adv_estimator", lambda: get_adv_estimator_fn(config.algorithm.adv_estimator))
    _check_code(config)

    sections = {
        f"{WORKER}.actor": worker.actor,
        f"{WORKER}.rollout": worker.rollout,
        "algorithm": config.algorithm,
    }
    if need_reference_policy(config):
        sections[f"{WORKER}.ref"] = _as_actor(worker.ref, worker.actor)
    if use_critic:
        _check_model(config.critic.model, "critic.model")
        # built from its own files, which need not be here
        config.critic.model = None
        sections["critic"] = config.critic
    for key, section in sections.items():
        _check_section(key, section)
    with _verl_notices(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Disabled critic", UserWarning)
        _check_class(
            "the batch sizes",
            lambda: validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=use_critic),
        )
    if trainer.nnodes * trainer.n_gpus_per_node % worker.rollout.tensor_model_parallel_size:
        raise ConfigError(
            f"{WORKER}.rollout.tensor_model_parallel_size={worker.rollout.tensor_model_parallel_size} does not divide "
            f"{trainer.nnodes} × {trainer.n_gpus_per_node} GPUs: choose TENSOR_PARALLEL so that it does"
        )


def _check_sft(config: DictConfig, hardware: Hardware) -> None:
    _check_devices(
        config,
        hardware,
        sequences=config.data.train_batch_size,
        micro_batch=1 if config.data.use_dynamic_bsz else config.data.micro_batch_size_per_gpu,
    )
    _check_model(config.model, "model")
    for key in ("engine", "optim", "checkpoint", "profiler"):
        _check_section(key, config[key])


def _check_lengths(config: DictConfig) -> None:
    rollout, data = config[WORKER].rollout, config.data
    tokens = data.max_prompt_length + data.max_response_length
    if rollout.max_model_len is not None and rollout.max_model_len < tokens:
        raise ConfigError(
            f"{WORKER}.rollout.max_model_len={rollout.max_model_len} tokens are fewer than data.max_prompt_length + "
            f"data.max_response_length = {tokens}: choose at least {tokens}"
        )
    if rollout.temperature <= 0:
        raise ConfigError(f"{WORKER}.rollout.temperature={rollout.temperature} samples nothing: choose TEMPERATURE > 0")


def _check_devices(config: DictConfig, hardware: Hardware, *, sequences: int, micro_batch: int) -> None:
    rollout = OmegaConf.select(config, f"{WORKER}.rollout")
    path = OmegaConf.select(config, f"{WORKER}.model.path") or OmegaConf.select(config, "model.path")
    heads, kv_heads = _heads(path)
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
    """Attention heads and key-value heads of the model in a folder; None where there is none."""
    file = Path(model, "config.json") if model else None
    if file is None or not file.is_file():
        return None, None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is no JSON ({error}): is the model's folder complete?") from error
    heads = values.get("num_attention_heads")
    return heads, values.get("num_key_value_heads", heads)


def _as_actor(ref: DictConfig, actor: DictConfig) -> DictConfig:
    """The reference's section as verl hands it to its dataclass (verl/workers/engine_workers.py, init_model)."""
    ref = copy.deepcopy(ref)
    with open_dict(ref):
        ref.ppo_mini_batch_size = actor.ppo_mini_batch_size
        ref.ppo_micro_batch_size = ref.pop("log_prob_micro_batch_size", None)
        ref.ppo_micro_batch_size_per_gpu = ref.pop("log_prob_micro_batch_size_per_gpu", None)
        ref.use_dynamic_bsz = ref.pop("log_prob_use_dynamic_bsz", False)
        ref.ppo_max_token_len_per_gpu = ref.pop("log_prob_max_token_len_per_gpu", None)
    return ref


def _check_vllm(engine_kwargs: Any) -> None:
    """The keys that verl hands on to vLLM's command line are arguments of its engine."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = sorted(field.name for field in dataclasses.fields(AsyncEngineArgs))
    values = engine_kwargs.get("vllm") or {}
    for key, value in values.items():
        path = f"{WORKER}.rollout.engine_kwargs.vllm.{key}"
        if key not in known:
            nearest = nearest_spelling(key, known)
            meant = f": did you mean {nearest}?" if nearest else ""
            raise ConfigError(f"{path} is no argument of vLLM's engine{meant} Remove the override, or correct it")
        if key == "attention_backend" and value is not None:
            from vllm.v1.attention.backends.registry import AttentionBackendEnum

            backends = [backend.name for backend in AttentionBackendEnum]
            if value not in backends:
                nearest = nearest_spelling(str(value), backends)
                meant = f" (did you mean {nearest}?)" if nearest else ""
                raise ConfigError(
                    f"{path}={value} is unknown{meant}: choose null (vLLM's own choice) or one of {', '.join(backends)}"
                )


def _check_model(model: DictConfig, key: str) -> None:
    """The keys and values of verl's HFModelConfig, without building it: that would load the model's tokenizer."""
    from verl.workers.config import HFModelConfig

    _check_fields(HFModelConfig, OmegaConf.to_container(model), key)


def _check_code(config: DictConfig) -> None:
    """Functions and files of ours that verl would look for later are there."""
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
            raise ConfigError(f"{key}={path} is not there: give a file, or pkg:// and a module that can be imported")


def _check_section(key: str, section: DictConfig) -> None:
    """Build the dataclasses of a section as verl does, after a look at their keys and values."""
    from verl.utils.config import omega_conf_to_dataclass

    for path, values in _with_target(OmegaConf.to_container(section), key):
        _check_fields(_class(values["_target_"], path), values, path)
    _check_class(key, lambda: omega_conf_to_dataclass(section))


def _with_target(values: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(values, dict):
        if values.get("_target_"):
            yield path, values
        for key, value in values.items():
            yield from _with_target(value, f"{path}.{key}")


def _class(name: str, path: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{path}._target_={name} cannot be imported ({error}): remove the override") from error


def _check_fields(cls: Any, values: Any, path: str) -> None:
    """Names and simple types of a dataclass's values; nested dataclasses are checked for themselves."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        if key == "_target_":
            continue
        if key not in fields:
            nearest = nearest_spelling(key, sorted(fields))
            meant = f": did you mean {nearest}?" if nearest else ""
            raise ConfigError(
                f"{path}.{key} is unknown to verl's {cls.__name__}{meant} Remove the override +{path}.{key}=…"
            )
        if value is None or isinstance(value, dict):
            continue
        try:
            TypeAdapter(hints[key], config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]["msg"]
            raise ConfigError(f"{path}.{key}={value}: {fault[:1].lower()}{fault[1:]}") from error


def _check_class(key: str, build: Callable[[], object]) -> None:
    """Whatever verl's own checks refuse, as an error of the user's."""
    try:
        build()
    except (
        HydraException,
        OmegaConfBaseException,
        AssertionError,
        ValueError,
        TypeError,
        NotImplementedError,
    ) as error:
        cause: BaseException = error
        while isinstance(cause, HydraException) and cause.__cause__ is not None:
            cause = cause.__cause__
        said = " ".join(str(cause).split()) or type(cause).__name__
        raise ConfigError(f"{key}: verl refuses it: {said}. Change or remove the override of what it names") from error


@contextlib.contextmanager
def _verl_notices() -> Iterator[None]:
    """verl prints while it checks: its notices go to standard error, its success is ours to tell."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    finally:
        for line in said.getvalue().splitlines():
            if line.startswith(("NOTICE", "WARNING")):
                print(line, file=sys.stderr)


# ---------------------------------------------------------------------------------------------- TRL


def _check_dpo(config: DictConfig) -> None:
    from recipes.train_dpo import check_trl_fields, passes

    check_trl_fields(config)
    passes(config, config.hardware.num_devices)
