"""States replayed with real SUMO: faithful ones are told as such, and every injected fault is named with its cause."""

from __future__ import annotations

import gzip
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_tools import json_to_parquet, verify_states
from data_tools.state_causes import CAUSES, has_low_precision
from tests.data_tools.nets import two_signals
from tsc.errors import ConfigError, SampleError, StateError
from tsc.files import folder_lock
from tsc.processes import landlock_version
from tsc.replays.saved_state import state_text
from tsc.replays.state_archive import state_bytes

REPO_ROOT = Path(__file__).resolve().parents[2]
Sample = dict[str, Any]


def samples_of(folder: Path) -> list[Sample]:
    samples: list[Sample] = json.loads((folder / "grpo_dataset.json").read_text())
    return samples


def write(folder: Path, samples: list[Sample]) -> None:
    (folder / "grpo_dataset.json").write_text(json.dumps(samples))


def figures(path: Path) -> dict[str, Any]:
    """The value of each row of a JSON file."""
    return {row["name"]: row["value"] for row in json.loads(path.read_text())}


@pytest.fixture
def copy(small_dataset: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_dataset, tmp_path / "four_way")
    return tmp_path / "four_way"


def test_a_good_dataset_replays_identically(small_dataset: Path, tmp_path: Path, capsys) -> None:
    report = tmp_path / "replays.json"
    arguments = ["--data", str(small_dataset), "--sample", "12", "--workers", "2", "--json", str(report)]
    assert verify_states.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == ["four_way", "12", "0", "100.0 %", "100.0 %", "100.0 %", "0", "0"]
    assert len({len(line) for line in lines[:3]}) == 1
    rows = json.loads(report.read_text())
    assert all(set(row) == {"name", "value", "unit", "beside", "ratio", "must_reach", "ok"} for row in rows)
    assert {row["name"]: (row["must_reach"], row["ok"]) for row in rows if row["must_reach"]} == {
        "four_way: identical outcomes": (0.95, True),
        "four_way: same better answer": (0.995, True),
    }


def test_states_as_sumo_writes_them_go_another_way(small_dataset: Path, tmp_path: Path) -> None:
    report = tmp_path / "replays.json"
    arguments = ["--data", str(small_dataset), "--sample", "12", "--workers", "2", "--json", str(report)]
    assert verify_states.main([*arguments, "--as-saved", "2"]) == 1
    assert figures(report)["four_way: identical continuation"] < 0.5
    with pytest.raises(ConfigError, match="--as-saved does not replay as training does"):
        verify_states.main([*arguments, "--as-saved", "2", "--mark"])


