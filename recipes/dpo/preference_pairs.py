"""Write preference pairs for DPO, from the Parquet files that data_tools/json_to_parquet.py writes for GRPO.

Example:
    python recipes/dpo/preference_pairs.py --input data/four_way/parquet --output runs/mine/dpo/pairs

Writes val.parquet and then train.parquet to the output folder, with one pair for each state whose two outcomes differ:
    prompt    the sample's messages
    chosen    one message, the better answer in its exact form, {"extend": "yes"} or {"extend": "no"}
    rejected  one message, the other answer
    margin    in (0, 1]: by how much the chosen answer is better
The better answer is the one that the reward (configs/reward.yaml) scores higher. With S(a), the score of answer a, and
S_max, the largest score that traffic and terms can contribute (the sum of their weights):
    margin = (S(chosen) - S(rejected)) / (2 · S_max)
With the default reward this is the relative gap, |cost(yes) - cost(no)| / max(cost(yes), cost(no)).
A state whose answers score the same teaches nothing. It is left out and counted.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reward.ground_truth import GroundTruth, parse_ground_truth
from reward.scoring import score_answer
from reward.settings import DEFAULT_SETTINGS_FILE, RewardSettings, load_settings
from tsc.cost.outcome import Outcomes
from tsc.errors import ConfigError, SampleError, run_main
from tsc.files import folder_lock, write_atomically
from tsc.junction.decision import Answer, AnswerForm, Decision

SIDES = ("train", "val")
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema([("prompt", _MESSAGES), ("chosen", _MESSAGES), ("rejected", _MESSAGES), ("margin", pa.float32())])


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The pairs as rows of SCHEMA, and the number of states that were left out as ties."""

    rows: list[dict[str, Any]]
    num_ties: int


def preference(outcomes: Outcomes, settings: RewardSettings) -> tuple[Decision, float] | None:
    """Return the better of the two answers and its margin, which the module's text defines, or None on a tie."""
    yes, no = (
        score_answer(Answer(decision=decision, form=AnswerForm.EXACT), outcomes, settings).score
        for decision in (Decision.YES, Decision.NO)
    )
    if yes == no:
        return None
    largest = settings.weights.traffic + sum(weight for _, weight in settings.terms)
    return Decision.YES if yes > no else Decision.NO, abs(yes - no) / (2 * largest)


def pairs_of(rows: Iterable[dict[str, Any]], settings: RewardSettings, *, file: Path) -> Pairs:
    """Return the pairs of the rows of `file`, in their order. Raises ConfigError if outcomes are missing."""
    pairs: list[dict[str, Any]] = []
    num_rows = num_ties = 0
    without: list[GroundTruth] = []
    for num_rows, row in enumerate(rows, start=1):
        try:
            truth = parse_ground_truth(row["reward_model"]["ground_truth"])
        except SampleError as error:
            raise ConfigError(f"{file}, row {num_rows}: {error}") from error
        outcomes = truth.known_outcomes(settings.outcome_settings(truth.scenario))
        if outcomes is None:
            without.append(truth)
            continue
        preferred = preference(outcomes, settings)
        if preferred is None:
            num_ties += 1
            continue
        better, margin = preferred
        answers = {"chosen": better, "rejected": better.other}
        messages = {side: [{"role": "assistant", "content": answer.answer}] for side, answer in answers.items()}
        pairs.append({"prompt": row["prompt"], **messages, "margin": margin})
    if without:
        first = without[0]
        asked = settings.outcome_settings(first.scenario)
        cause = (
            f"no outcomes ({first.request.sample_id})"
            if first.outcome_settings is None
            else f"those by {first.outcome_settings.measure} over {first.outcome_settings.horizon_s} s with the tail "
            f"{first.outcome_settings.tail} ({first.request.sample_id})"
        )
        raise ConfigError(
            f"{len(without)} of {num_rows} states in {file} lack the outcomes that configs/reward.yaml asks for, "
            f"{asked.measure} over {asked.horizon_s} s with the tail {asked.tail}; the first has {cause}. DPO does not "
            "replay states: generate the data again with these settings (data_tools/generate_dataset.py), or set those "
            "of the data in configs/reward.yaml, or use scripts/train_grpo.sh, which replays what is missing"
        )
    return Pairs(rows=pairs, num_ties=num_ties)


def read_rows(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise ConfigError(f"{file} does not exist: make it with data_tools/json_to_parquet.py")
    try:
        table = pq.read_table(file, columns=["prompt", "reward_model"])
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise ConfigError(
            f"{file} was not written by json_to_parquet ({error}): make it again with data_tools/json_to_parquet.py"
        ) from None
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def write_pairs(source: Path, out: Path, settings: RewardSettings) -> dict[str, Pairs]:
    """Write the pairs to `out`, and return those of each side by its name. Raises ConfigError.

    `source` may lack val.parquet. A kill never leaves train.parquet beside the val.parquet of another run.
    """
    sides = {}
    for side in SIDES:
        file = source / f"{side}.parquet"
        rows = [] if side == "val" and not file.is_file() else read_rows(file)
        sides[side] = pairs_of(rows, settings, file=file)
    if not sides["train"].rows:
        raise ConfigError(
            f"{source}/train.parquet has no state whose outcomes differ, so DPO has nothing to learn from: "
            "make more data, or a longer horizon_s"
        )
    with folder_lock(out, "preference pairs"):
        (out / "train.parquet").unlink(missing_ok=True)
        for side in reversed(SIDES):
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(sides[side].rows, schema=SCHEMA), buffer, compression="zstd")
            write_atomically(out / f"{side}.parquet", buffer.getvalue())
    return sides


def summary_line(side: str, pairs: Pairs) -> str:
    margins = sorted(row["margin"] for row in pairs.rows)
    line = f"  {side}: {len(pairs.rows):,} pairs, {pairs.num_ties:,} ties left out"
    if margins:
        num_yes = sum(row["chosen"][0]["content"] == Decision.YES.answer for row in pairs.rows)
        line += f"; yes is better in {num_yes / len(margins):.0%}; margin: median {margins[len(margins) // 2]:.2f}"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder with train.parquet and val.parquet")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pairs")
    parser.add_argument("--reward", type=Path, default=DEFAULT_SETTINGS_FILE, help="settings (default: %(default)s)")
    options = parser.parse_args()
    for side, pairs in write_pairs(options.input, options.output, load_settings(options.reward)).items():
        print(summary_line(side, pairs))


if __name__ == "__main__":
    run_main(main)
