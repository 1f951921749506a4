from collections import Counter
from pathlib import Path

import pytest
import sumolib

from tsc.errors import ScenarioError
from tsc.scenarios.scenario import Seeds, build_demand, build_net, draw_vehicles, load_scenario

NAMES = ["four_way", "arterial", "grid"]


@pytest.fixture(scope="module", params=NAMES)
def net_and_scenario(request: pytest.FixtureRequest, repo_root: Path, tmp_path_factory: pytest.TempPathFactory):
    scenario = load_scenario(repo_root / f"configs/scenarios/{request.param}.yaml")
    net_file = tmp_path_factory.mktemp(request.param) / "net.xml"
    build_net(scenario, net_file)
    return net_file, scenario


def test_the_shipped_scenarios_have_the_signals_they_promise(net_and_scenario) -> None:
    net_file, scenario = net_and_scenario
    junctions = [s for s in sumolib.net.readNet(str(net_file)).getTrafficLights() if s.getConnections()]
    assert len(junctions) == {"four_way": 1, "arterial": 5, "grid": 9}[scenario.name]


def test_the_demand_has_the_rates_of_the_file(net_and_scenario) -> None:
    """Counts of an hour are sums of Bernoulli draws: within four standard deviations of the expected number."""
    net_file, scenario = net_and_scenario
    entered = Counter(route[0] for _, route in draw_vehicles(scenario, net_file, seed=1))
    ends = [*scenario.demand.period_begin_s[1:], scenario.duration_s]
    lengths_s = [end - begin for begin, end in zip(scenario.demand.period_begin_s, ends, strict=True)]
    for edge, rates in scenario.demand.entries_veh_per_h.items():
        expected = sum(rate * length / 3600 for rate, length in zip(rates, lengths_s, strict=True))
        assert abs(entered[edge] - expected) < 4 * expected**0.5


def test_same_seed_same_bytes_and_another_seed_other_vehicles(net_and_scenario, tmp_path: Path) -> None:
    net_file, scenario = net_and_scenario
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build_demand(scenario, net_file, seed, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()
    build_net(scenario, tmp_path / "net.xml")
    assert (tmp_path / "net.xml").read_bytes() == net_file.read_bytes()


def test_no_vehicle_turns_back_to_where_it_came_from(net_and_scenario) -> None:
    net_file, scenario = net_and_scenario
    net = sumolib.net.readNet(str(net_file))
    for _, route in draw_vehicles(scenario, net_file, seed=1):
        assert net.getEdge(route[-1]).getToNode() is not net.getEdge(route[0]).getFromNode()


def test_an_episode_never_takes_a_seed_of_the_next_range() -> None:
    seeds = Seeds(train=1, validation=501, evaluation=1001)
    assert seeds.episode_seed("train", 499) == 500
    with pytest.raises(ScenarioError, match="room for 500"):
        seeds.episode_seed("train", 500)
