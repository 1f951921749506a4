"""The plan's arithmetic against what real models, TRL's loss and verl's own code hold, and against hand-worked sizes.

Bytes are counted on the CPU (tests/recipes/preflight/live_bytes.py); 16 bits are bfloat16 with torch's autocast. CUDA's
autocast computes log-softmax in fp32, the CPU's does not: the tests give it fp32.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config

from recipes.models.model_shape import ModelShape, model_shape, shape_of_config
from recipes.preflight.compose import compose
from recipes.preflight.memory_plan import (
    ACTIVATIONS,
    GRADIENTS,
    LOGITS,
    OPTIMIZER,
    VLLM,
    WEIGHTS,
    activation_bytes,
    gib,
    gradient_bytes,
    kv_bytes_per_token,
    kv_cache_tokens,
    logits_bytes,
    memory_plan,
    optimizer_bytes,
    trained_parameters,
    weight_bytes,
)
from recipes.preflight.run_settings import GIB, EngineSettings, RunSettings, run_settings
from tests.recipes.preflight.live_bytes import LiveBytes

BFLOAT16 = 2
QWEN = Qwen2Config(
    hidden_size=96,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    vocab_size=500,
    tie_word_embeddings=True,
)
LLAMA = LlamaConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=4,
    vocab_size=300,
    tie_word_embeddings=False,
)


def settings_of(algorithm: str, *overrides: str, hardware: str = "t4") -> RunSettings:
    config = compose(algorithm, [f"hardware={hardware}", *overrides])
    return run_settings(algorithm, config, hardware=hardware)


@pytest.fixture(scope="module")
def sft() -> RunSettings:
    return settings_of("sft", "model.lora_rank=0", hardware="cpu")


@pytest.fixture(scope="module")
def grpo() -> RunSettings:
    return settings_of("grpo")


@pytest.fixture(scope="module")
def half_a_billion() -> ModelShape:
    return model_shape("qwen2.5-0.5b")


@pytest.fixture
def log_softmax_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    original = F.log_softmax
    monkeypatch.setattr(F, "log_softmax", lambda values, dim=-1: original(values.float(), dim=dim))


def real_model(config: PretrainedConfig, engine: EngineSettings) -> torch.nn.Module:
    config._attn_implementation = "sdpa"
    dtype = torch.bfloat16 if engine.compute_bytes == BFLOAT16 else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if not engine.full:
        model.enable_input_require_grads()
        lora = LoraConfig(r=engine.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    if engine.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def hidden_states(model: torch.nn.Module, engine: EngineSettings, sequences: int, tokens: int) -> torch.Tensor:
    """The last layer's output, padded as verl pads: what the head would be given."""
    mask = torch.ones(sequences, tokens, dtype=torch.bool)
    mask[0, -1] = False
    decoder = model.get_base_model().model if hasattr(model, "get_base_model") else model.model
    half = engine.compute_bytes == BFLOAT16
    with torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext():
        ids = torch.zeros(sequences, tokens, dtype=torch.long)
        return decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


# ---------------------------------------------------------------------------------------------- against real models


@pytest.mark.parametrize("config", [QWEN, LLAMA], ids=["qwen", "llama"])
@pytest.mark.parametrize("compute_bytes", [4, 2])
@pytest.mark.parametrize("lora_rank", [0, 8])
def test_activations_are_what_a_model_keeps_for_its_backward_pass(
    config: PretrainedConfig, compute_bytes: int, lora_rank: int, sft: RunSettings
) -> None:
    engine = replace(
        sft.actor,
        compute_bytes=compute_bytes,
        master_bytes=compute_bytes,
        lora_rank=lora_rank,
        gradient_checkpointing=False,
    )
    model = real_model(config, engine)
    with LiveBytes() as counted:
        counted.know(model.parameters())
        before = counted.live
        states = hidden_states(model, engine, 2, 96)
        kept = counted.live - before
        del states
    predicted, _ = activation_bytes(shape_of_config(config, name="small"), engine, 2 * 96)
    assert predicted == pytest.approx(kept, rel=0.05)


