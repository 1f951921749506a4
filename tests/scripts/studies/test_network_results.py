"""The row of a network: means over trainings, ratios paired over traffic seeds, and what is refused."""

import json
from pathlib import Path

import pandas as pd
import pytest
from network_results import ASKING, Trained, markdown, put_row, row, trained_in

from tsc.errors import ConfigError

SEEDS = (1001, 1002, 1003, 1004)


def trained(*model_s: float, best_classical: str = "actuated") -> Trained:
    delays_s = {"actuated": (40.0, 50.0, 60.0, 50.0), "sft": (44.0, 52.0, 62.0, 50.0), "grpo_round2": model_s}
    return Trained(
        network="cologne1",
        delays_s={name: dict(zip(SEEDS, values, strict=True)) for name, values in delays_s.items()},
        best_classical=best_classical,
        asking={"grpo_round2": dict(zip(ASKING, (0.1, model_s[0] / 100, 80.0, 6.0), strict=True))},
    )


def test_a_row_has_means_over_trainings_and_ratios_of_means() -> None:
    trainings = {2: trained(36.0, 44.0, 54.0, 42.0), 1: trained(40.0, 46.0, 58.0, 44.0)}
    found = row(trainings, reward_settings={"tail": "gap_out"})
    assert found["training_seeds"] == [1, 2] and found["seeds"] == list(SEEDS)
    mean_s, low_s, high_s = found["delay_s"]["grpo_round2"]
    assert mean_s == 45.5 and low_s < 45.5 < high_s
    ratio, low, high = found["delay_ratio_to_best_classical"]
    assert ratio == 0.91 and low < ratio < high < 1
    assert found["delay_ratio_grpo_to_sft"][0] == pytest.approx(45.5 / 52, abs=1e-4)
    assert found["asking"] == dict(zip(ASKING, (0.1, 0.38, 80, 6), strict=True))
    json.dumps(found)


def test_a_ratio_is_paired_over_the_traffic() -> None:
    # always 10 % below, however much the traffic differs
    found = row({1: trained(36.0, 45.0, 54.0, 45.0)}, reward_settings={})
    assert found["delay_ratio_to_best_classical"] == [0.9, 0.9, 0.9]


def test_trainings_on_different_traffic_are_not_mixed() -> None:
    trainings = {1: trained(1, 2, 3, 4), 2: trained(1, 2, 3, 4, best_classical="static")}
    with pytest.raises(ConfigError, match="trainings on cologne1 were evaluated on different traffic"):
        row(trainings, reward_settings={})


def test_a_row_replaces_that_of_its_network_alone(tmp_path: Path) -> None:
    file = tmp_path / "results/networks.json"
    for network, seeds in (("cologne1", 1), ("rilsa1", 2), ("cologne1", 3)):
        put_row({"network": network, "seeds": [seeds]}, file)
    assert json.loads(file.read_text()) == [{"network": "cologne1", "seeds": [3]}, {"network": "rilsa1", "seeds": [2]}]


def test_an_evaluation_is_read_without_controllers_that_do_not_apply(tmp_path: Path) -> None:
    folder = tmp_path / "eval"
    folder.mkdir()
    episodes = [
        {"scenario": "one", "controller": "static", "seed": 1, "delay_s": 30.0},
        {"controller": "webster", "seed": 1, "not_applicable": "links"},
        {"controller": "sft", "seed": 1, "delay_s": 20.0, **dict(zip(ASKING, (0.1, 0.3, 80, 6), strict=True))},
        {"controller": "sft", "seed": 2, "delay_s": 22.0, **dict(zip(ASKING, (0.1, 0.5, 90, 6), strict=True))},
    ]
    (folder / "episodes.jsonl").write_text("".join(json.dumps(each) + "\n" for each in episodes))
    pd.DataFrame({"controller": ["static", "sft"], "reference": ["static", "static"]}).to_csv(folder / "summary.csv")
    delays_s = {"static": {1: 30.0}, "sft": {1: 20.0, 2: 22.0}}
    found = trained_in(tmp_path)
    assert (found.network, found.delays_s, found.best_classical) == ("one", delays_s, "static")
    assert found.asking == {"sft": pytest.approx(dict(zip(ASKING, (0.1, 0.4, 85, 6), strict=True)))}


def test_the_table_has_the_delays_of_the_last_round_and_the_means_of_the_ratios() -> None:
    def of(network: str, last_s: float, ratio: float) -> dict[str, object]:
        delays_s = {"gap_out": [40.0, 39.0, 41.0], "lookahead": [30.0], "sft": [41.0], "grpo": [38.0]}
        return {
            "network": network, "best_classical": "gap_out", "delay_s": {**delays_s, "grpo_round2": [last_s]},
            "delay_ratio_to_best_classical": [ratio, 0.8, 0.96], "delay_ratio_grpo_to_sft": [0.9],
        }  # fmt: skip

    asking = dict(zip(ASKING, (0.116, 0.88, 86.96, 6.0), strict=True))
    lines = markdown([of("one", 36.04, 0.9) | {"asking": asking}, of("two", 32.0, 0.8)]).splitlines()
    assert lines[2] == "| one | gap_out | 40.0 | 30.0 | 41.0 | 36.0 | 0.90 [0.80, 0.96] | 0.90 | 0.12, 0.88 | 87, 6 |"
    assert lines[3].endswith("| 0.90 |  |  |")  # a row of an earlier version
    assert lines[-1] == "| mean |  |  |  |  |  | 0.85 | 0.90 |  |  |"


def test_the_manual_has_the_table_of_the_results(repo_root: Path) -> None:
    rows = json.loads((repo_root / "docs/results/networks.json").read_bytes())
    assert markdown(rows) in (repo_root / "docs/evaluation.md").read_text()
