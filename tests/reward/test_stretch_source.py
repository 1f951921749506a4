"""Stretches of decisions scored: by hand, with SUMO in the machine's workers, and with workers that hang or crash."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import reward.stretch_source as module
from reward.compute_score import compute_score, settings_for
from reward.ground_truth import GroundTruth, parse_ground_truth
from reward.stretch_scoring import score_stretch
from reward.stretch_source import StretchSource
from tests.reward.replay_processes import replay_processes
from tests.reward.workers.test_pool import is_running, wait_until_gone
from tsc.errors import ReplayError, StateError
from tsc.junction.decision import Answer, parse_answer
from tsc.replays.request import ReplayRequest
from tsc.replays.sample import Sample
from tsc.replays.stretch import Stretch

YES, NO, UNREADABLE = (parse_answer(text) for text in ('{"extend": "yes"}', '{"extend": "no"}', "maybe"))
EMBEDDED = parse_answer('So: {"extend": "no"}')
SCRIPT = {"yes": YES, "no": NO, "-": UNREADABLE}
NOTHING_KEPT = {"size_limit_mb": 0}


def stretch(cost: float, tail_cost: float, num_decisions: int = 3) -> Stretch:
    return Stretch(num_decisions=num_decisions, length_s=70, costs=(cost,), tail_costs=(tail_cost,), end="")


def settings(**changes: Any) -> Any:
    return settings_for({"replay": {"workers": 2, "timeout_s": 60.0}, "cache": NOTHING_KEPT} | changes)


@pytest.fixture
def make_source() -> Iterator[Any]:
    sources = []

    def make(num_decisions: int = 3, **changes: Any) -> StretchSource:
        sources.append(StretchSource(settings(**changes), num_decisions))
        return sources[-1]

    yield make
    for source in sources:
        source.close()


@pytest.fixture(scope="module")
def samples(small_dataset: Path) -> list[Sample]:
    return [Sample.model_validate(values) for values in json.loads((small_dataset / "grpo_dataset.json").read_text())]


@pytest.fixture(scope="module")
def truths(small_dataset: Path, samples: list[Sample]) -> list[str]:
    requests = [ReplayRequest.from_sample(sample, small_dataset).to_json() for sample in samples]
    return [json.dumps({"request": request, "outcomes": None}) for request in requests]


def played(source: StretchSource, truth: GroundTruth, script: str) -> Stretch:
    """The stretch that `script` makes; every question before it is asked."""
    answers: list[Answer] = []
    for word in script.split():
        assert source.play(truth, answers).progress.question is not None
        answers.append(SCRIPT[word])
    found = source.play(truth, answers).progress.stretch
    assert found is not None
    return found


def test_the_score_of_a_stretch_by_hand() -> None:
    parts = score_stretch([YES, UNREADABLE, EMBEDDED], stretch(30.0, 40.0), settings()).as_dict()
    assert parts["traffic"] == pytest.approx(10 / 40)
    assert parts["format"] == pytest.approx((0.1 - 1.0 + 0.05) / 3)
    assert parts["score"] == pytest.approx(10 / 40 + (0.1 - 1.0 + 0.05) / 3)
    shares = {name: parts[name] for name in ("answer_yes", "answer_no", "format_exact", "format_embedded")}
    assert shares == dict.fromkeys(shares, pytest.approx(1 / 3))
    assert parts["format_invalid"] == pytest.approx(1 / 3)
    assert parts["tie"] == 0.0


@pytest.mark.parametrize(
    ("changes", "cost", "tail_cost", "expected"),
    [
        ({}, 50.0, 40.0, -10 / 50),
        ({}, 0.0, 0.0, 0.0),
        ({"normalisation": "sign"}, 50.0, 40.0, -1.0),
        ({"normalisation": "clipped", "clipped_scale_veh_s": 20.0}, 35.0, 40.0, 0.25),
        ({"tie_threshold_veh_s": 5.0}, 36.0, 40.0, 0.0),
    ],
)
def test_the_traffic_part_is_normalised_as_that_of_a_single_decision(
    changes: dict[str, Any], cost: float, tail_cost: float, expected: float
) -> None:
    assert score_stretch([NO], stretch(cost, tail_cost, 1), settings(**changes)).traffic == pytest.approx(expected)


def test_terms_are_weighed_as_in_a_single_decision() -> None:
    terms = settings(terms={"switches": 0.5}, format={"invalid": -2.0})
    both = Stretch(num_decisions=1, length_s=45, costs=(30.0, 3.0), tail_costs=(40.0, 2.0), end="")
    parts = score_stretch([YES], both, terms).as_dict()
    assert parts["term_switches"] == pytest.approx(-1 / 3)
    assert parts["score"] == pytest.approx(10 / 40 + 0.5 * -1 / 3 + 0.1)


def test_one_decision_scores_as_compute_score_where_the_tail_would_decide_otherwise(
    make_source: Any, truths: list[str]
) -> None:
    source = make_source(num_decisions=1)
    differing = 0
    for text in truths[:12]:
        truth = parse_ground_truth(text)
        for answer, said in ((YES, '{"extend": "yes"}'), (NO, '{"extend": "no"}')):
            single = compute_score("", said, text, replay={"workers": 2}, cache=NOTHING_KEPT)
            found = source.play(truth, [answer])
            assert found.progress.stretch is not None
            parts = source.score([answer], found.progress.stretch, found.origin)
            assert list(parts) == [*list(single)[:9], "num_decisions", *list(single)[9:]]
            if found.progress.stretch.costs == found.progress.stretch.tail_costs:
                assert parts["traffic"] == 0.0
            else:
                differing += 1
                assert (parts["score"], parts["traffic"]) == (single["score"], single["traffic"])
    assert differing >= 6


SCRIPTS = ("yes yes no", "no - yes", "no no no", "yes - -")


def test_stretches_do_not_depend_on_order_worker_process_or_what_was_kept(make_source: Any, truths: list[str]) -> None:
    jobs = [(parse_ground_truth(text), script) for text in truths[:6] for script in SCRIPTS]
    source = make_source()
    straight = [played(source, *job) for job in jobs]
    assert len({(found.costs, found.end) for found in straight}) > len(jobs) // 2
    kept = [played(source, *job) for job in jobs]
    order = list(range(len(jobs)))
    random.Random(1).shuffle(order)
    other = make_source(replay={"workers": 1, "timeout_s": 60.0})
    with ThreadPoolExecutor(16) as threads:
        shuffled = dict(zip(order, threads.map(lambda number: played(other, *jobs[number]), order), strict=True))
    assert straight == kept == [shuffled[number] for number in range(len(jobs))]


def test_any_number_of_stretches_under_way_take_no_more_workers_than_allowed(
    make_source: Any, truths: list[str], server_folder: Path
) -> None:
    source = make_source(replay={"workers": 2, "timeout_s": 60.0})
    jobs = [(parse_ground_truth(text), script) for text in truths[:12] for script in SCRIPTS]
    seen: set[int] = set()
    with ThreadPoolExecutor(len(jobs)) as threads:
        running = [threads.submit(played, source, *job) for job in jobs]
        while not all(each.done() for each in running):
            alive = replay_processes(server_folder.parent, "reward.workers.worker")
            ids = {process.pid for process in alive}
            alive = [process for process in alive if process.info["ppid"] not in ids]  # without the forks that replay
            assert len(alive) <= 2
            seen.update(process.pid for process in alive)
            time.sleep(0.05)
    assert len([each.result() for each in running]) == len(jobs)
    assert 1 <= len(seen) <= 2 and source.counts["started"] == len(seen)
    # equal questions of the answers to one state are played once
    assert source.counts["replays"] < sum(1 + len(script.split()) for _, script in jobs)


def test_a_missing_state_is_named_and_scores_nothing(make_source: Any, truths: list[str]) -> None:
    values = json.loads(truths[0])
    values["request"]["state_file"] = "nowhere.xml.gz"
    with pytest.raises(StateError, match=r"nowhere\.xml\.gz does not exist"):
        make_source().play(parse_ground_truth(json.dumps(values)), [YES])


@pytest.mark.parametrize(("state", "cause"), [("crash", "signal 11"), ("hang", "no end of the replay within 1 s")])
def test_a_stretch_that_fails_is_named_with_state_junction_and_cause(
    make_source: Any,
    make_ground_truth: Any,
    stand_ins: str,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    cause: str,
) -> None:
    monkeypatch.setattr(module, "FUNCTION", "replay_stand_ins:play")
    source = make_source(replay={"workers": 1, "timeout_s": 1.0, "retries": 1})
    with pytest.raises(ReplayError, match=rf"{state} at junction 'J4' .*failed 2 times.*{cause}"):
        source.play(parse_ground_truth(make_ground_truth(state)), [])
    # its place is free again
    found = source.play(parse_ground_truth(make_ground_truth("crash_once")), [])
    assert found.origin.failed and found.progress.question is not None


ROLLOUT = """
import json, sys, threading
from reward.compute_score import settings_for
from reward.ground_truth import parse_ground_truth
from reward.stretch_source import StretchSource
from tsc.junction.decision import parse_answer

