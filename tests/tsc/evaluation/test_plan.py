"""What the plan of an evaluation refuses, and what makes two of its episodes the same."""

from pathlib import Path

import pytest

from tests.hand_made_student import write_longest_queue_student
from tsc.cost.outcome import OutcomeSettings
from tsc.episodes.runner import EpisodeJob
from tsc.errors import ConfigError
from tsc.evaluation.plan import Contestant, plan_jobs
from tsc.evaluation.settings import EvaluationSettings
from tsc.rules.student import load_student
from tsc.scenarios.by_word import traffic_scenarios
from tsc.scenarios.scenario import Split

SPLITS: tuple[Split, ...] = ("validation", "evaluation")
STATIC = Contestant(name="static", kind="static")


def planned(word: str, out: Path, contestant: Contestant = STATIC, **settings: int) -> list[EpisodeJob]:
    chosen = EvaluationSettings(**settings)  # type: ignore[arg-type]
    scenarios = traffic_scenarios([word], out / "scenarios", chosen.of_scenarios)
    lookahead = {scenario.name: OutcomeSettings() for scenario in scenarios}
    return plan_jobs(scenarios, [contestant], 2, out=out, settings=chosen, lookahead=lookahead)


def test_a_scenario_that_ends_with_its_warm_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="begins at 0 s, warms up for 180 s and ends at 180 s: nothing is left"):
        planned("sumo:cross", tmp_path, warm_up_s=180)


def test_episodes_on_validation_seeds_are_others_and_write_no_trace(tmp_path: Path) -> None:
    chosen = EvaluationSettings()
    scenarios = traffic_scenarios(["sumo:cross"], tmp_path / "scenarios", chosen.of_scenarios)
    lookahead = {scenario.name: OutcomeSettings() for scenario in scenarios}
    of_split = {
        split: plan_jobs(scenarios, [STATIC], 2, out=tmp_path, settings=chosen, lookahead=lookahead, split=split)
        for split in SPLITS
    }
    assert [job.seed for job in of_split["validation"]] == [501, 502]
    assert [job.trace_file is None for split in SPLITS for job in of_split[split]] == [True, True, False, False]
    assert len({job.fingerprint for split in SPLITS for job in of_split[split]}) == 4


def test_an_episode_is_another_with_another_seed_warm_up_or_end(tmp_path: Path) -> None:
    jobs = [*planned("sumo:cross", tmp_path), *planned("sumo:cross", tmp_path, warm_up_s=10)]
    jobs += planned("sumo:cross", tmp_path, end_s=90)
    assert len({job.fingerprint for job in jobs}) == 6
    assert [job.fingerprint for job in planned("sumo:cross", tmp_path / "elsewhere")] == [
        job.fingerprint for job in jobs[:2]
    ]


def test_an_episode_is_another_with_another_student_of_the_same_name(tmp_path: Path) -> None:
    fingerprints = []
    for teacher in ("one", "one", "another"):
        student = load_student(write_longest_queue_student(tmp_path / "student.json", teacher=teacher))
        contestant = Contestant(name="mine", kind="student", student=student)
        fingerprints.append([job.fingerprint for job in planned("sumo:cross", tmp_path, contestant)])
    assert fingerprints[0] == fingerprints[1] and not {*fingerprints[1]} & {*fingerprints[2]}
