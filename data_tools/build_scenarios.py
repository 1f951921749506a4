"""Build the SUMO net, demand and sumocfg of scenarios, or of all members of a family.

Example:
    python data_tools/build_scenarios.py configs/scenarios/four_way.yaml --out data/scenarios
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tsc.errors import ConfigError, run_main
from tsc.files import folder_lock
from tsc.scenarios.by_word import is_scenario_file
from tsc.scenarios.family import load_scenarios
from tsc.scenarios.scenario import Scenario, ScenarioFiles, build_demand, build_net, build_sumocfg


def members_table(scenarios: list[Scenario]) -> list[str]:
    """The lines of a table of a family's junctions. A cell has one value per approach if these differ, else one for
    all. The demand is that of the busiest period."""

    def each(values: list[object]) -> str:
        return " ".join(map(str, values if len(set(values)) > 1 else values[:1]))

    rows = []
    for scenario in scenarios:
        junction = scenario.junction
        assert junction is not None
        approaches = junction.approaches
        rates = zip(*scenario.demand.entries_veh_per_h.values(), strict=True)
        rows.append(
            {
                "": scenario.name,
                "approaches": str(len(approaches)),
                "lanes": each([approach.lanes for approach in approaches]),
                "stages": str(len(junction.stages)),
                "layout": junction.layout,
                "left turns": each([approach.left_turn for approach in approaches]),
                "left lanes": each([approach.left_lane for approach in approaches]),
                "km/h": each([round(3.6 * approach.speed_m_per_s) for approach in approaches]),
                "length [m]": each([round(approach.length_m) for approach in approaches]),
                "bay [m]": each([round(approach.bay_m) for approach in approaches]),
                "veh/h": f"{max(map(sum, rates)):.0f}",
                "plan [s]": " ".join(map(str, junction.green_s)),
            }
        )
    lines = [tuple(rows[0]), *(tuple(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="configs/scenarios/*.yaml")
    parser.add_argument("--out", type=Path, default=Path("data/scenarios"), help="folder (default: %(default)s)")
    parser.add_argument("--split", choices=("train", "validation", "evaluation"), default="train")
    parser.add_argument("--episodes", type=int, default=1, help="demands to draw, one seed each (default: %(default)s)")
    arguments = parser.parse_args()
    for word in arguments.configs:
        if not is_scenario_file(word):
            raise ConfigError(
                f"{word} is not a scenario or family file (.yaml), so there is nothing to build: its net and demand "
                "exist already"
            )
    with folder_lock(arguments.out, "scenarios"):
        build(arguments)


def build(arguments: argparse.Namespace) -> None:
    """Build everything below `arguments.out`, whose lock the caller holds, and print what was built."""
    for scenarios in [load_scenarios(Path(word)) for word in arguments.configs]:
        for scenario in scenarios:
            folder = arguments.out / scenario.name
            net_file = folder / f"{scenario.name}.net.xml"
            build_net(scenario, net_file)
            for episode in range(arguments.episodes):
                seed = scenario.seeds.episode_seed(arguments.split, episode)
                files = ScenarioFiles(net_file=net_file, route_file=folder / f"seed{seed}.rou.xml")
                build_demand(scenario, net_file, seed, files.route_file)
                build_sumocfg(scenario, files, seed, folder / f"seed{seed}.sumocfg")
        first = scenarios[0]
        seed = first.seeds.episode_seed(arguments.split, 0)
        look = f"look at it with: sumo-gui -c {arguments.out / first.name / f'seed{seed}.sumocfg'}"
        if len(scenarios) == 1:
            net_file = arguments.out / first.name / f"{first.name}.net.xml"
            print(f"{first.name}: {net_file}, {arguments.episodes} demand file(s); {look}")
        else:
            print("\n".join(members_table(scenarios)))
            print(f"{len(scenarios)} members in {arguments.out}, {arguments.episodes} demand file(s) each; {look}")


if __name__ == "__main__":
    run_main(main)
