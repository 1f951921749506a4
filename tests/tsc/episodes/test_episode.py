"""An episode's metrics, compared with SUMO's own statistics and with a second count."""

import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.episodes.episode import run_episode
from tsc.junction.signal_control import SignalControl, read_signals
from tsc.junction.signal_settings import SignalSettings
from tsc.junction.timing import Timing
from tsc.rules.max_pressure import MaxPressure
from tsc.scenarios.scenario import build_demand, build_net, load_scenario
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation, libsumo

END_S = 240


def _metrics(files: SumoFiles, end_s: int, warm_up_s: int = 0, is_static: bool = False) -> dict[str, Any]:
    controller = None if is_static else MaxPressure()
    return run_episode(
        files, end_s=end_s, settings=SignalSettings(), controller=controller, warm_up_s=warm_up_s
    ).metrics


def _counted_anew(files: SumoFiles, warm_up_s: int, folder: Path) -> dict[str, Any]:
    """Runs the static plan, reads every vehicle in every second, and reads SUMO's statistics over the whole time."""
    statistics = folder / "statistics.xml"
    simulation = Simulation(files, outputs=["--statistic-output", str(statistics), "--duration-log.statistics"])
    programs = read_signals(simulation).programs
    lanes = {lane for program in programs.values() for lane in program.incoming_lanes}
    queues_veh = []
    waited_s: dict[str, int] = defaultdict(int)
    time_loss_s: dict[str, float] = defaultdict(float)
    came: dict[str, set[str]] = defaultdict(set)
    driven_co2_mg = 0.0
    arrived = []
    for second in range(END_S):
        simulation.step()
        on_lanes = {name: libsumo.vehicle.getLaneID(name) for name in libsumo.vehicle.getIDList()}
        halting = [name for name, lane in on_lanes.items() if libsumo.vehicle.getSpeed(name) < 0.1]
        if second >= warm_up_s:
            queues_veh.append(sum(on_lanes[name] in lanes for name in halting))
            arrived += libsumo.simulation.getArrivedIDList()
            for name, lane in on_lanes.items():
                if lane in lanes:
                    edge = lane.rpartition("_")[0]
                    came[edge].add(name)
                    lost = 1 - libsumo.vehicle.getSpeed(name) / libsumo.vehicle.getAllowedSpeed(name)
                    time_loss_s[edge] += max(0.0, lost)
            for name in halting:
                waited_s[on_lanes[name].rpartition("_")[0]] += 1
        driven_co2_mg += sum(map(libsumo.vehicle.getCO2Emission, on_lanes))
    simulation.close()
    trips = next(ElementTree.parse(statistics).getroot().iter("vehicleTripStatistics")).attrib
    return {
        "mean_queue_veh": sum(queues_veh) / len(queues_veh),
        "p95": sorted(queues_veh)[int(0.95 * len(queues_veh)) - 1 : int(0.95 * len(queues_veh)) + 2],
        "arrived": len(arrived),
        "waits_s": {edge: waited_s[edge] / len(vehicles) for edge, vehicles in came.items()},
        "came": {edge: len(vehicles) for edge, vehicles in came.items()},
        "time_loss_s": dict(time_loss_s),
        "co2_mg": driven_co2_mg,
        "statistics": dict(trips),
    }


def test_metrics_are_those_of_a_second_count_and_of_sumo_s_statistics(files: SumoFiles, tmp_path: Path) -> None:
    metrics = in_new_process(_metrics, files, END_S, 0, True)
    anew = in_new_process(_counted_anew, files, 0, tmp_path)
    assert metrics["mean_queue_veh"] == pytest.approx(anew["mean_queue_veh"]) and metrics["mean_queue_veh"] > 1
    assert anew["p95"][0] <= metrics["p95_queue_veh"] <= anew["p95"][-1]
    assert metrics["throughput_veh_per_h"] == pytest.approx(anew["arrived"] / END_S * 3600)
    assert metrics["finished_veh"] == anew["arrived"]
    # SUMO's mean over the statistics leaves unfinished trips out, unless told otherwise; here both count them
    statistics = anew["statistics"]
    assert metrics["finished_veh"] + metrics["unfinished_veh"] >= int(statistics["count"])
    worst = max(anew["waits_s"].items(), key=lambda each: each[1])
    assert metrics["worst_approach"] == worst[0]
    assert metrics["worst_approach_wait_s"] == pytest.approx(worst[1], rel=0.05)
    by_edge = {each["edge"]: each for each in metrics["approaches"]}
    assert sum(each["mean_queue_veh"] for each in by_edge.values()) == pytest.approx(metrics["mean_queue_veh"])
    for edge, came in anew["came"].items():
        assert by_edge[edge]["vehicles"] == pytest.approx(came, rel=0.05)
        assert by_edge[edge]["time_loss_s"] == pytest.approx(anew["time_loss_s"][edge], rel=0.15)
        # a halting vehicle loses each second
        assert by_edge[edge]["time_loss_s"] > by_edge[edge]["mean_queue_veh"] * END_S


