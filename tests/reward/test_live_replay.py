"""compute_score with SUMO itself, on states of the four-way junction."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

import reward.compute_score as module
from reward.compute_score import compute_score
from tsc.errors import ScenarioError, StateError, TscError, UnknownJunction
from tsc.junction.decision import Decision
from tsc.replays.embedded_files import FileEmbedder
from tsc.replays.request import ReplayRequest
from tsc.replays.sample import Sample
from tsc.replays.saved_state import state_time_s
from tsc.replays.state_archive import state_bytes
from tsc.scenarios.scenario import build_net, load_scenario

YES, NO = '{"extend": "yes"}', '{"extend": "no"}'
REPLAY = {"workers": 2, "timeout_s": 60.0}
NOTHING_KEPT = {"size_limit_mb": 0}


@pytest.fixture(scope="session")
def samples(small_dataset: Path) -> list[Sample]:
    return [Sample.model_validate(values) for values in json.loads((small_dataset / "grpo_dataset.json").read_text())]


@pytest.fixture(scope="session")
def truths(small_dataset: Path, samples: list[Sample]) -> list[str]:
    """Rows with their labels."""
    return [
        json.dumps(
            {
                "request": ReplayRequest.from_sample(sample, small_dataset).to_json(),
                "outcomes": sample.outcomes.model_dump() if sample.outcomes else None,
            }
        )
        for sample in samples
    ]


@pytest.fixture(scope="session")
def unlabelled(truths: list[str]) -> list[str]:
    return [json.dumps(json.loads(truth) | {"outcomes": None}) for truth in truths[:24]]


def live_score(truth: str, answer: str = YES) -> float:
    return compute_score("tsc/four_way", answer, truth, {}, replay=REPLAY, cache=NOTHING_KEPT)["score"]


def live_scores(truths: list[str]) -> list[float]:
    return [live_score(truth) for truth in truths]


def test_labels_and_live_replays_agree(truths: list[str]) -> None:
    scores = [compute_score("tsc/four_way", YES, truth, {}, audit_fraction=1.0, replay=REPLAY) for truth in truths]
    assert all(score["audited"] == score["outcome_from_sample"] == 1.0 for score in scores)
    # vehicles that wait inside the junction start to move when a state is loaded, so a few may differ
    disagreed = sum(score["audit_disagreed"] for score in scores)
    print(f"{disagreed:g} of {len(scores)} labels have another better answer when replayed")
    assert disagreed <= 0.05 * len(scores)


def test_most_live_scores_equal_those_of_the_labels(truths: list[str], unlabelled: list[str]) -> None:
    labelled = [compute_score("tsc/four_way", YES, truth, {}, audit_fraction=0.0)["score"] for truth in truths]
    equal = sum(live == label for live, label in zip(live_scores(unlabelled), labelled, strict=False))
    print(f"{equal} of {len(unlabelled)} scores are equal")
    assert equal >= 0.8 * len(unlabelled)


def test_live_scores_are_the_same_in_any_order_from_threads_in_another_process_and_after_a_kill(
    unlabelled: list[str],
) -> None:
    first = live_scores(unlabelled)
    assert len(set(first)) > len(first) / 2  # scores that are all alike would show nothing

    module.close()
    assert live_scores(unlabelled[::-1])[::-1] == first

    module.close()
    with ThreadPoolExecutor(64) as threads:
        assert list(threads.map(live_score, unlabelled)) == first

    module.close()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        there = processes.map(compute_score, repeat("tsc/four_way"), repeat(YES), unlabelled, timeout=240)
        assert [score["score"] for score in there] == first

    half = len(unlabelled) // 2
    assert live_scores(unlabelled[:half]) == first[:half]
    for pid in module.worker_pids():
        os.kill(pid, signal.SIGKILL)
    assert live_scores(unlabelled[half:]) == first[half:]


def test_the_two_answers_score_opposite_traffic(unlabelled: list[str]) -> None:
    for truth in unlabelled:
        yes, no = (compute_score("tsc/four_way", answer, truth, {}, replay=REPLAY)["traffic"] for answer in (YES, NO))
        assert yes == -no


def test_the_scoring_process_never_loads_libsumo(unlabelled: list[str]) -> None:
    program = (
        "import sys, reward.compute_score as c; c.compute_score('tsc', sys.argv[1], sys.argv[2]); c.close(); "
        "sys.exit('libsumo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, Decision.YES.answer, unlabelled[0]], check=True, timeout=120)


def changed(truth: str, **changes: Any) -> str:
    values = json.loads(truth)
    sumo_changes = changes.pop("sumo", {})
    values["request"] |= changes
    values["request"]["sumo"] |= sumo_changes
    return json.dumps(values)


def missing_state(truth: str, _: Path) -> str:
    return changed(truth, state_file="states/gone.xml.gz")


def with_state(truth: str, folder: Path, name: str, data: bytes, **changes: Any) -> str:
    """The truth with another state, which lies in `folder` as the dataset's."""
    request = json.loads(truth)["request"]
    (folder / name).write_bytes(data)
    net, *routes = (
        str(Path(request["dataset_dir"], file))
        for file in (request["sumo"]["net_file"], *request["sumo"]["route_files"])
    )
    sumo = {"net_file": net, "route_files": routes} | changes.pop("sumo", {})
    return changed(truth, dataset_dir=str(folder), state_file=name, sumo=sumo, **changes)


def state_of(truth: str) -> bytes:
    return state_bytes(ReplayRequest.from_json(json.loads(truth)["request"]).state_path)


