"""scripts/setup_env.sh in a copy of the repository, on a machine whose programs each test chooses.

Most tests put stand-ins for uv and Python on PATH. The one for uv records its calls and makes an
environment of empty files.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]

# The programs that the script may expect on a Linux machine, and those that the stand-ins use.
SYSTEM_TOOLS = (
    "awk",
    "bash",
    "cat",
    "cut",
    "chmod",
    "df",
    "dirname",
    "flock",
    "grep",
    "mkdir",
    "rm",
    "sed",
    "sha256sum",
    "sleep",
    "sort",
    "tail",
    "timeout",
    "uname",
    "wc",
)

FAKE_PYTHON = """#!/bin/bash
case "$*" in
    *version_info?:3?*) echo {version} ;;
    *cp%d%d*) echo cp311 ;;
    *"-m pip"*) exit 1 ;;
esac
"""

FAKE_UV = """#!/bin/bash
if [[ $1 == --version ]]; then echo 'uv 0.13.8'; exit; fi
echo "$*" >>"$UV_CALLS"
case "$1 $2" in
    "venv "*)
        folder=${@: -1}
        rm -rf "$folder"
        mkdir -p "$folder/bin"
        cat "$FAKE_VENV_PYTHON" >"$folder/bin/python"
        chmod +x "$folder/bin/python"
        echo 'version_info = 3.11.9' >"$folder/pyvenv.cfg" ;;
    "python find") exit 2 ;;
    "python install") echo 'error: no network' >&2; exit 1 ;;
    "pip install")
        sleep "${UV_INSTALL_TAKES_S:-0}"
        if [[ -n ${UV_INSTALL_FAILS:-} ]]; then echo "error: $UV_INSTALL_FAILS" >&2; exit 1; fi ;;
