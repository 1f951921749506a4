"""The profiles of configs/hardware: read and check one, and find the one for this machine's GPUs.

Example:
    python recipes/preflight/hardware.py        prints NAME COUNT, say `t4 2`: what HARDWARE=auto and N_GPUS stand for

It asks nvidia-smi for the GPUs; without nvidia-smi the answer is `cpu 1`. Remarks go to standard error. The exit status
is 2 if there are GPUs for which no profile can be chosen.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from tsc.errors import ConfigError, did_you_mean, run_main
from tsc.files import REPO_ROOT
from tsc.yaml_file import read_yaml, validate_values

FOLDER = REPO_ROOT / "configs" / "hardware"
QUERY = ("index", "uuid", "name", "memory.total", "compute_cap", "mig.mode.current", "driver_version")
# The oldest NVIDIA driver for the CUDA 13 of the pinned torch:
# https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/ (CUDA driver, minimum versions)
LEAST_DRIVER = 580
NVIDIA_SMI_TIMEOUT_S = 60
# the least compute capability with bfloat16 arithmetic
BF16_CAPABILITY = 8.0
# verl's placement group takes 3 CPUs for each GPU; its runner and its transfer queue take one each
RAY_CPUS_PER_DEVICE, RAY_CPUS_BESIDE = 3, 2


class Hardware(BaseModel):
    """One profile with its base file. configs/hardware/_gpu.yaml says what each key means and why it has its value."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    device: Literal["cpu", "cuda"]
    device_name: str
    nvidia_smi_name: str | None
    memory_gib: float | None = Field(gt=0)
    compute_capability: float | None = Field(gt=0)
    peak_tflops: float | None = Field(gt=0)
    memory_bandwidth_gb_per_s: float | None = Field(gt=0)
    num_devices: int = Field(ge=1)
    tensor_parallel: int = Field(ge=1)
    fsdp_strategy: Literal["fsdp", "fsdp2"]
    reshard_after_forward: bool
    model_dtype: Literal["fp32", "bf16"]
    reference_dtype: Literal["fp32", "bf16"]
    param_offload: bool
    optimizer_offload: bool
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]
    use_remove_padding: bool
    gradient_checkpointing: bool
    torch_compile: bool
    param_dtype: Literal["fp32", "bf16", "fp16"]
    reduce_dtype: Literal["fp32", "bf16", "fp16"]
    rollout_dtype: Literal["float32", "bfloat16", "float16"]
    micro_batch_size: int = Field(ge=1)
    num_data_workers: int = Field(ge=0)
    num_agent_workers: int = Field(ge=1)
    num_reward_workers: int = Field(ge=1)
    merge_lora_for_rollout: bool
    load_format: Literal["dummy", "safetensors", "auto"]
    layered_summon: bool
    max_num_sequences: int = Field(ge=1)
    enforce_eager: bool
    cudagraph_capture_sizes: list[int] | None
    sleep_mode: bool
    gpu_memory_utilization: float = Field(gt=0, lt=1)
    kv_cache_memory_bytes: int | None = Field(gt=0)
    vllm_attention_backend: str | None
    vllm_worker_extension: str | None
    weight_bucket_mb: int = Field(ge=1)
    ray_num_cpus: int | None = Field(ge=1)
    ray_num_gpus: int | None = Field(ge=1)
    ray_object_store_memory: int | None = Field(gt=0)


@dataclass(frozen=True, kw_only=True)
class Detected:
    """The profile for this machine and the number of its devices. remarks are sentences for the user."""

    name: str
    count: int
    remarks: tuple[str, ...] = ()


class Gpu(NamedTuple):
    """One line of nvidia-smi. memory_gib includes the driver's share."""

    index: str
    uuid: str
    name: str
    memory_gib: float
    compute_capability: float
    mig: bool
    driver: str


def hardware_names() -> list[str]:
    """The profiles that HARDWARE= may name, sorted."""
    return sorted(path.stem for path in FOLDER.glob("[!_]*.yaml"))


def load_hardware(name: str) -> Hardware:
    """The profile configs/hardware/<name>.yaml together with the file it is based on.

    Raises ConfigError. For an unknown name it lists the known ones; for a wrong key or value it gives file, key, value,
    the allowed values and the nearest spelling.
    """
    from omegaconf import OmegaConf

    known = hardware_names()
    if name not in known:
        raise ConfigError(f"HARDWARE={name} is unknown: {did_you_mean(name, known)}choose auto, {', '.join(known)}")
    file = FOLDER / f"{name}.yaml"
    values: Any = OmegaConf.to_container(OmegaConf.create({"hardware": _with_base(file)}), resolve=True)
    return validate_values(values["hardware"], Hardware, where=str(file))


