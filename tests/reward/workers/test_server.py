"""One replay server for all processes of a machine: its start, its end, what it shares, and what it survives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import psutil
import pytest

from reward.workers.pool import ReplayPool
from reward.workers.server import cpu_quotas, num_cores
from tests.reward.replay_processes import replay_processes
from tsc.cost.outcome import Outcomes, OutcomeSettings
from tsc.errors import ReplayError
from tsc.files import code_digest
from tsc.replays.request import ReplayRequest

MakePool = Callable[..., ReplayPool]
MakeRequest = Callable[[str], ReplayRequest]
SETTINGS = OutcomeSettings()
BACKWARDS = "replay_stand_ins:replay_backwards"


def server_of(pool: ReplayPool) -> psutil.Process:
    server = psutil.Process(psutil.Process(pool.worker_pids()[0]).ppid())
    assert "reward.workers.server" in server.cmdline()
    return server


def wait_until(is_so: Callable[[], bool], what: str, within_s: float = 15.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)


def wait_for_call(request: ReplayRequest) -> None:
    calls = Path(request.dataset_dir, f"{request.state_file}.calls")
    wait_until(calls.exists, f"a worker replays {request.state_file}")


def assert_nothing_is_left(server_folder: Path) -> None:
    wait_until(lambda: not replay_processes(server_folder.parent), "server and workers are gone")
    assert [path.name for path in server_folder.iterdir()] == ["lock"]


def outcomes_of(make_pool: MakePool, request: ReplayRequest) -> Outcomes:
    """Those of a pool that nothing happens to."""
    return make_pool().replay(request, SETTINGS).outcomes


def test_server_and_workers_end_when_the_last_client_has_left_and_start_again_for_the_next(
    make_pool: MakePool, make_request: MakeRequest, server_folder: Path
) -> None:
    first, second = make_pool(), make_pool()
    outcomes = [pool.replay(make_request("ok"), SETTINGS).outcomes for pool in (first, second)]
    assert outcomes[0] == outcomes[1]
    first.close()
    time.sleep(4)
    assert len(second.worker_pids()) == 1  # there still is a client
    second.close()
    assert_nothing_is_left(server_folder)
    assert make_pool().replay(make_request("ok"), SETTINGS).outcomes == outcomes[0]


def test_a_server_killed_in_the_middle_of_replays_is_started_again(
    make_pool: MakePool, make_request: MakeRequest, server_folder: Path
) -> None:
    pool = make_pool()
    with ThreadPoolExecutor(2) as threads:
        requests = [make_request("hang_once-1"), make_request("hang_once-2")]
        replays = [threads.submit(pool.replay, request, SETTINGS) for request in requests]
        for request in requests:
            wait_for_call(request)
        old = replay_processes(server_folder.parent)
        assert len(old) == 3
        server_of(pool).kill()
        replayed = [replay.result(timeout=60) for replay in replays]
    assert all(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in old)
    assert [one.num_failed_attempts for one in replayed] == [1, 1]
    assert pool.counts == {**pool.counts, "replays": 2, "crashed": 2, "failed_attempts": 2, "failed_replays": 0}
    assert [one.outcomes for one in replayed] == [outcomes_of(make_pool, request) for request in requests]


def test_a_server_that_is_killed_again_and_again_is_an_error_that_says_so(
    make_pool: MakePool, make_request: MakeRequest
) -> None:
    pool = make_pool(retries=0)
    with ThreadPoolExecutor(1) as thread:
        replay = thread.submit(pool.replay, make_request("hang"), SETTINGS)
        wait_for_call(make_request("hang"))
        server_of(pool).kill()
        with pytest.raises(ReplayError, match="hang at junction 'J4'.*the replay server ended during the replay"):
            replay.result(timeout=60)


def test_a_server_killed_between_two_replays_costs_no_attempt(make_pool: MakePool, make_request: MakeRequest) -> None:
    pool = make_pool(retries=0)
    pool.replay(make_request("first"), SETTINGS)
    server = server_of(pool)
    server.kill()
    wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, "the server is gone")
    assert pool.replay(make_request("second"), SETTINGS).num_failed_attempts == 0


@pytest.mark.parametrize("state", ["abort_once", "fork_dies"])
def test_a_simulation_that_aborts_is_repeated_in_a_new_worker(
    make_pool: MakePool, make_request: MakeRequest, state: str
) -> None:
    pool = make_pool()
    replayed = pool.replay(make_request(state), SETTINGS)
    assert (replayed.num_failed_attempts, pool.counts["crashed"], pool.counts["started"]) == (1, 1, 2)
    assert replayed.outcomes == outcomes_of(make_pool, make_request(state))


@pytest.mark.parametrize("ends", ["timeout", "server"])
def test_what_a_replay_forked_ends_with_its_worker(make_pool: MakePool, make_request: MakeRequest, ends: str) -> None:
    pool = make_pool(timeout_s=1.0 if ends == "timeout" else 600.0)
    pids_file = Path(make_request("fork").dataset_dir, "forked.pids")
    with ThreadPoolExecutor(1) as thread:
        replay = thread.submit(pool.replay, make_request("fork"), SETTINGS)
        wait_until(lambda: pids_file.exists() and pids_file.read_text().count("\n") == 2, "the replay has forked")
        if ends == "server":
            server_of(pool).kill()
        assert replay.result(timeout=60).num_failed_attempts == 1
    forked = {int(pid) for pid in pids_file.read_text().split()}
    wait_until(lambda: not any(is_alive(pid) for pid in forked), "the fork is gone")


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_functions_and_time_limits_of_different_clients_work_side_by_side(
    make_pool: MakePool, make_request: MakeRequest
) -> None:
    usual, backwards, hasty = make_pool(), make_pool(function=BACKWARDS), make_pool(timeout_s=0.5, retries=0)
    with ThreadPoolExecutor(3) as threads:
        too_slow = threads.submit(hasty.replay, make_request("hang"), SETTINGS)
        for number in range(5):
            request = make_request(f"state-{number}")
            forth, back = threads.map(lambda pool, r=request: pool.replay(r, SETTINGS).outcomes, (usual, backwards))
            assert (forth.yes, forth.no) == (back.no, back.yes)
        with pytest.raises(ReplayError, match=r"no end of the replay within 0\.5 s"):
            too_slow.result(timeout=60)
    assert len(usual.worker_pids()) <= 2
    assert server_of(usual) == server_of(backwards)


def test_a_function_without_a_worker_gets_the_place_of_an_idle_one(
    make_pool: MakePool, make_request: MakeRequest
) -> None:
    usual, backwards = make_pool(workers=1), make_pool(workers=1, function=BACKWARDS)
    for number in range(3):
        outcomes = [pool.replay(make_request(f"state-{number}"), SETTINGS).outcomes for pool in (usual, backwards)]
        assert outcomes[0].yes == outcomes[1].no
    assert len(usual.worker_pids()) == 1


def test_a_worker_stays_with_its_net_and_no_request_is_overtaken_for_ever(
    make_pool: MakePool, make_request: MakeRequest
) -> None:
    pool = make_pool(workers=1, function="replay_stand_ins:note_order")
    others = [make_pool(workers=1, function="replay_stand_ins:note_order") for _ in range(20)]
    pool.replay(make_request("first"), SETTINGS)
    # 40 requests are with the server at once
    names = [f"{'AB'[number % 2]}-{number:02d}" for number in range(80)]
    requests = [make_request(name) for name in names]
    requests = [
        replace(request, sumo=request.sumo.model_copy(update={"net_sha256": request.state_file[0].lower() * 64}))
        for request in requests
    ]
    with ThreadPoolExecutor(80) as threads:
        list(threads.map(lambda pool, request: pool.replay(request, SETTINGS), others * 4, requests))
    order = Path(make_request("first").dataset_dir, "order").read_text().split()[1:]
    assert sorted(order) == sorted(names)
    runs = [sum(1 for _ in run) for _, run in groupby(name[0] for name in order)]
    # in the order of arrival there would be about 80; if each net went on for as long as it has requests, 2
    assert 3 <= len(runs) <= 12


def test_the_lowest_number_of_workers_that_a_client_sets_holds_for_all(
    make_pool: MakePool, make_request: MakeRequest
) -> None:
    many = make_pool(workers=3)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda state: many.replay(make_request(state), SETTINGS), ("slow-1", "slow-2", "slow-3")))
        assert len(many.worker_pids()) == 3
        one = make_pool(workers=1)
        one.replay(make_request("ok"), SETTINGS)
        wait_until(lambda: len(many.worker_pids()) == 1, "two workers have ended")
        started_s = time.monotonic()
        list(threads.map(lambda state: many.replay(make_request(state), SETTINGS), ("slow-4", "slow-5", "slow-6")))
        assert time.monotonic() - started_s >= 0.9
        one.close()
        list(threads.map(lambda state: many.replay(make_request(state), SETTINGS), ("slow-7", "slow-8", "slow-9")))
        assert len(many.worker_pids()) > 1


def test_without_a_number_there_are_no_more_workers_than_cores(make_pool: MakePool, make_request: MakeRequest) -> None:
    pools = [make_pool(workers=None) for _ in range(4)]
    requests = [make_request(f"state-{number}") for number in range(64)]
    with ThreadPoolExecutor(64) as threads:
        list(threads.map(lambda pool, request: pool.replay(request, SETTINGS), pools * 16, requests))
    assert 1 <= len(pools[0].worker_pids()) <= num_cores() <= len(os.sched_getaffinity(0))


def test_the_quota_of_a_container_is_found_in_its_control_group_and_those_above(tmp_path: Path) -> None:
    own = tmp_path / "root/pod/container"
    own.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("1:cpu:/elsewhere\n0::/pod/container\n")
    (own / "cpu.max").write_text("max 100000\n")
    (own.parent / "cpu.max").write_text("250000 100000\n")
    assert cpu_quotas(tmp_path / "cgroup", tmp_path / "root") == [2.5]
    assert cpu_quotas(tmp_path / "no such file", tmp_path / "root") == []


def test_equal_requests_at_the_same_time_are_replayed_once(make_pool: MakePool, make_request: MakeRequest) -> None:
    pools = [make_pool() for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda pool: pool.replay(make_request("slow"), SETTINGS).outcomes, pools))
    assert len(set(found)) == 1
    assert Path(make_request("slow").dataset_dir, "slow.calls").read_text() == "x"


def test_a_client_that_leaves_takes_only_its_own_replays_along(make_pool: MakePool, make_request: MakeRequest) -> None:
    leaving, staying = make_pool(), make_pool()
    with ThreadPoolExecutor(2) as threads:
        ended = threads.submit(leaving.replay, make_request("slow"), SETTINGS)
        wait_for_call(make_request("slow"))
        shared = threads.submit(staying.replay, make_request("slow"), SETTINGS)
        time.sleep(0.1)
        leaving.close()
        with pytest.raises(ReplayError, match="closed"):
            ended.result(timeout=30)
        assert shared.result(timeout=30).num_failed_attempts == 0
    assert Path(make_request("slow").dataset_dir, "slow.calls").read_text() == "x"


CLIENT = """
import json, os, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import psutil
from tsc.files import code_digest
from reward.workers.pool import ReplayPool
from reward.settings import ReplaySection
from tsc.cost.outcome import OutcomeSettings
from tsc.replays.request import ReplayRequest

