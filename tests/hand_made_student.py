"""Students whose decisions are known without a fit."""

from __future__ import annotations

from pathlib import Path

from tsc.rules.student import MAX_FEATURES, Layer, StudentFile

QUEUE_OF_GREEN, LONGEST_QUEUE_OF_RED = 4, 29


def write_longest_queue_student(path: Path, *, teacher: str = "longest_queue") -> Path:
    """Extends while no red stage has a longer queue than the green one."""
    weights = [0] * len(MAX_FEATURES)
    weights[QUEUE_OF_GREEN], weights[LONGEST_QUEUE_OF_RED] = 1, -1
    file = StudentFile(
        teacher=teacher,
        teacher_digest=None,
        prompt_version=None,
        agreement=1.0,
        layers=[Layer(weights=[[weights]], biases=[[0]])],
    )
    path.write_text(file.model_dump_json())
    return path
