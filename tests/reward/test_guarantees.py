"""docs/guarantees.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path


def test_every_test_that_the_guarantees_name_exists(repo_root: Path) -> None:
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", (repo_root / "docs/guarantees.md").read_text())
    assert len(named) > 30
    for file, function in named:
        tree = ast.parse((repo_root / "tests" / file).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{function}"
