"""Drops repetitions from the backend string of torch.distributed's process group.

verl builds f"cpu:gloo,{device}:{backend}" (verl/utils/distributed.py:63 and :89), which is "cpu:gloo,cpu:gloo" here;
torch refuses it ("Duplicate device type cpu").
"""

from __future__ import annotations

import functools
from typing import Any

import torch.distributed


def without_repetitions(backend: str) -> str:
    """`cpu:gloo,cpu:gloo` becomes `cpu:gloo`; any other string stays as it is."""
    return ",".join(dict.fromkeys(backend.split(",")))


def install() -> None:
    """Called once, when recipes.verl_plugins.cpu is imported."""
    original = torch.distributed.init_process_group

    @functools.wraps(original)
    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        original(without_repetitions(backend) if isinstance(backend, str) else backend, *args, **kwargs)

    torch.distributed.init_process_group = init_process_group
