"""Closed-loop evaluation as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.controllers.language_model import Conversation, LanguageModelController, ask_function
from tsc.controllers.max_pressure import MaxPressure
from tsc.decision import Decision
from tsc.episode_runner import EpisodeJob, run_jobs
from tsc.outcome import OutcomeSettings
from tsc.signal_control import SignalControl
from tsc.simulation import Simulation, SumoFiles
from tsc.timing import Timing


def evaluate(repo_root: Path, scenario: Path, out: Path, *controllers: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(repo_root / "scripts/evaluate.py"), "--scenario", str(scenario), "--out", str(out)]
    program += ["--seeds", "2", "--controllers", *controllers]
    return subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)


def test_results_resume_without_repeating_episodes(repo_root: Path, short_scenario: Path, tmp_path: Path) -> None:
    first = evaluate(repo_root, short_scenario, tmp_path, "static", "max_pressure")
    assert first.returncode == 0, first.stderr
    results = (tmp_path / "results.json").read_text()
    rows = json.loads(results)
    assert {row["controller"] for row in rows} == {"static", "max_pressure"}
    assert {tuple(row["seeds"]) for row in rows} == {(1001, 1002)}
    episodes = tmp_path / "episodes.jsonl"
    lines = episodes.read_text().splitlines()
    episodes.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])  # a kill while the last line was written
    again = evaluate(repo_root, short_scenario, tmp_path, "static", "max_pressure")
    assert "3 of 4 episodes are there already" in again.stdout
    assert (tmp_path / "results.json").read_text() == results


@pytest.mark.parametrize(
    ("controller", "words"),
    [
        ("max_presure", "did you mean 'max_pressure'"),
        ("llm:x", "write llm:NAME=FOLDER"),
        ("llm:x=/no", "does not exist"),
    ],
)
def test_a_wrong_controller_fails_before_any_episode(
    repo_root: Path, short_scenario: Path, tmp_path: Path, controller: str, words: str
) -> None:
    done = evaluate(repo_root, short_scenario, tmp_path, "static", controller)
    assert done.returncode == 2 and words in done.stderr
    assert not (tmp_path / "episodes.jsonl").exists()


def _jobs(files: SumoFiles, controller: str, kind: str) -> list[EpisodeJob]:
    return [
        EpisodeJob(
            scenario="four_way",
            controller=controller,
            kind=kind,
            seed=seed,
            files=files,
            duration_s=200,
            timing=Timing(),
            lookahead=OutcomeSettings(),
        )
        for seed in (1, 2)
    ]


def test_waiting_episodes_share_one_batch(files: SumoFiles) -> None:
    """Both episodes have the same demand and signals, so they ask in step."""
    batches = []

    def answer(conversations: list[Conversation]) -> list[str]:
        batches.append(conversations)
        return [Decision.NO.answer] * len(conversations)

    records = list(run_jobs(_jobs(files, "model", "llm"), 1, lambda name: ask_function(answer)))
    assert [record["invalid_answers"] for record in records] == [0, 0]
    assert {len(batch) for batch in batches} == {2}
    assert len(batches) == records[0]["decisions"]


def test_unreadable_answers_are_counted_and_the_net_s_own_plan_decides(files: SumoFiles) -> None:
    def answer(conversations: list[Conversation]) -> list[str]:
        return ["perhaps"] * len(conversations)

    records = list(run_jobs(_jobs(files, "model", "llm"), 1, lambda name: ask_function(answer)))
    assert [record["invalid_answers"] for record in records] == [record["decisions"] for record in records]


def _answers_from_prompts(files: SumoFiles) -> tuple[float, float]:
    """The queue under max-pressure, and under a "model" that is told max-pressure's decisions as text."""

    def queue(through_text: bool) -> float:
        control = SignalControl(Simulation(files), Timing())
        control.start()
        decided: dict[str, Decision] = {}
        model = LanguageModelController(ask_function(lambda chats: [d.answer for d in decided.values()]))
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
