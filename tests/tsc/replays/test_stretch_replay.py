"""Several decisions in a row from a saved state, against the uninterrupted simulation and against single decisions."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.cost.outcome import OutcomeSettings
from tsc.errors import ReplayError, StateError
from tsc.junction.decision import Decision
from tsc.junction.observation import observe
from tsc.junction.prompt import messages
from tsc.junction.signal_control import SignalControl
from tsc.junction.timing import Timing
from tsc.replays.replay import replay
from tsc.replays.request import ReplayRequest
from tsc.replays.sample import Sample
from tsc.replays.stretch import Stretch, StretchProgress
from tsc.replays.stretch_replay import play
from tsc.rules.max_pressure import MaxPressure
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation
from tsc.sumo.sumo_input import SumoInput
from tsc.sumo.version import installed_sumo_version

ANSWERS = ["yes", "no", "no", "yes", "yes", "no"]


@pytest.fixture(scope="module")
def samples(small_dataset: Path) -> list[Sample]:
    return [Sample.model_validate(values) for values in json.loads((small_dataset / "grpo_dataset.json").read_text())]


@pytest.fixture(scope="module")
def requests(small_dataset: Path, samples: list[Sample]) -> list[ReplayRequest]:
    return [ReplayRequest.from_sample(sample, small_dataset) for sample in samples]


def _play(request: ReplayRequest, decisions: Sequence[str | None], number: int, **settings: Any) -> StretchProgress:
    return play(request, OutcomeSettings(**settings), decisions=decisions, num_decisions=number)


def _stretch(request: ReplayRequest, decisions: Sequence[str | None], number: int, **settings: Any) -> Stretch:
    stretch = _play(request, decisions, number, **settings).stretch
    assert stretch is not None
    return stretch


def _prompt(request: ReplayRequest, decisions: Sequence[str], number: int) -> list[dict[str, str]]:
    question = _play(request, decisions, number).question
    assert question is not None
    return list(question.prompt)


@dataclasses.dataclass
class Uninterrupted:
    """request: for the state that was saved on the way. The rest is about the seconds after it."""

    request: ReplayRequest
    prompts: list[list[dict[str, str]]]
    length_s: int
    queue_veh_s: int
    end: str


def _uninterrupted(
    files: SumoFiles, folder: Path, save_from_s: int, answers: list[str], length_s: int | None
) -> Uninterrupted:
    """One simulation: max-pressure, but for `answers`, given at the decision points from where the state was saved.

    length_s: seconds from there, None for 45 after the last answer.
    """
    simulation = Simulation(files, saves_states=True)
    control = SignalControl(simulation, Timing())
    control.start()
    (junction_id,) = control.programs
    rule = MaxPressure()
    while not (simulation.time_s >= save_from_s and control.due_junctions()):
        control.advance(rule.decide(control, control.due_junctions()))
    state = folder / "state.xml.gz"
    simulation.save_state(state)
    request = ReplayRequest(
        sample_id="on the way",
        dataset_dir=str(folder),
        junction_id=junction_id,
        state_file=state.name,
        state_sha256=None,
        current_green_elapsed_s=control.clocks[junction_id].elapsed_green_s,
        min_green_s=10,
        max_green_s=60,
        green_extension_s=5,
        clocks=control.stored_clocks(),
        sumo=SumoInput(
            version=installed_sumo_version(),
            net_file=str(files.net_file),
            route_files=tuple(map(str, files.route_files)),
            seed=files.seed,
        ),
    )
    left = list(answers)
    prompts = []
    queue_veh_s = second = 0
    while length_s is None or second < length_s:
        decisions = rule.decide(control, control.due_junctions())
        if decisions and left:
            prompts.append(messages(observe(control, junction_id)))
            decisions = {junction_id: Decision(left.pop(0))}
            if not left:
                length_s = second + 45
        control.advance(decisions)
        queue_veh_s += simulation.queue_veh(control.program(junction_id).incoming_lanes)
        second += 1
    return Uninterrupted(request, prompts, second, queue_veh_s, simulation.traffic_digest())


@pytest.mark.parametrize("save_from_s", [60, 130])
def test_a_stretch_goes_the_way_of_the_uninterrupted_simulation(
    files: SumoFiles, tmp_path: Path, save_from_s: int
) -> None:
    """Every vehicle ends at the same place and speed, to the last bit; same prompts on the way, same queues."""
    live = in_new_process(_uninterrupted, files, tmp_path, save_from_s, ANSWERS, None)
    number = len(ANSWERS)
    asked = [in_new_process(_prompt, live.request, ANSWERS[:made], number) for made in range(number)]
    assert asked == live.prompts
    stretch = in_new_process(_stretch, live.request, ANSWERS, number)
    assert (stretch.num_decisions, stretch.length_s, stretch.end) == (number, live.length_s, live.end)
    assert stretch.costs == (live.queue_veh_s,)
    tail = in_new_process(_uninterrupted, files, tmp_path, save_from_s, [], live.length_s)
    assert stretch.tail_costs == (tail.queue_veh_s,)
    assert tail.end != live.end


def _with_both_answers(requests: list[ReplayRequest]) -> list[tuple[tuple[float, float], list[Stretch]]]:
    found = []
    for request in requests:
        outcomes = replay(request, OutcomeSettings())
        found.append(((outcomes.yes, outcomes.no), [_stretch(request, [answer], 1) for answer in ("yes", "no")]))
    return found


def test_one_decision_costs_what_its_replay_costs(requests: list[ReplayRequest]) -> None:
    for (cost_yes, cost_no), (yes, no) in in_new_process(_with_both_answers, requests):
        assert (yes.costs, no.costs) == ((cost_yes,), (cost_no,))
        assert yes.length_s == no.length_s == 45
        # the tail gives one of the two answers and decides everything after it in both
        assert yes.tail_costs == no.tail_costs and yes.tail_costs in ((cost_yes,), (cost_no,))


def _first_prompts(requests: list[ReplayRequest]) -> list[list[dict[str, str]]]:
    return [_prompt(request, [], 3) for request in requests]


def test_the_first_question_is_the_samples_own(samples: list[Sample], requests: list[ReplayRequest]) -> None:
    assert in_new_process(_first_prompts, requests) == [
        [message.model_dump() for message in sample.prompt] for sample in samples
    ]


def _ends_after(request: ReplayRequest, num_extensions: int) -> dict[str | None, str]:
    before = ["yes"] * num_extensions
    return {last: _stretch(request, [*before, last], num_extensions + 1).end for last in (None, "yes", "no")}


def test_the_nets_own_plan_decides_in_place_of_an_unreadable_answer(
    samples: list[Sample], requests: list[ReplayRequest]
) -> None:
    # four_way's greens have 42 s, to which an end at 40 s is nearer than one at 45 s
    index = next(number for number, sample in enumerate(samples) if sample.current_green_elapsed == 10)
    at_35_s, at_40_s = (in_new_process(_ends_after, requests[index], number) for number in (5, 6))
    assert at_35_s["yes"] != at_35_s["no"] and at_40_s["yes"] != at_40_s["no"]
    assert (at_35_s[None], at_40_s[None]) == (at_35_s["yes"], at_40_s["no"])


def _played(request: ReplayRequest) -> list[StretchProgress]:
    return [_play(request, ANSWERS[:made], 3) for made in range(4)]


def test_the_questions_of_a_stretch_come_before_its_costs(requests: list[ReplayRequest]) -> None:
    played = in_new_process(_played, requests[4])
    assert [each.stretch is None for each in played] == [True, True, True, False]
    assert [StretchProgress.from_dict(json.loads(json.dumps(each.as_dict()))) for each in played] == played


def test_a_stretch_ends_early_where_no_decision_point_comes_within_the_horizon(requests: list[ReplayRequest]) -> None:
    # after "no" come 3 s of yellow and 10 s of minimum green
    stretch = in_new_process(_stretch_with_horizon, requests[0], 12)
    assert (stretch.num_decisions, stretch.length_s) == (1, 12)
    assert in_new_process(_stretch_with_horizon, requests[0], 14) is None


def _stretch_with_horizon(request: ReplayRequest, horizon_s: int) -> Stretch | None:
    return _play(request, ["no"], 3, horizon_s=horizon_s).stretch


def _play_too_much(request: ReplayRequest) -> None:
    _play(request, ["no", "yes"], 3, horizon_s=12)


@pytest.mark.parametrize("number", [0, 33])
def test_a_number_of_decisions_out_of_bounds_is_refused(requests: list[ReplayRequest], number: int) -> None:
    with pytest.raises(ReplayError, match=f"num_decisions is {number}: choose 1–32"):
        in_new_process(_stretch, requests[0], ["yes"], number)


def test_more_decisions_than_the_stretch_has_are_an_error_that_names_the_state(requests: list[ReplayRequest]) -> None:
    with pytest.raises(ReplayError, match=r"t\d+\.xml.*2 decisions for junction 'A0', but the stretch has 1"):
        in_new_process(_play_too_much, requests[0])


def test_a_missing_state_is_named(requests: list[ReplayRequest]) -> None:
    with pytest.raises(StateError, match=r"nowhere\.xml\.gz does not exist"):
        in_new_process(_stretch, dataclasses.replace(requests[0], state_file="nowhere.xml.gz"), ["yes"], 1)


def _later_prompt(request: ReplayRequest, prompt: str) -> list[dict[str, str]]:
    question = play(request, OutcomeSettings(), decisions=["yes"], num_decisions=2, prompt=prompt).question
    assert question is not None
    return list(question.prompt)


def test_a_prompt_of_ones_own_asks_every_question(
    requests: list[ReplayRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_questions.py").write_text(
        "def short(observation):\n    return f'{observation.elapsed_green_s} s?'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    request = next(request for request in requests if request.current_green_elapsed_s == 10)
    (message,) = in_new_process(_later_prompt, request, "pkg://my_questions:short")
    assert message == {"role": "user", "content": "15 s?"}
