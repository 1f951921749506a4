import numpy as np

from recipes.models.fit_linear_rule import LARGEST_WEIGHT, fit_rule


def test_the_rule_behind_the_answers_is_found() -> None:
    random = np.random.default_rng(1)
    counts = random.integers(0, 15, size=(3000, 3)).astype(float)
    extends = 4 * counts[:, 0] - 2 * counts[:, 1] - 5 >= 0
    rule = fit_rule(counts, extends)
    given = [rule.extends(row) for row in counts.astype(int).tolist()]
    assert np.mean(np.array(given) == extends) > 0.98
    assert max(map(abs, rule.weights)) == LARGEST_WEIGHT
    assert -56 < rule.weights[1] < -44 and abs(rule.weights[2]) < 6


def test_a_count_that_never_changes_has_no_weight() -> None:
    random = np.random.default_rng(1)
    counts = np.column_stack([random.integers(0, 9, 200), np.full(200, 7)]).astype(float)
    assert fit_rule(counts, counts[:, 0] > 4).weights[1] == 0


def test_answers_that_are_all_the_same_give_a_rule_that_always_takes_them() -> None:
    counts = np.arange(6, dtype=float).reshape(3, 2)
    assert fit_rule(counts, np.array([True] * 3)).extends((9, 9))
    assert not fit_rule(counts, np.array([False] * 3)).extends((0, 0))
    assert not fit_rule(np.empty((0, 2)), np.empty(0, dtype=bool)).extends((0, 0))
