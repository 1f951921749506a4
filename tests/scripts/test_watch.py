"""The page of an episode as a user makes it, and as a browser shows it."""

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from tests.tsc.player.test_page import array, unpacked
from tests.tsc.sumo_process import in_new_process
from tsc.junction.signal_control import read_signals
from tsc.scenarios.by_word import traffic_scenarios
from tsc.sumo.simulation import Simulation

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FROM_S = 30
WORDS = ("--controllers", "static", "max_pressure", "--warm-up", str(FROM_S), "--shown", "120", "--junction", "A0")

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium, which shows the page, is installed")


def watch(repo_root: Path, scenario: Path | str, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repo_root / "scripts/watch.py"), "--scenario", str(scenario), "--out", str(out)]
    return subprocess.run([*command, *words], capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def page(repo_root: Path, short_scenario: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("watch") / "page.html"
    done = watch(repo_root, short_scenario, path, *WORDS)
    assert done.returncode == 0, done.stderr
    assert "four_way, seed 1001, junction A0, 30 to 150 s: static, max_pressure" in done.stdout
    assert f"{path} (0." in done.stdout
    assert not (path.parent / "scenarios").exists()
    return path


@pytest.fixture(scope="module")
def content(page: Path) -> dict[str, Any]:
    return unpacked(page.read_text())[0]


def test_the_page_has_both_controllers_on_the_same_traffic(page: Path, content: dict[str, Any]) -> None:
    static, max_pressure = content["episodes"]
    _, data = unpacked(page.read_text())
    assert (static["controller"], max_pressure["controller"]) == ("static", "max_pressure")
    assert static["decisions"] == [] and len(max_pressure["decisions"]) > 5
    for episode in (static, max_pressure):
        assert len(array(episode["stage"], data)) == 120
        assert array(episode["recording"]["queue_veh"], data).max() > 1
    costs = [each["outcomes"] for each in max_pressure["decisions"]]
    queues = array(max_pressure["answers"]["queue_veh"], data).reshape(-1, 2, content["cost"]["horizon_s"])
    assert [[each["yes"], each["no"]] for each in costs] == queues.sum(axis=2).tolist()


def test_the_same_command_gives_the_same_page(
    repo_root: Path, short_scenario: Path, page: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.html"
    assert watch(repo_root, short_scenario, again, *WORDS).returncode == 0
    assert again.read_bytes() == page.read_bytes()


def _queues_veh_s(scenario: Path, folder: Path) -> dict[str, int]:
    """By junction, under the net's own plan, read in a simulation of its own."""
    (arterial,) = traffic_scenarios([str(scenario)], folder)
    simulation = Simulation(arterial.files(1001))
    programs = read_signals(simulation, switched_by_sumo=True).programs
    found = dict.fromkeys(programs, 0)
    for _ in range(120):
        simulation.step()
        for name, program in programs.items():
            found[name] += simulation.queue_veh(program.approach_lanes)
    return found


def test_of_several_junctions_the_one_with_the_longest_queue_is_shown(repo_root: Path, tmp_path: Path) -> None:
    scenario, out = repo_root / "configs/scenarios/arterial.yaml", tmp_path / "page.html"
    done = watch(repo_root, scenario, out, "--controllers", "static", "--shown", "20", "--warm-up", "100")
    assert done.returncode == 0, done.stderr
    queues_veh_s = in_new_process(_queues_veh_s, scenario, tmp_path)
    assert unpacked(out.read_text())[0]["junction"] == max(queues_veh_s, key=queues_veh_s.__getitem__)
    assert len(set(queues_veh_s.values())) > 1


def browse(page: Path, fragment: str, *words: str) -> str:
    """What the browser prints."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1300,1000"]
    command += ["--virtual-time-budget=4000", "--enable-logging=stderr", *words, f"{page.as_uri()}#{fragment}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert not re.search(r"Uncaught|Refused to|CONSOLE.*rror", done.stderr), done.stderr
    return done.stdout


@needs_browser
def test_the_browser_shows_a_decision_with_both_answers(page: Path, content: dict[str, Any]) -> None:
    decision = max(
        content["episodes"][1]["decisions"],
        key=lambda each: each["outcomes"][each["decision"]] - min(each["outcomes"].values()),
    )
    text = html.unescape(browse(page, f"decision=max_pressure@{decision['time_s']:g}", "--dump-dom"))
    shown = " ".join(re.sub(r"<[^>]+>", " ", text[text.index('<section id="decision">') :]).split())
    yes, no = decision["outcomes"]["yes"], decision["outcomes"]["no"]
    assert f"yes (extend) {yes:.1f}" in shown and f"no (end) {no:.1f}" in shown
    assert "If the answer is yes" in shown and "If the answer is no" in shown
    assert f"would have cost {abs(yes - no):.1f} veh·s less" in shown


@needs_browser
def test_the_browser_shows_the_queue_and_the_vehicles_of_a_second(page: Path, content: dict[str, Any]) -> None:
    _, data = unpacked(page.read_text())
    queues = [array(episode["recording"]["queue_veh"], data) for episode in content["episodes"]]
    second = int(np.argmax(queues[0]))
    text = browse(page, f"time={FROM_S + second + 1}", "--dump-dom")
    assert [int(each) for each in re.findall(r"queue (\d+) veh, mean so far", text)] == [
        queue[second] for queue in queues
    ]
    picture = page.with_name("page.png")
    browse(page, f"time={FROM_S + second + 1}", f"--screenshot={picture}")
    pixels = np.round(255 * matplotlib.image.imread(picture)[..., :3]).astype(int)
    halting = np.abs(pixels - (0xF0, 0xA3, 0x0A)).max(axis=2) < 4
    left, right = halting[:, :650].sum(), halting[:, 650:].sum()
    assert left > right and left > 50 * queues[0][second]


def test_a_film_shows_the_vehicles_of_each_controller(
    repo_root: Path, short_scenario: Path, tmp_path: Path, content: dict[str, Any], page: Path
) -> None:
    out = tmp_path / "film.gif"
    done = watch(repo_root, short_scenario, out, *WORDS)
    assert done.returncode == 0, done.stderr
    _, data = unpacked(page.read_text())
    queues = [array(episode["recording"]["queue_veh"], data) for episode in content["episodes"]]
    second = int(np.argmax(queues[0].astype(int) - queues[1]))
    with Image.open(out) as film:
        assert film.n_frames == 2 * 120  # two pictures a second
        assert film.info["duration"] == 100  # ms
        film.seek(2 * (second + 1))
        pixels = np.array(film.convert("RGB")).astype(int)
    halting = np.abs(pixels - (0xF0, 0xA3, 0x0A)).max(axis=2) < 12
    left, right = (half.sum() for half in np.split(halting[:, : pixels.shape[1] // 2 * 2], 2, axis=1))
    assert left > right and left > 30 * queues[0][second]


def test_an_mp4_is_made_by_ffmpeg(repo_root: Path, short_scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "film.mp4"
    done = watch(repo_root, short_scenario, out, "--controllers", "static", "--shown", "3")
    if shutil.which("ffmpeg"):
        assert done.returncode == 0 and out.read_bytes()[4:8] == b"ftyp", done.stderr
    else:
        assert done.returncode == 2 and "an MP4 needs the program ffmpeg" in done.stderr and not out.exists()


@pytest.mark.parametrize(
    ("scenario", "words", "message"),
    [
        (None, ("--controllers", "max_presure"), "did you mean 'max_pressure'"),
        (None, ("--controllers", "static", "gap_out", "random"), "a page shows one or two controllers"),
        (None, ("--controllers", "static", "--junction", "A1"), "'A1' is not a signal of four_way: choose one of A0"),
        (None, ("--controllers", "static", "--warm-up", "300"), "from 300 to 300 s: choose 1 to 7200 s"),
        ("four_way", ("--controllers", "static"), "scenario 'four_way' is unknown"),
        (None, ("--controllers", "static", "--out", "film.avi"), "the name ends in one of .html .gif .mp4"),
        ("family_train.yaml", ("--controllers", "static"), "a family of"),
    ],
)
def test_wrong_words_fail_before_any_episode(
    repo_root: Path, short_scenario: Path, tmp_path: Path, scenario: str | None, words: tuple[str, ...], message: str
) -> None:
    if scenario and scenario.endswith(".yaml"):
        scenario = str(repo_root / "configs/scenarios" / scenario)
    done = watch(repo_root, scenario or short_scenario, tmp_path / "page.html", *words)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "page.html").exists()
