"""Controllers in sumo-gui, on a display in memory."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.cost.outcome import OutcomeSettings
from tsc.episodes.runner import EpisodeJob, run_job
from tsc.errors import ConfigError, ScenarioError
from tsc.junction.signal_settings import SignalSettings
from tsc.player.sumo_gui import check_kinds, play
from tsc.sumo.running import SumoFiles

BOX = (-100.0, -100.0, 100.0, 100.0)
KINDS = ("static", "longest_queue")


@pytest.fixture
def display() -> Iterator[str]:
    if shutil.which("Xvfb") is None:
        pytest.skip("no Xvfb on PATH (Debian: apt-get install xvfb)")
    read, write = os.pipe()
    with subprocess.Popen(["Xvfb", "-displayfd", str(write)], pass_fds=[write], stderr=subprocess.DEVNULL) as server:
        os.close(write)
        with os.fdopen(read) as said:
            yield f":{said.readline().strip()}"
        server.terminate()


def _job(files: SumoFiles, kind: str, trips: Path) -> EpisodeJob:
    return EpisodeJob(
        scenario="four_way",
        controller=kind,
        kind=kind,
        seed=1,
        fingerprint="",
        files=replace(files, more_options=("--fcd-output", str(trips))),
        end_s=60,
        warm_up_s=0,
        signals=SignalSettings(),
        lookahead=OutcomeSettings(),
    )


def _play(files: SumoFiles, display: str, folder: Path) -> None:
    os.environ["DISPLAY"] = display
    play([_job(files, kind, folder / f"{kind}.gui.xml") for kind in KINDS], {}, BOX, folder)


def _positions(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if "<vehicle " in line]


def test_sumo_gui_shows_what_an_evaluation_simulates(files: SumoFiles, display: str, tmp_path: Path) -> None:
    in_new_process(_play, files, display, tmp_path)
    found = {}
    for kind in KINDS:
        in_new_process(run_job, _job(files, kind, tmp_path / f"{kind}.xml"), None)
        # a window that is closed leaves half a line
        shown = _positions(tmp_path / f"{kind}.gui.xml")[:-1]
        found[kind] = _positions(tmp_path / f"{kind}.xml")[: len(shown)]
        assert len(shown) > 300
        assert shown == found[kind]
    assert found["static"] != found["longest_queue"]


def test_a_display_that_is_not_there_is_told_at_once(files: SumoFiles, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"no window on the display :8765: check \$DISPLAY, or .*--out FILE\.html"):
        in_new_process(_play, files, ":8765", tmp_path)


def test_lookahead_is_refused() -> None:
    check_kinds(dict.fromkeys(KINDS, "static"))
    with pytest.raises(ConfigError, match="make a page"):
        check_kinds({"mine": "lookahead"})
