"""Run controllers and language models on demand that training never saw, and compare them.

Example:
    python scripts/evaluate.py --scenario configs/scenarios/four_way.yaml --seeds 5 --out runs/mine/eval \\
        --controllers static gap_out max_pressure lookahead llm:sft=runs/mine/sft/merged llm:grpo=runs/mine/grpo/merged

A controller `llm:NAME=FOLDER` is a model in Hugging Face format, `llm:NAME=FOLDER+ADAPTER` one with a LoRA adapter.
Writes OUT/episodes.jsonl (one line an episode; a second call continues), OUT/results.json and OUT/results.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tsc.controllers.language_model import Ask, ask_function
from tsc.episode_runner import CLASSICAL_CONTROLLERS, LANGUAGE_MODEL, EpisodeJob, job_record, run_jobs
from tsc.errors import ConfigError, run_main
from tsc.evaluation.statistics import markdown_table, paired_difference, result_rows
from tsc.files import write_atomically
from tsc.outcome import OutcomeSettings, load_outcome_settings
from tsc.prompt import PROMPT_VERSION
from tsc.scenario import Scenario, build_demand, build_net, load_scenario
from tsc.simulation import SumoFiles
from tsc.sumo_version import installed_sumo_version
from tsc.yaml_file import nearest_spelling

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def parse_controllers(texts: list[str]) -> dict[str, tuple[Path, Path | None] | None]:
    """Name → model folder and adapter, or None for a classical controller. Raises ConfigError."""
    controllers: dict[str, tuple[Path, Path | None] | None] = {}
    for text in texts:
        if text.startswith(f"{LANGUAGE_MODEL}:"):
            name, equals, folders = text.removeprefix(f"{LANGUAGE_MODEL}:").partition("=")
            model, _, adapter = folders.partition("+")
            if not (name and equals and model):
                raise ConfigError(f"controller {text!r}: write llm:NAME=FOLDER or llm:NAME=FOLDER+ADAPTER")
            for folder in filter(None, (model, adapter)):
                if not Path(folder).is_dir():
                    raise ConfigError(f"controller {text!r}: folder {folder} does not exist")
            controllers[name] = (Path(model), Path(adapter) if adapter else None)
        elif text in CLASSICAL_CONTROLLERS:
            controllers[text] = None
        else:
            nearest = nearest_spelling(text, CLASSICAL_CONTROLLERS)
            meant = f"did you mean {nearest!r}? " if nearest else ""
            raise ConfigError(
                f"controller {text!r} is unknown: {meant}choose of {', '.join(CLASSICAL_CONTROLLERS)}, llm:NAME=FOLDER"
            )
    if len(controllers) < len(texts):
        raise ConfigError(f"two controllers have the same name: {' '.join(texts)}")
    return controllers


def model_digest(folders: tuple[Path, Path | None]) -> str:
    """Over the names and contents of a model's (and its adapter's) weights and settings."""
    digest = hashlib.sha256()
    for folder in filter(None, folders):
        for path in sorted(folder.iterdir()):
            if path.suffix in (".safetensors", ".json", ".bin", ".jinja"):
                with path.open("rb") as file:
                    digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def make_jobs(
    scenario: Scenario, names: dict[str, Any], num_seeds: int, out: Path, lookahead: OutcomeSettings
) -> list[EpisodeJob]:
    """One job for each controller and evaluation seed; builds the net and the demands they need."""
    folder = out / "scenarios" / scenario.name
    net_file = folder / f"{scenario.name}.net.xml"
    build_net(scenario, net_file)
    jobs = []
    for number in range(num_seeds):
        seed = scenario.seeds.episode_seed("evaluation", number)
        route_file = folder / f"seed{seed}.rou.xml"
        build_demand(scenario, net_file, seed, route_file)
        jobs += [
            EpisodeJob(
                scenario=scenario.name,
                controller=name,
                kind=name if folders is None else LANGUAGE_MODEL,
                seed=seed,
                files=SumoFiles(net_file=net_file, route_files=(route_file,), seed=seed),
                duration_s=scenario.duration_s,
                timing=scenario.timing,
                lookahead=lookahead,
            )
            for name, folders in names.items()
        ]
    return jobs


def fingerprint(job: EpisodeJob, scenario: Scenario, digest: str | None) -> str:
    """Of everything that decides an episode's result; a stored episode with another one is run again."""
    what = {
        "job": job_record(job),
        "scenario": scenario.model_dump(mode="json"),
        "model": digest,
        "prompt_version": PROMPT_VERSION,
        "sumo": installed_sumo_version(),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_episodes(path: Path, wanted: set[str]) -> list[dict[str, Any]]:
    """The stored episodes that still hold. A last line cut short by a kill is dropped."""
    if not path.exists():
        return []
    episodes = []
    for line in path.read_text().splitlines():
        try:
            episode = json.loads(line)
        except json.JSONDecodeError:
            continue
        if episode["fingerprint"] in wanted:
            episodes.append(episode)
    return episodes


def ask_for(controllers: dict[str, tuple[Path, Path | None] | None]) -> Callable[[str], Ask]:
    """Loads a controller's model when its turn comes: torch takes seconds that classical controllers need not wait."""

    def ask(name: str) -> Ask:
        from recipes.text_generation import LocalModel

        folders = controllers[name]
        assert folders is not None
        return ask_function(LocalModel(*folders).generate)

    return ask


def comparison_lines(episodes: list[dict[str, Any]], scenario: str, names: list[str]) -> list[str]:
    """The last language model against every other controller, paired over seeds, in mean queue."""
    *others, last = names
    lines = [f"{last} minus … in mean queue, paired over seeds (95 % interval):"]
    for other in others:
        mean, low, high = paired_difference(episodes, scenario, "mean_queue_veh", last, other)
        reference = [e["mean_queue_veh"] for e in episodes if e["scenario"] == scenario and e["controller"] == other]
        share = 100 * mean * len(reference) / sum(reference) if sum(reference) else 0.0
        lines.append(f"  {other:<14} {mean:+7.2f} veh [{low:+.2f}, {high:+.2f}]  {share:+.0f} %")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", type=Path, action="append", required=True, help="a scenario file; repeatable")
    parser.add_argument(
        "--controllers", nargs="+", required=True, metavar="NAME", help=", ".join(CLASSICAL_CONTROLLERS)
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many evaluation seeds (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=multiprocessing.cpu_count(), help="episodes at once (default: cores)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for episodes and results")
    parser.add_argument("--reward", type=Path, default=CONFIGS / "reward.yaml", help="outcome settings of lookahead")
    arguments = parser.parse_args()
    for name in ("seeds", "workers"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} is {getattr(arguments, name)}: choose at least 1")

    controllers = parse_controllers(arguments.controllers)
    scenarios = [load_scenario(path) for path in arguments.scenario]
    lookahead = load_outcome_settings(arguments.reward)
    digests = {name: model_digest(folders) for name, folders in controllers.items() if folders}
    out = arguments.out.resolve()
    jobs: dict[str, EpisodeJob] = {}
    for scenario in scenarios:
        for job in make_jobs(scenario, controllers, arguments.seeds, out, lookahead):
            jobs[fingerprint(job, scenario, digests.get(job.controller))] = job

    path = out / "episodes.jsonl"
    episodes = read_episodes(path, set(jobs))
    done = {episode["fingerprint"] for episode in episodes}
    write_atomically(path, "".join(json.dumps(episode) + "\n" for episode in episodes).encode())
    missing = {name: job for name, job in jobs.items() if name not in done}
    name_of = {(job.scenario, job.controller, job.seed): name for name, job in missing.items()}
    if done:
        print(f"{len(done)} of {len(jobs)} episodes are there already")
    with path.open("a") as file, tqdm(total=len(missing), unit=" episodes", disable=None) as bar:
        for record in run_jobs(list(missing.values()), arguments.workers, ask_for(controllers)):
            record["fingerprint"] = name_of[record["scenario"], record["controller"], record["seed"]]
            episodes.append(record)
            file.write(json.dumps(record) + "\n")
            file.flush()
            bar.update()

    order = list(controllers)
    episodes.sort(key=lambda episode: (order.index(episode["controller"]), episode["seed"]))
    rows, text = [], []
    for scenario in scenarios:
        of_scenario = result_rows(episodes, scenario.name)
        rows += of_scenario
        text += [
            f"{scenario.name}, {arguments.seeds} unseen seeds of {scenario.duration_s} s, mean ± 95 % interval",
            "",
        ]
        text += [markdown_table(of_scenario), ""]
        if len(order) > 1 and controllers[order[-1]] is not None and arguments.seeds > 1:
            text += [*comparison_lines(episodes, scenario.name, order), ""]
    write_atomically(out / "results.json", (json.dumps(rows, indent=1) + "\n").encode())
    write_atomically(out / "results.md", "\n".join(text).encode())
    print("\n".join(text))


if __name__ == "__main__":
    run_main(main)
