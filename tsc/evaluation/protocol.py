"""RESCO's conditions, and the results that it publishes (configs/protocols/resco.yaml)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field, model_validator

from tsc.errors import ConfigError, did_you_mean
from tsc.evaluation.settings import EvaluationSettings
from tsc.evaluation.wording import MISSING, Row, Summary, aligned, number
from tsc.junction.signal_settings import SignalSettings
from tsc.junction.timing import Timing
from tsc.scenarios.packaged import RESCO_PREFIX
from tsc.scenarios.traffic_scenario import TrafficScenario
from tsc.yaml_file import Section, load_yaml


class Network(Section):
    """step_s: time between two actions. yellow_s: yellow at the begin of a step in which the green changes. delay_s:
    the published ones, s per vehicle, in the order of Protocol.controllers; None was not published."""

    step_s: int = Field(ge=1)
    yellow_s: int = Field(ge=1)
    delay_s: tuple[float | None, ...]


class Protocol(Section):
    """source: of the conditions and results. max_green_s: of all greens. differs: from the benchmark, in sentences.
    controllers: whose delays are published. networks: by name of the scenario."""

    source: str
    max_green_s: int
    differs: tuple[str, ...]
    controllers: tuple[str, ...]
    networks: Mapping[str, Network]

    @model_validator(mode="after")
    def _all_delays(self) -> Protocol:
        for name, network in self.networks.items():
            if len(network.delay_s) != len(self.controllers):
                raise ValueError(f"{name} has {len(network.delay_s)} delays for {len(self.controllers)} controllers")
        return self

    def check(self, words: Sequence[str]) -> None:
        """Raises ConfigError for a scenario that is not part of the benchmark."""
        allowed = [RESCO_PREFIX + name for name in self.networks]
        for word in words:
            if word not in allowed:
                raise ConfigError(
                    f"--protocol resco does not have the scenario {word!r}: {did_you_mean(word, allowed)}choose from "
                    f"{', '.join(allowed)}"
                )

    def settings(self, settings: EvaluationSettings) -> EvaluationSettings:
        """With the benchmark's demand and simulated time, which are those of its files, and no teleports."""
        whole = {"begin_s": None, "end_s": None, "duration_s": None, "warm_up_s": 0, "junctions": ()}
        return settings.changed({**whole, "time_to_teleport_s": -1, "demand_as_filed": True})

    def scenario(self, scenario: TrafficScenario) -> TrafficScenario:
        """With the benchmark's greens, decisions and yellow. An action is taken every step; a new green begins after
        the yellow, so it lasts at least the rest of its first step."""
        network = self.networks[scenario.name]
        timing = Timing(
            min_green_s=network.step_s - network.yellow_s,
            max_green_s=self.max_green_s,
            green_extension_s=network.step_s,
        )
        signals = SignalSettings(timing=timing, bounds_from="same", yellow_s=network.yellow_s)
        note = f"{scenario.note}; every yellow lasts {network.yellow_s} s, except under static"
        return replace(scenario, signals=signals, note=note)

    def rows(self, summary: Summary, scenarios: Sequence[str]) -> list[tuple[str, list[Row | None]]]:
        """The published controllers, then those of this evaluation, each with its delay in each scenario. A published
        delay has no interval."""
        published = [
            (f"RESCO: {controller}", [_published(self.networks[name].delay_s[place]) for name in scenarios])
            for place, controller in enumerate(self.controllers)
        ]
        ours = dict.fromkeys(controller for name in scenarios for controller in summary.controllers(name))
        return published + [
            (controller, [summary.row(name, controller, "delay_s") for name in scenarios]) for controller in ours
        ]

    def text_table(self, summary: Summary, scenarios: Sequence[str]) -> str:
        """The table for the console."""
        cells = [["", *scenarios]] + [
            [name, *(MISSING if row is None else number(row["mean"], 1) for row in rows)]
            for name, rows in self.rows(summary, scenarios)
        ]
        return "\n".join(["delay in s per vehicle, beside the delays that RESCO publishes", *aligned(cells)])


def _published(delay_s: float | None) -> Row | None:
    return None if delay_s is None else {"mean": delay_s, "ci95_low": None, "ci95_high": None, "num_seeds": 1}


def load_protocol(path: Path) -> Protocol:
    """Raises ConfigError that names file, key, value and what is allowed."""
    return load_yaml(path, Protocol)
