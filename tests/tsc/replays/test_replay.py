"""Saved states replayed against the labels that came from forks of the live simulation."""

import dataclasses
import gzip
import json
import random
import re
import shutil
from pathlib import Path

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.cost.outcome import Outcomes, OutcomeSettings
from tsc.errors import ReplayError, ScenarioError, StateError, UnknownJunction
from tsc.junction.decision import Decision
from tsc.replays.replay import replay, replay_continuations
from tsc.replays.request import ReplayRequest
from tsc.replays.sample import Sample
from tsc.replays.saved_state import state_time_s
from tsc.replays.state_archive import state_bytes

SETTINGS = OutcomeSettings()


@pytest.fixture(scope="module")
def samples(small_dataset: Path) -> list[Sample]:
    return [Sample.model_validate(values) for values in json.loads((small_dataset / "grpo_dataset.json").read_text())]


@pytest.fixture(scope="module")
def requests(small_dataset: Path, samples: list[Sample]) -> list[ReplayRequest]:
    return [ReplayRequest.from_sample(sample, small_dataset) for sample in samples]


def _replay_all(requests: list[ReplayRequest]) -> list[Outcomes]:
    return [replay(request, SETTINGS) for request in requests]


def _ends(requests: list[ReplayRequest]) -> list[dict[Decision, str]]:
    return [
        {decision: each.end for decision, each in replay_continuations(request, SETTINGS).items()}
        for request in requests
    ]


def test_live_replays_go_the_way_of_the_forked_simulation(samples: list[Sample], requests: list[ReplayRequest]) -> None:
    """Every vehicle ends on the same lane, at the same position and speed, to the last bit."""
    labelled = [sample.outcomes.ends for sample in samples if sample.outcomes]
    assert in_new_process(_ends, requests) == labelled


def test_live_replays_have_the_costs_of_the_forked_labels(samples: list[Sample], requests: list[ReplayRequest]) -> None:
    labels = [sample.outcomes.outcomes for sample in samples if sample.outcomes]
    assert in_new_process(_replay_all, requests) == labels


def _with_demand_to_be_read(small_dataset: Path, request: ReplayRequest, folder: Path) -> ReplayRequest:
    """SUMO's mark of how far it had read the route files, set to the second of the state."""
    moved = dataclasses.replace(request, dataset_dir=str(_copy(small_dataset, folder)), state_sha256=None)
    text = state_bytes(moved.state_path).decode()
    read_until = f'loaderTime="{round(state_time_s(text) * 1000)}"'
    text = re.sub(r'(<delay [^>]*?)( loaderTime="\d+")?/>', rf"\1 {read_until}/>", text)
    return _with_state(moved, gzip.compress(text.encode()))


def _with_state(moved: ReplayRequest, state: bytes) -> ReplayRequest:
    """The same request with another state, in a file of its own."""
    (Path(moved.dataset_dir) / "t1.xml.gz").write_bytes(state)
    return dataclasses.replace(moved, state_file="t1.xml.gz")


def test_a_state_that_does_not_hold_its_demand_is_replayed_with_the_route_files(
    small_dataset: Path, samples: list[Sample], requests: list[ReplayRequest], tmp_path: Path
) -> None:
    request = _with_demand_to_be_read(small_dataset, requests[3], tmp_path)
    assert in_new_process(_ends, [request]) == [samples[3].outcomes and samples[3].outcomes.ends]
    Path(request.dataset_dir, request.sumo.route_files[0]).unlink()
    with pytest.raises(ScenarioError, match="demand"):
        in_new_process(
            _ends, [dataclasses.replace(request, sumo=request.sumo.model_copy(update={"route_sha256": None}))]
        )


def test_replays_do_not_depend_on_their_order_nor_on_the_process(requests: list[ReplayRequest]) -> None:
    some = requests[:12]
    shuffled = some.copy()
    random.Random(1).shuffle(shuffled)
    straight = dict(zip([r.sample_id for r in some], in_new_process(_replay_all, some), strict=True))
    mixed = dict(zip([r.sample_id for r in shuffled], in_new_process(_replay_all, shuffled), strict=True))
    alone = in_new_process(_replay_all, some[5:6])
    assert mixed == straight
    assert alone == [straight[some[5].sample_id]]


