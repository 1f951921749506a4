"""What the rows on evaluations compare. Nothing here depends on the speed of the machine."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import episode_speed
from benchmarks.bare_episode import Script, bare_cost, record_script
from benchmarks.effort import QUICK
from benchmarks.episode_speed import CONTROLLERS, episode_jobs, episode_rows, worker_rows
from benchmarks.stopwatch import Cost
from tests.tsc.sumo_process import in_new_process
from tsc.errors import ReplayError
from tsc.evaluation.plan import Contestant

EPISODE_S = 200
FEW = replace(QUICK, repetitions=1, episode_s=EPISODE_S, worker_episodes=3)


@pytest.fixture(autouse=True)
def _short(short_scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episode_speed, "DEFAULT_SCENARIO", short_scenario)


def _record_and_run(controller: str, folder: Path) -> tuple[Script, Cost]:
    (job,) = episode_jobs(folder, [Contestant(name=controller, kind=controller)], 1, EPISODE_S)
    script = record_script(job, folder / "bare")
    return script, bare_cost(script)


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_a_bare_episode_has_the_recorded_traffic(controller: str, tmp_path: Path) -> None:
    script, cost = in_new_process(_record_and_run, controller, tmp_path)
    assert script.queue_veh_s > 0 and cost.num_units == script.duration_s == EPISODE_S
    assert bool(script.states) == bool(script.reads) == (controller not in ("static", "actuated"))


def test_a_bare_episode_with_other_traffic_is_no_comparison(tmp_path: Path) -> None:
    script, _ = in_new_process(_record_and_run, "max_pressure", tmp_path)
    with pytest.raises(ReplayError, match=r"the bare episode has a queue of \d+ veh·s, but the recorded one has \d+ "):
        in_new_process(bare_cost, replace(script, states={}))


def test_an_episode_is_compared_with_bare_libsumo(tmp_path: Path) -> None:
    (row,) = episode_rows(tmp_path, FEW, controller="max_pressure")
    assert row.name == "episode-max_pressure"
    assert row.beside is not None and min(row.value, row.beside) > 0


def test_workers_have_to_give_most_of_what_the_cores_could(tmp_path: Path) -> None:
    (row,) = worker_rows(tmp_path, FEW)
    assert row.must_reach is not None and row.must_reach.value == 0.8 * len(os.sched_getaffinity(0))
    assert row.beside is not None and min(row.value, row.beside) > 0


@pytest.mark.slow
def test_an_evaluation_s_prompts_are_answered_offline_too(tmp_path: Path) -> None:
    from benchmarks.decision_speed import costs_of_decisions
    from recipes.models.tiny_model import TinyModelSize, build_tiny_model

    chat = [{"role": "user", "content": "Extend?"}, {"role": "assistant", "content": '{"extend": "yes"}'}]
    pq.write_table(pa.table({"messages": [chat] * 4}), tmp_path / "texts.parquet")
    build_tiny_model(tmp_path / "texts.parquet", tmp_path / "tiny", TinyModelSize(hidden=64, layers=2, heads=2), seed=1)
    served, offline = costs_of_decisions(tmp_path / "tiny", tmp_path, episodes=2, episode_s=60, repetitions=1)
    assert [cost.num_units for cost in served] == [cost.num_units for cost in offline]
    assert served[0].num_units > 4 and min(served[0].wall_s, offline[0].wall_s) > 0