def _with_base(file: Path) -> dict[str, Any]:
    """The file's values over those of the files that its Hydra defaults list names before _self_."""
    own = read_yaml(file)
    if not isinstance(own, dict):
        raise ConfigError(f"{file}: holds a {type(own).__name__}, expected keys and values")
    values: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        if base != "_self_":
            values |= _with_base(file.parent / f"{base}.yaml")
    return values | own


def detect() -> Detected:
    """The profile of this machine's GPUs that CUDA_VISIBLE_DEVICES shows.

    The name that nvidia-smi prints decides. For an unknown name it is the largest profile that needs neither more
    memory nor a newer device, and a remark says so. Raises ConfigError for GPUs that differ, that are divided (MIG), or
    that are smaller or older than all profiles, and if nvidia-smi fails.
    """
    if shutil.which("nvidia-smi") is None:
        return Detected(name="cpu", count=1)
    gpus = _parse(_ask_nvidia_smi())
    visible = _visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if not visible:
        return Detected(name="cpu", count=1, remarks=("CUDA_VISIBLE_DEVICES hides all GPUs: training on the CPU",))
    first = visible[0]
    if len({(gpu.name, gpu.memory_gib) for gpu in visible}) > 1:
        found = ", ".join(f"{gpu.index}: {gpu.name} ({gpu.memory_gib:.0f} GiB)" for gpu in visible)
        raise ConfigError(
            f"the GPUs of this machine differ ({found}), but verl treats all alike: choose GPUs of one kind with "
            "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=… (their numbers, separated by commas)"
        )
    if any(gpu.mig for gpu in visible):
        raise ConfigError(
            f"{first.name} is divided into MIG instances, which verl cannot use as GPUs: ask the machine's owner to "
            "turn MIG off (nvidia-smi -mig 0), or choose HARDWARE=cpu"
        )
    profiles = {name: load_hardware(name) for name in hardware_names() if name != "cpu"}
    for name, profile in profiles.items():
        if profile.nvidia_smi_name is not None and re.fullmatch(profile.nvidia_smi_name, first.name):
            return Detected(name=name, count=len(visible))
    name = _nearest(first, profiles)
    remark = (
        f"there is no profile for {first.name} ({first.memory_gib:.1f} GiB, compute capability "
        f"{first.compute_capability}): taking {name}, the nearest smaller one"
    )
    return Detected(name=name, count=len(visible), remarks=(remark,))


def compute_capability() -> float:
    """Of the first GPU that CUDA_VISIBLE_DEVICES shows. Raises ConfigError if there is none, or nvidia-smi fails."""
    visible = _visible(_parse(_ask_nvidia_smi()), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if not visible:
        raise ConfigError("CUDA_VISIBLE_DEVICES hides all GPUs: name one, or install the CPU packages")
    return visible[0].compute_capability


def check_driver() -> None:
    """Raises ConfigError if a GPU's driver is too old for the pinned torch, which would not find the GPU."""
    for gpu in _parse(_ask_nvidia_smi()):
        driver = re.match(r"\d+", gpu.driver)
        if driver and int(driver.group()) < LEAST_DRIVER:
            raise ConfigError(
                f"NVIDIA's driver {gpu.driver} is older than {LEAST_DRIVER}, which CUDA 13 (the pinned torch) needs: "
                "update it (on a rented machine, choose an image with a newer one)"
            )


def _ask_nvidia_smi() -> str:
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    remedy = "repair the driver, choose a profile (HARDWARE=t4, …) if you know that the GPU works, or HARDWARE=cpu"
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"nvidia-smi does not answer within {NVIDIA_SMI_TIMEOUT_S} s: {remedy}") from None
    except OSError as error:
        raise ConfigError(f"nvidia-smi cannot be run ({error.strerror}): {remedy}") from None
    said = " ".join((answer.stdout + answer.stderr).split())
    if "No devices were found" in said:
        raise ConfigError(
            "nvidia-smi is installed but finds no GPU: choose HARDWARE=cpu to train on the CPU, or " + remedy
        )
    if answer.returncode != 0:
        raise ConfigError(f"nvidia-smi fails with status {answer.returncode} ({said}): {remedy}")
    return answer.stdout


def _parse(text: str) -> list[Gpu]:
    gpus = []
    for line in filter(None, map(str.strip, text.splitlines())):
        try:
            index, uuid, name, memory, capability, mig, driver = (field.strip() for field in line.split(","))
            memory_gib, compute_capability = int(memory.removesuffix(" MiB")) / 1024, float(capability)
        except ValueError:
            raise ConfigError(
                f"nvidia-smi says '{line}', but {', '.join(QUERY)} were asked for: name the profile with "
                f"HARDWARE= ({', '.join(hardware_names())})"
            ) from None
        gpus.append(Gpu(index, uuid, name, memory_gib, compute_capability, mig == "Enabled", driver))
    return gpus


