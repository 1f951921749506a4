"""Says, before anything starts, whether a run fits its hardware, and what to change if it does not.

The configuration is composed as verl would get it, overrides included. Nothing is downloaded and no GPU is needed. The
plan is an estimate; docs/hardware.md says how far off it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
from omegaconf import DictConfig, OmegaConf

from recipes.models.model_shape import ModelShape, known_models, model_shape
from recipes.models.quantisation import check_quantize_installed
from recipes.preflight.check_run import adapter_modules
from recipes.preflight.compose import compose
from recipes.preflight.hardware import hardware_names, load_hardware
from recipes.preflight.memory_plan import PARTS, MemoryPlan, gib, longest_fitting_tokens, memory_plan, usable_bytes
from recipes.preflight.placement import most_moved, placement, placement_line
from recipes.preflight.remedies import LORA_RANK, find_remedy
from recipes.preflight.run_settings import RunSettings, run_settings
from recipes.preflight.step_time import CPU_GFLOPS, FORWARD_SHARE, TRAINING_SHARE, step_time
from tsc.files import write_atomically

FAMILY = "qwen2.5-"
COLUMN = 14


def show_plan(
    algorithm: str, overrides: Sequence[str], *, model: str, ignore_fit: bool = False, out: Path | None = None
) -> bool:
    """Print what a run takes and whether it fits, then check its configuration. Returns whether the run may start.

    overrides: Hydra's, with hardware=NAME among them. model: what model_shape takes. ignore_fit: the run may start
    although it does not fit. out: a dry run's folder; the resolved configuration becomes its config.yaml. Raises
    ConfigError. The check imports verl (or TRL), which takes ten seconds on two cores, so the plan is printed before
    it.
    """
    from recipes.preflight.validate import validate

    config = compose(algorithm, overrides)
    section = config.model if "model" in config else config.actor_rollout_ref.model
    model_shape(model).lora_linears(adapter_modules(section.target_modules))
    if out is None and section.get("quantize"):
        check_quantize_installed()
    may_start = print_plan(algorithm, config, model=model, ignore_fit=ignore_fit)
    validate(algorithm, config)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        file = out / "config.yaml"
        write_atomically(file, OmegaConf.to_yaml(config, resolve=True).encode())
        print(f"dry run: the configuration is valid, and written to {file}")
    return may_start


def print_plan(algorithm: str, config: DictConfig, *, model: str, ignore_fit: bool = False) -> bool:
    """The first half of show_plan: print what a run takes, and what to change if it does not fit. Imports neither torch
    nor verl for a usual model. Raises ConfigError."""
    settings = on_this_machine(run_settings(algorithm, config, hardware=config.hardware.name))
    shape = model_shape(model)
    plan = memory_plan(shape, settings)
    longest = settings.sequence_tokens if plan.fits else longest_fitting_tokens(shape, settings)
    # Main memory yields a little, and a step of short sequences never comes near: the demo's have 69 of 528 tokens.
    fits = plan.fits or (settings.device.is_cpu and 4 * longest >= settings.sequence_tokens)
    lines = [report(shape, settings, plan, fits=fits, longest=longest)]
    if not plan.fits:
        lines += advice(algorithm, shape, settings)
    lines.append(family_line(settings))
    if not fits and ignore_fit:
        lines.append("FIT=ignore: continuing all the same")
    print("\n".join(lines), flush=True)
    return fits or ignore_fit


def chosen_placement(algorithm: str, overrides: Sequence[str], *, model: str, asked: Sequence[str]) -> list[str]:
    """Overrides of the hardware profile that keep on a GPU what fits there (recipes.preflight.placement).

    overrides: all of the run. asked: those of the user among them, which are not touched. Raises ConfigError.
    """
    config = compose(algorithm, overrides)
    settings = on_this_machine(run_settings(algorithm, config, hardware=config.hardware.name))
    return placement(model_shape(model), settings, asked)


def report(shape: ModelShape, settings: RunSettings, plan: MemoryPlan, *, fits: bool, longest: int) -> str:
    """The plan as text: what runs, the table, the verdict. longest: the tokens up to which sequences fit."""
    host = ", ".join(f"{name} {gib(size)}" for name, size in plan.host_parts.items())
    lines = [*_title(shape, settings), "", *_table(settings, plan), ""]
    lines.append(f"main memory  {gib(plan.host_bytes)} GiB: {host}")
    if settings.rollout is not None and plan.kv_tokens is not None:
        at_once = plan.kv_tokens // settings.sequence_tokens
        lines.append(f"KV cache     {plan.kv_tokens:,} tokens: {at_once:,} of the longest sequences at a time")
    lines.extend([*_time(shape, settings), ""])
    if plan.fits:
        lines.append(f"FITS: {_margin(settings, plan)}")
        return "\n".join(lines)
    shorter = f"as long as no sequence has more than about {longest} tokens"
    lines.append(f"FITS {shorter}" if fits else "DOES NOT FIT")
    lines.extend(f"  {problem}" for problem in plan.problems)
    if longest and not fits:
        lines.append(f"  (it would, {shorter})")
    return "\n".join(lines)


def advice(algorithm: str, shape: ModelShape, settings: RunSettings) -> list[str]:
    """What to type to make the run fit; more GPUs or a smaller model if other settings alone are not enough."""
    script = f"scripts/train_{algorithm}.sh"
    remedy = find_remedy(shape, settings)
    if remedy is not None:
        return ["To make it fit, add to your command:", f"  {remedy.command(script)}"]
    lines = [f"No change of the settings alone is enough on {_where(settings)}."]
    remedy = find_remedy(shape, settings, more_gpus=True)
    if remedy is not None:
        lines += ["To make it fit, take more GPUs:", f"  {remedy.command(script)}"]
    for smaller in reversed(family()):
        if smaller.num_parameters < shape.num_parameters:
            remedy = find_remedy(smaller, settings)
            if remedy is not None:
                command = f"MODEL_PATH=/path/to/{smaller.name} {remedy.command(script)}"
                return [*lines, "To make it fit, take a smaller model:", f"  {command}"]
    return lines


def family_line(settings: RunSettings) -> str:
    """Which sizes of Qwen2.5 these settings and this hardware carry."""
    answers = []
    for shape in family():
        remedy = find_remedy(shape, most_moved(settings))
        answer = "no" if remedy is None else f"with {' '.join(remedy.words)}" if remedy.words else "yes"
        answers.append(f"{shape.name.removeprefix(FAMILY).upper()} {answer}")
    return f"Qwen2.5 on {_where(settings)}: {'; '.join(answers)}"


def fits_table() -> str:
    """Markdown: the sizes of Qwen2.5 that fit on one GPU of each profile, with the launchers' own defaults."""
    columns = {
        "GRPO, GSPO (LoRA)": ("grpo", []),
        "PPO (LoRA, full critic)": ("ppo", []),
        "SFT, all weights": ("sft", ["start=given_full", "model.lora_rank=0"]),
        "SFT, LoRA": ("sft", [f"model.lora_rank={LORA_RANK}"]),
        "DPO, LoRA": ("dpo", []),
    }
    lines = [f"| GPU | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name in sorted((name for name in hardware_names() if name != "cpu"), key=_memory_gib):
        cells = []
        for algorithm, overrides in columns.values():
            config = compose(algorithm, [f"hardware={name}", *overrides])
            settings = run_settings(algorithm, config, hardware=name)
            cells.append(_sizes(settings, keeps_all_weights="model.lora_rank=0" in overrides))
        lines.append(f"| {settings.device.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _memory_gib(name: str) -> tuple[float, str]:
    return load_hardware(name).memory_gib or 0, name


def _sizes(settings: RunSettings, *, keeps_all_weights: bool) -> str:
    """The largest size that fits, and larger ones with what to type for them."""
    largest, others = "none", []
    for shape in family():
        size = shape.name.removeprefix(FAMILY).upper()
        remedy = find_remedy(shape, most_moved(settings))
        if remedy is not None and not remedy.words:
            largest = f"to {size}"
        elif remedy is not None and not (keeps_all_weights and any("LORA_RANK" in word for word in remedy.words)):
            others.append(f"{size} with `{' '.join(remedy.words)}`")
    return "; ".join([largest, *others])


def on_this_machine(settings: RunSettings) -> RunSettings:
    """The settings with this machine's main memory, if the run would be here: on a CPU, or with an NVIDIA driver."""
    device = settings.device
    if not device.is_cpu and shutil.which("nvidia-smi") is None:
        return settings
    host_bytes = device.memory_bytes if device.is_cpu and device.memory_bytes else machine_memory_bytes()
    return replace(settings, device=replace(device, host_bytes=host_bytes))


def machine_memory_bytes() -> int:
    """Main memory of this machine, or what its container may use of it."""
    total: int = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(total, int(text)) if text.isdigit() else total


def family() -> list[ModelShape]:
    """The sizes of Qwen2.5 in configs/models, smallest first."""
    return [model_shape(name) for name in known_models() if name.startswith(FAMILY)]


# ---------------------------------------------------------------------------------------------- text


def _title(shape: ModelShape, settings: RunSettings) -> list[str]:
    engine = settings.actor
    trained = "all weights" if engine.full else f"LoRA of rank {engine.lora_rank}"
    base = ", base in 4 bits" if engine.quantised else ""
    dtype = "fp32" if engine.compute_bytes == 4 else "16 bits"
    samples = {"dpo": "pairs", "sft": "chats"}.get(settings.algorithm, f"prompts × {settings.answers} answers")
    if settings.rollout is not None and settings.sequences_per_sample > 1:
        samples += f" × {settings.sequences_per_sample} decisions"
    count = shape.num_parameters
    size = f"{count / 1e9:.2f} billion" if count >= 1e8 else f"{count / 1e6:.1f} million"
    together = f"{settings.pass_tokens(engine):,} tokens" if engine.token_budget else f"{engine.micro_batch} sequences"
    return [
        f"{settings.algorithm.upper()} of {shape.name} ({size} parameters; {trained}{base}; "
        f"computed in {dtype}) on {_where(settings)}",
        f"a step: {settings.batch_prompts} {samples}; a sequence has at most {settings.sequence_tokens} tokens; "
        f"{together} in a pass",
        *filter(None, [placement_line(settings)]),
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


def _time(shape: ModelShape, settings: RunSettings) -> list[str]:
    parts_s = step_time(shape, settings)
    parts = ", ".join(f"{name} {_seconds(seconds)}" for name, seconds in parts_s.items())
    tokens, peak = settings.sequences * settings.sequence_tokens, settings.device.peak_tflops
    assumed = f"{CPU_GFLOPS} GFLOP/s"
    if peak:
        assumed = f"{100 * FORWARD_SHARE:g} % of {peak:g} TFLOP/s forward, {100 * TRAINING_SHARE:g} % in training"
    return [
        f"a step       at most {tokens:,} tokens, very roughly {_seconds(sum(parts_s.values()))}: {parts}",
        f"             (with all sequences at their longest, and {assumed})",
    ]


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
