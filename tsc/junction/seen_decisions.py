"""The decisions that a model was trained on, and how the decisions of a network differ from them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pydantic import BaseModel, ConfigDict

from tsc.junction.timing import Timing

# the smallest and the largest value
Range = tuple[int, int]


class SeenDecisions(BaseModel):
    """num_junctions: of all scenarios together. num_stages: of a junction; None if the samples do not say it.
    min_green_s, max_green_s, green_extension_s: of the stages that were decided on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenarios: tuple[str, ...]
    prompt_versions: tuple[str, ...]
    num_junctions: int
    num_stages: Range | None
    min_green_s: Range
    max_green_s: Range
    green_extension_s: Range

    @classmethod
    def of(
        cls,
        junctions: Collection[tuple[str, str]],
        *,
        prompt_versions: Iterable[str],
        num_stages: Collection[int],
        timings: Collection[Timing],
    ) -> SeenDecisions:
        """junctions: pairs of scenario and junction. num_stages: of each of them. There is at least one timing."""
        return cls(
            scenarios=tuple(sorted({scenario for scenario, _ in junctions})),
            prompt_versions=tuple(sorted(set(prompt_versions))),
            num_junctions=len(set(junctions)),
            num_stages=_range(num_stages) if num_stages else None,
            min_green_s=_range(timing.min_green_s for timing in timings),
            max_green_s=_range(timing.max_green_s for timing in timings),
            green_extension_s=_range(timing.green_extension_s for timing in timings),
        )

    def differences(
        self, *, prompt_version: str | None, num_stages: Collection[int], timings: Collection[Timing]
    ) -> list[str]:
        """What the model is asked that it never saw, one phrase each: prompts of another version, a junction with more
        stages, greens with other bounds, another extension.

        prompt_version: None if it is unknown. num_stages: of each junction. timings: of each stage; those without a
        choice are never asked about.
        """
        found = []
        if prompt_version is not None and self.prompt_versions and prompt_version not in self.prompt_versions:
            found.append(f"prompts of version {prompt_version} (trained on {', '.join(self.prompt_versions)})")
        if self.num_stages is not None and num_stages and max(num_stages) > self.num_stages[1]:
            found.append(f"a junction with {max(num_stages)} stages (trained on {_words(self.num_stages)})")
        asked = [timing for timing in timings if timing.max_green_s > timing.min_green_s]
        for what, field in (
            ("a minimum green", "min_green_s"),
            ("a maximum green", "max_green_s"),
            ("an extension", "green_extension_s"),
        ):
            smallest, largest = seen = getattr(self, field)
            others = [value for timing in asked if not smallest <= (value := getattr(timing, field)) <= largest]
            if others:
                found.append(f"{what} of {_words(_range(others))} s (trained on {_words(seen)} s)")
        return found


def _range(values: Iterable[int]) -> Range:
    ordered = sorted(values)
    return ordered[0], ordered[-1]


def _words(values: Range) -> str:
    smallest, largest = values
    return str(smallest) if smallest == largest else f"{smallest} to {largest}"
