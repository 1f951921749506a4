"""Make usable models of verl's latest checkpoint: a LoRA adapter where one was trained, and the whole model.

Example:
    python recipes/export_model.py --checkpoints runs/mine/grpo/checkpoints --part actor --base models/tiny --out runs/mine/grpo

Writes OUT/merged (Hugging Face format, adapter folded in) and, with LoRA, OUT/adapter (PEFT format, to be put on the
base model). verl.model_merger reads the checkpoint; what it leaves is base model and adapter side by side.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tsc.errors import ConfigError, run_main

STAMP = "exported_step"


def latest_step(checkpoints: Path) -> int | None:
    """The step of the last complete checkpoint, as verl's tracker file has it; None before the first."""
    tracker = checkpoints / "latest_checkpointed_iteration.txt"
    return int(tracker.read_text(encoding="utf-8")) if tracker.is_file() else None


def exported_step(out: Path) -> int | None:
    """The step that OUT/merged was made from; None where there is none."""
    stamp = out / STAMP
    return int(stamp.read_text(encoding="utf-8")) if stamp.is_file() else None


def merge_adapter(model_folder: Path, adapter_folder: Path, out: Path) -> None:
    """Fold an adapter into its base model, both kept in the base model's own precision."""
    # Imported here: torch takes seconds, and a call that only reports an error needs none of it.
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype="auto")
    merged = PeftModel.from_pretrained(base, adapter_folder).merge_and_unload()
    merged.save_pretrained(out)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(out)


def export(checkpoints: Path, part: str, base: Path, out: Path) -> int:
    """Returns the step that was exported."""
    step = latest_step(checkpoints)
    if step is None:
        raise ConfigError(f"{checkpoints} holds no complete checkpoint: train first")
    shards = checkpoints / f"global_step_{step}" / part
    if not shards.is_dir():
        raise ConfigError(f"checkpoint folder {shards} is missing: remove {checkpoints} and train again")
    out.mkdir(parents=True, exist_ok=True)
    (out / STAMP).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as scratch:
        whole, merged = Path(scratch, "whole"), Path(scratch, "merged")
        command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
        command += ["--local_dir", str(shards), "--target_dir", str(whole)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ConfigError(f"verl.model_merger failed on {shards}:\n{done.stdout}{done.stderr}")
        adapter = whole / "lora_adapter"
        if adapter.is_dir():
            config_file = adapter / "adapter_config.json"
            config = json.loads(config_file.read_text(encoding="utf-8"))
            config["base_model_name_or_path"] = str(base)
            config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            merge_adapter(whole, adapter, merged)
            _replace(adapter, out / "adapter")
        else:
            merged = whole
        _replace(merged, out / "merged")
    (out / STAMP).write_text(f"{step}\n", encoding="utf-8")
    return step


def _replace(new: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    new.rename(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder with global_step_* (trainer.default_local_dir)")
    parser.add_argument("--part", default="", help="folder in a checkpoint: actor for GRPO, empty for SFT")
    parser.add_argument("--base", type=Path, required=True, help="the model that training started from")
    parser.add_argument("--out", type=Path, required=True, help="where merged/ and adapter/ go")
    options = parser.parse_args()
    step = export(options.checkpoints, options.part, options.base, options.out)
    print(f"exported step {step} to {options.out}")


if __name__ == "__main__":
    run_main(main)
