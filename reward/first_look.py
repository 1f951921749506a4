"""A first look at the reward: some answers to one decision of a small simulation, each with its score."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from reward.compute_score import close, compute_score
from tsc.errors import run_main
from tsc.files import REPO_ROOT, sha256_of
from tsc.junction.decision import Decision
from tsc.junction.observation import observe
from tsc.junction.prompt import user_message
from tsc.junction.signal_control import SignalControl
from tsc.replays.request import ReplayRequest
from tsc.rules.max_pressure import MaxPressure
from tsc.scenarios.scenario import build_demand, build_net, load_scenario
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation
from tsc.sumo.sumo_input import SumoInput

SCENARIO = REPO_ROOT / "configs" / "scenarios" / "four_way.yaml"
SEED = 1
# the first decision from this second on: the junction has filled by then
FROM_S = 300

ANSWERS = (
    Decision.YES.answer,
    Decision.NO.answer,
    f"My answer: {Decision.YES.answer}",
    f"My answer: {Decision.NO.answer}",
    "Extend the green.",
)
PARTS = ("score", "traffic", "format")


def main() -> None:
    """Simulates, saves one state, has it replayed with both answers, and prints the table. Raises TscError."""
    with tempfile.TemporaryDirectory(prefix="tsc-first-look-") as folder:
        try:
            question, request = _decision_in(Path(folder))
            truth = json.dumps({"request": request.to_json(), "outcomes": None})
            # in memory only: a look leaves nothing behind
            scores = [compute_score("tsc/first_look", each, truth, cache={"size_limit_mb": 0}) for each in ANSWERS]
        finally:
            close()
    print(f"Junction {request.junction_id} of {SCENARIO.name}. The prompt of the decision:\n\n{question}\n")
    width = max(map(len, ANSWERS))
    print(f"{'answer':{width}}", *(f"{part:>8}" for part in PARTS))
    for answer, score in zip(ANSWERS, scores, strict=True):
        print(f"{answer:{width}}", *(f"{score[part]:>8.3f}" for part in PARTS))


def _decision_in(folder: Path) -> tuple[str, ReplayRequest]:
    """The question of a decision, and the replay of its state, which is saved in `folder`."""
    scenario = load_scenario(SCENARIO)
    files = SumoFiles(net_file=folder / "net.net.xml", route_files=(folder / "demand.rou.xml",), seed=SEED)
    build_net(scenario, files.net_file)
    build_demand(scenario, files.net_file, SEED, files.route_files[0])
    simulation = Simulation(files, saves_states=True)
    control = SignalControl(simulation, scenario.timing)
    control.start()
    controller = MaxPressure()
    second = 0
    while second < FROM_S or not control.due_junctions():
        control.advance(controller.decide(control, control.due_junctions()))
        second += 1
    junction_id = control.due_junctions()[0]
    state = folder / "state.xml.gz"
    simulation.save_state(state)
    request = ReplayRequest(
        sample_id="first look",
        dataset_dir=str(folder),
        junction_id=junction_id,
        state_file=state.name,
        state_sha256=sha256_of(state),
        current_green_elapsed_s=control.clocks[junction_id].elapsed_green_s,
        min_green_s=scenario.timing.min_green_s,
        max_green_s=scenario.timing.max_green_s,
        green_extension_s=scenario.timing.green_extension_s,
        clocks=control.stored_clocks(),
        sumo=SumoInput.of(files, folder),
    )
    return user_message(observe(control, junction_id)), request


if __name__ == "__main__":
    run_main(main)
