"""What a training notes of its origin."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from recipes.preflight.compose import compose
from recipes.running.run_record import reported_training, run_record, write_record

GRPO = compose("grpo", ["data.seed=7"])


def test_the_record_names_data_and_code_exactly(tmp_path: Path) -> None:
    data = tmp_path / "train.parquet"
    data.write_bytes(b"rows")
    record = run_record(run="demo", algorithm="grpo", model=Path("models/mine"), data=data, steps=25, config=GRPO)
    assert record["dataset_sha256"] == hashlib.sha256(b"rows").hexdigest()
    assert re.fullmatch(r"[0-9a-f]{64}", record["code_sha256"])
    # not in a folder without .git, such as an image
    assert record["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", record["commit"])
    assert (record["run"], record["algorithm"], record["steps"]) == ("demo", "grpo", 25)
    assert record["hyperparameters"]["seed"] == 7


@pytest.mark.parametrize(
    ("algorithm", "names"),
    [
        ("grpo", {"seed", "answers_per_prompt", "temperature", "kl_loss_coef"}),
        ("sft", set()),
        ("dpo", {"seed", "beta"}),
    ],
)
def test_each_algorithm_has_its_hyperparameters(tmp_path: Path, algorithm: str, names: set[str]) -> None:
    (tmp_path / "data").write_bytes(b"")
    config = compose(algorithm, [])
    record = run_record(
        run="demo", algorithm=algorithm, model=tmp_path, data=tmp_path / "data", steps=None, config=config
    )
    assert record["hyperparameters"].keys() == {"learning_rate", "batch_size", "lora_rank"} | names


def test_a_models_training_is_read_from_its_folder(tmp_path: Path) -> None:
    """A resumed training repeats the steps after its checkpoint, and a killed one leaves half a line."""
    (tmp_path / "metrics").mkdir()
    lines = [json.dumps({"step": step, "data": {"reward/score/mean": step / 10}}) for step in (1, 2, 3)]
    (tmp_path / "metrics/1.jsonl").write_text("\n".join(lines)[:-4])
    later = [{"step": 2, "data": {"reward/score/mean": 0.5}}, {"step": 2, "data": {"val/loss": 3.0}}]
    (tmp_path / "metrics/2.jsonl").write_text("".join(json.dumps(line) + "\n" for line in later))
    assert reported_training(tmp_path / "merged") is None  # no record: a model from elsewhere
    data = tmp_path / "train.parquet"
    data.write_bytes(b"rows")
    write_record(
        tmp_path, run_record(run="demo", algorithm="grpo", model=Path("mine"), data=data, steps=3, config=GRPO)
    )
    training = reported_training(tmp_path / "merged")
    assert training is not None
    assert training.curve == {1: 0.1, 2: 0.5}
    assert training.measure == "mean score of the answers"
    assert training.facts["answers per prompt"] == "4"
    assert training.facts["dataset SHA-256"] == hashlib.sha256(b"rows").hexdigest()[:12]
