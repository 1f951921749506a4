"""Real TRL trainings on the CPU: a few steps of a tiny model on the small dataset's pairs."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import DictConfig
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.dpo.preference_pairs import SCHEMA
from recipes.dpo.train_dpo import answer_log_probs, offset_loss, train
from recipes.models.checkpoints import latest_step
from recipes.models.export_model import export
from recipes.models.tiny_model import TinyModelSize, build_tiny_model
from recipes.preflight.compose import compose
from recipes.preflight.trl_settings import check_trl_fields, passes
from tsc.errors import ConfigError
from tsc.junction.decision import Decision

NUM_PAIRS = 48
BATCH = 16
STEPS = 6


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pairs.parquet, in which the answer follows from the prompt's number, and a tiny model with random weights."""
    folder = tmp_path_factory.mktemp("dpo")
    rows = []
    for i in range(NUM_PAIRS):
        better = Decision.YES if i % 2 else Decision.NO
        rows.append(
            {
                "prompt": [
                    message("system", "Extend the green?"),
                    message("user", f"queue {i % 2 * 30} veh, {'x' * (i % 5)}"),
                ],
                "chosen": [message("assistant", better.answer)],
                "rejected": [message("assistant", better.other.answer)],
                "margin": (i % 4 + 1) / 4,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "pairs.parquet")
    chats = [row["prompt"] + row["chosen"] for row in rows]
    pq.write_table(pa.table({"messages": chats}), folder / "chats.parquet")
    build_tiny_model(folder / "chats.parquet", folder / "model", TinyModelSize(hidden=32), 1)
    return folder


@pytest.fixture(scope="module")
def run_dpo(folder: Path) -> Callable[..., Path]:
    """Trains in this process; returns the folder of checkpoints."""

    def run(name: str, *overrides: str) -> Path:
        checkpoints = folder / name / "checkpoints"
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("VERL_FILE_LOGGER_PATH", str(folder / name / "metrics.jsonl"))
            environment.setenv("HF_HUB_OFFLINE", "1")
            checkpoints.mkdir(parents=True, exist_ok=True)
            train(config_of(folder, f"trainer.default_local_dir={checkpoints}", *overrides))
        return checkpoints

    return run


def config_of(folder: Path, *overrides: str) -> DictConfig:
    defaults = [
        "hardware=cpu", f"data.train_files={folder}/pairs.parquet", f"model.path={folder}/model",
        f"data.train_batch_size={BATCH}", f"trainer.total_training_steps={STEPS}", "trainer.save_freq=2",
        "trainer.logger=[file]", "trl.learning_rate=1e-2", f"trainer.default_local_dir={folder}/none",
    ]  # fmt: skip
    return compose("dpo", [*defaults, *overrides])


def records(checkpoints: Path) -> list[dict[str, float]]:
    lines = (checkpoints.parent / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["data"] | {"step": json.loads(line)["step"]} for line in lines]


def adapter_of(checkpoints: Path, step: int) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = load_file(checkpoints / f"checkpoint-{step}" / "adapter_model.safetensors")
    return weights


@pytest.fixture(scope="module")
def checkpoints(run_dpo: Callable[..., Path], folder: Path) -> Path:
    """A run with LoRA that has ended well, validated at its end."""
    validate = (f"data.val_files={folder}/pairs.parquet", f"trainer.test_freq={STEPS}")
    return run_dpo("lora", *validate, "trl.save_total_limit=9")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(torch.arange(10, 50)[None]).logits
    return result


# ---------------------------------------------------------------------------------------------- the loss


def test_the_loss_is_that_of_a_case_worked_by_hand() -> None:
    chosen, rejected, margins = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.0]), torch.tensor([0.25, 1.0])
    # -log sigmoid(x) = log(1 + exp(-x)) with x = 1 - 0.5 - 2 · 0.25 = 0 and x = 0 - 0 - 2 · 1 = -2
    expected = [math.log(2), math.log(1 + math.exp(2))]
    assert offset_loss(chosen, rejected, margins, 2.0).tolist() == pytest.approx(expected)


