"""Print the address by which a cluster's other machines reach this one, and its network interface.

Example:
    python recipes/running/node_address.py --head 10.0.0.5:6379        prints e.g. `10.0.0.6 eth0`

Without a route to the internet, Ray would use the address that the host name stands for. torch's Gloo always does. On
Debian and Ubuntu this address is 127.0.1.1, at which no other machine can reach this one.
Exits with status 2 if the choice is not clear, if the head cannot be reached, or if --wanted is not an address of this
machine.
"""

from __future__ import annotations

import argparse
import ipaddress
import socket
import sys
import time
from collections.abc import Mapping

import psutil

from tsc.errors import ConfigError, run_main

# An address outside, used only to ask for the route (RFC 5737: it belongs to nobody).
OUTSIDE = "203.0.113.1"
CONNECT_S = 3.0
# A head that has just started takes some seconds to listen.
WAIT_S = 15.0


def own_addresses() -> dict[str, str]:
    """The IPv4 addresses of the interfaces that are up, each with the name of its interface."""
    is_up = {name: stats.isup for name, stats in psutil.net_if_stats().items()}
    return {
        address.address: name
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET and is_up.get(name, False)
    }


def source_of_route(to: str) -> str | None:
    """The address from which this machine would send to another. None if there is no route. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect((to, 9))
        except OSError:
            return None
        return str(one.getsockname()[0])


def choose(own: Mapping[str, str], wanted: str | None, source: str | None, head: str | None) -> str:
    """Choose one of the machine's own addresses. Raises ConfigError.

    `source` is the address from which the machine sends to the head, or to the internet if it is the head itself.
    """
    others = {address: name for address, name in own.items() if not ipaddress.ip_address(address).is_loopback}
    listed = ", ".join(f"{address} ({name})" for address, name in others.items()) or "only the loopback address"
    if wanted is not None:
        if wanted not in own:
            raise ConfigError(f"NODE_IP={wanted} is not an address of this machine: choose one of {listed}")
        return wanted
    if source in own:
        if head is None and len(others) > 1:
            print(f"note: this machine has several addresses ({listed}); NODE_IP chooses another one", file=sys.stderr)
        return source
    if head is not None:
        raise ConfigError(f"this machine has no route to HEAD={head}. Its addresses: {listed}")
    if len(others) > 1:
        raise ConfigError(
            f"this machine has several addresses and no route to the internet: choose one with NODE_IP: {listed}"
        )
    if others:
        return next(iter(others))
    print("warning: this machine has only the loopback address, so no other machine can join", file=sys.stderr)
    return "127.0.0.1"


def check_head(address: str, wait_s: float = WAIT_S) -> str:
    """Wait up to `wait_s` seconds until something listens at the address, and return its IPv4 address.

    Raises ConfigError.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"{address} is not the address of a head: give IP:PORT, as 'bash scripts/ray_cluster.sh head' prints it"
        )
    try:
        ip = str(socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except socket.gaierror as error:
        raise ConfigError(f"{address}: this machine does not know this name ({error.strerror}), give IP:PORT") from None
    deadline = time.monotonic() + wait_s
    while True:
        try:
            socket.create_connection((ip, int(port)), timeout=CONNECT_S).close()
            return ip
        except OSError as error:
            if time.monotonic() > deadline:
                cause = error.strerror or str(error)
                raise ConfigError(
                    f"nothing can be reached at {address} ({cause}): is the head up, is this the address that "
                    "'bash scripts/ray_cluster.sh head' has printed, and do firewalls let this machine in?"
                ) from None
        time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--head", help="address of the cluster's head, IP:PORT, which must answer (default: this machine is the head)"
    )
    parser.add_argument("--wanted", help="address to use, one of this machine's")
    options = parser.parse_args()
    own = own_addresses()
    if options.wanted is not None:
        choose(own, options.wanted, None, None)
    head_ip = check_head(options.head) if options.head is not None else None
    chosen = choose(own, options.wanted, source_of_route(head_ip or OUTSIDE), options.head)
    print(chosen, own.get(chosen, ""))
    return 0


if __name__ == "__main__":
    run_main(main)
