"""Training on two Ray nodes: scripts/ray_cluster.sh starts two on this machine, each with folders of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from recipes.models.checkpoints import is_complete
from recipes.running.cluster_run import NodeState, NodeWatch

SCRIPT = "scripts/ray_cluster.sh"
# Every wait ends with its event. It fails after this time without a new line in the log: then something hangs.
HANGS_S = 600


def wait_for(what: str, ready: Callable[[], bool], log: Path | None = None) -> None:
    written, since = -1, time.monotonic()
    while not ready():
        size = log.stat().st_size if log is not None and log.exists() else 0
        if size != written:
            written, since = size, time.monotonic()
        if time.monotonic() - since > HANGS_S:
            end = f":\n{log.read_text()[-3000:]}" if log is not None and log.exists() else ""
            raise AssertionError(f"no {what}, and nothing new for {HANGS_S} s{end}")
        time.sleep(0.3)


@dataclass(kw_only=True)
class Machine:
    """Stands for a machine of its own: a Ray node with its own folders for sockets, logs and temporary files."""

    root: Path
    folder: Path
    variables: dict[str, str]

    @property
    def ray_tmp(self) -> Path:
        return self.folder / "ray"

    def call(self, action: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | self.variables | variables
        environment |= {"RAY_TMP": str(self.ray_tmp), "TMPDIR": str(self.folder), "HARDWARE": "cpu"}
        return subprocess.run(
            ["bash", SCRIPT, action], cwd=self.root, env=environment, capture_output=True, text=True, timeout=HANGS_S
        )

    def start(self, action: str, **variables: str) -> str:
        """Start a node and return what was printed. Ray's own limit of 30 s may be too short on a busy machine."""
        for _ in range(5):
            done = self.call(action, **variables)
            if "too busy" not in done.stderr:
                break
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def processes(self) -> list[psutil.Process]:
        supervisor = psutil.Process(int((self.ray_tmp / "node.pid").read_text()))
        return [supervisor, *supervisor.children(recursive=True)]

    def commands(self) -> dict[psutil.Process, list[str]]:
        """The command of each process. One that ends meanwhile is left out."""
        found = {}
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                found[process] = process.cmdline()
        return found

    def runs(self, name: str) -> bool:
        return any(name in " ".join(command) for command in self.commands().values())

    def kill(self) -> None:
        """End it as a power cut does."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()


@dataclass(kw_only=True)
class Cluster:
    head: Machine
    worker: Machine
    address: str
    head_said: str

    def start_worker(self) -> None:
        self.worker.start("worker", HEAD=self.address)

    def check(self, *options: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "recipes/running/cluster_check.py", "--address", self.address, "--hardware", "cpu"]
        return subprocess.run(
            [*command, *map(str, options)],
            cwd=self.head.root,
            env=os.environ | self.head.variables,
            capture_output=True,
            text=True,
            timeout=HANGS_S,
        )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(repo_root: Path) -> Iterator[Cluster]:
    # Not in pytest's folder, because the paths of sockets may have at most 107 characters.
    base = Path(tempfile.mkdtemp(prefix="tsc-", dir="/tmp"))
    # A home of its own, so that the user's Ray keeps its token. This one is as Ray has made it.
    token = {"HOME": str(base / "home"), "RAY_AUTH_MODE": "token"}
    (base / "home/.ray").mkdir(parents=True)
    (base / "home/.ray/auth_token").write_text("0123456789abcdef" * 4)
    (base / "home/.ray/auth_token").chmod(0o644)
    machines = []
    for name in ("a", "b"):
        (base / name).mkdir()
        machines.append(Machine(root=repo_root, folder=base / name, variables=token))
    head, worker = machines
    port = free_port()
    try:
        head_said = head.start("head", PORT=str(port))
        address = (head.ray_tmp / "ray_current_cluster").read_text().strip()
        assert address.endswith(f":{port}")
        one = Cluster(head=head, worker=worker, address=address, head_said=head_said)
        one.start_worker()
        yield one
    finally:
        for machine in (worker, head):
            machine.call("stop")
        shutil.rmtree(base)


def test_each_machine_gets_a_node_and_the_next_commands_to_type(cluster: Cluster) -> None:
    assert f"HEAD={cluster.address} bash scripts/ray_cluster.sh worker" in cluster.head_said
    assert Path(cluster.head.variables["HOME"], ".ray/auth_token").stat().st_mode & 0o777 == 0o600
    assert f"RAY_ADDRESS={cluster.address} NNODES=2 bash scripts/train_grpo.sh" in cluster.head_said
    assert cluster.head.runs("gcs_server") and cluster.head.runs("raylet")
    assert cluster.worker.runs("raylet") and not cluster.worker.runs("gcs_server")
    again = cluster.worker.call("worker", HEAD=cluster.address)
    assert again.returncode == 2 and "a node runs here already" in again.stderr


def test_status_shows_nodes_resources_and_versions(cluster: Cluster) -> None:
    done = cluster.worker.call("status")
    assert done.returncode == 0, done.stderr
    title, *nodes = done.stdout.splitlines()
    assert title.split()[:6] == ["node", "Ray", "id", "CPUs", "GPUs", "free"]
    assert len(nodes) == 2 and all(node.endswith("ok") for node in nodes)
    # A pretended GPU takes 3 CPUs, and verl's own actors take 2.
    assert all(re.search(r" 5 +1 of 1 ", node) and " 1.28.0 " in node for node in nodes)


def test_torch_of_a_node_uses_the_interface_of_the_nodes_own_address(cluster: Cluster) -> None:
    ip = cluster.address.split(":")[0]
    for machine in (cluster.head, cluster.worker):
        commands = machine.commands()
        (raylet,) = (
            process for process, command in commands.items() if command[:1] and Path(command[0]).name == "raylet"
        )
        assert f"--node_ip_address={ip}" in commands[raylet]
        interface = raylet.environ()["GLOO_SOCKET_IFNAME"]
        assert ip in [address.address for address in psutil.net_if_addrs()[interface]]


def namespaces_work() -> bool:
    return shutil.which("unshare") is not None and subprocess.run(["unshare", "-rm", "true"]).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not namespaces_work(), reason="needs Linux's user namespaces, for a node with files of its own")
def test_a_node_with_other_code_and_without_data_and_shared_folder_is_named_with_the_remedies(
    cluster: Cluster, repo_root: Path, small_dataset: Path, tmp_path: Path
) -> None:
    parquet, run, changed = tmp_path / "parquet", tmp_path / "run", tmp_path / "reward"
    convert = [sys.executable, "data_tools/json_to_parquet.py", "--input", small_dataset, "--output", parquet]
    subprocess.run(convert, cwd=repo_root, check=True)
    run.mkdir()
    shutil.copytree(repo_root / "reward", changed, ignore=shutil.ignore_patterns("__pycache__"))
    (changed / "scoring.py").write_text((changed / "scoring.py").read_text() + "# changed\n")

    # A third node, which sees this machine's files except these three folders.
    mounts = f"mount --bind {changed} {repo_root}/reward && mount -t tmpfs none {small_dataset} && "
    mounts += f"mount -t tmpfs none {run} && "
    start = f"exec {sys.executable} -m ray.scripts.scripts start --address={cluster.address} --num-cpus=1 --block "
    start += f"--temp-dir={cluster.worker.folder}/c --object-store-memory=100000000 --disable-usage-stats"
    third = subprocess.Popen(
        ["unshare", "-rm", "bash", "-c", mounts + start],
        cwd=repo_root,
        env=os.environ | cluster.head.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert third.stdout is not None
        assert any("Ray runtime started" in line for line in third.stdout)
        bad = cluster.check("--nodes", "2", "--train", parquet / "train.parquet", "--out", run)
    finally:
        third.terminate()
        third.communicate(timeout=HANGS_S)
    assert bad.returncode == 2, bad.stdout
    assert [line.split()[-1] for line in bad.stdout.splitlines()[1:]] in (["ok", "ok", "WRONG"], ["ok", "WRONG", "ok"])
    named = re.findall(r"^ +node \S+ \(([0-9a-f]{8})\): (.*)$", bad.stderr, re.MULTILINE)
    assert len({node for node, _ in named}) == 1
    code, states, folder = (problem for _, problem in named)
    assert code.startswith(f"other code in {repo_root}: bring it to the commit (and the changes) of {repo_root} here")
    assert re.match(r"replays cannot run there, because it lacks (\d+) of \1 sampled.*--embed-states", states)
    assert folder.startswith(f"{run} is not this machine's folder there")
    assert list(run.iterdir()) == []  # the check has removed its own mark


# Runs a process like verl's reward workers on each node. It scores an answer against a replay of its own.
SCORE_ON_EACH_NODE = """
import json, logging, os, sys
import psutil, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

