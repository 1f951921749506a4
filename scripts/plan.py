"""Tells, before anything starts, whether a run fits its hardware, and what to change where it does not.

The configuration is composed as verl would get it, overrides included; nothing is downloaded and no GPU is needed.
Exit status 0: fits; 2: does not fit, or the configuration is wrong. The plan is an estimate (docs/hardware.md says how
far off it was): the launchers' FIT=ignore goes on where it says no.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from recipes.models.model_shape import MODEL_CONFIGS, ModelShape, model_shape
from recipes.preflight.memory_plan import PARTS, MemoryPlan, gib, longest_fitting_tokens, memory_plan, usable_bytes
from recipes.preflight.remedies import Remedy, find_remedies, least
from recipes.preflight.run_settings import ALGORITHMS, RunSettings, run_settings
from recipes.preflight.step_time import CPU_GFLOPS, FORWARD_SHARE, TRAINING_SHARE, step_time
from tsc.errors import ConfigError, run_main
from tsc.files import REPO_ROOT, write_atomically

FAMILY = "qwen2.5-"
COLUMN = 14


def main() -> int:
    options = _options()
    overrides, hardware = _with_hardware(options.overrides, options.hardware)
    config = _compose(options.algorithm, overrides)
    settings = on_this_machine(run_settings(options.algorithm, config, hardware=hardware))
    facts = model_shape(options.model, root=REPO_ROOT)
    plan = memory_plan(facts, settings)
    longest = settings.sequence_tokens if plan.fits else longest_fitting_tokens(facts, settings)
    # Main memory yields a little, and a step of short sequences never comes near: the demo's have 69 of 528 tokens.
    fits = plan.fits or (settings.device.is_cpu and 4 * longest >= settings.sequence_tokens)
    print(report(facts, settings, plan, fits=fits, longest=longest))
    if not plan.fits:
        print("\n".join(advice(options.algorithm, facts, settings)))
    print(family_line(settings))
    if options.dry_run:
        from recipes.preflight.validate import validate

        validate(options.algorithm, config)
        options.out.mkdir(parents=True, exist_ok=True)
        file = options.out / "config.yaml"
        write_atomically(file, OmegaConf.to_yaml(config, resolve=True).encode())
        print(f"dry run: the configuration is valid, and written to {file}")
    if not fits and options.ignore_fit:
        print("FIT=ignore: going on all the same")
    return 0 if fits or options.ignore_fit else 2


def report(facts: ModelShape, settings: RunSettings, plan: MemoryPlan, *, fits: bool, longest: int) -> str:
    """The plan as lines of text: what is run, the table, the verdict. longest: tokens up to which sequences fit."""
    lines = [*_title(facts, settings), "", *_table(settings, plan), ""]
    lines.append(f"main memory  {gib(plan.host_bytes)} GiB: {_list_of(plan.host_parts)}")
    if settings.rollout is not None and plan.kv_tokens is not None:
        at_once = plan.kv_tokens // settings.sequence_tokens
        lines.append(f"KV cache     {plan.kv_tokens:,} tokens: {at_once:,} of the longest sequences at a time")
    lines.extend([*_time(facts, settings), ""])
    if plan.fits:
        lines.append(f"FITS: {_margin(settings, plan)}")
        return "\n".join(lines)
    shorter = f"as long as no sequence has more than about {longest} tokens"
    lines.append(f"FITS {shorter}" if fits else "DOES NOT FIT")
    lines.extend(f"  {problem}" for problem in plan.problems)
    if longest and not fits:
        lines.append(f"  (it would, {shorter})")
    return "\n".join(lines)


def advice(algorithm: str, facts: ModelShape, settings: RunSettings) -> list[str]:
    """What to type to make it fit: one of a few single changes, or a combination; a smaller model where both fail or
    take more GPUs."""
    command = f"bash scripts/train_{algorithm}.sh"
    here = find_remedies(facts, settings, more_gpus=False)
    if here:
        heading = "To make it fit, add to your command:" if len(here) == 1 else "To make it fit, one of these:"
        return [heading, *(f"  {_as_command(remedy, command)}" for remedy in here)]
    lines = [f"No change of the settings alone is enough on {_where(settings)}."]
    elsewhere = find_remedies(facts, settings, most=1)
    if elsewhere:
        lines += ["To make it fit, take more GPUs:", f"  {_as_command(elsewhere[0], command)}"]
    smaller = _smaller_model(facts, settings, command)
    if smaller:
        lines += ["To make it fit, take a smaller model:", f"  {smaller}"]
    return lines


def _smaller_model(facts: ModelShape, settings: RunSettings, command: str) -> str | None:
    """The command for the largest smaller model that the hardware carries."""
    for model in reversed(_family()):
        if model.num_parameters >= facts.num_parameters:
            continue
        folder = f"MODEL_PATH=/path/to/{model.name}"
        if memory_plan(model, settings).fits:
            return f"{folder} {command}"
        found = find_remedies(model, settings, most=1, more_gpus=False)
        if found:
            return f"{folder} {_as_command(found[0], command)}"
    return None


def family_line(settings: RunSettings) -> str:
    """Which sizes of Qwen2.5 these settings and this hardware carry."""
    answers = []
    for model in _family():
        size = model.name.removeprefix(FAMILY).upper()
        if memory_plan(model, settings).fits:
            answers.append(f"{size} yes")
            continue
        found = find_remedies(model, settings, most=1, more_gpus=False)
        if found:
            answers.append(f"{size} with {' '.join(change.words for change in found[0].changes)}")
        else:
            needed = memory_plan(model, least(model, settings))
            needs = needed.host_bytes if settings.device.is_cpu else needed.fullest.total
            answers.append(f"{size} no ({gib(needs)} GiB at the least)")
    return f"Qwen2.5 on {_where(settings)}: {'; '.join(answers)}"


def on_this_machine(settings: RunSettings) -> RunSettings:
    """The settings with this machine's main memory, where the run would be here: on a CPU, or with an NVIDIA driver."""
    device = settings.device
    if not device.is_cpu and shutil.which("nvidia-smi") is None:
        return settings
    host_bytes = device.memory_bytes if device.is_cpu and device.memory_bytes else machine_memory_bytes()
    return replace(settings, device=replace(device, host_bytes=host_bytes))