def _visible(gpus: list[Gpu], cuda_visible_devices: str | None) -> list[Gpu]:
    """The GPUs that CUDA sees. It reads numbers or (the start of) UUIDs, up to the first entry that is neither."""
    if cuda_visible_devices is None:
        return gpus
    visible = []
    for entry in cuda_visible_devices.split(","):
        word = entry.strip()
        if word.startswith("MIG"):
            raise ConfigError(
                f"CUDA_VISIBLE_DEVICES={cuda_visible_devices} names an MIG instance, which verl cannot use as a GPU: "
                "name whole GPUs, or choose HARDWARE=cpu"
            )
        match = [gpu for gpu in gpus if word and (gpu.index == word or gpu.uuid.startswith(word))]
        if len(match) != 1:
            break
        visible += match
    return visible


def _nearest(gpu: Gpu, profiles: dict[str, Hardware]) -> str:
    fitting = [
        (profile.memory_gib, profile.compute_capability, name)
        for name, profile in profiles.items()
        if profile.memory_gib is not None
        and profile.compute_capability is not None
        and profile.memory_gib <= gpu.memory_gib
        and profile.compute_capability <= gpu.compute_capability
    ]
    if not fitting:
        raise ConfigError(
            f"{gpu.name} ({gpu.memory_gib:.1f} GiB, compute capability {gpu.compute_capability}) is smaller or older "
            "than all profiles: if its compute capability is 7.5 or higher, try HARDWARE=t4 MICRO_BATCH=1 and see "
            "whether it fits; otherwise choose HARDWARE=cpu"
        )
    return max(fitting)[2]


def sequences_per_device(sequences: int, num_devices: int, *, unit: str = "sequences") -> int:
    """Sequences of one update on each device. Raises ConfigError if the devices cannot share them evenly."""
    if sequences % num_devices:
        raise ConfigError(
            f"an update's {sequences} {unit} cannot be shared evenly among {num_devices} devices: choose BATCH_PROMPTS "
            "(and ROLLOUT_N, UPDATES; BATCH_CHATS for SFT) so that they can"
        )
    return sequences // num_devices


def largest_micro_batch(sequences: int, at_most: int) -> int:
    """The largest divisor of a device's `sequences` up to `at_most`: verl wants passes of equal size."""
    return next(size for size in range(min(sequences, at_most), 0, -1) if sequences % size == 0)


def check_layout(
    *,
    num_devices: int,
    nnodes: int,
    tensor_parallel: int,
    sequences: int,
    micro_batch: int,
    ray_num_cpus: int | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
) -> None:
    """Raise ConfigError if the devices cannot share the model and an update's sequences evenly.

    num_devices: of one machine. sequences: of one update over all machines (prompts × answers, or chats). num_heads,
    num_kv_heads: None if the model is unknown. The error names the knob and values that would do.
    """
    fits, what = [size for size in range(1, num_devices + 1) if num_devices % size == 0], f"N_GPUS={num_devices}"
    if tensor_parallel in fits and num_heads is not None:
        # vLLM splits attention by heads; with more GPUs than key-value heads, each GPU gets a copy of one
        kv = num_kv_heads or num_heads
        fits = [size for size in fits if num_heads % size == 0 and (kv % size == 0 or size % kv == 0)]
        what = f"the model's {num_heads} attention heads ({kv} of keys and values)"
    if tensor_parallel not in fits:
        choices = " or ".join(map(str, fits))
        raise ConfigError(f"TENSOR_PARALLEL={tensor_parallel} does not divide {what}: choose {choices}")
    if ray_num_cpus is not None and ray_num_cpus < (needed := RAY_CPUS_PER_DEVICE * num_devices + RAY_CPUS_BESIDE):
        raise ConfigError(
            f"hardware.ray_num_cpus={ray_num_cpus} is too small for {num_devices} workers: verl reserves 3 CPUs for "
            f"each and 2 more, and would wait for ever. Add hardware.ray_num_cpus={needed} (the machine may have fewer "
            "cores)"
        )
    per_device = sequences_per_device(sequences, num_devices * nnodes)
    if per_device % micro_batch:
        raise ConfigError(
            f"an update's {sequences} sequences, {per_device} a device, are not a multiple of the micro-batch of "
            f"{micro_batch}: set MICRO_BATCH={largest_micro_batch(per_device, micro_batch)}, or choose another "
            "BATCH_PROMPTS, ROLLOUT_N or UPDATES (BATCH_CHATS for SFT)"
        )


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    detected = detect()
    for remark in detected.remarks:
        print(f"note: {remark}", file=sys.stderr)
    print(detected.name, detected.count)


if __name__ == "__main__":
    run_main(main)
