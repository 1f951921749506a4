import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tsc.errors import SampleError
from tsc.replays.request import ReplayRequest
from tsc.replays.sample import Sample, find_dataset_files

MINIMAL: dict[str, Any] = {
    "prompt": [{"role": "user", "content": "extend?"}],
    "state_file": "states/a.xml.gz",
    "junction_id": "J",
    "current_green_elapsed": 15,
    "min_green": 10,
    "max_green": 60,
}


def test_the_fields_of_other_generators_are_enough() -> None:
    sample = Sample.model_validate(MINIMAL)
    assert sample.clocks == {} and sample.outcomes is None and sample.timing.green_extension_s == 5


def test_fields_beyond_the_contract_are_kept() -> None:
    assert Sample.model_validate({**MINIMAL, "weather": "rain"}).to_json()["weather"] == "rain"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"current_green_elapsed": 5}, "no decision point"),
        ({"current_green_elapsed": 60}, "no decision point"),
        ({"max_green": 10}, "does not exceed"),
        ({"junction_id": ""}, "junction_id"),
        ({"prompt": []}, "prompt"),
        ({"schema_version": 2}, "schema_version"),
        ({"state_sha256": "abc"}, "state_sha256"),
        ({"outcomes": {"settings": {"tail": "x"}, "yes": 1, "no": 2}}, "tail"),
        ({"outcomes": {"settings": {}, "yes": 1, "no": 2}, "expert_decision": "no"}, "expert_decision"),
        ({"outcomes": {"settings": {}, "yes": float("nan"), "no": 2}}, "yes"),
        ({"outcomes": {"settings": {}, "yes": -1, "no": 2}}, "queue_veh_s is never negative"),
        ({"outcomes": {"settings": {"terms": ["switches"]}, "yes": 1, "no": 2}}, "there are costs for none"),
    ],
)
def test_a_faulty_field_is_named(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        Sample.model_validate({**MINIMAL, **change})


def test_a_sample_without_its_sumo_files_says_how_to_name_them() -> None:
    with pytest.raises(SampleError, match="--sumocfg"):
        ReplayRequest.from_sample(Sample.model_validate(MINIMAL), Path("."))


def test_a_request_survives_json(small_dataset: Path) -> None:
    first = json.loads((small_dataset / "grpo_dataset.json").read_text())[0]
    sample = Sample.model_validate(first)
    request = ReplayRequest.from_sample(sample, small_dataset)
    again = ReplayRequest.from_json(json.loads(json.dumps(request.to_json())))
    assert again == request
    assert sample.outcomes is not None
    settings = sample.outcomes.outcome_settings
    assert again.digest(settings, "1.28.0") == request.digest(settings, "1.28.0")


def test_the_digest_changes_with_what_decides_the_outcome_and_with_nothing_else(small_dataset: Path) -> None:
    first = json.loads((small_dataset / "grpo_dataset.json").read_text())[0]
    sample = Sample.model_validate(first)
    assert sample.outcomes is not None
    settings = sample.outcomes.outcome_settings
    base = ReplayRequest.from_sample(sample, small_dataset).to_json()

    def digest(**changes: Any) -> str:
        return ReplayRequest.from_json({**copy.deepcopy(base), **changes}).digest(settings, "1.28.0")

    assert digest(sample_id="other", dataset_dir="/elsewhere") == digest()
    for changes in ({"state_sha256": "0" * 64}, {"current_green_elapsed_s": 20.0}, {"max_green_s": 90}, {"clocks": {}}):
        assert digest(**changes) != digest()
    longer = type(settings)(**{**settings.as_dict(), "horizon_s": 60})
    request = ReplayRequest.from_json(base)
    assert request.digest(longer, "1.28.0") != request.digest(settings, "1.28.0")
    assert request.digest(settings, "1.29.0") != request.digest(settings, "1.28.0")


def test_a_file_stands_for_itself_and_a_folder_for_all_datasets_below_it(tmp_path: Path) -> None:
    array, lines = tmp_path / "grpo_dataset.json", tmp_path / "more" / "grpo_dataset.jsonl"
    lines.parent.mkdir()
    for path in (array, lines, tmp_path / "other.json"):
        path.write_text("[]")
    assert find_dataset_files(tmp_path) == [array, lines]
    assert find_dataset_files(tmp_path / "other.json") == [tmp_path / "other.json"]


def test_a_folder_without_a_dataset_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="generate_dataset"):
        find_dataset_files(tmp_path)


@pytest.mark.parametrize(("verdict", "is_faithful"), [("identical", True), ("same_answer", True), ("failed", False)])
def test_a_mark_tells_whether_the_replay_favours_the_label(verdict: str, is_faithful: bool) -> None:
    sample = Sample.model_validate({**MINIMAL, "replay": {"verdict": verdict}})
    assert sample.replay is not None
    assert sample.replay.is_faithful is is_faithful
    assert sample.to_json()["replay"] == {"verdict": verdict}
    with pytest.raises(ValidationError, match="verdict"):
        Sample.model_validate({**MINIMAL, "replay": {"verdict": "good"}})
