"""Who may see the pages, what they show, and that they change nothing."""

import urllib.parse
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from recipes.monitor.board import Board
from recipes.monitor.pages import application
from tests.recipes.monitor.made_runs import NO, YES, make_run, record, sample


def client_of(runs: Path, *, token: str | None = None, name: str = "127.0.0.1") -> TestClient:
    board = Board(runs)
    board.update()
    return TestClient(application(board, token=token), base_url=f"http://{name}:7860")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    runs = tmp_path / "runs"
    folder = make_run(runs, "mine", [record(1), "{broken\n", record(2)], state="finished", algorithm="shown")
    (folder / "samples.jsonl").write_text(sample(1, [(YES, 0.3), (NO, -0.6)]) + sample(2, [("<b>no</b>", 0.0)]))
    (runs / "mine" / "eval").mkdir()
    (runs / "mine" / "eval" / "report.html").write_text("<h1>Queues</h1>")
    (tmp_path / "secret.txt").write_text("hidden words")
    return runs


def test_an_empty_folder_says_how_to_fill_it(tmp_path: Path) -> None:
    assert "There is no training here yet" in client_of(tmp_path).get("/").text


def test_the_table_has_every_training_with_its_state_and_faults(runs: Path) -> None:
    make_run(runs, "bad", [record(3)], state="crashed", algorithm="shown")
    make_run(runs, "now", [record(4)], state="running", algorithm="shown")
    text = client_of(runs).get("/").text
    for words in ("finished", "crashed", "running", "4 of 25", "1 lines of the metrics or samples are broken"):
        assert words in text
    assert "ReplayError: state 17 of junction &#39;C&#39; is gone" in text


def test_samples_of_a_step_can_be_filtered_and_no_answer_becomes_a_part_of_the_page(runs: Path) -> None:
    client = client_of(runs)
    newest = client.get("/samples/shown/mine").text
    assert "&lt;b&gt;no&lt;/b&gt;" in newest and "<b>no</b>" not in newest
    first = client.get("/samples/shown/mine?step=1&answers=costly").text
    assert "extend&#34;: &#34;no" in first and "extend&#34;: &#34;yes" not in first
    assert "Cost of the answer yes: 31.0, of no: 42.5" in first
    both = client.get("/samples/shown/mine?step=2&before=1").text
    assert both.index("step 2") < both.index("step 1:")
    assert client.get("/samples/shown/mine?answers=cheap").status_code == 404
    assert client.get("/samples/shown/none").status_code == 404


def test_the_report_is_shown_and_runs_no_script(runs: Path) -> None:
    answer = client_of(runs).get("/report/shown/mine")
    assert "Queues" in answer.text
    assert "sandbox" in answer.headers["content-security-policy"]


def test_no_file_outside_the_folder_can_be_read(runs: Path) -> None:
    secret = runs.parent / "secret.txt"
    dotted = runs / "x" / ".." / ".." / "secret.txt"
    report = runs / "mine" / "eval" / "report.html"
    report.unlink()
    report.symlink_to(secret)
    client = client_of(runs)
    ways = [
        "/report/shown/mine", "/report/shown/../../../secret.txt", "/report/shown%2F..%2F..%2Fsecret.txt",
        f"/file?path={urllib.parse.quote(str(secret))}", f"/file?path={urllib.parse.quote(str(dotted))}",
        "/../secret.txt", "/%2e%2e/secret.txt",
    ]  # fmt: skip
    assert [way for way in ways if "hidden words" in client.get(way).text] == []


def test_nothing_can_be_changed(runs: Path) -> None:
    client = client_of(runs)
    project = {"project": "shown"}
    assert client.post("/api/get_runs_for_project", json=project).json()["data"][0]["name"] == "mine"
    for name in ("delete_run", "bulk_log", "upload", "query_project", "upload_db_to_space"):
        assert client.post(f"/api/{name}", json=project | {"run": "mine"}).status_code == 405
    assert client.delete("/").status_code == 405


def test_a_page_of_the_internet_cannot_lead_its_own_name_here(runs: Path) -> None:
    assert client_of(runs, name="evil.example").get("/").status_code == 400


def test_other_machines_need_the_token(runs: Path) -> None:
    client = client_of(runs, token="right", name="10.0.0.7")
    for path in ("/", "/?token=wrong", "/metrics", "/samples/shown/mine", "/report/shown/mine"):
        assert client.get(path).status_code == 401
    assert client.post("/api/get_all_projects", json={}).status_code == 401
    assert "Trainings in" in client.get("/?token=right").text
    # the browser has it as a cookie from now on
    assert client.get("/samples/shown/mine").status_code == 200
    assert client.post("/api/get_all_projects", json={}).status_code == 200