def test_the_same_seed_draws_the_same_states(small_dataset: Path) -> None:
    jobs = verify_states.read_jobs([small_dataset / "grpo_dataset.json"], None)
    drawn = [[job.index for job in verify_states.chosen(jobs, 10, seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(indices) == 10 and indices == sorted(indices) for indices in drawn)
    assert verify_states.chosen(jobs, 1000, 0) == verify_states.chosen(jobs, None, 0) == jobs


# -- causes: each of these breaks one sample of a copy, whose other samples and files stay as they were


def alone(folder: Path, sample: Sample) -> Path:
    """The sample's state in a file of its own."""
    path = folder / Path(sample["state_file"]).name
    path.write_bytes(state_bytes(folder / sample["state_file"]))
    sample["state_file"] = path.name
    return path


def rewrite(folder: Path, sample: Sample, change: Callable[[str], str], *, with_digest: bool = True) -> None:
    """A state of the sample's own with changed text."""
    text = state_bytes(folder / sample["state_file"]).decode()
    changed = change(text)
    assert changed != text
    sample["state_file"] = f"changed-{sample['id']}.xml.gz"
    data = gzip.compress(changed.encode())
    (folder / sample["state_file"]).write_bytes(data)
    sample["state_sha256"] = hashlib.sha256(data).hexdigest() if with_digest else None


def rewrite_scenario(
    folder: Path, sample: Sample, key: str, change: Callable[[str], str], *, keep_digest: bool
) -> None:
    """A net or a route file of the sample's own with changed text."""
    name = sample["sumo"][key] if key == "net_file" else sample["sumo"][key][0]
    text = (folder / name).read_text()
    changed = change(text)
    assert changed != text
    other = f"changed-{sample['id']}.xml"
    (folder / other).write_text(changed)
    digest = hashlib.sha256(changed.encode()).hexdigest()
    sample["sumo"] = {**sample["sumo"], key: other if key == "net_file" else [other]}
    if not keep_digest:
        sample["sumo"] |= {"net_sha256": digest} if key == "net_file" else {"route_sha256": [digest]}


def relabel(sample: Sample) -> None:
    """A label that no replay can have."""
    sample["outcomes"]["yes"] += 1000
    sample["outcomes"]["ends"] = {"yes": "0" * 16, "no": "0" * 16}
    sample["expert_decision"] = "no"


def state_missing(folder: Path, sample: Sample) -> None:
    sample["state_file"] = "gone.xml.gz"


def state_changed(folder: Path, sample: Sample) -> None:
    digest = sample["state_sha256"]
    rewrite(folder, sample, lambda text: text.replace('speed="', 'speed="0'))
    sample["state_sha256"] = digest


def state_damaged(folder: Path, sample: Sample) -> None:
    rewrite(folder, sample, lambda text: text[: len(text) // 2], with_digest=False)


def scenario_missing(folder: Path, sample: Sample) -> None:
    sample["sumo"] = {**sample["sumo"], "route_files": ["gone.rou.xml"]}


def net_changed(folder: Path, sample: Sample) -> None:
    rewrite_scenario(folder, sample, "net_file", lambda text: text.replace('speed="', 'speed="1'), keep_digest=True)


def net_changed_without_digest(folder: Path, sample: Sample) -> None:
    rewrite_scenario(folder, sample, "net_file", lambda text: text.replace('id="A0', 'id="B0'), keep_digest=False)


def routes_changed(folder: Path, sample: Sample) -> None:
    rewrite_scenario(folder, sample, "route_files", lambda text: text + "<!-- -->", keep_digest=True)


def another_sumo(folder: Path, sample: Sample) -> None:
    sample["sumo"] = {**sample["sumo"], "version": "1.19.0"}


def detector_driven_program(folder: Path, sample: Sample) -> None:
    rewrite_scenario(
        folder, sample, "net_file", lambda text: text.replace('type="static"', 'type="actuated"'), keep_digest=False
    )


def program_online(folder: Path, sample: Sample) -> None:
    rewrite(
        folder,
        sample,
        lambda text: re.sub(
            r'(<tlLogic id="A0" programID="0" .*?)active="1"/>',
            r'\1active="0"/><tlLogic id="A0" programID="online" phase="0" duration="240001" until="86500000" '
            'cycleTime="240001" active="1"/>',
            text,
        ),
    )


def another_second(folder: Path, sample: Sample) -> None:
    relabel(sample)
    sample["time_s"] += 1


def clocks_do_not_fit(folder: Path, sample: Sample) -> None:
    clock = sample["clocks"]["A0"]
    sample["clocks"] = {"A0": {**clock, "stage": 1 - clock["stage"]}}


def missing_rng(folder: Path, sample: Sample) -> None:
    rewrite(folder, sample, lambda text: re.sub(r"<rngState.*?</rngState>", "", text, flags=re.DOTALL))


def low_precision(folder: Path, sample: Sample) -> None:
    rewrite(folder, sample, lambda text: re.sub(r"(\d\.\d\d)\d{19}", r"\1", text))


def missing_persons(folder: Path, sample: Sample) -> None:
    person = '<person id="p" depart="3000"><walk edges="left0A0"/></person></routes>'
    rewrite_scenario(folder, sample, "route_files", lambda text: text.replace("</routes>", person), keep_digest=False)
    relabel(sample)


def random_flows(folder: Path, sample: Sample) -> None:
    flow = (
        '<flowState id="f" begin="0" end="9000" period="exp(0.00001)" next="8000" route="!f" done="0" index="0"/>'
        "</snapshot>"
    )
    route = '<route id="!f" state="0" edges="left0A0 A0right0"/>'
    rewrite(
        folder,
        sample,
        lambda text: text.replace("</snapshot>", flow).replace("<vehicle ", f"{route}\n    <vehicle ", 1),
    )
    relabel(sample)


def unknown(folder: Path, sample: Sample) -> None:
    relabel(sample)


BREAKS = (
    state_missing,
    state_changed,
    state_damaged,
    scenario_missing,
    net_changed,
    net_changed_without_digest,
    routes_changed,
    another_sumo,
    detector_driven_program,
    program_online,
    another_second,
    clocks_do_not_fit,
    missing_rng,
    low_precision,
    missing_persons,
    random_flows,
    unknown,
)
NUM_GOOD = 3


@pytest.fixture(scope="module")
def broken(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sample for each of BREAKS, then NUM_GOOD good ones; verified and marked by one worker."""
    folder = tmp_path_factory.mktemp("broken") / "four_way"
    shutil.copytree(small_dataset, folder)
    # late enough that there is traffic to differ
    samples = [sample for sample in samples_of(folder) if sample["time_s"] > 120][: len(BREAKS) + NUM_GOOD]
    assert len(samples) == len(BREAKS) + NUM_GOOD
    for change, sample in zip(BREAKS, samples, strict=False):
        change(folder, sample)
    write(folder, samples)
    return folder


@pytest.fixture(scope="module")
def report(broken: Path) -> Path:
    path = broken / "one_worker.json"
    arguments = ["--data", str(broken), "--workers", "1", "--json", str(path), "--mark"]
    assert verify_states.main(arguments) == 1
    return path


def test_every_injected_fault_is_named_with_its_cause(broken: Path, report: Path) -> None:
    marks = [sample["replay"] for sample in samples_of(broken)]
    named = {change.__name__: mark.get("cause") for change, mark in zip(BREAKS, marks, strict=False)}
    assert named == {
        **{change.__name__: change.__name__.replace("_", " ") for change in BREAKS},
        "another_sumo": "another SUMO",
        "missing_rng": "missing RNG",
        "net_changed_without_digest": "net changed",
        "detector_driven_program": "detector-driven program",
    }
    verdicts = {change.__name__: mark["verdict"] for change, mark in zip(BREAKS, marks, strict=False)}
    loaded = ("program_online", "another_second", "missing_rng", "low_precision", "missing_persons", "random_flows")
    assert all((verdict == "failed") == (name not in (*loaded, "unknown")) for name, verdict in verdicts.items())
    assert marks[len(BREAKS) :] == [{"verdict": "identical", "gap_error": 0.0}] * NUM_GOOD


def test_the_report_names_states_causes_and_remedies(broken: Path, report: Path, capsys) -> None:
    one_worker, marked = report.read_bytes(), (broken / "grpo_dataset.json").read_bytes()
    arguments = ["--data", str(broken), "--workers", "2", "--json", str(broken / "two_workers.json"), "--mark"]
    assert verify_states.main(arguments) == 1
    assert (broken / "two_workers.json").read_bytes() == one_worker
    assert (broken / "grpo_dataset.json").read_bytes() == marked
    printed = capsys.readouterr().out
    for change, sample in zip(BREAKS, samples_of(broken), strict=False):
        cause = sample["replay"]["cause"]
        assert re.search(rf"  {sample['id']}: .*{cause}", printed), change
        assert f"Remedy: {CAUSES[cause].remedy}" in printed
    assert f"marked {len(BREAKS) + NUM_GOOD} samples" in printed
    assert figures(report)["four_way: cause net changed"] == 2
    assert figures(report)["four_way: identical continuation"] <= NUM_GOOD / (NUM_GOOD + len(BREAKS))


def test_marked_samples_are_dropped_when_asked(
    broken: Path, report: Path, small_dataset: Path, tmp_path: Path, capsys
) -> None:
    common = ["--input", str(broken), "--on-error", "skip", "--ties", "keep", "--resplit", "--val-fraction", "0"]
    summaries = {}
    for replays in ("keep", "drop"):
        json_to_parquet.main([*common, "--output", str(tmp_path / replays), "--replays", replays])
        summaries[replays] = json.loads((tmp_path / replays / "summary.json").read_text())
    dropped = summaries["drop"]["unfaithful_left_out"]
    assert summaries["keep"]["unfaithful_left_out"] == 0
    verdicts = [sample["replay"]["verdict"] for sample in samples_of(broken)]
    kept = [verdict in ("identical", "same_outcomes", "same_answer") for verdict in verdicts]
    for name, others in (("keep", dropped), ("drop", 0)):
        files = summaries[name]["files"]
        assert files["train.parquet"]["samples"] + files["val.parquet"]["samples"] == sum(kept) + others
    assert f"replays: {dropped} samples left out" in capsys.readouterr().out
    with pytest.raises(SampleError, match=r"no sample of .* is marked: run data_tools/verify_states.py"):
        json_to_parquet.main(["--input", str(small_dataset), "--output", str(tmp_path / "x"), "--replays", "drop"])


def test_marks_leave_everything_else_as_it_was(broken: Path, report: Path, small_dataset: Path) -> None:
    good = samples_of(broken)[-1]
    del good["replay"]
    assert good in samples_of(small_dataset)


def test_json_lines_stay_json_lines(copy: Path) -> None:
    samples = samples_of(copy)[:4]
    samples[0]["weather"] = "Föhn"
    path = copy / "grpo_dataset.jsonl"
    (copy / "grpo_dataset.json").unlink()
    path.write_text("".join(f"{json.dumps(sample)}\n\n" for sample in samples))
    assert verify_states.main(["--data", str(path), "--sample", "2", "--workers", "1", "--mark"]) == 0
    marked = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum("replay" in sample for sample in marked) == 2
    assert [{key: value for key, value in sample.items() if key != "replay"} for sample in marked] == samples


def test_samples_without_outcomes_are_replayed_twice(copy: Path, capsys) -> None:
    samples = samples_of(copy)[20:24]
    for sample in samples:
        del sample["outcomes"]
        sample.pop("expert_decision", None)
    samples[3]["state_file"] = "gone.xml.gz"
    write(copy, samples)
    assert verify_states.main(["--data", str(copy), "--workers", "1", "--mark"]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"\| four_way \| +4 \| +1 \| +not told \| +not told \| +not told \|.* 75\.0 % \|", printed)
    assert [sample["replay"]["verdict"] for sample in samples_of(copy)] == ["repeatable"] * 3 + ["failed"]


# -- faults of processes and files


def test_states_of_other_generators_say_what_they_lack(copy: Path, capsys, tmp_path: Path) -> None:
    """Text instead of messages, states without random numbers, junctions by number: all that is needed, and no more."""
    required = ("prompt", "state_file", "junction_id", "current_green_elapsed", "min_green", "max_green", "sumo")
    samples = samples_of(copy)[:4]
    bare = [{name: sample[name] for name in required} for sample in samples]
    for sample in bare:
        sample["prompt"] = sample["prompt"][-1]["content"]
        state = alone(copy, sample)
        text = state.read_text()
        state.write_text(re.sub(r"<rngState.*?</rngState>", "", text, flags=re.DOTALL))
    write(copy, bare)
    assert verify_states.main(["--data", str(copy), "--workers", "1"]) == 0
    assert (
        "4 states without SUMO's random numbers (rngState): their replays are repeatable, but"
        in capsys.readouterr().out
    )
    convert = ["--input", str(copy), "--output", str(tmp_path / "parquet"), "--val-fraction", "0"]
    json_to_parquet.main(convert)
    assert "4 states without SUMO's random numbers (rngState)" in capsys.readouterr().out
    # the state says how long the green has lasted
    wrong = next(sample for sample in bare if sample["current_green_elapsed"] >= 15)
    lasted_s, wrong["current_green_elapsed"] = wrong["current_green_elapsed"], 10
    write(copy, bare)
    with pytest.raises(SampleError):
        json_to_parquet.main(convert)
    assert f"phase of junction 'A0' has lasted {lasted_s:g} s already" in capsys.readouterr().err


def test_a_state_of_another_net_is_refused_at_the_conversion(copy: Path, capsys, tmp_path: Path) -> None:
    (copy / "other.net.xml").write_text(two_signals())  # it has a signal A0, too
    sample = samples_of(copy)[-1]
    for name in ("outcomes", "expert_decision", "clocks"):
        sample.pop(name, None)
    sample["sumo"] |= {"net_file": "other.net.xml", "net_sha256": None}
    write(copy, [sample])
    with pytest.raises(SampleError):
        json_to_parquet.main(["--input", str(copy), "--output", str(tmp_path / "parquet")])
    assert "but other.net.xml does not: the state was saved with another net" in capsys.readouterr().err


def test_a_junction_that_sumo_switches_itself_is_refused_at_the_conversion(copy: Path, capsys, tmp_path: Path) -> None:
    samples = samples_of(copy)[:2]
    net = copy / samples[0]["sumo"]["net_file"]
    net.write_text(net.read_text().replace('type="static"', 'type="actuated"'))
    for sample in samples:
        sample["sumo"]["net_sha256"] = hashlib.sha256(net.read_bytes()).hexdigest()
    write(copy, samples)
    with pytest.raises(SampleError, match="2 of 2 samples have faults"):
        json_to_parquet.main(["--input", str(copy), "--output", str(tmp_path / "parquet")])
    assert "A0 runs a program of type actuated, which SUMO itself switches" in capsys.readouterr().err


def test_a_worker_that_dies_costs_one_state(small_dataset: Path) -> None:
    jobs = verify_states.read_jobs([small_dataset / "grpo_dataset.json"], None)[:4]
    found = {}
    for number, verification in verify_states.verify_all(jobs, 1):
        found[number] = verification
        if number == 0:
            (worker,) = multiprocessing.active_children()
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
    assert [found[number].verdict for number in range(4)] == ["identical", "failed", "identical", "identical"]
    assert found[1].cause == "SUMO stopped"
    assert "ended its process (status -9)" in found[1].message
    assert jobs[1].request.state_file in found[1].message
    assert not multiprocessing.active_children()


def test_an_interrupted_run_leaves_the_old_file_and_no_process(copy: Path) -> None:
    path = copy / "grpo_dataset.json"
    before = path.read_bytes()
    command = [sys.executable, str(REPO_ROOT / "data_tools/verify_states.py"), "--data", str(copy), "--mark"]
    run = subprocess.Popen(
        [*command, "--workers", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    group = run.pid
    deadline = time.monotonic() + 60
    while len(_processes_of(group)) < 3 and time.monotonic() < deadline:  # itself, Python's resource tracker, a worker
        time.sleep(0.05)
    os.killpg(group, signal.SIGINT)
    assert run.wait(timeout=60) == 130
    assert path.read_bytes() == before
    assert not list(copy.glob(".*"))
    deadline = time.monotonic() + 10
    while _processes_of(group) and time.monotonic() < deadline:  # the tracker ends when it notices that the others have
        time.sleep(0.05)
    assert not _processes_of(group)


def _processes_of(group: int) -> list[int]:
    """Those that live."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def test_a_dataset_that_changed_meanwhile_is_not_marked(copy: Path) -> None:
    path = copy / "grpo_dataset.json"
    before = path.read_bytes()
    with pytest.raises(SampleError, match="has changed while its states were replayed"):
        verify_states.write_marks(path, {0: {"verdict": "identical"}}, sha256="0" * 64)
    assert path.read_bytes() == before


def test_marks_are_refused_while_someone_writes_the_dataset(copy: Path) -> None:
    refusal = pytest.raises(ConfigError, match=f"cannot write marks to {copy}: process {os.getpid()} on ")
    with folder_lock(copy, "the dataset"), refusal:
        verify_states.main(["--data", str(copy), "--mark"])


def test_a_full_disk_leaves_the_old_file(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy / "grpo_dataset.json"
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        verify_states.write_marks(path, {0: {"verdict": "identical"}}, sha256=hashlib.sha256(before).hexdigest())
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert not list(copy.glob(".*"))


def test_a_broken_sample_is_refused_before_anything_is_replayed(copy: Path) -> None:
    samples = samples_of(copy)
    del samples[7]["min_green"]
    write(copy, samples)
    with pytest.raises(SampleError, match=r"sample 7: min_green: .*json_to_parquet"):
        verify_states.main(["--data", str(copy)])


def test_precision_is_judged_by_whether_the_next_number_could_be_told_apart() -> None:
    def state(position: str, speed: str) -> str:
        return f'<vehicle id="v" pos="{position} 0.000" speed="{speed} 0.1"/>'

    assert not has_low_precision(state("178.198960021013691425324", "0.000309105077664902300"))
    assert has_low_precision(state("178.198960021013691425324", "0.00030910507766490"))
    assert has_low_precision(state("178.19896002", "0.000309105077664902300"))


def test_every_cause_is_documented() -> None:
    text = (REPO_ROOT / "docs/replays.md").read_text()
    assert [name for name in CAUSES if f"| {name} |" not in text] == []


@pytest.mark.parametrize("place", ["measure", "terms"])
def test_a_dataset_cannot_choose_code_that_labels_are_by(copy: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "chosen.py").write_text(
        "import sys\nprint('it runs', file=sys.stderr)\ndef queue(simulation, lanes):\n    return 1.0\n"
    )
    samples = samples_of(copy)
    for sample in samples:
        if place == "measure":
            sample["outcomes"] |= {"yes": 45.0, "no": 45.0}
            sample["outcomes"]["settings"]["measure"] = "pkg://chosen:queue"
        else:
            sample["outcomes"]["settings"]["terms"] = ["pkg://chosen:queue"]
            sample["outcomes"]["terms"] = {"pkg://chosen:queue": {"yes": 45.0, "no": 45.0}}
        sample.pop("expert_decision", None)
    write(copy, samples)
    command = [sys.executable, "data_tools/verify_states.py", "--data", str(copy), "--sample", "1", "--workers", "1"]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return subprocess.run([*command, *options], cwd=REPO_ROOT, env=environment, capture_output=True, text=True)

    refused = run()
    assert refused.returncode == 2
    assert "sample 0: its label is by pkg://chosen:queue, which is code: name the reward file" in refused.stderr
    assert "it runs" not in refused.stderr
    section = "outcome: {measure: pkg://chosen:queue}" if place == "measure" else "terms: {pkg://chosen:queue: 1}"
    (tmp_path / "reward.yaml").write_text(section)
    trusted = run("--reward", str(tmp_path / "reward.yaml"))
    assert trusted.returncode == 0, trusted.stdout + trusted.stderr
    assert "it runs" in trusted.stderr


def test_outputs_of_additional_files_are_not_written_and_change_no_replay(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    (copy / "extra.add.xml").write_text(
        f'<additional><edgeData id="a" file="{tmp_path}/edges.xml"/>'
        f'<timedEvent type="SaveTLSStates" source="A0" dest="{tmp_path}/kept.txt"/></additional>'
    )
    samples = samples_of(copy)
    for sample in samples:
        sample["sumo"]["additional_files"] = ["extra.add.xml"]
    write(copy, samples)
    arguments = ["--data", str(copy), "--sample", "4", "--workers", "1"]
    assert verify_states.main([*arguments, "--json", str(tmp_path / "r.json")]) == 0
    assert figures(tmp_path / "r.json")["four_way: identical continuation"] == 1.0
    assert (tmp_path / "kept.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["four_way", "kept.txt", "r.json"]


@pytest.mark.skipif(landlock_version() < 1, reason="this kernel has no Landlock")
def test_a_vehicle_that_makes_sumo_write_a_file_is_refused(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    device = f'<param key="has.ssm.device" value="true"/><param key="device.ssm.file" value="{tmp_path}/kept.txt"/>'
    samples = samples_of(copy)
    for sample in samples:
        state = alone(copy, sample)
        text = state.read_text()
        state.write_bytes(gzip.compress(re.sub(r"(<vehicle [^>]*)/>", rf"\1>{device}</vehicle>", text).encode()))
        sample["state_sha256"] = hashlib.sha256(state.read_bytes()).hexdigest()
    write(copy, samples)
    arguments = ["--data", str(copy), "--sample", "4", "--workers", "1"]
    assert verify_states.main([*arguments, "--json", str(tmp_path / "r.json")]) == 1
    assert figures(tmp_path / "r.json")["four_way: not replayed"] == 4
    assert (tmp_path / "kept.txt").read_text() == "mine"


def test_a_state_that_unpacks_to_more_than_memory_is_an_error(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = alone(copy, samples_of(copy)[0])
    with gzip.open(state, "wb") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    with pytest.raises(StateError, match="more than 256 MiB of XML"):
        state_text(state.read_bytes(), state)


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.xml", "states/../../secret.xml", "/dev/zero"])
def test_a_state_outside_of_its_dataset_is_refused(copy: Path, name: str) -> None:
    samples = samples_of(copy)
    samples[0]["state_file"] = name
    write(copy, samples)
    with pytest.raises(SampleError, match="leads out of the folder of the dataset file"):
        verify_states.read_jobs([copy / "grpo_dataset.json"])