def test_without_a_margin_scale_the_loss_is_trls_own(checkpoints: Path, folder: Path) -> None:
    """TRL's DPOTrainer on the batch of our first step, which must have the same loss and the same gradient."""
    import datasets
    from trl import DPOConfig, DPOTrainer

    from recipes.dpo.train_dpo import MarginCollator, OffsetDPOTrainer, training_arguments

    config = config_of(folder, "loss.margin_scale=0", "trl.beta=0.5", f"trainer.default_local_dir={folder}/own")
    pairs = datasets.Dataset.from_parquet(str(folder / "pairs.parquet"), cache_dir=str(folder / "own_cache"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    losses, gradients = [], []
    for own in (True, False):
        arguments = training_arguments(config, 1)
        assert isinstance(arguments, DPOConfig)
        model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        options: dict[str, Any] = {"model": model, "args": arguments, "processing_class": tokenizer}
        if own:
            collator = MarginCollator(pad_token_id=tokenizer.pad_token_id)
            trainer = OffsetDPOTrainer(**options, train_dataset=pairs, data_collator=collator, margin_scale=0.0)
        else:
            trainer = DPOTrainer(**options, train_dataset=pairs)
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
        with torch.no_grad():  # away from the start, where every ratio is 1
            generator = torch.Generator().manual_seed(3)
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert losses[0] != pytest.approx(math.log(2), abs=1e-3)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


def test_log_probs_of_the_answers_are_those_of_the_whole_text_less_those_of_the_prompt(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    # two pairs whose prompts have 5 and 3 tokens, and whose answers have 2 or 3
    texts = [
        [11, 12, 13, 14, 15, 21, 22],
        [31, 32, 33, 41, 42, 43],
        [11, 12, 13, 14, 15, 23, 24, 25],
        [31, 32, 33, 44, 45],
    ]
    starts = [5, 3, 5, 3]
    width = max(map(len, texts))
    batch = {
        "input_ids": torch.tensor([text + [0] * (width - len(text)) for text in texts]),
        "attention_mask": torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts]),
        "completion_mask": torch.tensor(
            [[int(start <= i < len(text)) for i in range(width)] for text, start in zip(texts, starts, strict=True)]
        ),
    }
    expected = []
    with torch.no_grad():
        for text, start in zip(texts, starts, strict=True):
            of_text = model(torch.tensor([text])).logits[0].log_softmax(-1)
            expected.append(sum(of_text[i - 1, text[i]].item() for i in range(start, len(text))))
        chosen, rejected = answer_log_probs(model, batch)
    assert [*chosen.tolist(), *rejected.tolist()] == pytest.approx(expected, abs=1e-4)


# ---------------------------------------------------------------------------------------------- a run


def test_the_loss_falls_and_the_chosen_answers_get_ahead(checkpoints: Path) -> None:
    steps = [record for record in records(checkpoints) if "train/loss" in record]
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    # before the first update the policy is the start, so every reward is 0 and the loss is that of the margins alone
    assert steps[0]["train/rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert steps[-1]["train/loss"] < steps[0]["train/loss"] - 0.05
    assert steps[-1]["train/rewards/margins"] > 0.2
    (validation,) = [record for record in records(checkpoints) if "val/loss" in record]
    assert validation["val/rewards/accuracies"] > 0.9


def test_the_export_is_an_adapter_and_a_merged_model_that_answer_as_the_trained_one(
    checkpoints: Path, folder: Path
) -> None:
    out = checkpoints.parent
    assert export(checkpoints, "actor", folder / "model", out) == STEPS
    assert (out / "exported_step").read_text() == f"{STEPS}\n"

    def start() -> torch.nn.Module:
        model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        return model

    trained = PeftModel.from_pretrained(start(), checkpoints / f"checkpoint-{STEPS}")
    merged = AutoModelForCausalLM.from_pretrained(out / "merged", dtype=torch.float32)
    assert (logits(trained) - logits(start())).abs().max() > 1e-2
    torch.testing.assert_close(logits(merged), logits(trained), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(start(), out / "adapter")), logits(trained))
    tokenizer = AutoTokenizer.from_pretrained(out / "merged")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(folder / "model").chat_template


def test_a_resumed_run_ends_where_an_uninterrupted_one_ends(
    run_dpo: Callable[..., Path], checkpoints: Path, folder: Path
) -> None:
    """As a kill leaves it while the fourth step's checkpoint is written: the second is the last complete one."""
    again = folder / "resumed/checkpoints"
    shutil.copytree(checkpoints / "checkpoint-2", again / "checkpoint-2")
    (again / "latest_checkpointed_iteration.txt").write_text("2")
    (again / "checkpoint-4").mkdir()
    (again / "checkpoint-4/trainer_state.json").write_text("{")
    run_dpo("resumed")
    assert [record["step"] for record in records(again)] == [3, 4, 5, 6]
    expected = adapter_of(checkpoints, STEPS)
    for name, value in adapter_of(again, STEPS).items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)
    # and once more, when there is nothing left to do
    run_dpo("resumed")
    assert latest_step(again) == STEPS