if __name__ == "__main__":
    requests = [ReplayRequest.from_json(values) for values in json.loads(sys.argv[1])]
    pool = ReplayPool(ReplaySection(**json.loads(sys.argv[2])))
    print("here", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda request: pool.replay(request, OutcomeSettings()), requests))
    pids = pool.worker_pids()
    said = {"outcomes": [one.outcomes.as_dict() for one in found], "counts": pool.counts, "workers": pids}
    print(json.dumps(said | {"servers": [psutil.Process(pid).ppid() for pid in pids]}), flush=True)
    sys.stdin.readline()
"""


def start_clients(
    number: int, requests: list[ReplayRequest], tmp_path: Path, **settings: Any
) -> list[subprocess.Popen[str]]:
    """Processes that are about to replay, and do at the next line they get."""
    script = tmp_path / "client.py"
    script.write_text(CLIENT)
    root = str(Path(__file__).resolve().parents[2])
    texts = [json.dumps([request.to_json() for request in requests]), json.dumps({"workers": 2} | settings)]
    clients = [
        subprocess.Popen(
            [sys.executable, str(script), *texts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{root}:{os.environ['PYTHONPATH']}"},
        )
        for _ in range(number)
    ]
    for client in clients:
        assert client.stdout is not None and client.stdout.readline() == "here\n"
    return clients


def go_on(clients: list[subprocess.Popen[str]]) -> None:
    for client in clients:
        assert client.stdin is not None
        client.stdin.write("\n")
        client.stdin.flush()


def test_eight_processes_that_start_at_once_share_one_server(
    make_request: MakeRequest, stand_ins: str, tmp_path: Path, server_folder: Path
) -> None:
    requests = [make_request(f"state-{number}") for number in range(40)]
    clients = start_clients(8, requests, tmp_path, function=stand_ins)
    go_on(clients)
    said = [json.loads(client.stdout.readline()) for client in clients if client.stdout]
    assert len(replay_processes(server_folder.parent, "reward.workers.server")) == 1
    assert len({server for one in said for server in one["servers"]}) == 1
    assert len({worker for one in said for worker in one["workers"]}) <= 2
    assert sum(one["counts"]["started"] for one in said) <= 2
    assert all(one["outcomes"] == said[0]["outcomes"] for one in said)
    assert all(one["counts"]["replays"] == len(requests) and not one["counts"]["failed_attempts"] for one in said)
    go_on(clients)
    assert [client.wait(timeout=30) for client in clients] == [0] * 8
    assert_nothing_is_left(server_folder)


def test_a_training_that_is_killed_does_not_disturb_another_one(
    make_request: MakeRequest, stand_ins: str, tmp_path: Path, server_folder: Path
) -> None:
    hanging = [make_request("hang-1"), make_request("hang-2")]
    # this one starts the server; all its places are taken by replays that hang
    (killed,) = start_clients(1, hanging, tmp_path, function=stand_ins, timeout_s=600.0)
    (other,) = start_clients(1, [make_request(f"state-{n}") for n in range(20)], tmp_path, function=stand_ins)
    go_on([killed])
    for request in hanging:
        wait_for_call(request)
    go_on([other])
    time.sleep(0.2)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert other.stdout is not None
    said = json.loads(other.stdout.readline())
    assert said["counts"] == {**said["counts"], "replays": 20, "failed_attempts": 0}
    other.kill()
    other.wait()
    assert_nothing_is_left(server_folder)


def test_a_supervised_run_that_is_stopped_takes_the_server_along(
    make_request: MakeRequest, stand_ins: str, tmp_path: Path, repo_root: Path, server_folder: Path
) -> None:
    request = make_request("hang")
    (tmp_path / "client.py").write_text(CLIENT)
    settings = {"workers": 1, "function": stand_ins, "timeout_s": 600}
    client = [sys.executable, str(tmp_path / "client.py"), json.dumps([request.to_json()]), json.dumps(settings)]
    run = subprocess.Popen(
        [sys.executable, str(repo_root / "recipes/running/supervise.py"), "--", *client],
        env={**os.environ, "PYTHONPATH": f"{repo_root}:{os.environ['PYTHONPATH']}"},
    )
    wait_for_call(request)
    assert len(replay_processes(server_folder.parent)) == 2
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=30) == 128 + signal.SIGTERM
    assert replay_processes(server_folder.parent) == []  # at once, with no time to linger


def test_a_forked_child_neither_uses_nor_keeps_its_parents_connections(
    make_pool: MakePool, make_request: MakeRequest, server_folder: Path
) -> None:
    pool = make_pool()
    pool.replay(make_request("ok"), SETTINGS)
    child = os.fork()
    if child == 0:
        try:
            pool.replay(make_request("ok"), SETTINGS)
        except ReplayError as error:
            if "closed" in str(error):
                time.sleep(60)  # lives on while the parent leaves
        os._exit(1)
    try:
        time.sleep(0.2)
        pool.close()
        assert_nothing_is_left(server_folder)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_folder_that_others_could_use_is_refused(
    make_pool: MakePool, make_request: MakeRequest, server_folder: Path
) -> None:
    server_folder.mkdir()
    server_folder.chmod(0o777)
    with pytest.raises(ReplayError, match="not a folder that only this user can use.*set TMPDIR"):
        make_pool().replay(make_request("ok"), SETTINGS)


def test_a_folder_with_too_long_a_name_is_refused(
    make_pool: MakePool, make_request: MakeRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(ReplayError, match="is longer than 107 bytes: set TMPDIR"):
        make_pool().replay(make_request("ok"), SETTINGS)


def test_a_server_that_cannot_start_is_named_with_what_it_said(
    make_pool: MakePool, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ReplayError, match=r"the replay server cannot start \(status 1\)"):
        make_pool().replay(make_request("ok"), SETTINGS)


def test_code_with_an_edited_rule_gets_a_server_of_its_own(repo_root: Path, tmp_path: Path) -> None:
    for package in ("tsc", "reward"):
        shutil.copytree(repo_root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    packages = ("reward", "tsc")
    assert code_digest(*packages, root=tmp_path) == code_digest(*packages)
    with (tmp_path / "tsc/rules/max_pressure.py").open("a") as rule:
        rule.write("\n# another rule\n")
    assert code_digest(*packages, root=tmp_path) != code_digest(*packages)


def test_a_server_that_is_killed_while_it_starts_is_started_again(
    make_pool: MakePool, make_request: MakeRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    once = f"[ -e {tmp_path}/started ] || {{ touch {tmp_path}/started; kill -9 $$; }}"
    python.write_text(f'#!/bin/sh\n{once}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    make_pool(retries=0).replay(make_request("ok"), SETTINGS)
    assert (tmp_path / "started").exists()
