"""Makes usable models from the latest checkpoint of verl, or of TRL (DPO). scripts/export_model.py is the command.

The adapter and the merged model keep the precision of the base model. verl.model_merger would round every weight to
bfloat16 (verl/model_merger/fsdp_model_merger.py:187), which changes the answers of a model that was trained in fp32.
"""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.models.checkpoints import SHARD, latest_step
from recipes.models.model_card import seen_in, write_card
from recipes.models.quantisation import quantised_base
from tsc.errors import ConfigError
from tsc.files import folder_lock, write_atomically

if TYPE_CHECKING:
    import torch

STAMP = "exported_step"


def read_shards(folder: Path) -> dict[str, torch.Tensor]:
    """Return the whole state dict of an FSDP checkpoint, assembled from the files of its ranks.

    Raises ConfigError if a rank's file is missing, or contains anything but tensors.
    """
    import torch
    from torch.distributed.tensor import DTensor

    files = {int(match[2]): path for path in folder.glob("*.pt") if (match := SHARD.fullmatch(path.name))}
    num_ranks = json.loads((folder / "fsdp_config.json").read_text(encoding="utf-8"))["world_size"]
    if sorted(files) != list(range(num_ranks)):
        raise ConfigError(
            f"{folder} has only the shards of ranks {sorted(files)} of {num_ranks}: continue from an earlier checkpoint"
        )
    ranks = [_tensors(files[rank]) for rank in range(num_ranks)]
    whole: dict[str, torch.Tensor] = {}
    for name, first in ranks[0].items():
        if not isinstance(first, DTensor):
            whole[name] = first
            continue
        placement = first.placements[-1]
        if not placement.is_shard():
            whole[name] = first._local_tensor
            continue
        # A small tensor may be empty on the last ranks.
        pieces = [rank[name]._local_tensor for rank in ranks]
        whole[name] = torch.cat([piece for piece in pieces if piece.numel()] or pieces[:1], dim=placement.dim)
    return whole


def _tensors(file: Path) -> dict[str, Any]:
    """Return the tensors of a rank's file, which is a pickle. Code that a pickle may carry is not run."""
    import torch

    try:
        # Importing torch.distributed.tensor has added the classes of sharded tensors to those that may be loaded.
        tensors: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{file} contains more than tensors, which might run code of others, or is damaged: export a checkpoint "
            f"that verl wrote on a machine that you trust ({str(error).splitlines()[0]})"
        ) from error
    return tensors


def save_model(shards: Path, base: Path, adapter_out: Path, merged_out: Path) -> None:
    """Put the weights of the checkpoint into the base model and save it. With LoRA, save the adapter as well."""
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
            raise ConfigError(f"{shards} does not fit the model {base}, which does not have {unknown[0]}")
        adapted.save_pretrained(adapter_out)
        model = adapted.merge_and_unload()
    else:
        model.load_state_dict(weights)
    model.save_pretrained(merged_out)
    AutoTokenizer.from_pretrained(base).save_pretrained(merged_out)


def save_trl_model(checkpoint: Path, base: Path, adapter_out: Path, merged_out: Path) -> None:
    """Do the same with a checkpoint of recipes/dpo/train_dpo.py: an adapter in PEFT format, or a whole model."""
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


def export(checkpoints: Path, part: str, base: Path, out: Path, data: Path | None = None) -> int:
    """Export the latest checkpoint to `out`, and return its step.

    part: the folder inside a checkpoint of verl, such as `actor`. TRL's checkpoints do not have such a folder.
    data: the folder of json_to_parquet that the model was trained on, for its card; without it there is no card.
    Raises ConfigError if there is no complete checkpoint, or another process exports to `out`.
    """
    step = latest_step(checkpoints)
    if step is None:
        raise ConfigError(f"{checkpoints} does not have a complete checkpoint: train first")
    seen = seen_in(data) if data else None
    shards = checkpoints / f"global_step_{step}" / part
    save = save_model
    if (checkpoints / f"checkpoint-{step}").is_dir():
        shards, save = checkpoints / f"checkpoint-{step}", save_trl_model
    if not shards.is_dir():
        raise ConfigError(f"checkpoint folder {shards} is missing: remove {checkpoints} and train again")
    # A training run holds its folder's own lock while it exports into it, so this one has another name.
    with folder_lock(out, "models", lock_file=".export.lock"):
        for left_by_a_kill in out.glob(".export-*"):
            shutil.rmtree(left_by_a_kill)
        (out / STAMP).unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as scratch:
            adapter, merged = Path(scratch, "adapter"), Path(scratch, "merged")
            save(shards, base, adapter, merged)
            if seen is not None:
                for folder in (adapter, merged):
                    if folder.is_dir():
                        write_card(folder, seen)
            if adapter.is_dir():
                _replace(adapter, out / "adapter")
            _replace(merged, out / "merged")
        write_atomically(out / STAMP, f"{step}\n".encode())
    return step


def _replace(new: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    new.rename(target)
