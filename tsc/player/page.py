"""Makes the page of recorded episodes: one HTML file that needs no network and no other file."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsc.cost.measures import unit_of
from tsc.cost.outcome import OutcomeSettings
from tsc.episodes.recording import ANGLE_STEP_DEG, POSITION_STEP_M, SPEED_STEP_M_PER_S, RecordedEpisode, Recording
from tsc.files import write_atomically
from tsc.junction.decision import Decision
from tsc.player.junction_map import JunctionMap

_FOLDER = Path(__file__).resolve().parent
# of a decision, in the page; the others change from run to run
_SHOWN_VALUES = ("time_s", "stage", "elapsed_green_s", "prompt", "answer", "decision", "fallback", "outcomes")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One controller's episode. description: what the controller does, for the reader."""

    controller: str
    description: str
    episode: RecordedEpisode


def write_page(
    path: Path,
    episodes: Sequence[Shown],
    *,
    scenario: str,
    seed: int,
    junction_id: str,
    from_s: int,
    junction_map: JunctionMap,
    settings: OutcomeSettings,
) -> None:
    """episodes: of one or two controllers on the same traffic. settings: how the decisions were judged. The same
    recordings give the same bytes."""
    packed = _Packed()
    content = {
        "scenario": scenario,
        "seed": seed,
        "junction": junction_id,
        "from_s": from_s,
        "map": asdict(junction_map),
        "cost": {"measure": settings.measure, "unit": unit_of(settings.measure), **settings.as_dict()},
        "steps": {"position_m": POSITION_STEP_M, "angle_deg": ANGLE_STEP_DEG, "speed_m_per_s": SPEED_STEP_M_PER_S},
        "episodes": [
            {
                "controller": each.controller,
                "description": each.description,
                "recording": packed.recordings([each.episode.recording]),
                "stage": packed.add(each.episode.stage),
                "decisions": [
                    {name: decision.values[name] for name in _SHOWN_VALUES} for decision in each.episode.decisions
                ],
                # yes and no of the first decision, yes and no of the second, …
                "answers": packed.recordings(
                    [decision.answers[answer] for decision in each.episode.decisions for answer in Decision]
                ),
            }
            for each in episodes
        ],
    }
    page = (_FOLDER / "player.html").read_text("utf-8")
    for name, text in {
        "TITLE": escape(f"{scenario}, junction {junction_id}"),
        "STYLE": (_FOLDER / "player.css").read_text("utf-8"),
        "SCRIPT": (_FOLDER / "player.js").read_text("utf-8"),
        "DATA": packed.text(content),
    }.items():
        page = page.replace(f"@@{name}@@", text)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page.encode())


class _Packed:
    """Arrays one after the other, to be compressed together. The page finds each by its type, place and length."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, array: NDArray[Any]) -> dict[str, Any]:
        data = np.ascontiguousarray(array).tobytes()
        place = self._size
        padded = data + bytes(-len(data) % 8)  # a typed array of the page begins at a multiple of its item size
        self._parts.append(padded)
        self._size += len(padded)
        return {"type": array.dtype.name, "place": place, "length": array.size}

    def recordings(self, recordings: Sequence[Recording]) -> dict[str, Any]:
        """Several recordings as one: in `num_seconds` and `num_tracks` stands how much of it belongs to each."""

        def joined(name: str, dtype: Any, columns: int = 1) -> NDArray[Any]:
            arrays = [getattr(each, name) for each in recordings]
            return np.concatenate([np.empty((0, columns) if columns > 1 else 0, dtype), *arrays])

        num_frames = joined("num_frames", np.uint16)
        position = joined("position", np.int16, 2)
        states = list(dict.fromkeys(state for each in recordings for state in each.state))
        place_of = {state: place for place, state in enumerate(states)}
        state = np.array([place_of[state] for each in recordings for state in each.state], dtype=np.uint16)
        return {
            "num_seconds": self.add(np.array([len(each.state) for each in recordings], dtype=np.uint16)),
            "num_tracks": self.add(np.array([len(each.num_frames) for each in recordings], dtype=np.uint32)),
            "states": states,
            "state": self.add(state),
            "queue_veh": self.add(joined("queue_veh", np.uint16)),
            "first_frame": self.add(joined("first_frame", np.uint16)),
            "num_frames": self.add(num_frames),
            "size_dm": self.add(joined("size_dm", np.uint8, 2)),
            "dx": self.add(_changes(position[:, 0], num_frames)),
            "dy": self.add(_changes(position[:, 1], num_frames)),
            "dangle": self.add(_changes(joined("angle", np.uint8), num_frames)),
            "speed": self.add(joined("speed", np.uint8)),
        }

    def text(self, content: dict[str, Any]) -> str:
        """Content and arrays as base64: the length of the JSON (4 bytes, little-endian), the JSON, the arrays."""
        head = json.dumps(content, separators=(",", ":")).encode()
        head += b" " * (-(4 + len(head)) % 8)
        data = len(head).to_bytes(4, "little") + head + b"".join(self._parts)
        return base64.b64encode(zlib.compress(data, 9)).decode()


def _changes(values: NDArray[Any], num_frames: NDArray[np.uint16]) -> NDArray[Any]:
    """From point to point; the first point of each track as it is. They wrap around, as the page's sums do."""
    changes = np.diff(values, prepend=values[:1])
    first = np.cumsum(num_frames, dtype=np.int64) - num_frames
    changes[first] = values[first]
    return changes
