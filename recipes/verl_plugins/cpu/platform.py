"""The CPU as a verl platform, through verl's plug-in registry (verl/plugin/platform)."""

from __future__ import annotations

import os
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


def is_selected() -> bool:
    """Whether VERL_PLATFORM selects the CPU; verl's auto-detection never does."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


class CpuDeviceModule(types.ModuleType):
    """What verl expects of `torch.cuda`. Stream, current_stream, synchronize and others come from `torch.cpu`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def current_device() -> str:
        return "cpu"

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def set_device(_device: Any = None) -> None:
        """There is one device."""

    @staticmethod
    def get_device_name(_device: Any = None) -> str:
        return "CPU"  # the key that verl/utils/flops_counter.py knows

    @staticmethod
    def empty_cache() -> None:
        """Nothing is cached."""

    @staticmethod
    def ipc_collect() -> None:
        """There are no IPC handles."""

    @staticmethod
    def memory_allocated(_device: Any = None) -> int:
        """Resident set of this process in bytes, so that verl's perf/max_memory_* mean something here."""
        return psutil.Process().memory_info().rss

    memory_reserved = max_memory_allocated = max_memory_reserved = memory_allocated

    @staticmethod
    def reset_peak_memory_stats(_device: Any = None) -> None:
        """The resident set has no peak counter to reset."""

    @staticmethod
    def mem_get_info(_device: Any = None) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    @staticmethod
    def set_per_process_memory_fraction(*_args: Any, **_kwargs: Any) -> None:
        """Main memory is not divided."""

    @staticmethod
    def get_rng_state(_device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, _device: Any = None) -> None:
        torch.set_rng_state(state)


_DEVICE_MODULE = CpuDeviceModule(f"{__name__}.device")


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """One device, gloo, and Ray resources under the name verl counts."""

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> CpuDeviceModule:
        return _DEVICE_MODULE

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return is_selected()

    def current_device(self) -> str:
        # verl writes `.to(get_device_id())` and `device=get_device_id()`; an int would mean an accelerator
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: Any) -> None:
        """There is one device."""

    def synchronize(self, device_index: int | None = None) -> None:
        """CPU operations are synchronous."""

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """There is no caching allocator to configure."""

    def empty_cache(self) -> None:
        """Nothing is cached."""

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        """No device profiler."""

    def profiler_stop(self) -> None:
        """No device profiler."""

    def ray_resource_name(self) -> str:
        # ResourcePoolManager counts GPU and NPU only (verl/single_controller/ray/base.py:226), so every CPU worker
        # holds one pretended "GPU" of Ray's (ray_kwargs.ray_init.num_gpus in the hardware file).
        return "GPU"

    def ray_resource_options(self, num_gpus: float) -> dict[str, Any]:
        return {"num_gpus": num_gpus}

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False  # so verl hands weights to the vLLM worker through shared memory

    def cudart(self) -> None:
        return None
