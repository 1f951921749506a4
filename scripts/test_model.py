"""Try a trained model: on one decision, by hand, or on a file of decisions.

Examples:
    bash scripts/test_model.sh --model-path runs/demo/grpo/merged --single
    bash scripts/test_model.sh --model-path runs/demo/grpo/merged --single --data data/four_way --sample 7
    bash scripts/test_model.sh --model-path runs/demo/grpo/merged --single --data data/four_way --junction A0 --time 40
    bash scripts/test_model.sh --model-path runs/demo/grpo/merged --single --observation junction.json
    bash scripts/test_model.sh --model-path runs/demo/grpo/merged --batch --input-file X.xlsx --output-file Y.xlsx
    bash scripts/test_model.sh --backend openai --base-url http://localhost:8000/v1 --single --prompt-file prompt.txt

--model-path is FOLDER, FOLDER+ADAPTER or ADAPTER; with --backend openai the model's name on that server.
--single prints the prompt, the answer, the probabilities of both answers, and for a sample of a dataset what both
answers lead to. Without a choice of the decision, it asks for one in the terminal, again and again.
--batch does the same for every row of a file and prints a summary. A file is a dataset (or its folder), a Parquet file
of data_tools/json_to_parquet.py, or a table (.json, .jsonl, .parquet, .xlsx) with the column prompt and, if you like,
better (the better answer) and answer (somebody's answer to compare with). docs/test_model.md explains the output.
Outcomes that a sample does not have come from a replay of its state, judged by the reward.yaml beside the dataset, else
by configs/reward.yaml.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from data_tools.answer_table import (
    ALL_ROWS,
    OUTPUT_SUFFIXES,
    AnsweredRow,
    prompt_text,
    summarise,
    summary_text,
    write_table,
)
from data_tools.chosen_prompt import row_at, row_of_observation, row_of_prompt, row_of_sample
from data_tools.prompt_rows import PromptRow, check_suffix, read_prompt_rows
from reward.settings import DEFAULT_SETTINGS_FILE, ReplaySection
from reward.workers.pool import ReplayPool
from tsc.controllers.language_model import Ask
from tsc.cost.outcome import Outcomes, load_outcome_settings
from tsc.errors import ConfigError, TscError, run_main
from tsc.evaluation.settings import load_evaluation_settings
from tsc.files import REPO_ROOT
from tsc.junction.prompt import OWN_PROMPT, PROMPT_HELP, prompt_maker

if TYPE_CHECKING:
    from recipes.serving.chat_endpoint import Sampling
    from recipes.serving.model_choice import ModelChoice

NAME = "model"
LOG_FILE = Path("runs", "test_model", "vllm.log")
# Few enough that a request's latency is not that of waiting for the others.
PROMPTS_AT_ONCE = 8


def chosen_model(options: argparse.Namespace) -> ModelChoice:
    """Raises ConfigError for folders that do not hold a model, and for a server that does not have it."""
    from recipes.serving.model_choice import ServedModelChoice, checked, local_model

    if options.backend == "openai":
        if not options.base_url:
            raise ConfigError("--backend openai needs the server's address: give --base-url http://HOST:PORT/v1")
        return checked(ServedModelChoice(name=NAME, base_url=options.base_url, model_id=options.model_path))
    if options.base_url:
        raise ConfigError(f"--base-url is for --backend openai, but the backend is {options.backend}: leave one out")
    if "" in (options.model_path or "").split("+", 1):
        raise ConfigError(f"--model-path is {options.model_path}: give FOLDER, FOLDER+ADAPTER or ADAPTER")
    try:
        choice = local_model(NAME, options.model_path)
    except ConfigError as error:
        raise ConfigError(f"--model-path {options.model_path}: {error}") from error
    return checked(choice) if options.backend == "vllm" else choice


@contextmanager
def answering_model(model: ModelChoice, backend: str, *, max_answer_tokens: int, sampling: Sampling) -> Iterator[Ask]:
    """The model, loaded during the block. Raises ConfigError and EndpointError."""
    if backend == "transformers":
        from recipes.serving.transformers_model import TransformersModel

        yield TransformersModel(model, max_answer_tokens=max_answer_tokens, sampling=sampling).ask
        return
    from recipes.serving.model_choice import answering

    with answering(
        model,
        max_answer_tokens=max_answer_tokens,
        time_limit_s=None,
        log_file=LOG_FILE,
        sampling=sampling,
        probabilities=True,
    ) as endpoint:
        yield endpoint.ask


class OutcomeFinder:
    """What the answers lead to: by the sample itself, or by a replay of its state."""

    def __init__(self) -> None:
        self._pool: ReplayPool | None = None

    def find(self, row: PromptRow) -> Outcomes | None:
        """None for a row that has neither outcomes nor a state. Raises ReplayError, StateError and ConfigError."""
        if row.outcomes is not None or row.request is None:
            return row.outcomes
        if self._pool is None:
            self._pool = ReplayPool(ReplaySection())
        beside = Path(row.request.dataset_dir, "reward.yaml")
        settings = load_outcome_settings(beside if beside.is_file() else DEFAULT_SETTINGS_FILE, row.scenario or "")
        return self._pool.replay(row.request, settings).outcomes

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()


def unseen(model: ModelChoice, rows: Sequence[PromptRow]) -> str | None:
    """A warning if the rows ask what the model was not trained on, by its card. Raises ConfigError for a broken one."""
    from recipes.models.model_card import warning

    seen = model.seen()
    if seen is None:
        return None
    differences: dict[str, None] = {}
    for version in {row.prompt_version: None for row in rows}:
        of_version = [row for row in rows if row.prompt_version == version]
        found = seen.differences(
            prompt_version=version,
            num_stages=[len(row.observation.stages) for row in of_version if row.observation is not None],
            timings=list({row.timing: None for row in of_version if row.timing is not None}),
        )
        differences |= dict.fromkeys(found)
    return warning("the model", "the input", list(differences)) if differences else None


# ------------------------------------------------------------------------------------------ one decision


def row_of_flags(options: argparse.Namespace, samples: Sequence[PromptRow]) -> PromptRow | None:
    """The decision that the flags choose; None if they leave it to the terminal. Raises SampleError, ConfigError."""
    if options.observation is not None:
        return row_of_observation(options.observation, options.prompt)
    if options.prompt_file is not None:
        return row_of_prompt(options.prompt_file)
    if options.sample is not None:
        return row_of_sample(samples, options.sample)
    if options.junction is not None:
        return row_at(samples, options.junction, options.time)
    return None


def typed_rows(
    samples: Sequence[PromptRow], prompt: str, finder: OutcomeFinder
) -> Iterator[tuple[PromptRow, Outcomes | None]]:
    """The decisions that a user types, until an empty line. A wrong one is told, and the next one asked for."""
    of_data = f"sample (0–{len(samples) - 1}), JUNCTION SECOND, " if samples else ""
    question = f"\n{of_data}file with a prompt (.txt) or an observation (.json); Enter ends: "
    while words := _typed(question).split():
        try:
            if words[0].isdecimal() and len(words) == 1 and samples:
                row = row_of_sample(samples, int(words[0]))
            elif len(words) == 2 and samples and _is_number(words[1]):
                row = row_at(samples, words[0], float(words[1]))
            elif words[0].endswith(".json"):
                row = row_of_observation(Path(words[0]), prompt)
            else:
                row = row_of_prompt(Path(" ".join(words)))
            outcomes = finder.find(row)
        except TscError as error:
            print(f"error: {error}", flush=True)
            continue
        yield row, outcomes


def _typed(question: str) -> str:
    try:
        return input(question)
    except EOFError:
        return ""


def _is_number(word: str) -> bool:
    return word.replace(".", "", 1).isdecimal()


def report(answered: AnsweredRow) -> str:
    """One decision for a reader."""
    outcomes, probabilities = answered.outcomes, answered.reply.probabilities
    decision = answered.read.decision
    lines = ["prompt", *(f"  {line}" for line in prompt_text(answered.row.prompt).splitlines())]
    lines.append(f"answer       {answered.reply.text!r}")
    lines.append(f"decision     {decision or 'none'} ({answered.read.form})")
    if probabilities is None:
        lines.append("probability  unknown")
    else:
        lines.append(f"probability  yes {probabilities.yes:.4f}, no {probabilities.no:.4f}")
    if outcomes is not None:
        better = answered.better
        lines.append(f"cost         yes {outcomes.yes:g}, no {outcomes.no:g}")
        lines.append(f"better       {better or 'both cost the same'}")
        regret = answered.regret
        lines.append(f"regret       {'unknown, as the answer is invalid' if regret is None else f'{regret:g}'}")
    lines.append(f"latency      {answered.reply.latency_s:.3f} s")
    return "\n".join(lines)


def single(options: argparse.Namespace, model: ModelChoice, serve: Callable[[], AbstractContextManager[Ask]]) -> None:
    samples = read_prompt_rows(options.data) if options.data else []
    chosen = row_of_flags(options, samples)
    if chosen is None and not sys.stdin.isatty():
        raise ConfigError(
            "--single does not say which decision: give --data with --sample or with --junction and --time, "
            "--observation FILE or --prompt-file FILE, or call it in a terminal"
        )
    with closing(OutcomeFinder()) as finder:
        # looked up here, so that a fault of the data is told before the model is loaded
        given = [] if chosen is None else [(chosen, finder.find(chosen))]
        with serve() as ask:
            for row, outcomes in given or typed_rows(samples, options.prompt, finder):
                if line := unseen(model, [row]):
                    print(line, file=sys.stderr, flush=True)
                (reply,) = ask([row.prompt])
                print(report(AnsweredRow(row=row, reply=reply, outcomes=outcomes)), flush=True)


# ------------------------------------------------------------------------------------------ many decisions


def batch(options: argparse.Namespace, model: ModelChoice, serve: Callable[[], AbstractContextManager[Ask]]) -> None:
    """Answer every row of the input file, write the output file and print the summary."""
    check_suffix(options.output_file, OUTPUT_SUFFIXES, "--output-file")
    if not options.output_file.absolute().parent.is_dir():
        raise ConfigError(f"--output-file {options.output_file}: its folder does not exist: make it, or choose another")
    rows = read_prompt_rows(options.input_file)
    with closing(OutcomeFinder()) as finder:
        num_replays = sum(row.outcomes is None and row.request is not None for row in rows)
        show = None if num_replays else True
        outcomes = [finder.find(row) for row in tqdm(rows, unit=" rows", desc="replaying", disable=show)]
    if line := unseen(model, rows):
        print(line, file=sys.stderr, flush=True)
    replies = []
    with serve() as ask, tqdm(total=len(rows), unit=" prompts", disable=None) as bar:
        for begin in range(0, len(rows), PROMPTS_AT_ONCE):
            replies += ask([row.prompt for row in rows[begin : begin + PROMPTS_AT_ONCE]])
            bar.update(len(replies) - bar.n)
    answered = [
        AnsweredRow(row=row, reply=reply, outcomes=found)
        for row, reply, found in zip(rows, replies, outcomes, strict=True)
    ]
    summary = summarise(answered)
    write_table(options.output_file, answered, summary)
    print(summary_text(summary))
    print(
        f"accuracy over the {summary[ALL_ROWS]['rows_with_better']:,} rows with a better answer; answers in "
        f"{options.output_file}"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="test_model.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", metavar="FOLDER[+ADAPTER]", help="see above")
    parser.add_argument(
        "--backend",
        choices=("vllm", "transformers", "openai"),
        default="vllm",
        help="vllm: the server that evaluations use (the default); transformers: in this process; openai: a server "
        "that runs already (key from OPENAI_API_KEY)",
    )
    parser.add_argument("--base-url", metavar="URL", help="of --backend openai: http://HOST:PORT/v1")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--single", action="store_true", help="one decision")
    mode.add_argument("--batch", action="store_true", help="the decisions of a file")
    one = parser.add_argument_group("the decision of --single (none of them: asks in the terminal)")
    one.add_argument("--data", type=Path, metavar="PATH", help="dataset (file or folder) or table to choose from")
    one.add_argument("--sample", type=int, metavar="N", help="number of the sample in --data, from 0")
    one.add_argument("--junction", metavar="ID", help="with --time: the sample of this junction")
    one.add_argument("--time", type=float, metavar="S", help="simulated time of the sample, s")
    one.add_argument("--observation", type=Path, metavar="FILE", help="the numbers of a junction (JSON)")
    one.add_argument("--prompt-file", type=Path, metavar="FILE", help="a text: the user's message")
    one.add_argument(
        "--prompt", default=OWN_PROMPT, metavar="NAME", help=f"what makes a prompt of --observation: {PROMPT_HELP}"
    )
    many = parser.add_argument_group("the files of --batch")
    many.add_argument("--input-file", type=Path, metavar="FILE", help="dataset or table, see above")
    many.add_argument("--output-file", type=Path, metavar="FILE", help=f"{', '.join(OUTPUT_SUFFIXES)}")
    how = parser.add_argument_group("how the model chooses its tokens (default: greedy, as in evaluations)")
    how.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default): the most likely token")
    how.add_argument("--top-p", type=float, default=1.0, metavar="P", help="only the tokens that together have P (1)")
    how.add_argument("--seed", type=int, metavar="N", help="with a temperature: the same answers every time")
    how.add_argument("--max-tokens", type=int, metavar="N", help="of an answer (default: as in evaluations)")
    return parser.parse_args()


def check_options(options: argparse.Namespace) -> None:
    """Raises ConfigError for flags that do not go together, and for values out of range."""
    if options.temperature < 0:
        raise ConfigError(f"--temperature is {options.temperature:g}: choose 0 (greedy) or more")
    if not 0 < options.top_p <= 1:
        raise ConfigError(f"--top-p is {options.top_p:g}: choose more than 0, at most 1")
    if options.max_tokens is not None and options.max_tokens < 1:
        raise ConfigError(f"--max-tokens is {options.max_tokens}: choose at least 1")
    if options.batch and not (options.input_file and options.output_file):
        raise ConfigError("--batch needs --input-file and --output-file")
    if (options.junction is None) != (options.time is None):
        raise ConfigError("--junction and --time choose a sample together: give both")
    ways = {
        "--sample": options.sample,
        "--junction": options.junction,
        "--observation": options.observation,
        "--prompt-file": options.prompt_file,
    }
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} both choose the decision: give one of them")
    if given and given[0] in ("--sample", "--junction") and options.data is None:
        raise ConfigError(f"{given[0]} chooses a sample of a dataset: give --data, too")
    prompt_maker(options.prompt)


def main() -> None:
    options = parse_arguments()
    check_options(options)
    from recipes.serving.chat_endpoint import Sampling

    model = chosen_model(options)
    settings = load_evaluation_settings(REPO_ROOT / "configs" / "evaluation.yaml")

    def serve() -> AbstractContextManager[Ask]:
        return answering_model(
            model,
            options.backend,
            max_answer_tokens=options.max_tokens or settings.llm.max_answer_tokens,
            sampling=Sampling(temperature=options.temperature, top_p=options.top_p, seed=options.seed),
        )

    (batch if options.batch else single)(options, model, serve)


if __name__ == "__main__":
    run_main(main)
