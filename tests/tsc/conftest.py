"""The short four_way scenario as SUMO files."""

from pathlib import Path

import pytest

from tsc.scenario import build_demand, build_net, load_scenario
from tsc.simulation import SumoFiles


@pytest.fixture(scope="session")
def files(short_scenario: Path, tmp_path_factory: pytest.TempPathFactory) -> SumoFiles:
    folder = tmp_path_factory.mktemp("net")
    scenario = load_scenario(short_scenario)
    build_net(scenario, folder / "net.xml")
    build_demand(scenario, folder / "net.xml", 1, folder / "rou.xml")
    return SumoFiles(net_file=folder / "net.xml", route_files=(folder / "rou.xml",), seed=1)
