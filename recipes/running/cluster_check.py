"""Check before a training that every node of a Ray cluster has the same software, data, states and model.

Example:
    python recipes/running/cluster_check.py --address 10.0.0.5:6379 --hardware h100 --nodes 2 --gpus-per-node 8 \\
        --train data/mine/parquet/train.parquet --model models/mine --out runs/mine

Prints one line per node. Every node must match this machine, from which you launch. If a node differs, lacks something
or does not answer, the script says what to do there and exits with status 2. Without --nodes it only compares the
software.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import logging
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recipes.models.checkpoints import SHARD, latest_step
from recipes.preflight.hardware import load_hardware
from recipes.running.node_address import check_head
from tsc.errors import ConfigError, run_main
from tsc.replays.state_archive import lies_in_archive

PACKAGES = ("ray", "verl", "vllm", "torch", "transformers", "peft", "transferqueue", "libsumo", "zstandard")
# The folders and the kinds of files that make up the project's version.
CODE = ("tsc", "reward", "recipes", "configs")
CODE_SUFFIXES = {".py", ".yaml"}
NUM_SAMPLED_ROWS = 16
# Of larger files, only the size and both ends are compared: the weights of 7B would take half a minute per node.
WHOLE_FILE_BYTES = 64 << 20
END_BYTES = 1 << 20
# How long a node may take to start Python, read the files and answer.
NODE_TIMEOUT_S = 180
# For Ray's logs and spilled objects. scripts/plan.py says what the run itself needs.
LEAST_FREE_GIB = 2.0
# verl's queue, an actor that has the same name in all trainings.
QUEUE_ACTOR = "TransferQueueController"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What each node has to check. Paths are absolute."""

    files: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    model: str | None = None
    out: str | None = None
    mark: str = ""
    asks_gpus: bool = False
    several_hosts: bool = False


@dataclass(kw_only=True)
class Facts:
    """What a node has. The digest of a file that does not exist is None."""

    python: str
    packages: dict[str, str | None]
    root: str
    code: str
    free_gib: float
    digests: dict[str, str | None] = field(default_factory=dict)
    model: dict[str, str] | None = None
    sees_out: bool | None = None
    gpus: str | None = None
    # The address to which torch's Gloo makes the other nodes connect. None if its interface is set.
    gloo_ip: str | None = None


@dataclass(frozen=True, kw_only=True)
class Node:
    """A living node, as Ray describes it."""

    id: str
    ip: str
    cpus: float
    gpus: float
    free_gpus: float
    is_here: bool

    @property
    def name(self) -> str:
        return f"{self.ip} ({self.id[:8]})"


def look(wanted: dict[str, Any]) -> dict[str, Any]:
    """The facts of the machine and the Python that run this function.

    Ray sends the function to the nodes by value. So it imports what it needs, and uses none of our modules.
    """
    import hashlib
    import importlib.metadata
    import importlib.util
    import os
    import platform
    import shutil
    import socket
    import subprocess
    from pathlib import Path

    def digest(path: Path) -> str | None:
        if not path.is_file():
            return None
        size = path.stat().st_size
        total = hashlib.sha256()
        with path.open("rb") as file:
            if size <= WHOLE_FILE_BYTES:
                total.update(file.read())
            else:
                total.update(b"%d" % size + file.read(END_BYTES))
                file.seek(-END_BYTES, os.SEEK_END)
                total.update(file.read())
        return total.hexdigest()

    def version(name: str) -> str | None:
        for distribution in (name, f"{name}-cpu"):
            try:
                return importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
        return None

    spec = importlib.util.find_spec("reward")
    root = Path(spec.origin).resolve().parents[1] if spec is not None and spec.origin else None
    code = hashlib.sha256()
    for folder in CODE if root is not None else ():
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in CODE_SUFFIXES and path.is_file():
                code.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    disk = Path(wanted["out"] or "/").resolve()
    while not disk.exists():
        disk = disk.parent
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "root": str(root) if root is not None else "",
        "code": code.hexdigest() if root is not None else "",
        "free_gib": shutil.disk_usage(disk).free / 2**30,
        "digests": {name: digest(Path(name)) for name in (*wanted["files"], *wanted["states"])},
    }
    if wanted["model"] is not None:
        files = sorted(path for path in Path(wanted["model"]).rglob("*") if path.is_file())
        found["model"] = {str(path.relative_to(wanted["model"])): digest(path) for path in files}
    if wanted["mark"]:
        mark = Path(wanted["out"], wanted["mark"])
        found["sees_out"] = mark.is_file() and os.access(mark.parent, os.W_OK)
    if "GLOO_SOCKET_IFNAME" not in os.environ:
        try:
            found["gloo_ip"] = socket.gethostbyname(socket.gethostname())
        except socket.gaierror:
            found["gloo_ip"] = "127.0.0.1"  # Gloo's own choice
    if wanted["asks_gpus"]:
        smi = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        try:
            names = subprocess.run(smi, capture_output=True, text=True, timeout=60, check=True).stdout.split("\n")
            found["gpus"] = ", ".join(sorted({name.strip() for name in names if name.strip()}))
        except (OSError, subprocess.SubprocessError) as error:
            found["gpus"] = f"nvidia-smi fails: {error}"
    return found


