"""Closed-loop evaluation as a user runs it."""

import csv
import itertools
import json
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from recipes.models.model_card import CARD_FILE
from recipes.serving.model_choice import LocalModelChoice
from tsc.controllers.opening import opened
from tsc.junction.prompt import OWN_PROMPT, PROMPT_VERSION
from tsc.scenarios.by_word import traffic_scenarios


def command(repo_root: Path, scenario: Path | str, out: Path, *words: str) -> list[str]:
    program = [sys.executable, str(repo_root / "scripts/evaluate.py"), "--scenarios", str(scenario), "--out", str(out)]
    return [*program, *words]


def evaluate(repo_root: Path, scenario: Path | str, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(repo_root, scenario, out, *words), capture_output=True, text=True, timeout=300, check=False
    )


def test_results_are_there_in_every_form_and_resume_without_repeating_episodes(
    repo_root: Path, short_scenario: Path, tmp_path: Path
) -> None:
    words = ("--seeds", "2", "--controllers", "static", "actuated", "max_pressure")
    words += ("--base-url", "http://me:secret@host/v1")  # the report shows the command, but no password
    first = evaluate(repo_root, short_scenario, tmp_path, *words)
    assert first.returncode == 0, first.stderr
    assert "max_pressure" in first.stdout and str(tmp_path / "report.html") in first.stdout
    results = (tmp_path / "results.json").read_text()
    rows = json.loads(results)
    assert {row["controller"] for row in rows} == {"static", "actuated", "max_pressure"}
    assert {tuple(row["seeds"]) for row in rows if row["metric"] == "mean_queue_veh"} == {(1001, 1002)}
    report = (tmp_path / "report.html").read_text()
    assert "Junction A0" in report and "A, from north (top0A0)" in report
    assert "<html" in report and "--base-url http://host/v1" in report
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"secret" in path.read_bytes()] == []
    assert list((tmp_path / "figures").glob("*.png"))

    episodes = tmp_path / "episodes.jsonl"
    lines = episodes.read_text().splitlines()
    episodes.write_text("\n".join(lines[:5]) + "\n" + lines[5][:20])  # a kill while the last line was written
    again = evaluate(repo_root, short_scenario, tmp_path, *words)
    assert "5 of 6 episodes are there already" in again.stdout
    assert (tmp_path / "results.json").read_text() == results
    assert [json.loads(line)["fingerprint"] for line in episodes.read_text().splitlines()[:5]] == [
        json.loads(line)["fingerprint"] for line in lines[:5]
    ]


