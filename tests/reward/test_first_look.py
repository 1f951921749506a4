"""`python reward/compute_score.py`, a user's first look at the reward."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_run_directly_the_reward_shows_answers_with_their_scores(repo_root: Path, server_folder: Path) -> None:
    command = [sys.executable, str(repo_root / "reward" / "compute_score.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Extend by 5 s?" in done.stdout
    rows = re.findall(r"^(.+?) +(-?\d\.\d{3}) +(-?\d\.\d{3}) +(-?\d\.\d{3})$", done.stdout, re.MULTILINE)
    answers = [row[0] for row in rows]
    assert answers[:2] == ['{"extend": "yes"}', '{"extend": "no"}']
    yes, no, yes_in_text, no_in_text, invalid = ([float(number) for number in row[1:]] for row in rows)
    # really replayed: the two answers differ, by as much either way
    assert yes[1] == -no[1] != 0.0
    assert (yes_in_text[1], no_in_text[1]) == (yes[1], no[1])
    assert [row[2] for row in (yes, yes_in_text, invalid)] == [0.1, 0.05, -1.0]
    assert all(abs(score - traffic - form) < 0.002 for score, traffic, form in (yes, no, yes_in_text, no_in_text))
    assert invalid[:2] == [-1.0, 0.0]
