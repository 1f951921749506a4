"""What stays in memory of each row of a conversion."""

from __future__ import annotations

from dataclasses import replace

from data_tools.dataset_rows import Kind, Rows
from tsc.junction.decision import Decision
from tsc.junction.timing import Timing

KIND = Kind(
    scenario="four_way",
    episode="0 (seed 1, demand 0)",
    side="train",
    answer=Decision.YES,
    is_tie=False,
    is_faithful=None,
    junction_id="A0",
    prompt_version=None,
    num_stages=2,
    timing=Timing(min_green_s=10, max_green_s=45, green_extension_s=5),
)
OTHER = replace(KIND, answer=Decision.NO, side="val")


def rows_of(ids: list[str], *, seed: int = 0) -> Rows:
    rows = Rows(seed=seed)
    for number, sample_id in enumerate(ids):
        rows.add(
            OTHER if number % 2 else KIND, time_s=float(number) if number else None, state="s" * (number // 2 + 1),
            sample_id=sample_id,
        )  # fmt: skip
    return rows


def test_rows_come_back_as_they_were_added() -> None:
    rows = rows_of(["a", "b", "c", "d"])
    assert [rows[number] for number in range(len(rows))] == [KIND, OTHER, KIND, OTHER]
    placed = list(rows.placed([0, 1, 3]))
    assert [(each.time_s, each.side, each.episode) for each in placed] == [
        (None, "train", KIND.episode),
        (1.0, "val", KIND.episode),
        (3.0, "val", KIND.episode),
    ]
    assert placed[0].state == placed[1].state != placed[2].state


def test_a_row_forgets_its_side_and_nothing_else() -> None:
    rows = rows_of(["a", "b", "c"])
    rows.forget_side(2)
    assert [rows[number] for number in range(3)] == [KIND, OTHER, replace(KIND, side=None)]


def test_what_is_drawn_depends_on_id_and_seed_alone() -> None:
    ids = [str(number) for number in range(100)]
    forwards, backwards, other = rows_of(ids), rows_of(ids[::-1]), rows_of(ids, seed=1)
    drawn = [forwards.drawn(number) for number in range(100)]
    assert drawn == [backwards.drawn(number) for number in range(100)][::-1]
    assert len(set(drawn)) == 100 and sorted(drawn) != drawn
    assert drawn != [other.drawn(number) for number in range(100)]
