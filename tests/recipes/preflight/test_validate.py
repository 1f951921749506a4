"""Every training passes verl's and TRL's own checks for every device, without one; wrong knobs get a remedy."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
from omegaconf import OmegaConf

from recipes.preflight.compose import ALGORITHMS
from recipes.preflight.hardware import hardware_names
from recipes.preflight.validate import MAX_LORA_RANK, validate, vllm_arguments
from tests.recipes.preflight.composed import MODELS, W, composed, with_model
from tsc.errors import ConfigError

R = "reward.custom_reward_function.reward_kwargs"


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("hardware", hardware_names())
def test_every_training_is_valid_on_every_device_for_small_and_large_models(algorithm: str, hardware: str) -> None:
    config = composed(algorithm, f"hardware={hardware}")
    for model in (MODELS[0], MODELS[-1]):
        validate(algorithm, with_model(config, model))


def test_checking_changes_nothing_in_the_configuration() -> None:
    config = composed("ppo", "hardware=a10g")
    before = OmegaConf.to_yaml(config)
    validate("ppo", config)
    assert OmegaConf.to_yaml(config) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "overrides", "message"),
    [
        ("grpo", ["+trainer.total_steps=1"], r"nothing in grpo reads trainer.total_steps: .*remove the override"),
        ("grpo", [f"+{W}.actor.optim.lrr=1"], r"FSDPOptimizerConfig does not know .*optim.lrr: did you mean 'lr'"),
        ("grpo", [f"+{W}.model.lora_rnk=8"], r"HFModelConfig does not know .*lora_rnk: did you mean 'lora_rank'"),
        ("sft", ["+engine.foo=1"], r"verl's FSDPEngineConfig does not know engine.foo: remove"),
        ("dpo", ["+trl.foo=1"], r"trl.foo is unknown"),
        ("grpo", [f"{W}.actor.optim.lr=fast"], r"actor.optim.lr=fast is not a number"),
        ("grpo", ["trainer.save_freq=often"], r"trainer.save_freq=often is not a number"),
        ("grpo", ["data.max_prompt_length=1.5"], r"prompt_length=1.5 is not a whole number"),
        ("dpo", ["trl.learning_rate=fast"], r"trl.learning_rate=fast is not a number"),
        ("grpo", ["hardware.param_dtype=int8"], r"param_dtype is 'int8': input should be 'fp32', 'bf16' or 'fp16'"),
        ("grpo", ["hardware.gpu_memory_utilization=1.5"], r"memory_utilization is 1.5: input should be less than 1"),
        ("grpo", ["~hardware.device"], r"trainer.device cannot be resolved"),
        ("grpo", [f"{W}.rollout.name=???"], r"actor_rollout_ref.rollout.name has no value: add the override"),
        # verl's own checks, reported with the key
        ("grpo", [f"{W}.actor.optim.lr_scheduler_type=cos"], rf"^{W}.actor.optim: verl refuses it: .*constant.*cosine"),
        ("grpo", [f"{W}.actor.loss_agg_mode=mean"], rf"^{W}.actor: verl refuses it: Invalid loss_agg_mode: mean"),
        ("grpo", [f"{W}.rollout.mode=sync"], rf"^{W}.rollout: verl refuses it: Rollout mode 'sync' has been removed"),
        ("grpo", ["algorithm.adv_estimator=rlo"], r"=rlo is unknown: did you mean 'rloo'\? choose .*grpo"),
        ("grpo", [f"{W}.actor.policy_loss.loss_mode=gsp"], r"loss_mode=gsp is unknown: did you mean 'gspo'\?"),
        ("grpo", [f"{W}.actor.strategy=megatron"], r"actor.strategy=megatron is unknown: choose fsdp, fsdp2"),
        ("grpo", ["algorithm.adv_estimator=gae"], r"needs a critic.*use scripts/train_ppo.sh"),
        # what verl would find out after minutes, or never
        ("grpo", [f"+{W}.rollout.engine_kwargs.vllm.max_num_seq=1"], r"not an argument of vLLM's .* mean 'max_num_s"),
        ("grpo", ["hardware.vllm_attention_backend=TRITON"], r"=TRITON is unknown: did you mean 'TRITON_ATTN'"),
        ("grpo", [f"{W}.model.lora_rank=513"], r"LORA_RANK=513 is too large for vLLM: choose at most 512"),
        ("grpo", ["hardware.micro_batch_size=3"], r"not a multiple of the micro-batch of 3: set MICRO_BATCH=2"),
        ("ppo", ["critic.ppo_mini_batch_size=100"], r"critic.ppo_mini_batch_size=100 prompts an update do not divide"),
        ("sft", ["data.train_batch_size=6"], r"micro-batch of 4: set MICRO_BATCH=3"),
        ("gspo", ["hardware.num_devices=2", "hardware.micro_batch_size=128", f"{W}.actor.ppo_mini_batch_size=32"],
         r"64 a device.*set MICRO_BATCH=64"),
        ("grpo", [f"{W}.actor.ppo_mini_batch_size=256"], r"ppo_mini_batch_size=256 prompts an update do not divide"),
        ("grpo", ["hardware.num_devices=2", "hardware.tensor_parallel=3"], r"PARALLEL=3 does not divide N_GPUS=2"),
        ("grpo", ["hardware.num_devices=4"], r"Add hardware.ray_num_cpus=14"),
        ("grpo", [f"{W}.rollout.max_model_len=200"], r"fewer than data.max_prompt_length .*: choose at least 528"),
        ("grpo", [f"{W}.rollout.temperature=0"], r"temperature=0 samples nothing"),
        ("grpo", [f"{W}.rollout.name=sglang"], r"rollout.name=sglang is unknown: choose vllm"),
        ("grpo", ["reward.custom_reward_function.path=pkg://reward.no"], r"pkg://reward.no does not exist"),
        ("grpo", [f"+{R}.normalisaton=sign"], r"unknown key 'normalisaton': did you mean 'normalisation'"),
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
        ("grpo", [f"+{R}.normalisation=sign", f"+{R}.weights.format=2"]),
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


def test_the_arguments_of_vllm_are_those_of_its_engine() -> None:
    from vllm.config.lora import MaxLoRARanks
    from vllm.engine.arg_utils import AsyncEngineArgs

    assert vllm_arguments() == sorted(field.name for field in dataclasses.fields(AsyncEngineArgs))
    assert max(get_args(MaxLoRARanks)) == MAX_LORA_RANK
