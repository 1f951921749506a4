"""What a dataset contains: counts, labels, how far the two answers lie apart, what its junctions have seen, what both
sides of the split share, and states that cannot be replayed."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from data_tools.dataset_split import episode_key
from data_tools.json_objects import Fault, read_objects
from data_tools.prompt_lengths import how_counted, prompt_tokens, quantiles
from tsc.cost.measures import unit_of
from tsc.errors import StateError
from tsc.replays.sample import Sample
from tsc.replays.state_archive import state_bytes

_BAR_CHARS = 40
_BATCH = 1024
# upper ends of the bins of the gap, in the unit of the measure
_GAPS = (0, 1, 2, 5, 10, 20, 50, 100, 200, float("inf"))
_NAMED_STATES = 5
ANSWERS = ("yes", "no", "tie", "unlabelled")


def answer_of(sample: Sample) -> str:
    """Return yes, no, tie, or unlabelled."""
    if sample.outcomes is not None:
        better = sample.outcomes.outcomes.better()
        return better.value if better is not None else "tie"
    return sample.expert_decision.value if sample.expert_decision is not None else "unlabelled"


def described_settings(sample: Sample) -> str:
    assert sample.outcomes is not None
    settings = sample.outcomes.outcome_settings
    terms = f", terms {', '.join(settings.terms)}" if settings.terms else ""
    return f"{settings.measure} over {settings.horizon_s} s, {settings.tail} tail, scope {settings.scope}{terms}"


def record_of(sample: Sample, state: str) -> dict[str, Any]:
    """The figures of one sample that the summary counts. None is not counted. state: the path of its state."""
    outcomes = sample.outcomes
    text = "\0".join(message.content for message in sample.prompt)
    return {
        "scenario": sample.scenario,
        "episode": episode_key(sample),
        "junction": sample.junction_id,
        "answer": answer_of(sample),
        "side": sample.split or "not placed",
        "elapsed_green_s": sample.current_green_elapsed,
        "settings": described_settings(sample) if outcomes else None,
        "unit": (unit_of(outcomes.outcome_settings.measure) or None) if outcomes else None,
        "gap": abs(outcomes.yes - outcomes.no) if outcomes else None,
        "time_s": sample.time_s,
        "prompt_version": sample.prompt_version or "unknown",
        "sumo_version": sample.sumo.version if sample.sumo is not None else None,
        "state": state,
        "prompt": int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True),
    }


class DatasetSummary:
    """What samples hold, one row each in `samples` (record_of), with the tokens of its prompt.

    num_broken: samples that break the contract. They are only counted. faulty_states: why a state cannot be replayed,
    by its path.
    """

    def __init__(self, files: Sequence[Path], tokenizer: Any | None) -> None:
        self.how_counted = how_counted(tokenizer)
        self.num_broken = 0
        self.faulty_states: dict[str, str] = {}
        self._checked: set[tuple[str, str | None]] = set()
        records: list[dict[str, Any]] = []
        tokens: list[int] = []
        prompts: list[list[dict[str, str]]] = []
        for file, item in itertools.chain.from_iterable(
            ((file, item) for item in read_objects(file)) for file in files
        ):
            try:
                if isinstance(item, Fault):
                    self.num_broken += 1
                    continue
                sample = Sample.model_validate(item[1])
            except ValidationError:
                self.num_broken += 1
                continue
            state = file.parent / sample.state_file
            self._check(state, sample.state_sha256)
            records.append(record_of(sample, str(state)))
            prompts.append([{"role": message.role, "content": message.content} for message in sample.prompt])
            if len(prompts) == _BATCH:
                tokens += prompt_tokens(prompts, tokenizer)
                prompts = []
        self.samples = pd.DataFrame(records).assign(tokens=tokens + prompt_tokens(prompts, tokenizer))

    def _check(self, state: Path, sha256: str | None) -> None:
        name = str(state)
        if (name, sha256) in self._checked:
            return
        self._checked.add((name, sha256))
        try:
            data = state_bytes(state)
        except OSError:
            self.faulty_states[name] = "missing"
        except StateError:
            self.faulty_states[name] = "damaged"
        else:
            if sha256 not in (None, hashlib.sha256(data).hexdigest()):
                self.faulty_states[name] = "changed"

    @property
    def num_states(self) -> int:
        return len(self._checked)

    def scenarios(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "decisions": len(ours),
                "episodes": ours["episode"].nunique(),
                "junctions": ours["junction"].nunique(),
            }
            for name, ours in self.samples.groupby("scenario")
        ]

    def junctions(self) -> list[dict[str, Any]]:
        """Which junctions decided how often, and with what better answer. The most decisions first."""
        found = []
        for (scenario, junction), ours in self.samples.groupby(["scenario", "junction"]):
            answers = ours["answer"].value_counts()
            found.append(
                {
                    "scenario": scenario,
                    "junction": junction,
                    "decisions": len(ours),
                    "episodes": ours["episode"].nunique(),
                    **{answer: int(answers.get(answer, 0)) for answer in ANSWERS},
                    "elapsed_green_s": (ours["elapsed_green_s"].min(), ours["elapsed_green_s"].max()),
                }
            )
        return sorted(found, key=lambda each: -each["decisions"])

    def gaps(self) -> list[tuple[str, int]]:
        """How many decisions have costs that lie so far apart."""
        values = self.samples["gap"].dropna()
        bins = zip((-1.0, *_GAPS), _GAPS, strict=False)
        return [(_gap_label(low, high), int(((values > low) & (values <= high)).sum())) for low, high in bins]

    def elapsed_greens(self) -> list[tuple[float, int, float]]:
        """By elapsed green (s): decisions, and the share of those in which it is better to extend."""
        is_yes = (self.samples["answer"] == "yes").groupby(self.samples["elapsed_green_s"]).agg(["size", "mean"])
        return [(float(elapsed_s), int(count), float(share)) for elapsed_s, count, share in is_yes.itertuples()]

    def on_both_sides(self) -> dict[str, int] | None:
        """Counts of the episodes, states and prompts that are on both sides of the split; None without a split."""
        placed = self.samples[self.samples["side"].isin(["train", "val"])]
        if placed["side"].nunique() < 2:
            return None
        whole_episode = placed["scenario"] + "/" + placed["episode"]
        return {
            what: int((placed.groupby(values)["side"].nunique() > 1).sum())
            for what, values in (
                ("episodes", whole_episode),
                ("states", placed["state"]),
                ("prompts", placed["prompt"]),
            )
        }

    def counted(self, column: str) -> str:
        counts = self.samples[column].value_counts().sort_index()
        return ", ".join(f"{name} {count:,} ({100 * count / counts.sum():.1f} %)" for name, count in counts.items())

    def quantiles(self, column: str) -> str:
        values = self.samples[column].dropna().tolist()
        return ", ".join(f"{name} {value:,g}" for name, value in quantiles(values).items())

    @property
    def unit(self) -> str:
        return ", ".join(sorted(self.samples["unit"].dropna().unique())) or "in the unit of the measure"

    def has(self, column: str) -> bool:
        return bool(self.samples[column].notna().any())

    def states_line(self) -> str:
        if not self.faulty_states:
            return f"all {self.num_states:,} are there, with the digests that the samples give"
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(Counter(self.faulty_states.values()).items()))
        return f"{kinds} of {self.num_states:,}, such as {', '.join(list(self.faulty_states)[:_NAMED_STATES])}"

    def leakage_line(self) -> str:
        both = self.on_both_sides()
        if both is None:
            return "the samples are not split yet; json_to_parquet.py splits them by episode and time block"
        shown = ", ".join(f"{count:,} {what}" for what, count in both.items())
        return f"in train and in val: {shown} (prompts hold counts, so different states may have the same prompt)"


def _gap_label(low: float, high: float) -> str:
    if high == 0:
        return "0 (tie)"
    return f"above {low:g}" if high == float("inf") else f"{low:g} – {high:g}"


def _bar(count: int, largest: int) -> str:
    return "#" * max(1, round(_BAR_CHARS * count / largest)) if count else ""


def summary_lines(summary: DatasetSummary) -> Iterator[str]:
    yield f"{len(summary.samples):,} decisions"
    if summary.num_broken:
        yield f"  {summary.num_broken:,} more break the contract: json_to_parquet.py lists them"
    if summary.samples.empty:
        return
    for each in summary.scenarios():
        yield (
            f"  scenario {each['name']}: {each['decisions']:,} decisions, {each['episodes']:,} episode(s), "
            f"{each['junctions']:,} junction(s)"
        )
    yield f"  better answer: {summary.counted('answer')}"
    yield f"  split: {summary.counted('side')}"
    yield f"  {summary.leakage_line()}"
    yield f"  saved states: {summary.states_line()}"
    if summary.has("time_s"):
        yield f"  time of decision, s: {summary.quantiles('time_s')}"
    yield f"  prompt tokens: {summary.quantiles('tokens')} ({summary.how_counted})"
    yield f"  prompt version: {summary.counted('prompt_version')}"
    if summary.has("sumo_version"):
        yield f"  saved with SUMO: {summary.counted('sumo_version')}"
    if summary.has("gap"):
        yield f"  outcomes: {summary.counted('settings')}"
        yield f"  gap between the two answers, {summary.unit}: {summary.quantiles('gap')}"
        gaps = summary.gaps()
        for label, count in gaps:
            yield f"    {label:>11} {count:>8,}  {_bar(count, max(count for _, count in gaps))}".rstrip()
    yield "  elapsed green at the decision, and how often it had better be extended:"
    greens = summary.elapsed_greens()
    for elapsed_s, count, share in greens:
        bar = _bar(count, max(count for _, count, _ in greens))
        yield f"    {elapsed_s:>5g} s {count:>8,}  yes {100 * share:>5.1f} %  {bar}"


def page(summary: DatasetSummary, name: str) -> str:
    """The same as an HTML page, which loads nothing, with a table of the junctions."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # of the extra `figures`

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=True, trim_blocks=True
    )
    return environment.get_template("dataset_summary.html.jinja").render(summary=summary, name=name, answers=ANSWERS)