def _copy(small_dataset: Path, folder: Path) -> Path:
    shutil.copytree(small_dataset, folder / "copy")
    return folder / "copy"


def test_a_moved_dataset_gives_the_same_costs(
    small_dataset: Path, requests: list[ReplayRequest], tmp_path: Path
) -> None:
    moved = dataclasses.replace(requests[0], dataset_dir=str(_copy(small_dataset, tmp_path)))
    assert in_new_process(_replay_all, [moved]) == in_new_process(_replay_all, requests[:1])


def test_a_missing_state_is_named(requests: list[ReplayRequest]) -> None:
    with pytest.raises(StateError, match=r"nowhere\.xml\.gz does not exist"):
        in_new_process(_replay_all, [dataclasses.replace(requests[0], state_file="nowhere.xml.gz")])


def test_a_changed_state_is_found_by_its_digest(
    small_dataset: Path, requests: list[ReplayRequest], tmp_path: Path
) -> None:
    moved = dataclasses.replace(requests[0], dataset_dir=str(_copy(small_dataset, tmp_path)))
    changed = _with_state(moved, state_bytes(moved.state_path)[:-200])
    with pytest.raises(StateError, match="changed or damaged"):
        in_new_process(_replay_all, [changed])


def test_a_truncated_state_without_digest_is_an_error_and_no_number(
    small_dataset: Path, requests: list[ReplayRequest], tmp_path: Path
) -> None:
    moved = dataclasses.replace(requests[0], dataset_dir=str(_copy(small_dataset, tmp_path)), state_sha256=None)
    text = state_bytes(moved.state_path)
    truncated = _with_state(moved, gzip.compress(text[: len(text) // 2]))
    with pytest.raises(StateError, match=truncated.state_file):
        in_new_process(_replay_all, [truncated])


def test_another_demand_is_found_by_its_digest(
    small_dataset: Path, requests: list[ReplayRequest], tmp_path: Path
) -> None:
    moved = dataclasses.replace(requests[0], dataset_dir=str(_copy(small_dataset, tmp_path)))
    route_file = Path(moved.dataset_dir, moved.sumo.route_files[0])
    route_file.write_text(route_file.read_text().replace('depart="9"', 'depart="8"'))
    with pytest.raises(ScenarioError, match=r"demand\.rou\.xml is not the file"):
        in_new_process(_replay_all, [moved])


def test_a_state_of_another_sumo_is_refused(requests: list[ReplayRequest]) -> None:
    old = dataclasses.replace(requests[0], sumo=requests[0].sumo.model_copy(update={"version": "1.19.0"}))
    with pytest.raises(StateError, match=r"saved by SUMO 1\.19\.0"):
        in_new_process(_replay_all, [old])


def test_an_unknown_junction_is_named(requests: list[ReplayRequest]) -> None:
    with pytest.raises(UnknownJunction, match="'Z9'.*choose one of A0"):
        in_new_process(_replay_all, [dataclasses.replace(requests[0], junction_id="Z9")])


def test_a_clock_of_another_state_is_rejected(requests: list[ReplayRequest]) -> None:
    clock = requests[0].clocks["A0"]
    clocks = {"A0": clock.model_copy(update={"stage": 1 - clock.stage})}
    with pytest.raises(ReplayError, match="do not belong together"):
        in_new_process(_replay_all, [dataclasses.replace(requests[0], clocks=clocks)])


def test_a_sample_without_clocks_replays_from_what_the_state_shows(requests: list[ReplayRequest]) -> None:
    """The only junction's clock follows from current_green_elapsed, so nothing is lost."""
    bare = dataclasses.replace(requests[0], clocks={})
    assert in_new_process(_replay_all, [bare]) == in_new_process(_replay_all, requests[:1])
