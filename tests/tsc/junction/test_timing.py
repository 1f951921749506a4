import pytest

from tsc.errors import ConfigError
from tsc.junction.timing import Timing


def test_decision_points_lie_between_minimum_and_maximum_every_extension() -> None:
    timing = Timing(min_green_s=10, max_green_s=26, green_extension_s=5)
    assert [second for second in range(40) if timing.is_decision_point(second)] == [10, 15, 20, 25]
    assert [second for second in range(28) if timing.is_max_out(second)] == [26, 27]


@pytest.mark.parametrize("values", [{"min_green_s": 0}, {"green_extension_s": 2.5}, {"max_green_s": 9}])
def test_bounds_that_contradict_each_other_are_rejected(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="choose"):
        Timing(**values)  # type: ignore[arg-type]
