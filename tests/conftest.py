"""Fixtures that tests of several packages share."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from tsc.scenarios.scenario import build_demand, build_net, load_scenario
from tsc.sumo import simulation
from tsc.sumo.running import SumoFiles

# A shell starts background jobs with SIGINT ignored, and the processes that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


# They run one after the other, because they share a run, and each needs 6.5 GiB or more. They come first: they take
# longest.
TRAININGS = ("test_train_grpo", "test_train_policies", "test_train_sft", "test_cluster")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in TRAININGS)
    for item in items:
        if item.path.stem in TRAININGS and item.get_closest_marker("timeout") is None:
            # The first test of a file waits for the training that they share: many minutes on a busy machine.
            item.add_marker(pytest.mark.timeout(1800))


class OneWorkerForTrainings(LoadFileScheduling):
    """Keeps each file's tests on one of xdist's workers, because they share fixtures, and all trainings on one, too."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "trainings" if Path(file).stem in TRAININGS else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneWorkerForTrainings:
    return OneWorkerForTrainings(config, log)


@pytest.fixture(autouse=True)
def no_simulation_here() -> Iterator[None]:
    """Fail the test that opens a simulation in pytest's process: tests that save states in a fork would fail later."""
    opened = simulation._simulations_opened
    yield
    assert simulation._simulations_opened == opened, "use in_new_process: only a process's first simulation is saved"


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def short_scenario(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scenario file with four_way cut to 300 s, with its rush in the middle."""
    text = (repo_root / "configs/scenarios/four_way.yaml").read_text()
    text = text.replace("duration_s: 3600", "duration_s: 300").replace("[0, 900, 1800, 2700]", "[0, 60, 120, 240]")
    path = tmp_path_factory.mktemp("scenario") / "four_way.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="session")
def small_dataset(repo_root: Path, short_scenario: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the grpo_dataset.json of two short training episodes and one for validation, about 60 samples."""
    folder = tmp_path_factory.mktemp("dataset") / "four_way"
    command = [sys.executable, str(repo_root / "data_tools/generate_dataset.py"), "--scenario", str(short_scenario)]
    command += ["--out", str(folder), "--episodes", "2", "--validation-episodes", "1", "--workers", "2"]
    subprocess.run(command, check=True, timeout=300)
    return folder


@pytest.fixture(scope="session")
def files(short_scenario: Path, tmp_path_factory: pytest.TempPathFactory) -> SumoFiles:
    folder = tmp_path_factory.mktemp("net")
    scenario = load_scenario(short_scenario)
    build_net(scenario, folder / "net.xml")
    build_demand(scenario, folder / "net.xml", 1, folder / "rou.xml")
    return SumoFiles(net_file=folder / "net.xml", route_files=(folder / "rou.xml",), seed=1)
