"""Fit a student: a small, fast copy of a trained model, or of the labels of a dataset.

Examples:
    python scripts/fit_student.py --data data/mine --teacher runs/mine/grpo/merged --out student.json
    python scripts/fit_student.py --data data/mine --teacher labels --out student.json
    python scripts/evaluate.py --scenarios configs/scenarios/four_way.yaml --out runs/eval/student \\
        --controllers max_pressure student:mine=student.json

A model is asked for its answer to the prompt of every sample (FOLDER, FOLDER+ADAPTER or ADAPTER; vLLM serves it for
that time, its log is OUT.vllm.log). With `labels`, the better of the two answers is the one to give, and a sample
weighs |gap of the costs| / larger cost. Whole episodes are held out: the dataset's validation episodes, or else a tenth
of its episodes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_tools.dataset_checks import read_samples
from data_tools.dataset_split import VAL, Group, chosen_groups, episode_key
from tsc.errors import ConfigError, SampleError, run_main
from tsc.evaluation.settings import load_evaluation_settings
from tsc.files import REPO_ROOT, write_atomically
from tsc.junction.decision import Decision, parse_answer
from tsc.junction.observation import Observation
from tsc.replays.sample import Sample, find_dataset_files
from tsc.rules.student import Integers, Student, StudentFile, features

if TYPE_CHECKING:
    from recipes.serving.model_choice import LocalModelChoice

LABELS = "labels"
HELD_OUT_FRACTION = 0.1
PROMPTS_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A sample with what the teacher says of it. weight: how much it matters; 1 for a model's answer."""

    group: Group
    inputs: tuple[int, ...]
    decision: Decision
    weight: float


def read_dataset(paths: Sequence[Path]) -> list[tuple[Sample, tuple[int, ...]]]:
    """The samples of all datasets, each with its features. Raises SampleError, also for a sample of another generator,
    which has no observation."""
    samples = []
    for file, index, sample in read_samples([file for path in paths for file in find_dataset_files(path)]):
        try:
            samples.append((sample, features(Observation.from_dict(sample.observation))))
        except SampleError as error:
            raise SampleError(
                f"{file}: sample {index}: {error}: a student learns from datasets of data_tools/generate_dataset.py"
            ) from error
    return samples


def group_of(sample: Sample) -> Group:
    """The whole episode."""
    return (sample.scenario, episode_key(sample), -1)


def held_out_groups(samples: Sequence[Sample]) -> set[Group]:
    """The dataset's own validation episodes; if it has none, HELD_OUT_FRACTION of all episodes, at least one.

    Raises SampleError if all samples are of one episode.
    """
    groups = {group_of(sample) for sample in samples}
    held_out = {group_of(sample) for sample in samples if sample.split == VAL}
    held_out = held_out or chosen_groups(groups, HELD_OUT_FRACTION, seed=0, purpose="student")
    if held_out == groups:
        raise SampleError(
            "no episode is left to learn from, because one is held out to measure the agreement: give a dataset with "
            "two episodes or more"
        )
    return held_out


def answers_of_labels(samples: Sequence[Sample]) -> list[tuple[Decision | None, float]]:
    """The better answer of each sample and its weight; None for a tie and for a sample without outcomes."""
    answers: list[tuple[Decision | None, float]] = []
    for sample in samples:
        costs = sample.outcomes and sample.outcomes.outcomes
        better = costs.better() if costs else None
        gap = abs(costs.saving(Decision.YES)) / max(abs(costs.yes), abs(costs.no)) if costs and better else 0.0
        answers.append((better, gap))
    return answers


def answers_of_model(
    samples: Sequence[Sample], model: LocalModelChoice, log_file: Path
) -> list[tuple[Decision | None, float]]:
    """The model's answer to each prompt, as in an evaluation, with weight 1; None for an answer that cannot be read."""
    from tqdm import tqdm

    from recipes.serving.model_choice import answering

    max_answer_tokens = load_evaluation_settings(REPO_ROOT / "configs" / "evaluation.yaml").llm.max_answer_tokens
    prompts = [[message.model_dump(include={"role", "content"}) for message in sample.prompt] for sample in samples]
    replies = []
    with (
        answering(model, max_answer_tokens=max_answer_tokens, time_limit_s=None, log_file=log_file) as endpoint,
        tqdm(total=len(prompts), unit=" prompts", disable=None) as bar,
    ):
        for begin in range(0, len(prompts), PROMPTS_AT_ONCE):
            replies += endpoint.ask(prompts[begin : begin + PROMPTS_AT_ONCE])
            bar.update(len(replies) - bar.n)
    return [(parse_answer(reply.text or "").decision, 1.0) for reply in replies]


