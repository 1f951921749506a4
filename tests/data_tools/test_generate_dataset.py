"""Generation as a user runs it: the command, its files, and what it says."""

import filecmp
import gzip
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import sumo

from tests.hand_made_student import write_longest_queue_student
from tsc.errors import SampleError
from tsc.files import sha256_of
from tsc.replays.sample import Sample, find_dataset_files
from tsc.replays.state_archive import is_saved
from tsc.sumo.running import SumoFiles

BASE = ["--episodes", "2", "--validation-episodes", "1"]


def command(repo_root: Path, scenario: Path, out: Path, *options: str) -> list[str]:
    program = str(repo_root / "data_tools/generate_dataset.py")
    return [sys.executable, program, "--scenario", str(scenario), "--out", str(out), *BASE, *options]


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, check=False)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_same_tree(one: Path, other: Path) -> None:
    names = files_below(one)
    assert names == files_below(other)
    assert filecmp.cmpfiles(one, other, names, shallow=False) == (names, [], [])


@pytest.fixture(scope="module")
def samples(small_dataset: Path) -> list[dict[str, Any]]:
    return list(json.loads((small_dataset / "grpo_dataset.json").read_text()))


def test_one_worker_writes_the_same_bytes_as_two(
    repo_root: Path, short_scenario: Path, small_dataset: Path, tmp_path: Path
) -> None:
    done = run(repo_root, short_scenario, tmp_path / "one", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert_same_tree(tmp_path / "one", small_dataset)


def test_a_second_generation_is_refused_and_a_killed_one_resumes_to_the_same_bytes(
    repo_root: Path, short_scenario: Path, small_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    process = subprocess.Popen(command(repo_root, short_scenario, out, "--workers", "1"), stdout=subprocess.DEVNULL)
    while not list(out.glob("episodes/*/samples.jsonl.gz")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)  # so that it does not end before the second begins
    second = run(repo_root, short_scenario, out, "--resume")
    assert second.returncode == 2 and "Traceback" not in second.stderr
    assert f"cannot write the dataset to {out}: process {process.pid} on " in second.stderr
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert not (out / "grpo_dataset.json").exists()
    again = run(repo_root, short_scenario, out)
    assert again.returncode == 2 and "--resume" in again.stderr
    resumed = run(repo_root, short_scenario, out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "of 3 episodes are complete" in resumed.stdout
    assert_same_tree(out, small_dataset)


def test_ctrl_c_leaves_no_process_and_the_same_command_goes_on(
    repo_root: Path, short_scenario: Path, small_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "stopped"
    process = subprocess.Popen(
        command(repo_root, short_scenario, out, "--workers", "2"), stderr=subprocess.PIPE, text=True
    )
    while not list(out.glob("episodes/.*/demand.rou.xml")):
        assert process.poll() is None
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in said
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    resumed = run(repo_root, short_scenario, out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_tree(out, small_dataset)


def test_a_full_disk_is_told_and_nothing_is_lost(
    repo_root: Path, short_scenario: Path, small_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "full"

    def files_stay_small() -> None:  # the demand can still be written, the states cannot
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))

    full = subprocess.run(
        command(repo_root, short_scenario, out),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=files_stay_small,
    )
    assert full.returncode == 2 and "Traceback" not in full.stderr, full.stderr
    assert "File too large: make room there, and run the same command with --resume" in full.stderr
    assert not (out / "grpo_dataset.json").exists()
    resumed = run(repo_root, short_scenario, out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_tree(out, small_dataset)


def test_a_half_written_episode_is_named_with_the_remedy(
    repo_root: Path, short_scenario: Path, small_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "half"
    shutil.copytree(small_dataset, out)
    (out / "grpo_dataset.json").unlink()
    half = out / "episodes/four_way-seed0002/samples.jsonl.gz"
    half.write_bytes(half.read_bytes()[:-50])
    told = run(repo_root, short_scenario, out, "--resume")
    assert told.returncode == 2 and "Traceback" not in told.stderr
    assert f"{half} is damaged" in told.stderr and f"delete {half.parent}, and run" in told.stderr
    assert not (out / "grpo_dataset.json").exists()
    shutil.rmtree(half.parent)
    resumed = run(repo_root, short_scenario, out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_tree(out, small_dataset)


def as_earlier_versions_wrote_it(out: Path, name: str) -> Path:
    """The episode with plain samples, and a folder for states."""
    folder = out / "episodes" / name
    (folder / "samples.jsonl").write_bytes(gzip.decompress((folder / "samples.jsonl.gz").read_bytes()))
    (folder / "samples.jsonl.gz").unlink()
    (folder / "states").mkdir()
    return folder


def test_a_dataset_of_an_earlier_version_goes_on(
    repo_root: Path, short_scenario: Path, small_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "earlier"
    shutil.copytree(small_dataset, out)
    complete = as_earlier_versions_wrote_it(out, "four_way-seed0001")
    half_made = as_earlier_versions_wrote_it(out, "four_way-seed0002")
    (half_made / "samples.jsonl").unlink()
    before = (out / "grpo_dataset.json").read_bytes()
    (out / "grpo_dataset.json").unlink()
    resumed = run(repo_root, short_scenario, out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "2 of 3 episodes are complete" in resumed.stdout
    assert (complete / "samples.jsonl").exists() and not (half_made / "states").exists()
    assert (out / "grpo_dataset.json").read_bytes() == before
    assert not list(out.glob("episodes/.*"))


def test_a_compressed_dataset_is_not_joined_again(
    repo_root: Path, short_scenario: Path, small_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "packed"
    shutil.copytree(small_dataset, out)
    (out / "grpo_dataset.json.gz").write_bytes(gzip.compress((out / "grpo_dataset.json").read_bytes()))
    with pytest.raises(SampleError, match="are both there, so samples would count twice: remove one"):
        find_dataset_files(out)
    (out / "grpo_dataset.json").unlink()
    resumed = run(repo_root, short_scenario, out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert find_dataset_files(out) == [out / "grpo_dataset.json.gz"]


def test_a_folder_begun_with_other_settings_is_not_mixed(
    repo_root: Path, short_scenario: Path, small_dataset: Path
) -> None:
    program = command(repo_root, short_scenario, small_dataset, "--resume", "--episodes", "5")
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "has other settings (episodes; see " in done.stderr


def test_every_sample_keeps_the_contract(small_dataset: Path, samples: list[dict[str, Any]]) -> None:
    assert len(samples) > 30
    for values in samples:
        sample = Sample.model_validate(values)
        assert is_saved(small_dataset / sample.state_file)
        assert sample.outcomes is not None
        assert sample.expert_decision == sample.outcomes.outcomes.better()
        assert sample.clocks[sample.junction_id].elapsed_green_s == sample.current_green_elapsed
    assert len({values["id"] for values in samples}) == len(samples)


def test_validation_has_demand_of_its_own(samples: list[dict[str, Any]]) -> None:
    demands = {
        split: {Path(s["state_file"]).parts[1] for s in samples if s["split"] == split} for split in ("train", "val")
    }
    assert demands == {"train": {"four_way-seed0001", "four_way-seed0002"}, "val": {"four_way-seed0501"}}


def test_no_file_holds_the_time_of_day_or_a_path_of_this_machine(small_dataset: Path) -> None:
    assert b"generated on" not in (small_dataset / "scenario/four_way.net.xml").read_bytes()
    assert str(small_dataset) not in (small_dataset / "grpo_dataset.json").read_text()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("min_green_s: 10", "min_green: 10", ["min_green"]),
        ("duration_s: 300", "duration_s: long", ["duration_s", "long"]),
        ("left0A0:   [", "left0B0:   [", ["left0A0"]),
        ("  left0A0:   {A0right0: 0.70", "  left0A0:   {A0right0: 0.80", ["left0A0", "sum to 1"]),
        ("tls.layout: opposites", "tls.layouts: opposites", ["netgenerate", "tls.layouts"]),
        ("max_green_s: 60", "max_green_s: 8", ["max_green_s of 8 s"]),
    ],
)
def test_a_wrong_scenario_file_fails_with_key_and_value(
    repo_root: Path, short_scenario: Path, tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    text = short_scenario.read_text()
    assert old in text
    scenario = tmp_path / "wrong.yaml"
    scenario.write_text(text.replace(old, new))
    done = run(repo_root, scenario, tmp_path / "out")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_every_junction_of_a_network_gets_samples_with_the_clocks_of_all(repo_root: Path, tmp_path: Path) -> None:
    text = (repo_root / "configs/scenarios/arterial.yaml").read_text()
    scenario = tmp_path / "arterial.yaml"
    scenario.write_text(text.replace("duration_s: 3600", "duration_s: 200"))
    done = run(repo_root, scenario, tmp_path / "out", "--episodes", "1", "--validation-episodes", "0")
    assert done.returncode == 0, done.stderr
    samples = json.loads((tmp_path / "out/grpo_dataset.json").read_text())
    junctions = {"A0", "B0", "C0", "D0", "E0"}
    assert {sample["junction_id"] for sample in samples} == junctions
    assert all(set(sample["clocks"]) == junctions for sample in samples)
    states = {sample["state_file"] for sample in samples}
    assert len(states) < len(samples)  # junctions that decide in the same second share a state


def test_a_family_gives_samples_of_every_member_that_convert_together(repo_root: Path, tmp_path: Path) -> None:
    text = (repo_root / "configs/scenarios/family_train.yaml").read_text()
    family = tmp_path / "family.yaml"
    family.write_text(text.replace("members: 40", "members: 3").replace("duration_s: 1800", "duration_s: 300"))
    done = run(repo_root, family, tmp_path / "out", "--episodes", "1", "--validation-episodes", "0")
    assert done.returncode == 0, done.stderr
    samples = json.loads((tmp_path / "out/grpo_dataset.json").read_text())
    assert {sample["scenario"] for sample in samples} == {f"family_train_{number:02d}" for number in (1, 2, 3)}
    assert not any("split" in sample for sample in samples)
    program = [sys.executable, str(repo_root / "data_tools/json_to_parquet.py"), "--input", str(tmp_path / "out")]
    program += ["--output", str(tmp_path / "parquet"), "--block-s", "60"]
    converted = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert converted.returncode == 0, converted.stderr
    scenarios = json.loads((tmp_path / "parquet/summary.json").read_text())["scenarios"]
    assert (
        sum(counts["train"] for counts in scenarios.values()) > 0 < sum(counts["val"] for counts in scenarios.values())
    )
    assert len(scenarios) == 3


def write_sumocfg(folder: Path, *, options: str = "", program: str = "static") -> Path:
    """SUMO's crossing from 600 s to 780 s, with a program that ends its greens."""
    net = Path(sumo.SUMO_HOME, "tools", "game", "cross", "cross.net.xml")
    routes = Path(sumo.SUMO_HOME, "tools", "game", "cross", "cross.rou.xml")
    (folder / "signal.add.xml").write_text(
        f'<additional><tlLogic id="0" type="{program}" programID="ours" offset="0">'
        '<phase duration="30" state="GGgGGgGGgGGg"/><phase duration="3" state="yyyyyyyyyyyy"/>'
        '<phase duration="30" state="rrrGGGrrrGGG"/><phase duration="3" state="rrryyyrrryyy"/></tlLogic></additional>'
    )
    path = folder / "crossing.sumocfg"
    path.write_text(
        f'<configuration><input><net-file value="{net}"/><route-files value="{routes}"/>'
        '<additional-files value="signal.add.xml"/></input><time><begin value="600"/><end value="780"/></time>'
        f"{options}</configuration>"
    )
    return path


def test_a_sumocfg_gives_samples_that_name_its_files_and_convert(repo_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(repo_root, write_sumocfg(tmp_path), out, "--episodes", "1")
    assert done.returncode == 0, done.stderr
    assert "scenario crossing: each seed draws its vehicles from the route files" in done.stdout
    samples = json.loads((out / "grpo_dataset.json").read_text())
    assert {(sample["split"], sample["sumo"]["seed"]) for sample in samples} == {("train", 1), ("val", 1)}
    assert min(sample["time_s"] for sample in samples) >= 660  # begin and warm-up
    for values in samples:
        sumo_input = Sample.model_validate(values).sumo
        assert sumo_input is not None
        signals = "scenario/crossing/decides.add.xml"  # the bounds of the net
        assert list(sumo_input.additional_files) == [str((tmp_path / "signal.add.xml").resolve()), signals]
        assert Path(sumo_input.net_file).is_absolute()
        assert sumo_input.net_sha256 == sha256_of(Path(sumo_input.net_file))
    program = [sys.executable, str(repo_root / "data_tools/json_to_parquet.py"), "--input", str(out)]
    converted = subprocess.run(
        [*program, "--output", str(tmp_path / "parquet")], capture_output=True, text=True, timeout=120, check=False
    )
    assert converted.returncode == 0, converted.stderr


@pytest.mark.parametrize(
    ("options", "program", "message"),
    [
        ('<routing><weight-files value="signal.add.xml"/></routing>', "static", "SUMO's option --weight-files"),
        ("", "off", "none of the 1 signals of"),
        ('<processing><time-to-teleprot value="1"/></processing>', "static", "time-to-teleprot"),
        ('<time><begin value="0.5"/></time>', "static", "set begin_s and end_s to whole seconds"),
    ],
)
def test_a_sumocfg_that_cannot_be_replayed_is_refused_before_anything_is_written(
    repo_root: Path, tmp_path: Path, options: str, program: str, message: str
) -> None:
    done = run(repo_root, write_sumocfg(tmp_path, options=options, program=program), tmp_path / "out")
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_route_files_that_are_used_as_filed_keep_their_names(repo_root: Path, files: SumoFiles, tmp_path: Path) -> None:
    """Also one that is named as the demand that episodes draw."""
    routes, scenario, out = tmp_path / "demand.rou.xml", tmp_path / "mine.sumocfg", tmp_path / "out"
    shutil.copy(files.route_files[0], routes)
    scenario.write_text(
        f'<configuration><input><net-file value="{files.net_file}"/><route-files value="{routes}"/></input>'
        "</configuration>"
    )
    options = ("--demand-as-filed", "--duration", "130", "--episodes", "1", "--validation-episodes", "0")
    done = run(repo_root, scenario, out, *options)
    assert done.returncode == 0, done.stderr
    samples = json.loads((out / "grpo_dataset.json").read_text())
    assert {name for sample in samples for name in sample["sumo"]["route_files"]} == {str(routes)}


def test_a_network_of_every_difficulty_at_once_gives_samples_that_replay_and_convert(
    repo_root: Path, files: SumoFiles, tmp_path: Path
) -> None:
    """Actuated signals, steps of half a second, options that shape the traffic, together with another network."""
    (tmp_path / "signal.add.xml").write_text(
        '<additional><tlLogic id="A0" type="actuated" programID="own" offset="0">'
        '<phase duration="20" minDur="8" maxDur="40" state="GGGGgrrrrrGGGGgrrrrr"/>'
        '<phase duration="4" state="yyyyyrrrrryyyyyrrrrr"/>'
        '<phase duration="20" minDur="6" maxDur="30" state="rrrrrGGGGgrrrrrGGGGg"/>'
        '<phase duration="5" state="rrrrryyyyyrrrrryyyyy"/></tlLogic></additional>'
    )
    scenario, out = tmp_path / "hard.sumocfg", tmp_path / "out"
    scenario.write_text(
        f'<configuration><input><net-file value="{files.net_file}"/><route-files value="{files.route_files[0]}"/>'
        '<additional-files value="signal.add.xml"/></input><processing><step-length value="0.5"/><scale value="1.5"/>'
        '<time-to-teleport value="120"/><ignore-route-errors value="true"/></processing></configuration>'
    )
    done = run(repo_root, scenario, out, "--scenario", "sumo:rilsa1", "--duration", "150", "--episodes", "1")
    assert done.returncode == 0, done.stderr
    assert "scenario hard: each seed draws its vehicles from the route files, 1.5 times as many" in done.stdout
    samples = json.loads((out / "grpo_dataset.json").read_text())
    assert {sample["scenario"] for sample in samples} == {"hard", "rilsa1"}
    hard = [sample for sample in samples if sample["scenario"] == "hard"]
    assert {(each["stage"], each["min_green"], each["max_green"]) for each in hard} == {(0, 8, 40), (1, 6, 30)}
    assert hard[0]["sumo"]["step_length_s"] == 0.5 and hard[0]["sumo"]["options"] == ["--ignore-route-errors", "true"]
    for program, more in (
        ("verify_states.py", ["--data", str(out), "--sample", "6", "--workers", "2"]),
        ("json_to_parquet.py", ["--input", str(out), "--output", str(tmp_path / "parquet")]),
    ):
        words = [sys.executable, str(repo_root / "data_tools" / program), *more]
        done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_only_the_junctions_that_are_named_are_controlled(repo_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--duration", "130", "--episodes", "1", "--validation-episodes", "0", "--junctions", "1", "3"]
    corridor = Path("sumo:corridor")
    done = run(repo_root, corridor, out, *options)
    assert done.returncode == 2 and "junction '1' has no signal in" in done.stderr
    known = re.findall(r"the signals are (.*)", done.stderr)[0].split(", ")
    done = run(repo_root, corridor, out, *options[:-2], *known[:2])
    assert done.returncode == 0, done.stderr
    samples = json.loads((out / "grpo_dataset.json").read_text())
    assert {sample["junction_id"] for sample in samples} == set(known[:2])
    assert all(sample["clocks"].keys() == set(known[:2]) for sample in samples)


def test_only_scenario_and_family_files_are_built(repo_root: Path, tmp_path: Path) -> None:
    for word, message in (("sumo:cross", "sumo:cross is not a scenario or family file"), ("x", "scenario 'x' is unk")):
        program = [sys.executable, str(repo_root / "data_tools/build_scenarios.py"), word, "--out", str(tmp_path / "o")]
        done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2 and message in done.stderr, done.stderr


def test_two_scenarios_of_one_name_are_refused(repo_root: Path, short_scenario: Path, tmp_path: Path) -> None:
    done = run(repo_root, short_scenario, tmp_path / "out", "--scenario", str(short_scenario))
    assert done.returncode == 2
    assert "two scenarios are named 'four_way'" in done.stderr


def test_a_student_runs_the_signals_for_its_share(repo_root: Path, short_scenario: Path, tmp_path: Path) -> None:
    student = write_longest_queue_student(tmp_path / "student.json")
    config = tmp_path / "dataset.yaml"
    config.write_text(
        "behaviours: {static: 1}\nstudent_behaviours: {student: 0.5, random: 0.5}\nbehaviour_block_s: 60\n"
        "warm_up_s: 60\nsample_share: 1.0\n"
    )
    out = tmp_path / "out"
    options = ("--episodes", "1", "--validation-episodes", "0", "--config", str(config))
    done = run(repo_root, short_scenario, out, *options, "--student", str(student))
    assert done.returncode == 0, done.stderr
    samples = json.loads((out / "grpo_dataset.json").read_text())
    decided = {"student": 0, "random": 0}
    for sample, following in pairwise(samples):
        queues_veh = [stage["queue_veh"] for stage in sample["observation"]["stages"]]
        extends = queues_veh[0] >= max(queues_veh)
        extended = following["time_s"] == sample["time_s"] + 5
        # at the maximum, the green ends whatever the student says
        if sample["current_green_elapsed"] < 55 and sample["behaviour"] == "student":
            assert extended == extends
        decided[sample["behaviour"]] += 1
    assert min(decided.values()) > 5

    write_longest_queue_student(student, teacher="another")
    done = run(repo_root, short_scenario, out, *options, "--student", str(student), "--resume")
    assert done.returncode == 2 and "has other settings (student; see " in done.stderr


def test_later_episodes_have_other_demand(
    repo_root: Path, short_scenario: Path, small_dataset: Path, tmp_path: Path
) -> None:
    options = ("--episodes", "1", "--validation-episodes", "0", "--first-episode", "1")
    done = run(repo_root, short_scenario, tmp_path, *options)
    assert done.returncode == 0, done.stderr
    samples = json.loads((tmp_path / "grpo_dataset.json").read_text())
    assert {sample["episode"] for sample in samples} == {1}
    # it is the second training episode of a dataset that begins with the first
    second = "episodes/four_way-seed0002/demand.rou.xml"
    assert (tmp_path / second).read_bytes() == (small_dataset / second).read_bytes()