@ray.remote(num_cpus=0)
class Scorer:
    def score(self, truth):
        from reward.compute_score import compute_score
        score = compute_score("tsc", '{"extend": "yes"}', truth, {}, audit_fraction=1.0)
        place = os.environ["TSC_REPLAY_FOLDER"]
        # of a process that ends meanwhile, it gives None
        commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
        servers = [one for one in commands if f"reward.workers.server {place}/" in one]
        return place, len(servers), score["audited"], score["audit_disagreed"]

address, parquet = sys.argv[1:]
ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
import pyarrow.parquet
truth = pyarrow.parquet.read_table(parquet)["reward_model"][0].as_py()["ground_truth"]
nodes = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
scorers = [Scorer.options(scheduling_strategy=node).remote() for node in nodes]
print(json.dumps(ray.get([scorer.score.remote(truth) for scorer in scorers])))
"""


@pytest.mark.slow
def test_replays_run_on_the_node_that_asks_in_its_own_pool(
    cluster: Cluster, repo_root: Path, small_dataset: Path, tmp_path: Path
) -> None:
    convert = [sys.executable, "data_tools/json_to_parquet.py", "--input", small_dataset, "--output", tmp_path]
    subprocess.run(convert, cwd=repo_root, check=True)
    done = subprocess.run(
        [sys.executable, "-c", SCORE_ON_EACH_NODE, cluster.address, tmp_path / "train.parquet"],
        cwd=repo_root,
        env=os.environ | cluster.head.variables,
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    places = [str(cluster.head.folder), str(cluster.worker.folder)]
    assert sorted(place for place, *_ in found) == places
    assert [rest for _, *rest in found] == [[1, 1.0, 0.0]] * 2


@dataclass(kw_only=True)
class Training:
    """scripts/train_grpo.sh on the cluster's two nodes, a pretended GPU on each, three decisions to an answer."""

    process: subprocess.Popen[str]
    output: Path
    run: Path
    earlier: set[Path]

    @property
    def log(self) -> Path:
        return self.run / "grpo/train.log"

    def records(self) -> list[dict]:
        new = sorted(set(self.run.glob("grpo/metrics/*.jsonl")) - self.earlier)
        return [json.loads(line) for file in new for line in file.read_text().splitlines()]

    def wait_for_step(self) -> int:
        def is_done() -> bool:
            assert self.process.poll() is None, self.output.read_text()
            return bool(self.records())

        wait_for("step", is_done, self.log)
        return int(self.records()[0]["step"])

    def end(self) -> tuple[int, str]:
        """Wait for its end and return the exit status and what it printed."""
        status = self.process.wait(timeout=HANGS_S)
        return status, self.output.read_text()


