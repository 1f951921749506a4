"""Backward passes in float16 as verl's FSDP engine makes them, on the CPU with gloo; one process a worker.

    python tests/recipes/preflight/loss_scaling.py FOLDER RANK WORKERS

Writes FOLDER/<rank>.json: for a tiny loss without and with scaling, and one that overflows on the last worker, whether
the optimiser moved the weights, the largest gradient and the scale afterwards.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler


def main() -> None:
    folder, rank, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/met", rank=rank, world_size=workers)
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
    (folder / f"{rank}.json").write_text(json.dumps(observed))
    # The first to end would close a connection that another still reads from.
    while not all((folder / f"{other}.json").exists() for other in range(workers)):
        time.sleep(0.05)
    # torch's threads can still run while Python takes it down, which then ends the process with SIGABRT now and then.
    os._exit(0)


if __name__ == "__main__":
    main()
