"""Makes torch, Triton and vLLM take this machine for one with a given GPU, in this process.

vLLM then decides as it would there: data types, attention, sampler, CUDA graphs. Nothing can run on the GPU.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from recipes.preflight.hardware import Hardware

# Shared memory that one block may have (bytes), by compute capability: CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability".
SHARED_MEMORY = {(7, 5): 64 << 10, (8, 0): 163 << 10, (8, 6): 99 << 10, (8, 9): 99 << 10, (9, 0): 227 << 10}
GPUS = 8


def capability_of(hardware: Hardware) -> tuple[int, int]:
    """Major and minor number, e.g. (7, 5)."""
    assert hardware.compute_capability is not None
    major, _, minor = f"{hardware.compute_capability:.1f}".partition(".")
    return int(major), int(minor)


def pretend(hardware: Hardware) -> None:
    """Call it before anything imports vllm."""
    import triton.backends
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    capability = capability_of(hardware)
    assert hardware.memory_gib is not None
    memory_bytes = int(hardware.memory_gib * 2**30)
    triton.backends.backends["nvidia"].driver.is_active = staticmethod(lambda: True)
    driver.set_active(_TritonDriver(GPUTarget("cuda", capability[0] * 10 + capability[1], 32), capability))

    import torch

    cuda: Any = torch.cuda
    properties = SimpleNamespace(
        name=hardware.device_name,
        major=capability[0],
        minor=capability[1],
        total_memory=memory_bytes,
        multi_processor_count=100,
        shared_memory_per_block_optin=SHARED_MEMORY[capability],
        shared_memory_per_multiprocessor=SHARED_MEMORY[capability],
        warp_size=32,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=1024,
        L2_cache_size=4 << 20,
    )
    cuda.get_device_name = lambda device=None: hardware.device_name
    cuda.get_device_properties = lambda device=None: properties
    cuda.get_device_capability = lambda device=None: capability
    cuda.is_available = lambda: True
    cuda.device_count = lambda: GPUS
    cuda.current_device = lambda: 0

    import vllm.platforms
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    class Pretended(NonNvmlCudaPlatform):  # type: ignore[misc]  # vllm of the GPU set has no types here
        get_device_capability = classmethod(lambda cls, device_id=0: DeviceCapability(*capability))
        get_device_name = classmethod(lambda cls, device_id=0: hardware.device_name)
        get_device_total_memory = classmethod(lambda cls, device_id=0: memory_bytes)
        is_fully_connected = classmethod(lambda cls, ids: True)
        device_count = classmethod(lambda cls: GPUS)
        num_compute_units = classmethod(lambda cls, device_id=0: properties.multi_processor_count)
        get_device_uuid = classmethod(lambda cls, device_id=0: "GPU-0")

    vllm.platforms._current_platform = Pretended()


class _TritonDriver:
    """What Triton's compiler asks the driver for."""

    utils = None
    launcher_cls = None

    def __init__(self, target: Any, capability: tuple[int, int]) -> None:
        self._target = target
        self._capability = capability

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cuda", 0)

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return self._capability

    def get_benchmarker(self) -> None:
        return None
