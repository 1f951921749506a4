"""Build the SUMO net, demand and sumocfg of one or more scenarios.

Example:
    python data_tools/build_scenarios.py configs/scenarios/four_way.yaml --out data/scenarios
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tsc.errors import run_main
from tsc.scenario import ScenarioFiles, build_demand, build_net, build_sumocfg, load_scenario


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG", help="configs/scenarios/*.yaml")
    parser.add_argument("--out", type=Path, default=Path("data/scenarios"), help="folder (default: %(default)s)")
    parser.add_argument("--split", choices=("train", "validation", "evaluation"), default="train")
    parser.add_argument("--episodes", type=int, default=1, help="demands to draw, one seed each (default: %(default)s)")
    arguments = parser.parse_args()
    for scenario in [load_scenario(path) for path in arguments.configs]:
        folder = arguments.out / scenario.name
        net_file = folder / f"{scenario.name}.net.xml"
        build_net(scenario, net_file)
        for episode in range(arguments.episodes):
            seed = scenario.seeds.episode_seed(arguments.split, episode)
            files = ScenarioFiles(net_file=net_file, route_file=folder / f"seed{seed}.rou.xml")
            build_demand(scenario, net_file, seed, files.route_file)
            build_sumocfg(scenario, files, seed, folder / f"seed{seed}.sumocfg")
        print(
            f"{scenario.name}: {net_file}, {arguments.episodes} demand file(s); look at it with: "
            f"sumo-gui -c {folder / f'seed{scenario.seeds.episode_seed(arguments.split, 0)}.sumocfg'}"
        )


if __name__ == "__main__":
    run_main(main)
