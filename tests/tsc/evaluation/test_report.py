"""The report of real, short episodes."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.tsc.sumo_process import in_new_process
from tsc.cost.outcome import OutcomeSettings
from tsc.episodes.runner import EpisodeJob, run_job
from tsc.episodes.trace import load_trace
from tsc.evaluation.figures import busiest_window, smoothed
from tsc.evaluation.metrics import METRICS
from tsc.evaluation.protocol import load_protocol
from tsc.evaluation.reference import Reference
from tsc.evaluation.report import write_results
from tsc.evaluation.reported import ReportedController, ReportedScenario, ReportedTraining
from tsc.evaluation.traces import decisions_file, trace_file
from tsc.evaluation.watch_command import WatchCommand
from tsc.junction.signal_settings import SignalSettings
from tsc.junction.timing import Timing
from tsc.sumo.running import SumoFiles

SEEDS = (1001, 1002)
RULES = ("static", "max_pressure", "gap_out")
END_S, WARM_UP_S = 300, 60
HOSTILE = '</pre><script>alert(1)</script><img src=x onerror="alert(2)">\u202e{{ 7 * 7 }} & {% raw %} \ud800'

SCENARIO = ReportedScenario(
    name="four_way",
    note="a note with <b>markup</b>",
    begin_s=0,
    end_s=END_S,
    warm_up_s=WARM_UP_S,
    timing=Timing(),
    junctions=["A0"],
    reference=Reference(name="max_pressure"),
    not_applicable={"webster": "its demand is not <known>"},
)


def controller(name: str, kind: str = "") -> ReportedController:
    return ReportedController(name=name, kind=kind or name, description=f"what {name} does", bounds="Keeps to both.")


def _run(out: Path, files: SumoFiles) -> list[dict[str, Any]]:
    return [
        run_job(
            EpisodeJob(
                scenario="four_way",
                controller=kind,
                kind=kind,
                seed=seed,
                fingerprint=f"{kind}{seed}",
                files=replace(files, seed=seed),
                end_s=END_S,
                warm_up_s=WARM_UP_S,
                signals=SignalSettings(),
                lookahead=OutcomeSettings(),
                trace_file=trace_file(out, "four_way", kind, seed),
            ),
            None,
        )
        for kind in RULES
        for seed in SEEDS
    ]


def decision(time_s: float, answer: str | None, **more: Any) -> dict[str, Any]:
    return {
        "time_s": time_s,
        "junction_id": "A0",
        "stage": 0,
        "elapsed_green_s": 10.0,
        "prompt": [{"role": "system", "content": "You run a signal."}, {"role": "user", "content": f"At {time_s}"}],
        "answer": answer,
        "decision": "yes",
        "fallback": None,
        "latency_s": 0.2,
        "prompt_tokens": 70,
        "completion_tokens": 7,
        "outcomes": {"yes": 30.0, "no": 20.0},
        **more,
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, files: SumoFiles) -> tuple[Path, list[dict[str, Any]]]:
    """A folder with traces and decisions, and the records: three rules, and a "model" that decides as gap_out does."""
    out = tmp_path_factory.mktemp("evaluation")
    episodes = in_new_process(_run, out, files)
    for record in [record for record in episodes if record["controller"] == "gap_out"]:
        seed = record["seed"]
        shutil.copy(trace_file(out, "four_way", "gap_out", seed), trace_file(out, "four_way", "model", seed))
        episodes.append({**record, "controller": "model", "kind": "llm", "invalid_answers": 1, "latency_p50_s": 0.2})
    lines = [
        decision(70.0, '{"extend": "yes"}'),
        decision(80.0, HOSTILE, fallback="invalid", outcomes={"yes": 90.0, "no": 20.0}),
        decision(90.0, None, fallback="late", decision="no"),
    ]
    path = decisions_file(out, "four_way", "model", SEEDS[0])
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out, episodes


@pytest.fixture(scope="module")
def written(finished: tuple[Path, list[dict[str, Any]]]) -> tuple[Path, str]:
    """The folder with a complete report, and the text for the console."""
    return finished[0], write(*finished)


@pytest.fixture
def out(finished: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> Iterator[Path]:
    """A copy that a test may break."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    yield tmp_path


def write(out: Path, episodes: list[dict[str, Any]], **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "scenarios": [SCENARIO],
        "controllers": [*map(controller, RULES), controller("model", "llm")],
        "settings": {"warm_up_s": WARM_UP_S, "llm": {"max_answer_tokens": 16}},
        "command": "python scripts/evaluate.py --out 'a <folder>'",
        "reference": "max_pressure",
    }
    return write_results(out, episodes=episodes, **(arguments | changes))


