from __future__ import annotations

import subprocess
import sys

import pytest

from data_tools import inspect_dataset
from tsc.errors import SampleError


def shown(capsys, *arguments):
    inspect_dataset.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_the_summary_counts_decisions_answers_and_ties(write_dataset, capsys):
    printed = shown(capsys, "--input", write_dataset().parent)
    assert printed.startswith("36 decisions\n")
    for part in (
        "scenario demo: 36 decisions, 2 episode(s), 1 junction(s)",
        "better answer: no 12 (33.3 %), tie 12 (33.3 %), yes 12 (33.3 %)",
        "queue_veh_s over 45 s, max_pressure tail, scope junction 36",
        "vehicle-seconds: min 0, median 19.5, p95 30, max 30",
        "15 s       36  yes  33.3 %",
    ):
        assert part in printed


def test_the_summary_says_how_many_samples_break_the_contract(write_dataset, capsys):
    printed = shown(capsys, "--input", write_dataset(change=lambda samples: samples[4].pop("prompt")))
    assert printed.startswith("35 decisions\n  1 more break the contract")


@pytest.mark.parametrize("which", [("--index", 1), ("--id", "demo-e000-t00200-A0")])
def test_one_sample_is_shown_as_a_person_reads_it(write_dataset, capsys, which):
    path = write_dataset()
    printed = shown(capsys, "--input", path, *which)
    for part in (
        f"sample 1 of {path}: demo-e000-t00200-A0",
        "[user]\nGreen for 15 s. Queue 1 veh. Extend?",
        '{"extend": "no"}    costs 90 vehicle-seconds',
        '{"extend": "yes"} saves 30 vehicle-seconds',
        "A0: stage 0, green for 15 s",
        "t00200.xml (",
    ):
        assert part in printed


def test_a_tie_and_a_missing_state_are_said(write_dataset, capsys):
    path = write_dataset()
    (path.parent / "states/e000/t00300.xml").unlink()
    printed = shown(capsys, "--input", path, "--index", 2)
    assert "both answers cost 50 vehicle-seconds: a tie" in printed
    assert "t00300.xml (MISSING)" in printed


@pytest.mark.parametrize(
    ("which", "message"),
    [(("--index", "36"), "has no sample 36: it holds 36"), (("--id", "x"), "no sample has the id 'x' among the 36")],
)
def test_a_sample_that_is_not_there_is_refused(write_dataset, which, message):
    with pytest.raises(SampleError, match=message):
        inspect_dataset.main(["--input", str(write_dataset()), *which])


def test_an_index_among_several_files_is_refused(write_dataset):
    write_dataset("all/a")
    folder = write_dataset("all/b").parents[1]
    with pytest.raises(SampleError, match="--index counts within a file, but there are 2"):
        inspect_dataset.main(["--input", str(folder), "--index", "3"])


def test_a_reader_that_has_seen_enough_ends_it_quietly(write_dataset, repo_root):
    run = subprocess.run(
        f"{sys.executable} -m data_tools.inspect_dataset --input {write_dataset()} --index 1 | head -n 1",
        cwd=repo_root,
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith("sample 1 of ") and run.stderr == ""


def test_a_generated_dataset_is_summarised(small_dataset, capsys):
    printed = shown(capsys, "--input", small_dataset)
    assert "scenario four_way" in printed and "3 episode(s), 1 junction(s)" in printed
    assert "break the contract" not in printed


def test_states_that_cannot_be_replayed_are_named(write_dataset, capsys):
    path = write_dataset()
    (path.parent / "states/e000/t00300.xml").unlink()
    (path.parent / "states/e000/t00200.xml").write_text("changed")
    printed = shown(capsys, "--input", path)
    assert "saved states: 1 changed, 1 missing of 36, such as " in printed
    assert str(path.parent / "states/e000/t00200.xml") in printed


def test_what_both_sides_of_the_split_share_is_counted(write_dataset, capsys):
    def placed(samples):
        for number, sample in enumerate(samples):
            sample["split"] = "val" if number % 2 else "train"

    printed = shown(capsys, "--input", write_dataset(change=placed))
    assert "in train and in val: 2 episodes, 0 states, " in printed
    assert "not split yet" in shown(capsys, "--input", write_dataset("plain"))


def test_the_page_has_the_figures_of_the_summary(small_dataset, capsys, tmp_path):
    page = tmp_path / "new/page.html"
    printed = shown(capsys, "--input", small_dataset, "--html", page)
    html = page.read_text()
    assert "http" not in html.replace("http-equiv", "")
    (answers,) = (line.removeprefix("  better answer: ") for line in printed.splitlines() if "better answer" in line)
    assert answers in html and "How far the two answers lie apart" in html and "<td>A0</td>" in html
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]
