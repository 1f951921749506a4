"""When a green may end and when a decision is due, in seconds, the same for every controller."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tsc.errors import ConfigError

# a day: no green is longer
MAX_TIMING_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A green may end from min_green_s on and has to end at max_green_s. Between the two, one decision is due every
    green_extension_s. All are whole seconds, because decisions fall on simulation steps of one second."""

    min_green_s: int = 10
    max_green_s: int = 60
    green_extension_s: int = 5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 1 <= value <= MAX_TIMING_S or value != int(value):
                raise ConfigError(f"{name} is {value}: choose a whole number of seconds, 1–{MAX_TIMING_S}")
        if self.max_green_s < self.min_green_s:
            raise ConfigError(
                f"max_green_s of {self.max_green_s} s is below min_green_s of {self.min_green_s} s: choose at least "
                f"{self.min_green_s}; a stage with both equal has a fixed green"
            )

    def within(self, green_bounds: tuple[int, int] | None) -> Timing:
        """The timing of a stage that has bounds of its own (min, max)."""
        if green_bounds is None:
            return self
        return replace(self, min_green_s=green_bounds[0], max_green_s=green_bounds[1])

    def may_decide(self, elapsed_green_s: float) -> bool:
        """Whether a green of this age may be extended or ended. Datasets of other generators decide at any such second,
        ours at decision points only."""
        return self.min_green_s <= elapsed_green_s < self.max_green_s

    def is_decision_point(self, elapsed_green_s: float, step_s: int | None = None) -> bool:
        """step_s: between decision points, instead of green_extension_s."""
        step_s = step_s or self.green_extension_s
        return self.may_decide(elapsed_green_s) and (elapsed_green_s - self.min_green_s) % step_s == 0

    def is_max_out(self, elapsed_green_s: float) -> bool:
        return elapsed_green_s >= self.max_green_s
