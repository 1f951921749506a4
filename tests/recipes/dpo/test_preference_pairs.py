"""Pairs for DPO from real rows, with outcomes that are checked by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from recipes.dpo.preference_pairs import preference, write_pairs
from reward.compute_score import compute_score
from reward.settings import load_settings
from tsc.cost.outcome import Outcomes
from tsc.errors import ConfigError
from tsc.junction.decision import Decision


@pytest.fixture(scope="module")
def parquet(repo_root: Path, small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parquet")
    command = [sys.executable, str(repo_root / "data_tools/json_to_parquet.py"), "--input", str(small_dataset)]
    subprocess.run([*command, "--output", str(folder), "--ties", "keep"], check=True, timeout=120)
    return folder


def rows_with(parquet: Path, changes: list[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """The first rows of train.parquet with other outcomes; None takes them away."""
    rows = pq.read_table(parquet / "train.parquet").to_pylist()[: len(changes)]
    for row, change in zip(rows, changes, strict=True):
        truth = json.loads(row["reward_model"]["ground_truth"])
        truth["outcomes"] = None if change is None else truth["outcomes"] | change
        row["reward_model"]["ground_truth"] = json.dumps(truth)
    return rows


def written(folder: Path, parquet: Path, changes: list[dict[str, Any] | None]) -> Path:
    schema = pq.read_schema(parquet / "train.parquet")
    folder.mkdir(exist_ok=True)
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(rows_with(parquet, changes), schema=schema), folder / "train.parquet")
    return folder


def test_the_cheaper_answer_is_chosen_with_the_relative_gap_as_margin_and_ties_are_left_out(
    parquet: Path, tmp_path: Path
) -> None:
    costs = [{"yes": 30.0, "no": 40.0}, {"yes": 20.0, "no": 20.0}, {"yes": 50.0, "no": 10.0}, {"yes": 0.0, "no": 7.0}]
    source = written(tmp_path / "in", parquet, costs)
    sides = write_pairs(source, tmp_path / "out", load_settings())
    assert sides["train"].num_ties == 1
    assert len(sides["val"].rows) == 0
    table = pq.read_table(tmp_path / "out/train.parquet").to_pylist()
    yes, no = [{"role": "assistant", "content": f'{{"extend": "{word}"}}'} for word in ("yes", "no")]
    assert [(pair["chosen"], pair["rejected"]) for pair in table] == [([yes], [no]), ([no], [yes]), ([yes], [no])]
    assert [pair["margin"] for pair in table] == pytest.approx([0.25, 0.8, 1.0])
    prompts = [row["prompt"] for row in rows_with(parquet, costs)]
    assert [pair["prompt"] for pair in table] == [prompts[0], prompts[2], prompts[3]]


def test_the_chosen_answer_is_the_one_that_the_reward_scores_higher(parquet: Path, tmp_path: Path) -> None:
    sides = write_pairs(parquet, tmp_path / "out", load_settings())
    rows = pq.read_table(parquet / "train.parquet").to_pylist()
    by_prompt = {json.dumps(row["prompt"]): row["reward_model"]["ground_truth"] for row in rows}
    assert len(sides["train"].rows) + sides["train"].num_ties == len(rows)
    for pair in sides["train"].rows:
        truth = by_prompt[json.dumps(pair["prompt"])]
        chosen, rejected = (
            compute_score("tsc/four_way", pair[name][0]["content"], truth)["score"] for name in ("chosen", "rejected")
        )
        # both answers keep the format, so the scores differ by the traffic part, which is the margin with either sign
        assert chosen - rejected == pytest.approx(2 * pair["margin"])


def test_terms_of_the_reward_count_for_the_pair_as_they_do_for_the_score() -> None:
    settings = load_settings(overrides={"terms": {"switches": 0.5}, "format": {"invalid": -2.0}})
    # saves a fifth of the queue by yes, and all switches by no: 1.0 · 0.2 against 0.5 · 1.0
    outcomes = Outcomes(yes=8.0, no=10.0, terms={"switches": Outcomes(yes=2.0, no=0.0)})
    preferred = preference(outcomes, settings)
    assert preferred is not None
    better, margin = preferred
    assert better is Decision.NO
    assert margin == pytest.approx((0.5 - 0.2) / 1.5)


def test_states_without_stored_outcomes_are_an_error_with_a_remedy(parquet: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "in", parquet, [{"yes": 1.0, "no": 2.0}, None, None])
    with pytest.raises(
        ConfigError, match="2 of 3 states .* lack the outcomes .* has no outcomes .*generate_dataset.py"
    ):
        write_pairs(source, tmp_path / "out", load_settings())
    assert not (tmp_path / "out").exists()


def test_outcomes_by_other_settings_than_the_rewards_are_an_error_that_names_both(
    parquet: Path, tmp_path: Path
) -> None:
    settings = load_settings(overrides={"outcome": {"horizon_s": 30}})
    with pytest.raises(ConfigError, match=r"queue_veh_s over 30 s .* has those by queue_veh_s over \d+ s"):
        write_pairs(parquet, tmp_path / "out", settings)


def test_a_dataset_of_ties_only_is_an_error(parquet: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "in", parquet, [{"yes": 3.0, "no": 3.0}])
    with pytest.raises(ConfigError, match="nothing to learn from"):
        write_pairs(source, tmp_path / "out", load_settings())


def test_the_command_tells_what_it_made(repo_root: Path, parquet: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repo_root / "recipes/dpo/preference_pairs.py"), "--input"]
    done = subprocess.run(
        [*command, str(parquet), "--output", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "train: " in done.stdout and "ties left out" in done.stdout and "margin: median" in done.stdout
    missing = subprocess.run(
        [*command, str(tmp_path / "none"), "--output", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert missing.returncode == 2
    assert "json_to_parquet.py" in missing.stderr and "Traceback" not in missing.stderr
