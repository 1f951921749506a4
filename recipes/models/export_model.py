"""Makes usable models of verl's latest checkpoint, or TRL's (DPO); scripts/export_model.py is the command.

Both the adapter and the merged model keep the base model's own precision. verl.model_merger would round every weight to
bfloat16 (verl/model_merger/fsdp_model_merger.py:187), which changes what a model trained in fp32 answers.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.models.quantisation import quantised_base
from tsc.errors import ConfigError

if TYPE_CHECKING:
    import torch

STAMP = "exported_step"
SHARD = re.compile(r"_rank_(\d+)\.pt$")


def latest_step(checkpoints: Path) -> int | None:
    """The step of the last complete checkpoint, as verl's tracker file has it; None before the first."""
    tracker = checkpoints / "latest_checkpointed_iteration.txt"
    return int(tracker.read_text(encoding="utf-8")) if tracker.is_file() else None


def exported_step(out: Path) -> int | None:
    """The step that OUT/merged was made from; None where there is none."""
    stamp = out / STAMP
    return int(stamp.read_text(encoding="utf-8")) if stamp.is_file() else None


def read_shards(folder: Path) -> dict[str, torch.Tensor]:
    """The whole state dict of an FSDP checkpoint, put together from its ranks' files. Raises ConfigError."""
    import torch
    from torch.distributed.tensor import DTensor

    files = {int(match[1]): path for path in folder.glob("model_world_size_*") if (match := SHARD.search(path.name))}
    num_ranks = json.loads((folder / "fsdp_config.json").read_text(encoding="utf-8"))["world_size"]
    if sorted(files) != list(range(num_ranks)):
        raise ConfigError(
            f"{folder} has the shards of ranks {sorted(files)} of {num_ranks}: train again from the one before"
        )
    ranks: list[dict[str, Any]] = [
        torch.load(files[rank], map_location="cpu", weights_only=False) for rank in range(num_ranks)
    ]
    whole: dict[str, torch.Tensor] = {}
    for name, first in ranks[0].items():
        if not isinstance(first, DTensor):
            whole[name] = first
            continue
        placement = first.placements[-1]
        if not placement.is_shard():
            whole[name] = first._local_tensor
            continue
        # The last ranks may hold nothing of a small tensor.
        pieces = [rank[name]._local_tensor for rank in ranks]
        whole[name] = torch.cat([piece for piece in pieces if piece.numel()] or pieces[:1], dim=placement.dim)
    return whole


def save_model(shards: Path, base: Path, adapter_out: Path, merged_out: Path) -> None:
    """Put the checkpoint's weights on the base model and save it; with LoRA, the adapter too."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = read_shards(shards)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    lora = {name.replace(".default.weight", ".weight"): value for name, value in weights.items() if ".lora_" in name}
    if lora:
        meta = json.loads((shards / "lora_train_meta.json").read_text(encoding="utf-8"))
        # …layers.0.self_attn.q_proj.lora_A.weight
        modules = sorted({name.split(".")[-3] for name in lora})
        config = LoraConfig(r=meta["r"], lora_alpha=meta["lora_alpha"], target_modules=modules, task_type="CAUSAL_LM")
        adapted = get_peft_model(model, config)
        unknown = set_peft_model_state_dict(adapted, lora).unexpected_keys
        if unknown:
            raise ConfigError(f"{shards} does not fit the model {base}: it has no {unknown[0]}")
        adapted.save_pretrained(adapter_out)
        model = adapted.merge_and_unload()
    else:
        model.load_state_dict(weights)
    model.save_pretrained(merged_out)
    AutoTokenizer.from_pretrained(base).save_pretrained(merged_out)


def save_trl_model(checkpoint: Path, base: Path, adapter_out: Path, merged_out: Path) -> None:
    """The same of a checkpoint of recipes/dpo/train_dpo.py, which is an adapter in PEFT's format or a whole model."""
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if (checkpoint / "adapter_config.json").is_file():
        start = quantised_base(checkpoint.parent, base)
        if start is None:
            start = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        adapted = PeftModel.from_pretrained(start, checkpoint)
        adapted.save_pretrained(adapter_out)
        model = adapted.merge_and_unload()
    else:
        dtype = getattr(AutoConfig.from_pretrained(base), "dtype", None) or torch.float32
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    model.save_pretrained(merged_out)
    AutoTokenizer.from_pretrained(base).save_pretrained(merged_out)


def export(checkpoints: Path, part: str, base: Path, out: Path) -> int:
    """Returns the step that was exported. part: the folder in a checkpoint of verl's; TRL's have none."""
    step = latest_step(checkpoints)
    if step is None:
        raise ConfigError(f"{checkpoints} holds no complete checkpoint: train first")
    shards = checkpoints / f"global_step_{step}" / part
    save = save_model
    if (checkpoints / f"checkpoint-{step}").is_dir():
        shards, save = checkpoints / f"checkpoint-{step}", save_trl_model
    if not shards.is_dir():
        raise ConfigError(f"checkpoint folder {shards} is missing: remove {checkpoints} and train again")
    out.mkdir(parents=True, exist_ok=True)
    (out / STAMP).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as scratch:
        adapter, merged = Path(scratch, "adapter"), Path(scratch, "merged")
        save(shards, base, adapter, merged)
        if adapter.is_dir():
            _replace(adapter, out / "adapter")
        _replace(merged, out / "merged")
    (out / STAMP).write_text(f"{step}\n", encoding="utf-8")
    return step


def _replace(new: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    new.rename(target)
