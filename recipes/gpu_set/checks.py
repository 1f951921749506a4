"""Ask the installed GPU set what it would do on the GPUs of configs/hardware. scripts/check_gpu_set.sh calls it.

Example:
    .venv_gpu/bin/python recipes/gpu_set/checks.py --profiles t4 h100

Each check runs in a process of its own, because it pretends to have the GPU. Prints a table of profiles and checks, and
what failed. Exit status 1 if something failed.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from recipes.gpu_set.launch_config import largest_model
from recipes.preflight.hardware import hardware_names, load_hardware
from recipes.running.supervise import raised_errors
from tsc.errors import ConfigError, run_main
from tsc.files import REPO_ROOT

LIMIT_S = 900
# What vLLM's libraries ask of the driver's library when they are loaded.
DRIVER_FUNCTIONS = (
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuGetErrorString",
    "cuGetProcAddress_v2",
    "cuMemAddressFree",
    "cuMemAddressReserve",
    "cuMemCreate",
    "cuMemGetAllocationGranularity",
    "cuMemMap",
    "cuMemRelease",
    "cuMemSetAccess",
    "cuMemUnmap",
    "cuPointerGetAttribute",
    "cuTensorMapEncodeTiled",
)
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


# Module and function of each. It gets a profile and a model, returns what to show, and raises an error if it fails.
# Only the process of a check imports it, because a check chooses verl's platform or pretends to have the GPU.
CHECKS = {
    "rollout": ("vllm_choices", "check_rollout"),
    "evaluation": ("vllm_choices", "check_evaluation"),
    "kernels": ("triton_kernels", "check"),
    "update": ("update_memory", "check"),
    "adapter": ("adapter_transfer", "check"),
}
# The same for all GPUs: it runs once.
OF_ALL = ("adapter",)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpus = [name for name in hardware_names() if load_hardware(name).device == "cuda"]
    parser.add_argument("--profiles", nargs="+", choices=gpus, default=gpus, metavar="NAME", help=", ".join(gpus))
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS), help="(default: all)")
    parser.add_argument("--one", nargs=3, metavar=("CHECK", "PROFILE", "MODEL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return _this_process(*arguments.one)
    rows, faults = [], []
    with tempfile.TemporaryDirectory() as folder:
        environment = _environment(Path(folder))
        for profile in arguments.profiles:
            model = largest_model(profile)
            cells = [profile, model]
            for name in arguments.checks:
                if name in OF_ALL and profile != arguments.profiles[0]:
                    cells.append("as above")
                    continue
                begin_s = time.monotonic()
                shown, fault = _in_process(name, profile, model, environment)
                print(f"{profile} {name}: {shown} ({time.monotonic() - begin_s:.0f} s)", flush=True)
                cells.append(shown)
                faults += [f"{profile} {name} of {model}: {fault}"] if fault else []
            rows.append(cells)
    print("\n" + table(["profile", "largest model", *arguments.checks], rows))
    for fault in faults:
        print(f"FAILED: {fault}", file=sys.stderr)
    return 1 if faults else 0


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def _in_process(name: str, profile: str, model: str, environment: dict[str, str]) -> tuple[str, str]:
    """What the check shows, and its fault or nothing."""
    command = [sys.executable, __file__, "--one", name, profile, model]
    try:
        done = subprocess.run(
            command, cwd=REPO_ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return "failed", f"no result within {LIMIT_S} s"
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode == 0:
        return str(json.loads(last)), ""
    said = raised_errors(done.stderr) or done.stderr.strip().splitlines()[-3:]
    return "failed", " ".join(said) or f"exit status {done.returncode}"


def _this_process(name: str, profile: str, model: str) -> int:
    module, function = CHECKS[name]
    shown = getattr(importlib.import_module(f"recipes.gpu_set.{module}"), function)(profile, model)
    print("\n" + json.dumps(shown))
    return 0


def _environment(folder: Path) -> dict[str, str]:
    """For the checks: without a network, and with a driver's library that can be loaded."""
    environment = os.environ | {
        "PYTHONPATH": str(REPO_ROOT),
        "CUDA_VISIBLE_DEVICES": "0",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "VLLM_CACHE_ROOT": str(folder / "vllm"),
    }
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        library = folder / "libcuda.so.1"
        functions = "\n".join(f"int {name}(void) {{ return {NO_DEVICE}; }}" for name in DRIVER_FUNCTIONS)
        try:
            subprocess.run(
                ["cc", "-shared", "-fPIC", "-x", "c", "-o", library, "-"], input=functions, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise ConfigError(
                f"no C compiler, which a machine without NVIDIA's driver needs here ({error}): apt-get install gcc"
            ) from error
        environment["LD_LIBRARY_PATH"] = f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    return environment


if __name__ == "__main__":
    run_main(main)
