"""Real worker processes, with stand-ins for SUMO (replay_stand_ins.py) that crash, hang and chatter on demand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from reward.workers.pool import ReplayPool, replays_under_way
from tsc.cost.outcome import Outcomes, OutcomeSettings
from tsc.errors import ReplayError, StateError
from tsc.replays.request import ReplayRequest

MakePool = Callable[..., ReplayPool]
MakeRequest = Callable[[str], ReplayRequest]
SETTINGS = OutcomeSettings()


def outcomes_here(make_request: MakeRequest, state_file: str) -> Outcomes:
    """The same function in this process."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("replay_stand_ins", Path(__file__).parents[1] / "replay_stand_ins.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    outcomes: Outcomes = module.costs_of(state_file, SETTINGS)
    return outcomes


def num_calls(request: ReplayRequest) -> int:
    """How often the stand-in was called for this state, over all processes."""
    calls = Path(request.dataset_dir, f"{request.state_file}.calls")
    return len(calls.read_text()) if calls.exists() else 0


def wait_until_gone(pids: list[int], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while remaining := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, f"still there: {remaining}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_give_what_the_function_gives_here(make_pool: MakePool, make_request: MakeRequest) -> None:
    pool = make_pool()
    for state in ("a", "b", "c"):
        assert pool.replay(make_request(state), SETTINGS).outcomes == outcomes_here(make_request, state)
    assert pool.counts["started"] == 1


def test_replays_do_not_depend_on_their_order_nor_on_threads(make_pool: MakePool, make_request: MakeRequest) -> None:
    states = [f"state-{number}" for number in range(64)]
    with ThreadPoolExecutor(64) as threads:
        pool = make_pool()
        at_once = dict(zip(states, threads.map(lambda s: pool.replay(make_request(s), SETTINGS), states), strict=True))
    backwards = make_pool(workers=1)
    for state in reversed(states):
        assert backwards.replay(make_request(state), SETTINGS) == at_once[state]
    assert pool.counts == {**pool.counts, "replays": 64, "failed_attempts": 0}
    assert pool.counts["started"] <= 2


def test_a_worker_killed_in_the_middle_of_a_replay_is_replaced(make_pool: MakePool, make_request: MakeRequest) -> None:
    replayed = make_pool().replay(make_request("crash_once"), SETTINGS)
    assert replayed.outcomes == outcomes_here(make_request, "crash_once")
    assert replayed.num_failed_attempts == 1


def test_a_worker_killed_between_two_replays_costs_no_attempt(make_pool: MakePool, make_request: MakeRequest) -> None:
    pool = make_pool(retries=0)
    pool.replay(make_request("first"), SETTINGS)
    (pid,) = pool.worker_pids()
    os.kill(pid, signal.SIGKILL)
    # A process that is a zombie may still have threads that end, and the server cannot know of its death before.
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)
    assert pool.replay(make_request("second"), SETTINGS).outcomes == outcomes_here(make_request, "second")


def test_a_worker_killed_from_outside_while_it_replays_is_replaced(
    make_pool: MakePool, make_request: MakeRequest
) -> None:
    pool = make_pool()
    with ThreadPoolExecutor(1) as thread:
        replay = thread.submit(pool.replay, make_request("hang_once"), SETTINGS)
        calls = Path(make_request("hang_once").dataset_dir, "hang_once.calls")
        while not calls.exists():
            time.sleep(0.01)
        [(age_s, state_file)] = replays_under_way()
        assert 0 < age_s < 60 and state_file == "hang_once"
        os.kill(pool.worker_pids()[0], signal.SIGKILL)
        assert replay.result(timeout=60).outcomes == outcomes_here(make_request, "hang_once")


def test_a_crash_that_repeats_is_named_with_state_junction_and_cause(
    make_pool: MakePool, make_request: MakeRequest
) -> None:
    pool = make_pool(retries=1)
    with pytest.raises(ReplayError) as caught:
        pool.replay(make_request("crash-always"), SETTINGS)
    message = str(caught.value)
    assert make_request("crash-always").state_path.name in message
    assert "junction 'J4'" in message
    assert "failed 2 times" in message
    assert f"signal {signal.SIGSEGV.value}" in message
    assert "vehicle 'v7' has no route" in message  # what SUMO said last
    assert pool.replay(make_request("ok"), SETTINGS).num_failed_attempts == 0


@pytest.mark.parametrize("state", ["hang", "hang_in_c"])
def test_a_hung_worker_is_killed_and_named(make_pool: MakePool, make_request: MakeRequest, state: str) -> None:
    pool = make_pool(retries=0, timeout_s=0.5)
    with pytest.raises(ReplayError, match=rf"{state} at junction 'J4'.*no end of the replay within 0\.5 s"):
        pool.replay(make_request(state), SETTINGS)
    assert pool.worker_pids() == []
    assert pool.counts["timed_out"] == 1


def test_a_replay_that_hung_once_is_repeated(make_pool: MakePool, make_request: MakeRequest) -> None:
    replayed = make_pool(timeout_s=1.0).replay(make_request("hang_once"), SETTINGS)
    assert (replayed.outcomes, replayed.num_failed_attempts) == (outcomes_here(make_request, "hang_once"), 1)


def test_what_no_retry_can_mend_is_raised_at_once_as_its_own_class(
    make_pool: MakePool, make_request: MakeRequest
) -> None:
    pool = make_pool()
    with pytest.raises(StateError, match="missing does not exist"):
        pool.replay(make_request("missing"), SETTINGS)
    assert num_calls(make_request("missing")) == 1
    assert len(pool.worker_pids()) == 1  # the worker is sound and stays


