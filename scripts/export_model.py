"""Make usable models of the latest checkpoint: a LoRA adapter where one was trained, and the whole model.

Example:
    python scripts/export_model.py --checkpoints runs/mine/grpo/checkpoints --part actor --base runs/mine/sft/merged \\
        --out runs/mine/grpo

Writes OUT/merged (Hugging Face format, adapter folded in) and, with LoRA, OUT/adapter (PEFT format, to be put on the
base model), both in the base model's own precision. The launchers call it; call it yourself for a run that was stopped.
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
    parser.add_argument("--part", default="", help="folder in a checkpoint: actor for GRPO, empty for SFT")
    parser.add_argument("--base", type=Path, required=True, help="the model that training started from")
    parser.add_argument("--out", type=Path, required=True, help="where merged/ and adapter/ go")
    options = parser.parse_args()
    # Shards are read without the process group that wrote them, of which torch warns.
    logging.getLogger("torch.distributed.device_mesh").setLevel(logging.ERROR)
    with no_progress_bars_in_logs():
        step = export(options.checkpoints, options.part, options.base, options.out)
    print(f"exported step {step} to {options.out}")


if __name__ == "__main__":
    run_main(main)
