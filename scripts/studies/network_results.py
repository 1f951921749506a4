"""Train a policy on each of several networks, and compare it with the best classical controller there.

Example:
    python scripts/studies/network_results.py --runs runs/networks --out networks.json --rounds 2 \\
        --training-seeds 1 2 --networks resco:cologne1 resco:ingolstadt1 sumo:rilsa1 mine.yaml

Each network goes through scripts/train_grpo.sh with the tiny model on a CPU, once for each training seed (verl's
data.seed): reward settings, data, SFT, rounds of GRPO, evaluation on unseen demand. Other knobs of that script come
from the environment (EPISODES, STEPS). A second call continues.

Writes OUT, one row for each network. Rows of networks that are not named stay as they are:
    network, best_classical     the classical controller that is best on validation demand
    seeds, training_seeds       of the evaluation, and of the trainings
    delay_s                     by controller: mean delay of a vehicle (s), with its 95 % interval over the seeds; of
                                trained models, the mean over the training seeds
    delay_ratio_to_best_classical, delay_ratio_grpo_to_sft
                                mean delay under the last round's model / mean delay under the other, with the interval
    reward_settings             how decisions were judged
    asking                      of the last round's model, means over the evaluation's episodes: median and 99 % of the
                                time to an answer (s), tokens of a prompt and of an answer
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recipes.running.run import Run
from tsc.cost.outcome import load_outcome_settings
from tsc.errors import ConfigError, TscError, run_main
from tsc.evaluation.statistics import bootstrap_interval95
from tsc.files import REPO_ROOT, folder_lock, write_atomically
from tsc.scenarios.by_word import WORDS_HELP
from tsc.scenarios.command_line import at_least

CONTROLLERS = ("static", "actuated", "delay_based", "gap_out", "max_pressure", "longest_queue", "lookahead")
SFT = "sft"
RATIOS = ("to_best_classical", "grpo_to_sft")
ASKING = ("latency_p50_s", "latency_p99_s", "prompt_tokens", "completion_tokens")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The evaluation of one training: mean delays (s) by controller and traffic seed, and the best classical one.

    asking: of each language model, the means of ASKING.
    """

    network: str
    delays_s: Mapping[str, Mapping[int, float]]
    best_classical: str
    asking: Mapping[str, Mapping[str, float]]


