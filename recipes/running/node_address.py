"""Print the address by which a cluster's other machines reach this one, and its network interface.

Example:
    python recipes/running/node_address.py --head 10.0.0.5:6379        prints e.g. `10.0.0.6 eth0`

Ray alone would take the address that the host name stands for where there is no way to the internet, and torch's Gloo
does so everywhere. On Debian and Ubuntu that is 127.0.1.1, at which no other machine answers. Exits with status 2 where
the choice is open, the head cannot be reached, or --wanted is no address of this machine.
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

# An address outside, of which only the route is asked (RFC 5737: it belongs to nobody).
OUTSIDE = "203.0.113.1"
CONNECT_S = 3.0
# A head that has just been started takes some seconds to listen.
WAIT_S = 15.0


def own_addresses() -> dict[str, str]:
    """IPv4 address to interface, of the interfaces that are up."""
    is_up = {name: stats.isup for name, stats in psutil.net_if_stats().items()}
    return {
        address.address: name
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET and is_up.get(name, False)
    }


def source_of_route(to: str) -> str | None:
    """The address that this machine sends from to another; None where there is no route. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect((to, 9))
        except OSError:
            return None
        return str(one.getsockname()[0])


def choose(own: Mapping[str, str], wanted: str | None, source: str | None, head: str | None) -> str:
    """The address among a machine's own. source: what it sends from to the head, or outside where there is no head.
    Raises ConfigError."""
    others = {address: name for address, name in own.items() if not ipaddress.ip_address(address).is_loopback}
    listed = ", ".join(f"{address} ({name})" for address, name in others.items()) or "none but the loopback's"
    if wanted is not None:
        if wanted not in own:
            raise ConfigError(f"NODE_IP={wanted} is no address of this machine: choose one of {listed}")
        return wanted
    if source in own:
        if head is None and len(others) > 1:
            print(f"note: of this machine's addresses ({listed}) NODE_IP chooses another one", file=sys.stderr)
        return source
    if head is not None:
        raise ConfigError(f"this machine has no route to HEAD={head}: its addresses are {listed}")
    if len(others) > 1:
        raise ConfigError(f"this machine has several addresses and no route outside: choose one by NODE_IP: {listed}")
    if others:
        return next(iter(others))
    print("warning: this machine has no address but the loopback's, so that no other machine can join", file=sys.stderr)
    return "127.0.0.1"


def check_head(address: str, wait_s: float = WAIT_S) -> str:
    """Something listens there, within `wait_s` seconds; returns its IPv4 address. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"{address} is no address of a head: give IP:PORT, as 'bash scripts/ray_cluster.sh head' prints it"
        )
    try:
        ip = str(socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except socket.gaierror as error:
        raise ConfigError(f"{address}: this machine knows no such name ({error.strerror}), give IP:PORT") from None
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
        "--head", help="address of the cluster's head, IP:PORT; must answer (default: this is the head)"
    )
    parser.add_argument("--wanted", help="address to take, one of this machine's")
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
