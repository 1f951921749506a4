"""The profiles are complete and explained, and a machine's GPUs find theirs."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from recipes.preflight import hardware
from recipes.preflight.hardware import (
    Hardware,
    check_driver,
    check_layout,
    compute_capability,
    detect,
    hardware_names,
    largest_micro_batch,
    load_hardware,
)
from tsc.errors import ConfigError

PROFILES = ["a100_40g", "a100_80g", "a10g", "cpu", "h100", "h200", "l4", "t4"]
# What nvidia-smi answers to --query-gpu=index,uuid,name,memory.total,compute_cap,mig.mode.current,driver_version
COLAB_T4 = "0, GPU-9bcd1b62-11d6-6d0e-e1a8-6d1f8e6bd3c0, Tesla T4, 15360 MiB, 7.5, [N/A], 580.82.07\n"
KAGGLE_T4 = (
    "0, GPU-3f1a0b52-7c0e-4a6f-9a51-0c2f6a1d5e11, Tesla T4, 15360 MiB, 7.5, [N/A], 580.105.08\n"
    "1, GPU-8d7c6b5a-1e2f-4a3b-8c4d-5e6f7a8b9c0d, Tesla T4, 15360 MiB, 7.5, [N/A], 580.105.08\n"
)
A100_80 = "0, GPU-11111111-aaaa, NVIDIA A100-SXM4-80GB, 81920 MiB, 8.0, Disabled, 580.65.06\n"
DRIVER_GONE = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
    "driver is installed and running.\n"
)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts an nvidia-smi that prints a recorded answer on PATH; without it there is none."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def answer(text: str, status: int = 0, least_arguments: str = "--query-gpu") -> Path:
        tool = folder / "nvidia-smi"
        shell = f'#!/bin/sh\ncase "$*" in *{least_arguments}*) ;; *) exit 2 ;; esac\n'
        tool.write_text(f"{shell}while IFS= read -r line; do echo \"$line\"; done <<'END'\n{text}END\nexit {status}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        return tool

    return answer


def test_every_device_of_the_issue_has_a_profile_that_loads() -> None:
    assert hardware_names() == PROFILES
    for name in PROFILES:
        profile = load_hardware(name)
        assert profile.name == name
        assert (profile.device == "cpu") == (name == "cpu")
        if name != "cpu":
            facts = (profile.memory_gib, profile.compute_capability, profile.peak_tflops, profile.nvidia_smi_name)
            assert None not in facts and profile.memory_bandwidth_gb_per_s is not None


def test_all_profiles_have_the_same_keys_and_override_none_that_their_base_lacks() -> None:
    def keys(name: str) -> set[str]:
        return set(yaml.safe_load((hardware.FOLDER / f"{name}.yaml").read_text()))

    assert keys("cpu") == keys("_gpu") == set(Hardware.model_fields)
    for name in PROFILES:
        if name != "cpu":
            assert keys(name) - {"defaults"} <= keys("_gpu")


def test_no_profile_repeats_a_value_of_its_base() -> None:
    base = yaml.safe_load((hardware.FOLDER / "_gpu.yaml").read_text())
    for name in PROFILES:
        if name != "cpu":
            own = yaml.safe_load((hardware.FOLDER / f"{name}.yaml").read_text())
            repeated = [key for key, value in own.items() if key in base and base[key] == value]
            assert not repeated, (name, repeated)


@pytest.mark.parametrize("file", sorted(hardware.FOLDER.glob("*.yaml")), ids=lambda file: str(file.stem))
def test_every_value_has_its_reason_above_it(file: Path) -> None:
    blocks = [block for block in re.split(r"\n\s*\n", file.read_text()) if block.strip()]
    for block in blocks[1:] if file.name != "_gpu.yaml" else blocks:
        lines = block.splitlines()
        values = [line for line in lines if re.match(r"\w+:", line)]
        if values and values != ["defaults:"]:
            assert lines[0].startswith("# ") and len(lines[0]) > 12, f"{file.name} does not say why: {values}"
        # a reason stands above its values, not somewhere between them
        first = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
        assert all(not line.startswith("#") for line in lines[first:]), f"{file.name}: {block}"


def test_what_the_base_calls_verls_default_is_verls_default() -> None:
    from importlib.util import find_spec

    verl = find_spec("verl")
    assert verl is not None and verl.submodule_search_locations is not None
    folder = Path(verl.submodule_search_locations[0]) / "trainer" / "config"
    rollout = yaml.safe_load((folder / "rollout/rollout.yaml").read_text())
    engine = yaml.safe_load((folder / "engine/fsdp.yaml").read_text())
    base = load_hardware("h100")
    text = (hardware.FOLDER / "_gpu.yaml").read_text()
    same = {
        "gpu_memory_utilization": rollout["gpu_memory_utilization"],
        "enforce_eager": rollout["enforce_eager"],
        "sleep_mode": rollout["free_cache_engine"],
        "layered_summon": rollout["layered_summon"],
        "rollout_dtype": rollout["dtype"],
        "num_agent_workers": rollout["agent"]["num_workers"],
        "model_dtype": engine["model_dtype"],
        "param_offload": engine["param_offload"],
        "optimizer_offload": engine["optimizer_offload"],
        "reshard_after_forward": engine["reshard_after_forward"],
        "torch_compile": engine["use_torch_compile"],
    }
    for key, default in same.items():
        block = next(block for block in text.split("\n\n") if re.search(rf"^{key}:", block, re.MULTILINE))
        assert getattr(base, key) == default and "verl's default" in block, key


def test_a_wrong_profile_names_file_key_value_and_what_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in hardware.FOLDER.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text())
    monkeypatch.setattr(hardware, "FOLDER", tmp_path)
    text = (tmp_path / "t4.yaml").read_text()
    (tmp_path / "t4.yaml").write_text(text.replace("param_dtype: fp16", "param_dtype: fp8"))
    with pytest.raises(ConfigError, match=r"t4\.yaml: param_dtype is 'fp8': input should be 'fp32', 'bf16' or 'fp16'"):
        load_hardware("t4")
    (tmp_path / "t4.yaml").write_text(text + "optimizer_ofload: true\n")
    with pytest.raises(ConfigError, match=r"unknown key 'optimizer_ofload': did you mean 'optimizer_offload'"):
        load_hardware("t4")
    with pytest.raises(ConfigError, match=r"HARDWARE=a100_80 is unknown: did you mean 'a100_80g'\? choose auto"):
        load_hardware("a100_80")
    with pytest.raises(ConfigError, match="HARDWARE=_gpu is unknown"):
        load_hardware("_gpu")


def test_turing_computes_in_float16_and_all_later_gpus_in_bfloat16() -> None:
    for name in PROFILES:
        profile = load_hardware(name)
        if profile.compute_capability is not None:
            types = (profile.param_dtype, profile.rollout_dtype)
            assert types == (("fp16", "float16") if profile.compute_capability < 8 else ("bf16", "bfloat16")), name
            # Adam's epsilon of 1e-8 is 0 in float16
            assert profile.model_dtype == "fp32"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("Tesla T4, 15360 MiB, 7.5, [N/A]", "t4"),
        ("NVIDIA L4, 23034 MiB, 8.9, [N/A]", "l4"),
        ("NVIDIA A10G, 23028 MiB, 8.6, [N/A]", "a10g"),
        ("NVIDIA A100-SXM4-40GB, 40960 MiB, 8.0, Disabled", "a100_40g"),
        ("NVIDIA A100-PCIE-40GB, 40960 MiB, 8.0, Disabled", "a100_40g"),
        ("NVIDIA A100-SXM4-80GB, 81920 MiB, 8.0, Disabled", "a100_80g"),
        ("NVIDIA A100 80GB PCIe, 81920 MiB, 8.0, Disabled", "a100_80g"),
        ("NVIDIA H100 80GB HBM3, 81559 MiB, 9.0, Disabled", "h100"),
        ("NVIDIA H100 PCIe, 81559 MiB, 9.0, Disabled", "h100"),
        ("NVIDIA H200, 143771 MiB, 9.0, Disabled", "h200"),
    ],
)
def test_a_gpu_is_known_by_its_name(line: str, name: str, nvidia_smi: Callable[..., Path]) -> None:
    nvidia_smi(f"0, GPU-0, {line}, 580.65.06\n")
    assert detect() == hardware.Detected(name=name, count=1)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("NVIDIA L40S, 46068 MiB, 8.9, [N/A]", "a100_40g"),
        ("NVIDIA GeForce RTX 4090, 24564 MiB, 8.9, [N/A]", "a10g"),
        ("NVIDIA RTX A4000, 16376 MiB, 8.6, [N/A]", "t4"),
        ("NVIDIA H100 NVL, 95830 MiB, 9.0, Disabled", "h100"),
        ("NVIDIA B200, 183359 MiB, 10.0, Disabled", "h200"),
        ("Quadro RTX 8000, 49152 MiB, 7.5, [N/A]", "t4"),
    ],
)
def test_an_unknown_gpu_gets_the_nearest_smaller_profile_and_is_told(
    line: str, name: str, nvidia_smi: Callable[..., Path]
) -> None:
    nvidia_smi(f"0, GPU-0, {line}, 580.65.06\n")
    detected = detect()
    assert detected.name == name
    assert line.partition(",")[0] in detected.remarks[0] and f"taking {name}" in detected.remarks[0]


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        (DRIVER_GONE, 9, r"fails with status 9 \(NVIDIA-SMI has failed .*HARDWARE=cpu"),
        ("Failed to initialize NVML: Driver/library version mismatch\n", 18, r"version mismatch.*repair the driver"),
        ("No devices were found\n", 6, r"finds no GPU: choose HARDWARE=cpu"),
        ('Field "compute_cap" is not a valid field to query.\n', 2, r"status 2"),
        (
            COLAB_T4 + "1, GPU-1, NVIDIA L4, 23034 MiB, 8.9, [N/A], 580.82.07\n",
            0,
            r"differ \(0: Tesla T4.*1: NVIDIA L4",
        ),
        (A100_80.replace("Disabled", "Enabled"), 0, r"divided into MIG instances"),
        (
            "0, GPU-0, NVIDIA A100-SXM4-80GB, [Insufficient Permissions], 8.0, Disabled, 580.65.06\n",
            0,
            r"nvidia-smi says",
        ),
        ("0, GPU-0, Tesla V100-SXM2-16GB, 16384 MiB, 7.0, [N/A], 580.65.06\n", 0, r"smaller or older than all"),
        ("0, GPU-0, NVIDIA GeForce RTX 3060, 12288 MiB, 8.6, [N/A], 580.65.06\n", 0, r"HARDWARE=t4 MICRO_BATCH=1"),
    ],
)
def test_gpus_that_cannot_be_used_are_an_error_with_a_remedy(
    text: str, status: int, message: str, nvidia_smi: Callable[..., Path]
) -> None:
    nvidia_smi(text, status)
    with pytest.raises(ConfigError, match=message):
        detect()


def test_an_old_driver_is_an_error(nvidia_smi: Callable[..., Path]) -> None:
    nvidia_smi(COLAB_T4)
    check_driver()
    nvidia_smi(COLAB_T4.replace("580.82.07", "550.54.15"))
    with pytest.raises(ConfigError, match="550.54.15 is older than 580.*update it"):
        check_driver()


def test_the_capability_is_that_of_the_first_visible_gpu(
    nvidia_smi: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(COLAB_T4)
    assert compute_capability() == 7.5
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="hides all GPUs"):
        compute_capability()


def test_cuda_visible_devices_decides_how_many_gpus_count(
    nvidia_smi: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(KAGGLE_T4)
    assert detect() == hardware.Detected(name="t4", count=2)
    for value, count in (("1", 1), ("1,0", 2), ("GPU-8d7c", 1), ("0,7,1", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert detect().count == count, value
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (detect().name, "hides all GPUs" in detect().remarks[0]) == ("cpu", True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-5c7e")
    with pytest.raises(ConfigError, match="names an MIG instance"):
        detect()


def test_the_command_prints_name_and_count_within_a_second_without_torch(nvidia_smi: Callable[..., Path]) -> None:
    tool = nvidia_smi(KAGGLE_T4)
    script = str(hardware.FOLDER.parents[1] / "recipes" / "preflight" / "hardware.py")
    environment = {**os.environ, "PATH": str(tool.parent)}
    command = [sys.executable, "-X", "importtime", script]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == "t4 2\n"
    imported = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert "pydantic" in imported and not imported & {"torch", "verl", "vllm", "ray", "transformers"}
    tool.unlink()
    assert subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True).stdout == "cpu 1\n"


def test_the_largest_micro_batch_divides_evenly() -> None:
    assert [largest_micro_batch(sequences, 8) for sequences in (512, 12, 7, 3, 17)] == [8, 6, 7, 3, 1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, None),
        ({"tensor_parallel": 4}, None),
        ({"tensor_parallel": 3}, r"TENSOR_PARALLEL=3 does not divide N_GPUS=8: choose 1 or 2 or 4 or 8"),
        # Qwen2.5-0.5B: 14 heads, of which 2 of keys and values
        ({"tensor_parallel": 4, "num_heads": 14, "num_kv_heads": 2}, r"14 attention heads \(2 of keys.*choose 1 or 2"),
        ({"tensor_parallel": 2, "num_heads": 14, "num_kv_heads": 2}, None),
        # Qwen2.5-1.5B: 12 heads, of which 2 of keys and values; vLLM copies them where there are more GPUs
        ({"tensor_parallel": 4, "num_heads": 12, "num_kv_heads": 2}, None),
        ({"sequences": 500}, r"500 sequences cannot be shared evenly among 8 devices"),
        ({"micro_batch": 48}, r"64 a device.*set MICRO_BATCH=32"),
        ({"nnodes": 2, "micro_batch": 64}, r"32 a device.*set MICRO_BATCH=32"),
        ({"ray_num_cpus": 8}, r"Add hardware.ray_num_cpus=26"),
        ({"ray_num_cpus": 26}, None),
    ],
)
def test_devices_that_cannot_share_the_work_evenly_are_refused(changed: dict[str, int], message: str | None) -> None:
    layout = {"num_devices": 8, "nnodes": 1, "tensor_parallel": 1, "sequences": 512, "micro_batch": 64, **changed}
    if message is None:
        check_layout(**layout)
    else:
        with pytest.raises(ConfigError, match=message):
            check_layout(**layout)
