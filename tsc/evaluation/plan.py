"""The episodes of an evaluation: every controller on every scenario with every seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tsc.controllers.registry import LANGUAGE_MODEL
from tsc.cost.outcome import OutcomeSettings
from tsc.episodes.runner import EpisodeJob
from tsc.evaluation.scenarios import EvaluationScenario
from tsc.evaluation.settings import EvaluationSettings
from tsc.evaluation.traces import decisions_file, trace_file
from tsc.junction.prompt import PROMPT_VERSION
from tsc.sumo.version import installed_sumo_version

# Stands in every fingerprint; change it with any change of what an episode measures.
RECORD_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A controller of an evaluation. kind: of tsc.controllers.registry.CONTROLLERS, or LANGUAGE_MODEL.
    model: for a language model, what tells one from another (digest of its files, or address and name)."""

    name: str
    kind: str
    model: str | None = None


def plan_jobs(
    scenarios: Sequence[EvaluationScenario],
    contestants: Sequence[Contestant],
    num_seeds: int,
    *,
    out: Path,
    settings: EvaluationSettings,
    lookahead: OutcomeSettings,
) -> list[EpisodeJob]:
    """In the order of scenarios, seeds, contestants; builds the demands that are missing."""
    jobs = []
    for scenario in scenarios:
        for number in range(num_seeds):
            seed, files = scenario.files(number)
            for contestant in contestants:
                place = (scenario.name, contestant.name, seed)
                compared = contestant.kind == LANGUAGE_MODEL and number < settings.llm.compared_seeds
                what: dict[str, Any] = {
                    "record_version": RECORD_VERSION,
                    "sumo": installed_sumo_version(),
                    "scenario": scenario.fingerprint(),
                    "timing": asdict(scenario.timing),
                    "time_s": [scenario.begin_s, scenario.end_s, scenario.warm_up_s],
                    "teleport_s": files.time_to_teleport_s,
                    "seed": seed,
                    "kind": contestant.kind,
                }
                if contestant.kind == "lookahead" or compared:
                    what["lookahead"] = lookahead.as_dict()
                if contestant.kind == LANGUAGE_MODEL:
                    what["model"] = contestant.model
                    what["prompt_version"] = PROMPT_VERSION
                    what["max_answer_tokens"] = settings.llm.max_answer_tokens
                    what["decision_time_limit_s"] = settings.llm.decision_time_limit_s
                    what["compared"] = compared
                jobs.append(
                    EpisodeJob(
                        scenario=scenario.name,
                        controller=contestant.name,
                        kind=contestant.kind,
                        seed=seed,
                        fingerprint=_digest([what, contestant.name]),
                        files=files,
                        end_s=scenario.end_s,
                        warm_up_s=scenario.warm_up_s,
                        timing=scenario.timing,
                        lookahead=lookahead,
                        trace_file=trace_file(out, *place),
                        decisions_file=decisions_file(out, *place) if compared else None,
                    )
                )
    return jobs


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
