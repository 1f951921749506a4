"""A supervised command leaves no process behind, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from recipes.running.supervise import WorkerWatch, memory_remedy, progress_line, raised_errors

# Prints its own pid and that of a grandchild which has left its session and lost its parent, as Ray's processes do.
DETACHED = "import os,sys,time; os.setsid(); os.fork() and os._exit(0); print(os.getpid(), flush=True); time.sleep(300)"
COMMAND = f"{sys.executable} -c '{DETACHED}' & echo $$; sleep 300"


def start(repo_root: Path, *options: str, command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(repo_root / "recipes/running/supervise.py"), *options, "--", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def two_pids(process: subprocess.Popen[str]) -> list[psutil.Process]:
    assert process.stdout
    return [psutil.Process(int(process.stdout.readline())) for _ in range(2)]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_even_detached_grandchildren(repo_root: Path, signum: signal.Signals) -> None:
    supervisor = start(repo_root, command=["bash", "-c", COMMAND])
    processes = two_pids(supervisor)
    supervisor.send_signal(signum)
    assert supervisor.wait(timeout=30) == 128 + signum
    assert psutil.wait_procs(processes, timeout=2)[1] == []


def test_the_log_of_a_stopped_command_ends_with_the_signal(repo_root: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    supervisor = start(repo_root, "--log", str(log), command=["bash", "-c", "echo begun; sleep 300"])
    while not log.is_file() or not log.read_text():
        time.sleep(0.1)
    supervisor.send_signal(signal.SIGINT)
    supervisor.wait(timeout=30)
    assert log.read_text().splitlines() == ["begun", "", "the launch was stopped by SIGINT"]


def test_a_killed_caller_ends_everything(repo_root: Path) -> None:
    script = f'{sys.executable} {repo_root}/recipes/running/supervise.py --parent-pid $$ -- bash -c "$0" & wait'
    caller = subprocess.Popen(["bash", "-c", script, COMMAND], stdout=subprocess.PIPE, text=True)
    processes = two_pids(caller)
    caller.kill()
    assert psutil.wait_procs(processes, timeout=20)[1] == []


def test_a_command_that_ends_takes_its_leftovers_along_and_keeps_its_status(repo_root: Path) -> None:
    supervisor = start(repo_root, command=["bash", "-c", COMMAND.replace("sleep 300", "sleep 1; exit 7")])
    processes = two_pids(supervisor)
    assert supervisor.wait(timeout=30) == 7
    assert psutil.wait_procs(processes, timeout=2)[1] == []


SHARES = """
import os, sys, tempfile, time
from multiprocessing import resource_tracker, shared_memory
memory = shared_memory.SharedMemory(name="psm_" + os.urandom(8).hex(), create=True, size=1 << 20)
resource_tracker.unregister(memory._name, "shared_memory")  # as in a process that is killed
print(memory.name, tempfile.mkdtemp(), flush=True)
time.sleep(300)
"""


def test_temporary_files_and_shared_memory_go_with_the_command(repo_root: Path) -> None:
    supervisor = start(repo_root, command=[sys.executable, "-c", SHARES])
    assert supervisor.stdout
    name, folder = supervisor.stdout.readline().split()
    assert Path("/dev/shm", name).is_file()
    assert Path(folder).parent.name.startswith("tsc-run.")
    assert Path(folder).parent.stat().st_mode & 0o777 == 0o700
    supervisor.terminate()
    assert supervisor.wait(timeout=30) == 128 + signal.SIGTERM
    assert not Path("/dev/shm", name).exists()
    assert not Path(folder).parent.exists()


def test_a_dead_worker_ends_the_run_and_is_named(repo_root: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = "(exec -a ray::WorkerDict sleep 300) & (exec -a VLLM::Worker sleep 300) & echo $!; echo; sleep 300"
    options = ["--watch-workers", "--grace", "1", "--log", str(log)]
    supervisor = start(repo_root, *options, command=["bash", "-c", command])
    deadline = time.monotonic() + 10
    while not (log.exists() and log.read_text().endswith("\n\n")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1.5)  # the supervisor must have seen the worker alive
    worker = int(log.read_text())
    os.kill(worker, signal.SIGKILL)
    _, errors = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 1
    assert f"VLLM::Worker (process {worker}) died" in errors
    assert str(log) in errors


class Seen:
    """What psutil says of a process: an ending one has no command line any more, but is not yet a zombie."""

    def __init__(self, pid: int, command: list[str]) -> None:
        self.pid = pid
        self.command = command

    def status(self) -> str:
        return psutil.STATUS_SLEEPING

    def cmdline(self) -> list[str]:
        return self.command

    def name(self) -> str:
        return "python"

    def parent(self) -> None:
        return None


def test_a_worker_that_is_seen_in_the_middle_of_its_end_counts_as_dead() -> None:
    watch = WorkerWatch()
    other = Seen(2, ["ray::WorkerDict"])
    watch.look([Seen(1, ["VLLM::Worker"]), other], now_s=0.0)
    watch.look([Seen(1, []), other], now_s=1.0)
    watch.look([other], now_s=2.0)
    assert watch.dead == ["VLLM::Worker (process 1)"]
    assert watch.dead_since == 1.0


@pytest.mark.parametrize(
    ("parent", "child"),
    [("ray::WorkerDict", "ray::WorkerDict"), ("ray::IDLE", "ray::work"), ("VLLM::Worker", "VLLM::Worker")],
)
def test_a_process_that_a_worker_starts_may_end(repo_root: Path, tmp_path: Path, parent: str, child: str) -> None:
    # Between fork and exec it still has the worker's title.
    start_both = "bash -c '(exec -a {child} sleep 2) & exec -a {parent} sleep 6' & exec -a VLLM::EngineCore sleep 7"
    command = ["bash", "-c", start_both.format(parent=parent, child=child)]
    supervisor = start(repo_root, "--watch-workers", "--grace", "1", "--log", str(tmp_path / "log"), command=command)
    _, errors = supervisor.communicate(timeout=30)
    assert (supervisor.returncode, errors) == (0, "")


def test_a_command_without_output_for_too_long_is_ended(repo_root: Path, tmp_path: Path) -> None:
    waiting = "(TaskRunner pid=7) waiting for the answers to 3 of 32 prompts: 3 are being answered or replayed"
    command = ["bash", "-c", f"echo '{waiting}'; sleep 300"]
    supervisor = start(repo_root, "--log", str(tmp_path / "log"), "--stall", "1", command=command)
    _, errors = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 1
    assert "nothing was written" in errors
    assert "it was waiting for the answers to 3 of 32 prompts" in errors


PROGRAM = "import time\ndef wait_for_ever():\n    print('begun', flush=True)\n    time.sleep(300)\nwait_for_ever()"


def check_stacks(path: Path) -> None:
    text = path.read_text()
    if "Permission denied" in text or "Operation not permitted" in text:
        pytest.skip("py-spy may not look at processes here (a container without SYS_PTRACE)")
    assert "wait_for_ever" in text


def test_the_stacks_of_all_processes_are_written_on_demand(repo_root: Path, tmp_path: Path) -> None:
    supervisor = start(repo_root, "--log", str(tmp_path / "log"), command=[sys.executable, "-c", PROGRAM])
    while not (tmp_path / "log").is_file() or not (tmp_path / "log").read_text():
        time.sleep(0.1)
    supervisor.send_signal(signal.SIGUSR1)
    assert supervisor.stdout is not None
    assert supervisor.stdout.readline() == f"stacks of all processes: {tmp_path / 'stacks.txt'}\n"
    supervisor.terminate()
    supervisor.wait(timeout=30)
    check_stacks(tmp_path / "stacks.txt")


def test_the_stacks_are_written_before_a_stalled_command_is_ended(repo_root: Path, tmp_path: Path) -> None:
    supervisor = start(
        repo_root, "--log", str(tmp_path / "log"), "--stall", "5", command=[sys.executable, "-c", PROGRAM]
    )
    _, errors = supervisor.communicate(timeout=60)
    assert f"what each process was doing: {tmp_path / 'stacks.txt'}" in errors
    check_stacks(tmp_path / "stacks.txt")


def test_a_command_that_does_not_exist_is_an_error(repo_root: Path) -> None:
    supervisor = start(repo_root, command=["no-such-command"])
    _, errors = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 2
    assert "cannot start no-such-command" in errors


def test_the_last_different_errors_of_a_log_are_shown() -> None:
    log = "\x1b[36m(WorkerDict pid=1)\x1b[0m ValueError: first\nplain\nValueError: first\nray.RayTaskError(X): second"
    assert raised_errors(log) == ["ValueError: first", "ray.RayTaskError(X): second"]


def test_warnings_are_no_errors() -> None:
    assert raised_errors("x.py:1: UserWarning: no engine: ModuleNotFoundError('y')") == []


def test_hydras_list_of_overrides_is_no_error() -> None:
    assert raised_errors("Error executing job with overrides: ['a=1']\nValueError: x") == ["ValueError: x"]


def test_what_verl_ends_before_itself_is_not_the_cause(repo_root: Path, tmp_path: Path) -> None:
    command = "(exec -a ray::SimpleStorageUnit sleep 2) & (exec -a ray::WorkerDict sleep 9) & sleep 4; exit 1"
    options = ["--watch-workers", "--log", str(tmp_path / "log"), "--name", "verl"]
    supervisor = start(repo_root, *options, command=["bash", "-c", command])
    _, errors = supervisor.communicate(timeout=30)
    assert errors.splitlines()[0] == "error: verl ended with exit status 1"


def test_progress_shows_a_training_step_in_one_line() -> None:
    metrics = {"reward/score/mean": 0.25, "reward/format_exact/mean": 1.0, "reward/answer_yes/mean": 0.4}
    line = progress_line(3, metrics | {"timing_s/step": 2.04})
    assert line == "step 3  score +0.250  exact format 100%  yes 40%  2.0 s"


def test_progress_warns_of_a_policy_that_gives_one_answer_only() -> None:
    metrics = {"reward/score/mean": 0.25, "reward/answer_yes/mean": 0.01}
    assert "WARNING" not in str(progress_line(3, metrics | {"reward/one_sided_steps": 4}))
    assert "WARNING: nearly all answers are the same" in str(progress_line(4, metrics | {"reward/one_sided_steps": 5}))


def test_a_loss_that_is_not_a_number_is_shown_and_ends_nothing(repo_root: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "data": {"train/loss": null}}\n')
    options = ["--log", str(tmp_path / "log"), "--metrics", str(metrics), "--name", "verl"]
    supervisor = start(repo_root, *options, command=["true"])
    output, _ = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 0
    assert output == "  step 1  loss nan\n"


def test_a_record_without_training_metrics_is_not_progress() -> None:
    assert progress_line(0, {"val-core/tsc/four_way/reward/mean@1": 0.2}) is None


# Takes more than it may have, as an update of too many sequences does.
TOO_LARGE = (
    "import resource, torch; resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)); torch.ones(4 << 30).exp()"
)


def test_a_training_that_runs_out_of_memory_says_which_knob_to_lower(repo_root: Path, tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    supervisor = start(repo_root, "--log", str(log), command=[sys.executable, "-c", TOO_LARGE])
    _, told = supervisor.communicate(timeout=120)
    assert supervisor.returncode == 1
    assert "can't allocate memory" in told and "main memory ran out" in told and "halve MICRO_BATCH" in told


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has", "halve MICRO_BATCH"),
        (
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
            "vLLM has too",
        ),
        (
            "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
            "main memory ran out",
        ),
        ("RuntimeError: the size of tensor a must match the size of tensor b", None),
    ],
)
def test_what_helps_depends_on_whose_memory_ran_out(line: str, told: str | None) -> None:
    remedy = memory_remedy(f"one\n(WorkerDict pid=3) {line}\ntwo")
    assert remedy is None if told is None else remedy is not None and told in remedy
