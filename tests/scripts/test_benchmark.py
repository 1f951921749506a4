"""The benchmark's arithmetic, and the work of its sides. Nothing here depends on the speed of the machine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import sumo

from benchmarks import label_speed, replay_speed
from benchmarks.alternatives import bare_cost, bare_step_cpu_s, fresh_libsumo_queue_veh_s, traci_replays
from benchmarks.benchmark_datasets import CITY_NET, samples_of, spread
from benchmarks.effort import FULL, QUICK, Effort
from benchmarks.grpo_step import Step, read_steps, rows_of
from benchmarks.live_replay import live_cost
from benchmarks.replay_speed import bare_rows
from benchmarks.rows import Bound, Row, machine_lines, table, write_rows
from benchmarks.score_rate import ground_truth
from benchmarks.stopwatch import Cost, in_turn
from benchmarks.timed_score import CACHED, LIVE, mode_of_step, timed_score, without_label
from benchmarks.traci_replay import queues_veh_s
from benchmarks.warm_process import WarmProcess, warm_processes
from reward.ground_truth import parse_ground_truth
from tests.tsc.sumo_process import in_new_process
from tsc.cost.outcome import OutcomeSettings
from tsc.errors import ReplayProcessDied, TscError
from tsc.junction.decision import Decision
from tsc.replays.request import ReplayRequest
from tsc.sumo.simulation import Simulation

FIELDS = ["name", "value", "unit", "beside", "ratio", "must_reach", "ok"]


@pytest.fixture(scope="module")
def requests(small_dataset: Path) -> list[ReplayRequest]:
    samples = spread(samples_of(small_dataset, episode=0), 2)
    return [ReplayRequest.from_sample(sample, small_dataset) for sample in samples]


def _row(value: float, beside: float | None = None, must_reach: Bound | None = None) -> Row:
    return Row(name="speed", what="a thing", value=value, unit="1/s", beside=beside, must_reach=must_reach)


# Rows


def test_a_row_of_rates_is_the_ratio_of_the_fastest_repetitions() -> None:
    walls_s = ([3, 2, 6], [4, 1, 5])
    costs = [[Cost(num_units=60, wall_s=wall_s, cpu_s=2 * wall_s) for wall_s in side] for side in walls_s]
    by_clock = Row.of_rates("speed", "a thing; another", *costs, unit="1/s")
    by_cpu = Row.of_rates("speed", "a thing; another", *costs, by_cpu=True, unit="1/s of CPU")
    assert (by_clock.value, by_clock.beside, by_clock.ratio) == (30, 60, 0.5)
    assert (by_cpu.value, by_cpu.beside, by_cpu.ratio) == (15, 30, 0.5)


def test_a_row_of_steps_is_the_ratio_of_their_medians() -> None:
    row = Row.of_medians(
        name="speed", what="a thing; another", values=[30, 10, 20], beside=[4, 5, 100], unit="1/s",
        must_reach=Bound(at="least", value=4),
    )  # fmt: skip
    assert row.as_dict() == {
        "name": "speed", "value": 20, "unit": "1/s", "beside": 5, "ratio": 4, "must_reach": 4, "ok": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "ok"),
    [
        (_row(2, 10, Bound(at="least", value=0.2)), True),
        (_row(2, 10, Bound(at="least", value=0.21)), False),
        (_row(2, 10, Bound(at="most", value=0.2)), True),
        (_row(2, 10, Bound(at="most", value=0.19)), False),
        (_row(20_000, None, Bound(at="least", value=20_000)), True),
        (_row(19_999, None, Bound(at="least", value=20_000)), False),
        (_row(2, 10), None),
    ],
)
def test_a_bound_is_on_the_ratio_or_else_on_the_value(row: Row, ok: bool | None) -> None:
    assert row.ok is ok


def test_rows_are_written_whole_with_the_agreed_fields(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.json"
    for count in (1, 2):  # the second replaces the first
        write_rows([_row(2, 10, Bound(at="least", value=0.7))] * count, path)
        written = json.loads(path.read_text())
        assert [list(row) for row in written] == [FIELDS] * count
    assert [entry.name for entry in path.parent.iterdir()] == ["rows.json"]


def test_rows_that_cannot_be_written_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    write_rows([_row(2)], path)
    before = path.read_text()
    with pytest.raises(TypeError):
        write_rows([_row(object())], path)  # type: ignore[arg-type]
    assert path.read_text() == before and len(list(tmp_path.iterdir())) == 1


def test_the_table_is_aligned_and_says_what_each_row_is_compared_with() -> None:
    lines = table([_row(22.123, 165.4, Bound(at="least", value=0.7)), _row(46_917)]).splitlines()
    assert [line.split() for line in lines] == [
        ["name", "value", "unit", "beside", "ratio", "must", "reach", "ok", "what;", "compared", "with"],
        ["speed", "22.1", "1/s", "165", "0.134", "≥", "0.7", "no", "a", "thing"],
        ["speed", "46,917", "1/s", "a", "thing"],
    ]
    assert len({line.index(word) for line, word in zip(lines, ("what;", "a thing", "a thing"), strict=True)}) == 1


def test_a_busy_machine_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    (line,) = machine_lines(0.4)
    assert line.startswith("machine: 2 cores, ")
    (_, warning) = machine_lines(1.0)
    assert warning.startswith("warning: the machine is busy")


# What is measured


def test_the_sides_of_a_comparison_take_turns() -> None:
    order = []

    def side(name: str) -> Cost:
        order.append(name)
        return Cost(num_units=1, wall_s=len(order), cpu_s=1)

    one, other = in_turn(3, lambda: side("A"), lambda: side("B"))
    assert order == ["A", "B"] * 3
    assert ([cost.wall_s for cost in one], [cost.wall_s for cost in other]) == ([1, 3, 5], [2, 4, 6])


def test_a_warm_process_keeps_its_state_and_hands_on_errors() -> None:
    process = WarmProcess()
    try:
        assert process.call(os.getpid) == process.call(os.getpid) != os.getpid()
        with pytest.raises(FileNotFoundError):
            process.call(os.stat, "/does/not/exist")
        assert process.call(len, "goes on") == 7
        with pytest.raises(ReplayProcessDied, match="ended with status -9"):
            process.call(os.kill, process.call(os.getpid), signal.SIGKILL)
    finally:
        process.close()


def test_rates_are_by_the_clock_and_by_the_cpu_time() -> None:
    cost = Cost(num_units=10, wall_s=2, cpu_s=4)
    assert (cost.rate_per_s, cost.rate_per_core_s) == (5, 2.5)


def test_bare_steps_are_those_of_both_horizons() -> None:
    step_cpu_s = [0.0] * 10 + [1.0] * 45 + [0.0] * 5 + [2.0] * 45
    cost = bare_cost(step_cpu_s, [10.0, 60.0], 45)
    assert (cost.num_units, cost.cpu_s) == (2, 2 * 45 * 1.0 + 2 * 45 * 2.0)


def _steps_counted_by(work: Sequence[object], path: Path) -> None:
    """Call work[0](*work[1:]) and append a byte to `path` for each step, also in forks."""
    function, *arguments = work
    step = Simulation.step

    def counted(simulation: Simulation) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, b".")
        os.close(descriptor)
        step(simulation)

    Simulation.step = counted  # type: ignore[method-assign]
    function(*arguments)  # type: ignore[operator]


def test_live_bare_and_fresh_replays_simulate_as_many_steps(requests: list[ReplayRequest], tmp_path: Path) -> None:
    settings = OutcomeSettings()
    files = requests[0].sumo.files_in(Path(requests[0].dataset_dir))

    def num_steps(*work: object) -> int:
        path = tmp_path / "steps"
        path.unlink(missing_ok=True)
        in_new_process(_steps_counted_by, work, path)
        return path.stat().st_size

    a_replay = 2 * settings.horizon_s
    # one replay warms up
    assert num_steps(live_cost, requests, settings) == (1 + len(requests)) * a_replay
    assert num_steps(fresh_libsumo_queue_veh_s, requests, settings.horizon_s) == len(requests) * a_replay
    assert num_steps(bare_step_cpu_s, files, 200, requests[0].timing) == 200
    assert bare_cost([1.0] * 200, [100.0] * len(requests), settings.horizon_s).cpu_s == len(requests) * a_replay


def test_the_alternatives_simulate_the_same_traffic(requests: list[ReplayRequest]) -> None:
    """One simulates with a new sumo over TraCI, the other with libsumo."""
    expected = in_new_process(fresh_libsumo_queue_veh_s, requests[:1], 45)
    with warm_processes(1) as (traci,):
        assert traci.call(queues_veh_s, traci_replays(requests[:1]), 45) == expected
    assert sum(expected) > 0


def test_the_city_is_the_largest_net_in_the_wheel() -> None:
    nets = Path(sumo.SUMO_HOME, "tools").rglob("*.net.xml")
    assert max(nets, key=lambda path: path.stat().st_size) == Path(sumo.SUMO_HOME, CITY_NET)


def test_live_replays_are_compared_with_the_bare_steps_of_their_own_episode(
    small_dataset: Path, short_scenario: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(replay_speed, "default_dataset", lambda folder, episodes: small_dataset)
    monkeypatch.setattr(replay_speed, "DEFAULT_SCENARIO", short_scenario)
    row, start = bare_rows(tmp_path, Effort(**{**vars(QUICK), "repetitions": 1, "live_replays": 2}))
    assert row.name == "replay-bare"
    assert start.name == "replay-bare-start" and 0 < start.ratio < 1
    assert row.beside is not None and row.beside > row.value > 0


def test_labels_are_compared_with_the_bare_steps_of_their_continuations(
    short_scenario: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(label_speed, "DEFAULT_SCENARIO", short_scenario)
    monkeypatch.setitem(label_speed.LABELLED, "label-four_way", (str(short_scenario), 0.5))
    row, *parts = label_speed.label_rows(tmp_path, QUICK, name="label-four_way")
    assert row.beside is not None and row.beside > row.value > 0
    # the parts are all of a label's time
    assert sum(part.value for part in parts) == pytest.approx(1000 / row.value)
    assert all(part.value > 0 for part in parts)


def test_the_size_of_a_sample_is_compared_with_gzip_and_json(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(label_speed, "default_dataset", lambda folder, episodes: small_dataset)
    (row,) = label_speed.size_rows(tmp_path, QUICK)
    samples = json.loads((small_dataset / "grpo_dataset.json").read_text())
    assert row.value * len(samples) > (small_dataset / "grpo_dataset.json").stat().st_size
    assert row.ratio is not None and row.ratio < 0.7


def test_quick_measures_the_same_with_less() -> None:
    assert all(vars(QUICK)[name] < value for name, value in vars(FULL).items())


# The GRPO step


def test_steps_alternate_between_live_and_cached_after_a_live_one() -> None:
    assert [mode_of_step(version) for version in range(4)] == [LIVE, CACHED, LIVE, CACHED]


def test_a_live_step_is_asked_without_the_label(small_dataset: Path) -> None:
    sample = samples_of(small_dataset)[0]
    labelled = ground_truth(sample, small_dataset, labelled=True)
    known, stripped = parse_ground_truth(labelled), parse_ground_truth(without_label(labelled))
    assert known.outcomes is not None and stripped.outcomes is None
    assert known.request == stripped.request
    assert without_label(labelled) == ground_truth(sample, small_dataset, labelled=False)


def test_the_timed_score_is_compute_score_s_and_its_time_is_written(small_dataset: Path, tmp_path: Path) -> None:
    truth = ground_truth(samples_of(small_dataset)[0], small_dataset, labelled=True)
    log = tmp_path / "rewards.jsonl"
    score = asyncio.run(
        timed_score("tsc", Decision.YES.answer, truth, {"min_global_steps": 3}, log=str(log), audit_fraction=0.0)
    )
    assert score["outcome_from_sample"] == 1.0
    (line,) = map(json.loads, log.read_text().splitlines())
    assert line["version"] == 3 and line["done_s"] >= line["arrived_s"]


def test_steps_are_read_from_verl_s_metrics_and_the_times_of_the_rewards(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    records = [
        {"step": step, "data": {"timing_s/step": 20.0, "timing_s/gen": gen, "timing_s/save_checkpoint": saved}}
        for step, gen, saved in ((1, 15.0, 0.0), (2, 8.0, 0.0), (3, 10.0, 4.0))
    ]
    (tmp_path / "metrics/a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    calls = [(0, 0.0, 9.0), (1, 10.0, 10.3), (1, 10.1, 10.2), (2, 20.0, 22.0), (2, 20.0, 24.0)]
    (tmp_path / "rewards.jsonl").write_text(
        "".join(json.dumps({"version": v, "arrived_s": begin, "done_s": end}) + "\n" for v, begin, end in calls)
    )
    steps = read_steps(tmp_path)
    assert [(step.mode, step.step_s, round(step.wait_s, 6)) for step in steps] == [
        (CACHED, 20.0, 0.2),
        (LIVE, 16.0, 4.0),
    ]
    cached, live, wait = rows_of(steps, num_prompts=128)
    assert (cached.name, round(cached.ratio or 0, 6), cached.ok) == ("step-cached", 0.01, True)
    assert (live.name, round(live.value, 6), live.beside, live.ok) == ("step-live", 10.0 - 8.0 + 0.2, 16.0, True)
    assert (wait.name, wait.ratio, wait.ok) == ("step-live-wait", 0.25, None)


def test_waiting_is_the_median_over_pairs_of_neighbouring_steps() -> None:
    generation_s = [(5, 6), (10, 19), (20, 22)]  # the machine slows down
    steps = [
        Step(mode=mode, step_s=10, generation_s=seconds, wait_s=0)
        for pair in generation_s
        for mode, seconds in zip((CACHED, LIVE), pair, strict=True)
    ]
    assert [(row.value, row.ratio) for row in rows_of(steps, num_prompts=1)] == [(0, 0), (2, 0.2), (0, 0)]


# The command


def _run(repo_root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repo_root / "scripts/benchmark.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_an_unknown_row_is_told_with_the_nearest_spelling(repo_root: Path, tmp_path: Path) -> None:
    done = _run(repo_root, "reward", "--only", "replay-city", "replay-bear", "--folder", str(tmp_path / "none"))
    assert done.returncode == 2
    assert "--only 'replay-bear' is unknown: did you mean 'replay-bare'? choose from replay-bare, " in done.stderr
    assert not (tmp_path / "none").exists()


def test_only_the_named_rows_are_measured(repo_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(repo_root / "scripts"))
    import benchmark

    called = []

    def rows(*names: str) -> benchmark.Measure:
        def measure(folder: Path, effort: Effort) -> list[Row]:
            called.append(names)
            return [Row(name=name, what="", value=1, unit="s") for name in names]

        return measure

    measures = {rows("a", "b"): ("a", "b"), rows("c"): ("c",), rows("d"): ("d",)}
    measured = benchmark.measure(measures, ["d", "b"], tmp_path, QUICK)
    assert [row.name for row in measured] == ["b", "d"]
    assert called == [("a", "b"), ("d",)]
    assert [row.name for row in benchmark.measure(measures, [], tmp_path, QUICK)] == ["a", "b", "c", "d"]


def test_a_failure_leaves_the_rows_before_it(repo_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(repo_root / "scripts"))
    import benchmark

    def measured(folder: Path, effort: Effort) -> list[Row]:
        return [_row(1)]

    def failing(folder: Path, effort: Effort) -> list[Row]:
        raise TscError("no measurement")

    file = tmp_path / "rows.json"
    name = _row(1).name
    with pytest.raises(TscError, match="no measurement"):
        benchmark.measure({measured: (name,), failing: ("b",)}, [], tmp_path, QUICK, file)
    assert [row["name"] for row in json.loads(file.read_text())] == [name]


@pytest.mark.parametrize(("value", "status"), [(3.0, 0), (1.0, 1)])
def test_the_exit_status_tells_whether_every_row_reaches_what_it_must(
    repo_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: float, status: int
) -> None:
    monkeypatch.syspath_prepend(str(repo_root / "scripts"))
    import benchmark

    def measure(folder: Path, effort: Effort) -> list[Row]:
        return [_row(1), _row(value, 1, Bound(at="least", value=2))]

    monkeypatch.setattr(benchmark, "REWARD", {measure: ("speed",)})
    file = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "reward", "--json", str(file), "--folder", str(tmp_path)])
    assert benchmark.main() == status
    assert [row["ok"] for row in json.loads(file.read_text())] == [None, status == 0]