@pytest.mark.parametrize(("state", "cause"), [("fatal", "SUMO stopped"), ("nan", "costs that are not numbers")])
def test_an_error_of_the_replay_itself_is_named_and_not_retried(
    make_pool: MakePool, make_request: MakeRequest, state: str, cause: str
) -> None:
    pool = make_pool(retries=2)
    pool.replay(make_request("ok"), SETTINGS)
    pids = pool.worker_pids()
    with pytest.raises(ReplayError, match=rf"{state} at junction 'J4' \(sample sample of {state}\): .*{cause}"):
        pool.replay(make_request(state), SETTINGS)
    assert num_calls(make_request(state)) == 1
    assert pool.counts == {**pool.counts, "failed_attempts": 1, "failed_replays": 1, "crashed": 0}
    assert pool.worker_pids() != pids  # SUMO may be left half loaded
    assert pool.replay(make_request("next"), SETTINGS).outcomes == outcomes_here(make_request, "next")


def test_an_exception_that_is_not_ours_is_retried_and_then_named(
    make_pool: MakePool, make_request: MakeRequest
) -> None:
    with pytest.raises(ReplayError, match=r"defect at junction 'J4'.*failed 2 times: KeyError: 'stage'"):
        make_pool(retries=1).replay(make_request("defect"), SETTINGS)
    assert num_calls(make_request("defect")) == 2


def test_what_sumo_prints_does_not_disturb_the_replies(make_pool: MakePool, make_request: MakeRequest) -> None:
    replayed = make_pool().replay(make_request("chatter"), SETTINGS)
    assert replayed.outcomes == outcomes_here(make_request, "chatter")


def test_a_function_that_cannot_be_imported_is_named(make_pool: MakePool, make_request: MakeRequest) -> None:
    with pytest.raises(ReplayError, match="No module named 'no_such_module'"):
        make_pool(retries=0, function="no_such_module:replay").replay(make_request("ok"), SETTINGS)


def test_two_pools_together_replay_no_more_at_once_than_one(make_pool: MakePool, make_request: MakeRequest) -> None:
    pools = [make_pool(workers=1) for _ in range(2)]
    for pool in pools:
        pool.replay(make_request("warm-up"), SETTINGS)
    started = time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        states = ["slow-1", "slow-2"]
        list(threads.map(lambda pool, state: pool.replay(make_request(state), SETTINGS), pools, states))
    assert time.monotonic() - started >= 0.6


def test_workers_have_neither_ray_nor_torch(make_pool: MakePool, make_request: MakeRequest, tmp_path: Path) -> None:
    pool = make_pool(function="replay_stand_ins:report_modules")
    assert pool.replay(make_request("ok"), SETTINGS).outcomes == Outcomes(yes=0.0, no=0.0)


def test_close_ends_a_replay_that_runs(make_pool: MakePool, make_request: MakeRequest) -> None:
    pool = make_pool()
    failed: list[str] = []

    def replay() -> None:
        try:
            pool.replay(make_request("hang"), SETTINGS)
        except ReplayError as error:
            failed.append(str(error))

    thread = threading.Thread(target=replay)
    thread.start()
    while not Path(make_request("hang").dataset_dir, "hang.calls").exists():
        time.sleep(0.01)
    pids = pool.worker_pids()
    pool.close()
    thread.join(timeout=30)
    assert failed and "closed" in failed[0]
    wait_until_gone(pids)


PARENT = """
import json, os, signal, sys, threading, time
from pathlib import Path
from reward.workers.pool import ReplayPool
from reward.settings import ReplaySection
from tsc.cost.outcome import OutcomeSettings
from tsc.replays.request import ReplayRequest

if __name__ == "__main__":
    requests = [ReplayRequest.from_json(values) for values in json.loads(sys.argv[1])]
    pool = ReplayPool(ReplaySection(workers=3, timeout_s=600, function="replay_stand_ins:replay"))
    for request in requests:
        threading.Thread(target=pool.replay, args=(request, OutcomeSettings()), daemon=True).start()
    while not all(Path(r.dataset_dir, r.state_file + ".calls").exists() for r in requests):
        time.sleep(0.01)
    time.sleep(0.2)
    print(json.dumps(pool.worker_pids()), flush=True)
    {ending}
"""


@pytest.mark.parametrize(
    ("ending", "ends"),
    [
        ("sys.exit(0)", None),
        ("time.sleep(600)", signal.SIGKILL),
        ("time.sleep(600)", signal.SIGTERM),
        ("time.sleep(600)", signal.SIGINT),
    ],
)
def test_no_worker_is_left_however_the_parent_ends(
    make_request: MakeRequest, stand_ins: str, tmp_path: Path, ending: str, ends: signal.Signals | None
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.replace("{ending}", ending))
    requests = [make_request(state).to_json() for state in ("ok", "hang", "hang_in_c")]
    root = str(Path(__file__).resolve().parents[3])
    parent = subprocess.Popen(
        [sys.executable, str(script), json.dumps(requests)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{root}:{os.environ['PYTHONPATH']}"},
    )
    assert parent.stdout is not None
    try:
        pids = json.loads(parent.stdout.readline())
        assert len(pids) >= 2
        pids.append(psutil.Process(pids[0]).ppid())  # their server
        if ends is not None:
            parent.send_signal(ends)
        parent.wait(timeout=30)
        wait_until_gone(pids)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