source = StretchSource(settings_for({"replay": {"workers": 2}, "cache": {"size_limit_mb": 0}}), 32)
yes = parse_answer('{"extend": "yes"}')

def play(text):
    for number in range(32):
        source.play(parse_ground_truth(text), [yes] * number)
        print(json.dumps(source.worker_pids()), flush=True)

for text in json.load(sys.stdin):
    threading.Thread(target=play, args=(text,)).start()
"""


def test_a_rollout_that_is_killed_leaves_no_process(truths: list[str], server_folder: Path, repo_root: Path) -> None:
    rollout = subprocess.Popen(
        [sys.executable, "-c", ROLLOUT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=repo_root
    )
    assert rollout.stdin is not None and rollout.stdout is not None
    rollout.stdin.write(json.dumps(truths[:24]))
    rollout.stdin.close()
    workers: list[int] = []
    while len(workers) < 2:
        workers = json.loads(rollout.stdout.readline())
    pids = [process.pid for process in replay_processes(server_folder.parent)]
    # The workers stay. Their forks, which replay, come and go.
    assert len(pids) >= 3 and set(workers) < set(pids) and all(map(is_running, workers))
    rollout.send_signal(signal.SIGKILL)
    rollout.wait()
    rollout.stdout.close()
    with contextlib.suppress(ProcessLookupError):
        wait_until_gone(pids, within_s=20)
    assert not replay_processes(server_folder.parent)