def sampled_files(parquet: Path, num_rows: int = NUM_SAMPLED_ROWS) -> dict[str, str | None]:
    """The paths of the states, nets and routes of some rows, which are spread over the file.

    A state comes with the digest in its row, any other file with None. Embedded files are left out: the row holds them.
    """
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(parquet)
    rows = file.read(columns=["reward_model"]).column("reward_model")
    found: dict[str, str | None] = {}
    for index in sorted({i * len(rows) // num_rows for i in range(num_rows)}):
        request = json.loads(rows[index].as_py()["ground_truth"])["request"]
        embedded = request.get("embedded", {})
        sumo = request["sumo"]
        state, digest = request["state_file"], request.get("state_sha256")
        named = {state: digest}
        if lies_in_archive(Path(state)) and state not in embedded:
            named = {str(Path(state).parent): None}  # the archive of this state and others
        named |= dict.fromkeys([sumo["net_file"], *sumo["route_files"], *sumo.get("additional_files", [])])
        for name, digest in named.items():
            if name not in embedded:
                found[str(Path(request["dataset_dir"], name))] = digest
    return found


def problems_of(facts: Facts, here: Facts, wanted: Wanted, states: dict[str, str | None]) -> list[str]:
    """The problems of a node, each with its remedy."""
    found = []
    restart = "then stop and start its node (scripts/ray_cluster.sh)"
    if facts.python != here.python:
        found.append(f"Python {facts.python}, here {here.python}: make the .venv there with the same Python, {restart}")
    differing = [name for name in PACKAGES if facts.packages.get(name) != here.packages[name]]
    if differing:
        listed = ", ".join(
            f"{name} {facts.packages.get(name) or 'missing'} (here {here.packages[name]})" for name in differing
        )
        found.append(f"other packages: {listed}: run scripts/setup_env.sh there with the same PROFILE, {restart}")
    if not facts.code:
        found.append(f"the project is not installed: run scripts/setup_env.sh in its repository, {restart}")
    elif facts.code != here.code:
        found.append(
            f"other code in {facts.root}: bring it to the commit (and the changes) of {here.root} here, {restart}"
        )
    missing = [name for name in wanted.files if facts.digests.get(name) is None]
    other = [name for name in wanted.files if name not in missing and facts.digests[name] != here.digests[name]]
    if missing:
        found.append(f"no {' and no '.join(missing)}: copy it to the same path, or use a folder that all nodes share")
    if other:
        found.append(f"another {' and another '.join(other)} than here: copy this machine's, or use a shared folder")
    missing = [name for name in wanted.states if facts.digests.get(name) is None]
    other = [
        name
        for name in wanted.states
        if name not in missing and facts.digests[name] != (states[name] or here.digests[name])
    ]
    if missing or other:
        listed = "; ".join(
            f"{kind} {len(names)} of {len(wanted.states)} sampled, such as {names[0]}"
            for kind, names in (("lacks", missing), ("has another version of", other))
            if names
        )
        found.append(
            f"replays cannot run there, because it {listed}: put the dataset at the same path, or convert it with "
            "json_to_parquet.py --embed-states (docs/cluster_replays.md)"
        )
    if wanted.model is not None and facts.model != here.model:
        if not facts.model:
            found.append(f"no model in {wanted.model}: copy it to the same path, or use a shared folder")
        else:
            assert here.model is not None
            names = sorted(
                name for name in facts.model.keys() | here.model.keys() if facts.model.get(name) != here.model.get(name)
            )
            found.append(f"another model in {wanted.model} ({', '.join(names[:3])}): copy this machine's")
    if facts.sees_out is False:
        found.append(
            f"{wanted.out} is not this machine's folder there, or not writable: every node writes its part of a "
            "checkpoint, so choose RUNS in a folder that all nodes share"
        )
    if facts.free_gib < LEAST_FREE_GIB:
        found.append(f"{facts.free_gib:.1f} GiB of free disk, but a run needs {LEAST_FREE_GIB:g} GiB: free some space")
    if wanted.several_hosts and facts.gloo_ip is not None and ipaddress.ip_address(facts.gloo_ip).is_loopback:
        found.append(
            f"its name stands for {facts.gloo_ip}, to which torch's Gloo would make the other nodes connect: start its "
            "node with scripts/ray_cluster.sh, or with its network interface in GLOO_SOCKET_IFNAME"
        )
    if wanted.asks_gpus and facts.gpus != here.gpus:
        found.append(f"GPUs: {facts.gpus or 'none'}; here: {here.gpus}: verl needs nodes with the same GPUs")
    return found


def check_world_size(checkpoints: Path, num_workers: int) -> None:
    """Raises ConfigError if another number of workers wrote the last checkpoint, or if parts of it are elsewhere."""
    step = latest_step(checkpoints)
    if step is None:
        return
    actor = checkpoints / f"global_step_{step}" / "actor"
    ranks = {(int(part[1]), int(part[2])) for path in actor.glob("*.pt") if (part := SHARD.fullmatch(path.name))}
    sizes = {size for size, _ in ranks}
    if sizes and sizes != {num_workers}:
        size = min(sizes)
        raise ConfigError(
            f"the checkpoint in {actor} is of {size} workers, and NNODES × N_GPUS is {num_workers}: choose them so "
            f"that they make {size}, or start anew with another RUN_NAME"
        )
    lacking = [rank for rank in range(num_workers) if (num_workers, rank) not in ranks]
    if lacking:
        raise ConfigError(
            f"the checkpoint in {actor} lacks the part of worker {lacking[0]}: it was written to a folder that the "
            "nodes do not share. Copy the parts together from all nodes"
        )


def connect(address: str) -> Any:
    """Connect Ray to the cluster and return the module. Raises ConfigError if that fails."""
    import ray

    # Ray itself waits for ever if nothing answers, and a minute if this machine has no node.
    check_head(address, wait_s=0.0)
    if not ray._private.services.find_node_ids():
        raise ConfigError(
            f"no Ray node runs on this machine, and the command needs a node of the cluster at {address}: start one "
            f"(HEAD={address} bash scripts/ray_cluster.sh worker), or give the command on another node"
        )
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    except (ray.exceptions.AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        cause = str(error).strip().splitlines()[-1]
        raise ConfigError(
            f"cannot join the Ray cluster at {address} ({cause}): is this machine a node of it "
            f"(HEAD={address} bash scripts/ray_cluster.sh worker), and is ~/.ray/auth_token the same as on its head?"
        ) from None
    return ray


def living_nodes(ray: Any) -> list[Node]:
    """The living nodes: this machine's first, then the others in the order of their addresses."""
    here = ray.get_runtime_context().get_node_id()
    available = ray._private.state.available_resources_per_node()
    nodes = [
        Node(
            id=node["NodeID"],
            ip=node["NodeManagerAddress"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            free_gpus=available.get(node["NodeID"], {}).get("GPU", 0.0),
            is_here=node["NodeID"] == here,
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(nodes, key=lambda node: (not node.is_here, node.ip, node.id))


def lost_nodes(infos: Iterable[Any]) -> list[str]:
    """The nodes that were lost and not replaced, each with the reason that Ray gives.

    For an address without a living node this is its last node, unless that node was ended on purpose.
    `infos` are the GcsNodeInfo that Ray has of all nodes, living or not.
    """
    from ray.core.generated.common_pb2 import NodeDeathInfo
    from ray.core.generated.gcs_pb2 import GcsNodeInfo

    last: dict[str, Any] = {}
    for info in sorted(infos, key=lambda info: (info.state == GcsNodeInfo.ALIVE, info.end_time_ms)):
        last[info.node_manager_address] = info
    return [
        f"{ip} ({info.node_id.hex()[:8]}): {info.death_info.reason_message.strip()}"
        for ip, info in last.items()
        if info.state == GcsNodeInfo.DEAD and info.death_info.reason == NodeDeathInfo.UNEXPECTED_TERMINATION
    ]


def facts_of_all(ray: Any, nodes: Sequence[Node], wanted: Wanted) -> dict[str, Facts | str]:
    """The facts of each node by its id, or a text that says why the node gave none."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            asdict(wanted)
        ): node.id
        for node in nodes
    }
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_TIMEOUT_S)
    found: dict[str, Facts | str] = {asked[one]: f"within {NODE_TIMEOUT_S} s" for one in late}
    for one in ready:
        try:
            found[asked[one]] = Facts(**ray.get(one))
        except ray.exceptions.RayError as error:
            found[asked[one]] = type(error).__name__
    return found


def check_resources(nodes: Sequence[Node], num_nodes: int, gpus_per_node: int, address: str) -> None:
    """Raises ConfigError if too few nodes have enough free GPUs."""
    free = [node for node in nodes if node.free_gpus >= gpus_per_node]
    if len(free) >= num_nodes:
        return
    listed = "; ".join(f"{node.name}: {node.free_gpus:g} of {node.gpus:g} free" for node in nodes)
    raise ConfigError(
        f"the training needs {num_nodes} nodes with {gpus_per_node} free GPUs each, and {len(free)} of the cluster's "
        f"{len(nodes)} have them ({listed}): start more nodes (HEAD={address} bash scripts/ray_cluster.sh worker), "
        "wait until other work there ends, or choose a lower NNODES or N_GPUS"
    )


def table(nodes: Sequence[Node], facts: dict[str, Facts | str], here: Facts, problems: dict[str, list[str]]) -> str:
    """A table with one line per node."""
    head = ("node", "Ray id", "CPUs", "GPUs free", "Python", "ray", "verl", "vllm", "torch", "SUMO", "code", "disk", "")
    rows = [head]
    for node in nodes:
        seen = facts[node.id]
        place = f"{node.ip} (here)" if node.is_here else node.ip
        row = [place, node.id[:8], f"{node.cpus:g}", f"{node.free_gpus:g} of {node.gpus:g}"]
        if isinstance(seen, Facts):
            row += [
                seen.python,
                *(seen.packages.get(name) or "-" for name in ("ray", "verl", "vllm", "torch", "libsumo")),
            ]
            row += [seen.code[:8] or "-", f"{seen.free_gib:.0f} GiB"]
        else:
            row += ["-"] * 8
        rows.append((*row, "WRONG" if problems[node.id] else "ok"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def shared_mark(out: Path) -> Path:
    """Make a file in the run's folder, by which the other nodes recognise the folder."""
    out.mkdir(parents=True, exist_ok=True)
    mark = out / f".cluster-check-{uuid.uuid4().hex}"
    mark.touch()
    return mark


def absolute(paths: Iterable[Path | None]) -> tuple[str, ...]:
    return tuple(str(path.resolve()) for path in paths if path is not None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True, help="address of the cluster's head, IP:PORT")
    parser.add_argument("--hardware", required=True, help="name of a file in configs/hardware")
    parser.add_argument("--nodes", type=int, help="number of nodes for the training")
    parser.add_argument("--gpus-per-node", type=int, help="GPUs on each node (default: those of the hardware profile)")
    parser.add_argument("--train", type=Path, help="Parquet file with prompts")
    parser.add_argument("--val", type=Path, help="Parquet file for validation")
    parser.add_argument("--model", type=Path, help="folder of the model to start from")
    parser.add_argument("--out", type=Path, help="folder of the run, which all nodes must share")
    parser.add_argument(
        "--checkpoints", type=Path, help="folder of earlier checkpoints, from which the training resumes"
    )
    options = parser.parse_args()

    hardware = load_hardware(options.hardware)
    gpus_per_node = options.gpus_per_node or hardware.num_devices
    states = sampled_files(options.train) if options.train is not None else {}
    if options.checkpoints is not None and options.nodes is not None:
        check_world_size(options.checkpoints, options.nodes * gpus_per_node)
    ray = connect(options.address)
    mark = shared_mark(options.out) if options.out is not None else None
    try:
        nodes = living_nodes(ray)
        wanted = Wanted(
            files=absolute([options.train, options.val]),
            states=tuple(states),
            model=str(options.model.resolve()) if options.model is not None else None,
            out=str(options.out.resolve()) if options.out is not None else None,
            mark=mark.name if mark is not None else "",
            asks_gpus=hardware.device == "cuda",
            several_hosts=len({node.ip for node in nodes}) > 1,
        )
        here = Facts(**look(asdict(wanted)))
        facts = facts_of_all(ray, nodes, wanted)
        lost = lost_nodes(ray._private.worker.global_worker.gcs_client.get_all_node_info().values())
        busy = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if actor["name"] == QUEUE_ACTOR]
    finally:
        if mark is not None:
            mark.unlink()
    problems = {
        id: problems_of(seen, here, wanted, states)
        if isinstance(seen, Facts)
        else [f"does not answer ({seen}): stop its node, then start it again (scripts/ray_cluster.sh)"]
        for id, seen in facts.items()
    }
    print(table(nodes, facts, here, problems), flush=True)
    for node_and_cause in lost:
        print(
            f"lost: {node_and_cause}. Start it again there. If it is lost again within a minute, a firewall may "
            "keep the other nodes from its ports (docs/cluster.md)",
            flush=True,
        )
    ray.shutdown()
    lines = [f"node {node.name}: {problem}" for node in nodes for problem in problems[node.id]]
    if lines:
        raise ConfigError("\n       ".join(["the cluster's nodes do not match this machine", *lines]))
    if options.nodes is not None:
        if busy:
            raise ConfigError(
                f"another training runs on the Ray cluster at {options.address}, and verl's queue serves only one: "
                "wait until it ends, or start a second cluster on another PORT"
            )
        check_resources(nodes, options.nodes, gpus_per_node, options.address)
    return 0


if __name__ == "__main__":
    run_main(main)
