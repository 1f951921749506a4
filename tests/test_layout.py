"""The walls of the house: which package, and which room of a package, may import which.

Between the packages: reward -> tsc <- data_tools, recipes above them, scripts on top. Only recipes and the studies
import verl. Inside tsc, recipes and reward, a room imports only rooms before it: no two of them depend on each other.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tsc", "reward", "data_tools", "recipes")
OTHER_CODE = ("scripts",)
STUDIES = REPO_ROOT / "scripts" / "studies"

# What nothing imports: the scripts that a user types, the benchmarks and the studies.
ON_TOP = {"scripts", "benchmarks"} | {path.stem for path in STUDIES.glob("*.py")}

# Top-level names that a package must not import.
FORBIDDEN = {
    "tsc": {"reward", "data_tools", "recipes", "verl", "torch", "ray"} | ON_TOP,
    "reward": {"data_tools", "recipes", "verl", "torch", "ray"} | ON_TOP,
    "data_tools": {"reward", "recipes", "verl", "torch"} | ON_TOP,
    "recipes": ON_TOP,
}

# The rooms of a package (folders and modules) from the ground up. A room imports only rooms before it.
ROOMS = {
    "tsc": (
        "errors", "files", "processes", "yaml_file", "user_code",
        "sumo", "junction", "rules", "programs", "cost", "scenarios", "replays", "controllers", "episodes",
        "player", "evaluation",
    ),
    "reward": (
        "origin", "settings", "workers", "scoring", "ground_truth", "outcome_cache", "outcome_store", "outcome_source",
        "stretch_scoring", "stretch_source", "compute_score", "first_look",
    ),
    # verl loads the plug-ins by name: they import no other room, and no other room imports them.
    "recipes": ("verl_plugins", "models", "preflight", "dpo", "running", "serving", "gpu_set", "monitor"),
}  # fmt: skip

# The benchmark that measures our replays against replays over TraCI.
OVER_TRACI = REPO_ROOT / "scripts" / "benchmarks" / "traci_replay.py"
# tests/X/test_Y.py tests X/Y.py, except these, which test more than one module.
TESTS_OF_SEVERAL_MODULES = {
    "tests/reward/test_gaming.py": "ways to score without good traffic, over all settings",
    "tests/reward/test_guarantees.py": "a page of the docs",
    "tests/reward/test_hostile_responses.py": "any text that a model may write, through the whole reward",
    "tests/reward/test_kept_outcomes.py": "outcomes on disk, through the whole reward with SUMO",
    "tests/reward/test_live_replay.py": "the whole reward with SUMO",
    "tests/reward/test_terms.py": "the example in the docs, through the whole reward",
    "tests/tsc/replays/test_replay_in_sumo_process.py": "a second method for the same replays",
    "tests/tsc/rules/test_rules.py": "all rules, on the same traffic",
    "tests/tsc/sumo/test_approach.py": "the simulation on unusual nets",
}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((REPO_ROOT / folder).rglob("*.py"))


@cache
def imports(path: Path) -> tuple[tuple[int, str], ...]:
    """The line and the dotted name of everything that a file imports, also inside functions.

    Relative names are made absolute.
    """
    parts = path.relative_to(REPO_ROOT).with_suffix("").parts
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            names = (".".join(part for part in (package, node.module, alias.name) if part) for alias in node.names)
            found += [(node.lineno, name) for name in names]
    return tuple(found)


def places(found: Iterator[tuple[Path, int, str]]) -> list[str]:
    return [f"{path.relative_to(REPO_ROOT)}:{line} imports {name}" for path, line, name in found]


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_package_imports_only_what_it_may_depend_on(folder: str) -> None:
    assert not places(
        (path, line, name)
        for path in python_files(folder)
        for line, name in imports(path)
        if name.split(".")[0] in FORBIDDEN[folder]
    )


def room_of(package: str, path: Path) -> str:
    return path.relative_to(REPO_ROOT / package).parts[0].removesuffix(".py")


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_has_its_place_in_the_order(package: str) -> None:
    rooms = {room_of(package, path) for path in python_files(package)}
    assert rooms - {"__init__"} <= set(ROOMS[package])


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_imports_only_rooms_before_it(package: str) -> None:
    order = ROOMS[package]
    assert not places(
        (path, line, name)
        for path in python_files(package)
        for line, name in imports(path)
        if name.startswith(f"{package}.") and name.split(".")[1] not in order[: order.index(room_of(package, path)) + 1]
    )


def test_no_room_imports_the_plug_ins_that_verl_loads_by_name() -> None:
    plug_ins = REPO_ROOT / "recipes" / "verl_plugins"
    assert not places(
        (path, line, name)
        for path in python_files(*PACKAGES)
        for line, name in imports(path)
        if name.startswith("recipes.verl_plugins.") and plug_ins not in path.parents
    )


def test_only_recipes_and_the_studies_import_verl() -> None:
    assert not places(
        (path, line, name)
        for path in python_files(*PACKAGES, *OTHER_CODE)
        for line, name in imports(path)
        if name.split(".")[0] == "verl" and not {STUDIES, REPO_ROOT / "recipes"} & set(path.parents)
    )


def test_the_core_needs_neither_the_evaluation_nor_its_tables_and_pictures() -> None:
    evaluation = REPO_ROOT / "tsc" / "evaluation"
    film = REPO_ROOT / "tsc" / "player" / "film.py"  # only loaded where a film is made
    assert not places(
        (path, line, name)
        for path in python_files("tsc")
        for line, name in imports(path)
        if evaluation not in path.parents
        and path != film
        and (name.startswith("tsc.evaluation.") or name.split(".")[0] in {"pandas", "scipy", "matplotlib", "jinja2"})
    )


def test_only_the_room_of_the_running_sumo_imports_libsumo_and_traci() -> None:
    assert not places(
        (path, line, name)
        for path in python_files(*PACKAGES, *OTHER_CODE)
        for line, name in imports(path)
        if name.split(".")[0] in {"libsumo", "traci"}
        and REPO_ROOT / "tsc" / "sumo" not in path.parents
        and (path, name) != (OVER_TRACI, "traci")
    )


def test_no_module_has_a_name_that_says_nothing() -> None:
    files = python_files(*PACKAGES, *OTHER_CODE, "tests")
    assert not [str(path) for path in files if VAGUE_NAMES & {path.stem, path.parent.name}]


@pytest.mark.parametrize("package", ["tsc", "reward"])
def test_a_test_lies_where_its_subject_lies(package: str) -> None:
    tests = {path.relative_to(REPO_ROOT) for path in python_files(f"tests/{package}") if path.stem.startswith("test_")}
    subjects = {
        test: REPO_ROOT / test.relative_to("tests").with_name(test.name.removeprefix("test_")) for test in tests
    }
    alone = {str(test) for test, subject in subjects.items() if not subject.is_file()}
    assert alone - TESTS_OF_SEVERAL_MODULES.keys() == set()


def test_packages_are_where_this_test_looks_for_them() -> None:
    assert [package for package in PACKAGES if not list(python_files(package))] == []


def test_imports_are_found_wherever_they_hide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "REPO_ROOT", tmp_path)
    (tmp_path / "tsc" / "junction").mkdir(parents=True)
    module = tmp_path / "tsc" / "junction" / "example.py"
    module.write_text("def late():\n    import torch.nn\n    from ray import get\n    from .decision import Decision\n")
    assert imports(module) == ((2, "torch.nn"), (3, "ray.get"), (4, "tsc.junction.decision.Decision"))
