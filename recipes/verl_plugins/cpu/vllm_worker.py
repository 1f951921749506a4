"""The worker extension of verl's vLLM server on the CPU (vllm_worker_extension in configs/hardware/cpu.yaml).

verl passes engine_kwargs to the engine last (verl/workers/rollout/vllm_rollout/vllm_async_server.py:330 and :349), so
this class replaces verl's own extension, which it extends.
"""

from __future__ import annotations

from typing import Any

import torch
import vllm.model_executor.layers.utils
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension


def keep_plain_weights(layer: torch.nn.Module, remove_weight: bool) -> None:
    """Uses torch's own linear and keeps `layer.weight`.

    vLLM's CPU backend repacks every linear layer for oneDNN after loading and drops the weight
    (vllm/model_executor/layers/utils.py: dispatch_cpu_unquantized_gemm), so that verl's next full-weight update
    (verl/workers/rollout/vllm_rollout/utils.py:405) fails with "'Parameter' object has no attribute 'weight_loader'".
    """
    layer.cpu_linear = torch.nn.functional.linear


class CpuWorkerExtension(vLLMColocateWorkerExtension):
    """verl's extension on a vLLM that keeps its weights replaceable."""

    def __new__(cls, **kwargs: Any) -> CpuWorkerExtension:
        vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm = keep_plain_weights
        return super().__new__(cls, **kwargs)