def machine_memory_bytes() -> int:
    """Main memory of this machine, or what its container may use of it."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    sizes = [1024 * int(meminfo["MemTotal"].split()[0])]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        sizes.append(int(text))
    return min(sizes)


# ---------------------------------------------------------------------------------------------- text


def _title(facts: ModelShape, settings: RunSettings) -> list[str]:
    engine = settings.actor
    trained = "all weights" if engine.full else f"LoRA of rank {engine.lora_rank}"
    base = ", base in 4 bits" if engine.quantised else ""
    dtype = "fp32" if engine.compute_bytes == 4 else "16 bits"
    samples = {"dpo": "pairs", "sft": "chats"}.get(settings.algorithm, f"prompts × {settings.answers} answers")
    if settings.rollout is not None and settings.sequences_per_sample > 1:
        samples += f" × {settings.sequences_per_sample} decisions"
    together = f"{settings.pass_tokens(engine):,} tokens" if engine.token_budget else f"{engine.micro_batch} sequences"
    return [
        f"{settings.algorithm.upper()} of {facts.name} ({_count(facts.num_parameters)} parameters; {trained}{base}; "
        f"computed in {dtype}) on {_where(settings)}",
        f"a step: {settings.batch_prompts} {samples}; a sequence has at most {settings.sequence_tokens} tokens; "
        f"{together} in a pass",
    ]


def _where(settings: RunSettings) -> str:
    if settings.device.is_cpu:
        return settings.device.title
    where = f"{settings.devices_per_node} × {settings.device.title}"
    return f"{settings.num_nodes} machines with {where} each" if settings.num_nodes > 1 else where


def _table(settings: RunSettings, plan: MemoryPlan) -> list[str]:
    names = [part for part in (*PARTS, "actor at rest") if any(part in phase.parts for phase in plan.phases)]
    width = max(len(name) for name in (*names, "GiB per GPU")) + 2
    unit = "GiB" if settings.device.is_cpu else "GiB per GPU"
    lines = [f"{unit:<{width}}" + "".join(f"{phase.name:>{COLUMN}}" for phase in plan.phases)]
    for name in names:
        cells = (f"{gib(phase.parts[name]) if name in phase.parts else '–':>{COLUMN}}" for phase in plan.phases)
        lines.append(f"{name:<{width}}" + "".join(cells))
    lines.append(f"{'in all':<{width}}" + "".join(f"{gib(phase.total):>{COLUMN}}" for phase in plan.phases))
    if settings.device.memory_bytes and not settings.device.is_cpu:
        usable = gib(usable_bytes(settings.device.memory_bytes))
        lines.append(f"{'usable':<{width}}" + "".join(f"{usable:>{COLUMN}}" for _ in plan.phases))
    return lines


def _margin(settings: RunSettings, plan: MemoryPlan) -> str:
    if settings.device.is_cpu:
        return f"{gib(plan.host_bytes)} of {gib(usable_bytes(settings.device.host_bytes))} GiB main memory"
    fullest = plan.fullest
    usable = usable_bytes(settings.device.memory_bytes)
    return f"at most {gib(fullest.total)} of {gib(usable)} GiB per GPU ({fullest.name})"


def _time(facts: ModelShape, settings: RunSettings) -> list[str]:
    time = step_time(facts, settings)
    parts = ", ".join(f"{name} {_seconds(seconds)}" for name, seconds in time.parts_s.items())
    peak = settings.device.peak_tflops
    assumed = (
        f"{CPU_GFLOPS} GFLOP/s"
        if peak is None
        else f"{100 * FORWARD_SHARE:g} % of {peak:g} TFLOP/s forward, {100 * TRAINING_SHARE:g} % in training"
    )
    return [
        f"a step       at most {time.tokens:,} tokens, very roughly {_seconds(time.total_s)}: {parts}",
        f"             (with all sequences at their longest, and {assumed})",
    ]


def _as_command(remedy: Remedy, command: str) -> str:
    return " ".join(part for part in (remedy.before_command, command, remedy.after_command) if part)


def _list_of(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {gib(size)}" for name, size in parts.items())


def _count(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e8 else f"{count / 1e6:.1f} million"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


# ---------------------------------------------------------------------------------------------- configuration


def _family() -> list[ModelShape]:
    folders = (REPO_ROOT / MODEL_CONFIGS).glob(f"{FAMILY}*/config.json")
    models = [model_shape(file.parent.name, root=REPO_ROOT) for file in folders]
    return sorted(models, key=lambda model: model.num_parameters)


def _with_hardware(overrides: list[str], hardware: str | None) -> tuple[list[str], str]:
    """Overrides that name the hardware once, and its name."""
    named = [override.split("=", 1)[1] for override in overrides if override.startswith("hardware=")]
    if named:
        return overrides, named[-1]
    if hardware is None:
        raise ConfigError("name the hardware: --hardware cpu, t4, … (a file in configs/hardware)")
    return [f"hardware={hardware}", *overrides], hardware


def _compose(algorithm: str, overrides: list[str]) -> DictConfig:
    from recipes.preflight.compose import compose

    return compose(algorithm, overrides)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Tell whether a training run fits its hardware, and what to change where it does not.",
        epilog="example: python scripts/plan.py --algorithm grpo --hardware t4 --model qwen2.5-0.5b",
    )
    parser.add_argument("--algorithm", required=True, choices=ALGORITHMS)
    parser.add_argument("--hardware", help="name of a file in configs/hardware, such as t4")
    parser.add_argument(
        "--model", required=True, help="folder with a config.json, a name in configs/models, tiny or smollm2"
    )
    parser.add_argument("--ignore-fit", action="store_true", help="exit status 0 although it does not fit (FIT=ignore)")
    parser.add_argument("--dry-run", action="store_true", help="also check the configuration with verl, and write it")
    parser.add_argument("--out", type=Path, help="folder for config.yaml (with --dry-run)")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="Hydra overrides, after --")
    options = parser.parse_args()
    if options.dry_run != (options.out is not None):
        parser.error("--dry-run and --out FOLDER belong together")
    return options


if __name__ == "__main__":
    run_main(main)