def test_a_killed_evaluation_leaves_no_process_and_goes_on_to_the_report_of_one_that_was_not_killed(
    repo_root: Path, short_scenario: Path, tmp_path: Path
) -> None:
    words = ("--seeds", "3", "--workers", "2", "--controllers", "max_pressure", "lookahead")
    out = tmp_path / "out"
    assert evaluate(repo_root, short_scenario, out, *words).returncode == 0
    names = ("report.html", "results.json", "summary.csv")
    uninterrupted = {name: (out / name).read_bytes() for name in names}
    out.rename(tmp_path / "uninterrupted")  # the report names its folder

    episodes = out / "episodes.jsonl"
    process = subprocess.Popen(command(repo_root, short_scenario, out, *words), stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 200
    while not (episodes.exists() and episodes.read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)  # so that it does not end before the second begins
    second = evaluate(repo_root, short_scenario, out, *words)
    assert second.returncode == 2
    assert f"cannot write the evaluation to {out}: process {process.pid} on " in second.stderr
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3  # a fork server, its workers, and multiprocessing's resource tracker
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    done = episodes.read_text().splitlines(keepends=True)

    again = evaluate(repo_root, short_scenario, out, *words)
    assert again.returncode == 0, again.stderr
    assert {name: (out / name).read_bytes() for name in names} == uninterrupted
    lines = episodes.read_text().splitlines(keepends=True)
    whole = [line for line in done if line.endswith("\n")]
    assert lines[: len(whole)] == whole
    keys = [(record["controller"], record["seed"]) for record in map(json.loads, lines)]
    assert len(keys) == len(set(keys)) == 6


def test_a_change_of_settings_runs_anew_and_keeps_what_was_there(
    repo_root: Path, short_scenario: Path, tmp_path: Path
) -> None:
    words = ("--seeds", "1", "--controllers", "max_pressure")
    assert evaluate(repo_root, short_scenario, tmp_path, *words, "--end", "120").returncode == 0
    assert evaluate(repo_root, short_scenario, tmp_path, *words, "--end", "120", "--warm-up", "60").returncode == 0
    records = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert [record["warm_up_s"] for record in records] == [0, 60]
    back = evaluate(repo_root, short_scenario, tmp_path, *words, "--end", "120")
    assert "1 of 1 episodes are there already" in back.stdout


def test_the_reference_of_each_scenario_has_the_smallest_delay_on_validation_seeds(
    repo_root: Path, short_scenario: Path, tmp_path: Path
) -> None:
    # in the second scenario, all traffic comes from one side
    one_sided = tmp_path / "one_sided.yaml"
    content = yaml.safe_load(short_scenario.read_text())
    entries = content["demand"]["entries_veh_per_h"]
    content["demand"]["entries_veh_per_h"] = {edge: [0 if number else 1500] * 4 for number, edge in enumerate(entries)}
    one_sided.write_text(yaml.safe_dump({**content, "name": "one_sided"}))
    out = tmp_path / "out"
    candidates = ("static", "gap_out", "max_pressure")
    words = ("--scenarios", str(short_scenario), str(one_sided), "--seeds", "1", "--controllers", "random", *candidates)
    first = evaluate(repo_root, short_scenario, out, *words)
    assert first.returncode == 0, first.stderr

    stored = (out / "reference_episodes.jsonl").read_text()
    episodes = {
        (each["scenario"], each["controller"], each["seed"]): each for each in map(json.loads, stored.split("\n")[:-1])
    }
    assert sorted(episodes) == sorted(itertools.product(("four_way", "one_sided"), candidates, (501, 502)))
    references = {}
    for scenario in ("four_way", "one_sided"):
        delays_s = {
            name: sum(episodes[scenario, name, seed]["delay_s"] for seed in (501, 502)) / 2 for name in candidates
        }
        best, second, _ = sorted(candidates, key=delays_s.__getitem__)
        references[scenario] = best
        told = f"reference: {best}, delay {delays_s[best]:.1f} s on validation seeds 501, 502; second: {second}, "
        assert told in first.stdout
    with (out / "summary.csv").open() as file:
        found = {(row["scenario"], row["reference"]) for row in csv.DictReader(file)}
    assert found == {*references.items(), ("all scenarios", "best_classical")}
    # the episodes of the choice are in no result
    results = (out / "results.json").read_text()
    assert {(row["scenario"], row["reference"], *row["seeds"]) for row in json.loads(results)} == {
        (scenario, reference, 1001) for scenario, reference in references.items()
    }

    again = evaluate(repo_root, short_scenario, out, *words)
    assert "12 of 12 episodes that choose the reference are there already" in again.stdout
    assert (out / "reference_episodes.jsonl").read_text() == stored
    assert (out / "results.json").read_text() == results


@pytest.mark.parametrize(
    ("words", "reference"),
    [(("random", "static"), "static"), (("static", "gap_out", "random", "--reference", "random"), "random")],
)
def test_a_single_candidate_is_the_reference_without_a_choice(
    repo_root: Path, short_scenario: Path, tmp_path: Path, words: tuple[str, ...], reference: str
) -> None:
    done = evaluate(repo_root, short_scenario, tmp_path, "--seeds", "1", "--end", "60", "--controllers", *words)
    assert done.returncode == 0, done.stderr
    assert f"vs {reference}" in done.stdout
    assert not (tmp_path / "reference_episodes.jsonl").exists()


def test_a_sumocfg_of_someone_else_is_evaluated(repo_root: Path, tmp_path: Path) -> None:
    done = evaluate(
        repo_root, "sumo:rilsa1", tmp_path, "--seeds", "1", "--end", "120", "--controllers", "static", "max_pressure"
    )
    assert done.returncode == 0, done.stderr
    assert "rilsa1" in done.stdout


def test_the_conditions_of_resco_come_with_its_published_delays(repo_root: Path, tmp_path: Path) -> None:
    words = ("--protocol", "resco", "--seeds", "1", "--controllers", "longest_queue")
    done = evaluate(repo_root, "resco:ingolstadt1", tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "RESCO: IDQN" in done.stdout
    [record] = map(json.loads, (tmp_path / "episodes.jsonl").read_text().splitlines())
    assert record["greens_outside_bounds"] == 0 and 7 <= record["mean_green_s"] <= 60
    page = (tmp_path / "report.html").read_text()
    assert "7–60 s" in page and "one decision every 10 s" in page and "every yellow lasts 3 s" in page


@pytest.mark.parametrize(
    ("scenario", "words", "message"),
    [
        ("cologne1", (), "--protocol resco does not have the scenario 'cologne1': did you mean 'resco:cologne1'"),
        ("resco:cologne1", ("--duration", "600"), "leave out --begin, --end, --duration"),
        ("resco:cologne1", ("--green-bounds", "same"), "--green-bounds"),
    ],
)
def test_the_conditions_of_resco_are_for_its_networks_and_whole(
    repo_root: Path, tmp_path: Path, scenario: str, words: tuple[str, ...], message: str
) -> None:
    done = evaluate(repo_root, scenario, tmp_path, "--protocol", "resco", "--controllers", "static", *words)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not (tmp_path / "episodes.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--controllers", "static", "max_presure"), "did you mean 'max_pressure'"),
        (("--controllers", "static", "llm:x"), "write llm:NAME=MODEL"),
        (("--controllers", "llm:x=/no"), "/no"),
        (("--controllers", "student:x"), "write student:NAME=FILE"),
        (("--controllers", "student:a/b=s.json"), "with a name of letters, digits"),
        (("--controllers", "student:x=/no/s.json"), "cannot read the student /no/s.json"),
        (("--controllers", "static", "static"), "two controllers are named 'static'"),
        (("--controllers", "static", "--reference", "lookahead"), "the reference 'lookahead' does not take part"),
        (("--controllers", "random", "lookahead"), "no classical controller takes part (random, lookahead)"),
        (("--controllers", "static", "--seeds", "ten"), "'ten' is not a whole number of at least 1"),
        (("--controllers", "static", "--seeds", "0"), "'0' is not a whole number of at least 1"),
        (("--controllers", "static", "--warm-up", "300"), "nothing is left to measure"),
        (("--controllers", "static", "--teleport", "0"), "choose -1 (never) or at least 1 s"),
        (("--controllers", "llm:x=any", "--base-url", "http://127.0.0.1:9/v1"), "no server answers"),
    ],
)
def test_wrong_words_fail_before_any_episode(
    repo_root: Path, short_scenario: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done = evaluate(repo_root, short_scenario, tmp_path, *words)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "episodes.jsonl").exists()


