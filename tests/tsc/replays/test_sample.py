import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tsc.cost.outcome import OutcomeSettings
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
        ({"current_green_elapsed": 5}, "not a decision point"),
        ({"current_green_elapsed": 60}, "not a decision point"),
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


OURS: dict[str, Any] = {
    "schema_version": 1,
    "id": "four_way-seed0001-t00300-A0",
    "junction_id": "A0",
    "prompt": [{"role": "user", "content": "Extend?"}],
    "state_file": "states/t00300.xml.gz",
    "state_sha256": "a" * 64,
    "current_green_elapsed": 15.0,
    "min_green": 10.0,
    "max_green": 60.0,
    "clocks": {
        "A0": {"mode": "green", "stage": 0, "elapsed_green_s": 15.0, "phase_remaining_s": 0.0},
        "B0": {"mode": "clearing", "stage": 1, "elapsed_green_s": 22.0, "phase_remaining_s": 2.0},
    },
    "sumo": {
        "version": "1.28.0",
        "net_file": "scenario/net.net.xml",
        "route_files": ["demand.rou.xml"],
        "net_sha256": "b" * 64,
        "route_sha256": ["c" * 64],
        "seed": 7,
        "step_length_s": 1.0,
        "time_to_teleport_s": -1.0,
    },
}
FOREIGN: dict[str, Any] = {
    **{key: OURS[key] for key in ("prompt", "state_file", "junction_id", "current_green_elapsed")},
    "min_green": 10,
    "max_green": 60,
    "clocks": {"A0": {"mode": "green", "stage": 0, "elapsed_green_s": 15, "since": "t"}},
    "sumo": {
        "version": "1.28.0",
        "net_file": "n.net.xml",
        "route_files": ["a.rou.xml", "b.rou.xml"],
        "additional_files": ["det.add.xml"],
        "remark": "foreign",
    },
}


@pytest.mark.parametrize(
    ("values", "text", "digests"),
    [
        (
            OURS,
            '{"sample_id":"four_way-seed0001-t00300-A0","dataset_dir":"/data","junction_id":"A0",'
            f'"state_file":"states/t00300.xml.gz","state_sha256":"{"a" * 64}","current_green_elapsed_s":15.0,'
            '"min_green_s":10,"max_green_s":60,"green_extension_s":5,'
            '"clocks":{"A0":{"mode":"green","stage":0,"elapsed_green_s":15.0,"phase_remaining_s":0.0},'
            '"B0":{"mode":"clearing","stage":1,"elapsed_green_s":22.0,"phase_remaining_s":2.0}},'
            '"sumo":{"version":"1.28.0","net_file":"scenario/net.net.xml","route_files":["demand.rou.xml"],'
            f'"additional_files":[],"net_sha256":"{"b" * 64}","route_sha256":["{"c" * 64}"],"seed":7,'
            '"step_length_s":1.0,"time_to_teleport_s":-1.0}}',
            (
                "72fdbe824e2391e6177365ed440cd0384fd91b31dd138934b77573319b402d67",
                "a06862d823378aa252dadd4bcb6ef66dc0e7344925c099d7936798d1b3621df1",
            ),
        ),
        (
            FOREIGN,
            '{"sample_id":"states/t00300.xml.gz","dataset_dir":"/data","junction_id":"A0",'
            '"state_file":"states/t00300.xml.gz","state_sha256":null,"current_green_elapsed_s":15.0,'
            '"min_green_s":10,"max_green_s":60,"green_extension_s":5,'
            '"clocks":{"A0":{"mode":"green","stage":0,"elapsed_green_s":15.0,"phase_remaining_s":0.0,"since":"t"}},'
            '"sumo":{"version":"1.28.0","net_file":"n.net.xml","route_files":["a.rou.xml","b.rou.xml"],'
            '"additional_files":["det.add.xml"],"net_sha256":null,"route_sha256":null,"seed":0,'
            '"step_length_s":1.0,"time_to_teleport_s":-1.0,"remark":"foreign"}}',
            (
                "12ab6c55e2bc0e1145935f865c50711cc85a538c8ff6d96666d120ff3e4d04dd",
                "71646243cbb0d704c35dd5f0fecf80193d9d7f178eb5bf04bd2143a35fbe2fa5",
            ),
        ),
    ],
)
def test_rows_and_kept_outcomes_of_earlier_versions_still_fit(
    values: dict[str, Any], text: str, digests: tuple[str, str]
) -> None:
    """The text of a Parquet row and the keys of kept outcomes are what they were."""
    request = ReplayRequest.from_sample(Sample.model_validate(values), Path("/data"))
    assert json.dumps(request.to_json(), separators=(",", ":")) == text
    assert ReplayRequest.from_json(json.loads(text)) == request
    for settings, digest in zip((OutcomeSettings(), OutcomeSettings(terms=("switches",))), digests, strict=True):
        assert request.digest(settings, "1.28.0") == digest
