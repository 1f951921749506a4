"""Episodes in worker processes that ask one model together."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.controllers.language_model import Conversation, LanguageModelController, Reply
from tsc.cost.outcome import OutcomeSettings
from tsc.episodes.runner import EpisodeJob, run_jobs
from tsc.errors import EndpointError, ReplayError
from tsc.junction.decision import Decision
from tsc.junction.signal_control import SignalControl
from tsc.junction.signal_settings import SignalSettings
from tsc.junction.timing import Timing
from tsc.rules.max_pressure import MaxPressure
from tsc.sumo.running import SumoFiles
from tsc.sumo.simulation import Simulation


def _job(files: SumoFiles, kind: str, seed: int = 1, **changes: Any) -> EpisodeJob:
    values: dict[str, Any] = {
        "scenario": "four_way",
        "controller": kind,
        "kind": kind,
        "seed": seed,
        "fingerprint": f"{kind}-{seed}",
        "files": files,
        "end_s": 200,
        "warm_up_s": 0,
        "signals": SignalSettings(),
        "lookahead": OutcomeSettings(horizon_s=20),
    }
    return EpisodeJob(**{**values, **changes})


def _say(text: str | None) -> Any:
    return lambda conversations: [Reply(text, 0.25, 70, 5)] * len(conversations)


def _without_clock(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {record["fingerprint"]: {**record, "wall_s": None} for record in records}


def test_records_do_not_depend_on_the_number_of_workers_or_their_order(files: SumoFiles) -> None:
    """A worker runs one episode after another; an earlier one must not influence a later one."""
    kinds = ("static", "actuated", "webster", "gap_out", "max_pressure", "random", "lookahead")
    jobs = [_job(files, kind) for kind in kinds]
    one_after_another = _without_clock(list(run_jobs(jobs, 1)))
    assert _without_clock(list(run_jobs(jobs[::-1], 3))) == one_after_another
    assert len({record["mean_queue_veh"] for record in one_after_another.values()}) == len(kinds)


def test_waiting_episodes_share_one_batch(files: SumoFiles) -> None:
    """Both episodes have the same demand and signals, so they ask at the same time."""
    batches = []

    def ask(conversations: list[Conversation]) -> list[Reply]:
        batches.append(conversations)
        return [Reply(Decision.NO.answer, 0.1)] * len(conversations)

    records = list(run_jobs([_job(files, "llm", seed) for seed in (1, 2)], 2, ask))
    assert [record["invalid_answers"] for record in records] == [0, 0]
    assert {len(batch) for batch in batches} == {2}
    assert len(batches) == records[0]["decisions"] > 5


@pytest.mark.parametrize(("text", "counted"), [("perhaps", "invalid_answers"), (None, "late_answers")])
def test_without_an_answer_in_time_the_fallback_decides_and_is_counted(
    files: SumoFiles, text: str | None, counted: str
) -> None:
    (record,) = run_jobs([_job(files, "llm")], 1, _say(text))
    assert record[counted] == record["decisions"] > 0
    assert record["invalid_answers"] + record["late_answers"] == record["decisions"]


def test_latency_and_tokens_are_recorded_where_a_model_was_asked(files: SumoFiles) -> None:
    (asked,) = run_jobs([_job(files, "llm")], 1, _say(Decision.NO.answer))
    assert (asked["latency_p50_s"], asked["latency_p99_s"]) == (0.25, 0.25)
    assert (asked["prompt_tokens"], asked["completion_tokens"]) == (70, 5)
    (rule,) = run_jobs([_job(files, "max_pressure")], 1)
    assert rule["latency_p50_s"] is rule["prompt_tokens"] is rule["invalid_answers"] is None


def test_each_decision_of_a_model_is_compared_with_lookahead_s_without_disturbing_the_episode(
    files: SumoFiles, tmp_path: Path
) -> None:
    decisions_file = tmp_path / "decisions" / "model.jsonl"
    compared, alone = run_jobs(
        [_job(files, "llm", 1, decisions_file=decisions_file), _job(files, "llm", 2)], 1, _say(Decision.NO.answer)
    )
    assert compared["mean_queue_veh"] == alone["mean_queue_veh"] and compared["seed"] == 1
    decisions = [json.loads(line) for line in decisions_file.read_text().splitlines()]
    assert len(decisions) == compared["decisions"]
    for decision in decisions:
        assert decision["decision"] == "no" and decision["answer"] == Decision.NO.answer
        assert decision["prompt"][-1]["role"] == "user" and decision["fallback"] is None
        assert set(decision["outcomes"]) == {"yes", "no"}
    assert any(decision["outcomes"]["yes"] < decision["outcomes"]["no"] for decision in decisions)


def test_a_controller_that_does_not_apply_says_why_and_has_no_metrics(files: SumoFiles) -> None:
    without_demand = SumoFiles(net_file=files.net_file, route_files=())
    (record,) = run_jobs([_job(without_demand, "webster")], 1)
    assert "not_applicable" in record and "mean_queue_veh" not in record


def test_what_an_episode_raises_names_it(files: SumoFiles, tmp_path: Path) -> None:
    missing = SumoFiles(net_file=tmp_path / "no.net.xml", route_files=())
    with pytest.raises(ReplayError, match="max_pressure on four_way, seed 1 failed: .*no.net.xml does not exist"):
        list(run_jobs([_job(missing, "max_pressure")], 1))


def test_a_model_s_server_that_fails_ends_the_run(files: SumoFiles) -> None:
    def ask(conversations: list[Conversation]) -> list[Reply]:
        raise EndpointError("gone")

    with pytest.raises(EndpointError, match="gone"):
        list(run_jobs([_job(files, "llm")], 1, ask))


def _answers_from_prompts(files: SumoFiles) -> tuple[float, float]:
    """The queue under max-pressure, and under a "model" that is told max-pressure's decisions as text."""

    def queue(through_text: bool) -> float:
        control = SignalControl(Simulation(files), Timing())
        control.start()
        decided: dict[str, Decision] = {}
        model = LanguageModelController(lambda chats: [Reply(each.answer, 0.0) for each in decided.values()])
        total = 0
        for _ in range(200):
            due = control.due_junctions()
            decided = MaxPressure().decide(control, due)
            control.advance(model.decide(control, due) if through_text else decided)
            total += control.simulation.queue_veh(control.incoming_lanes())
        return total

    return queue(False), queue(True)


def test_a_model_that_says_what_max_pressure_does_gets_its_queue(files: SumoFiles) -> None:
    classical, through_text = in_new_process(_answers_from_prompts, files)
    assert classical == through_text > 0
