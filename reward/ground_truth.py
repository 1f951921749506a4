"""The `ground_truth` of a Parquet row: the replay of one decision point, and its outcomes if they are known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from pydantic import ValidationError

from tsc.cost.outcome import Outcomes, OutcomeSettings
from tsc.errors import SampleError
from tsc.replays.request import ReplayRequest, faults_in
from tsc.replays.sample import SampleOutcomes
from tsc.sumo.version import installed_sumo_version

_REMEDY = "convert the dataset again with json_to_parquet"


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """scenario: the name of the sample's scenario; empty if the row does not say it."""

    request: ReplayRequest
    outcomes: Outcomes | None
    outcome_settings: OutcomeSettings | None
    scenario: str = ""

    def known_outcomes(self, settings: OutcomeSettings) -> Outcomes | None:
        """The sample's own outcomes. None if it has none, or if they were not computed under these settings with all
        their terms."""
        return self.outcomes if self.outcome_settings and self.outcome_settings.covers(settings) else None

    def digest(self, settings: OutcomeSettings) -> str:
        """Names the outcomes of this decision point under `settings` and the installed SUMO."""
        digest = self._digests.get(settings)
        if digest is None:
            digest = self._digests[settings] = self.request.digest(settings, installed_sumo_version())
        return digest

    @cached_property
    def _digests(self) -> dict[OutcomeSettings, str]:
        return {}


# What is kept of a row is some four times its text: 40 MB of usual rows, 50 MB of rows with embedded files.
_LONG_CHARS = 4096
_NUM_SHORT_KEPT = 8192
_NUM_LONG_KEPT = 256


def parse_ground_truth(text: str) -> GroundTruth:
    """Raises SampleError if `text` is not what json_to_parquet writes."""
    if not isinstance(text, str):
        raise SampleError(f"ground_truth is a {type(text).__name__}, not the JSON text of a row: {_REMEDY}")
    # a group asks for the same row many times, and parsing it takes longer than all the arithmetic of a score
    return _parse_long(text) if len(text) > _LONG_CHARS else _parse_short(text)


def _parse(text: str) -> GroundTruth:
    try:
        values = json.loads(text)
        if not isinstance(values, dict) or not isinstance(values.get("request"), dict):
            raise SampleError(f"ground_truth has no object 'request': {_REMEDY}")
        request = ReplayRequest.from_json(values["request"])
        known = _sample_outcomes(values.get("outcomes"), request.sample_id)
    except (ValueError, RecursionError) as error:
        raise SampleError(f"ground_truth is not JSON ({error}): {_REMEDY}") from error
    return GroundTruth(
        request=request,
        outcomes=known.outcomes if known else None,
        outcome_settings=known.outcome_settings if known else None,
        scenario=str(values.get("scenario", "")),
    )


_parse_short = lru_cache(maxsize=_NUM_SHORT_KEPT)(_parse)
_parse_long = lru_cache(maxsize=_NUM_LONG_KEPT)(_parse)


def _sample_outcomes(values: Any, sample_id: str) -> SampleOutcomes | None:
    if values is None:
        return None
    try:
        return SampleOutcomes.model_validate(values)
    except ValidationError as error:
        raise SampleError(f"outcomes of sample {sample_id!r} in ground_truth: {faults_in(error)}") from error
