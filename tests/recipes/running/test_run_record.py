"""What a training notes of its origin."""

import hashlib
import re
from pathlib import Path

from recipes.running.run_record import run_record


def test_the_record_names_data_and_code_exactly(tmp_path: Path) -> None:
    data = tmp_path / "train.parquet"
    data.write_bytes(b"rows")
    record = run_record(run="demo", algorithm="grpo", model=Path("models/mine"), data=data, steps=25)
    assert record["dataset_sha256"] == hashlib.sha256(b"rows").hexdigest()
    assert re.fullmatch(r"[0-9a-f]{64}", record["code_sha256"])
    # not in a folder without .git, such as an image
    assert record["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", record["commit"])
    assert (record["run"], record["algorithm"], record["steps"]) == ("demo", "grpo", 25)
