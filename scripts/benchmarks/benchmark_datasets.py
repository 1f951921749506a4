"""The small datasets that the benchmarks replay, made once and kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import sumo

from benchmarks.supervised import run_supervised
from tsc.files import REPO_ROOT, sha256_of, strip_generated_comment, write_atomically
from tsc.junction.signal_control import SignalControl
from tsc.junction.timing import Timing
from tsc.replays.request import ReplayRequest
from tsc.replays.sample import Sample
from tsc.rules.max_pressure import MaxPressure
from tsc.sumo.binaries import sumo_binary
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation
from tsc.sumo.sumo_input import SumoInput

DEFAULT_SCENARIO = REPO_ROOT / "configs/scenarios/four_way.yaml"

# The largest net in the eclipse-sumo wheel: 2.6 × 3.3 km of Berlin from OpenStreetMap, made for a game about shared
# taxis. Its own demand is a few taxi rides.
CITY_NET = Path("tools/game/DRT/osm.net.xml")
CITY_SEED = 1
CITY_DURATION_S = 3600
CITY_FIRST_STATE_S = 300
CITY_NUM_STATES = 6


def default_dataset(folder: Path, episodes: int) -> Path:
    """Make labelled samples of four_way's training seeds 1 to `episodes`, and their Parquet files. Returns the folder.

    The samples are in FOLDER/four_way-EPISODES, the Parquet files in its subfolder parquet. Raises TscError with the
    tool's message.
    """
    dataset = folder / f"four_way-{episodes}"
    run_supervised(
        [sys.executable, "data_tools/generate_dataset.py", "--scenario", DEFAULT_SCENARIO, "--out", dataset,
         "--episodes", episodes, "--validation-episodes", 1, "--resume"],
    )  # fmt: skip
    if not (dataset / "parquet/train.parquet").exists():
        # with ties: they take as long as any other state
        parquet = dataset / "parquet"
        tool = [sys.executable, "data_tools/json_to_parquet.py"]
        run_supervised([*tool, "--input", dataset, "--output", parquet, "--ties", "keep"])
    return dataset


def samples_of(dataset: Path, *, episode: int | None = None) -> list[Sample]:
    """The samples in the order of the dataset; of one episode, if given."""
    values = json.loads((dataset / "grpo_dataset.json").read_text())
    samples = [Sample.model_validate(value) for value in values]
    return [sample for sample in samples if episode is None or sample.episode == episode]


def spread(items: list[Any], count: int) -> list[Any]:
    """`count` of the items at even distances, or all if there are fewer."""
    if count >= len(items):
        return items
    return [items[index * len(items) // count] for index in range(count)]


def city_requests(folder: Path) -> list[ReplayRequest]:
    """The saved states of the city net (see make_city)."""
    path = folder / "city/requests.json"
    return [ReplayRequest.from_json(values) for values in json.loads(path.read_text())]


def make_city(folder: Path) -> None:
    """Make FOLDER/city, unless it exists: the net, its demand, and states saved at decision points over an hour.

    The net is CITY_NET without rails and with static programs. The demand is one random trip a second (randomTrips'
    default), and max-pressure runs the signals. Call this in a new process: only the first simulation of a process can
    be saved.
    """
    out = folder / "city"
    if (out / "requests.json").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    net_file, route_file = out / "city.net.xml", out / "city.rou.xml"
    raw = out / "raw.net.xml"
    run_supervised(
        [sumo_binary("netconvert"), "--sumo-net-file", Path(sumo.SUMO_HOME, CITY_NET), "--output-file", raw,
         "--tls.rebuild", "--tls.default-type", "static", "--no-warnings",
         "--remove-edges.by-vclass", "rail,rail_urban,rail_electric,rail_fast,tram,subway,ship"],
    )  # fmt: skip
    write_atomically(net_file, strip_generated_comment(raw.read_bytes()))
    raw.unlink()
    run_supervised(
        [sys.executable, Path(sumo.SUMO_HOME, "tools/randomTrips.py"), "--net-file", net_file,
         "--output-trip-file", out / "trips.xml", "--route-file", route_file, "--seed", CITY_SEED,
         "--end", CITY_DURATION_S, "--period", 1, "--fringe-factor", 5, "--min-distance", 500,
         "--vehicle-class", "passenger", "--validate"],
    )  # fmt: skip
    requests = _save_city_states(out, SumoFiles(net_file=net_file, route_files=(route_file,)))
    write_atomically(out / "requests.json", json.dumps(requests).encode())


def _save_city_states(out: Path, files: SumoFiles) -> list[dict[str, Any]]:
    timing, controller = Timing(), MaxPressure()
    simulation = Simulation(files, saves_states=True)
    control = SignalControl(simulation, timing)
    control.start()
    sumo_input = SumoInput.of(files, out)
    every_s = (CITY_DURATION_S - CITY_FIRST_STATE_S) // CITY_NUM_STATES
    requests: list[dict[str, Any]] = []
    for second in range(CITY_DURATION_S):
        due = control.due_junctions()
        if due and second >= CITY_FIRST_STATE_S + every_s * len(requests) and len(requests) < CITY_NUM_STATES:
            # each state is for another junction, if enough junctions are due
            junction_id = due[len(requests) % len(due)]
            state_file = out / f"t{second:05d}.xml.gz"
            simulation.save_state(state_file)
            request = ReplayRequest(
                sample_id=f"city-t{second:05d}-{junction_id}",
                dataset_dir=str(out),
                junction_id=junction_id,
                state_file=state_file.name,
                state_sha256=sha256_of(state_file),
                current_green_elapsed_s=control.clocks[junction_id].elapsed_green_s,
                min_green_s=timing.min_green_s,
                max_green_s=timing.max_green_s,
                green_extension_s=timing.green_extension_s,
                clocks=control.stored_clocks(),
                sumo=sumo_input,
            )
            requests.append(request.to_json())
        control.advance(controller.decide(control, due))
    return requests
