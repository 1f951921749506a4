import json
from pathlib import Path

import pytest

from tsc.cost.outcome import Outcomes, OutcomeSettings, load_outcome_settings
from tsc.errors import ConfigError
from tsc.junction.decision import Decision


def test_the_cheaper_answer_is_better() -> None:
    assert Outcomes(yes=10, no=12).better() is Decision.YES
    assert Outcomes(yes=12, no=10).better() is Decision.NO
    assert Outcomes(yes=12, no=10).saving(Decision.NO) == 2
    assert Outcomes(yes=12, no=10).saving(Decision.YES) == -2


def test_equal_costs_are_a_tie_and_so_are_close_ones_within_the_threshold() -> None:
    assert Outcomes(yes=10, no=10).better() is None
    assert Outcomes(yes=10, no=12).better(tie_threshold=2) is None


@pytest.mark.parametrize(
    "values",
    [{"tail": "webster"}, {"horizon_s": 0}, {"scope": "city"}, {"measure": "co2"}, {"terms": ("co2",)}],
)
def test_unknown_settings_are_rejected_with_the_allowed_ones(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="choose"):
        OutcomeSettings(**values)  # type: ignore[arg-type]


def test_labels_use_the_settings_of_the_reward(repo_root: Path) -> None:
    assert load_outcome_settings(repo_root / "configs/reward.yaml") == OutcomeSettings()


def test_settings_without_terms_read_as_before_there_were_any() -> None:
    """Labels, digests and kept outcomes of then still hold."""
    plain = {"horizon_s": 45, "tail": "max_pressure", "measure": "queue_veh_s", "scope": "junction"}
    assert OutcomeSettings(measure="queue_veh_s").as_dict() == plain
    assert OutcomeSettings(**plain) == OutcomeSettings(measure="queue_veh_s")
    assert Outcomes(yes=1.0, no=2.0).as_dict() == {"yes": 1.0, "no": 2.0}


def test_terms_have_one_order_and_each_counts_once() -> None:
    one = OutcomeSettings(terms=("switches", "longest_wait_s"))
    assert one == OutcomeSettings(terms=("longest_wait_s", "switches", "longest_wait_s"))
    assert one.as_dict() != OutcomeSettings().as_dict()
    assert OutcomeSettings(**json.loads(json.dumps(one.as_dict()))) == one


def test_outcomes_with_terms_survive_json() -> None:
    settings = OutcomeSettings(terms=("switches", "longest_wait_s"))
    outcomes = Outcomes.from_costs(settings, yes=(10.0, 7.0, 2.0), no=(12.0, 9.0, 3.0))
    assert outcomes.terms == {"longest_wait_s": Outcomes(yes=7.0, no=9.0), "switches": Outcomes(yes=2.0, no=3.0)}
    assert Outcomes.from_dict(json.loads(json.dumps(outcomes.as_dict()))) == outcomes


def test_outcomes_answer_settings_that_ask_for_no_term_beyond_theirs() -> None:
    with_both = OutcomeSettings(terms=("switches", "longest_wait_s"))
    assert with_both.covers(OutcomeSettings())
    assert with_both.covers(OutcomeSettings(terms=("switches",)))
    assert not OutcomeSettings(terms=("switches",)).covers(with_both)
    assert not with_both.covers(OutcomeSettings(horizon_s=30))


def test_outcomes_by_a_function_that_was_changed_since_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "changing_costs.py"
    settings = OutcomeSettings(terms=("pkg://changing_costs:cost", "switches"))
    module.write_text("def cost(simulation, lanes):\n    return 1.0\n")
    before = settings.with_sources()
    assert before.covers(settings.with_sources())
    assert OutcomeSettings(**json.loads(json.dumps(before.as_dict()))) == before
    module.write_text("def cost(simulation, lanes):\n    return 2.0\n")
    after = settings.with_sources()
    assert not before.covers(after)
    assert before.as_dict() != after.as_dict()
    assert before.without_terms() == OutcomeSettings()


def test_a_tail_step_is_part_of_the_digest_and_its_absence_is_not() -> None:
    assert OutcomeSettings(tail_step_s=1).as_dict()["tail_step_s"] == 1
    assert not OutcomeSettings(tail_step_s=1).covers(OutcomeSettings())
    # labels from before there was one
    assert "tail_step_s" not in OutcomeSettings().as_dict()


def test_labels_have_the_terms_of_the_reward(tmp_path: Path) -> None:
    path = tmp_path / "reward.yaml"
    path.write_text("outcome: {horizon_s: 30}\nterms: {switches: 0.1, emissions_co2_g: 0}\n")
    assert load_outcome_settings(path) == OutcomeSettings(horizon_s=30, terms=("switches", "emissions_co2_g"))
    path.write_text("terms: {switches: 0.1}\nscenarios: {narrow: {horizon_s: 90}}\n")
    assert load_outcome_settings(path, "narrow") == OutcomeSettings(horizon_s=90, terms=("switches",))
    path.write_text("terms: {swiches: 0.1}\n")
    with pytest.raises(ConfigError, match=r"reward\.yaml: measure 'swiches' is unknown: did you mean 'switches'"):
        load_outcome_settings(path)
    path.write_text("terms: {'pkg://no_such_module:cost': 0.1}\n")
    with pytest.raises(ConfigError, match=r"put the folder that holds it on PYTHONPATH"):
        load_outcome_settings(path)
