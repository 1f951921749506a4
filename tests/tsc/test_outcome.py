from pathlib import Path

import pytest

from tsc.decision import Decision
from tsc.errors import ConfigError
from tsc.outcome import Outcomes, OutcomeSettings, load_outcome_settings


def test_the_cheaper_answer_is_better() -> None:
    assert Outcomes(yes=10, no=12).better() is Decision.YES
    assert Outcomes(yes=12, no=10).better() is Decision.NO
    assert Outcomes(yes=12, no=10).saving(Decision.NO) == 2
    assert Outcomes(yes=12, no=10).saving(Decision.YES) == -2


def test_equal_costs_are_a_tie_and_so_are_close_ones_within_the_threshold() -> None:
    assert Outcomes(yes=10, no=10).better() is None
    assert Outcomes(yes=10, no=12).better(tie_threshold=2) is None


@pytest.mark.parametrize("values", [{"tail": "webster"}, {"horizon_s": 0}, {"scope": "city"}, {"measure": "co2"}])
def test_unknown_settings_are_rejected_with_the_allowed_ones(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="choose"):
        OutcomeSettings(**values)  # type: ignore[arg-type]


def test_labels_use_the_settings_of_the_reward(repo_root: Path) -> None:
    assert load_outcome_settings(repo_root / "configs/reward.yaml") == OutcomeSettings()
