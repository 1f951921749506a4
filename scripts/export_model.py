"""Make usable models from the latest checkpoint: the whole model, and the LoRA adapter if one was trained.

Example:
    python scripts/export_model.py --checkpoints runs/mine/grpo/checkpoints --part actor --base runs/mine/sft/merged \\
        --data data/mine/parquet --out runs/mine/grpo

Writes OUT/merged (Hugging Face format, with the adapter merged into the weights). With LoRA it also writes OUT/adapter
(PEFT format, for use with the base model). Both have the precision of the base model. With --data, each gets a
tsc_card.json that says what the model was trained on: scenarios, version of the prompt, number of stages, bounds of
greens. The launchers call this command. Call it yourself for a run that was stopped.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from recipes.models.export_model import export
from recipes.models.model_folder import no_progress_bars_in_logs
from tsc.errors import run_main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoints", type=Path, required=True, help="folder with global_step_* (trainer.default_local_dir)"
    )
    parser.add_argument("--part", default="", help="folder inside a checkpoint: actor for GRPO, empty for SFT")
    parser.add_argument("--base", type=Path, required=True, help="the model that training started from")
    parser.add_argument(
        "--data", type=Path, help="folder of json_to_parquet that the model was trained on, for its card"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for merged/ and adapter/")
    options = parser.parse_args()
    # torch warns that shards are read without the process group that wrote them, which is intended here.
    logging.getLogger("torch.distributed.device_mesh").setLevel(logging.ERROR)
    with no_progress_bars_in_logs():
        step = export(options.checkpoints, options.part, options.base, options.out, options.data)
    print(f"exported step {step} to {options.out}")


if __name__ == "__main__":
    run_main(main)
