from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import reward.compute_score
from reward.settings import ReplaySection
from reward.workers.pool import ReplayPool
from tests.reward.replay_processes import replay_processes
from tsc.cost.outcome import Outcomes, OutcomeSettings
from tsc.replays.request import ReplayRequest
from tsc.sumo.sumo_input import SumoInput

MakeRequest = Callable[..., ReplayRequest]


@pytest.fixture
def make_request(tmp_path: Path) -> MakeRequest:
    """A request for a state of this name, in the test's own folder; its name tells the stand-ins what to do."""

    def make(state_file: str) -> ReplayRequest:
        return ReplayRequest(
            sample_id=f"sample of {state_file}",
            dataset_dir=str(tmp_path),
            junction_id="J4",
            state_file=state_file,
            state_sha256=None,
            current_green_elapsed_s=15.0,
            min_green_s=10,
            max_green_s=60,
            green_extension_s=5,
            sumo=SumoInput(version="1.28.0", net_file="net.net.xml", route_files=()),
        )

    return make


@pytest.fixture
def make_ground_truth(make_request: MakeRequest) -> Callable[..., str]:
    """The text of a Parquet row, with outcomes under the default settings where `outcomes` are given."""

    def make(
        state_file: str = "ok",
        outcomes: Outcomes | None = None,
        settings: OutcomeSettings | None = None,
        **changes: Any,
    ) -> str:
        values: dict[str, Any] = {"request": make_request(state_file).to_json(), "outcomes": None}
        if outcomes is not None:
            values["outcomes"] = {"settings": (settings or OutcomeSettings()).as_dict(), **outcomes.as_dict()}
        return json.dumps(values | changes)

    return make


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> str:
    """The stand-in replay function, importable by the workers."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    return "replay_stand_ins:replay"


@pytest.fixture
def make_pool(stand_ins: str) -> Iterator[Callable[..., ReplayPool]]:
    pools: list[ReplayPool] = []

    def make(**settings: Any) -> ReplayPool:
        pools.append(ReplayPool(ReplaySection(**{"workers": 2, "timeout_s": 30.0, "function": stand_ins} | settings)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture(autouse=True)
def _outcomes_are_kept_in_the_tests_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


@pytest.fixture(autouse=True)
def server_folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this test's own replay server has its socket; no process of it outlives the test."""
    tmp_path_factory.getbasetemp()  # pytest's own folder must not be made below this one
    with tempfile.TemporaryDirectory(prefix="tsc-", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder, f"tsc-replay-{os.getuid()}")
        reward.compute_score.close()
        for process in replay_processes(Path(folder)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                process.wait(timeout=10)
