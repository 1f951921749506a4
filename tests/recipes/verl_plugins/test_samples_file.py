"""What is kept of a step's prompts and answers."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transfer_queue

from recipes.verl_plugins import samples_file
from recipes.verl_plugins.samples_file import SamplesFile

# of two prompts the answers that stand in verl's queue, by key
TOKENS = {"b_0_0": [7, 1], "a_1_0": [8, 2], "a_0_0": [8, 1]}


class Words:
    """A tokenizer of numbers."""

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(map(str, tokens)) + "\n"


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Any:
    def stored(keys: list[str], partition_id: str, select_fields: list[str]) -> dict[str, Any]:
        assert partition_id == "train"
        truth = {"ground_truth": "truth"}
        fields = {
            "prompts": [torch.tensor(TOKENS[key][:1]) for key in keys],
            "responses": [torch.tensor(TOKENS[key][1:]) for key in keys],
            "rm_scores": [torch.tensor([0.0, TOKENS[key][1] / 4]) for key in keys],
            "reward_model": [truth for _ in keys],
            "extra_fields": [{"reward_extra_info": {"traffic": 0.5, "score": 9.0, "why": "a word"}} for _ in keys],
        }
        return {name: fields[name] for name in select_fields}

    def parsed(text: str) -> SimpleNamespace:
        assert text == "truth"
        outcomes = SimpleNamespace(yes=3.0, no=4.0)
        return SimpleNamespace(outcomes=outcomes, request=SimpleNamespace(sample_id="four_way/1"))

    monkeypatch.setattr(transfer_queue, "kv_batch_get", stored)
    monkeypatch.setattr(samples_file, "parse_ground_truth", parsed)
    monkeypatch.setattr(samples_file.AutoTokenizer, "from_pretrained", lambda _folder: Words())
    return SimpleNamespace(keys=list(TOKENS), partition_id="train")


def test_the_answers_to_a_prompt_stand_together_with_their_parts_of_the_reward(queue: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "samples.jsonl"
    samples = SamplesFile(path=str(path), num_prompts=1, tokenizer="model").add(5, "train", queue)
    assert samples == [
        {
            "step": 5, "part": "train", "prompt": "8", "sample_id": "four_way/1", "outcomes": {"yes": 3.0, "no": 4.0},
            "answers": [{"text": "1", "traffic": 0.5, "score": 0.25}, {"text": "2", "traffic": 0.5, "score": 0.5}],
        }
    ]  # fmt: skip
    assert [json.loads(line) for line in path.read_text().splitlines()] == samples


def test_a_line_that_a_kill_cut_spoils_no_later_one(queue: Any, tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"step": 4, "par')
    file = SamplesFile(path=str(path), num_prompts=8, tokenizer="model")
    file.add(5, "train", queue)
    file.add(6, "train", queue)
    _, *lines = path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 5, 6, 6]
