"""The page's data, read back as the page's script reads it."""

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tsc.cost.outcome import OutcomeSettings
from tsc.episodes.recording import RecordedDecision, RecordedEpisode, Recording
from tsc.junction.decision import Decision
from tsc.player.junction_map import JunctionMap
from tsc.player.page import Shown, write_page

MAP = JunctionMap(
    box=(0, 0, 300, 300),
    shown=(100, 100, 200, 200),
    nodes=[],
    lanes=[],
    stop_lines=[(0, [(0, 0), (1, 0)])],
    crossings=[],
)


def recording(*tracks: tuple[int, list[tuple[int, int, int, int]]], states: str) -> Recording:
    """Each track: its first frame, and x, y, angle, speed of each point."""
    points = np.array([point for _, of_track in tracks for point in of_track]).reshape(-1, 4)
    return Recording(
        state=tuple(states),
        queue_veh=np.arange(len(states), dtype=np.uint16),
        first_frame=np.array([first for first, _ in tracks], dtype=np.uint16),
        num_frames=np.array([len(of_track) for _, of_track in tracks], dtype=np.uint16),
        size_dm=np.full((len(tracks), 2), (50, 18), dtype=np.uint8),
        position=points[:, :2].astype(np.int16),
        angle=points[:, 2].astype(np.uint8),
        speed=points[:, 3].astype(np.uint8),
    )


def shown(**changes: Any) -> Shown:
    values = {
        "time_s": 12.0,
        "stage": 0,
        "elapsed_green_s": 10.0,
        "prompt": [{"role": "user", "content": "</script><b>Extend?"}],
        "answer": None,
        "decision": "yes",
        "fallback": "late",
        "latency_s": 3.25,
        "outcomes": {"yes": 3.0, "no": 1.0},
    }
    main = recording((0, [(0, 3000, 250, 0), (32000, -5, 3, 200)]), (1, [(7, 8, 9, 10)]), states="Grr")
    answers = {
        Decision.YES: recording((0, [(5, 5, 5, 5)]), states="GG"),
        Decision.NO: recording(states="yr"),
    }
    decision = RecordedDecision(values={**values, **changes}, answers=answers)
    stage = np.array([0, -1, 1], dtype=np.int8)
    episode = RecordedEpisode(recording=main, stage=stage, decisions=[decision])
    return Shown(controller="max_pressure", description="", episode=episode)


def written(path: Path, *episodes: Shown) -> str:
    write_page(
        path,
        episodes,
        scenario="<four & way>",
        seed=1,
        junction_id="A0",
        from_s=10,
        junction_map=MAP,
        settings=OutcomeSettings(),
    )
    return path.read_text()


def unpacked(page: str) -> tuple[dict[str, Any], bytes]:
    (text,) = re.findall(r'<script type="text/plain" id="data">([A-Za-z0-9+/=]*)</script>', page)
    data = zlib.decompress(base64.b64decode(text))
    length = int.from_bytes(data[:4], "little")
    return json.loads(data[4 : 4 + length]), data[4 + length :]


def array(packed: dict[str, Any], data: bytes) -> NDArray[Any]:
    return np.frombuffer(data, packed["type"], packed["length"], packed["place"])


def test_recordings_are_read_back_as_they_were(tmp_path: Path) -> None:
    content, data = unpacked(written(tmp_path / "page.html", shown()))
    (episode,) = content["episodes"]
    packed = episode["recording"]
    assert [packed["states"][place] for place in array(packed["state"], data)] == ["G", "r", "r"]
    assert array(episode["stage"], data).tolist() == [0, -1, 1]
    # the second point of a track by its change, which may wrap around
    dx, dy, dangle = (array(packed[name], data) for name in ("dx", "dy", "dangle"))
    assert np.cumsum(dx[:2], dtype=np.int16).tolist() == [0, 32000]
    assert np.cumsum(dy[:2], dtype=np.int16).tolist() == [3000, -5]
    assert np.cumsum(dangle[:2], dtype=np.uint8).tolist() == [250, 3]
    assert (dx[2], dy[2], dangle[2]) == (7, 8, 9)
    answers = episode["answers"]
    assert array(answers["num_seconds"], data).tolist() == [2, 2]
    assert array(answers["num_tracks"], data).tolist() == [1, 0]


def test_the_same_recordings_give_the_same_bytes_whatever_the_latency(tmp_path: Path) -> None:
    first = written(tmp_path / "a.html", shown())
    assert written(tmp_path / "b.html", shown(latency_s=0.5)) == first
    assert written(tmp_path / "c.html", shown(decision="no")) != first


def test_no_text_of_a_model_or_a_scenario_becomes_markup(tmp_path: Path) -> None:
    page = written(tmp_path / "page.html", shown())
    assert "<b>Extend?" not in page and "<title>&lt;four &amp; way&gt;, junction A0</title>" in page
    assert unpacked(page)[0]["episodes"][0]["decisions"][0]["prompt"][0]["content"] == "</script><b>Extend?"


def test_the_page_asks_for_nothing_outside_itself(tmp_path: Path) -> None:
    page = written(tmp_path / "page.html", shown())
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=|https?://|@@", page)
    assert page.count("<script") == 2


@pytest.mark.parametrize("num_decisions", [0, 1])
def test_a_controller_without_decisions_has_a_page_too(tmp_path: Path, num_decisions: int) -> None:
    one = shown()
    episode = RecordedEpisode(
        recording=one.episode.recording, stage=one.episode.stage, decisions=one.episode.decisions[:num_decisions]
    )
    content, _ = unpacked(written(tmp_path / "page.html", Shown(controller="static", description="", episode=episode)))
    assert len(content["episodes"][0]["decisions"]) == num_decisions
