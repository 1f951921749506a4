"""By which address a node of a cluster is known. With Ray: tests/scripts/test_cluster.py."""

from __future__ import annotations

import socket

import pytest

from recipes.running.node_address import check_head, choose, own_addresses, source_of_route
from tsc.errors import ConfigError

OWN = {"127.0.0.1": "lo", "10.0.0.5": "eth0", "192.168.1.5": "eth1"}


def test_a_node_is_known_by_the_address_that_it_reaches_the_head_from() -> None:
    assert choose(OWN, None, "192.168.1.5", "192.168.1.9:6379") == "192.168.1.5"
    assert choose(OWN, "10.0.0.5", "192.168.1.5", "192.168.1.9:6379") == "10.0.0.5"


def test_a_head_without_a_way_to_the_internet_takes_its_only_address() -> None:
    assert choose({"127.0.0.1": "lo", "10.0.0.5": "eth0"}, None, None, None) == "10.0.0.5"
    with pytest.raises(ConfigError, match=r"choose one with NODE_IP: 10\.0\.0\.5 \(eth0\), 192\.168\.1\.5 \(eth1\)"):
        choose(OWN, None, None, None)


def test_a_head_with_several_addresses_takes_the_one_towards_the_internet_and_names_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert choose(OWN, None, "10.0.0.5", None) == "10.0.0.5"
    assert "(10.0.0.5 (eth0), 192.168.1.5 (eth1)); NODE_IP chooses another" in capsys.readouterr().err


def test_a_machine_without_a_network_can_only_be_a_cluster_of_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert choose({"127.0.0.1": "lo"}, None, None, None) == "127.0.0.1"
    assert "no other machine can join" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no route to HEAD=10.0.0.9:6379. Its addresses: only the loopback address"):
        choose({"127.0.0.1": "lo"}, None, None, "10.0.0.9:6379")


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"NODE_IP=10\.0\.0\.6 is not an address of this machine: choose one of 10\.0\.0\.5"
    ):
        choose(OWN, "10.0.0.6", "10.0.0.5", None)


def test_this_machines_addresses_have_interfaces_and_lead_back_to_it() -> None:
    own = own_addresses()
    assert own["127.0.0.1"] == "lo"
    assert all(source_of_route(address) in own for address in own)


def test_a_head_is_looked_up_and_one_that_does_not_listen_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert check_head(f"localhost:{port}") == "127.0.0.1"
    with pytest.raises(ConfigError, match=rf"nothing can be reached at 127\.0\.0\.1:{port} \(Connection refused\)"):
        check_head(f"127.0.0.1:{port}", wait_s=0.0)
    with pytest.raises(ConfigError, match="give IP:PORT"):
        check_head("127.0.0.1:ssh")