def altered_state(truth: str, folder: Path) -> str:
    return with_state(truth, folder, "altered.xml.gz", state_of(truth) + b"\0")


def truncated_state(truth: str, folder: Path) -> str:
    whole = state_of(truth)
    half = gzip.compress(whole[: len(whole) // 2])
    return with_state(truth, folder, "truncated.xml.gz", half, state_sha256=None)


def missing_net(truth: str, _: Path) -> str:
    return changed(truth, sumo={"net_file": "scenario/gone.net.xml"})


def changed_net(truth: str, _: Path) -> str:
    return changed(truth, sumo={"net_sha256": "0" * 64})


def state_of_another_sumo(truth: str, _: Path) -> str:
    return changed(truth, sumo={"version": "1.20.0"})


def unknown_junction(truth: str, _: Path) -> str:
    return changed(truth, junction_id="J99")


def state_of_another_net(truth: str, folder: Path) -> str:
    grid = load_scenario(Path(__file__).resolve().parents[2] / "configs/scenarios/grid.yaml")
    build_net(grid, folder / "grid.net.xml")
    return changed(truth, sumo={"net_file": str(folder / "grid.net.xml"), "net_sha256": None})


@pytest.mark.parametrize(
    ("spoil", "error_class", "told"),
    [
        (missing_state, StateError, r"gone\.xml\.gz does not exist"),
        (altered_state, StateError, r"altered\.xml\.gz has SHA-256 .* changed or damaged"),
        (truncated_state, TscError, r"truncated\.xml\.gz"),
        (missing_net, ScenarioError, r"gone\.net\.xml"),
        (changed_net, ScenarioError, r"its SHA-256 differs"),
        (state_of_another_sumo, StateError, r"saved by SUMO 1\.20\.0, but .* is installed"),
        (unknown_junction, UnknownJunction, r"'J99'"),
        (state_of_another_net, TscError, r"t\d+\.xml"),
    ],
)
def test_what_cannot_be_replayed_is_named_and_scores_nothing(
    unlabelled: list[str],
    tmp_path: Path,
    spoil: Callable[[str, Path], str],
    error_class: type[TscError],
    told: str,
) -> None:
    expected = live_score(unlabelled[1])
    with pytest.raises(error_class, match=told):
        live_score(spoil(unlabelled[0], tmp_path))
    totals = module.totals()
    assert (totals["crashed"], totals["failed_attempts"], totals["failed_replays"]) == (0, 1, 1)
    module.close()
    # and the next one, by the same worker where it was kept, is scored as if nothing had been
    assert live_score(unlabelled[1]) == expected


def test_a_fatal_error_of_sumo_inside_the_simulation_is_named_and_disturbs_no_other_replay(
    unlabelled: list[str], tmp_path: Path
) -> None:
    request = json.loads(unlabelled[0])["request"]
    routes = Path(request["dataset_dir"], request["sumo"]["route_files"][0]).read_text()
    # SUMO reads demand as it goes, so this one is met in the middle of the replay
    late = next(found for found in re.finditer(r'<vehicle id="[^"]+" depart="(\d+)', routes) if int(found[1]) >= 250)
    lost = f'<vehicle id="lost" depart="{late[1]}"><route edges="nowhere"/></vehicle>'
    (tmp_path / "lost.rou.xml").write_text(routes[: late.start()] + lost + routes[late.start() :])
    # a state of which SUMO has yet to read all demand, so that the replay reads the route files
    state = state_of(unlabelled[0]).decode()
    read_until = f'loaderTime="{round(state_time_s(state) * 1000)}"'
    state = re.sub(r'(<delay [^>]*?)( loaderTime="\d+")?/>', rf"\1 {read_until}/>", state)
    truth = with_state(
        unlabelled[0],
        tmp_path,
        "t1.xml.gz",
        gzip.compress(state.encode()),
        state_sha256=None,
        sumo={"route_files": [str(tmp_path / "lost.rou.xml")], "route_sha256": None},
    )
    expected = live_scores(unlabelled[:6])
    module.close()
    with ThreadPoolExecutor(8) as threads:
        kwargs = {"replay": REPLAY, "cache": NOTHING_KEPT, "outcome": {"horizon_s": 200}}
        failing = [threads.submit(compute_score, "tsc/four_way", YES, truth, {}, **kwargs) for _ in range(2)]
        assert list(threads.map(live_score, unlabelled[:6])) == expected
        for future in failing:
            with pytest.raises(TscError, match=r"(?s)t\d+\.xml.*The edge 'nowhere' within the route .* 'lost'"):
                future.result(timeout=60)
    totals = module.totals()
    assert (totals["crashed"], totals["failed_attempts"], totals["failed_replays"]) == (0, 1, 1)


def test_embedded_states_score_the_same_on_a_machine_without_the_dataset(unlabelled: list[str]) -> None:
    embedder = FileEmbedder()
    embedded = []
    for truth in unlabelled:
        values = json.loads(truth)
        request = embedder.embed(ReplayRequest.from_json(values["request"]))
        embedded.append(json.dumps(values | {"request": request.to_json() | {"dataset_dir": "/no/such/folder"}}))
    expected = live_scores(unlabelled)
    module.close()
    assert live_scores(embedded) == expected
    module.close()
    damaged = json.loads(embedded[0])
    damaged["request"]["embedded"] = json.loads(embedded[-1])["request"]["embedded"]
    damaged["request"]["state_file"] = json.loads(embedded[-1])["request"]["state_file"]
    with pytest.raises(StateError, match=r"/no/such/folder/.*t\d+\.xml \(embedded\) has SHA-256"):
        live_score(json.dumps(damaged))
