"""scripts/plan.py as a user runs it: the verdict, the exit status, and what it says to type."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from recipes.preflight import plan
from tsc.errors import ConfigError


@pytest.fixture(scope="module")
def script(repo_root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("plan", repo_root / "scripts/plan.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Plans:
    """Runs the script's main in this process: its exit status and its output."""

    def __init__(self, script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._script, self._monkeypatch, self._capsys = script, monkeypatch, capsys

    def __call__(self, algorithm: str, hardware: str, model: str, *overrides: str) -> tuple[int, str]:
        words = ["--algorithm", algorithm, "--hardware", hardware, "--model", model, "--", *overrides]
        self._monkeypatch.setattr(sys, "argv", ["plan.py", *words])
        status = self._script.main()
        return status, self._capsys.readouterr().out


@pytest.fixture
def plans(script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plans:
    # as on a machine without a GPU, whatever this one has
    monkeypatch.setattr(plan.shutil, "which", lambda name: None)
    return Plans(script, monkeypatch, capsys)


def test_a_t4_owner_reads_that_half_a_billion_fits_without_verl_being_loaded(repo_root: Path) -> None:
    script = (
        "import runpy, sys\n"
        "try:\n    runpy.run_path('scripts/plan.py', run_name='__main__')\n"
        "except SystemExit as exit: status = exit.code\n"
        "assert 'verl' not in sys.modules and 'vllm' not in sys.modules and 'ray' not in sys.modules\n"
        "sys.exit(status)"
    )
    words = ["--algorithm", "grpo", "--hardware", "t4", "--model", "qwen2.5-0.5b"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=repo_root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("GRPO of qwen2.5-0.5b (0.49 billion parameters; LoRA of rank 32")
    assert any(re.fullmatch(r"FITS: at most \d+\.\d of 14\.1 GiB per GPU \(.*\)", line) for line in lines)
    assert lines[-1].startswith("Qwen2.5 on 1 × T4: 0.5B yes; 1.5B")
    assert max(map(len, lines)) <= 130
    assert len(lines) <= 30


def test_the_tables_columns_add_up(plans: Plans) -> None:
    _, output = plans("ppo", "a100_80g", "qwen2.5-1.5b")
    lines = output.splitlines()
    begin = next(index for index, line in enumerate(lines) if line.startswith("GiB per GPU"))
    end = next(index for index, line in enumerate(lines) if line.startswith("in all"))
    columns = len(re.findall(r"\d+\.\d", lines[end]))
    rows = [re.findall(r"\d+\.\d|–", line) for line in lines[begin + 1 : end]]
    assert all(len(row) == columns for row in rows)
    for column, total in enumerate(re.findall(r"\d+\.\d", lines[end])):
        parts = [float(row[column]) for row in rows if row[column] != "–"]
        # each figure is rounded
        assert sum(parts) == pytest.approx(float(total), abs=0.06 * len(parts))


def test_what_does_not_fit_ends_with_status_2_and_a_command_that_fits(plans: Plans) -> None:
    status, output = plans("sft", "h100", "qwen2.5-7b", "model.lora_rank=0")
    assert status == 2
    assert "DOES NOT FIT" in output
    command = output.split("To make it fit, add to your command:\n")[1].splitlines()[0].strip()
    assert command == "LORA_RANK=32 bash scripts/train_sft.sh"
    # what the launcher makes of it
    status, output = plans("sft", "h100", "qwen2.5-7b", "model.lora_rank=32")
    assert status == 0
    assert "FITS" in output


def test_overrides_after_the_command_are_followed_to_the_letter(plans: Plans) -> None:
    awake = ("hardware.sleep_mode=false", "hardware.gpu_memory_utilization=0.8", "hardware.micro_batch_size=64")
    status, output = plans("grpo", "l4", "qwen2.5-0.5b", *awake)
    assert status == 2
    command = re.search(r"To make it fit.*:\n +(.*)\n", output)
    assert command is not None
    words = command[1].split()
    knobs = {"MICRO_BATCH": "hardware.micro_batch_size", "N_GPUS": "hardware.num_devices"}
    typed = [word.split("=", 1) for word in words if "=" in word]
    followed = [f"{knobs.get(name, name)}={value}" for name, value in typed]
    assert followed
    status, output = plans("grpo", "l4", "qwen2.5-0.5b", *awake, *followed)
    assert status == 0, output


def test_a_model_too_large_for_the_hardware_is_answered_with_more_gpus_and_with_a_smaller_one(plans: Plans) -> None:
    status, output = plans("grpo", "t4", "qwen2.5-7b")
    assert status == 2
    assert "No change of the settings alone is enough on 1 × T4." in output
    assert re.search(r"take more GPUs:\n +N_GPUS=\d", output)
    smaller = re.search(r"take a smaller model:\n +MODEL_PATH=/path/to/(\S+) (.*)", output)
    assert smaller is not None
    assert plans("grpo", "t4", smaller[1])[0] == 0


def test_the_table_of_the_docs_is_the_one_that_it_prints(plans: Plans, repo_root: Path) -> None:
    table = plan.fits_table()
    assert "\n\n" + table + "\n\n" in (repo_root / "docs/hardware.md").read_text()
    # a cell and the command line of the same run agree
    assert "| T4 | to 1.5B |" in table
    assert [plans("grpo", "t4", f"qwen2.5-{size}")[0] for size in ("0.5b", "1.5b", "3b")] == [0, 0, 2]


def test_hardware_named_among_the_overrides_counts(script: ModuleType) -> None:
    named = ["hardware=h200", "data.train_batch_size=64"]
    assert script.with_hardware(named, None) == script.with_hardware(named, "t4") == named
    assert script.with_hardware([], "t4") == ["hardware=t4"]
    with pytest.raises(ConfigError, match="name the hardware: --hardware cpu, t4"):
        script.with_hardware([], None)


@pytest.mark.parametrize(
    ("algorithm", "hardware", "model", "override", "message"),
    [
        ("grpo", "tpu", "tiny", "", "tpu"),
        ("grpo", "t4", "qwen9", "", "no model 'qwen9'"),
        ("grpo", "t4", "tiny", "actor_rollout_ref.rollout.n=0", "rollout.n=0 is not a whole number of at least 1"),
        ("sft", "t4", "tiny", "hardware.param_dtype=fp12", "fp12 is unknown: choose one of fp32"),
        ("dpo", "t4", "tiny", "model.target_modules=[wqkv]", "LORA_TARGETS names wqkv"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(
    algorithm: str, hardware: str, model: str, override: str, message: str, plans: Plans
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        plans(algorithm, hardware, model, *([override] if override else []))


def test_a_dry_run_without_a_folder_is_refused(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--algorithm", "grpo", "--hardware", "cpu", "--model", "tiny", "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["plan.py", *words])
    with pytest.raises(SystemExit) as raised:
        script.main()
    assert raised.value.code == 2
    assert "--dry-run and --out FOLDER belong together" in capsys.readouterr().err


def test_on_a_cpu_the_machines_own_memory_is_the_limit(plans: Plans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "machine_memory_bytes", lambda: 16 * 2**30)
    status, output = plans("grpo", "cpu", "tiny")
    assert status == 0
    assert "of 15.5 GiB main memory" in output
    monkeypatch.setattr(plan, "machine_memory_bytes", lambda: 4 * 2**30)
    status, output = plans("grpo", "cpu", "tiny")
    assert status == 2
    assert "main memory: " in output


def test_the_demo_is_let_through_on_the_eight_gib_it_is_made_for(plans: Plans, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sequences have 69 tokens; all 528 would not fit."""
    monkeypatch.setattr(plan, "machine_memory_bytes", lambda: 8 * 10**9)
    status, output = plans("grpo", "cpu", "tiny", "actor_rollout_ref.actor.use_kl_loss=true")
    assert status == 0
    tokens = re.search(r"FITS as long as no sequence has more than about (\d+) tokens", output)
    assert tokens is not None and 132 <= int(tokens[1]) < 528
    assert "MICRO_BATCH=" in output
    # a GPU does not yield: there the run may not start
    status, output = plans(
        "sft", "t4", "qwen2.5-0.5b", "hardware.micro_batch_size=16", "hardware.gradient_checkpointing=false"
    )
    assert status == 2
    assert re.search(r"\(it would, as long as no sequence has more than about \d+ tokens\)", output)


def test_main_memory_is_checked_beside_a_gpu_of_this_machine(plans: Plans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(plan, "machine_memory_bytes", lambda: 8 * 2**30)
    status, output = plans("grpo", "t4", "qwen2.5-1.5b")
    assert status == 2
    assert re.search(r"main memory: \d+\.\d GiB of 7\.8 usable", output)
