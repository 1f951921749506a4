"""Keeps FSDP2's CPU offload from pinning memory.

verl builds a separate reference policy (LoRA off, KL on) for forward passes only, and asks for
CPUOffloadPolicy(pin_memory=True) then (verl/workers/engine/fsdp/transformer_impl.py:462). torch cannot pin memory
without an accelerator ("Cannot access accelerator device when none is available.").
"""

from __future__ import annotations

import torch.distributed.fsdp


def install() -> None:
    """Called once, when recipes.verl_plugins.cpu is imported."""
    base = torch.distributed.fsdp.CPUOffloadPolicy

    class CPUOffloadPolicy(base):  # type: ignore[misc, valid-type]
        """The same policy, which never pins memory."""

        def __init__(self, pin_memory: bool = False) -> None:
            super().__init__(pin_memory=False)

    torch.distributed.fsdp.CPUOffloadPolicy = CPUOffloadPolicy
