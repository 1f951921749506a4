"""GSPO and PPO, each in a small real run on the CPU from the start of GRPO's test."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml


def steps_of(launch: Any) -> list[dict]:
    return [record for record in launch.records() if "reward/score/mean" in record["data"]]


def composed(run: Path) -> dict:
    return yaml.safe_load((run / "checkpoints/hydra/config.yaml").read_text())


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def gspo(project: Any) -> Any:
    return project.train(2, "gspo", "algorithm.adv_estimator=rloo", LORA_RANK="0", LEARNING_RATE="1e-3")


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


PPO = {"BATCH_PROMPTS": "16", "ROLLOUT_N": "1", "LORA_TARGETS": "q_proj,v_proj"}


@pytest.fixture(scope="module")
def ppo(project: Any) -> list[dict]:
    """What a run of one step reports."""
    return steps_of(project.train(1, "ppo", **PPO))


def check_ppo(step: dict) -> None:
    assert step["data"]["critic/vf_loss"] > 0
    assert step["data"]["critic/grad_norm"] > 0
    assert step["data"]["reward/failed/sum"] == 0


def test_ppo_trains_a_critic_beside_the_policy_and_keeps_both(project: Any, ppo: list[dict]) -> None:
    assert [record["step"] for record in ppo] == [1]
    check_ppo(ppo[0])
    assert (project.run / "ppo/checkpoints/global_step_1/critic").is_dir()
    assert (project.run / "ppo/checkpoints/global_step_1/actor").is_dir()


def test_a_ppo_adapter_on_its_base_answers_as_the_merged_model(project: Any, ppo: Any) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    start = AutoModelForCausalLM.from_pretrained(project.run / "sft/merged", dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(project.run / "ppo/merged", dtype=torch.float32)
    tokens = torch.arange(10, 60)[None]
    with torch.no_grad():
        from_start = start(tokens).logits
        from_merged = merged(tokens).logits
        with_adapter = PeftModel.from_pretrained(start, project.run / "ppo/adapter")(tokens).logits
    assert (from_merged - from_start).abs().max() > 1e-4
    torch.testing.assert_close(from_merged, with_adapter, atol=1e-4, rtol=1e-4)
    adapter = json.loads((project.run / "ppo/adapter/adapter_config.json").read_text())
    assert sorted(adapter["target_modules"]) == ["q_proj", "v_proj"]


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


def test_ppo_goes_on_and_a_dead_worker_ends_it_with_its_cause_within_a_minute(project: Any, ppo: list[dict]) -> None:
    # as a kill leaves it in the moment in which verl writes it
    (project.run / "ppo/checkpoints/latest_checkpointed_iteration.txt").write_text("")
    launch = project.launch(1000, "ppo", **PPO)
    launch.wait_for("a step", lambda: len(steps_of(launch)) >= 1)
    assert "names step 1, the newest complete checkpoint" in launch.output.read_text()
    assert steps_of(launch)[0]["step"] == 2
    check_ppo(steps_of(launch)[0])
    started = launch.descendants()
    # torch's rendezvous, a store of short texts
    assert exposed(started) == {"ray::WorkerDict"}
    worker = next(process for process in started if process.cmdline()[:1] == ["VLLM::Worker"])
    worker.kill()
    assert launch.process.wait(timeout=60) == 1
    output = launch.output.read_text()
    assert f"VLLM::Worker (process {worker.pid}) died" in output
    assert "ppo/train.log" in output
    _, alive = psutil.wait_procs(started, timeout=5)
    assert [process.cmdline() for process in alive] == []