def test_with_checkpointing_only_the_inputs_of_layers_are_kept(sft: RunSettings) -> None:
    engine = replace(sft.actor, gradient_checkpointing=True)
    model = real_model(QWEN, engine)
    with LiveBytes() as counted:
        counted.know(model.parameters())
        before = counted.live
        states = hidden_states(model, engine, 2, 96)
        kept = counted.live - before
        counted.restart_peak()
        states.sum().backward()
        worked_on = counted.peak - before - gradient_bytes(shape_of_config(QWEN, name="small"), engine)
    shape = shape_of_config(QWEN, name="small")
    predicted_kept, predicted_layer = activation_bytes(shape, engine, 2 * 96)
    assert predicted_kept == pytest.approx(kept, rel=0.1)
    # gradients of the layers that are still to come are not there yet: the peak lies below the sum
    assert worked_on < predicted_kept + predicted_layer
    assert worked_on > 0.4 * (predicted_kept + predicted_layer)


@pytest.mark.parametrize("lora_rank", [0, 8])
def test_weights_gradients_and_moments_are_those_of_a_real_step(lora_rank: int, sft: RunSettings) -> None:
    engine = replace(sft.actor, lora_rank=lora_rank)
    shape = shape_of_config(LLAMA, name="small")
    model = real_model(LLAMA, engine)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    hidden_states(model, engine, 1, 8).sum().backward()
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert trained_parameters(shape, engine) == sum(parameter.numel() for parameter in trained)
    assert gradient_bytes(shape, engine) == sum(parameter.grad.nbytes for parameter in trained)
    assert optimizer_bytes(shape, engine) == sum(moment.nbytes for moment in moments)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    assert weight_bytes(shape, engine) == sum(parameter.nbytes for parameter in (frozen or trained))


# ---------------------------------------------------------------------------------------------- against verl and TRL

VOCAB, SEQUENCES, TOKENS = 4000, 2, 40


@pytest.fixture(scope="module")
def verl_engine() -> Iterator[Any]:
    import verl.utils.torch_functional as functional
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    engine = SimpleNamespace(
        engine_config=SimpleNamespace(entropy_checkpointing=False, entropy_from_logits_with_chunking=False),
        compute_entropy_from_logits=functional.entropy_from_logits,
        pad_to_length=False,
        use_ulysses_sp=False,
        _get_packed_pad_size=lambda tokens: 0,
        _gather_and_unpad_packed=lambda tensor, pad_size: tensor,
    )
    engine.inputs = lambda batch: FSDPEngineWithLMHead.prepare_model_inputs(engine, batch)
    engine.outputs = lambda *values: FSDPEngineWithLMHead.prepare_model_outputs(engine, *values)
    return engine


def verl_batch(engine: EngineSettings) -> Any:
    from verl.utils import tensordict_utils
    from verl.utils.dataset.dataset_utils import DatasetPadMode

    def nested(values: torch.Tensor) -> torch.Tensor:
        return torch.nested.nested_tensor([values.clone() for _ in range(SEQUENCES)], layout=torch.jagged)

    ids, mask = nested(torch.arange(TOKENS)), nested(torch.ones(TOKENS))
    batch = tensordict_utils.get_tensordict({"input_ids": ids, "position_ids": ids, "loss_mask": mask})
    tensordict_utils.assign_non_tensor(
        batch,
        use_remove_padding=engine.remove_padding,
        pad_mode=DatasetPadMode.NO_PADDING,
        temperature=0.7 if engine.scaled_logits else 1.0,
        calculate_entropy=engine.entropy,
        dp_size=1,
        batch_num_tokens=SEQUENCES * TOKENS,
    )
    return batch


