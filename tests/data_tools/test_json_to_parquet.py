"""Conversion to Parquet, on real files: what is refused and how it is told, what is written, and who can read it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools import json_to_parquet
from data_tools.dataset_split import Placed, joined_groups, split
from tests.data_tools.nets import two_signals
from tsc.cost.outcome import OutcomeSettings
from tsc.errors import ConfigError, SampleError, ScenarioError
from tsc.junction.clock import Clock
from tsc.junction.decision import Decision, parse_answer
from tsc.replays.embedded_files import MAX_SCENARIO_BYTES, UnpackedFiles
from tsc.replays.request import ReplayRequest
from tsc.replays.state_archive import state_bytes
from tsc.sumo.version import installed_sumo_version

REPO_ROOT = Path(__file__).resolve().parents[2]
NET = two_signals()
ROUTES = "<routes/>\n"
NAMES = ("train.parquet", "val.parquet", "sft_train.parquet", "sft_val.parquet")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "parquet"


def convert(path, out, *more):
    json_to_parquet.main(["--input", str(path), "--output", str(out), *more])


def rows(out, name):
    return pq.read_table(out / name).to_pylist()


def refusal(path, out, capsys, *more):
    """The faults that are printed when the conversion is refused; nothing may have been written."""
    with pytest.raises(SampleError) as refused:
        convert(path, out, *more)
    assert not list(out.glob("*.parquet")) and not list(out.glob(".*"))
    printed = capsys.readouterr().err.splitlines()
    assert printed == (out / "errors.txt").read_text().splitlines()
    assert str(out / "errors.txt") in str(refused.value)
    return printed


def put(index, **values):
    """A change to a dataset: sample `index` gets these values; `outer__inner` names an inner field; ... deletes."""

    def change(samples):
        for name, value in values.items():
            *path, last = name.split("__")
            place = samples[index]
            for part in path:
                place = place[part]
            if value is ...:
                del place[last]
            else:
                place[last] = value

    return change


CLOCK = {"mode": "green", "stage": 0, "elapsed_green_s": 15.0}

# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put(3, min_green=...), ["min_green is missing"]),
        (put(3, min_green="ten"), ['min_green is "ten"', "valid number"]),
        (put(3, prompt=[]), ["prompt is []", "at least 1 item"]),
        (put(3, prompt=[{"role": "robot", "content": "x"}]), ['prompt.0.role is "robot"', "'system', 'user'"]),
        (put(3, current_green_elapsed=5.0), ["current_green_elapsed of 5 s", "min_green 10 s", "max_green 60 s"]),
        (put(3, current_green_elapsed=60.0), ["current_green_elapsed of 60 s", "below max_green 60 s"]),
        (put(3, max_green=10), ["max_green of 10 s does not exceed min_green of 10 s"]),
        (put(3, min_green=9.5), ["min_green is 9.5", "whole number of seconds"]),
        (put(3, expert_decision="maybe"), ['expert_decision is "maybe"', "'yes' or 'no'"]),
        (put(3, expert_decision="yes"), ["expert_decision is 'yes'", "yes 100", "no 80.5", "say no"]),
        (put(3, outcomes__settings__tail="greedy"), ["outcomes: settings: tail is 'greedy'", "max_pressure"]),
        (put(3, schema_version=2), ["schema_version is 2", "reads schema version 1"]),
        (put(3, split="test"), ['split is "test"', "'train' or 'val'"]),
        (put(3, state_file="states/gone.xml"), ["state_file is 'states/gone.xml'", "no such file in "]),
        (put(3, state_sha256="0" * 64), ["state_sha256 is 0000", "has ", "generate the dataset again"]),
        (put(3, state_sha256="abc"), ['state_sha256 is "abc"', "pattern"]),
        (put(3, clocks={"B0": CLOCK}), ["clocks has no entry for the sample's own junction 'A0'", '["B0"]']),
        (
            put(3, junction_id="X9", clocks={}),
            ["junction_id is 'X9'", "no traffic light of that name", '["A0", "B0"]'],
        ),
        (put(3, clocks__A0__elapsed_green_s=20.0), ["clocks.A0 says green for 20 s", "current_green_elapsed 15 s"]),
        (put(3, sumo=...), ["sumo is missing", "--sumocfg"]),
        (put(3, sumo__version="1.20.0"), ["sumo.version is '1.20.0'", installed_sumo_version(), "libsumo==1.20.*"]),
        (put(3, sumo__net_file="gone.net.xml"), ["sumo names 'gone.net.xml'", "no such file"]),
        (
            put(3, sumo__net_sha256="0" * 64),
            ["sumo names 'scenario/net.net.xml' with digest 000", "put the file"],
        ),
        (put(3, sumo__route_sha256=["0" * 64]), ["sumo names 'scenario/cars.rou.xml' with digest 000"]),
        (put(3, sumo__route_sha256=[]), ["sumo: route_sha256 has 0 digests for 1 route_files"]),
    ],
)
def test_a_faulty_sample_is_named_with_file_index_id_field_and_what_is_allowed(
    write_dataset, out, capsys, change, expected
):
    path = write_dataset(change=change)
    (line,) = refusal(path, out, capsys)
    assert line.startswith(f"{path}: sample 3 (demo-e000-t00400-A0): ")
    for part in expected:
        assert part in line


def test_all_faults_are_reported_at_once(write_dataset, out, capsys):
    def change(samples):
        put(1, min_green="ten", max_green=...)(samples)
        put(5, state_sha256="0" * 64, clocks__A0__elapsed_green_s=20.0)(samples)
        samples[9] = 7

    lines = refusal(write_dataset(change=change), out, capsys)
    assert [line.split(": ")[1].split(" (")[0] for line in lines] == ["sample 1"] * 2 + ["sample 5"] * 2 + ["sample 9"]
    assert "the sample is 7: must be a JSON object" in lines[-1]


def test_a_fault_in_a_file_that_all_samples_share_is_one_line(write_dataset, out, capsys):
    path = write_dataset()
    (path.parent / "scenario/net.net.xml").write_text("<net/>")
    (line,) = refusal(path, out, capsys)
    assert ": sample 0 (demo-e000-t00100-A0) and 35 more: sumo names 'scenario/net.net.xml'" in line


def test_many_faults_are_printed_in_part_and_listed_in_full(write_dataset, out, capsys):
    def change(samples):
        for sample in samples:
            sample["min_green"] = "ten"

    with pytest.raises(SampleError, match="72 of 72 samples have faults"):
        convert(write_dataset(change=change, num_episodes=4), out)
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 51 and printed[-1] == "… and 22 more"
    assert len((out / "errors.txt").read_text().splitlines()) == 72


def test_one_id_for_two_samples_is_refused(write_dataset, out, capsys):
    path = write_dataset(change=put(4, id="demo-e000-t00100-A0"))
    (line,) = refusal(path, out, capsys)
    assert "sample 4" in line and f"id is also that of sample 0 of {path}" in line


def test_one_id_in_two_files_of_a_folder_is_refused(write_dataset, out, capsys):
    write_dataset("a/demo")
    path = write_dataset("b/demo", change=lambda samples: samples[2].update(id="a/demo-e000-t00100-A0"))
    (line,) = refusal(path.parents[2], out, capsys)
    assert line.startswith(f"{path}: sample 2 ")


def test_a_broken_array_is_named_with_line_and_column(write_dataset, out, capsys):
    path = write_dataset()
    text = path.read_text().splitlines()
    number = next(number for number, line in enumerate(text) if '"max_green"' in line)
    text[number] = text[number].replace(":", ";")
    path.write_text("\n".join(text))
    (line,) = refusal(path, out, capsys)
    assert line.startswith(f"{path}:{number + 1}:14: broken JSON array: Expecting ':' delimiter")
    assert "what follows was not read" in line


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("[", "1:2", "Expecting value"),
        ("[1 2]", "1:4", "Expecting ',' delimiter"),
        ("[1,\n2]\n]", "3:1", "Extra data"),
        ("[1,", "1:4", "Expecting value"),
    ],
)
def test_an_array_that_breaks_off_is_named_with_line_and_column(out, tmp_path, capsys, text, place, message):
    path = tmp_path / "broken.json"
    path.write_text(text)
    lines = refusal(path, out, capsys)
    assert any(line.startswith(f"{path}:{place}: broken JSON array: {message}") for line in lines)


def test_a_broken_line_is_named_and_the_lines_after_it_are_still_read(write_dataset, out, capsys):
    path = write_dataset(lines=True, change=put(7, min_green=...))
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:40]
    path.write_text("\n".join(lines))
    broken, missing = refusal(path, out, capsys)
    assert broken.startswith(f"{path}:3:") and "broken JSON line" in broken
    assert ": sample 7 (" in missing


def test_a_file_that_is_not_text_is_refused(tmp_path, out, capsys):
    path = tmp_path / "states.json"
    path.write_bytes(b"[\xff]")
    (line,) = refusal(path, out, capsys)
    assert "is not UTF-8 text" in line


def test_a_folder_without_a_dataset_is_refused(tmp_path, out):
    with pytest.raises(SampleError, match=r"no grpo_dataset\.json"):
        convert(tmp_path, out)


def test_an_input_that_does_not_exist_is_refused(tmp_path, out):
    with pytest.raises(SampleError, match="does not exist"):
        convert(tmp_path / "gone", out)


def test_a_dataset_without_samples_is_refused(tmp_path, out):
    (tmp_path / "grpo_dataset.json").write_text("[]")
    with pytest.raises(SampleError, match="no sample to train on: 0 read"):
        convert(tmp_path, out)


@pytest.mark.parametrize("option", [("--block-s", "0"), ("--val-fraction", "1")])
def test_an_option_out_of_bounds_is_refused(write_dataset, out, option):
    with pytest.raises(ConfigError, match=option[0]):
        convert(write_dataset(), out, *option)


def test_the_program_ends_with_status_2_and_its_message(tmp_path):
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "data_tools.json_to_parquet",
            "--input",
            tmp_path / "gone",
            "--output",
            tmp_path / "out",
        ],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: ") and "Traceback" not in run.stderr


# -- what is left out, and said so -------------------------------------------------------------------------------------


def test_skip_leaves_faulty_samples_out_and_says_how_many(write_dataset, out, capsys):
    def change(samples):
        put(0, min_green="ten", max_green=...)(samples)
        put(3, state_file="states/gone.xml")(samples)

    convert(write_dataset(change=change), out, "--on-error", "skip", "--ties", "keep")
    captured = capsys.readouterr()
    assert "2 of 36 samples have faults" in captured.err and "left out" in captured.err
    assert len((out / "errors.txt").read_text().splitlines()) == 3
    assert len(rows(out, "train.parquet")) + len(rows(out, "val.parquet")) == 34


def test_skip_goes_on_after_a_broken_line(write_dataset, out, capsys):
    path = write_dataset(lines=True)
    path.write_text(path.read_text()[:-200])  # as a killed generator leaves it
    convert(path, out, "--on-error", "skip", "--ties", "keep")
    assert "1 of 36 samples have faults" in capsys.readouterr().err
    assert len(rows(out, "train.parquet")) + len(rows(out, "val.parquet")) == 35


def test_errors_of_an_earlier_run_do_not_stay(write_dataset, out):
    with pytest.raises(SampleError):
        convert(write_dataset(change=put(3, min_green="ten")), out)
    convert(write_dataset(), out)
    assert not (out / "errors.txt").exists()


def test_a_refused_conversion_leaves_the_files_of_an_earlier_one(write_dataset, out):
    convert(write_dataset(), out)
    before = {name: (out / name).read_bytes() for name in NAMES}
    with pytest.raises(SampleError):
        convert(write_dataset(change=put(3, min_green="ten")), out)
    assert {name: (out / name).read_bytes() for name in NAMES} == before


def test_ties_are_dropped_unless_wanted_and_never_reach_sft(write_dataset, out, capsys):
    path = write_dataset()  # every third sample of 36 is a tie
    convert(path, out, "--sft-fraction", "1")
    assert "12 ties left out" in capsys.readouterr().out
    assert sum(len(rows(out, name)) for name in NAMES[:2]) == 24
    assert sum(len(rows(out, name)) for name in NAMES[2:]) == 24
    convert(path, out, "--sft-fraction", "1", "--ties", "keep")
    assert sum(len(rows(out, name)) for name in NAMES[:2]) == 36
    assert sum(len(rows(out, name)) for name in NAMES[2:]) == 24


def test_balance_leaves_each_answer_equally_often_the_better_one_in_training_alone(small_dataset, tmp_path):
    convert(small_dataset, tmp_path / "all", "--sft-fraction", "1")
    convert(small_dataset, tmp_path / "balanced", "--sft-fraction", "1", "--balance")

    def answers(folder, name):
        truths = [json.loads(row["reward_model"]["ground_truth"]) for row in rows(folder, name)]
        return Counter("yes" if truth["outcomes"]["yes"] < truth["outcomes"]["no"] else "no" for truth in truths)

    every, balanced = answers(tmp_path / "all", "train.parquet"), answers(tmp_path / "balanced", "train.parquet")
    assert every["yes"] != every["no"]
    assert balanced["yes"] == balanced["no"] == min(every.values())
    taught = Counter(row["messages"][-1]["content"] for row in rows(tmp_path / "balanced", "sft_train.parquet"))
    assert taught == {decision.answer: balanced[decision.value] for decision in Decision}
    for name in ("val.parquet", "sft_val.parquet"):
        assert rows(tmp_path / "balanced", name) == rows(tmp_path / "all", name)


def test_sft_can_be_balanced_alone(small_dataset, tmp_path):
    for folder, *balance in [("all",), ("balanced", "--balance"), ("sft", "--balance", "sft")]:
        convert(small_dataset, tmp_path / folder, "--sft-fraction", "1", *balance)
    assert rows(tmp_path / "sft", "train.parquet") == rows(tmp_path / "all", "train.parquet")
    assert rows(tmp_path / "sft", "sft_train.parquet") == rows(tmp_path / "balanced", "sft_train.parquet")


# -- what is written ---------------------------------------------------------------------------------------------------


def test_a_row_holds_what_the_reward_needs(write_dataset, out):
    path = write_dataset()
    convert(path, out)
    row = next(row for row in rows(out, "train.parquet") + rows(out, "val.parquet") if row["extra_info"]["index"] == 1)
    sample = json.loads(path.read_text())[1]
    assert row["data_source"] == "tsc/demo"
    assert row["prompt"] == sample["prompt"]
    assert row["reward_model"]["style"] == "rule"
    assert row["extra_info"]["sample_id"] == sample["id"]
    truth = json.loads(row["reward_model"]["ground_truth"])
    assert truth["outcomes"] == sample["outcomes"]
    request = ReplayRequest.from_json(truth["request"])
    assert request.state_path.is_file() and request.state_sha256 == sample["state_sha256"]
    assert (request.junction_id, request.current_green_elapsed_s, request.min_green_s) == ("A0", 15.0, 10)
    assert request.clocks == {name: Clock(**clock) for name, clock in sample["clocks"].items()}
    assert request.sumo.net_file == "scenario/net.net.xml"
    assert Path(request.dataset_dir).is_absolute()


def test_the_sft_answer_is_the_cheaper_one_in_the_exact_form(write_dataset, out):
    path = write_dataset()
    convert(path, out, "--sft-fraction", "1")
    outcome_of_prompt = {}
    for sample in json.loads(path.read_text()):
        outcome_of_prompt[json.dumps(sample["prompt"])] = sample["outcomes"]
    found = rows(out, "sft_train.parquet") + rows(out, "sft_val.parquet")
    for row in found:
        *prompt, answer = row["messages"]
        outcome = outcome_of_prompt[json.dumps(prompt)]
        assert answer["role"] == "assistant"
        said = parse_answer(answer["content"])
        assert said.form == "exact"
        assert said.decision is (Decision.YES if outcome["yes"] < outcome["no"] else Decision.NO)


def test_sft_gets_part_of_the_training_groups_and_grpo_all(write_dataset, out):
    convert(write_dataset(num_episodes=6), out, "--sft-fraction", "0.5")
    num_train = len(rows(out, "train.parquet"))
    assert 0.3 * num_train < len(rows(out, "sft_train.parquet")) < 0.7 * num_train
    users = {row["prompt"][1]["content"] for row in rows(out, "train.parquet")}
    assert {row["messages"][1]["content"] for row in rows(out, "sft_train.parquet")} <= users


def test_a_folder_of_scenario_folders_and_json_lines_convert(write_dataset, out, capsys):
    write_dataset("all/north")
    path = write_dataset("all/south", lines=True)
    convert(path.parents[1], out)
    sources = {row["data_source"] for row in rows(out, "train.parquet")}
    assert sources == {"tsc/all/north", "tsc/all/south"}
    assert "72 samples in 2 file(s)" in capsys.readouterr().out


def test_same_input_gives_same_bytes_and_another_seed_another_split(write_dataset, tmp_path):
    path = write_dataset(num_episodes=6)
    for name, seed in (("one", "3"), ("two", "3"), ("three", "4")):
        convert(path, tmp_path / name, "--seed", seed)
    for name in (*NAMES, "summary.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "one/val.parquet").read_bytes() != (tmp_path / "three/val.parquet").read_bytes()


def test_columns_are_compressed_with_zstd(write_dataset, out):
    convert(write_dataset(), out)
    for name in NAMES:
        assert pq.ParquetFile(out / name).metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_kill_while_writing_leaves_no_file_and_the_next_run_cleans_up(write_dataset, out):
    path = write_dataset()
    program = (
        "import os, signal, sys\n"
        "from data_tools import json_to_parquet as tool\n"
        "close, done = tool.ParquetRows.close, []\n"
        "def close_two_then_die(file):\n"
        "    if len(done) == 2:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    close(file); done.append(file)\n"
        "tool.ParquetRows.close = close_two_then_die\n"
        "tool.main(sys.argv[1:])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, "--input", str(path), "--output", str(out)],
        cwd=REPO_ROOT,
        env={**os.environ, "PYTHONPATH": str(REPO_ROOT)},
        check=False,
    )
    assert run.returncode == -signal.SIGKILL
    assert not list(out.glob("*.parquet"))
    convert(path, out)
    assert sorted(file.name for file in out.iterdir()) == sorted([*NAMES, "summary.json"])


@pytest.mark.parametrize("num_steps", range(10))
def test_a_kill_while_files_are_placed_never_mixes_two_conversions(write_dataset, out, tmp_path, num_steps):
    """Five files are removed and five are placed. The kill comes after num_steps of these steps."""
    path = write_dataset()
    convert(path, out, "--seed", "1")
    old = {name: (out / name).read_bytes() for name in NAMES}
    convert(path, tmp_path / "other", "--seed", "2")
    new = {name: (tmp_path / "other" / name).read_bytes() for name in NAMES}
    # one of the others may happen to be the same
    assert old["train.parquet"] != new["train.parquet"] and old["val.parquet"] != new["val.parquet"]
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from data_tools import json_to_parquet as tool\n"
        "unlink, replace, steps = Path.unlink, os.replace, []\n"
        "def count(path):\n"
        "    if Path(path).suffix in ('.parquet', '.json'):\n"
        f"        if len(steps) == {num_steps}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        steps.append(path)\n"
        "Path.unlink = lambda path, **options: (count(path), unlink(path, **options))\n"
        "os.replace = lambda source, path: (count(path), replace(source, path))\n"
        "tool.main(sys.argv[1:])\n"
    )
    words = ["--input", str(path), "--output", str(out), "--seed", "2"]
    assert subprocess.run([sys.executable, "-c", program, *words], check=False).returncode == -signal.SIGKILL
    left = {name: (out / name).read_bytes() for name in NAMES if (out / name).exists()}
    assert left.items() <= (old if num_steps < 5 else new).items()
    assert ("train.parquet" in left) == (num_steps == 0) == (len(left) == len(NAMES))
    assert "sft_val.parquet" in left or "sft_train.parquet" not in left
    convert(path, out, "--seed", "2")
    assert {name: (out / name).read_bytes() for name in NAMES} == new
    assert sorted(file.name for file in out.iterdir()) == sorted([*NAMES, "summary.json"])


def test_a_second_conversion_into_a_folder_is_refused_until_the_first_has_ended_or_was_killed(write_dataset, out):
    path = write_dataset()
    stopped = (
        "import os, sys, time\n"
        "from data_tools import json_to_parquet as tool\n"
        "def wait(*arguments, **options):\n"
        "    print('writing', flush=True); time.sleep(600)\n"
        "tool.ParquetRows.close = wait\n"
        "tool.main(sys.argv[1:])\n"
    )
    words = ["--input", str(path), "--output", str(out)]
    first = subprocess.Popen([sys.executable, "-c", stopped, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "writing\n"
        program = [sys.executable, str(REPO_ROOT / "data_tools" / "json_to_parquet.py"), *words, "--seed", "2"]
        second = subprocess.run(program, capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert f"error: cannot write Parquet files to {out}: process {first.pid} on " in second.stderr
        assert "wait until it has ended, or choose another folder" in second.stderr
        assert list(out.glob(".unfinished-*"))  # the first one's files are left alone
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    again = subprocess.run(program, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert sorted(file.name for file in out.iterdir()) == sorted([*NAMES, "summary.json"])


def test_the_summary_is_for_people_and_adds_up(write_dataset, out, capsys):
    convert(write_dataset(), out)
    printed = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    counts = summary["files"]["train.parquet"]
    assert counts["samples"] == counts["yes"] + counts["no"] + counts["ties"] + counts["unlabelled"]
    assert counts["samples"] + summary["files"]["val.parquet"]["samples"] + summary["ties_left_out"] == 36
    for part in ("samples/s", "scenario demo", "estimated from characters", str(out)):
        assert part in printed


def test_the_summary_says_what_a_model_is_trained_on(write_dataset, out):
    def change(samples):
        for sample in samples[::2]:
            sample["observation"] = {"stages": [{}] * 2}
        for number, sample in enumerate(samples):
            sample["max_green"] = 60.0 + number % 4

    convert(write_dataset(change=change), out)
    assert json.loads((out / "summary.json").read_text())["trained_on"] == {
        "scenarios": ["demo"],
        "prompt_versions": ["1"],
        "num_junctions": 1,
        "num_stages": [2, 2],
        "min_green_s": [10, 10],
        "max_green_s": [60, 63],
        "green_extension_s": [5, 5],
    }


# -- datasets of other generators --------------------------------------------------------------------------------------

FOREIGN_FIELDS = ("prompt", "state_file", "current_green_elapsed", "min_green", "max_green", "junction_id")


def only_required(samples):
    samples[:] = [{name: sample[name] for name in FOREIGN_FIELDS} for sample in samples[:18]]


def write_sumocfg(path, net="scenario/net.net.xml"):
    path.write_text(
        f'<configuration><input><net-file value="{net}"/><route-files value="scenario/cars.rou.xml"/></input>'
        '<time><end value="3600"/></time><random_number><seed value="7"/></random_number>'
        '<processing><lateral-resolution value="0.8"/><time-to-teleport value="-1"/></processing></configuration>'
    )
    return path


def test_a_minimal_sample_of_another_generator_converts_with_a_sumocfg(write_dataset, out, capsys):
    path = write_dataset(change=only_required)
    convert(path, out, "--sumocfg", str(write_sumocfg(path.parent / "demo.sumocfg")))
    printed = capsys.readouterr().out
    assert "18 samples did not name SUMO files" in printed
    assert "sft_train.parquet is empty" in printed
    found = rows(out, "train.parquet") + rows(out, "val.parquet")
    assert len(found) == 18 and {row["data_source"] for row in found} == {"tsc/demo"}
    assert len({row["extra_info"]["sample_id"] for row in found}) == 18
    truth = json.loads(found[0]["reward_model"]["ground_truth"])
    assert truth["outcomes"] is None
    request = ReplayRequest.from_json(truth["request"])
    sumo = request.sumo
    assert sumo.version == installed_sumo_version()
    assert (sumo.seed, sumo.step_length_s, sumo.time_to_teleport_s) == (7, 1.0, -1.0)
    assert sumo.options == ("--lateral-resolution", "0.8")
    assert Path(request.dataset_dir, sumo.net_file).is_file() and len(sumo.net_sha256) == 64
    assert len(request.state_sha256) == 64


def test_a_state_of_another_sumo_is_refused_though_the_sample_does_not_name_it(write_dataset, out, capsys):
    path = write_dataset(change=only_required)
    (path.parent / "states/e000/t00200.xml").write_text('<snapshot version="1.19.0" time="200.00">')
    (line,) = refusal(path, out, capsys, "--sumocfg", str(write_sumocfg(path.parent / "demo.sumocfg")))
    assert ": sample 1: sumo.version is '1.19.0'" in line


def test_a_state_file_that_is_no_state_is_refused(write_dataset, out, capsys):
    path = write_dataset(change=only_required)
    (path.parent / "states/e000/t00200.xml").write_text("hello")
    (line,) = refusal(path, out, capsys, "--sumocfg", str(write_sumocfg(path.parent / "demo.sumocfg")))
    assert ": sample 1: state_file is 'states/e000/t00200.xml': it is not a SUMO state" in line


def test_a_sumocfg_that_names_a_missing_file_is_refused(write_dataset, out):
    path = write_dataset(change=only_required)
    with pytest.raises(ScenarioError, match=r"net-file .*gone\.net\.xml, which does not exist"):
        convert(path, out, "--sumocfg", str(write_sumocfg(path.parent / "demo.sumocfg", net="gone.net.xml")))


def test_states_need_not_be_there_when_they_are_not_checked(write_dataset, out):
    path = write_dataset()
    (path.parent / "states/e000/t00200.xml").unlink()
    convert(path, out, "--no-check-states")
    assert (out / "train.parquet").is_file()


def test_fields_beyond_the_contract_do_no_harm(write_dataset, out):
    convert(write_dataset(change=put(1, note="kept in the dataset", sumo__weather="rain")), out)
    found = rows(out, "train.parquet") + rows(out, "val.parquet")
    row = next(row for row in found if row["extra_info"]["sample_id"] == "demo-e000-t00200-A0")
    assert json.loads(row["reward_model"]["ground_truth"])["request"]["sumo"]["weather"] == "rain"


# -- real states -------------------------------------------------------------------------------------------------------


def replayed(truths):
    """Costs of both answers, replayed in a process of its own: libsumo and pyarrow do not share one."""
    program = (
        "import json, sys\n"
        "from tsc.cost.outcome import OutcomeSettings\n"
        "from tsc.replays.replay import replay\n"
        "from tsc.replays.request import ReplayRequest\n"
        "requests = [ReplayRequest.from_json(truth['request']) for truth in json.load(sys.stdin)]\n"
        "print(json.dumps([replay(request, OutcomeSettings()).as_dict() for request in requests]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPO_ROOT,
        input=json.dumps(truths),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


def test_a_generated_dataset_converts_without_a_fault_and_keeps_its_split(small_dataset, out, capsys):
    convert(small_dataset, out, "--ties", "keep")
    samples = json.loads((small_dataset / "grpo_dataset.json").read_text())
    for side in ("train", "val"):
        expected = [sample["id"] for sample in samples if sample["split"] == side]
        assert [row["extra_info"]["sample_id"] for row in rows(out, f"{side}.parquet")] == expected
    assert capsys.readouterr().err == ""


def test_a_minimal_sample_replays_like_the_full_one(small_dataset, tmp_path):
    """Its SUMO input from a sumocfg, and no clocks: the state says which stage is green."""
    samples = json.loads((small_dataset / "grpo_dataset.json").read_text())
    samples = [sample for sample in samples if sample["sumo"] == samples[0]["sumo"]][:5]
    sumo = samples[0]["sumo"]
    sumocfg = tmp_path / "four_way.sumocfg"
    sumocfg.write_text(
        f'<configuration><input><net-file value="{small_dataset / sumo["net_file"]}"/>'
        f'<route-files value="{small_dataset / sumo["route_files"][0]}"/></input>'
        f'<seed value="{sumo["seed"]}"/><time-to-teleport value="{sumo["time_to_teleport_s"]}"/></configuration>'
    )
    foreign = [{name: sample[name] for name in FOREIGN_FIELDS} for sample in samples]
    for sample in foreign:
        state = state_bytes(small_dataset / sample["state_file"])
        sample["state_file"] = Path(sample["state_file"]).name
        (tmp_path / sample["state_file"]).write_bytes(state)
    (tmp_path / "foreign.json").write_text(json.dumps(foreign))
    truths = {}
    for name, dataset in (("foreign", tmp_path / "foreign.json"), ("full", small_dataset)):
        convert(dataset, tmp_path / name, "--sumocfg", str(sumocfg), "--val-fraction", "0", "--ties", "keep")
        found = rows(tmp_path / name, "train.parquet")[: len(samples)]
        truths[name] = [json.loads(row["reward_model"]["ground_truth"]) for row in found]
    costs = replayed(truths["foreign"])
    assert costs == replayed(truths["full"])
    assert len({cost["yes"] for cost in costs}) > 1


# -- the split ---------------------------------------------------------------------------------------------------------


def ids_by_side(out):
    return {side: {row["extra_info"]["sample_id"] for row in rows(out, f"{side}.parquet")} for side in ("train", "val")}


def test_no_time_block_of_an_episode_is_on_both_sides(write_dataset, out):
    path = write_dataset(num_episodes=5)
    convert(path, out, "--block-s", "300", "--val-fraction", "0.3", "--ties", "keep")
    sides = ids_by_side(out)
    blocks = {side: set() for side in sides}
    for sample in json.loads(path.read_text()):
        side = "train" if sample["id"] in sides["train"] else "val"
        assert sample["id"] in sides[side]
        blocks[side].add((sample["episode"], sample["time_s"] // 300))
    assert blocks["train"] and blocks["val"] and not blocks["train"] & blocks["val"]


def test_a_split_of_the_dataset_is_kept_where_every_sample_has_one(write_dataset, out, capsys):
    def change(samples):
        for sample in samples:
            sample["split"] = "val" if sample["episode"] == 1 else "train"

    convert(write_dataset(change=change), out)
    sides = ids_by_side(out)
    assert all("-e001-" in name for name in sides["val"]) and all("-e000-" in name for name in sides["train"])
    assert "split as the dataset says" in capsys.readouterr().out


def test_episode_numbers_may_start_anew_for_validation(write_dataset, out):
    """Episode 0 of training and episode 0 of validation ran with different seeds: they are two episodes."""

    def change(samples):
        for sample in samples:
            sample["split"] = "val" if sample["episode"] == 1 else "train"
            sample["sumo"] = {**sample["sumo"], "seed": 100 + sample["episode"]}
            sample["episode"] = 0

    convert(write_dataset(change=change), out, "--ties", "keep")
    assert len(rows(out, "train.parquet")) == len(rows(out, "val.parquet")) == 18


def test_a_split_of_only_some_samples_does_not_count_and_this_is_said(write_dataset, out, capsys):
    convert(write_dataset(change=put(0, split="val")), out)
    assert "only 1 of 36 samples have a split, so none is used" in capsys.readouterr().out


def test_a_split_of_the_dataset_that_leaks_is_refused_and_can_be_ignored(write_dataset, out):
    def change(samples):
        for number, sample in enumerate(samples):
            sample["split"] = "val" if number % 4 == 0 else "train"

    path = write_dataset(change=change)
    with pytest.raises(SampleError, match=r"one group on both sides.*--resplit"):
        convert(path, out)
    convert(path, out, "--resplit")
    assert (out / "val.parquet").is_file()


def test_a_split_of_the_dataset_without_validation_is_refused(write_dataset, out):
    def change(samples):
        for sample in samples:
            sample["split"] = "train"

    path = write_dataset(change=change)
    with pytest.raises(SampleError, match=r"nothing is left for val.*--resplit"):
        convert(path, out)
    convert(path, out, "--resplit")
    assert rows(out, "val.parquet") and rows(out, "sft_val.parquet")
    convert(path, out, "--val-fraction", "0")  # verl stops at an empty file, and an old one would be of another split
    assert sorted(file.name for file in out.glob("*.parquet")) == ["sft_train.parquet", "train.parquet"]


def test_a_single_group_cannot_be_split_and_the_remedy_is_named(write_dataset, out):
    path = write_dataset(num_episodes=1)
    with pytest.raises(SampleError, match=r"nothing is left for train.*1 group.*smaller --block-s than 3600"):
        convert(path, out, "--block-s", "3600")


_PLACED = st.builds(
    Placed,
    scenario=st.sampled_from(["a", "b"]),
    episode=st.sampled_from(["0", "1", "2"]),
    time_s=st.one_of(st.none(), st.floats(0, 4000)),
    state=st.integers(0, 40).map(str),
)


@given(
    samples=st.lists(_PLACED, min_size=1, max_size=60),
    val_fraction=st.floats(0.01, 0.99),
    block_s=st.sampled_from([60, 600, 3600]),
    seed=st.integers(0, 9),
    order=st.randoms(use_true_random=False),
)
def test_no_group_and_no_state_is_on_both_sides_whatever_the_samples(samples, val_fraction, block_s, seed, order):
    def sides_of(samples):
        groups = joined_groups(samples, block_s)
        if len(set(groups)) < 2:
            with pytest.raises(SampleError):
                split(samples, groups, val_fraction=val_fraction, seed=seed, block_s=block_s)
            return None
        return split(samples, groups, val_fraction=val_fraction, seed=seed, block_s=block_s)

    sides = sides_of(samples)
    if sides is None:
        return
    assert set(sides) == {"train", "val"}
    for what in (lambda sample: sample.group(block_s), lambda sample: sample.state):
        side_of = {}
        for sample, side in zip(samples, sides, strict=True):
            assert side_of.setdefault(what(sample), side) == side
    shuffled = list(range(len(samples)))
    order.shuffle(shuffled)
    assert sides_of([samples[i] for i in shuffled]) == [sides[i] for i in shuffled]


# -- who reads it ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """Bytes as tokens, with ChatML."""
    import tokenizers
    import transformers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[])
    raw = tokenizers.Tokenizer(model)
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


def test_prompt_tokens_are_counted_with_a_tokenizer(write_dataset, out, tokenizer_folder, capsys):
    path = write_dataset()
    convert(path, out, "--tokenizer", str(tokenizer_folder), "--ties", "keep")
    prompts = [sample["prompt"] for sample in json.loads(path.read_text())]
    # a byte is a token; the marks of a message are <|im_start|>, its role, two line ends and <|im_end|>
    expected = [
        sum(len(m["content"]) + len(m["role"]) + 4 for m in prompt) + len("assistant") + 2 for prompt in prompts
    ]
    tokens = json.loads((out / "summary.json").read_text())["prompt_tokens"]
    assert (tokens["min"], tokens["max"], tokens["exact"]) == (min(expected), max(expected), True)
    assert "counted with the tokenizer" in capsys.readouterr().out


def test_a_tokenizer_folder_that_is_none_is_refused(write_dataset, out, tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        convert(write_dataset(), out, "--tokenizer", str(tmp_path / "gone"))


def test_verl_and_datasets_read_the_grpo_files_of_several_conversions(
    write_dataset, out, tokenizer_folder, tmp_path, monkeypatch
):
    import datasets
    from omegaconf import OmegaConf
    from transformers import AutoTokenizer
    from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # several row groups to a file
    monkeypatch.setattr(json_to_parquet, "_BATCH", 2)
    monkeypatch.setattr(json_to_parquet, "_ROW_GROUP", 4)
    convert(write_dataset(), out)
    convert(write_dataset(), tmp_path / "more", "--seed", "1")
    config = OmegaConf.create(
        {"cache_dir": str(tmp_path / "verl"), "max_prompt_length": 400, "filter_overlong_prompts_workers": 1}
    )
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    for name in NAMES[:2]:
        files = [str(folder / name) for folder in (out, tmp_path / "more")]
        expected = [*rows(out, name), *rows(tmp_path / "more", name)]
        assert all(pq.ParquetFile(file).num_row_groups > 1 for file in files)
        assert datasets.load_dataset("parquet", data_files=files, split="train").to_list() == expected
        read = RLHFDataset(files, tokenizer, config)
        assert len(read) == len(expected)
        batch = collate_fn([read[number] for number in range(len(read))])
        truths = [json.loads(model["ground_truth"]) for model in batch["reward_model"]]
        assert truths == [json.loads(row["reward_model"]["ground_truth"]) for row in expected]
        assert list(batch["index"]) == [row["extra_info"]["index"] for row in expected]
        assert list(batch["raw_prompt"]) == [row["prompt"] for row in expected]


def test_verl_reads_the_sft_files_and_trains_only_on_the_answer(write_dataset, out, tokenizer_folder):
    from omegaconf import OmegaConf
    from transformers import AutoTokenizer
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

    convert(write_dataset(), out)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = OmegaConf.create({"pad_mode": "no_padding", "max_length": 600, "truncation": "error"})
    for name in NAMES[2:]:
        read = MultiTurnSFTDataset(str(out / name), tokenizer, config)
        expected = rows(out, name)
        assert len(read) == len(expected) > 0
        for number, row in enumerate(expected):
            item = read[number]
            trained = tokenizer.decode(item["input_ids"][item["loss_mask"].bool()])
            assert trained.strip() == row["messages"][-1]["content"] + "<|im_end|>"


# -- embedded states ---------------------------------------------------------------------------------------------------


def requests(out, name="train.parquet"):
    return [
        ReplayRequest.from_json(json.loads(row["reward_model"]["ground_truth"])["request"]) for row in rows(out, name)
    ]


def test_embedded_files_are_those_of_the_dataset_and_change_nothing_else(write_dataset, out, tmp_path, capsys):
    path = write_dataset()
    convert(path, tmp_path / "plain")
    convert(path, out, "--embed-states")
    plain, embedded = requests(tmp_path / "plain"), requests(out)
    assert [replace(request, embedded={}) for request in embedded] == plain
    settings = OutcomeSettings()
    assert [r.digest(settings, "1.28.0") for r in embedded] == [r.digest(settings, "1.28.0") for r in plain]
    files = UnpackedFiles()
    for request, of_plain in zip(embedded, plain, strict=True):
        unpacked = files.unpack(request)
        assert Path(unpacked.state_file).read_bytes() == of_plain.state_path.read_bytes()
        assert Path(unpacked.sumo.net_file).read_text() == NET
        assert [Path(file).read_text() for file in unpacked.sumo.route_files] == [ROUTES]
    assert "embedded in 24 rows: a state" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())["embedded"]
    assert summary["states"] == len(plain) + len(requests(out, "val.parquet"))
    assert summary["state_chars"] == sum(
        len(request.embedded[request.state_file])
        for name in ("train.parquet", "val.parquet")
        for request in requests(out, name)
    )


def test_nets_and_routes_that_are_too_large_for_every_row_are_named(write_dataset, out, capsys):
    path = write_dataset()
    net = path.parent / "scenario/net.net.xml"
    noise = random.Random(1).randbytes(2 * MAX_SCENARIO_BYTES).hex()
    net.write_text(NET.replace("</net>", f"<!-- {noise} --></net>"))
    samples = json.loads(path.read_text())
    for sample in samples:
        sample["sumo"]["net_sha256"] = hashlib.sha256(net.read_bytes()).hexdigest()
    path.write_text(json.dumps(samples))
    convert(path, out, "--embed-states")
    assert all(list(request.embedded) == [request.state_file] for request in requests(out))
    unpacked = UnpackedFiles().unpack(requests(out)[0])
    assert unpacked.sumo.net_file == str(net)
    printed = capsys.readouterr().out
    assert "2 nets and routes, which every machine needs at this path" in printed and str(net) in printed


def test_unchecked_states_are_not_embedded(write_dataset, out):
    with pytest.raises(ConfigError, match="drop --no-check-states"):
        convert(write_dataset(), out, "--embed-states", "--no-check-states")


def test_a_state_that_changes_during_the_conversion_is_named_and_nothing_is_written(write_dataset, out, monkeypatch):
    path = write_dataset()
    summarise = json_to_parquet.summarise

    def summarise_and_spoil(*args, **kwargs):
        for state in (path.parent / "states").rglob("*.xml"):
            state.write_text("changed")
        return summarise(*args, **kwargs)

    monkeypatch.setattr(json_to_parquet, "summarise", summarise_and_spoil)
    with pytest.raises(SampleError, match="is not the file whose digest the sample gives"):
        convert(path, out, "--embed-states")
    assert not list(out.glob("*.parquet")) and not list(out.glob(".*"))
