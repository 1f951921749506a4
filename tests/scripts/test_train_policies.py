"""GSPO and PPO, each in a small real run on the CPU from the start of GRPO's test."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from recipes.models.checkpoints import is_complete, latest_step, mend_tracker
from tests.scripts.exported import check_exported


def steps_of(launch: Any) -> list[dict]:
    return [record for record in launch.records() if "critic/score/mean" in record["data"]]


def composed(run: Path) -> dict:
    return yaml.safe_load((run / "checkpoints/hydra/config.yaml").read_text())


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


# Scores as verl's own examples do: a number, and nothing else.
OWN_REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return 7 + len(solution_str) / 1000
"""


@pytest.fixture(scope="module")
def gspo(project: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("rewards") / "mine.py"
    file.write_text(OWN_REWARD)
    knobs = {"LORA_RANK": "0", "LEARNING_RATE": "1e-3", "REWARD": f"{file}:compute_score"}
    return project.train(2, "gspo", "algorithm.adv_estimator=rloo", **knobs)


def test_a_reward_function_of_the_users_own_scores_the_answers(gspo: Any) -> None:
    records = [record["data"] for record in gspo.records() if "critic/score/mean" in record["data"]]
    assert len(records) == 2
    assert all(7 < data["critic/score/mean"] < 8 for data in records)
    assert not any("reward/traffic/mean" in data for data in records)


def test_gspo_bounds_the_ratios_of_whole_answers_in_several_updates_a_step(project: Any, gspo: Any) -> None:
    steps = steps_of(gspo)
    assert [record["step"] for record in steps] == [1, 2]
    # The second update of a step sees the policy that the first has changed. Whether ratios leave their bounds then
    # depends on the answers that were drawn.
    assert any(record["data"]["actor/ppo_kl"] != 0 for record in steps)
    assert all(0 <= record["data"]["actor/pg_clipfrac"] <= 1 for record in steps)
    config = composed(project.run / "gspo")
    assert config["algorithm"]["adv_estimator"] == "rloo"
    actor = config["actor_rollout_ref"]["actor"]
    assert actor["policy_loss"]["loss_mode"] == "gspo"
    assert (actor["clip_ratio_low"], actor["clip_ratio_high"], actor["ppo_mini_batch_size"]) == (3e-4, 4e-4, 2)


def test_without_lora_all_weights_are_trained_and_exported(project: Any, gspo: Any) -> None:
    start, trained = weights(project.run / "sft/merged"), weights(project.run / "gspo/merged")
    assert start.keys() == trained.keys()
    unchanged = [name for name, value in start.items() if value.equal(trained[name])]
    assert unchanged == []
    assert not (project.run / "gspo/adapter").exists()


def test_algorithms_of_one_run_name_share_the_model_of_the_sft(gspo: Any) -> None:
    assert "== SFT: already done" in gspo.output.read_text()


@dataclass(kw_only=True)
class KilledPpo:
    """A PPO that has lost a worker after its first checkpoint."""

    steps: list[dict]
    status: int
    output: str
    exposed: set[str]
    lost: str
    alive: list[list[str]]


def exposed(processes: list[psutil.Process]) -> set[str]:
    """Who listens where another machine can reach it."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            for connection in process.net_connections("inet"):
                is_local = connection.laddr.ip.removeprefix("::ffff:") in ("127.0.0.1", "::1")
                if connection.status == psutil.CONN_LISTEN and not is_local:
                    found.add(process.cmdline()[0].partition(".")[0])
    return found


@pytest.fixture(scope="module")
def ppo(project: Any) -> KilledPpo:
    launch = project.launch(1000, "ppo", BATCH_PROMPTS="16", ROLLOUT_N="1", LORA_TARGETS="q_proj,v_proj")
    launch.wait_for("a checkpoint", (project.run / "ppo/checkpoints/latest_checkpointed_iteration.txt").is_file)
    launch.wait_for("a step", lambda: len(steps_of(launch)) >= 1)
    started = launch.descendants()
    seen = exposed(started)
    worker = next(process for process in started if process.cmdline()[:1] == ["VLLM::Worker"])
    worker.kill()
    status = launch.process.wait(timeout=60)
    _, alive = psutil.wait_procs(started, timeout=5)
    mend_tracker(project.run / "ppo/checkpoints")  # the end may have come while verl wrote it
    return KilledPpo(
        steps=steps_of(launch),
        status=status,
        output=launch.output.read_text(),
        exposed=seen,
        lost=f"VLLM::Worker (process {worker.pid})",
        alive=[process.cmdline() for process in alive],
    )


def test_ppo_trains_a_critic_beside_the_policy_and_keeps_both(project: Any, ppo: KilledPpo) -> None:
    first = ppo.steps[0]
    assert first["step"] == 1
    assert first["data"]["critic/vf_loss"] > 0
    assert first["data"]["critic/grad_norm"] > 0
    assert first["data"]["reward/failed/sum"] == 0
    checkpoints = project.run / "ppo/checkpoints"
    kept = checkpoints / f"global_step_{latest_step(checkpoints)}"
    assert (kept / "critic").is_dir() and (kept / "actor").is_dir()
    assert is_complete(kept)


def test_a_dead_worker_ends_a_training_with_its_cause_within_a_minute(ppo: KilledPpo) -> None:
    assert ppo.status == 1
    assert f"{ppo.lost} died" in ppo.output
    assert "ppo/train.log" in ppo.output
    assert ppo.alive == []


def test_a_training_on_one_machine_is_out_of_reach_of_others(ppo: KilledPpo) -> None:
    # torch's rendezvous, a store of short texts
    assert ppo.exposed == {"ray::WorkerDict"}


def test_the_adapter_of_a_training_that_ended_early_can_be_exported(
    repo_root: Path, project: Any, ppo: KilledPpo
) -> None:
    base, out = project.run / "sft/merged", project.run / "ppo"
    command = [sys.executable, "scripts/export_model.py", "--checkpoints", out / "checkpoints", "--part", "actor"]
    subprocess.run([*command, "--base", base, "--out", out], cwd=repo_root, check=True)
    check_exported(out, base, least_change=1e-4)
    adapter = json.loads((out / "adapter/adapter_config.json").read_text())
    assert sorted(adapter["target_modules"]) == ["q_proj", "v_proj"]
