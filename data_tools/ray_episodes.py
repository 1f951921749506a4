"""Runs the episodes of a dataset on a Ray cluster. The folder of the dataset is one that all nodes share."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_tools.dataset_episode import Episode
from tsc.errors import ConfigError, TscError
from tsc.files import REPO_ROOT, code_digest
from tsc.sumo.version import installed_sumo_version

# Episodes that wait on the cluster, for each of its CPUs. More would only fill Ray's memory.
QUEUED_PER_CPU = 2
# how often Ray runs an episode again whose node was lost
RETRIES = 3
_CODE = ("tsc", "data_tools")
_LOOK_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What a node has."""

    sees_folder: bool
    code: str
    sumo_version: str


def _look(mark: str) -> _Look:
    return _Look(sees_folder=Path(mark).is_file(), code=code_digest(*_CODE), sumo_version=installed_sumo_version())


def _run(episode: bytes, code: str, sumo_version: str) -> str:
    """Run a pickled episode in a process without Ray's threads, because it forks. Returns its fault, if it has one.

    code, sumo_version: those of the other nodes. This one may have joined the cluster after they were compared.
    """
    if (code, sumo_version) != (code_digest(*_CODE), installed_sumo_version()):
        return f"{socket.gethostname()} has other code or another SUMO than the node of the command"
    command = [sys.executable, "-m", "data_tools.dataset_episode"]
    done = subprocess.run(command, input=episode, cwd=REPO_ROOT, capture_output=True, check=False)
    if done.returncode == 0:
        return ""
    said = done.stderr.decode(errors="replace").strip()
    return said or f"the process of the episode ended with status {done.returncode}"


def run_on_ray(episodes: Sequence[Episode], address: str) -> None:
    """Run each episode on a node of the cluster. An episode whose node is lost runs again on another one.

    Raises ConfigError if the cluster cannot be used, and TscError if an episode fails.
    """
    ray = _connected(address)
    try:
        _check_nodes(ray, episodes[0].out)
        _run_all(ray, episodes)
    finally:
        ray.shutdown()


def _connected(address: str) -> Any:
    host, _, port = address.rpartition(":")
    try:
        # Ray itself would wait for ever
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address} ({error}): give --ray-address IP:PORT as `scripts/ray_cluster.sh "
            "head` printed it"
        ) from error
    # as scripts/ray_cluster.sh protects a cluster
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if token.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    # tasks find the packages here, wherever the command was given
    environment = {"env_vars": {"PYTHONPATH": str(REPO_ROOT)}}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment)
    except (ray.exceptions.AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        cause = str(error).strip().splitlines()[-1]
        raise ConfigError(
            f"cannot join the Ray cluster at {address} ({cause}): is this machine a node of it "
            f"(HEAD={address} bash scripts/ray_cluster.sh worker), and is ~/.ray/auth_token the same as on its head?"
        ) from error
    return ray


def _check_nodes(ray: Any, out: Path) -> None:
    """Raises ConfigError unless every node has this code and this SUMO, and sees the folder."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = out / f".seen-{uuid.uuid4().hex}"
    mark.touch()
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(_look)
        nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        looks = {
            ip: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(str(mark))
            for node, ip in nodes.items()
        }
        here = _look(str(mark))
        problems = []
        for ip, asked in looks.items():
            try:
                there = ray.get(asked, timeout=_LOOK_TIMEOUT_S)
            except ray.exceptions.RayError as error:
                problems.append(f"{ip} does not answer: {str(error).strip().splitlines()[-1]}")
                continue
            if not there.sees_folder:
                problems.append(f"{ip} does not see {out}: choose an --out in a folder that all nodes share")
            if there.code != here.code:
                problems.append(f"{ip} has other code in {', '.join(_CODE)}: bring both to the same commit")
            if there.sumo_version != here.sumo_version:
                problems.append(
                    f"{ip} has SUMO {there.sumo_version}, here {here.sumo_version}: run scripts/setup_env.sh there"
                )
    finally:
        mark.unlink(missing_ok=True)
    if problems:
        raise ConfigError("the cluster cannot make this dataset:\n  " + "\n  ".join(problems))


def _run_all(ray: Any, episodes: Sequence[Episode]) -> None:
    task = ray.remote(num_cpus=1, max_retries=RETRIES, max_calls=1)(_run)
    waiting = list(reversed(episodes))
    under_way: dict[Any, Episode] = {}
    here = (code_digest(*_CODE), installed_sumo_version())
    begin = time.monotonic()
    with tqdm(total=len(episodes), unit=" episodes", disable=None) as bar:
        while waiting or under_way:
            room = QUEUED_PER_CPU * max(1, round(ray.cluster_resources().get("CPU", 1))) - len(under_way)
            for _ in range(min(room, len(waiting))):
                episode = waiting.pop()
                under_way[task.options(name=episode.folder.name).remote(pickle.dumps(episode), *here)] = episode
            done, _ = ray.wait(list(under_way), num_returns=1, timeout=5.0)
            for reference in done:
                episode = under_way.pop(reference)
                try:
                    fault = ray.get(reference)
                except ray.exceptions.RayError as error:
                    fault = str(error).strip().splitlines()[-1]
                if fault:
                    raise TscError(f"episode {episode.folder.name}: {fault}\nrun the same command with --resume")
                bar.update(1)
    print(f"ran {len(episodes)} episodes in {time.monotonic() - begin:.1f} s")