def train(cluster: Cluster, folder: Path, parquet: Path, model: Path) -> Training:
    environment = os.environ | cluster.head.variables | {
        "RAY_ADDRESS": cluster.address, "NNODES": "2", "HARDWARE": "cpu", "DATA": str(parquet),
        "MODEL_PATH": str(model), "SFT": "no", "RUNS": str(folder), "RUN_NAME": "test", "STEPS": "1000",
        "SAVE_EVERY": "1", "BATCH_PROMPTS": "8", "ROLLOUT_N": "4", "MICRO_BATCH": "8", "KL": "0", "WANDB": "off",
        "EVAL_SEEDS": "0", "DECISIONS": "3", "LOSS_AGGREGATION": "seq-mean-token-sum-norm", "CLIP_HIGH": "0.28",
    }  # fmt: skip
    output = folder / f"output-{time.monotonic_ns()}.txt"
    earlier = set(folder.glob("test/grpo/metrics/*.jsonl"))
    with output.open("w") as file:
        process = subprocess.Popen(
            ["bash", "scripts/train_grpo.sh"],
            cwd=cluster.head.root, env=environment, stdout=file, stderr=file, text=True,
        )  # fmt: skip
    return Training(process=process, output=output, run=folder / "test", earlier=earlier)


def check_decisions(training: Training) -> None:
    step = training.records()[0]["data"]
    assert step["reward/num_decisions/mean"] == 3.0
    shares = [step[f"reward/{part}/mean"] for part in ("answer_yes", "answer_no", "format_invalid")]
    assert sum(shares) == pytest.approx(1.0)
    assert step["reward/outcome_from_sample/mean"] == 0.0 and step["reward/failed/sum"] == 0.0
    score = step["reward/traffic/mean"] + step["reward/format/mean"]
    assert step["reward/score/mean"] == pytest.approx(score)
    assert step["critic/score/mean"] == pytest.approx(score, abs=1e-6)
    assert step["critic/advantages/max"] > 0
    # one update a step for all decisions: a second one would find another policy
    assert abs(step["actor/ppo_kl"]) < 1e-3 and step["actor/pg_clipfrac"] == 0.0
    # 8 prompts × 4 answers × 3 decisions fill the update, so verl added no empty sequences
    log = training.log.read_text()
    assert "Upsampled batch" not in log and "Error in _run_prompt" not in log


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_lost_node_ends_the_training_with_its_name_and_the_same_command_continues_from_the_checkpoint(
    cluster: Cluster, repo_root: Path, small_dataset: Path, project: Any, tmp_path: Path
) -> None:
    parquet, model = tmp_path / "parquet", project.run / "sft/merged"
    subprocess.run(
        [sys.executable, "data_tools/json_to_parquet.py", "--input", small_dataset, "--output", parquet],
        cwd=repo_root,
        check=True,
    )
    training = train(cluster, tmp_path, parquet, model)
    try:
        assert training.wait_for_step() == 1
        for machine in (cluster.head, cluster.worker):
            for name in ("ray::WorkerDict", "ray::RewardLoopWorker", "VLLM::Worker"):
                assert machine.runs(name), f"no {name} on {machine.folder}"
        checkpoints = training.run / "grpo/checkpoints"
        config = yaml.safe_load((checkpoints / "hydra/config.yaml").read_text())
        assert config["actor_rollout_ref"]["actor"]["loss_agg_mode"] == "seq-mean-token-sum-norm"
        check_decisions(training)
        tracker = checkpoints / "latest_checkpointed_iteration.txt"
        wait_for("checkpoint", tracker.is_file, training.log)
        cluster.worker.kill()
        status, output = training.end()
        assert status == 1
        assert re.search(r"NodeLostError: lost the node \S+ \(Ray node [0-9a-f]{8}\): ", output), output
        wait_for("end of the run's workers", lambda: not cluster.head.runs("ray::WorkerDict"))
        assert cluster.head.runs("gcs_server")
        assert "the node that was started here has ended: start it again" in cluster.worker.call("status").stderr

        # Without the node, the same command says so before it does anything.
        status, output = train(cluster, tmp_path, parquet, model).end()
        assert status == 2
        # Ray's head takes some 20 s to notice the loss. Until then it lists a node that does not answer.
        assert re.search(r"and 1 of the cluster's 1 have them|node \S+ \([0-9a-f]{8}\): does not answer", output), (
            output
        )

        cluster.start_worker()
        tracker.write_text("")  # as a kill leaves it in the moment in which verl writes it
        complete = [path.name for path in checkpoints.glob("global_step_*") if is_complete(path)]
        saved = max(int(name.rpartition("_")[2]) for name in complete)
        training = train(cluster, tmp_path, parquet, model)
        assert training.wait_for_step() == saved + 1
        assert f"names step {saved}, the newest complete checkpoint" in training.output.read_text()
        training.process.send_signal(signal.SIGTERM)
        status, _ = training.end()
        assert status == 143
        for machine in (cluster.head, cluster.worker):
            wait_for("end of the run's workers", lambda at=machine: not at.runs("ray::WorkerDict"))
            wait_for("end of vLLM", lambda at=machine: not at.runs("VLLM::"))
    finally:
        training.process.terminate()
        training.process.wait(HANGS_S)