@pytest.mark.parametrize("trained", [True, False], ids=["update", "log-probs"])
@pytest.mark.parametrize("compute_bytes", [4, 2])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("scaled", [True, False], ids=["temperature", "unscaled"])
@pytest.mark.usefixtures("log_softmax_in_fp32")
def test_logits_are_what_verls_own_code_holds(
    scaled: bool, packed: bool, compute_bytes: int, trained: bool, verl_engine: Any, sft: RunSettings
) -> None:
    from verl.workers.utils.losses import sft_loss

    engine = replace(
        sft.actor, compute_bytes=compute_bytes, remove_padding=packed, scaled_logits=scaled, logit_tokens=None
    )
    dtype = torch.bfloat16 if compute_bytes == BFLOAT16 else torch.float32
    head = torch.randn(VOCAB, 2, dtype=dtype, requires_grad=True)
    states = torch.randn(SEQUENCES, TOKENS, 2, dtype=dtype)
    batch = verl_batch(engine)

    def loss() -> torch.Tensor:
        _, arguments = verl_engine.inputs(batch)
        logits = F.linear(states, head)
        output = SimpleNamespace(logits=logits.reshape(1, -1, VOCAB) if packed else logits)
        del logits
        return sft_loss(None, verl_engine.outputs(output, arguments, batch, None), batch)[0]

    with LiveBytes() as counted, contextlib.nullcontext() if trained else torch.no_grad():
        counted.know([head])
        before = counted.live
        value = loss()
        if trained:
            value.backward()
    shape = SimpleNamespace(vocab=VOCAB)
    predicted = logits_bytes(shape, engine, SEQUENCES * TOKENS, trained=trained)
    assert predicted == pytest.approx(counted.peak - before, rel=0.08)


@pytest.mark.parametrize("compute_bytes", [4, 2])
def test_the_logits_of_dpo_are_what_its_loss_holds(compute_bytes: int) -> None:
    from recipes.dpo.train_dpo import answer_log_probs

    answer = 16
    engine = replace(settings_of("dpo").actor, compute_bytes=compute_bytes)
    dtype = torch.bfloat16 if compute_bytes == BFLOAT16 else torch.float32
    head = torch.randn(VOCAB, 2, dtype=dtype, requires_grad=True)
    states = torch.randn(4, TOKENS, 2, dtype=dtype)
    of_answer = torch.zeros(4, TOKENS, dtype=torch.long)
    of_answer[:, -answer:] = 1

    def model(*, logits_to_keep: int, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=F.linear(states[:, -logits_to_keep:], head))

    with LiveBytes() as counted:
        counted.know([head])
        before = counted.live
        chosen, rejected = answer_log_probs(
            model,
            {
                "input_ids": torch.zeros(4, TOKENS, dtype=torch.long),
                "attention_mask": torch.ones(4, TOKENS),
                "completion_mask": of_answer,
            },
        )
        (chosen - rejected).sum().backward()
    predicted = logits_bytes(SimpleNamespace(vocab=VOCAB), engine, 4 * answer, trained=True)
    assert predicted == pytest.approx(counted.peak - before, rel=0.05)


ENGINE_CASES = [
    {"param_dtype": "bf16", "packed": False, "lora_rank": 8, "checkpointing": True},
    {"param_dtype": "bf16", "packed": False, "lora_rank": 0, "checkpointing": False},
    {"param_dtype": "bf16", "packed": True, "lora_rank": 8, "checkpointing": False},
    {"param_dtype": "fp32", "packed": False, "lora_rank": 0, "checkpointing": True},
    {"param_dtype": "fp32", "packed": False, "lora_rank": 8, "checkpointing": False},
]


@pytest.mark.slow
def test_an_update_takes_what_verls_own_engine_takes(tmp_path: Path, sft: RunSettings, repo_root: Path) -> None:
    """FSDP2, LoRA, AdamW, two micro-batches: the whole of verl's update, in the CPU's memory."""
    cases = [
        {"config": QWEN.to_diff_dict() | {"vocab_size": 1000}, "micro_batch": 2, "tokens": 96, **case}
        for case in ENGINE_CASES
    ]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    subprocess.run(
        [
            sys.executable,
            "tests/recipes/preflight/verl_engine_memory.py",
            tmp_path / "cases.json",
            tmp_path / "peaks.json",
        ],
        cwd=repo_root,
        env={**os.environ, "PYTHONPATH": str(repo_root)},
        check=True,
        timeout=280,
    )
    shape = shape_of_config(Qwen2Config(**cases[0]["config"]), name="small")
    for case, peak in zip(ENGINE_CASES, json.loads((tmp_path / "peaks.json").read_text()), strict=True):
        engine = replace(
            sft.actor,
            compute_bytes=BFLOAT16 if case["param_dtype"] == "bf16" else 4,
            remove_padding=case["packed"],
            lora_rank=case["lora_rank"],
            gradient_checkpointing=case["checkpointing"],
            micro_batch=2,
            logit_tokens=None,  # verl's own engine
        )
        settings = replace(sft, actor=engine, batch_prompts=4, prompt_tokens=96)
        phases = {phase.name: phase.total for phase in memory_plan(shape, settings).phases}
        planned = max(phases["update"], phases["Adam step"])
        assert planned == pytest.approx(peak, rel=0.2), case
        assert planned > 0.9 * peak, case


