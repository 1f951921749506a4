"""Terms of the reward: the documented example as it is documented, keys, guards, and labels with and without terms."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from reward.compute_score import compute_score
from reward.ground_truth import parse_ground_truth
from reward.scoring import score_answer
from reward.settings import RewardSettings, load_settings
from tests.tsc.sumo_process import in_new_process
from tsc.cost.measures import MEASURES
from tsc.cost.outcome import Outcomes, OutcomeSettings, load_outcome_settings
from tsc.errors import ConfigError
from tsc.junction.decision import Answer, AnswerForm, Decision
from tsc.replays.replay import replay
from tsc.replays.request import ReplayRequest
from tsc.replays.sample import Sample

YES, NO = '{"extend": "yes"}', '{"extend": "no"}'
REPLAY = {"workers": 1, "timeout_s": 60.0}


@pytest.fixture
def example(repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the example in docs/reward.md, on PYTHONPATH as it says."""
    text = (repo_root / "docs/reward.md").read_text(encoding="utf-8")
    for name, block in re.findall(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", text, re.DOTALL):
        (tmp_path / name).write_text(block, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def requests(small_dataset: Path) -> list[ReplayRequest]:
    samples = json.loads((small_dataset / "grpo_dataset.json").read_text())
    return [ReplayRequest.from_sample(Sample.model_validate(sample), small_dataset) for sample in samples]


def truth_of(request: ReplayRequest, outcomes: Outcomes | None = None, settings: OutcomeSettings | None = None) -> str:
    values: dict[str, Any] = {"request": request.to_json(), "outcomes": None}
    if outcomes and settings:
        values["outcomes"] = {"settings": settings.as_dict(), **outcomes.as_dict()}
    return json.dumps(values)


def test_the_documented_example_scores_what_the_document_says(example: Path, requests: list[ReplayRequest]) -> None:
    settings = load_outcome_settings(example / "my_reward.yaml")
    squared, switches = Outcomes(yes=700.0, no=1000.0), Outcomes(yes=2.0, no=3.0)
    label = Outcomes(yes=90.0, no=120.0, terms={"pkg://my_costs:squared_queues": squared, "switches": switches})
    truth = truth_of(requests[0], label, settings)
    kwargs = {"settings_file": str(example / "my_reward.yaml"), "audit_fraction": 0.0}
    yes, no, invalid = (compute_score("tsc/x", answer, truth, {}, **kwargs) for answer in (YES, NO, "perhaps"))
    assert yes["outcome_from_sample"] == 1.0
    assert (round(yes["score"], 2), round(no["score"], 2)) == (0.47, -0.27)
    assert yes["term_my_costs.squared_queues"] == pytest.approx(0.3) == -no["term_my_costs.squared_queues"]
    assert yes["term_switches"] == pytest.approx(1 / 3)
    assert invalid["term_switches"] == invalid["term_my_costs.squared_queues"] == 0.0
    assert list(yes) == list(no) == list(invalid) == json.loads((example / "keys").read_text())
    # what the comment in the file says of the worst readable answer
    assert invalid["score"] < 0.05 - 1.0 - 0.1 - 0.3


def _replay_with(folder: Path, request: ReplayRequest, settings: OutcomeSettings) -> Outcomes:
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    return replay(request, settings)


def test_the_documented_function_is_called_in_a_live_replay(example: Path, requests: list[ReplayRequest]) -> None:
    path = example / "my_reward.yaml"
    request = requests[len(requests) // 2]
    live = compute_score("tsc/x", YES, truth_of(request), {}, settings_file=str(path), replay=REPLAY)
    assert live["outcome_from_replay"] == 1.0
    settings = load_settings(path)
    outcomes = in_new_process(_replay_with, example, request, settings.outcome_settings())
    squared = outcomes.terms["pkg://my_costs:squared_queues"]
    assert min(squared.yes, squared.no) > 100
    expected = score_answer(Answer(decision=Decision.YES, form=AnswerForm.EXACT), outcomes, settings).as_dict()
    assert {key: live[key] for key in expected} == pytest.approx(expected)


def test_a_function_that_fails_on_import_stops_the_first_replay_with_its_error(
    example: Path, requests: list[ReplayRequest]
) -> None:
    (example / "my_costs.py").write_text("import no_such_package\n")
    with pytest.raises(ConfigError, match=r"pkg://my_costs:squared_queues.*No module named 'no_such_package'"):
        compute_score(
            "tsc/x", YES, truth_of(requests[0]), {}, settings_file=str(example / "my_reward.yaml"), replay=REPLAY
        )


def test_a_function_that_is_not_there_stops_before_anything_is_replayed(make_ground_truth: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match=r"'pkg://gone:cost' cannot be imported .*PYTHONPATH"):
        compute_score("tsc/x", YES, make_ground_truth("ok"), {}, outcome={"measure": "pkg://gone:cost"})


def test_a_label_without_a_term_is_not_used_and_one_with_more_is(make_ground_truth: Callable[..., str]) -> None:
    two = Outcomes(yes=1.0, no=2.0)
    both = OutcomeSettings(terms=("switches", "longest_wait_s"))
    label = Outcomes(yes=90.0, no=120.0, terms={"switches": two, "longest_wait_s": two})
    kwargs = {"audit_fraction": 0.0, "format": {"invalid": -3.0}}
    truth = make_ground_truth("ok", label, both)
    one_term = compute_score("tsc/x", YES, truth, {}, terms={"switches": 1.0}, **kwargs)
    assert one_term["outcome_from_sample"] == 1.0
    assert one_term["score"] == pytest.approx(0.25 + 0.5 + 0.1)
    assert "term_longest_wait_s" not in one_term
    plain = compute_score("tsc/x", YES, truth, {}, **kwargs)
    assert (plain["outcome_from_sample"], plain["score"]) == (1.0, pytest.approx(0.35))
    without_term = parse_ground_truth(make_ground_truth("ok", Outcomes(yes=90.0, no=120.0)))
    assert without_term.known_outcomes(OutcomeSettings()) is not None
    assert without_term.known_outcomes(OutcomeSettings(terms=("switches",))) is None


@pytest.mark.parametrize("normalisation", ["relative", "sign", "clipped"])
def test_terms_are_normalised_and_turn_with_the_answer(normalisation: str) -> None:
    settings = load_settings(
        overrides={"normalisation": normalisation, "terms": {"switches": 0.5}, "format": {"invalid": -2.0}}
    )
    outcomes = Outcomes(yes=90.0, no=90.0, terms={"switches": Outcomes(yes=2.0, no=4.0)})
    yes, no = (
        score_answer(Answer(decision=decision, form=AnswerForm.EXACT), outcomes, settings) for decision in Decision
    )
    assert (yes.traffic, yes.tie) == (0.0, 1.0)
    assert yes.terms == {"term_switches": 1.0 if normalisation == "sign" else 0.5}
    assert no.terms["term_switches"] == -yes.terms["term_switches"]
    assert yes.score == pytest.approx(0.5 * yes.terms["term_switches"] + 0.1)


def test_a_cost_below_zero_is_scored_within_bounds() -> None:
    settings = load_settings()
    for yes, no, expected in ((-10.0, -5.0, 0.5), (-10.0, 10.0, 1.0), (0.0, -4.0, -1.0)):
        outcomes = Outcomes(yes=yes, no=no)
        score = score_answer(Answer(decision=Decision.YES, form=AnswerForm.EXACT), outcomes, settings)
        assert score.traffic == pytest.approx(expected)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"terms": {"switch": 0.1}}, "measure 'switch' is unknown: did you mean 'switches'?"),
        ({"terms": {"pkg://mine": 0.1}}, "write a function of your own as pkg://module:function"),
        ({"terms": {"switches": -0.1}}, "the weight of switches is -0.1: choose a number of at least 0"),
        ({"terms": {"switches": "much"}}, "the weight of switches is 'much'"),
        ({"terms": {"switches": True}}, "the weight of switches is True"),
        ({"terms": ["switches"]}, "terms"),
        ({"terms": {"switches": 0.5}}, "set format.invalid to at most -1.45"),
        ({"outcome": {"measure": "queue"}}, "measure 'queue' is unknown: did you mean 'queue_veh_s'?"),
    ],
)
def test_wrong_terms_are_told_with_the_remedy(overrides: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(overrides=overrides)
    assert told in str(caught.value)


def test_no_unreadable_answer_pays_more_than_the_worst_readable_one_with_terms() -> None:
    weights = dict.fromkeys(MEASURES, 0.2)
    settings = load_settings(overrides={"terms": weights, "format": {"invalid": 0.05 - 1.0 - sum(weights.values())}})
    worst = Outcomes(yes=9.0, no=0.0, terms={name: Outcomes(yes=9.0, no=0.0) for name in MEASURES})
    unreadable = score_answer(Answer(decision=None, form=AnswerForm.INVALID), None, settings).score
    wrong = score_answer(Answer(decision=Decision.YES, form=AnswerForm.EMBEDDED), worst, settings).score
    assert unreadable <= wrong + 1e-9


def test_an_empty_section_of_terms_is_none(tmp_path: Path) -> None:
    path = tmp_path / "reward.yaml"
    path.write_text("terms:\n")
    assert load_settings(path) == RewardSettings()
    path.write_text("terms: {switches: 0.0}\n")
    settings = load_settings(path)
    assert settings.outcome_settings().terms == ("switches",)
    assert load_settings(path, {"terms": {"emissions_co2_g": 0}}).terms == (("emissions_co2_g", 0.0), ("switches", 0.0))
    assert yaml.safe_load(path.read_text())["terms"] == settings.model_dump()["terms"]
