"""Rows about a GRPO step, from short trainings by scripts/train_grpo.sh: the share that rewards take, and its speed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.benchmark_datasets import default_dataset
from benchmarks.effort import Effort
from benchmarks.rows import Bound, Row
from benchmarks.supervised import run_supervised
from benchmarks.timed_score import CACHED, LIVE, mode_of_step


@dataclass(frozen=True, kw_only=True)
class Step:
    """The times of one step.

    generation_s: until the last answer of the step has its reward. wait_s: the part of it after the last answer came.
    """

    mode: str
    step_s: float
    generation_s: float
    wait_s: float


# what gives verl its own engine and its own agent loops back (recipes/verl_plugins)
VERLS_OWN = (
    "actor_rollout_ref.model.external_lib=null",
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null",
)


def train(folder: Path, effort: Effort, overrides: Sequence[str], steps: int) -> Path:
    """Run the demo's GRPO with these overrides. Returns the folder with its output. Raises TscError."""
    dataset = default_dataset(folder, effort.episodes)
    run = folder / f"grpo-{effort.step_prompts}"
    shutil.rmtree(run / "grpo", ignore_errors=True)  # the starting model, run/sft, is kept
    (run / "grpo").mkdir(parents=True)
    run_supervised(
        ["bash", "scripts/train_grpo.sh", *overrides],
        RUNS=folder,
        RUN_NAME=run.name,
        DATA=dataset / "parquet",
        HARDWARE="cpu",
        WANDB="off",
        STEPS=steps,
        BATCH_PROMPTS=effort.step_prompts,
        # enough passes to teach the answer's format on little data: an unreadable answer would not need a replay
        SFT_EPOCHS=max(1, 20 // effort.episodes),
        EVAL_SEEDS="0",
    )
    return run / "grpo"


def train_timed(folder: Path, effort: Effort) -> Path:
    """`train` for effort.steps + 1 steps, with a log of when each reward was asked for and given."""
    run = folder / f"grpo-{effort.step_prompts}/grpo"
    function = "reward.custom_reward_function"
    overrides = [f"{function}.path=pkg://benchmarks.timed_score", f"{function}.name=timed_score"]
    overrides += [f"+{function}.reward_kwargs.log={run / 'rewards.jsonl'}"]
    # an empty cache instead of the user's: every state is replayed when it first comes up
    overrides += [f"+{function}.reward_kwargs.cache.directory={run / 'cache'}"]
    return train(folder, effort, overrides, effort.steps + 1)


def read_steps(run: Path) -> list[Step]:
    """All steps except the first one, in which everything starts."""
    (metrics,) = run.glob("metrics/*.jsonl")
    calls = pd.DataFrame(map(json.loads, (run / "rewards.jsonl").read_text().splitlines()))
    last = calls.groupby("version").max()
    steps = []
    for line in metrics.read_text().splitlines():
        record = json.loads(line)
        version, data = record["step"] - 1, record["data"]
        if version:
            steps.append(
                Step(
                    mode=mode_of_step(version),
                    # only the last step saves a checkpoint
                    step_s=data["timing_s/step"] - data.get("timing_s/save_checkpoint", 0.0),
                    generation_s=data["timing_s/gen"],
                    wait_s=float(last["done_s"][version] - last["arrived_s"][version]),
                )
            )
    return steps


def rows_of(steps: Sequence[Step], num_prompts: int) -> list[Row]:
    """The rows of a training whose steps are cached and live in turn."""
    cached, live = ([step for step in steps if step.mode == mode] for mode in (CACHED, LIVE))
    pairs = list(zip(cached, live, strict=True))
    the_step = f"the step, {num_prompts} prompts × 4 answers"
    live_s = [step.step_s for step in live]
    return [
        Row.of_medians(
            "step-cached",
            f"wait for the last reward, labelled states, 2 % of them audited live; {the_step}",
            [step.wait_s for step in cached],
            [step.step_s for step in cached],
            unit="s",
            must_reach=Bound(at="most", value=0.02),
        ),
        Row.of_medians(
            "step-live",
            f"how much longer generation takes if every state is replayed; {the_step}",
            # the cached step waited, too
            [of_live.generation_s - other.generation_s + other.wait_s for other, of_live in pairs],
            live_s,
            unit="s",
            must_reach=Bound(at="most", value=0.2),
        ),
        Row.of_medians(
            "step-live-wait",
            "of that, the wait for the last reward after generation; the step",
            [step.wait_s for step in live],
            live_s,
            unit="s",
        ),
    ]


def step_rows(folder: Path, effort: Effort) -> list[Row]:
    return rows_of(read_steps(train_timed(folder, effort)), effort.step_prompts)


def read_parts(run: Path) -> list[dict[str, float]]:
    """Seconds of generation, model (log-probs and update) and whole, of all steps except the first one."""
    (metrics,) = run.glob("metrics/*.jsonl")
    steps = [json.loads(line)["data"] for line in metrics.read_text().splitlines()][1:]
    return [
        {
            "generate": step["timing_s/gen"],
            "model": step["timing_s/ref"] + step["timing_s/update_actor"],
            "whole": step["timing_s/step"] - step.get("timing_s/save_checkpoint", 0.0),
        }
        for step in steps
    ]


def speed_rows(folder: Path, effort: Effort) -> list[Row]:
    """Steps with and without this project's engine and agent loops, trainings in turn."""
    ours: list[dict[str, float]] = []
    verls: list[dict[str, float]] = []
    for _ in range(effort.step_trainings):
        ours += read_parts(train(folder, effort, (), effort.speed_steps + 1))
        verls += read_parts(train(folder, effort, VERLS_OWN, effort.speed_steps + 1))
    what = {
        "generate": ("step-generate", "one request for a group, equal answers scored once"),
        "model": ("step-model", "log-probs and update: of the answers only, equal rows once"),
        "whole": ("step-whole", "the whole step"),
    }
    return [
        Row.of_medians(
            name,
            f"{text}; verl's own, {effort.step_prompts} prompts × 4 answers",
            [step[part] for step in ours],
            [step[part] for step in verls],
            unit="s",
            must_reach=Bound(at="most", value=0.5) if part == "model" else None,
        )
        for part, (name, text) in what.items()
    ]
