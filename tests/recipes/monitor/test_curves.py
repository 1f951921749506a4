"""What trackio gets of a training's metrics."""

import json
import time
from itertools import pairwise
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from recipes.monitor.curves import Curves
from recipes.monitor.run_folder import trainings_in
from tests.recipes.monitor.made_runs import logs_of, make_run, record


def curves_of(runs: Path, num_points: int = 1000) -> Curves:
    [training] = trainings_in(runs)
    return Curves(training, num_points)


# Each test has an algorithm of its own: trackio keeps one database for each, in a folder that they share.


def test_new_steps_are_added_and_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "live", [record(1), record(2)], state="running", algorithm="added")
    curves = curves_of(tmp_path)
    curves.update()
    [metrics] = (folder / "metrics").iterdir()
    with metrics.open("a") as file:
        file.write(record(3) + record(4)[:20])
        file.flush()
        curves.update()
        assert [log["step"] for log in logs_of("added", "live")] == [1, 2, 3]
        file.write(record(4)[20:])
    curves.update()
    drawn = logs_of("added", "live")
    assert [(log["step"], log["actor/kl_loss"]) for log in drawn] == [(1, 0.01), (2, 0.02), (3, 0.03), (4, 0.04)]
    assert (curves.step, curves.last["timing_s/step"], curves.num_broken) == (4, 4.0, 0)


def test_broken_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    lines = [
        record(1),
        "{oops\n",
        '{"step": "x", "data": {}}\n',
        "[]\n",
        record(2).replace("0.02", "null"),
        "{half\n",
    ]
    make_run(tmp_path, "damaged", lines, state="crashed", algorithm="broken")
    curves = curves_of(tmp_path)
    curves.update()
    drawn = logs_of("broken", "damaged")
    assert [log["step"] for log in drawn] == [1, 2]
    assert "actor/kl_loss" not in drawn[1]  # verl writes null for a number that is not finite
    assert curves.num_broken == 4
    assert curves.step == 2


def test_a_resumed_run_replaces_the_steps_after_its_checkpoint(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "again", [record(step) for step in range(1, 8)], state="running", algorithm="resumed")
    (folder / "metrics" / "20260102T040000.jsonl").write_text(
        "".join(record(step, resumed=1.0) for step in range(6, 10))
    )
    curves = curves_of(tmp_path)
    curves.update()
    drawn = logs_of("resumed", "again")
    assert [log["step"] for log in drawn] == list(range(1, 10))
    assert [log["step"] for log in drawn if "resumed" in log] == [6, 7, 8, 9]


def test_long_curves_are_thinned_out_but_every_validation_stays(tmp_path: Path) -> None:
    def line(step: int) -> str:
        return record(step, **({"val-core/score": 0.5} if step % 1000 == 0 else {}))

    folder = make_run(tmp_path, "long", map(line, range(1, 20_001)), state="running", algorithm="thinned")
    curves = curves_of(tmp_path, num_points=200)
    start_s = time.monotonic()
    curves.update()
    assert time.monotonic() - start_s < 3
    [metrics] = (folder / "metrics").iterdir()
    for first in range(20_001, 60_001, 10_000):
        with metrics.open("a") as file:
            file.writelines(map(line, range(first, first + 10_000)))
        curves.update()
    steps = [log["step"] for log in logs_of("thinned", "long")]
    assert set(range(1000, 60_001, 1000)) <= set(steps)
    assert 150 < len(steps) < 600
    assert steps == sorted(set(steps))
    assert max(later - earlier for earlier, later in pairwise(steps)) < 1000
    assert curves.step == 60_000


def test_an_update_reads_only_what_is_new(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "grown", map(record, range(1, 50_001)), state="running", algorithm="grown")
    curves = curves_of(tmp_path)
    curves.update()
    [metrics] = (folder / "metrics").iterdir()
    with metrics.open("a") as file:
        file.write(record(50_001))
    start_s = time.monotonic()
    curves.update()
    assert time.monotonic() - start_s < 0.2
    assert curves.step == 50_001


def test_a_training_without_json_lines_is_read_from_tensorboard(tmp_path: Path) -> None:
    folder = tmp_path / "other" / "boards"
    for first in (1, 3):
        with SummaryWriter(str(folder / "tensorboard")) as writer:
            for step in (first, first + 1):
                writer.add_scalar("actor/loss", step / 2, step)
        if first == 1:
            curves = curves_of(tmp_path)
        curves.update()
    assert [(log["step"], log["actor/loss"]) for log in logs_of("boards", "other")] == [
        (1, 0.5),
        (2, 1.0),
        (3, 1.5),
        (4, 2.0),
    ]


def test_the_time_of_a_step_lies_between_the_start_and_the_last_line(tmp_path: Path) -> None:
    make_run(tmp_path, "timed", [record(step) for step in range(1, 5)], state="finished", algorithm="timed")
    curves_of(tmp_path).update()
    times = [log["timestamp"] for log in logs_of("timed", "timed")]
    assert times == sorted(times)
    assert "2026-01-02T03:04:05" < times[0] < times[-1]


def test_the_configuration_is_what_the_launch_noted(tmp_path: Path) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    folder = make_run(tmp_path, "noted", [record(1)], state="finished", algorithm="noted")
    (folder / "run.json").write_text(json.dumps({"run": "noted", "commit": "abc"}))
    curves_of(tmp_path).update()
    assert SQLiteStorage.get_run_config("noted", "noted")["commit"] == "abc"