def prompt_version_of(samples: Sequence[Sample]) -> str | None:
    """Raises SampleError if the samples have prompts of several versions, which no model was trained on."""
    versions = {sample.prompt_version for sample in samples}
    if len(versions) > 1:
        raise SampleError(
            f"the samples have prompts of several versions ({', '.join(sorted(map(str, versions)))}), but a model is "
            "trained on one: give datasets of one version"
        )
    return versions.pop()


def arrays(lessons: Sequence[Lesson]) -> tuple[Integers, np.ndarray, np.ndarray]:
    """Inputs of shape (features, samples); whether to extend, and weights, of shape (samples,)."""
    return (
        np.array([lesson.inputs for lesson in lessons], dtype=np.int64).T,
        np.array([lesson.decision is Decision.YES for lesson in lessons]),
        np.array([lesson.weight for lesson in lessons]),
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="PATH", help="dataset files, or folders with datasets"
    )
    parser.add_argument(
        "--teacher", required=True, metavar="FOLDER", help=f"whom to copy: a model's folder, or {LABELS}"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the student's file, JSON")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if not arguments.out.resolve().parent.is_dir():
        raise ConfigError(f"--out {arguments.out}: its folder does not exist: make it, or choose another")
    model = None
    if arguments.teacher != LABELS:
        from recipes.serving.model_choice import checked, local_model

        try:
            model = local_model("teacher", arguments.teacher)
            checked(model)
        except ConfigError as error:
            raise ConfigError(f"--teacher {arguments.teacher!r} is neither {LABELS} nor a model: {error}") from error
    read = read_dataset(arguments.data)
    samples = [sample for sample, _ in read]
    held_out = held_out_groups(samples)
    prompt_version = prompt_version_of(samples) if model else None
    if model:
        answers = answers_of_model(samples, model, arguments.out.with_name(f"{arguments.out.name}.vllm.log"))
    else:
        answers = answers_of_labels(samples)
    lessons = [
        Lesson(group=group_of(sample), inputs=inputs, decision=decision, weight=weight)
        for (sample, inputs), (decision, weight) in zip(read, answers, strict=True)
        if decision is not None
    ]
    train = [lesson for lesson in lessons if lesson.group not in held_out]
    val = [lesson for lesson in lessons if lesson.group in held_out]
    num_without = len(samples) - len(lessons)
    without = "an answer that can be read" if model else "a better answer (ties, and samples without outcomes)"
    print(
        f"{len(train):,} samples to learn from, {len(val):,} of {len(held_out):,} held-out episode(s); "
        f"{num_without:,} without {without} are left out"
    )
    if not train or not val:
        remedy = "teach the model the answer format first (SFT=yes), or " if model and num_without else ""
        raise SampleError(f"nothing is left to learn from, or of the held-out episodes: {remedy}give more episodes")
    if len({lesson.decision for lesson in train}) == 1:
        raise SampleError(
            f"the teacher says {train[0].decision.value!r} to all {len(train):,} samples: a student of it would not "
            "look at the traffic; give more data, or another teacher"
        )

    from recipes.models.fit_student import fit, float_margins, quantised

    inputs, extends, weights = arrays(train)
    layers = fit(inputs, extends, weights)
    file = StudentFile(
        teacher=arguments.teacher,
        teacher_digest=model.identity() if model else None,
        prompt_version=prompt_version,
        agreement=0.0,
        layers=quantised(layers),
    )
    student = Student(file)
    for name, these in (("training", train), ("held-out", val)):
        inputs, extends, weights = arrays(these)
        says_yes = student.margins(inputs) >= 0
        agrees = says_yes == extends
        majority = max(extends.mean(), 1 - extends.mean())
        weighted = f", weighted {np.average(agrees, weights=weights):.1%}" if model is None else ""
        of_floats = ((float_margins(layers, inputs) >= 0) == says_yes).mean()
        print(
            f"agreement on {name} samples: {agrees.mean():.1%}{weighted} (the more frequent answer: {majority:.1%}; "
            f"integers and floats agree on {of_floats:.2%})"
        )
    file = file.model_copy(update={"agreement": round(float(agrees.mean()), 4)})
    write_atomically(arguments.out, file.model_dump_json().encode())
    print(arguments.out)


if __name__ == "__main__":
    run_main(main)
