"""Backward passes in float16 as verl's FSDP engine makes them, on the CPU with gloo; run by torchrun.

    torchrun --standalone --nproc_per_node=2 tests/recipes/loss_scaling.py FOLDER

Writes FOLDER/<rank>.json: for a tiny loss without and with scaling, and one that overflows on the last worker, whether
the optimiser moved the weights, the largest gradient and the scale afterwards.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler


def main() -> None:
    torch.distributed.init_process_group("gloo")
    rank, workers = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 1))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.float16, reduce_dtype=torch.float32, output_dtype=torch.float32, cast_forward_inputs=True
    )
    fully_shard(model, mesh=init_device_mesh("cpu", (workers,)), mp_policy=policy)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e6)
    observed = {}
    for case, factor, scaled in (
        ("unscaled", 1e-8, False),
        ("scaled", 1e-8, True),
        ("overflow", 1e9 if rank == workers - 1 else 1e-8, True),
    ):
        scaler = ShardedGradScaler(device="cpu", enabled=scaled, growth_interval=400)
        before = [parameter.to_local().clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(4, 8)).sum() * factor).backward()
        if scaled:
            scaler.unscale_(optimizer)
        gradients = [parameter.grad.full_tensor().abs().max().item() for parameter in model.parameters()]
        scaler.step(optimizer)
        scaler.update()
        pairs = zip(before, model.parameters(), strict=True)
        observed[case] = {
            "moved": any(bool((old != new.to_local()).any()) for old, new in pairs),
            "largest_gradient": max(gradients),
            "scale": scaler.get_scale(),
        }
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(observed))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
