"""Reading the shards of a checkpoint, and exports that meet."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.models.export_model import export, read_shards
from tsc.errors import ConfigError
from tsc.files import folder_lock

# what FSDP2 gives each of two ranks: a weight in two rows, one row that the second rank has nothing of, and a copy
WRITE_SHARD = """
import sys
import torch
from torch.distributed import device_mesh, init_process_group, tensor

folder, rank = sys.argv[1], int(sys.argv[2])
init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
mesh = device_mesh.init_device_mesh("cpu", (2,))
state = {
    "weight": tensor.distribute_tensor(torch.arange(12.0).reshape(4, 3), mesh, [tensor.Shard(0)]),
    "short": tensor.distribute_tensor(torch.ones(1, 3), mesh, [tensor.Shard(0)]),
    "copy": tensor.distribute_tensor(torch.ones(2), mesh, [tensor.Replicate()]),
    "plain": torch.zeros(2, dtype=torch.bfloat16),
}
torch.save(state, f"{folder}/model_world_size_2_rank_{rank}.pt")
"""


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._path),)


def write_config(folder: Path, num_ranks: int) -> None:
    (folder / "fsdp_config.json").write_text(json.dumps({"world_size": num_ranks}))


def test_the_shards_of_two_ranks_are_put_together(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITE_SHARD, str(tmp_path), str(rank)]) for rank in (0, 1)]
    assert [writer.wait(timeout=200) for writer in writers] == [0, 0]
    write_config(tmp_path, 2)
    whole = read_shards(tmp_path)
    assert torch.equal(whole["weight"], torch.arange(12.0).reshape(4, 3))
    assert torch.equal(whole["short"], torch.ones(1, 3))
    assert torch.equal(whole["copy"], torch.ones(2))
    assert whole["plain"].dtype == torch.bfloat16


def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run_it(tmp_path: Path) -> None:
    write_config(tmp_path, 1)
    state = {"weight": torch.ones(2), "more": Malicious(tmp_path / "was_here")}
    torch.save(state, tmp_path / "model_world_size_1_rank_0.pt")
    with pytest.raises(ConfigError, match="rank_0.pt contains more than tensors, which might run code of others"):
        read_shards(tmp_path)
    assert not (tmp_path / "was_here").exists()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_config(tmp_path, 2)
    torch.save({}, tmp_path / "model_world_size_2_rank_0.pt")
    with pytest.raises(ConfigError, match=r"only the shards of ranks \[0\] of 2"):
        read_shards(tmp_path)


def test_two_exports_into_one_folder_do_not_meet_but_a_training_run_may_hold_it(tmp_path: Path) -> None:
    checkpoints, out = tmp_path / "checkpoints", tmp_path / "out"
    (checkpoints / "global_step_1").mkdir(parents=True)
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("1")
    write_config(checkpoints / "global_step_1", 1)
    refusal = pytest.raises(ConfigError, match=f"cannot write models to {out}: process {os.getpid()} on")
    with folder_lock(out, "models", lock_file=".export.lock"), refusal:
        export(checkpoints, "", tmp_path / "base", out)
    with folder_lock(out, "the training run"), pytest.raises(ConfigError, match=r"only the shards of ranks \[\] of 1"):
        export(checkpoints, "", tmp_path / "base", out)