def row(trainings: Mapping[int, Trained], *, reward_settings: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a network. trainings: by training seed; all were evaluated on the same traffic seeds.

    Raises ConfigError if they were not, or if they disagree on the best classical controller.
    """
    first, *others = trainings.values()
    seeds = sorted(first.delays_s[SFT])
    for other in others:
        if other.best_classical != first.best_classical or sorted(other.delays_s[SFT]) != seeds:
            raise ConfigError(
                f"the trainings on {first.network} were evaluated on different traffic: choose another --out"
            )
    # of each controller an array (traffic seeds), the mean over the trainings
    delays_s = {
        name: np.mean([[each.delays_s[name][seed] for seed in seeds] for each in trainings.values()], axis=0)
        for name in first.delays_s
    }
    last_model = _last_model(delays_s)
    return {
        "network": first.network,
        "best_classical": first.best_classical,
        "seeds": seeds,
        "training_seeds": sorted(trainings),
        "delay_s": {name: _with_interval([values], np.mean) for name, values in delays_s.items()},
        "delay_ratio_to_best_classical": _with_interval(
            [delays_s[last_model], delays_s[first.best_classical]], _ratio_of_means
        ),
        "delay_ratio_grpo_to_sft": _with_interval([delays_s[last_model], delays_s[SFT]], _ratio_of_means),
        "reward_settings": dict(reward_settings),
        "asking": {
            name: round(float(np.mean([each.asking[last_model][name] for each in trainings.values()])), 4)
            for name in ASKING
        },
    }


def _ratio_of_means(one: np.ndarray, other: np.ndarray, axis: int = -1) -> Any:
    return np.mean(one, axis=axis) / np.mean(other, axis=axis)


def _with_interval(samples: Sequence[np.ndarray], statistic: Any) -> list[float]:
    """Value, low and high; of a single seed, the value alone."""
    interval = bootstrap_interval95(samples, statistic)
    return [round(float(each), 4) for each in (statistic(*samples, axis=-1), *(interval or ()))]


def put_row(new: Mapping[str, Any], file: Path) -> None:
    """Write a row to the file, in place of an older one of the same network. Other rows stay."""
    rows = json.loads(file.read_bytes()) if file.exists() else []
    networks = [old["network"] for old in rows]
    at = networks.index(new["network"]) if new["network"] in networks else len(rows)
    rows[at : at + 1] = [new]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, (json.dumps(rows, indent=1) + "\n").encode())


_SHOWN_ASKING = ("{latency_p50_s:.2f}, {latency_p99_s:.2f}", "{prompt_tokens:.0f}, {completion_tokens:.0f}")


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table: mean delays (s) and the two ratios, with intervals, and the means over the networks."""
    header = ["network", "best classical", "its delay [s]", "lookahead", "SFT", "GRPO", "GRPO / best classical"]
    header += ["GRPO / SFT", "latency: median, 99 % [s]", "tokens: prompt, answer"]
    lines = ["| " + " | ".join(header) + " |", "|---|---|" + "--:|" * 8]
    for each in rows:
        delays_s, best = each["delay_s"], each["best_classical"]
        shown = [delays_s[name][0] for name in (best, "lookahead", SFT, _last_model(delays_s))]
        ratios = (each[f"delay_ratio_{name}"] for name in RATIOS)
        cells = [each["network"], best, *(f"{delay_s:.1f}" for delay_s in shown), *map(_shown_ratio, ratios)]
        cells += [template.format(**each["asking"]) for template in _SHOWN_ASKING] if "asking" in each else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    means = [f"{np.mean([each[f'delay_ratio_{name}'][0] for each in rows]):.2f}" for name in RATIOS]
    lines.append("| " + " | ".join(["mean", "", "", "", "", "", *means, "", ""]) + " |")
    return "\n".join(lines)


def _last_model(delays_s: Mapping[str, Any]) -> str:
    """The model of the last round: grpo, grpo_round2 and so on."""
    return max((name for name in delays_s if name.startswith("grpo")), key=lambda name: (len(name), name))


def _shown_ratio(values: Sequence[float]) -> str:
    value, *interval = values
    return f"{value:.2f}" + (" [{:.2f}, {:.2f}]".format(*interval) if interval else "")


def trained_in(run: Path) -> Trained:
    """What the evaluation of a run found."""
    episodes = [json.loads(line) for line in (run / "eval/episodes.jsonl").read_text().splitlines()]
    summary = pd.read_csv(run / "eval/summary.csv")
    (best_classical,) = set(summary["reference"].dropna())
    delays_s: dict[str, dict[int, float]] = {}
    asking: dict[str, list[list[float]]] = {}
    for episode in episodes:
        if "delay_s" in episode:  # else the controller does not apply to the network
            delays_s.setdefault(episode["controller"], {})[episode["seed"]] = episode["delay_s"]
            if episode.get("latency_p50_s") is not None:
                asking.setdefault(episode["controller"], []).append([episode[name] for name in ASKING])
    return Trained(
        network=episodes[0]["scenario"],
        delays_s=delays_s,
        best_classical=str(best_classical),
        asking={name: dict(zip(ASKING, np.mean(them, axis=0), strict=True)) for name, them in asking.items()},
    )


def train(word: str, seed: int, *, rounds: int, eval_seeds: int, runs: Path) -> Run:
    """The finished run. Raises TscError if the training fails."""
    knobs = {
        "SCENARIO": word,
        "ROUNDS": str(rounds),
        "CALIBRATE": "yes",
        "HARDWARE": "cpu",
        "WANDB": "off",
        "EVAL_SEEDS": str(eval_seeds),
        "EVAL_CONTROLLERS": " ".join(CONTROLLERS),
        "RUNS": str(runs),
        "RUN_NAME": re.sub(r"[^\w.-]+", "_", f"{word.lstrip('./')}-{seed}"),
    }
    run = Run.from_environment("grpo", knobs)
    run.out.mkdir(parents=True, exist_ok=True)
    log = run.out / "output.txt"
    with log.open("a", encoding="utf-8") as output:
        done = subprocess.run(
            ["bash", "scripts/train_grpo.sh", f"data.seed={seed}"],
            cwd=REPO_ROOT,
            env={**os.environ, **knobs},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode != 0:
        raise TscError(f"the training on {word} with seed {seed} ended with status {done.returncode}: see {log}")
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", required=True, metavar="WORD", help=f"each {WORDS_HELP}")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--rounds", type=at_least(1), default=2, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--training-seeds", type=at_least(0), nargs="+", default=[1], metavar="SEED")
    parser.add_argument(
        "--seeds", type=at_least(2), default=10, metavar="N", help="of the evaluation (default: %(default)s)"
    )
    arguments = parser.parse_args()
    out, runs = arguments.out.resolve(), arguments.runs.resolve()
    for word in arguments.networks:
        trained = {
            seed: train(word, seed, rounds=arguments.rounds, eval_seeds=arguments.seeds, runs=runs)
            for seed in arguments.training_seeds
        }
        found = {seed: trained_in(run.out) for seed, run in trained.items()}
        network = next(iter(found.values())).network
        judged = load_outcome_settings(REPO_ROOT / next(iter(trained.values())).reward_file, network).as_dict()
        new = row(found, reward_settings=judged)
        with folder_lock(runs, "the results", lock_file=".results.lock"):
            put_row(new, out)
        ratio, *interval = new["delay_ratio_to_best_classical"]
        print(f"{network}: {ratio:.2f} {interval} of {new['best_classical']}", flush=True)
    print(markdown(json.loads(out.read_bytes())))
    print(f"results: {arguments.out}")


if __name__ == "__main__":
    run_main(main)
