"""Bytes of all living tensors, and their peak: on a CPU what torch.cuda.max_memory_allocated tells on a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within the block, `live` and `peak` are the bytes of the storages made in it, views counted once.

    What a kernel allocates and frees inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, DTensor):
                tensor = tensor.to_local()
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self._see((tensor.values() if tensor.is_nested else tensor).untyped_storage())
        return result

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that were made before the block, whose views would otherwise count as new."""
        for tensor in tensors:
            self._see(tensor.untyped_storage())

    def restart_peak(self) -> None:
        self.peak = self.live

    def resized(self, storage: torch.UntypedStorage) -> None:
        self._see(storage)
        self.live += storage.nbytes() - self._sizes[storage._cdata]
        self._sizes[storage._cdata] = storage.nbytes()
        self.peak = max(self.peak, self.live)

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)
