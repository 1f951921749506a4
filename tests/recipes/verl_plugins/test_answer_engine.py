"""The engine that asks the model for the answers only, and for equal rows once, trains as verl's own does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from verl.utils.torch_functional import get_cosine_schedule_with_warmup

from recipes.verl_plugins.answer_engine import answer_positions, continue_schedule, equal_rows


@pytest.fixture(scope="module")
def updates(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """engine_update.py's cases: tied and untied models, an adapter and all weights."""
    file = tmp_path_factory.mktemp("updates") / "updates.json"
    environment = {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "recipes.verl_plugins.cpu"}
    environment |= {"VERL_ENGINE_VENDOR": "answers", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    script = Path(__file__).with_name("engine_update.py")
    done = subprocess.run(
        [sys.executable, script, file], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(file.read_text()))


def test_log_probs_and_entropies_of_answers_are_those_of_verls_engine(updates: list[dict[str, Any]]) -> None:
    assert len(updates) == 4
    for case in updates:
        for name in ("log_probs", "entropy"):
            assert case["ours"][name] == pytest.approx(case["verl"][name], abs=1e-5), name
        assert len(set(case["ours"]["log_probs"])) > 10


def test_equal_rows_pass_through_the_model_once_and_the_update_is_the_same(updates: list[dict[str, Any]]) -> None:
    for case in updates:
        assert case["verl"]["rows"] == [4, 4]
        assert case["ours"]["rows"] == [2, 2]
        assert case["ours"]["grad_norm"] == pytest.approx(case["verl"]["grad_norm"], rel=1e-4)
        assert case["ours"]["loss"] == pytest.approx(case["verl"]["loss"], rel=1e-4)
        assert case["ours"]["gradient"] == pytest.approx(case["verl"]["gradient"], rel=1e-3, abs=1e-6)
        assert max(map(abs, case["ours"]["gradient"])) > 0.01
        # the loss after the update, so the update made a difference that both share
        assert case["ours"]["sft_loss"] == pytest.approx(case["verl"]["sft_loss"], rel=1e-4)


def test_rows_are_equal_only_with_all_their_tokens() -> None:
    assert equal_rows([(1, 2), (1, 2, 3), (1, 2), (3,), (1, 2, 3)]) == ([0, 1, 3], [0, 1, 0, 2, 1])


def test_an_answer_is_predicted_from_the_token_before_each_of_its_tokens() -> None:
    # a mask of the answer alone, and one of the whole row
    rows, columns = answer_positions(torch.tensor([5, 4]), [torch.tensor([1, 1]), torch.tensor([0, 0, 1, 0])])
    assert rows.tolist() == [0, 0, 1]
    assert columns.tolist() == [2, 3, 1]
    # nothing predicts the first token
    assert answer_positions(torch.tensor([2]), [torch.tensor([1, 1])])[1].tolist() == [0]


def test_a_training_that_goes_on_for_more_steps_begins_with_the_rate_of_its_new_schedule() -> None:
    def built(steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        return optimizer, get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=0, num_training_steps=steps)

    ended, its_schedule = built(4)
    for _ in range(4):
        ended.step()
        its_schedule.step()
    assert ended.param_groups[0]["lr"] == 0
    optimizer, schedule = built(8)
    # as verl's checkpoint manager does
    optimizer.load_state_dict(ended.state_dict())
    schedule.load_state_dict(its_schedule.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0
    continue_schedule(optimizer, schedule)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
