"""Says, before anything starts, whether a run fits its hardware, and what to change if it does not.

The configuration is composed as verl would get it, overrides included. Nothing is downloaded and no GPU is needed.
Exit status 0: it fits; 2: it does not fit, or the configuration is wrong. The plan is an estimate; docs/hardware.md
says how far off it was. With the launchers' FIT=ignore a run starts although the plan says no.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from recipes.preflight.compose import ALGORITHMS, compose
from recipes.preflight.plan import chosen_placement, fits_table, print_plan, show_plan
from tsc.errors import ConfigError, run_main


def main() -> int:
    options = _options()
    if options.table:
        print(fits_table())
        return 0
    overrides = with_hardware(options.overrides, options.hardware)
    placed = chosen_placement(options.algorithm, overrides, model=options.model, asked=options.overrides)
    overrides = [overrides[0], *placed, *overrides[1:]]
    if options.dry_run:
        may_start = show_plan(
            options.algorithm, overrides, model=options.model, ignore_fit=options.ignore_fit, out=options.out
        )
    else:
        config = compose(options.algorithm, overrides)
        may_start = print_plan(options.algorithm, config, model=options.model, ignore_fit=options.ignore_fit)
    return 0 if may_start else 2


def with_hardware(overrides: list[str], hardware: str | None) -> list[str]:
    """Overrides that name the hardware; those after -- win over the option."""
    if any(override.startswith("hardware=") for override in overrides):
        return overrides
    if hardware is None:
        raise ConfigError("name the hardware: --hardware cpu, t4, … (a file in configs/hardware)")
    return [f"hardware={hardware}", *overrides]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Say whether a training run fits its hardware, and what to change if it does not.",
        epilog="example: python scripts/plan.py --algorithm grpo --hardware t4 --model qwen2.5-0.5b",
    )
    parser.add_argument("--algorithm", choices=ALGORITHMS)
    parser.add_argument("--hardware", help="name of a file in configs/hardware, such as t4")
    parser.add_argument("--model", help="folder with a config.json, a name in configs/models, tiny or smollm2")
    parser.add_argument("--table", action="store_true", help="print which models fit on which GPU, and nothing else")
    parser.add_argument("--ignore-fit", action="store_true", help="exit status 0 although it does not fit (FIT=ignore)")
    parser.add_argument("--dry-run", action="store_true", help="also check the configuration with verl, and write it")
    parser.add_argument("--out", type=Path, help="folder for config.yaml (with --dry-run)")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="Hydra overrides, after --")
    options = parser.parse_args()
    if not options.table and (options.algorithm is None or options.model is None):
        parser.error("give --algorithm and --model, or --table")
    if options.dry_run != (options.out is not None):
        parser.error("--dry-run and --out FOLDER belong together")
    return options


if __name__ == "__main__":
    run_main(main)
