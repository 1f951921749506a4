"""Students as a user fits and evaluates them."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes.serving.model_choice import local_model
from tsc.junction.decision import Decision
from tsc.junction.observation import Observation
from tsc.rules.student import Student, features, load_student

Samples = list[dict[str, Any]]


def fit(repo_root: Path, data: Path, out: Path, *, teacher: str = "labels") -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(repo_root / "scripts/fit_student.py"), "--data", str(data), "--out", str(out)]
    return subprocess.run([*program, "--teacher", teacher], capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def fitted(
    repo_root: Path, small_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path]:
    out = tmp_path_factory.mktemp("student") / "student.json"
    return fit(repo_root, small_dataset, out), out


def test_a_student_of_labels_learns_them_and_says_how_well(
    small_dataset: Path, fitted: tuple[subprocess.CompletedProcess[str], Path]
) -> None:
    done, out = fitted
    assert done.returncode == 0, done.stderr
    train = re.search(
        r"agreement on training samples: (.+)%, weighted (.+)% \(the more frequent answer: (.+)%; integers and floats "
        r"agree on (.+)%\)",
        done.stdout,
    )
    assert train is not None, done.stdout
    agreement, weighted, majority, of_floats = map(float, train.groups())
    assert min(agreement, weighted) > majority + 10 and of_floats > 95
    held_out = re.search(r"agreement on held-out samples: (.+?)%", done.stdout)
    assert held_out is not None and load_student(out).agreement == pytest.approx(float(held_out[1]) / 100, abs=6e-4)
    assert done.stdout.endswith(f"{out}\n")
    samples = json.loads((small_dataset / "grpo_dataset.json").read_text())
    with_answer = [sample for sample in samples if "expert_decision" in sample]
    num_val = sum(sample["split"] == "val" for sample in with_answer)
    counts = f"{len(with_answer) - num_val} samples to learn from, {num_val} of 1 held-out episode(s); "
    assert counts + f"{len(samples) - len(with_answer)} without" in done.stdout


def test_the_same_dataset_gives_the_same_bytes(
    repo_root: Path, small_dataset: Path, fitted: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path
) -> None:
    assert fit(repo_root, small_dataset, tmp_path / "again.json").returncode == 0
    assert (tmp_path / "again.json").read_bytes() == fitted[1].read_bytes()


def test_a_student_takes_part_in_an_evaluation_by_its_name(
    repo_root: Path, short_scenario: Path, fitted: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path
) -> None:
    program = [sys.executable, str(repo_root / "scripts/evaluate.py"), "--scenarios", str(short_scenario)]
    program += ["--controllers", "random", f"student:mine={fitted[1]}", "--reference", "random", "--seeds", "1"]
    program += ["--out", str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    by_chance, mine = sorted(records, key=lambda record: record["kind"])
    assert (mine["controller"], mine["kind"]) == ("mine", "student") and mine["decisions"] > 20
    assert mine["mean_queue_veh"] < by_chance["mean_queue_veh"]
    assert "A small network (student) that copies labels." in (tmp_path / "report.html").read_text()


def without_observation(samples: Samples) -> None:
    del samples[1]["observation"]


def of_one_episode(samples: Samples) -> None:
    samples[:] = [{**sample, "split": None} for sample in samples if sample["id"].startswith("four_way-seed0001-")]


def yes_is_always_better(samples: Samples) -> None:
    for sample in samples:
        sample["outcomes"].update(yes=1.0, no=2.0)
        sample["expert_decision"] = "yes"


def without_labels(samples: Samples) -> None:
    for sample in samples:
        sample.pop("expert_decision", None)
        del sample["outcomes"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (list.clear, "does not contain any sample"),
        (without_observation, "sample 1: observation is not as generate_dataset writes it"),
        (of_one_episode, "give a dataset with two episodes or more"),
        (yes_is_always_better, "the teacher says 'yes' to all"),
        (without_labels, "nothing is left to learn from"),
    ],
)
def test_a_dataset_that_teaches_nothing_is_refused(
    repo_root: Path, small_dataset: Path, tmp_path: Path, change: Callable[[Samples], object], message: str
) -> None:
    samples = json.loads((small_dataset / "grpo_dataset.json").read_text())
    change(samples)
    data = tmp_path / "grpo_dataset.json"
    data.write_text(json.dumps(samples))
    done = fit(repo_root, data, tmp_path / "student.json")
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "student.json").exists()


def test_a_wrong_teacher_or_place_is_refused_before_anything_is_read(repo_root: Path, tmp_path: Path) -> None:
    done = fit(repo_root, tmp_path / "none", tmp_path / "student.json", teacher="nowhere")
    assert done.returncode == 2
    assert "--teacher 'nowhere' is neither labels nor a model: the model folder nowhere does not exist" in done.stderr
    done = fit(repo_root, tmp_path / "none", tmp_path / "none/student.json")
    assert done.returncode == 2 and "its folder does not exist" in done.stderr


SHORT_GREEN_S = 20


def short_prompt(elapsed_green_s: float) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Green for {elapsed_green_s:g} s. Extend?"}]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has learned to answer short prompts: it extends greens shorter than SHORT_GREEN_S, and says
    something else after 55 s."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from recipes.models.tiny_model import TinyModelSize, build_tiny_model

    answers = {s: Decision.YES.answer if s < SHORT_GREEN_S else Decision.NO.answer for s in range(10, 55, 5)}
    answers[55] = "Green."
    chats = [[*short_prompt(s), {"role": "assistant", "content": answer}] for s, answer in answers.items()]
    folder = tmp_path_factory.mktemp("model")
    pq.write_table(pa.table({"messages": chats}), folder / "texts.parquet")
    build_tiny_model(folder / "texts.parquet", folder / "tiny", TinyModelSize(hidden=64, layers=2, heads=2), seed=1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    model = AutoModelForCausalLM.from_pretrained(folder / "tiny", dtype=torch.float32)
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    labels = torch.where(batch["attention_mask"] == 1, batch["input_ids"], -100)
    for row, chat in zip(labels, chats, strict=True):
        prompt = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, tokenize=False)
        row[: len(tokenizer(prompt)["input_ids"])] = -100
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loss = 1.0
    for _ in range(500):
        if loss < 0.01:
            break
        result = model(**batch, labels=labels)
        optimiser.zero_grad()
        result.loss.backward()
        optimiser.step()
        loss = result.loss.item()
    assert loss < 0.01, "the model has not learned its answers"
    model.save_pretrained(folder / "tiny")
    return folder / "tiny"


@pytest.mark.slow
def test_a_student_of_a_model_learns_the_answers_that_the_served_model_gives(
    repo_root: Path, small_dataset: Path, model_folder: Path, tmp_path: Path
) -> None:
    samples = json.loads((small_dataset / "grpo_dataset.json").read_text())
    for sample in samples:
        sample.update(prompt=short_prompt(sample["current_green_elapsed"]), prompt_version="short")
    data = tmp_path / "grpo_dataset.json"
    data.write_text(json.dumps(samples))
    out = tmp_path / "student.json"
    done = fit(repo_root, data, out, teacher=str(model_folder))
    assert done.returncode == 0, done.stderr
    green_s = np.array([sample["current_green_elapsed"] for sample in samples])
    assert f"{(green_s == 55).sum()} without an answer that can be read are left out" in done.stdout
    file = load_student(out)
    assert file.teacher_digest == local_model("teacher", str(model_folder)).identity()
    assert file.prompt_version == "short"
    inputs = np.array([features(Observation.from_dict(sample["observation"])) for sample in samples]).T
    says_yes = Student(file).margins(inputs) >= 0
    assert (says_yes == (green_s < SHORT_GREEN_S)).mean() > 0.9

    samples[0]["prompt_version"] = "1"
    data.write_text(json.dumps(samples))
    mixed = fit(repo_root, data, out, teacher=str(model_folder))
    assert mixed.returncode == 2 and "prompts of several versions (1, short)" in mixed.stderr
