"""The command that shows a decision of an evaluation in a browser."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsc.evaluation.reported import ReportedScenario

# how long the page shows, and how long before the decision it begins
SHOWN_S = 300
BEFORE_S = 120


@dataclass(frozen=True, kw_only=True)
class WatchCommand:
    """scenarios, controllers: the word of each in the evaluation's command, by name; without those that have no word of
    their own, as the members of a family. options: further words, which scripts/watch.sh and the evaluation share."""

    scenarios: Mapping[str, str]
    controllers: Mapping[str, str]
    options: Sequence[str]

    def of(self, scenario: ReportedScenario, controller: str, decision: Mapping[str, Any]) -> str | None:
        """The command for the page around a decision, beside the reference. decision: a record of OUT/decisions with
        its seed. None for a scenario without a word."""
        if scenario.name not in self.scenarios:
            return None
        names = [name for name in dict.fromkeys((scenario.reference.name, controller)) if name in self.controllers]
        warm_up_s = max(0, int(decision["time_s"]) - BEFORE_S - scenario.begin_s)
        words = ["bash", "scripts/watch.sh", "--scenario", self.scenarios[scenario.name], "--controllers"]
        words += [self.controllers[name] for name in names]
        words += ["--seed", str(decision["seed"]), "--junction", decision["junction_id"]]
        words += ["--warm-up", str(warm_up_s), "--shown", str(SHOWN_S), *self.options]
        words += ["--out", f"runs/watch/{scenario.name}-seed{decision['seed']}.html"]
        return shlex.join(words)
