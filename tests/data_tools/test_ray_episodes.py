"""Generation over the nodes of a Ray cluster: the same bytes as on one machine, also if a node is lost."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.data_tools.test_generate_dataset import assert_same_tree, command, run


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two nodes of one CPU, without a token. The first one is the head."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def attempts(out: Path) -> list[Path]:
    """The folders of episodes under way."""
    return list((out / "episodes").glob(".*"))


def test_two_nodes_of_which_one_is_lost_write_the_same_bytes_as_one_machine(
    repo_root: Path, short_scenario: Path, small_dataset: Path, tmp_path: Path, cluster: Cluster
) -> None:
    out = tmp_path / "out"
    options = ["--ray-address", cluster.address]
    generation = subprocess.Popen(
        command(repo_root, short_scenario, out, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while len(attempts(out)) < 2:
        assert generation.poll() is None, generation.communicate()[0]
        assert time.monotonic() < deadline, "no two episodes are under way"
        time.sleep(0.05)
    (lost,) = cluster.worker_nodes
    cluster.remove_node(lost, allow_graceful=False)
    said, _ = generation.communicate(timeout=300)
    assert generation.returncode == 0, said
    for left in attempts(out):  # of the lost node; the next call on this folder would remove it
        for file in left.iterdir():
            file.unlink()
        left.rmdir()
    assert_same_tree(out, small_dataset)


def test_a_wrong_address_is_refused_before_anything_runs(repo_root: Path, short_scenario: Path, tmp_path: Path) -> None:
    done = run(repo_root, short_scenario, tmp_path / "out", "--ray-address", "127.0.0.1:1")
    assert done.returncode == 2
    assert "no Ray cluster answers at 127.0.0.1:1" in done.stderr and "Traceback" not in done.stderr
