"""Every training composes and passes verl's own checks for every device, without one; wrong knobs get a remedy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from recipes.preflight.compose import ALGORITHMS, POLICY_GRADIENT, compose
from recipes.preflight.hardware import hardware_names
from recipes.preflight.validate import validate
from tsc.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
MODELS = [str(ROOT / "configs/models" / f"qwen2.5-{size}") for size in ("0.5b", "1.5b", "3b", "7b")]
W = "actor_rollout_ref"
# what the launchers always give
GIVEN = {
    **{algorithm: [f"{W}.model.path=models/mine"] for algorithm in POLICY_GRADIENT},
    "sft": ["model.path=models/mine"],
    "dpo": ["model.path=models/mine", "data.train_files=pairs.parquet", "trainer.default_local_dir=runs/mine"],
}


def composed(algorithm: str, *overrides: str) -> DictConfig:
    return compose(algorithm, [*GIVEN[algorithm], *overrides])


def with_model(config: DictConfig, model: str) -> DictConfig:
    section = config[W].model if W in config else config.model
    section.path = model
    return config


def leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from leaves(value, f"{path}.{key}" if path else key)
    elif isinstance(values, list):
        for value in values:
            yield from leaves(value, path)
    else:
        yield path, values


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("hardware", hardware_names())
def test_every_training_is_valid_on_every_device_for_every_model(algorithm: str, hardware: str) -> None:
    config = composed(algorithm, f"hardware={hardware}")
    for model in MODELS:
        validate(algorithm, with_model(config, model))


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
        "kv_cache_memory_bytes", "vllm_attention_backend", "vllm_worker_extension", "weight_bucket_mb", "ray_num_cpus",
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
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_composing_works_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = composed("grpo", "hardware=l4", "trainer.total_training_steps=7")
    assert (config.hardware.name, config.trainer.total_training_steps) == ("l4", 7)


def test_checking_changes_nothing_in_the_configuration() -> None:
    config = composed("ppo", "hardware=a10g")
    before = OmegaConf.to_yaml(config)
    validate("ppo", config)
    assert OmegaConf.to_yaml(config) == before


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "overrides", "message"),
    [
        ("grpo", ["+trainer.total_steps=1"], r"trainer.total_steps is read by nothing in grpo: .*remove the override"),
        ("grpo", [f"+{W}.actor.optim.lrr=1"], r"optim.lrr is unknown to verl's FSDPOptimizerConfig: did you mean 'lr'"),
        ("grpo", [f"+{W}.model.lora_rnk=8"], r"lora_rnk is unknown to verl's HFModelConfig: did you mean 'lora_rank'"),
        ("sft", ["+engine.foo=1"], r"engine.foo is unknown to verl's FSDPEngineConfig: remove"),
        ("dpo", ["+trl.foo=1"], r"trl.foo is unknown"),
        ("grpo", [f"{W}.actor.optim.lr=fast"], r"actor.optim.lr=fast is no number"),
        ("grpo", ["trainer.save_freq=often"], r"trainer.save_freq=often is no number"),
        ("grpo", ["data.max_prompt_length=1.5"], r"data.max_prompt_length=1.5 is no whole number"),
        ("dpo", ["trl.learning_rate=fast"], r"trl.learning_rate=fast is no number"),
        ("grpo", ["hardware.param_dtype=int8"], r"param_dtype is 'int8': input should be 'fp32', 'bf16' or 'fp16'"),
        ("grpo", ["hardware.gpu_memory_utilization=1.5"], r"memory_utilization is 1.5: input should be less than 1"),
        ("grpo", ["~hardware.device"], r"trainer.device cannot be resolved"),
        ("grpo", [f"{W}.rollout.name=???"], r"actor_rollout_ref.rollout.name has no value: add the override"),
        # verl's own checks, told with the key
        ("grpo", [f"{W}.actor.optim.lr_scheduler_type=cos"], rf"^{W}.actor.optim: verl refuses it: .*constant.*cosine"),
        ("grpo", [f"{W}.actor.loss_agg_mode=mean"], rf"^{W}.actor: verl refuses it: Invalid loss_agg_mode: mean"),
        ("grpo", [f"{W}.rollout.mode=sync"], rf"^{W}.rollout: verl refuses it: Rollout mode 'sync' has been removed"),
        ("grpo", ["algorithm.adv_estimator=rlo"], r"=rlo is unknown: did you mean 'rloo'\? choose .*grpo"),
        ("grpo", [f"{W}.actor.policy_loss.loss_mode=gsp"], r"loss_mode=gsp is unknown: did you mean 'gspo'\?"),
        ("grpo", [f"{W}.actor.strategy=megatron"], r"actor.strategy=megatron is unknown: choose fsdp, fsdp2"),
        ("grpo", ["algorithm.adv_estimator=gae"], r"needs a critic.*use scripts/train_ppo.sh"),
        # what verl would find out after minutes, or never
        ("grpo", [f"+{W}.rollout.engine_kwargs.vllm.max_num_seq=1"], r"not an argument .*did you mean 'max_num_s"),
        ("grpo", ["hardware.vllm_attention_backend=TRITON"], r"=TRITON is unknown: did you mean 'TRITON_ATTN'"),
        ("grpo", ["hardware.micro_batch_size=3"], r"no multiple of the micro-batch of 3: set MICRO_BATCH=2"),
        ("ppo", ["critic.ppo_mini_batch_size=100"], r"critic.ppo_mini_batch_size=100 prompts an update do not divide"),
        ("sft", ["data.train_batch_size=6"], r"micro-batch of 4: set MICRO_BATCH=3"),
        ("gspo", ["hardware.num_devices=2", "hardware.micro_batch_size=128"], r"64 a device.*set MICRO_BATCH=64"),
        ("grpo", [f"{W}.actor.ppo_mini_batch_size=256"], r"ppo_mini_batch_size=256 prompts an update do not divide"),
        ("grpo", ["hardware.num_devices=2", "hardware.tensor_parallel=3"], r"PARALLEL=3 does not divide N_GPUS=2"),
        ("grpo", ["hardware.num_devices=4"], r"Add hardware.ray_num_cpus=14"),
        ("grpo", [f"{W}.rollout.max_model_len=200"], r"fewer than data.max_prompt_length .*: choose at least 528"),
        ("grpo", [f"{W}.rollout.temperature=0"], r"temperature=0 samples nothing"),
        ("grpo", ["reward.custom_reward_function.path=pkg://reward.no"], r"pkg://reward.no is not there"),
        # a T4 has no bfloat16, by whichever key it is asked for
        ("grpo", ["hardware.param_dtype=bf16"], r"compute capability 7.5\) cannot compute in bfloat16.*choose fp16"),
        ("grpo", [f"{W}.rollout.dtype=bfloat16"], rf"{W}.rollout.dtype=bfloat16: NVIDIA T4.*choose float16"),
        ("sft", ["engine.model_dtype=bf16"], r"engine.model_dtype=bf16: NVIDIA T4.*choose fp32"),
    ],
)  # fmt: skip
def test_a_wrong_knob_is_refused_with_its_key_and_a_remedy(algorithm: str, overrides: list[str], message: str) -> None:
    config = composed(algorithm, "hardware=t4", *overrides)
    with pytest.raises(ConfigError, match=message):
        validate(algorithm, config)


@pytest.mark.slow
def test_float16_without_an_nvidia_gpu_is_refused_because_verl_would_not_scale_the_loss() -> None:
    with pytest.raises(ConfigError, match="fp16 needs an NVIDIA GPU.*choose hardware.param_dtype=fp32"):
        validate("grpo", composed("grpo", "hardware=cpu", "hardware.param_dtype=fp16"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "overrides"),
    [
        ("grpo", ["algorithm.adv_estimator=rloo", "algorithm.filter_groups.enable=true"]),
        ("grpo", ["algorithm.adv_estimator=reinforce_plus_plus", "algorithm.norm_adv_by_std_in_grpo=false"]),
        ("grpo", [f"{W}.actor.use_kl_loss=true", f"{W}.model.lora_rank=0"]),
        ("grpo", [f"{W}.model.target_modules=[q_proj,v_proj]", "hardware.merge_lora_for_rollout=true"]),
        ("grpo", [f"{W}.actor.use_dynamic_bsz=true", "hardware.micro_batch_size=3"]),
        ("ppo", ["hardware.num_devices=8", "hardware.tensor_parallel=2", "trainer.nnodes=2"]),
        ("sft", ["trainer.save_freq=after_each_epoch", "model.lora_rank=8"]),
        # verl's own switch for other accelerators stays within reach; nothing is promised for them
        ("grpo", ["trainer.device=npu"]),
        (
            "grpo",
            [
                f"{W}.actor._target_=recipes.verl_plugins.decision_loop.DecisionActorConfig",
                f"+{W}.actor.decisions=3",
                f"{W}.actor.ppo_mini_batch_size=384",
            ],
        ),
        ("dpo", ["+trl.max_grad_norm=0.5"]),
    ],
)
def test_what_verl_and_trl_allow_is_allowed(algorithm: str, overrides: list[str]) -> None:
    validate(algorithm, composed(algorithm, "hardware=h100", *overrides))


@pytest.mark.slow
def test_a_model_whose_heads_cannot_be_split_is_refused() -> None:
    config = composed("grpo", "hardware=h100", "hardware.num_devices=8", "hardware.tensor_parallel=8")
    with pytest.raises(ConfigError, match=r"14 attention heads \(2 of keys and values\): choose 1 or 2"):
        validate("grpo", with_model(config, MODELS[0]))
    # 28 heads, 4 of keys and values
    with pytest.raises(ConfigError, match=r"28 attention heads.*choose 1 or 2 or 4"):
        validate("grpo", with_model(config, MODELS[3]))