def test_stop_ends_this_machines_node_with_all_its_processes_and_no_other(cluster: Cluster) -> None:
    processes = cluster.worker.processes()
    done = cluster.worker.call("stop")
    assert done.returncode == 0, done.stderr
    assert psutil.wait_procs(processes, timeout=60)[1] == []
    assert not cluster.worker.ray_tmp.exists()
    assert cluster.head.runs("gcs_server")
    assert cluster.worker.call("stop").returncode == 2


@pytest.mark.parametrize(
    ("action", "variables", "message"),
    [
        ("worker", {"HEAD": ""}, "IP:PORT"),
        ("head", {"PORT": "none"}, "PORT=none is not a whole number"),
        ("head", {"BLOCK": "yes"}, "choose 0 or 1"),
        ("head", {"RAY_TMP": "/tmp/a-folder-whose-name-leaves-no-room-for-sockets"}, "at most 40 characters"),
        ("restart", {}, "head|worker|status|stop"),
    ],
)
def test_a_wrong_call_is_refused_with_what_is_allowed(
    repo_root: Path, tmp_path: Path, action: str, variables: dict[str, str], message: str
) -> None:
    done = subprocess.run(
        ["bash", SCRIPT, action], cwd=repo_root, env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"HEAD": "no-such-host.invalid:6379"}, "no-such-host.invalid:6379: this machine does not know this name"),
        ({"HEAD": "127.0.0.1:9", "NODE_IP": "203.0.113.7"}, "NODE_IP=203.0.113.7 is not an address of this machine"),
    ],
)
def test_a_worker_whose_head_or_own_address_is_wrong_says_so_before_ray_starts(
    repo_root: Path, variables: dict[str, str], message: str
) -> None:
    # Not in pytest's folder, see above.
    with tempfile.TemporaryDirectory(prefix="tsc-", dir="/tmp") as folder:
        machine = Machine(root=repo_root, folder=Path(folder), variables=variables)
        done = machine.call("worker")
        assert not machine.ray_tmp.exists()
    assert done.returncode == 2
    assert message in done.stderr


