"""How wandb ends with a training, and the table of samples that it gets."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import psutil, sys
from verl.utils.tracking import Tracking
from recipes.verl_plugins.wandb_extras import end_wandb_with_the_training, log_samples

end_wandb_with_the_training()
tracking = Tracking("tsc-grpo", "test", ["wandb"], config={"trainer": {}})
answers = [{"text": "yes", "score": 0.5}, {"text": "no", "score": -0.5}]
log_samples(3, [{"sample_id": "a", "prompt": "queue 4", "outcomes": {"yes": 1.0, "no": 2.0}, "answers": answers}])
tracking.log({"reward": 0.5}, step=3)
tracking.finish()
# as Ray does with the children of a worker that ends
for child in psutil.Process().children(recursive=True):
    child.kill()
"""


def test_a_training_that_went_well_ends_without_a_traceback_and_its_samples_are_a_table(
    repo_root: Path, tmp_path: Path
) -> None:
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=repo_root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    [table] = tmp_path.glob("wandb/offline-run-*/files/media/table/val/samples*.table.json")
    logged = json.loads(table.read_text())
    assert logged["columns"] == ["step", "sample", "prompt", "cost of yes", "cost of no", "answer", "score"]
    assert logged["data"] == [[3, "a", "queue 4", 1.0, 2.0, "yes", 0.5], [3, "a", "queue 4", 1.0, 2.0, "no", -0.5]]