def test_a_warm_up_counts_in_no_metric(files: SumoFiles, tmp_path: Path) -> None:
    metrics = in_new_process(_metrics, files, END_S, 120, True)
    anew = in_new_process(_counted_anew, files, 120, tmp_path)
    assert metrics["mean_queue_veh"] == pytest.approx(anew["mean_queue_veh"])
    whole = in_new_process(_metrics, files, END_S, 0, True)
    vehicles = [m["finished_veh"] + m["unfinished_veh"] for m in (metrics, whole)]
    assert 0 < vehicles[0] < vehicles[1]


def test_trips_are_those_of_sumo_s_tripinfo(files: SumoFiles) -> None:
    """With all demand in the first minute every trip ends, and our means must equal SUMO's."""
    metrics = in_new_process(_metrics_and_statistics, files)
    ours, sumos = metrics
    assert ours["unfinished_veh"] == ours["not_inserted_veh"] == 0
    for key, attribute in [
        ("waiting_time_s", "waitingTime"),
        ("time_loss_s", "timeLoss"),
        ("trip_duration_s", "duration"),
        ("depart_delay_s", "departDelay"),
    ]:
        assert ours[key] == pytest.approx(float(sumos[attribute]), abs=0.006), key
    assert ours["delay_s"] == pytest.approx(ours["time_loss_s"] + ours["depart_delay_s"])


def _metrics_and_statistics(files: SumoFiles) -> tuple[dict[str, Any], dict[str, str]]:
    statistics = files.net_file.parent / "statistics.xml"
    options = ("--statistic-output", str(statistics), "--duration-log.statistics")
    episode = run_episode(
        replace(files, more_options=options), end_s=900, settings=SignalSettings(), controller=MaxPressure()
    ).metrics
    return episode, dict(next(ElementTree.parse(statistics).getroot().iter("vehicleTripStatistics")).attrib)


def _one_second(files: SumoFiles, junction_id: str) -> tuple[int, float]:
    simulation = Simulation(files)
    control = SignalControl(simulation, Timing())
    control.start()
    for _ in range(END_S):
        control.advance(MaxPressure().decide(control, control.due_junctions()))
    return len(libsumo.simulation.getPendingVehicles()), simulation.time_s


def test_vehicles_that_find_no_room_are_counted_and_delay_the_mean(
    repo_root: Path, short_scenario: Path, tmp_path: Path
) -> None:
    """The demand is so high that not all vehicles can enter: under the net's plan, a queue blocks the entries."""
    scenario = load_scenario(short_scenario)
    demand = scenario.demand.model_copy(update={"entries_veh_per_h": {"left0A0": [3600.0] * 4, "top0A0": [3600.0] * 4}})
    crowded = scenario.model_copy(update={"demand": demand})
    build_net(crowded, tmp_path / "net.xml")
    build_demand(crowded, tmp_path / "net.xml", 1, tmp_path / "rou.xml")
    files = SumoFiles(net_file=tmp_path / "net.xml", route_files=(tmp_path / "rou.xml",), seed=1)
    metrics = in_new_process(_metrics, files, END_S)
    outside, _ = in_new_process(_one_second, files, "A0")
    assert metrics["not_inserted_veh"] == outside > 10
    assert metrics["depart_delay_s"] > 1
    entered = metrics["finished_veh"] + metrics["unfinished_veh"]
    lost_s = metrics["time_loss_s"] * entered + metrics["depart_delay_s"] * (entered + outside)
    assert metrics["delay_s"] == pytest.approx(lost_s / (entered + outside))


def test_a_net_without_traffic_has_no_means(files: SumoFiles, tmp_path: Path) -> None:
    metrics = in_new_process(_metrics, replace(files, route_files=()), 60)
    assert metrics["mean_queue_veh"] == 0 and metrics["finished_veh"] == 0
    for key in ("waiting_time_s", "trip_duration_s", "delay_s", "co2_g_per_km", "worst_approach_wait_s"):
        assert metrics[key] is None


def test_greens_keep_the_bounds_under_a_controller(files: SumoFiles) -> None:
    metrics = in_new_process(_metrics, files, END_S)
    assert metrics["greens"] > 3 and metrics["greens_outside_bounds"] == 0
    assert metrics["switches_per_h"] >= metrics["greens"] / END_S * 3600