# ---------------------------------------------------------------------------------------------- hand-worked


def test_full_fine_tuning_in_fp32_takes_sixteen_bytes_a_parameter(sft: RunSettings, half_a_billion: ModelShape) -> None:
    update = {phase.name: phase for phase in memory_plan(half_a_billion, sft).phases}["update"]
    # 494,032,768 parameters (Qwen2.5 technical report): weights, gradients, two moments of Adam, 4 bytes each
    fixed = update.parts[GRADIENTS] + update.parts[OPTIMIZER] + weight_bytes(half_a_billion, sft.actor)
    assert fixed == 16 * 494_032_768


def test_a_tokens_keys_and_values_take_twelve_kilobytes_in_half_a_billion_parameters(
    grpo: RunSettings, half_a_billion: ModelShape
) -> None:
    # 2 (key, value) × 24 layers × 2 heads × 64 numbers × 2 bytes
    assert kv_bytes_per_token(half_a_billion, grpo.rollout) == 12_288
    four_gpus = replace(grpo.rollout, tensor_parallel=4)
    # two heads do not divide among four: each GPU keeps one
    assert kv_bytes_per_token(half_a_billion, four_gpus) == 6_144


def test_vllm_takes_its_share_awake_and_little_asleep(grpo: RunSettings, half_a_billion: ModelShape) -> None:
    phases = {phase.name: phase for phase in memory_plan(half_a_billion, grpo).phases}
    share = grpo.rollout.memory_fraction * grpo.device.memory_bytes
    assert phases["generate"].parts[VLLM] == pytest.approx(share, rel=1e-6)
    assert phases["update"].parts[VLLM] < 1 * GIB
    awake = replace(grpo, rollout=replace(grpo.rollout, sleeps=False))
    phases = {phase.name: phase for phase in memory_plan(half_a_billion, awake).phases}
    assert phases["update"].parts[VLLM] == pytest.approx(share, rel=1e-6)


def test_offloading_empties_the_gpu_for_vllm_and_fills_main_memory(
    grpo: RunSettings, half_a_billion: ModelShape
) -> None:
    def with_offload(value: bool) -> RunSettings:
        return grpo.with_engines(lambda engine: replace(engine, param_offload=value, optimizer_offload=value))

    kept, moved = (memory_plan(half_a_billion, with_offload(value)) for value in (False, True))
    assert WEIGHTS in kept.phases[0].parts and WEIGHTS not in moved.phases[0].parts
    assert moved.host_parts["weights and optimizer moved out"] > kept.host_parts["weights and optimizer moved out"]
    # verl brings all of it back for the update: that phase gains nothing
    totals = [{phase.name: phase.total for phase in plan.phases}["update"] for plan in (kept, moved)]
    assert totals[0] == totals[1]


def test_memory_grows_with_what_is_asked_for(grpo: RunSettings, half_a_billion: ModelShape) -> None:
    def update(settings: RunSettings) -> int:
        return {phase.name: phase.total for phase in memory_plan(half_a_billion, settings).phases}["update"]

    base = update(grpo)
    assert update(grpo.with_micro_batch(8)) > base
    assert update(replace(grpo, prompt_tokens=1024)) > base
    assert update(grpo.with_engines(lambda engine: replace(engine, gradient_checkpointing=False))) > base
    assert update(grpo.with_engines(lambda engine: replace(engine, lora_rank=0))) > base
    assert update(grpo.with_engines(lambda engine: replace(engine, shards=4))) < base
    # of all tokens, logits are the largest part
    all_tokens = grpo.with_engines(lambda engine: replace(engine, logit_tokens=None))
    assert update(all_tokens) > base
    assert update(all_tokens.with_engines(lambda engine: replace(engine, entropy=True))) > update(all_tokens)
    assert update(all_tokens.with_engines(lambda engine: replace(engine, fused_log_probs=True))) < update(all_tokens)