def test_a_net_without_signals_fails_before_any_episode(repo_root: Path, short_scenario: Path, tmp_path: Path) -> None:
    text = short_scenario.read_text().replace("traffic_light", "priority")
    scenario = tmp_path / "unsignalised.yaml"
    scenario.write_text(text)
    done = evaluate(repo_root, scenario, tmp_path / "out", "--controllers", "max_pressure")
    assert done.returncode == 2 and "has no signal" in done.stderr
    assert not (tmp_path / "out" / "episodes.jsonl").exists()


def test_a_model_is_warned_of_networks_that_it_was_not_trained_on(repo_root: Path, tmp_path: Path) -> None:
    scenarios = traffic_scenarios(["sumo:rilsa1", "sumo:rilsa3"], tmp_path / "scenarios")
    signals = {scenario.name: opened(scenario, tmp_path / scenario.name) for scenario in scenarios}
    seen = {"scenarios": ["rilsa1"], "prompt_versions": [PROMPT_VERSION], "num_junctions": 1, "num_stages": [2, 2]}
    seen |= {name: [1, 999] for name in ("min_green_s", "max_green_s", "green_extension_s")}
    (tmp_path / CARD_FILE).write_text(json.dumps(seen))
    warnings_of = runpy.run_path(str(repo_root / "scripts/evaluate.py"))["warnings_of"]
    model = LocalModelChoice(name="mine", model=tmp_path)
    (line,) = warnings_of(model, scenarios, signals, OWN_PROMPT)
    assert line.startswith(
        "warning: rilsa3 asks mine about decisions that it was not trained on: a junction with 3 stages (trained on 2)."
    )
    (tmp_path / CARD_FILE).write_text(json.dumps(seen | {"num_stages": [2, 3]}))
    assert warnings_of(model, scenarios, signals, OWN_PROMPT) == []
    (tmp_path / CARD_FILE).write_text(json.dumps(seen | {"num_stages": None, "max_green_s": [61, 70]}))
    lines = warnings_of(model, scenarios, signals, OWN_PROMPT)
    assert lines and all("a maximum green of" in line for line in lines)
    (tmp_path / CARD_FILE).unlink()
    assert warnings_of(model, scenarios, signals, OWN_PROMPT) == []
