"""How several decisions to an answer fit into verl: groups, mini-batches, checks, and a rollout that is given up."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.protocol import DataProto
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.utils.config import omega_conf_to_dataclass

import reward.stretch_source
from recipes.preflight.compose import compose
from recipes.preflight.validate import validate
from recipes.verl_plugins.decision_loop import DecisionActorConfig, _Stretches, num_decisions_of
from reward.ground_truth import parse_ground_truth
from tsc.errors import ConfigError, ReplayError

DECISIONS = [
    "actor_rollout_ref.rollout.agent.agent_loop_config_path=recipes/agent_loops.yaml",
    "actor_rollout_ref.rollout.agent.default_agent_loop=consecutive_decisions",
    "actor_rollout_ref.rollout.multi_turn.max_assistant_turns=4",
    "actor_rollout_ref.actor._target_=recipes.verl_plugins.decision_loop.DecisionActorConfig",
    "+actor_rollout_ref.actor.decisions=4",
]


def test_verl_compares_answers_and_gives_an_answers_advantage_to_all_its_decisions() -> None:
    """Two prompts; one answer of three decisions beside two of one and of two: the mean of its group counts it once."""
    keys = ["a_0_0", "a_0_1", "a_0_2", "a_1_0", "b_0_0", "b_0_1", "b_1_0"]
    score_of = {"a_0": 0.9, "a_1": 0.3, "b_0": -0.5, "b_1": 0.5}
    scores = torch.zeros(7, 2)
    scores[:, -1] = torch.tensor([score_of[key.rpartition("_")[0]] for key in keys])
    data = DataProto.from_dict(
        tensors={"token_level_rewards": scores, "response_mask": torch.ones(7, 2)},
        non_tensors={"uid": np.array([key[0] for key in keys], dtype=object)},
    )
    done = compute_advantage_for_multi_trajectories(
        data, keys, "grpo", num_repeat=2, norm_adv_by_std_in_grpo=False, config=None
    )
    expected = [0.3, 0.3, 0.3, -0.3, -0.5, -0.5, 0.5]
    torch.testing.assert_close(done.batch["advantages"], torch.tensor(expected)[:, None].repeat(1, 2))


@pytest.fixture
def in_repository(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo_root)


@pytest.mark.usefixtures("in_repository")
def test_one_update_may_hold_all_decisions_of_a_step() -> None:
    config = compose(
        "grpo", [*DECISIONS, "data.train_batch_size=32", "actor_rollout_ref.actor.ppo_mini_batch_size=128"]
    )
    assert num_decisions_of(config) == 4
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert isinstance(actor, DecisionActorConfig)
    actor.validate(n_gpus=1, train_batch_size=32)
    with pytest.raises(ValueError, match=r"must be >= actor.ppo_mini_batch_size \(128\)"):
        actor.validate(n_gpus=1, train_batch_size=16)


@pytest.mark.usefixtures("in_repository")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("actor_rollout_ref.rollout.multi_turn.max_assistant_turns=null", r"is None: choose .* \(DECISIONS\), 1–32"),
        ("actor_rollout_ref.rollout.multi_turn.max_assistant_turns=33", "is 33: choose"),
        ("algorithm.adv_estimator=rloo", "rloo with 4 decisions .* choose grpo, or DECISIONS=1"),
    ],
)
def test_what_cannot_be_trained_with_several_decisions_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        num_decisions_of(compose("grpo", [*DECISIONS, override]))


STAND_IN = """
import time
from pathlib import Path
from tsc.replays.stretch import Question, StretchProgress

def play(request, settings, *, decisions, num_decisions, prompt):
    Path(request.dataset_dir, "played").open("a").write("x")
    if request.state_file == "hang":
        time.sleep(3600)
    return StretchProgress(question=Question(prompt=({"role": "user", "content": str(decisions)},), time_s=0.0))
"""


@pytest.fixture
def stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Stretches]:
    """With one worker, whose plays of the state `hang` do not end by themselves within the limit of 2 s."""
    (tmp_path / "stand_in_play.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(reward.stretch_source, "FUNCTION", "stand_in_play:play")
    config: dict[str, Any] = {
        "reward": {
            "custom_reward_function": {"reward_kwargs": {"replay": {"workers": 1, "timeout_s": 2, "retries": 0}}}
        },
        "actor_rollout_ref": {"rollout": {"multi_turn": {"max_assistant_turns": 3}}},
        "algorithm": {"adv_estimator": "grpo"},
    }
    found = _Stretches(OmegaConf.create(config))
    yield found
    found.source.close()


def truth(folder: Path, state_file: str) -> Any:
    request = {
        "sample_id": "one",
        "dataset_dir": str(folder),
        "junction_id": "A0",
        "state_file": state_file,
        "state_sha256": None,
        "current_green_elapsed_s": 10.0,
        "min_green_s": 10,
        "max_green_s": 60,
        "green_extension_s": 5,
        "sumo": {"version": "1.28.0", "net_file": "net.net.xml", "route_files": []},
    }
    return parse_ground_truth(json.dumps({"request": request, "outcomes": None}))


def test_a_rollout_that_is_given_up_gives_its_worker_back(stretches: _Stretches, tmp_path: Path) -> None:
    async def give_up_and_go_on() -> float:
        given_up = [asyncio.create_task(stretches.play(truth(tmp_path, "hang"), [])) for _ in range(4)]
        while not (tmp_path / "played").exists():
            await asyncio.sleep(0.05)
        for task in given_up:
            task.cancel()
        done = await asyncio.gather(*given_up, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in done)
        begin = time.monotonic()
        found = await stretches.play(truth(tmp_path, "ok"), [])
        assert found.progress.question is not None
        return time.monotonic() - begin

    # what hangs is ended by its own time limit, and blocks nobody for longer
    assert asyncio.run(give_up_and_go_on()) < 30
    with pytest.raises(ReplayError, match=r"hang at junction 'A0'.*no end of the replay within 2 s"):
        asyncio.run(stretches.play(truth(tmp_path, "hang"), []))


@pytest.mark.usefixtures("in_repository")
def test_verl_accepts_the_whole_configuration() -> None:
    overrides = [*DECISIONS, "data.train_batch_size=32", "actor_rollout_ref.actor.ppo_mini_batch_size=128"]
    validate(
        "grpo", compose("grpo", [*overrides, "trainer.default_local_dir=runs/x", "actor_rollout_ref.model.path=x"])
    )
