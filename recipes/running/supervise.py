"""Run a command that never outlives its caller, leaves no process behind and never hangs because of a dead worker.

Example:
    python recipes/running/supervise.py --log runs/mine/grpo/train.log --metrics runs/mine/grpo/metrics/1.jsonl \\
        --watch-workers -- python -m verl.trainer.main_ppo …

Ends the command and everything that it started, also detached processes, in three cases: this process gets Ctrl-C,
SIGTERM or SIGHUP; its parent dies; one of verl's long-lived workers dies while verl continues without it
(--watch-workers). The command has a TMPDIR of its own, which goes after it, as does what it shared in /dev/shm.
SIGUSR1 makes it write stacks.txt in the folder of the log: what each Python process of the command is doing, as py-spy
reports it. It also writes this file before it ends a command that stalls.
Exit status: that of the command; 1 after a dead worker or a stall; 128 + the signal's number after a signal.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

# After so many steps with nearly the same answer to all prompts, the policy no longer changes its answer.
ONE_SIDED_STEPS = 5

# How long the command may take to end after SIGTERM, before everything is killed.
TERMINATION_S = 10.0
POLL_S = 0.5
# How often to look which shared memory the command uses. A look reads some thousand lines a process.
SHARED_MEMORY_POLL_S = 20.0
# A Unix socket's path has at most 107 characters, and Ray's are long below TMPDIR.
LONGEST_TEMPORARY_FOLDER = 30

# Ray names its actors ray::Class or ray::Class.method, and idle workers ray::IDLE. vLLM names its processes VLLM::….
# A process that one of them starts has the same name until it becomes another program.
WORKER_NAME = re.compile(r"^(ray::(?!IDLE|Spill|Restore)\w+|VLLM::\w+)")
RAY_DAEMONS = ("raylet", "gcs_server")
# verl always ends these before it ends itself.
ENDED_BY_VERL = ("ray::TransferQueueController", "ray::SimpleStorageUnit")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
RAISED = re.compile(
    r"^(?:\(.*?\) )?(?!Error executing job)((?:[A-Za-z_]+\.)*[A-Za-z_]*(?:Error|Exception|Killed|Interrupt|Died)\b.*)$"
)

STACKS_FILE = "stacks.txt"
PY_SPY_TIMEOUT_S = 10.0

# begins the last line of a log after somebody ended the command; the lines before may be errors that this caused
STOPPED = "the launch was stopped by"
WAITING = re.compile(r"waiting for the answers to .*")

# What torch, vLLM and Ray write when memory runs out, and what helps.
MEMORY_REMEDIES = (
    (
        re.compile(r"No available memory for the cache blocks|KV cache is needed|less than desired GPU memory util"),
        "vLLM has too little of the GPU's memory: raise hardware.gpu_memory_utilization (after the command), or give "
        "the trainer less with a smaller MICRO_BATCH",
    ),
    (
        re.compile(r"CUDA out of memory|OutOfMemoryError: CUDA"),
        "the GPU's memory ran out: halve MICRO_BATCH (the plan above says what it is), or lower "
        "hardware.gpu_memory_utilization (after the command)",
    ),
    (
        re.compile(r"DefaultCPUAllocator: can't allocate memory|node running low on memory|\bMemoryError\b"),
        "main memory ran out: end other programs, halve MICRO_BATCH (the plan above says what it is), or lower "
        "hardware.num_agent_workers and hardware.num_reward_workers (after the command)",
    ),
)


def memory_remedy(log_text: str) -> str | None:
    """What to change where the log says that memory ran out; else None."""
    return next((remedy for pattern, remedy in MEMORY_REMEDIES if pattern.search(log_text)), None)


def worker_name(process: psutil.Process) -> str | None:
    """The name of a long-lived worker (`ray::WorkerDict`, `VLLM::Worker`, `raylet`, …). None for any other process."""
    match = WORKER_NAME.match(_command_line(process))
    if not match:
        return process.name() if process.name() in RAY_DAEMONS else None
    name = match.group(1)
    parent = process.parent()
    started_by = _command_line(parent) if parent else ""
    kind = "ray::" if name.startswith("ray::") else name  # the raylet starts Ray's workers, which change their titles
    return None if started_by.startswith(kind) else name


def _command_line(process: psutil.Process) -> str:
    """The command line of a process; empty for one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _stack(pid: int) -> str:
    """What a Python process is doing, or why py-spy cannot see it."""
    command = [Path(sys.executable).with_name("py-spy"), "dump", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PY_SPY_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{error}\n"
    return done.stdout or done.stderr


def shared_files(processes: Iterable[psutil.Process]) -> set[Path]:
    """The files of /dev/shm that the processes have in their memory. Python and verl leave them when they are killed,
    and Python's queues also otherwise."""
    found = set()
    for process in processes:
        try:
            maps = Path(f"/proc/{process.pid}/maps").read_text()
        except OSError:  # it has ended
            continue
        found |= set(re.findall(r" (/dev/shm/\S+)$", maps, re.MULTILINE))
    return {Path(name) for name in found}


@dataclass
class WorkerWatch:
    """The workers that were seen alive, and the first that died while others lived on."""

    alive: dict[int, str] = field(default_factory=dict)
    dead: list[str] = field(default_factory=list)
    dead_since: float | None = None

    def look(self, processes: Iterable[psutil.Process], now_s: float) -> None:
        present: dict[int, str | None] = {}
        for process in processes:
            try:
                # A process that is ending loses its command line before it is a zombie.
                if process.status() != psutil.STATUS_ZOMBIE and process.cmdline():
                    present[process.pid] = worker_name(process)
            except psutil.NoSuchProcess:
                continue
        gone = {pid: name for pid, name in self.alive.items() if pid not in present}
        # A worker of Ray that only ran a task becomes idle again. Ray may then end it.
        self.alive = {pid: name for pid, name in present.items() if name}
        if gone and self.alive and self.dead_since is None:
            self.dead = [f"{name} (process {pid})" for pid, name in gone.items()]
            self.dead_since = now_s


def raised_errors(log_text: str, limit: int = 5) -> list[str]:
    """The last `SomeError: message` lines of a log in their order, each once, without colours and Ray's prefixes."""
    found: list[str] = []
    for line in ANSI.sub("", log_text).splitlines():
        match = RAISED.match(line.strip())
        if match:
            text = match.group(1)[:300]
            if text in found:
                found.remove(text)
            found.append(text)
    return found[-limit:]


def awaited(log_text: str) -> str | None:
    """What the last line of the log says that a step waits for (recipes/verl_plugins/replay_buffer.py)."""
    found = WAITING.search(ANSI.sub("", log_text.rstrip().rpartition("\n")[2]))
    return found[0] if found else None


def progress_line(step: int, metrics: dict[str, float]) -> str | None:
    """One short line for a training step. None for a record without training metrics."""
    parts = [f"step {step}"]
    if "reward/score/mean" in metrics:
        parts.append(f"score {metrics['reward/score/mean']:+.3f}")
        if "reward/format_exact/mean" in metrics:
            parts.append(f"exact format {metrics['reward/format_exact/mean']:.0%}")
        if "reward/answer_yes/mean" in metrics:
            parts.append(f"yes {metrics['reward/answer_yes/mean']:.0%}")
        if metrics.get("reward/one_sided_steps", 0) >= ONE_SIDED_STEPS:
            parts.append("WARNING: nearly all answers are the same, little is left to learn (more balance, more KL?)")
        if metrics.get("reward/failed/sum"):
            parts.append(f"failed rewards {metrics['reward/failed/sum']:.0f}")
    elif "train/loss" in metrics:
        parts.append(f"loss {metrics['train/loss']:.4f}")
    elif "val/loss" in metrics:
        parts.append(f"validation loss {metrics['val/loss']:.4f}")
    else:
        return None
    if "timing_s/step" in metrics:
        parts.append(f"{metrics['timing_s/step']:.1f} s")
    return "  ".join(parts)


class Progress:
    """Prints what is new in verl's metrics file, at most one line every `every_s` seconds."""

    def __init__(self, path: Path | None, every_s: float) -> None:
        self._path = path
        self._every_s = every_s
        self._file: IO[str] | None = None
        self._printed_s = float("-inf")
        self._waiting: str | None = None

    def show(self, now_s: float, last: bool = False) -> None:
        if self._path is None:
            return
        if self._file is None:
            if not self._path.exists():
                return
            self._file = self._path.open(encoding="utf-8")
        while True:
            start = self._file.tell()
            line = self._file.readline()
            if not line.endswith("\n"):
                self._file.seek(start)
                break
            record = json.loads(line)
            # JSON has no word for a loss that is not a number
            metrics = {name: math.nan if value is None else value for name, value in record["data"].items()}
            self._waiting = progress_line(record["step"], metrics) or self._waiting
        if self._waiting and (last or now_s - self._printed_s >= self._every_s):
            print(f"  {self._waiting}", flush=True)
            self._waiting = None
            self._printed_s = now_s


class Supervisor:
    """Owns the command and all its descendants."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._signal: int | None = None
        self._stacks_wanted = False
        self._status: int | None = None
        self._pid = 0
        self._shared: set[Path] = set()
        self._folder = ""

    def _note_signal(self, signum: int, _frame: FrameType | None) -> None:
        self._signal = signum

    def _ask_for_stacks(self, signum: int, _frame: FrameType | None) -> None:
        self._stacks_wanted = True

    def _start(self, log: IO[bytes] | None) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        # A process below us that loses its parent becomes our child, so we can always find it.
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        parent = os.getppid()
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if self._arguments.parent_pid not in (None, parent):
            raise SystemExit(1)  # the caller died before prctl asked for the signal
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._note_signal)
        signal.signal(signal.SIGUSR1, self._ask_for_stacks)

        def in_child() -> None:
            # A shell starts background jobs with SIGINT ignored, and they would inherit that.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

        given = tempfile.gettempdir()
        parent_folder = given if len(given) <= LONGEST_TEMPORARY_FOLDER else "/tmp"
        self._folder = tempfile.mkdtemp(prefix="tsc-run.", dir=parent_folder)
        try:
            command = subprocess.Popen(
                self._arguments.command,
                # the replay server serves other commands, too
                env={"TSC_REPLAY_FOLDER": given} | os.environ | {"TMPDIR": self._folder},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT if log else None,
                start_new_session=True,
                preexec_fn=in_child,
            )
        except OSError as error:
            shutil.rmtree(self._folder)
            print(f"error: cannot start {self._arguments.command[0]}: {error.strerror}", file=sys.stderr)
            raise SystemExit(2) from error
        self._pid = command.pid
        command.returncode = 0  # _reap collects it, not Popen

    def _reap(self) -> None:
        """Collect ended children: the command itself, and orphans that became our children."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._pid:
                self._status = os.waitstatus_to_exitcode(status)

    def _stacks(self) -> str:
        """Write what the Python processes of the command are doing. Returns the file's path, or why there is none:
        whatever fails here must not keep a stalled command from being ended."""
        path = self._arguments.log.with_name(STACKS_FILE)
        parts = []
        for process in self._descendants():
            try:
                is_python = "python" in _command_line(process) or worker_name(process)
            except psutil.NoSuchProcess:
                continue
            if is_python:
                parts.append(f"{_command_line(process)[:200]}\n{_stack(process.pid)}")
        try:
            path.with_suffix(".tmp").write_text("\n".join(parts))
            path.with_suffix(".tmp").rename(path)
        except OSError as error:
            return f"not written ({error})"
        return str(path)

    def _descendants(self) -> list[psutil.Process]:
        return psutil.Process().children(recursive=True)

    def _end_all(self) -> None:
        """End what runs, and remove what it leaves behind in /dev/shm and in its folder for temporary files."""
        self._shared |= shared_files(self._descendants())
        self._end_processes()
        for path in self._shared:
            path.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end_processes(self) -> None:
        """Send SIGTERM to the command, so that verl and Ray can end in order. Then send SIGKILL to all that is left."""
        if self._status is None:
            os.kill(self._pid, signal.SIGTERM)
            deadline = time.monotonic() + TERMINATION_S
            while self._status is None and time.monotonic() < deadline:
                time.sleep(0.1)
                self._reap()
        deadline = time.monotonic() + TERMINATION_S
        while time.monotonic() < deadline:
            left = self._descendants()
            if not left:
                return
            for process in left:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.05)
            self._reap()

    def run(self) -> int:
        """Run the command to its end and return the exit status."""
        arguments = self._arguments
        log_start = arguments.log.stat().st_size if arguments.log and arguments.log.exists() else 0
        log = arguments.log.open("ab") if arguments.log else None
        self._start(log)
        watch = WorkerWatch()
        progress = Progress(arguments.metrics, arguments.every)
        cause: str | None = None
        log_size, log_grew_s = log_start, time.monotonic()
        looked_s = time.monotonic()
        while self._status is None and self._signal is None and cause is None:
            time.sleep(POLL_S)
            self._reap()
            now_s = time.monotonic()
            progress.show(now_s)
            if self._status is not None:
                break
            if now_s - looked_s >= SHARED_MEMORY_POLL_S:
                self._shared |= shared_files(self._descendants())
                looked_s = now_s
            if arguments.watch_workers:
                watch.look(self._descendants(), now_s)
                if watch.dead_since is not None and now_s - watch.dead_since > arguments.grace:
                    cause = f"{', '.join(watch.dead)} died, and the run cannot continue without it"
            if self._stacks_wanted and arguments.log:
                self._stacks_wanted = False
                print(f"stacks of all processes: {self._stacks()}", flush=True)
            if arguments.log:
                size = arguments.log.stat().st_size
                if size != log_size:
                    log_size, log_grew_s = size, now_s
                elif now_s - log_grew_s > arguments.stall:
                    cause = f"nothing was written to {arguments.log} for {arguments.stall:.0f} s"
                    cause += f"; what each process was doing: {self._stacks()}"
        progress.show(time.monotonic(), last=True)
        if self._signal is not None:
            # Further signals must not interrupt the clean-up.
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(signum, signal.SIG_IGN)
        own_status = self._status
        self._end_all()
        if self._signal is not None:
            if log:
                log.write(f"\n{STOPPED} {signal.Signals(self._signal).name}\n".encode())
                log.close()
            return 128 + self._signal
        if cause is None and own_status == 0:
            return 0
        if cause is None:
            ended = f"signal {-own_status}" if own_status < 0 else f"exit status {own_status}"
            cause = f"{arguments.name} ended with {ended}"
            dead = [worker for worker in watch.dead if not worker.startswith(ENDED_BY_VERL)]
            if dead:
                cause += f" after {', '.join(dead)} died"
        print(f"error: {cause}", file=sys.stderr)
        if arguments.log:
            with arguments.log.open("rb") as text:
                text.seek(log_start)
                written = text.read().decode(errors="replace")
            if waited := awaited(written):
                print(f"       it was {waited}", file=sys.stderr)
            for error in raised_errors(written):
                print(f"       {error}", file=sys.stderr)
            if remedy := memory_remedy(written):
                print(f"       {remedy}. The command then continues from the last checkpoint.", file=sys.stderr)
            print(f"       the whole log: {arguments.log}", file=sys.stderr)
        return own_status if own_status is not None and own_status > 0 else 1


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="the command", help="name of the command in messages")
    parser.add_argument("--log", type=Path, help="append the command's output to this file instead of printing it")
    parser.add_argument("--metrics", type=Path, help="verl's metrics file (JSON Lines), shown as it grows")
    parser.add_argument(
        "--every", type=float, default=5.0, help="seconds between progress lines (default: %(default)s)"
    )
    parser.add_argument("--watch-workers", action="store_true", help="end the run when a worker of Ray or vLLM dies")
    parser.add_argument(
        "--stall",
        type=float,
        default=1800.0,
        help="seconds without a line in the log that end the run (default: %(default)s)",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=20.0,
        help="seconds for the command to notice a dead worker itself and say more about it (default: %(default)s)",
    )
    parser.add_argument("--parent-pid", type=int, help="process id of the parent: end when it dies")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND ARGUMENT…")
    arguments = parser.parse_args(argv)
    if arguments.command[:1] == ["--"]:
        arguments.command = arguments.command[1:]
    if not arguments.command:
        parser.error("no command given after --")
    return arguments


if __name__ == "__main__":
    sys.exit(Supervisor(parse_arguments()).run())