esac
"""


def write_program(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


@dataclass(kw_only=True)
class Machine:
    """A clone of the repository, and the programs and variables that its set-up finds."""

    root: Path
    programs: Path
    calls: Path
    variables: dict[str, str] = field(default_factory=dict)

    def install(self, name: str, text: str) -> None:
        (self.programs / name).unlink(missing_ok=True)
        write_program(self.programs / name, text)

    def start(self, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(self.root / "scripts" / "setup_env.sh")],
            env=self.variables | variables,
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def set_up(self, **variables: str) -> subprocess.CompletedProcess[str]:
        process = self.start(**variables)
        output, errors = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def pip_installs(self, option: str) -> list[str]:
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [call for call in calls if call.startswith("pip install") and option in call]

    def package_installs(self) -> list[str]:
        return self.pip_installs("--require-hashes")

    def torch_installs(self) -> list[str]:
        """The CPU build of torch comes in a call of its own."""
        return self.pip_installs("--requirement=requirements/cpu-torch.txt")

    def environments_made(self) -> int:
        return sum(call.startswith("venv ") for call in self.calls.read_text().splitlines())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    root = tmp_path / "clone"
    shutil.copytree(REPO_ROOT / "requirements", root / "requirements")
    (root / "scripts").mkdir()
    for file in ("pyproject.toml", "scripts/setup_env.sh"):
        shutil.copy(REPO_ROOT / file, root / file)

    programs = tmp_path / "programs"
    programs.mkdir()
    for tool in SYSTEM_TOOLS:
        found = shutil.which(tool)
        assert found, f"{tool} is not on PATH"
        (programs / tool).symlink_to(found)
    venv_python = tmp_path / "venv_python"
    venv_python.write_text(FAKE_PYTHON.format(version="3.11.9"))
    calls = tmp_path / "uv_calls"
    machine = Machine(
        root=root,
        programs=programs,
        calls=calls,
        variables={
            "PATH": str(programs),
            "HOME": str(tmp_path),
            "UV_CALLS": str(calls),
            "FAKE_VENV_PYTHON": str(venv_python),
        },
    )
    machine.install("uv", FAKE_UV)
    machine.install("python3.11", FAKE_PYTHON.format(version="3.11.9"))
    # Enough free disk space, whatever this machine has.
    machine.install("df", "#!/bin/bash\necho header\necho 'disk 1 1 99999999 1% /'\n")
    return machine


def test_a_second_call_does_nothing_and_says_nothing(machine: Machine) -> None:
    first = machine.set_up()
    assert first.returncode == 0, first.stderr
    assert "packages (cpu)" in first.stdout
    calls = machine.calls.read_text()

    before = os.times()
    again = machine.set_up()
    after = os.times()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert machine.calls.read_text() == calls
    # Seconds on the processor: other programs on this machine do not add to them.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.5


def test_every_step_is_one_line_with_its_time(machine: Machine) -> None:
    for line in machine.set_up().stdout.splitlines():
        assert line.startswith("set-up: ")
        assert line.endswith(" s")


@pytest.mark.parametrize("file", ["requirements/cpu.txt", "requirements/cpu-torch.txt", "pyproject.toml"])
def test_changed_requirements_are_installed_into_the_same_environment(machine: Machine, file: str) -> None:
    machine.set_up()
    path = machine.root / file
    path.write_text("# changed\n" + path.read_text())
    assert machine.set_up().returncode == 0
    assert len(machine.package_installs()) == 2
    assert machine.environments_made() == 1


def test_settings_of_the_linter_are_not_a_reason_to_install(machine: Machine) -> None:
    machine.set_up()
    path = machine.root / "pyproject.toml"
    path.write_text(path.read_text().replace("line-length = 120", "line-length = 121"))
    assert machine.set_up().stdout == ""


def test_an_environment_with_the_test_tools_also_serves_without(machine: Machine) -> None:
    machine.set_up(DEV="1")
    assert "requirements/dev.txt" in machine.package_installs()[0]
    assert machine.set_up(DEV="0").stdout == ""


def test_the_test_tools_can_be_added_later(machine: Machine) -> None:
    machine.set_up()
    assert "requirements/dev.txt" not in machine.package_installs()[0]
    machine.set_up(DEV="1")
    assert "requirements/dev.txt" in machine.package_installs()[1]
    assert machine.environments_made() == 1


def test_the_gpu_set_is_chosen_where_nvidia_smi_lists_one(machine: Machine) -> None:
    machine.install("nvidia-smi", "#!/bin/bash\necho 'GPU 0: NVIDIA T4 (UUID: GPU-0)'\n")
    assert "packages (gpu)" in machine.set_up().stdout
    assert "requirements/gpu.txt" in machine.package_installs()[0]


def test_a_broken_driver_counts_as_no_gpu_and_profile_overrides_it(machine: Machine) -> None:
    machine.install("nvidia-smi", "#!/bin/bash\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert "packages (cpu)" in machine.set_up().stdout
    assert "packages (gpu)" in machine.set_up(PROFILE="gpu").stdout
    # The two sets hold different builds of the same packages.
    assert machine.environments_made() == 2


def test_torch_comes_from_the_callers_folder_when_it_has_the_wheel(machine: Machine, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    machine.set_up(PIP_FIND_LINKS=str(wheels))
    assert f"--find-links {wheels}" in machine.torch_installs()[0]
    assert "--torch-backend cpu" in machine.torch_installs()[0]

    pin = re.search(r"^torch==(\S+)", (machine.root / "requirements/cpu-torch.txt").read_text(), re.MULTILINE)
    assert pin is not None
    (wheels / f"torch-{pin[1]}-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    shutil.rmtree(machine.root / ".venv")
    (machine.root / ".venv.lock").unlink()
    machine.set_up(PIP_FIND_LINKS=str(wheels))
    assert f"--find-links {wheels}" in machine.torch_installs()[1]
    assert "--torch-backend" not in machine.torch_installs()[1]


def test_all_packages_but_the_cpus_torch_are_installed_with_hashes(machine: Machine) -> None:
    machine.set_up(DEV="1")
    torch, packages = machine.pip_installs("--requirement")
    assert torch.endswith("--requirement=requirements/cpu-torch.txt")
    assert "--require-hashes --requirement=requirements/cpu.txt --requirement=requirements/dev.txt" in packages


def test_an_environment_of_another_tree_is_not_touched_through_a_link(machine: Machine, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "kept").touch()
    (machine.root / ".venv").symlink_to(other)
    result = machine.set_up()
    assert result.returncode == 2 and "is a link to" in result.stderr
    assert (other / "kept").exists() and not machine.calls.exists()


def test_a_python_that_is_too_old_is_named_with_the_remedy(machine: Machine) -> None:
    (machine.programs / "python3.11").unlink()
    machine.install("python3", FAKE_PYTHON.format(version="3.9.18"))
    result = machine.set_up()
    assert result.returncode == 2
    assert "no Python 3.11 or 3.12" in result.stderr
    assert "python3 is 3.9.18" in result.stderr
    assert "PYTHON=/path/to/python3.11 bash scripts/setup_env.sh" in result.stderr


def test_an_interpreter_asked_for_by_name_is_checked(machine: Machine) -> None:
    machine.install("python3.13", FAKE_PYTHON.format(version="3.13.0"))
    result = machine.set_up(PYTHON="python3.13")
    assert result.returncode == 2
    assert "PYTHON=python3.13 is Python 3.13.0, but 3.11 or 3.12 is needed" in result.stderr


def test_a_short_disk_stops_the_set_up_before_any_download(machine: Machine) -> None:
    machine.install("df", "#!/bin/bash\necho header\necho 'disk 1 1 2500000 99% /'\n")
    result = machine.set_up()
    assert result.returncode == 2
    assert "needs 6 GB of free disk" in result.stderr
    assert "has 2 GB" in result.stderr
    assert "Free some space" in result.stderr
    assert not machine.calls.exists()


def test_a_failed_download_shows_what_uv_said_and_the_remedy(machine: Machine) -> None:
    result = machine.set_up(UV_INSTALL_FAILS="Failed to fetch: torch")
    assert result.returncode == 2
    assert "Failed to fetch: torch" in result.stderr
    assert "Check the network" in result.stderr
    assert machine.set_up().returncode == 0


def test_a_registry_that_refuses_is_reported_by_the_real_uv(machine: Machine, tmp_path: Path) -> None:
    (machine.programs / "uv").unlink()
    (machine.programs / "python3.11").unlink()
    (machine.root / "requirements/cpu.txt").write_text("six==1.17.0\n")
    path = f"{Path(sys.executable).resolve().parent}:{os.environ['PATH']}"
    nowhere = "http://127.0.0.1:9/simple"
    result = machine.set_up(
        PATH=f"{machine.programs}:{path}",
        PIP_INDEX_URL=nowhere,
        PIP_RETRIES="0",
        UV_HTTP_RETRIES="0",
        UV_CACHE_DIR=str(tmp_path / "cache"),
        UV_PYTHON_DOWNLOADS="never",
    )
    assert result.returncode == 2
    assert "could not be installed" in result.stderr
    assert "Check the network" in result.stderr


def test_a_killed_set_up_repairs_itself_at_the_next_call(machine: Machine) -> None:
    process = machine.start(UV_INSTALL_TAKES_S="60")
    wait_until(lambda: bool(machine.torch_installs()))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (machine.root / ".venv/.setup_stamp").exists()

    assert machine.set_up().returncode == 0
    # Half-installed packages look like whole ones, so the set-up starts afresh.
    assert machine.environments_made() == 2
    assert machine.set_up().stdout == ""


def test_two_calls_at_once_install_once(machine: Machine) -> None:
    first = machine.start(UV_INSTALL_TAKES_S="1")
    wait_until(lambda: bool(machine.torch_installs()))
    second = machine.set_up()
    first.communicate()
    assert (first.returncode, second.returncode) == (0, 0)
    assert "another set-up of this folder is running" in second.stdout
    assert len(machine.package_installs()) == 1


def test_a_foreign_environment_is_left_alone(machine: Machine) -> None:
    (machine.root / ".venv").mkdir()
    (machine.root / ".venv/precious").touch()
    result = machine.set_up()
    assert result.returncode == 2
    assert "this script did not make it" in result.stderr
    assert (machine.root / ".venv/precious").exists()


def test_a_moved_repository_gets_a_new_environment(machine: Machine, tmp_path: Path) -> None:
    machine.set_up()
    machine.root = machine.root.rename(tmp_path / "moved")
    assert machine.set_up().returncode == 0
    assert machine.environments_made() == 2


def test_pythondontwritebytecode_does_not_reach_the_installer(machine: Machine) -> None:
    machine.install("uv", FAKE_UV.replace('echo "$*"', 'echo "$* ${PYTHONDONTWRITEBYTECODE:-unset}"'))
    machine.set_up(PYTHONDONTWRITEBYTECODE="1")
    assert "--compile-bytecode" in machine.package_installs()[0]
    assert machine.package_installs()[0].endswith(" unset")


@pytest.mark.parametrize("setting", [{"PROFILE": "tpu"}, {"DEV": "yes"}])
def test_an_unknown_setting_is_refused_with_the_allowed_values(machine: Machine, setting: dict[str, str]) -> None:
    result = machine.set_up(**setting)
    assert result.returncode == 2
    assert "is unknown: use" in result.stderr


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits as long as pytest lets a test run."""
    while not condition():
        time.sleep(0.02)
