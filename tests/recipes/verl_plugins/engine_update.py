"""One update by verl's own engine and one by ours, of the same batch; writes what came out as JSON to argv[1].

Five of the batch's eight rows repeat another one, with advantages of their own; the rows differ in length.
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils
from verl.utils.dataset.dataset_utils import DatasetPadMode
from verl.workers.config import FSDPActorConfig, FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.utils.losses import ppo_loss, sft_loss

from recipes.verl_plugins.answer_engine import AnswerEngine

VOCABULARY = 200
# prompt and answer of each row
ROWS = [(0, 0), (0, 0), (0, 1), (0, 0), (1, 2), (1, 2), (2, 0), (2, 0)]
FP32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}


def engine(kind: type[Any], folder: str, lora_rank: int) -> Any:
    torch.manual_seed(0)
    made = kind(
        model_config=HFModelConfig(
            path=folder,
            load_tokenizer=False,
            use_remove_padding=False,
            enable_gradient_checkpointing=False,
            lora_rank=lora_rank,
            lora_alpha=16,
            target_modules="all-linear",
            override_config={"attn_implementation": "sdpa"},
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2", use_torch_compile=False, use_dynamic_bsz=False, mixed_precision=FP32
        ),
        optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=10),
        checkpoint_config=CheckpointConfig(),
    )
    made.initialize()
    return made


def nested(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.nested_tensor(rows, layout=torch.jagged)


def batch(chats: bool = False) -> Any:
    """Of a policy, whose loss mask covers the answers; or of chats, whose mask covers all tokens."""
    torch.manual_seed(1)
    prompts = [torch.randint(0, VOCABULARY, (size,)) for size in (30, 41, 25)]
    answers = [torch.randint(0, VOCABULARY, (size,)) for size in (6, 8, 5)]
    ids = [torch.cat([prompts[prompt], answers[answer]]) for prompt, answer in ROWS]
    masks = [torch.ones(len(answers[answer]), dtype=torch.int64) for _, answer in ROWS]
    rows = {
        "input_ids": ids,
        "position_ids": [torch.arange(len(row)) for row in ids],
        "prompts": [prompts[prompt] for prompt, _ in ROWS],
        "responses": [answers[answer] for _, answer in ROWS],
        "response_mask": masks,
        "loss_mask": masks,
        "old_log_probs": [torch.full((len(mask),), -5.3) for mask in masks],
        "ref_log_prob": [torch.full((len(mask),), -5.2) for mask in masks],
        "advantages": [torch.randn(len(mask)) for mask in masks],
    }
    if chats:
        rows["loss_mask"] = [
            torch.cat([torch.zeros(len(row) - len(mask), dtype=torch.int64), mask])
            for row, mask in zip(ids, masks, strict=True)
        ]
    made = tensordict_utils.get_tensordict({name: nested(values) for name, values in rows.items()})
    tensordict_utils.assign_non_tensor(
        made,
        use_remove_padding=False,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=4,
        use_fused_kernels=False,
        temperature=0.7,
        pad_mode=DatasetPadMode.NO_PADDING,
        dp_size=1,
        calculate_entropy=True,
        global_batch_size=len(ROWS),
    )
    return made


def of_answers(values: torch.Tensor) -> list[float]:
    """The values of all positions, cut to those that predict an answer's tokens."""
    lengths = [len(row) for row in batch()["responses"].unbind()]
    rows = zip(values.unbind(), lengths, strict=True)
    return list(torch.cat([row[-length - 1 : -1] for row, length in rows]).tolist())


def update(kind: type[Any], folder: str, lora_rank: int) -> dict[str, Any]:
    made = engine(kind, folder, lora_rank)
    rows: list[int] = []
    made.module.register_forward_pre_hook(
        lambda _module, _args, given: rows.append(len(given["input_ids"])), with_kwargs=True
    )
    with made.eval_mode():
        said = made.infer_batch(batch(), loss_function=None)["model_output"]
    num_rows = list(rows)
    config = FSDPActorConfig(
        strategy="fsdp2",
        rollout_n=4,
        ppo_micro_batch_size_per_gpu=4,
        use_kl_loss=True,
        kl_loss_coef=0.3,
        entropy_coeff=0.01,
    )
    gradients: list[torch.Tensor] = []
    weights = [weight for weight in made.module.parameters() if weight.requires_grad]
    hook = made.optimizer.register_step_pre_hook(
        lambda *_: gradients.extend(weight.grad.full_tensor().flatten() for weight in weights)
    )
    with made.train_mode():
        done = made.train_batch(batch(), partial(ppo_loss, config=config))
    hook.remove()
    with made.train_mode():
        sft = made.train_batch(batch(chats=True), partial(sft_loss, config=None))
    return {
        "rows": num_rows,
        "log_probs": of_answers(said["log_probs"]),
        "entropy": of_answers(said["entropy"]),
        "grad_norm": done["metrics"]["grad_norm"],
        "loss": sum(done["loss"]),
        "gradient": torch.cat(gradients).tolist(),
        "sft_loss": sum(sft["loss"]),
    }


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.NamedTemporaryFile() as file:
        torch.distributed.init_process_group("gloo", init_method=f"file://{file.name}", rank=0, world_size=1)
    assert EngineRegistry.get_engine_cls("language_model", "fsdp2") is AnswerEngine
    found = []
    for tied in (True, False):
        torch.manual_seed(0)
        shape = Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
        with tempfile.TemporaryDirectory() as folder:
            AutoModelForCausalLM.from_config(shape, dtype=torch.float32).save_pretrained(folder)
            for lora_rank in (8, 0):
                kinds = {"verl": FSDPEngineWithLMHead, "ours": AnswerEngine}
                found.append({name: update(kind, folder, lora_rank) for name, kind in kinds.items()})
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
