"""The packages depend on each other in one direction only: reward -> tsc <- data_tools, and verl stays in recipes."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tsc", "reward", "data_tools", "recipes")
OTHER_CODE = ("scripts",)

# Top-level names that a package must not import.
FORBIDDEN = {
    "tsc": {"reward", "data_tools", "recipes", "verl", "torch", "ray"},
    "reward": {"data_tools", "recipes", "verl", "torch", "ray"},
    "data_tools": {"reward", "recipes", "verl", "torch", "ray"},
    "recipes": set(),
    "scripts": {"verl"},
}
# what the project's replays are measured beside
OVER_TRACI = REPO_ROOT / "scripts" / "benchmarks" / "traci_replay.py"
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((REPO_ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import of a file, also inside functions; relative ones are made absolute."""
    parts = path.relative_to(REPO_ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            yield node.lineno, ".".join(part for part in (package, node.module) if part)


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


def test_the_core_does_without_the_evaluation_and_its_tables_and_pictures() -> None:
    evaluation = REPO_ROOT / "tsc" / "evaluation"
    assert not places(
        (path, line, name)
        for path in python_files("tsc")
        for line, name in imports(path)
        if evaluation not in path.parents
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


def test_packages_are_where_this_test_looks_for_them() -> None:
    assert [package for package in PACKAGES if not list(python_files(package))] == []


def test_imports_are_found_wherever_they_hide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "REPO_ROOT", tmp_path)
    (tmp_path / "tsc").mkdir()
    module = tmp_path / "tsc" / "example.py"
    module.write_text("def late():\n    import torch.nn\n    from ray import get\n    from .decision import Decision\n")
    assert list(imports(module)) == [(2, "torch.nn"), (3, "ray"), (4, "tsc.junction.decision")]
