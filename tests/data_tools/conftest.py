"""A small dataset written by hand: states, net and routes are files with content that only has to match its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data_tools.nets import two_signals
from tsc.sumo.version import installed_sumo_version

Samples = list[dict[str, Any]]

NET = two_signals()
ROUTES = "<routes/>\n"


def _write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


def _sample(folder: Path, scenario: str, episode: int, time_s: int, number: int) -> dict[str, Any]:
    state_file = f"states/e{episode:03d}/t{time_s:05d}.xml"
    state_sha256 = _write(
        folder / state_file, f'<snapshot type="micro" version="{installed_sumo_version()}" time="{time_s}.00">{episode}'
    )
    costs = [(100.0, 80.5), (60.0, 90.0), (50.0, 50.0)][number % 3]
    sample = {
        "schema_version": 1,
        "id": f"{scenario}-e{episode:03d}-t{time_s:05d}-A0",
        "scenario": scenario,
        "episode": episode,
        "junction_id": "A0",
        "time_s": float(time_s),
        "prompt_version": "1",
        "prompt": [
            {"role": "system", "content": 'You run a traffic light. Answer {"extend": "yes"} or {"extend": "no"}.'},
            {"role": "user", "content": f"Green for 15 s. Queue {number} veh. Extend?"},
        ],
        "state_file": state_file,
        "state_sha256": state_sha256,
        "current_green_elapsed": 15.0,
        "min_green": 10.0,
        "max_green": 60.0,
        "green_extension": 5.0,
        "stage": 0,
        "next_stage": 1,
        "clocks": {"A0": {"mode": "green", "stage": 0, "elapsed_green_s": 15.0, "phase_remaining_s": 0.0}},
        "sumo": {
            "version": installed_sumo_version(),
            "net_file": "scenario/net.net.xml",
            "route_files": ["scenario/cars.rou.xml"],
            "additional_files": [],
            "net_sha256": _write(folder / "scenario/net.net.xml", NET),
            "route_sha256": [_write(folder / "scenario/cars.rou.xml", ROUTES)],
            "seed": 1,
            "step_length_s": 1.0,
            "time_to_teleport_s": -1.0,
        },
        "outcomes": {
            "settings": {"horizon_s": 45, "tail": "max_pressure", "measure": "queue_veh_s", "scope": "junction"},
            "yes": costs[0],
            "no": costs[1],
        },
    }
    if costs[0] != costs[1]:
        sample["expert_decision"] = "yes" if costs[0] < costs[1] else "no"
    return sample


@pytest.fixture
def write_dataset(tmp_path: Path) -> Callable[..., Path]:
    """write_dataset(change=…) writes 2 episodes of 1,800 s with a decision every 100 s and returns the dataset file.

    change: gets the list of samples and alters it before it is written. lines: as JSON Lines.
    """

    def write(
        name: str = "demo",
        *,
        change: Callable[[Samples], object] | None = None,
        num_episodes: int = 2,
        lines: bool = False,
    ) -> Path:
        folder = tmp_path / name
        times = range(100, 1900, 100)
        samples = [
            _sample(folder, name, episode, time_s, number)
            for episode in range(num_episodes)
            for number, time_s in enumerate(times)
        ]
        if change is not None:
            change(samples)
        path = folder / ("grpo_dataset.jsonl" if lines else "grpo_dataset.json")
        text = "".join(json.dumps(sample) + "\n" for sample in samples) if lines else json.dumps(samples, indent=1)
        path.write_text(text)
        return path

    return write