class Page(HTMLParser):
    """The elements with their attributes, and the text. Fails if a closing tag does not match the open element."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(out: Path) -> Page:
    return Page((out / "report.html").read_text(encoding="utf-8"))


FIGURES = ("paired_differences", "queue_over_time", "cumulative_trips", "signal_timeline")


def test_the_report_stands_alone_and_its_figures_are_also_files(
    written: tuple[Path, str],
) -> None:
    out, text = written
    page = page_of(out)
    assert {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object"} == set()
    images = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    stored = [(out / "figures" / f"four_way-{name}.png").read_bytes() for name in FIGURES]
    assert [base64.b64decode((image or "").removeprefix("data:image/png;base64,")) for image in images] == stored
    assert all(data.startswith(b"\x89PNG") and len(data) > 10_000 for data in stored)
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action"):
                assert (value or "").startswith("data:image/png;base64,")
    source = (out / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?://", source)
    for metric in METRICS.values():
        assert metric.label in page.text and metric.definition in page.text
    assert "webster cannot run here: its demand is not <known>" in page.text
    assert "a note with <b>markup</b>" in page.text
    assert "python scripts/evaluate.py --out 'a <folder>'" in page.text
    for name in (*RULES, "model"):
        assert name in text and name in page.text


def test_a_hostile_answer_is_shown_in_full_and_does_nothing(written: tuple[Path, str]) -> None:
    shown = HOSTILE.replace("\u202e", "\\u202e").replace("\ud800", "\\ud800")
    # among the costliest, and among those that could not be read
    assert page_of(written[0]).text.count(shown) == 2
    assert "<script" not in (written[0] / "report.html").read_text(encoding="utf-8")


def test_disagreements_are_counted_and_told_with_prompt_and_answer(written: tuple[Path, str]) -> None:
    text = " ".join(page_of(written[0]).text.split())
    assert "Of 3 decisions, 2 (66.7 %) were not the cheaper one; 0 were ties." in text
    assert "The disagreements cost 40.0 each on average, and 80 together." in text
    assert "In 1 of them, the fallback decided instead of the model" in text
    # the costliest first; the beginning that the prompts share once
    assert text.index("1. 70 veh·s") < text.index("At 80.0") < text.index("2. 10 veh·s") < text.index("At 70.0")
    assert text.count("You run a signal.") == 1


def test_the_costliest_decision_comes_with_the_command_that_shows_it(
    written: tuple[Path, str], out: Path, finished: tuple[Path, list[dict[str, Any]]]
) -> None:
    assert "scripts/watch.sh" not in page_of(written[0]).text
    watch = WatchCommand(scenarios={"four_way": "mine.yaml"}, controllers={"model": "llm:model=a b"}, options=[])
    write(out, finished[1], watch=watch)
    command = "bash scripts/watch.sh --scenario mine.yaml --controllers 'llm:model=a b' --seed "
    assert f"{command}{SEEDS[0]} --junction A0" in page_of(out).text


def test_a_trained_model_comes_with_its_curve_and_what_it_was_made_of(
    out: Path, finished: tuple[Path, list[dict[str, Any]]]
) -> None:
    training = ReportedTraining(facts={"commit": "abc", "learning rate": "0.01"}, measure="loss", curve={1: 2.0, 9: 1})
    no_curve = replace(training, facts={"commit": "def"}, curve={})
    models = [replace(controller(name, "llm"), training=it) for name, it in (("model", training), ("other", no_curve))]
    write(out, finished[1], controllers=[*map(controller, RULES), *models])
    page = page_of(out)
    _, text = page.text.split("How the models were trained")
    assert re.search("model.*other.*commit.*abc.*def.*learning rate.*0.01.*–", text, re.DOTALL)
    [curves] = [each for tag, each in page.elements if tag == "img" and "loss" in (each["alt"] or "")]
    assert curves["alt"] == "model: loss from 2 to 1 at step 9"


def test_models_are_compared_with_each_other(out: Path, finished: tuple[Path, list[dict[str, Any]]]) -> None:
    better = [
        {**record, "controller": "trained", "mean_queue_veh": record["mean_queue_veh"] - 0.5}
        for record in finished[1]
        if record["controller"] == "model"
    ]
    models = [controller(name, "llm") for name in ("model", "trained")]
    write(out, [*finished[1], *better], controllers=[*map(controller, RULES), *models])
    text = page_of(out).text.split("Models against each other")[1]
    assert re.search(r"trained against model\s*−0\.50 ", text)
    write(out, finished[1])
    assert "Models against each other" not in page_of(out).text


def test_cycle_and_green_shares_are_those_of_the_traces(out: Path, finished: tuple[Path, list[dict[str, Any]]]) -> None:
    for seed in SEEDS:
        path = trace_file(out, "four_way", "static", seed)
        cycle = [0] * 30 + [-1] * 5 + [1] * 20 + [-1] * 5  # 60 s, of which 50 % and 33 % are green
        replace(load_trace(path), stage=np.resize(np.array(cycle, dtype=np.int8), (END_S, 1))).write(path)
    write(out, finished[1])
    text = page_of(out).text.split("Cycle [s] and shares of the green stages")[1]
    assert re.search(r"A0\s*60\s*50 / 33 %", text)


def test_the_junction_is_drawn_and_its_approaches_are_called_as_in_the_picture(
    out: Path, finished: tuple[Path, list[dict[str, Any]]]
) -> None:
    picture = b"\x89PNG drawn"
    names = {("A0", "left0A0"): "D, from west (left0A0)"}
    write(out, finished[1], scenarios=[replace(SCENARIO, sketches={"A0": picture}, approach_names=names)])
    page = page_of(out)
    sources = [each["src"] for tag, each in page.elements if tag == "img"]
    assert sources[0] == "data:image/png;base64," + base64.b64encode(picture).decode()
    assert (out / "figures/four_way-junction0.png").read_bytes() == picture
    assert "D, from west (left0A0)" in page.text and "right0A0" in page.text


def test_the_same_episodes_give_the_same_bytes(
    written: tuple[Path, str], out: Path, finished: tuple[Path, list[dict[str, Any]]]
) -> None:
    names = ["report.html", "summary.csv", "results.json", *(f"figures/four_way-{name}.png" for name in FIGURES)]
    # measured times differ in every run of an episode
    write(out, [{**record, "wall_s": 99.9} for record in finished[1][::-1]])
    for name in names:
        assert (out / name).read_bytes() == (written[0] / name).read_bytes(), name
    assert not list(out.rglob("*.tmp"))


def test_every_number_of_a_record_is_defined(finished: tuple[Path, list[dict[str, Any]]]) -> None:
    about = {"scenario", "controller", "kind", "seed", "fingerprint", "begin_s", "end_s", "warm_up_s"}
    about |= {"worst_approach", "approaches", "wall_s"}
    assert finished[1][0].keys() - about == METRICS.keys()


def test_the_table_has_the_means_of_the_records(
    written: tuple[Path, str], finished: tuple[Path, list[dict[str, Any]]]
) -> None:
    summary = pd.read_csv(written[0] / "summary.csv").set_index(["controller", "metric"])
    for name in (*RULES, "model"):
        for metric in ("mean_queue_veh", "delay_s", "greens"):
            values = [record[metric] for record in finished[1] if record["controller"] == name]
            assert summary.loc[(name, metric), "mean"] == pytest.approx(np.mean(values), rel=1e-4)


def test_what_an_interrupted_evaluation_lacks_is_left_out(
    out: Path, finished: tuple[Path, list[dict[str, Any]]]
) -> None:
    trace_file(out, "four_way", "static", SEEDS[0]).unlink()
    for seed in SEEDS:
        trace_file(out, "four_way", "gap_out", seed).unlink()
    episodes = [record for record in finished[1] if (record["controller"], record["seed"]) != ("static", SEEDS[1])]
    write(out, episodes)
    page = page_of(out)
    assert len([tag for tag, _ in page.elements if tag == "img"]) == 4
    assert "1 of 2 seeds" in page.text


@pytest.mark.parametrize(
    "kept",
    [
        lambda record: record["controller"] == "static" and record["seed"] == SEEDS[0],
        lambda record: record["controller"] == "max_pressure",
        lambda record: record["controller"] in ("static", "model"),
        lambda record: False,
    ],
    ids=["one controller, one seed", "the reference alone", "no reference", "nothing"],
)
def test_a_report_of_little_is_written_too(out: Path, finished: tuple[Path, list[dict[str, Any]]], kept: Any) -> None:
    episodes = [record for record in finished[1] if kept(record)]
    refused = {"scenario": "four_way", "controller": "webster", "seed": 1001, "not_applicable": "no demand"}
    write(
        out,
        [*episodes, refused],
        controllers=[controller("webster"), *map(controller, RULES), controller("model", "llm")],
    )
    page = page_of(out)
    assert "max_pressure" in page.text
    assert (len([tag for tag, _ in page.elements if tag == "img"]) > 0) == bool(episodes)


def test_two_scenarios_get_a_table_of_both(out: Path, finished: tuple[Path, list[dict[str, Any]]]) -> None:
    twin = [{**record, "scenario": "twin"} for record in finished[1]]
    write(out, [*finished[1], *twin], scenarios=[SCENARIO, replace(SCENARIO, name="twin")])
    assert "All scenarios together" in page_of(out).text


def test_each_scenario_has_its_own_reference_on_the_page(
    out: Path, finished: tuple[Path, list[dict[str, Any]]]
) -> None:
    twin = [{**record, "scenario": "twin"} for record in finished[1]]
    delays_s = {"gap_out": 10.0, "max_pressure": 12.5, "static": 20.0}
    of_twin = replace(SCENARIO, name="twin", reference=Reference(name="gap_out", delays_s=delays_s, seeds=[501, 502]))
    write(out, [*finished[1], *twin], scenarios=[SCENARIO, of_twin], reference="best_classical")
    text = page_of(out).text
    assert "gap_outdelay 10.0 s on validation seeds 501, 502second: max_pressure, 12.5 s (+25 %)" in text
    for against in ("max_pressure", "gap_out", "best_classical"):
        assert f"against {against}veh" in text
    summary = pd.read_csv(out / "summary.csv").set_index(["scenario", "controller", "metric"])
    for scenario, reference in (("four_way", "max_pressure"), ("twin", "gap_out")):
        of_scenario = summary.loc[scenario]
        assert set(of_scenario["reference"]) == {reference}
        queues = of_scenario.xs("mean_queue_veh", level="metric")
        expected = queues["mean"] - queues.loc[reference, "mean"]
        assert queues["difference"].drop(reference).to_dict() == pytest.approx(
            expected.drop(reference).to_dict(), abs=1e-4
        )


def test_published_delays_stand_beside_ours_with_their_source(
    out: Path, finished: tuple[Path, list[dict[str, Any]]], repo_root: Path
) -> None:
    protocol = load_protocol(repo_root / "configs/protocols/resco.yaml")
    episodes = [{**record, "scenario": "ingolstadt1"} for record in finished[1]]
    text = write(out, episodes, scenarios=[replace(SCENARIO, name="ingolstadt1")], protocol=protocol)
    lines = text.split("RESCO publishes\n")[1].splitlines()[1:]
    delays = dict(line.strip().rsplit(maxsplit=1) for line in lines)
    names = ["fixed time", "greedy", "max pressure", "IDQN", "IPPO", "MPLight", "FMA2C"]
    assert list(delays) == [*(f"RESCO: {name}" for name in names), *RULES, "model"]
    # RESCO's graph.py prints these, rounded here; it has none of MPLight
    assert list(delays.values())[: len(names)] == ["39.4", "28.3", "23.6", "21.5", "20.9", "–", "27.0"]
    means_s = {name: np.mean([each["delay_s"] for each in episodes if each["controller"] == name]) for name in RULES}
    assert {name: delays[name] for name in RULES} == {name: f"{mean_s:.1f}" for name, mean_s in means_s.items()}
    page = " ".join(page_of(out).text.split())
    assert protocol.source in page and all(line in page for line in protocol.differs)
    html = (out / "report.html").read_text()
    assert all(f'<th scope="row">{name}</th><td>{delay}<' in html for name, delay in delays.items())


def test_the_timeline_shows_the_longest_queue(finished: tuple[Path, list[dict[str, Any]]]) -> None:
    trace = load_trace(trace_file(finished[0], "four_way", "static", SEEDS[0]))
    junction_id, begin, end = busiest_window(trace, WARM_UP_S)
    queue = smoothed(trace.queue_on_veh(trace.programs[junction_id]["lanes"]), 60)
    assert (junction_id, begin, end) == ("A0", WARM_UP_S, END_S)
    assert queue[begin:end].max() == queue[WARM_UP_S:].max() > 0


def test_smoothing_takes_the_mean_of_the_seconds_before() -> None:
    assert smoothed(np.array([2, 4, 6, 8]), 2).tolist() == [2, 3, 5, 7]
