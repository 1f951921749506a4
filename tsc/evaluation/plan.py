"""The episodes of an evaluation: every controller on every scenario with every seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tsc.controllers.registry import LANGUAGE_MODEL
from tsc.cost.outcome import OutcomeSettings
from tsc.episodes.runner import EpisodeJob
from tsc.errors import ConfigError
from tsc.evaluation.settings import EvaluationSettings
from tsc.evaluation.traces import decisions_file, trace_file
from tsc.files import sha256_of
from tsc.junction.prompt import prompt_version
from tsc.rules.student import StudentFile
from tsc.scenarios.scenario import Split
from tsc.scenarios.traffic_scenario import TrafficScenario
from tsc.sumo.version import installed_sumo_version

# Part of every fingerprint. Raise it with any change of what an episode measures.
RECORD_VERSION = 3


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A controller that takes part in an evaluation.

    kind: one of tsc.controllers.registry.CONTROLLERS, LANGUAGE_MODEL, STUDENT or PROGRAM.
    model: what identifies a language model (the digest of its files, or its address and name).
    student, program_file: of this kind.
    """

    name: str
    kind: str
    model: str | None = None
    student: StudentFile | None = None
    program_file: Path | None = None


def plan_jobs(
    scenarios: Sequence[TrafficScenario],
    contestants: Sequence[Contestant],
    num_seeds: int,
    *,
    out: Path,
    settings: EvaluationSettings,
    lookahead: Mapping[str, OutcomeSettings],
    split: Split = "evaluation",
) -> list[EpisodeJob]:
    """One job for each scenario, seed and contestant, in this order. Builds the nets and demands.

    lookahead: by the name of the scenario, how it judges decisions. Only the episodes of the split "evaluation" write
    traces.

    Raises ConfigError if a scenario ends before its warm-up, ScenarioError if a net or demand cannot be built.
    """
    for scenario in scenarios:
        if scenario.duration_s <= settings.warm_up_s:
            raise ConfigError(
                f"scenario {scenario.name} begins at {scenario.begin_s} s, warms up for {settings.warm_up_s} s and "
                f"ends at {scenario.end_s} s: nothing is left to measure; change begin_s, end_s or warm_up_s"
            )
    jobs = []
    for scenario in scenarios:
        for number in range(num_seeds):
            seed = scenario.episode_seed(split, number)
            files = scenario.files(seed)
            for contestant in contestants:
                place = (scenario.name, contestant.name, seed)
                compared = contestant.kind == LANGUAGE_MODEL and number < settings.llm.compared_seeds
                what: dict[str, Any] = {
                    "record_version": RECORD_VERSION,
                    "sumo": installed_sumo_version(),
                    "scenario": {**scenario.fingerprint(), "warm_up_s": settings.warm_up_s},
                    "timing": asdict(scenario.timing),
                    "time_s": [scenario.begin_s, scenario.end_s, settings.warm_up_s],
                    "teleport_s": scenario.time_to_teleport_s,
                    "seed": seed,
                    "kind": contestant.kind,
                }
                if contestant.kind == "lookahead" or compared:
                    what["lookahead"] = lookahead[scenario.name].as_dict()
                if contestant.kind == LANGUAGE_MODEL:
                    what["model"] = contestant.model
                    what["prompt_version"] = prompt_version(settings.llm.prompt)
                    what["max_answer_tokens"] = settings.llm.max_answer_tokens
                    what["decision_time_limit_s"] = settings.llm.decision_time_limit_s
                    what["compared"] = compared
                if contestant.student is not None:
                    what["student"] = contestant.student.digest
                if contestant.program_file is not None:
                    what["program"] = sha256_of(contestant.program_file)
                digest = hashlib.sha256(json.dumps([what, contestant.name], sort_keys=True).encode())
                jobs.append(
                    EpisodeJob(
                        scenario=scenario.name,
                        controller=contestant.name,
                        kind=contestant.kind,
                        seed=seed,
                        fingerprint=digest.hexdigest()[:16],
                        files=files,
                        end_s=scenario.end_s,
                        warm_up_s=settings.warm_up_s,
                        signals=scenario.signals,
                        lookahead=lookahead[scenario.name],
                        student=contestant.student,
                        program_file=contestant.program_file,
                        prompt=settings.llm.prompt,
                        trace_file=trace_file(out, *place) if split == "evaluation" else None,
                        decisions_file=decisions_file(out, *place) if compared else None,
                    )
                )
    return jobs