def test_a_critic_is_a_second_model_with_all_its_gradients(half_a_billion: ModelShape) -> None:
    ppo = memory_plan(half_a_billion, settings_of("ppo", hardware="a100_80g"))
    critic = {phase.name: phase for phase in ppo.phases}["critic"]
    assert critic.parts[OPTIMIZER] == 2 * 4 * half_a_billion.num_value_head_model
    assert LOGITS not in critic.parts and critic.parts[ACTIVATIONS] > 0


def test_a_reference_is_free_under_lora_and_a_pass_through_main_memory_otherwise(half_a_billion: ModelShape) -> None:
    kl = "actor_rollout_ref.actor.use_kl_loss=true"
    lora = settings_of("grpo", kl)
    assert (lora.reference, lora.reference_engine) == ("adapter_off", None)
    full = settings_of("grpo", kl, "actor_rollout_ref.model.lora_rank=0")
    assert full.reference == "separate"
    # forward_only: FSDP keeps it on the CPU
    assert weight_bytes(half_a_billion, full.reference_engine) == 0
    names = [phase.name for phase in memory_plan(half_a_billion, full).phases]
    assert names == ["generate", "log-probs", "update", "Adam step", "send weights"]


def test_each_decision_of_an_answer_is_a_sequence() -> None:
    worker = "actor_rollout_ref.actor"
    # as scripts/train_grpo.sh with DECISIONS=4 BATCH_PROMPTS=32 UPDATES=2
    settings = settings_of(
        "grpo", "data.train_batch_size=32", f"+{worker}.decisions=4", f"{worker}.ppo_mini_batch_size=64"
    )
    assert settings.sequences == 32 * 4 * 4
    assert settings.updates_per_batch == 2
    assert settings.sequences_per_update == 256


def test_four_bits_take_a_quarter_of_sixteen(half_a_billion: ModelShape) -> None:
    plain = settings_of("dpo").actor
    packed = settings_of("dpo", "model.quantize=4bit").actor
    in_layers = 494_032_768 - 151_936 * 896
    saved = weight_bytes(half_a_billion, plain) - weight_bytes(half_a_billion, packed)
    # norms and biases stay as they are
    assert saved == pytest.approx(in_layers * (2 - 4.127 / 8), rel=0.01)


def test_too_small_a_cache_is_a_problem_even_where_all_else_fits(grpo: RunSettings, half_a_billion: ModelShape) -> None:
    starved = replace(grpo, rollout=replace(grpo.rollout, memory_fraction=0.08))
    assert kv_cache_tokens(half_a_billion, starved) < 528
    plan = memory_plan(half_a_billion, starved)
    assert not plan.fits
    assert "less than one sequence of 528" in plan.problems[0]


def test_main_memory_counts_where_it_is_known(grpo: RunSettings, half_a_billion: ModelShape) -> None:
    assert memory_plan(half_a_billion, grpo).fits
    colab = replace(grpo, device=replace(grpo.device, host_bytes=6 * GIB))
    (problem,) = memory_plan(half_a_billion, colab).problems
    assert problem.startswith("main memory: ")


def test_sizes_are_told_in_gibibytes_with_one_decimal() -> None:
    assert gib(1.26 * 2**30) == "1.3"


def test_the_counter_of_living_bytes_counts_a_known_case() -> None:
    with LiveBytes() as counted:
        values = torch.zeros(1000)
        copy = values * 2
        view = copy[:10]
        assert counted.live == 8000
        del values, copy
        gc.collect()
        assert counted.live == 4000
        assert view.sum() == 0
    assert counted.peak >= 8000
