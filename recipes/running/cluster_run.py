"""Run the driver of a training on a Ray cluster. When the cluster loses a node, end the driver and report the cause.

Example:
    python recipes/running/cluster_run.py --address 10.0.0.5:6379 -- python -m verl.trainer.main_ppo …

After a loss, verl ends by itself in most cases. It may also wait for ever for an answer from the lost node. This script
only watches the nodes, and does not end them. Exit status: that of the command, or 1 after a loss.
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from tsc.errors import run_main

POLL_S = 2.0
# How long Ray's head may be silent. A busy head answers late, a dead one never.
SILENCE_S = 30.0
# How long verl may take to end by itself after a loss, and then after SIGTERM.
GRACE_S = 20.0
# How long a living node may take to accept a connection.
CONNECT_S = 5.0
TERMINATION_S = 8.0


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """What Ray's head reports about a node. `died_because` is None for a living node."""

    id: str
    ip: str
    port: int
    died_because: str | None

    @property
    def name(self) -> str:
        return f"{self.ip} (Ray node {self.id[:8]})"

    def accepts_connections(self) -> bool:
        try:
            socket.create_connection((self.ip, self.port), timeout=CONNECT_S).close()
        except OSError:
            return False
        return True


class NodeWatch:
    """The nodes that were seen alive, and those of them that have been lost since."""

    def __init__(self) -> None:
        self._alive: dict[str, NodeState] = {}
        self.lost: list[str] = []

    def look(self, states: Iterable[NodeState]) -> None:
        for state in states:
            if state.died_because is None:
                self._alive[state.id] = state
            elif self._alive.pop(state.id, None) is not None:
                self.lost.append(f"{state.name}: {state.died_because}")

    def knock(self) -> None:
        """Find lost nodes by trying to connect to each. Ray's head takes some 20 s to notice a loss."""
        for state in list(self._alive.values()):
            if not state.accepts_connections():
                del self._alive[state.id]
                self.lost.append(f"{state.name}: it accepts no connections")


def read_states(client: Any) -> list[NodeState]:
    """All nodes that the cluster has or had. Raises ray.exceptions.RpcError when the head does not answer."""
    from ray.core.generated.common_pb2 import NodeDeathInfo
    from ray.core.generated.gcs_pb2 import GcsNodeInfo

    infos: Mapping[Any, Any] = client.get_all_node_info(timeout=POLL_S)
    states = []
    for info in infos.values():
        reason = info.death_info.reason
        # An autoscaler takes back idle nodes, which this run does not use.
        is_lost = info.state == GcsNodeInfo.DEAD and reason != NodeDeathInfo.AUTOSCALER_DRAIN_IDLE
        because = info.death_info.reason_message or NodeDeathInfo.Reason.Name(reason).lower().replace("_", " ")
        states.append(
            NodeState(
                id=info.node_id.hex(),
                ip=info.node_manager_address,
                port=info.node_manager_port,
                died_because=because.strip() if is_lost else None,
            )
        )
    return states


class Driver:
    """The command. It gets the signals that end this process."""

    def __init__(self, command: list[str]) -> None:
        try:
            self.process = subprocess.Popen(command)
        except OSError as error:
            print(f"error: cannot start {command[0]}: {error.strerror}", file=sys.stderr)
            raise SystemExit(2) from error
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._pass_on)

    def _pass_on(self, signum: int, _frame: FrameType | None) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signum)

    def ends_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self) -> None:
        """Send SIGTERM: Ray then ends the run's workers on all nodes. If that takes too long, send SIGKILL: Ray's head
        then ends the workers."""
        self.process.terminate()
        if not self.ends_within(TERMINATION_S):
            self.process.kill()
            self.process.wait()


def run(address: str, command: list[str]) -> int:
    """Run the command to its end and return the exit status."""
    from ray._raylet import GcsClient
    from ray.exceptions import RpcError

    client = GcsClient(address=address)
    watch = NodeWatch()
    watch.look(read_states(client))
    driver = Driver(command)
    cause: str | None = None
    heard_s = time.monotonic()
    while not driver.ends_within(POLL_S) and not watch.lost and cause is None:
        try:
            watch.look(read_states(client))
            heard_s = time.monotonic()
        except RpcError as error:
            if time.monotonic() - heard_s > SILENCE_S:
                cause = f"Ray's head at {address} does not answer: {str(error).strip().splitlines()[0].rstrip('.')}"
    if watch.lost or cause is not None:
        if not driver.ends_within(GRACE_S):
            driver.end()
    elif driver.process.returncode != 0:
        # The driver notices a broken connection to a worker at once, before Ray's head notices the loss.
        watch.knock()
    if watch.lost:
        cause = f"lost the node {', '.join(watch.lost)}"
    if cause is None:
        status = driver.process.returncode
        return status if status >= 0 else 128 - status
    print(f"NodeLostError: {cause}. Start it again (scripts/ray_cluster.sh), then give the same command", flush=True)
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True, help="address of the cluster's head, IP:PORT")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND ARGUMENT…")
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command given after --")
    return run(options.address, command)


if __name__ == "__main__":
    run_main(main)
