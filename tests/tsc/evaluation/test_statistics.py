import pytest

from tsc.evaluation.statistics import interval95, markdown_table, paired_difference, result_rows


def episodes() -> list[dict[str, object]]:
    queues = {"static": [6.0, 7.0, 8.0], "grpo": [1.0, 2.0, 3.0]}
    return [
        {
            "scenario": "four_way",
            "controller": controller,
            "seed": 1001 + number,
            "mean_queue_veh": queue,
            "waiting_time_s": 2 * queue,
            "trip_duration_s": 60 + queue,
            "invalid_answers": 0,
        }
        for controller, values in queues.items()
        for number, queue in enumerate(values)
    ]


def test_the_interval_is_students() -> None:
    # mean 2, standard deviation 1, t(0.975, 2) = 4.303: half width 4.303 / sqrt(3)
    assert interval95([1, 2, 3]) == pytest.approx((2, 2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert interval95([5]) == (5, 5, 5)


def test_a_constant_shift_has_a_paired_interval_of_no_width() -> None:
    assert paired_difference(episodes(), "four_way", "mean_queue_veh", "grpo", "static") == (-5, -5, -5)


def test_rows_name_controller_metric_interval_and_seeds() -> None:
    rows = result_rows(episodes(), "four_way")
    assert len(rows) == 2 * 4
    row = next(r for r in rows if r["controller"] == "grpo" and r["metric"] == "waiting_time_s")
    assert row["mean"] == 4 and row["seeds"] == [1001, 1002, 1003]
    assert row["ci95_low"] < 4 < row["ci95_high"]


def test_the_table_has_a_line_for_each_controller() -> None:
    lines = markdown_table(result_rows(episodes(), "four_way")).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["static", "grpo"]
    assert len({len(line) for line in lines}) == 1
