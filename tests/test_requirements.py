"""The compiled pins have hashes, fit each other and pyproject.toml, and name no place of the machine they come from."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPO_ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = REPO_ROOT / "requirements"
SETS = ("cpu", "gpu")


# Without a hash; the file says why.
CPU_TORCH = "cpu-torch"


def lines_of(name: str) -> list[str]:
    """The lines of requirements/NAME.txt with a pin each. Continued lines are joined."""
    text = (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", "")
    return [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]


def pins(name: str) -> dict[str, str]:
    lines = lines_of(name) + (lines_of(CPU_TORCH) if name == "cpu" else [])
    requirements = [Requirement(line.split(" --hash=")[0]) for line in lines]
    assert all(str(requirement.specifier).startswith("==") for requirement in requirements)
    return {requirement.name: str(requirement.specifier).removeprefix("==") for requirement in requirements}


@pytest.mark.parametrize("name", [*SETS, "dev"])
def test_every_pin_has_a_hash(name: str) -> None:
    assert [line for line in lines_of(name) if not re.search(r" --hash=sha256:[0-9a-f]{64}\b", line)] == []


def test_only_torch_is_pinned_without_a_hash() -> None:
    assert [Requirement(line).name for line in lines_of(CPU_TORCH)] == ["torch"]
    assert "torch" not in {Requirement(line.split(" --hash=")[0]).name for line in lines_of("cpu")}


@pytest.mark.parametrize("name", SETS)
def test_the_pins_satisfy_the_distribution(name: str) -> None:
    pinned = pins(name)
    project = tomllib.loads((REPO_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in map(Requirement, project["dependencies"]):
        assert requirement.specifier.contains(pinned[requirement.name]), str(requirement)


@pytest.mark.parametrize("name", SETS)
def test_the_test_tools_fit_either_set(name: str) -> None:
    training, tools = pins(name), pins("dev")
    assert {package for package in training.keys() & tools.keys() if training[package] != tools[package]} == set()


def test_the_cpu_set_has_no_gpu_package() -> None:
    pinned = pins("cpu")
    assert pinned["torch"].endswith("+cpu")
    assert [package for package in pinned if re.match("nvidia|cuda|cupy|flash", package)] == []
    assert not {"vllm", "torchvision", "torchaudio", "torchcodec"} & pinned.keys()


@pytest.mark.parametrize("trainer", ["verl", "trl"])
def test_both_sets_train_with_the_same_trainer(trainer: str) -> None:
    assert pins("cpu")[trainer] == pins("gpu")[trainer]


@pytest.mark.parametrize("path", sorted(REQUIREMENTS.iterdir()), ids=lambda path: path.name)
def test_requirement_files_hold_no_address_and_no_folder(path: Path) -> None:
    assert re.findall(r"\w+://\S*|--(?:\w+-)*index\S*|--find-links.*|(?<![\w.])/[\w/]+", path.read_text("utf-8")) == []


@pytest.mark.parametrize("name", ["overrides.txt", "overrides_of_both.txt"])
def test_every_override_has_its_reason(name: str) -> None:
    blocks = (REQUIREMENTS / name).read_text(encoding="utf-8").strip().split("\n\n")
    overrides = [block for block in blocks if not all(line.startswith("#") for line in block.splitlines())]
    assert overrides
    assert [block for block in overrides if not block.startswith("# ")] == []


def test_other_peoples_nets_are_among_the_test_tools() -> None:
    tools = pins("dev")
    project = tomllib.loads((REPO_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in map(Requirement, project["optional-dependencies"]["resco"]):
        assert requirement.specifier.contains(tools[requirement.name]), str(requirement)