def test_a_training_hears_at_once_that_no_cluster_answers_at_its_address(repo_root: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = subprocess.run(
        [sys.executable, "recipes/running/cluster_check.py", "--address", address, "--hardware", "cpu"],
        cwd=repo_root, capture_output=True, text=True, timeout=HANGS_S,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"nothing can be reached at {address} (Connection refused): is the head up" in done.stderr


def test_a_port_in_use_is_refused(repo_root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            ["bash", SCRIPT, "head"], cwd=repo_root, env=os.environ | {"PORT": port}, capture_output=True, text=True
        )
    assert done.returncode == 2
    assert f"PORT={port} is taken" in done.stderr


def state(id: str, died_because: str | None = None) -> NodeState:
    return NodeState(id=id, ip="127.0.0.1", port=9, died_because=died_because)


def test_only_nodes_that_were_seen_alive_can_be_lost() -> None:
    watch = NodeWatch()
    watch.look([state("a" * 56), state("b" * 56), state("c" * 56, "left before the run")])
    assert watch.lost == []
    watch.look([state("a" * 56), state("b" * 56, "no heartbeat")])
    watch.look([state("a" * 56), state("b" * 56, "no heartbeat")])
    assert watch.lost == ["127.0.0.1 (Ray node bbbbbbbb): no heartbeat"]


def test_a_node_that_accepts_no_connection_is_lost_before_the_head_says_so() -> None:
    watch = NodeWatch()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        alive = NodeState(id="a" * 56, ip="127.0.0.1", port=listening.getsockname()[1], died_because=None)
        watch.look([alive, state("b" * 56)])
        watch.knock()
    assert watch.lost == ["127.0.0.1 (Ray node bbbbbbbb): it accepts no connections"]
