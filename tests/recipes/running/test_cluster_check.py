"""A node's faults are named with their remedy, from what it says of itself. With Ray: tests/scripts/test_cluster.py."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from recipes.running.cluster_check import (
    NUM_SAMPLED_ROWS,
    PACKAGES,
    Facts,
    Node,
    Wanted,
    check_resources,
    check_world_size,
    look,
    lost_nodes,
    problems_of,
    sampled_files,
)
from tsc.errors import ConfigError

WANTED = Wanted(files=("/d/train.parquet",), states=("/d/s.xml.gz", "/d/net.xml"), model="/m", out="/r", mark="x")
STATES = {"/d/s.xml.gz": "11", "/d/net.xml": None}
HERE = Facts(
    python="3.11.7",
    packages=dict.fromkeys(PACKAGES, "1.0"),
    root="/repo",
    code="abc",
    free_gib=50.0,
    digests={"/d/train.parquet": "00", "/d/s.xml.gz": "11", "/d/net.xml": "22"},
    model={"config.json": "33", "model.safetensors": "44"},
    sees_out=True,
)


def problems(**differing: object) -> list[str]:
    return problems_of(replace(HERE, **differing), HERE, WANTED, STATES)  # type: ignore[arg-type]


def test_a_node_like_this_machine_has_no_problem() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("differing", "message"),
    [
        ({"python": "3.12.3"}, "Python 3.12.3, here 3.11.7: make the .venv there with the same Python"),
        ({"packages": HERE.packages | {"ray": "2.0", "verl": None}}, "ray 2.0 (here 1.0), verl missing (here 1.0)"),
        ({"code": "", "root": ""}, "the project is not installed: run scripts/setup_env.sh"),
        ({"code": "abd"}, "other code in /repo"),
        ({"digests": HERE.digests | {"/d/train.parquet": None}}, "no /d/train.parquet: copy it to the same path"),
        ({"digests": HERE.digests | {"/d/train.parquet": "01"}}, "another /d/train.parquet than here"),
        ({"digests": HERE.digests | {"/d/net.xml": None}}, "lacks 1 of 2 sampled, such as /d/net.xml"),
        ({"digests": HERE.digests | {"/d/net.xml": "23"}}, "has another version of 1 of 2 sampled"),
        ({"model": {}}, "no model in /m"),
        ({"model": {"config.json": "33", "model.safetensors": "45"}}, "another model in /m (model.safetensors)"),
        ({"sees_out": False}, "/r is not this machine's folder there, or not writable"),
        ({"free_gib": 0.3}, "0.3 GiB of free disk, but a run needs 2 GiB: free some space"),
    ],
)
def test_each_difference_is_named_with_its_remedy(differing: dict[str, object], message: str) -> None:
    (problem,) = problems(**differing)
    assert message in problem
    assert re.search(r": (run|make|bring|copy|put|every|free)", problem)


def test_a_state_is_measured_by_the_digest_in_its_row_even_where_this_machine_has_another() -> None:
    stale = replace(HERE, digests=HERE.digests | {"/d/s.xml.gz": "10"})
    (problem,) = problems_of(stale, stale, WANTED, STATES)
    assert "has another version of 1 of 2 sampled, such as /d/s.xml.gz" in problem


def test_gpus_of_another_kind_are_a_problem() -> None:
    wanted = replace(WANTED, asks_gpus=True)
    here = replace(HERE, gpus="NVIDIA H100 80GB HBM3")
    (problem,) = problems_of(replace(HERE, gpus="NVIDIA A10G"), here, wanted, STATES)
    assert problem.startswith("GPUs: NVIDIA A10G; here: NVIDIA H100 80GB HBM3")


def test_a_node_whose_name_stands_for_a_loopback_address_is_a_problem_to_others() -> None:
    alone, debian = WANTED, replace(WANTED, several_hosts=True)
    for loopback in ("127.0.1.1", "127.0.0.1"):
        (problem,) = problems_of(replace(HERE, gloo_ip=loopback), HERE, debian, STATES)
        assert f"its name stands for {loopback}" in problem and "start its node with scripts/ray_cluster.sh" in problem
        assert problems_of(replace(HERE, gloo_ip=loopback), HERE, alone, STATES) == []
    assert problems_of(replace(HERE, gloo_ip="10.0.0.5"), HERE, debian, STATES) == []


def test_the_address_that_gloo_tells_others_is_none_of_a_nodes_facts_where_its_interface_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert look(asdict(Wanted()))["gloo_ip"]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    assert "gloo_ip" not in look(asdict(Wanted()))


def test_a_node_looks_at_files_versions_and_code(tmp_path: Path, repo_root: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "mark").touch()
    wanted = Wanted(
        files=(str(tmp_path / "mark"), str(tmp_path / "none")),
        model=str(tmp_path / "model"),
        out=str(tmp_path),
        mark="mark",
    )
    facts = Facts(**look(asdict(wanted)))
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert facts.digests == {str(tmp_path / "mark"): empty, str(tmp_path / "none"): None}
    assert facts.model is not None and facts.model.keys() == {"config.json"}
    assert facts.sees_out is True
    assert facts.root == str(repo_root)
    assert len(facts.code) == 64 and all(facts.packages.values())
    assert facts.code == look(asdict(wanted))["code"]


def test_large_files_differ_by_their_ends_and_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import recipes.running.cluster_check

    monkeypatch.setattr(recipes.running.cluster_check, "WHOLE_FILE_BYTES", 10)
    monkeypatch.setattr(recipes.running.cluster_check, "END_BYTES", 3)
    texts = {
        "a": b"abc-----xyz",
        "b": b"abc-----xyZ",
        "c": b"Abc-----xyz",
        "d": b"abc------xyz",
        "same": b"abc+++++xyz",
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    found = look(asdict(Wanted(files=tuple(str(tmp_path / name) for name in texts))))["digests"]
    digests = {Path(path).name: digest for path, digest in found.items()}
    assert digests.pop("same") == digests["a"]
    assert len(set(digests.values())) == 4


def write_rows(file: Path, num_rows: int, embedded: bool = False) -> None:
    rows = []
    for i in range(num_rows):
        request = {"dataset_dir": "/d", "state_file": f"s{i}.xml.gz", "state_sha256": f"{i:064x}"}
        request["sumo"] = {"net_file": "net.xml", "route_files": ["a.rou.xml"]}
        if embedded:
            request["embedded"] = {f"s{i}.xml.gz": "text"}
        rows.append({"ground_truth": json.dumps({"request": request}), "style": "rule"})
    pyarrow.parquet.write_table(pyarrow.table({"reward_model": rows}), file)


def test_states_are_sampled_over_the_whole_file_with_their_net_and_routes(tmp_path: Path) -> None:
    write_rows(tmp_path / "t.parquet", 1000)
    files = sampled_files(tmp_path / "t.parquet")
    states = {name: digest for name, digest in files.items() if "/s" in name}
    assert len(states) == NUM_SAMPLED_ROWS
    assert states["/d/s0.xml.gz"] == "0" * 64
    assert max(int(name.removeprefix("/d/s").split(".")[0]) for name in states) > 900
    assert files["/d/net.xml"] is None and files["/d/a.rou.xml"] is None


def test_embedded_states_need_not_be_on_the_nodes(tmp_path: Path) -> None:
    write_rows(tmp_path / "t.parquet", 3, embedded=True)
    assert sampled_files(tmp_path / "t.parquet").keys() == {"/d/net.xml", "/d/a.rou.xml"}


def checkpoint(folder: Path, *parts: tuple[int, int]) -> None:
    actor = folder / "global_step_4/actor"
    actor.mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("4")
    for size, rank in parts:
        (actor / f"model_world_size_{size}_rank_{rank}.pt").touch()


def test_a_checkpoint_of_as_many_workers_or_none_is_fine(tmp_path: Path) -> None:
    check_world_size(tmp_path / "none", 2)
    checkpoint(tmp_path, (2, 0), (2, 1))
    check_world_size(tmp_path, 2)


def test_a_checkpoint_of_another_number_of_workers_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, (2, 0), (2, 1))
    with pytest.raises(ConfigError, match="is of 2 workers, and NNODES × N_GPUS is 4: choose them so that they make 2"):
        check_world_size(tmp_path, 4)


def test_a_checkpoint_whose_parts_lie_on_other_nodes_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, (2, 0))
    with pytest.raises(
        ConfigError, match="lacks the part of worker 1: it was written to a folder that the nodes do not"
    ):
        check_world_size(tmp_path, 2)


def test_too_few_nodes_with_free_gpus_are_listed(tmp_path: Path) -> None:
    nodes = [
        Node(id=f"{i:056x}", ip=f"10.0.0.{i}", cpus=8.0, gpus=8.0, free_gpus=free, is_here=i == 0)
        for i, free in enumerate([8.0, 2.0])
    ]
    check_resources(nodes, 1, 8, "10.0.0.0:6379")
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1 \(00000000\): 2 of 8 free.*HEAD=10\.0\.0\.0:6379"):
        check_resources(nodes, 2, 8, "10.0.0.0:6379")


def test_a_lost_node_is_named_until_another_one_lives_or_is_stopped_at_its_address() -> None:
    from ray import NodeID
    from ray.core.generated.common_pb2 import NodeDeathInfo
    from ray.core.generated.gcs_pb2 import GcsNodeInfo

    def node(ip: str, digit: str, end_time_ms: int, reason: str | None) -> GcsNodeInfo:
        info = GcsNodeInfo(node_id=NodeID.from_hex(digit * 56).binary(), node_manager_address=ip)
        info.end_time_ms = end_time_ms
        info.state = GcsNodeInfo.ALIVE if reason is None else GcsNodeInfo.DEAD
        if reason is not None:
            info.death_info.reason = NodeDeathInfo.Reason.Value(reason)
            info.death_info.reason_message = f"ended at {end_time_ms}"
        return info

    lost, stopped = "UNEXPECTED_TERMINATION", "EXPECTED_TERMINATION"
    nodes = [
        node("10.0.0.1", "b", 0, None), node("10.0.0.1", "a", 9, lost),
        node("10.0.0.2", "c", 5, lost), node("10.0.0.2", "d", 3, stopped),
        node("10.0.0.3", "e", 5, lost), node("10.0.0.3", "f", 7, stopped),
    ]  # fmt: skip
    assert lost_nodes(nodes) == ["10.0.0.2 (cccccccc): ended at 5"]
