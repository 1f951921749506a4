"""scripts/monitor.sh in a browser, beside trainings that run, have ended and have crashed."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.browser import browser_page
from tests.recipes.monitor.made_runs import NO, YES, make_run, record, sample


@contextmanager
def monitor(repo_root: Path, runs: Path, *options: str) -> Iterator[str]:
    """Its address while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "scripts/monitor.py", "--runs", str(runs), "--port", port, *options]
    with subprocess.Popen(command, cwd=repo_root, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = re.search(r"http://\S+", process.stdout.readline())
            assert address
            _wait_for_port(int(port))
            yield address[0]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_the_pages_show_a_training_as_it_goes_on(repo_root: Path, tmp_path: Path) -> None:
    make_run(tmp_path, "old", map(record, range(1, 26)), state="finished")
    make_run(tmp_path, "broken", [record(1), record(2)], state="crashed")
    folder = make_run(tmp_path, "live", map(record, range(1, 4)), state="running")
    (folder / "samples.jsonl").write_text(sample(3, [(YES, 0.4), (NO, -0.6), ("<script>throw 1</script>", 0.0)]))
    (tmp_path / "old" / "eval").mkdir()
    (tmp_path / "old" / "eval" / "report.html").write_text("<h1>Queues of the evaluation</h1>")
    with monitor(repo_root, tmp_path) as address, browser_page() as page:
        page.goto(address)
        page.get_by_text("3 of 25").wait_for()
        assert page.locator("tbody tr").first.inner_text().split()[:3] == ["live", "grpo", "running"]
        assert page.locator("td.crashed").count() == 1

        page.get_by_role("link", name="samples").click()
        page.locator("select").select_option("costly")
        page.get_by_role("button", name="Show").click()
        page.wait_for_url("**answers=costly**")
        assert page.locator("tr.answer code").all_inner_texts() == [NO]

        page.goto(address)
        page.get_by_role("link", name="evaluation").click()
        page.get_by_text("Queues of the evaluation").wait_for()

        page.goto(address)
        page.get_by_role("link", name="KL and gradient").click()
        page.get_by_text("kl_loss").first.wait_for()
        assert page.get_by_text("answer_yes").count() == 0
        for run in ("old", "broken", "live"):
            page.get_by_text(run, exact=True).first.wait_for()

        [metrics] = (folder / "metrics").iterdir()
        with metrics.open("a") as file:
            file.write(record(4))
        page.goto(address)
        page.get_by_text("4 of 25").wait_for(timeout=20_000)
        page.goto(f"{address}system?project=grpo")
        page.get_by_text("memory", exact=False).first.wait_for()


@pytest.mark.slow
def test_a_hundred_runs_and_a_run_of_50000_steps_are_there_at_once(repo_root: Path, tmp_path: Path) -> None:
    make_run(tmp_path, "long", map(record, range(1, 50_001)), state="running")
    for number in range(100):
        make_run(tmp_path, f"run{number}", map(record, range(1, 201)), state="finished")
    with monitor(repo_root, tmp_path) as address, browser_page() as page:
        page.goto(address)
        page.get_by_text("50000 of 25").wait_for(timeout=20_000)
        page.get_by_text("run99").first.wait_for(timeout=60_000)
        start_s = time.monotonic()
        page.goto(f"{address}metrics?project=grpo&metrics=reward/score")
        page.locator("canvas, svg.marks").first.wait_for(timeout=20_000)
        # on a machine that has nothing else to do
        assert time.monotonic() - start_s < 3 * max(1.0, os.getloadavg()[0])


def test_another_address_takes_a_token(repo_root: Path, tmp_path: Path) -> None:
    make_run(tmp_path, "mine", [record(1)], state="finished")
    with monitor(repo_root, tmp_path, "--host", "0.0.0.0") as address, browser_page() as page:
        plain = address.partition("?")[0].replace("0.0.0.0", "127.0.0.1")
        answer = page.goto(plain)
        assert answer is not None and answer.status == 401
        page.goto(address.replace("0.0.0.0", "127.0.0.1"))
        page.get_by_text("mine").wait_for()
        assert "token" not in page.url


def test_a_missing_folder_and_a_port_in_use_are_named(repo_root: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for options, message in (
            (["--runs", str(tmp_path / "none")], "error: --runs"),
            (["--runs", str(tmp_path), "--port", port], f"error: cannot listen on 127.0.0.1, port {port}"),
        ):
            done = subprocess.run(
                [sys.executable, "scripts/monitor.py", *options], cwd=repo_root, capture_output=True, text=True
            )
            assert (done.returncode, done.stderr.startswith(message)) == (2, True)