def test_passes_of_any_size_give_the_same_step(run_dpo: Callable[..., Path], checkpoints: Path) -> None:
    split = run_dpo("split", "hardware.micro_batch_size=8", "trainer.total_training_steps=1", f"trl.max_steps={STEPS}")
    assert passes(config_of(split.parents[1], "hardware.micro_batch_size=8"), 1) == (4, 4)
    whole_step, split_step = records(checkpoints)[0], records(split)[0]
    for name in ("train/loss", "train/grad_norm", "train/logps/chosen"):
        assert split_step[name] == pytest.approx(whole_step[name], rel=1e-4)


def test_without_an_adapter_all_weights_are_trained_and_exported(run_dpo: Callable[..., Path], folder: Path) -> None:
    full = run_dpo("full", "model.lora_rank=0", "trainer.total_training_steps=2", "trl.learning_rate=1e-3")
    assert records(full)[0]["train/rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert export(full, "", folder / "model", full.parent) == 2
    assert not (full.parent / "adapter").exists()
    trained = AutoModelForCausalLM.from_pretrained(full / "checkpoint-2", dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(full.parent / "merged", dtype=torch.float32)
    start = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), logits(trained))
    assert (merged.get_input_embeddings().weight - start.get_input_embeddings().weight).abs().max() > 1e-4


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is in the GPU set only")
def test_an_adapter_on_4_bit_weights_is_merged_into_the_weights_it_was_trained_on(
    run_dpo: Callable[..., Path], folder: Path
) -> None:
    from recipes.models.quantisation import quantised_base

    quantised = run_dpo(
        "quantised", "model.quantize=4bit", f"data.val_files={folder}/pairs.parquet", "trainer.test_freq=2"
    )
    steps = [record for record in records(quantised) if "train/loss" in record]
    assert steps[-1]["train/loss"] < steps[0]["train/loss"] - 0.05
    export(quantised, "", folder / "model", quantised.parent)
    base = quantised_base(quantised, folder / "model")
    assert base is not None
    start = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    assert (logits(base.float()) - logits(start)).abs().max() > 1e-3
    trained = PeftModel.from_pretrained(base, quantised / f"checkpoint-{STEPS}")
    merged = AutoModelForCausalLM.from_pretrained(quantised.parent / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), logits(trained), atol=1e-4, rtol=1e-4)


def test_verl_builds_models_beside_this_trl(folder: Path) -> None:
    """verl patches a class of TRL's wherever TRL is installed, and newer releases of TRL lack it."""
    from verl.models.transformers.monkey_patch import apply_monkey_patch

    apply_monkey_patch(AutoModelForCausalLM.from_pretrained(folder / "model"), use_remove_padding=False)


# ---------------------------------------------------------------------------------------------- errors


def test_a_prompt_that_is_too_long_is_an_error_and_not_cut(run_dpo: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"has \d+ tokens, more than data.max_length=20: set data.max_length="):
        run_dpo("long", "data.max_length=20")


def test_fewer_pairs_than_a_step_takes_are_an_error(run_dpo: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="has 48 pairs, fewer than one step of BATCH_PROMPTS=64"):
        run_dpo("few", "data.train_batch_size=64")


def test_a_batch_that_the_workers_cannot_share_is_an_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="16 pairs cannot be shared evenly among 3 devices: choose BATCH_PROMPTS"):
        passes(config_of(folder), 3)


def test_a_field_that_trl_lacks_is_an_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"trl\.betta is unknown: did you mean 'beta'"):
        check_trl_fields(config_of(folder, "+trl.betta=1"))


def test_4_bit_weights_without_an_adapter_are_an_error(run_dpo: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="leave LORA_RANK empty"):
        run_dpo("whole", "model.quantize=4bit", "model.lora_rank=0")
