"""Every training composes for every device; an override that nothing knows is refused with the nearest spelling."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from recipes.preflight.compose import ALGORITHMS, POLICY_GRADIENT, compose
from tests.recipes.preflight.composed import W, composed
from tsc.errors import ConfigError
from tsc.files import REPO_ROOT


def leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from leaves(value, f"{path}.{key}" if path else key)
    elif isinstance(values, list):
        for value in values:
            yield from leaves(value, path)
    else:
        yield path, values


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_t4_meets_no_bfloat16(algorithm: str) -> None:
    values = OmegaConf.to_container(composed(algorithm, "hardware=t4"), resolve=True)
    # what a run on a T4 does not read: the plan of another strategy (fsdp_turbo) and models that are not there
    unread = ["turbo_config", "reward.reward_model.", *([] if algorithm == "ppo" else ["critic."])]
    found = dict(leaves(values))
    bf16 = [
        key
        for key, value in found.items()
        if str(value).lower() in ("bf16", "bfloat16", "torch.bfloat16") and not any(part in key for part in unread)
    ]
    assert not bf16
    if algorithm in POLICY_GRADIENT:
        # verl's FSDP engine scales the loss where, and only where, this is fp16
        assert found[f"{W}.actor.fsdp_config.mixed_precision.param_dtype"] == "fp16"
        assert found[f"{W}.rollout.engine_kwargs.vllm.attention_backend"] == "TRITON_ATTN"
        assert found[f"{W}.model.use_remove_padding"] is False
    assert found["hardware.attn_implementation"] == "sdpa"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_key_of_a_profile_reaches_the_recipe_that_needs_it(algorithm: str) -> None:
    read = {
        key
        for _, value in leaves(OmegaConf.to_container(composed(algorithm, "hardware=t4"), resolve=False))
        for key in hardware_keys(value)
    }
    common = {"gradient_checkpointing", "num_data_workers"}
    trained_by_verl = common | {
        "device", "num_devices", "fsdp_strategy", "reshard_after_forward", "model_dtype", "param_offload",
        "optimizer_offload", "attn_implementation", "use_remove_padding", "torch_compile", "param_dtype",
        "reduce_dtype", "micro_batch_size",
    }  # fmt: skip
    rollout = {
        "tensor_parallel", "rollout_dtype", "num_agent_workers", "num_reward_workers", "merge_lora_for_rollout",
        "load_format", "layered_summon", "max_num_sequences", "enforce_eager", "sleep_mode", "gpu_memory_utilization",
        "cudagraph_capture_sizes", "reference_dtype", "kv_cache_memory_bytes",
        "vllm_attention_backend", "vllm_worker_extension", "weight_bucket_mb", "ray_num_cpus",
        "ray_num_gpus", "ray_object_store_memory",
    }  # fmt: skip
    wanted = common if algorithm == "dpo" else trained_by_verl | (rollout if algorithm in POLICY_GRADIENT else set())
    assert wanted <= read


def hardware_keys(value: object) -> list[str]:
    return [part.partition("}")[0] for part in str(value).split("${hardware.")[1:]]


def test_composing_imports_neither_verl_nor_torch() -> None:
    program = (
        "import sys; from recipes.preflight.compose import compose; "
        "compose('ppo', ['hardware=h100', 'data.train_batch_size=8']);"
        "print(sorted({'verl', 'torch', 'vllm', 'ray', 'trl'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=REPO_ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_composing_works_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = composed("grpo", "hardware=l4", "trainer.total_training_steps=7")
    assert (config.hardware.name, config.trainer.total_training_steps) == ("l4", 7)


@pytest.mark.parametrize(
    ("algorithm", "override", "message"),
    [
        ("grpo", "hardware=h1000", r"HARDWARE=h1000 is unknown: did you mean 'h100'\?"),
        ("grpo", "data.train_batchsize=1", r"no key data.train_batchsize: did you mean 'data.train_batch_size'\?"),
        ("sft", "engine.param_ofload=true", r"did you mean 'engine.param_offload'"),
        ("grpo", "trainer.logger=[console", r"is not in Hydra's form: write key=value"),
    ],
)
def test_an_override_that_nothing_knows_is_refused_with_the_nearest_spelling(
    algorithm: str, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(algorithm, override)


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(ConfigError, match="'grop' is unknown: choose one of grpo, gspo, ppo, sft, dpo"):
        compose("grop", [])


def as_verl_composes(repo_root: Path, name: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """By Hydra alone, in the repository's root, as a trainer's command line does."""
    monkeypatch.chdir(repo_root)
    with initialize_config_dir(str(repo_root / "recipes"), version_base=None):
        config = hydra_compose(name, overrides=overrides)
    return OmegaConf.to_container(config, resolve=True)


def test_grpo_composes_verls_trainer_with_the_hardware(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = as_verl_composes(repo_root, "grpo", ["+ray_kwargs.x=1", "hardware.micro_batch_size=4"], monkeypatch)
    actor, rollout = config["actor_rollout_ref"]["actor"], config["actor_rollout_ref"]["rollout"]
    assert config["algorithm"]["adv_estimator"] == "grpo"
    assert actor["clip_ratio"] == 0.2  # verl's own, untouched
    assert actor["strategy"] == config["actor_rollout_ref"]["ref"]["strategy"] == "fsdp2"
    assert actor["ppo_micro_batch_size_per_gpu"] == 4
    assert rollout["engine_kwargs"]["vllm"]["worker_extension_cls"].startswith("recipes.verl_plugins.cpu")
    assert config["ray_kwargs"]["ray_init"]["num_gpus"] == config["trainer"]["n_gpus_per_node"] == 1
    assert config["reward"]["custom_reward_function"]["path"] == "pkg://reward.compute_score"


def test_sft_composes_verls_trainer_with_the_hardware(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = as_verl_composes(repo_root, "sft", [], monkeypatch)
    assert config["engine"]["strategy"] == "fsdp2"
    assert config["trainer"]["device"] == "cpu"
    assert config["data"]["messages_key"] == "messages"  # verl's own, untouched
