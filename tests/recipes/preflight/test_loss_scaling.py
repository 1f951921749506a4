"""What verl's FSDP engine does for float16, which the T4's profile asks for, works with FSDP2.

verl puts MixedPrecisionPolicy(param_dtype=float16), fully_shard and ShardedGradScaler together
(verl/workers/engine/fsdp/transformer_impl.py, _build_fsdp_module and optimizer_step). The scaler is off without an
NVIDIA GPU unless it is told of another device, which verl does not do: torch's parts run here, in verl's order.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_small_gradients_survive_float16_and_an_overflow_on_one_worker_skips_the_update_on_all(tmp_path: Path) -> None:
    program = Path(__file__).with_name("loss_scaling.py")
    workers = [
        subprocess.Popen([sys.executable, program, tmp_path, str(rank), "2"], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=120)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
    for rank in range(2):
        observed = json.loads((tmp_path / f"{rank}.json").read_text())
        # float16's least number is 6e-8: a loss of 1e-8 an answer has no gradient
        assert observed["unscaled"] == {"moved": False, "largest_gradient": 0, "scale": 1}
        assert observed["scaled"]["moved"] and observed["scaled"]["scale"] == 65536
        assert 1e-8 < observed["scaled"]["largest_gradient"] < 1e-6
        assert not observed["overflow"]["moved"] and observed["overflow"]["scale"] == 32768
