"""Students whose decisions are known without a fit."""

from __future__ import annotations

from pathlib import Path

from tsc.rules.student import MAX_FEATURES, TURNS, Layer, StudentFile

# the queue is the first of four numbers of the lanes that lead to these stages; the present one is 0
QUEUES_OF_GREEN = [4 + 4 * number for number, turns in enumerate(TURNS) if 0 in turns]
LONGEST_QUEUE_OF_RED = len(MAX_FEATURES) - 2


def write_longest_queue_student(path: Path, *, teacher: str = "longest_queue") -> Path:
    """Extends while no red stage has a longer queue than the green one."""
    weights = [0] * len(MAX_FEATURES)
    for queue in QUEUES_OF_GREEN:
        weights[queue] = 1
    weights[LONGEST_QUEUE_OF_RED] = -1
    file = StudentFile(
        teacher=teacher,
        teacher_digest=None,
        prompt_version=None,
        agreement=1.0,
        layers=[Layer(weights=[[weights]], biases=[[0]])],
    )
    path.write_text(file.model_dump_json())
    return path
