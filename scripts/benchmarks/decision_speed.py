"""Rows about a language model's decisions in an evaluation, compared with the same prompts in one batch of vLLM."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.benchmark_datasets import default_dataset
from benchmarks.effort import Effort
from benchmarks.episode_speed import episode_jobs
from benchmarks.rows import Bound, Row
from benchmarks.stopwatch import Cost, cost_of
from benchmarks.supervised import run_supervised
from benchmarks.warm_process import warm_processes
from recipes.models.smollm2 import get_smollm2
from tsc.controllers.language_model import Conversation, Reply
from tsc.controllers.registry import LANGUAGE_MODEL
from tsc.episodes.runner import EpisodeJob, run_jobs
from tsc.evaluation.plan import Contestant
from tsc.evaluation.settings import LanguageModelSettings

SETTINGS = LanguageModelSettings()

# objects that a process of the benchmark keeps between calls
_served = ExitStack()
_kept: dict[str, Any] = {}


def begin_serving(model: Path, log_file: Path) -> None:
    """Start the server. Called in the process of an evaluation."""
    from recipes.serving.model_choice import LocalModelChoice, answering

    choice = LocalModelChoice(name="model", model=model)
    _kept["endpoint"] = _served.enter_context(
        answering(choice, max_answer_tokens=SETTINGS.max_answer_tokens, time_limit_s=None, log_file=log_file)
    )


def end_serving() -> None:
    _served.close()


def served_cost(jobs: Sequence[EpisodeJob]) -> tuple[Cost, list[Conversation]]:
    """The cost per decision of episodes as scripts/evaluate.py runs them on a running server, and the prompts.

    The start of the episodes' processes is included.
    """
    asked: list[Conversation] = []

    def ask(conversations: list[Conversation]) -> list[Reply]:
        asked.extend(conversations)
        replies: list[Reply] = _kept["endpoint"].ask(conversations)
        return replies

    cost = cost_of(lambda: list(run_jobs(jobs, SETTINGS.concurrent_episodes, ask)), 1)
    return replace(cost, num_units=len(asked)), asked


def load_offline(model: Path) -> None:
    """Load the model into vLLM without a server, with the settings of an evaluation's server. Needs its own process."""
    from recipes.serving.vllm_server import KV_CACHE_BYTES, MAX_SEQUENCES, engine_environment, is_cpu_build

    os.environ |= engine_environment(model) | {"VLLM_LOGGING_LEVEL": "ERROR"}
    options: dict[str, Any] = {}
    if is_cpu_build():
        options = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": KV_CACHE_BYTES}
    from vllm import LLM

    _kept["offline"] = LLM(str(model), max_num_seqs=MAX_SEQUENCES, generation_config="vllm", **options)
    offline_answers([[{"role": "user", "content": "Ready?"}]])


def offline_answers(conversations: list[Conversation]) -> list[str]:
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0, max_tokens=SETTINGS.max_answer_tokens)
    outputs = _kept["offline"].chat(conversations, parameters, use_tqdm=False)
    return [output.outputs[0].text for output in outputs]


def offline_cost(conversations: list[Conversation]) -> Cost:
    """The cost per decision."""
    return cost_of(lambda: offline_answers(conversations), len(conversations))


def costs_of_decisions(
    model: Path, folder: Path, *, episodes: int, episode_s: int, repetitions: int
) -> tuple[list[Cost], list[Cost]]:
    """The costs in an evaluation, and offline. Each repetition has other seeds, so its prompts are not cached yet."""
    contestants = [Contestant(name="model", kind=LANGUAGE_MODEL, model=str(model))]
    jobs = episode_jobs(folder, contestants, episodes * repetitions, episode_s)
    # without the comparison with lookahead: it is for the report, and costs more than everything else
    jobs = [replace(job, decisions_file=None) for job in jobs]
    served, offline = [], []
    with warm_processes(2) as (evaluation, engine):
        evaluation.call(begin_serving, model, folder / "vllm.log")
        engine.call(load_offline, model)
        for first in range(0, len(jobs), episodes):
            cost, conversations = evaluation.call(served_cost, jobs[first : first + episodes])
            served.append(cost)
            offline.append(engine.call(offline_cost, conversations))
        evaluation.call(end_serving)
    return served, offline


def smollm2_rows(folder: Path, effort: Effort) -> list[Row]:
    """Rows of a pretrained model, the smallest that the README trains."""
    model = folder / "smollm2"
    get_smollm2(model)
    served, offline = costs_of_decisions(
        model,
        folder,
        episodes=effort.smollm2_episodes,
        episode_s=effort.smollm2_episode_s,
        repetitions=effort.smollm2_repetitions,
    )
    what = "decisions of SmolLM2-135M in an evaluation; its answers to the same prompts, offline in one batch"
    return [Row.of_rates("llm-decisions", what, served, offline, unit="1/s", must_reach=Bound(at="least", value=0.6))]


def tiny_rows(folder: Path, effort: Effort) -> list[Row]:
    """Rows of the demo's model after SFT."""
    served, offline = costs_of_decisions(
        tiny_model(folder, effort),
        folder,
        episodes=effort.model_episodes,
        episode_s=effort.episode_s,
        repetitions=effort.repetitions,
    )
    what = "the same with the demo's model of 0.9 million parameters"
    return [Row.of_rates("llm-decisions-tiny", what, served, offline, unit="1/s")]


def tiny_model(folder: Path, effort: Effort) -> Path:
    """Make the demo's model once and teach it the answer's format. Raises TscError."""
    run = folder / "decisions"
    model = run / "sft/merged"
    if (run / "sft/exported_step").exists():
        return model
    shutil.rmtree(run, ignore_errors=True)
    parquet = default_dataset(folder, effort.episodes) / "parquet"
    tiny = run / "tiny"
    texts = parquet / "sft_train.parquet"
    run_supervised([sys.executable, "recipes/models/tiny_model.py", "--texts", texts, "--out", tiny])
    run_supervised(
        ["bash", "scripts/train_sft.sh"],
        RUNS=folder,
        RUN_NAME=run.name,
        MODEL_PATH=tiny,
        DATA=parquet,
        HARDWARE="cpu",
        WANDB="off",
        # a new model, though it is given as a folder
        LORA_RANK="0",
        LEARNING_RATE="1e-3",
        BATCH_CHATS="64",
        EPOCHS=max(1, 20 // effort.episodes),
    )
    return model
