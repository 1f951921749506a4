"""Generation over the nodes of a Ray cluster: the same bytes as on one machine, also if a node is lost."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data_tools.test_generate_dataset import assert_same_tree, command, run

# Two nodes of one CPU, of which the first one is the head. The second one is lost when a line comes. Ray's threads must
# not be in pytest's own process, in which other tests fork.
TWO_NODES = """
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
try:
    node = cluster.add_node(num_cpus=1)
    print("address", cluster.address, flush=True)
    input()
    cluster.remove_node(node, allow_graceful=False)
    input()
except EOFError:
    pass
finally:
    cluster.shutdown()
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    words = [sys.executable, "-c", TWO_NODES]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def attempts(out: Path) -> list[Path]:
    """The folders of episodes under way."""
    return list((out / "episodes").glob(".*"))


def test_two_nodes_of_which_one_is_lost_write_the_same_bytes_as_one_machine(
    repo_root: Path, short_scenario: Path, small_dataset: Path, tmp_path: Path, cluster: subprocess.Popen[str]
) -> None:
    out = tmp_path / "out"
    assert cluster.stdout is not None and cluster.stdin is not None
    address = next(line.split()[1] for line in cluster.stdout if line.startswith("address "))
    options = ["--ray-address", address]
    generation = subprocess.Popen(
        command(repo_root, short_scenario, out, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while len(attempts(out)) < 2:
        assert generation.poll() is None, generation.communicate()[0]
        assert time.monotonic() < deadline, "no two episodes are under way"
        time.sleep(0.05)
    cluster.stdin.write("\n")
    cluster.stdin.flush()
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
