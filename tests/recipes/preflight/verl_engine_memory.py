"""Peak bytes of an update by verl's own FSDP2 engine, one process on the CPU, counted over all living tensors.

python tests/recipes/preflight/verl_engine_memory.py CASES.json PEAKS.json; a case: config (a Qwen2Config), param_dtype,
packed, lora_rank, checkpointing, micro_batch, tokens. tests/recipes/preflight/test_memory_plan.py runs it in a process
of its own, for verl chooses its platform when it is imported.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(VERL_PLATFORM="cpu", VERL_USE_EXTERNAL_MODULES="recipes.verl_plugins.cpu")

import torch
import torch.distributed.fsdp._fully_shard._fsdp_param as fsdp_param
import torch.nn.functional as F

# of this file's own folder, which is on the path of a script
from live_bytes import LiveBytes
from transformers import AutoModelForCausalLM, Qwen2Config
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils
from verl.utils.dataset.dataset_utils import DatasetPadMode
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine import EngineRegistry
from verl.workers.utils.losses import sft_loss

MICRO_BATCHES = 2
ORIGINAL_LOG_SOFTMAX = F.log_softmax
RESIZING = {name: getattr(fsdp_param, name) for name in ("alloc_storage", "free_storage")}


def count_resized_storages(counted: LiveBytes) -> None:
    """FSDP2 frees and makes gathered weights by resizing their storage, which is no operation of torch's dispatcher."""
    for name, resize in RESIZING.items():

        def counting(tensor: torch.Tensor, resize: Any = resize) -> None:
            resize(tensor)
            counted.resized(tensor.untyped_storage())

        setattr(fsdp_param, name, counting)


def new_engine(folder: str, case: dict[str, Any]) -> Any:
    return EngineRegistry.new(
        model_type="language_model",
        backend="fsdp2",
        model_config=HFModelConfig(
            path=folder,
            load_tokenizer=False,
            enable_gradient_checkpointing=case["checkpointing"],
            use_remove_padding=case["packed"],
            lora_rank=case["lora_rank"],
            override_config={"attn_implementation": "sdpa"},
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            use_torch_compile=False,
            use_dynamic_bsz=False,
            mixed_precision={"param_dtype": case["param_dtype"], "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        ),
        optimizer_config=FSDPOptimizerConfig(lr=1e-5, total_training_steps=10),
        checkpoint_config=CheckpointConfig(),
    )


def new_batch(case: dict[str, Any], vocab: int) -> Any:
    def nested(values: torch.Tensor) -> torch.Tensor:
        count = MICRO_BATCHES * case["micro_batch"]
        return torch.nested.nested_tensor([values.clone() for _ in range(count)], layout=torch.jagged)

    tokens = case["tokens"]
    batch = tensordict_utils.get_tensordict(
        {
            "input_ids": nested(torch.randint(0, vocab, (tokens,))),
            "position_ids": nested(torch.arange(tokens)),
            "loss_mask": nested(torch.ones(tokens)),
        }
    )
    tensordict_utils.assign_non_tensor(
        batch,
        use_remove_padding=case["packed"],
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=case["micro_batch"],
        use_fused_kernels=False,
        temperature=1.0,
        pad_mode=DatasetPadMode.NO_PADDING,
        dp_size=1,
    )
    return batch


def peak_of_update(case: dict[str, Any]) -> int:
    """Bytes at the fullest moment of the second update, whose optimizer has its moments."""
    config = Qwen2Config(**case["config"])
    # CUDA's autocast computes it in fp32, the CPU's does not.
    half = case["param_dtype"] != "fp32"
    F.log_softmax = (
        (lambda values, dim=-1: ORIGINAL_LOG_SOFTMAX(values.float(), dim=dim)) if half else ORIGINAL_LOG_SOFTMAX
    )
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        with LiveBytes() as counted:
            count_resized_storages(counted)
            engine = new_engine(folder, case)
            engine.initialize()
            for _ in range(2):
                counted.restart_peak()
                with engine.train_mode():
                    engine.train_batch(new_batch(case, config.vocab_size), partial(sft_loss, config=None))
            return counted.peak


def main() -> None:
    cases, results = (Path(name) for name in sys.argv[1:])
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    with tempfile.NamedTemporaryFile() as store:
        torch.distributed.init_process_group("gloo", init_method=f"file://{store.name}", rank=0, world_size=1)
        peaks = [peak_of_update(case) for case in json.loads(cases.read_text())]
        results.write_text(json.dumps(peaks))
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
