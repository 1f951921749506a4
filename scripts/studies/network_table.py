"""Run the tools on many SUMO networks, and report on which of them they work from end to end.

Examples:
    python scripts/studies/network_table.py --out runs/networks --random 100 \\
        --networks resco:cologne1 sumo:rilsa1 mine.sumocfg nets/of/others
    python scripts/studies/network_table.py --out runs/networks --random 20 --steps inspect evaluate --seconds 300

A network is a word that the tools take as --scenario, or comes from a folder: all its *.sumocfg and *.sumo.cfg, except
run_NUMBER.sumocfg. A net without a sumocfg gets random demand. A sumocfg that names missing
files is used without them, or if no route file is left, its net gets random demand. Files stay where they are and are
only read. --random N adds N networks that SUMO's netgenerate makes with random options.

Each network goes through the steps in their order, until one fails:
    inspect   data_tools' inspect_scenario.py
    evaluate  scripts/evaluate.py with static, actuated and max_pressure, one seed
    generate  data_tools/generate_dataset.py, one episode for training and one for validation, some 70 labels
    verify    data_tools/verify_states.py, 20 states; ends well if all of them can be replayed
    train     scripts/train_grpo.sh, 2 steps on a CPU; only each N-th network of a group, see --train-every
A network is refused if a tool ends with status 2 and an error message. It failed if a tool ends in any other way or
takes too long. Networks without a signal at a road are listed, but do not count, as are those that did not go through
and that SUMO itself cannot load.

Writes OUT/networks.jsonl (one line per network and step; a second call continues), OUT/table.md and OUT/logs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from random_networks import (
    Demand,
    build_network,
    num_signals,
    vehicles_arrived,
    write_demand,
    write_sumocfg,
)
from tsc.errors import ConfigError, ScenarioError, TscError, run_main
from tsc.files import REPO_ROOT, folder_lock, write_atomically
from tsc.processes import die_with_parent
from tsc.scenarios.by_word import traffic_scenarios
from tsc.scenarios.command_line import at_least
from tsc.sumo.additional_files import without_outputs

STEPS = ("inspect", "evaluate", "generate", "verify", "train")
# comes before the steps: makes what has to be made, and counts signals
PREPARE = "prepare"
OK, REFUSED, FAILED, NO_SIGNALS = "ok", "refused", "failed", "no signals"
# refused or failed, but SUMO itself cannot load the files either
BROKEN = "broken"
NOT_COUNTED = (NO_SIGNALS, BROKEN)
RANDOM = "random"

CONTROLLERS = ("static", "actuated", "max_pressure")
# of both episodes together
NUM_LABELS = 70
# a rough mean; it only decides which share of the decisions is labelled
SECONDS_A_DECISION = 8
HORIZON_S = 45
# Under lookahead every decision of a net is labelled, which takes too long where there are more signals.
MAX_SIGNALS_WITH_LOOKAHEAD = 10
WORKERS = 2
# how long plain SUMO runs what was made here, and the demand of nets without one
TRIED_S, DEMAND_S = 600, 3600
# the end of a sumocfg that has none
FAR_END_S = 1_000_000
# a tool that is told to end may still have to end its own processes
GRACE_S = 20
MAX_MESSAGE = 400


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network to try.

    source: what identifies it from call to call: a word, the path of a file, or the seed of a random network.
    name: of its files in OUT.
    net_file: of a net that gets random demand, else None.
    incomplete: a sumocfg that is used without the files that it names and that do not exist, else None.
    seed: of a random network, else None.
    is_trained: whether the step `train` is for it.
    """

    source: str
    name: str
    group: str
    net_file: Path | None = None
    incomplete: Path | None = None
    seed: int | None = None
    is_trained: bool = False


@dataclass(frozen=True, kw_only=True)
class Settings:
    out: Path
    steps: tuple[str, ...]
    duration_s: int
    timeout_s: int

    def folder(self, step: str, network: Network) -> Path:
        return self.out / step / network.name


# -- which networks


def found_networks(words: Sequence[str]) -> list[Network]:
    """The networks of words and folders in their order, each once. Raises ConfigError for an empty folder."""
    networks: dict[str, Network] = {}
    for word in words:
        folder = Path(word)
        if folder.is_dir():
            of_folder = _networks_of_folder(folder.absolute())
            if not of_folder:
                raise ConfigError(f"--networks {word} contains neither a sumocfg nor a net: choose another folder")
        else:
            is_file = folder.suffix != "" and folder.exists()
            group = f"{word.partition(':')[0]}:" if ":" in word and not is_file else "files"
            source = str(folder.absolute()) if is_file else word
            of_folder = [Network(source=source, name=_name(word.removeprefix("/")), group=group)]
        for network in of_folder:
            networks.setdefault(network.source, network)
    return list(networks.values())


def _networks_of_folder(folder: Path) -> list[Network]:
    group = "/".join(folder.parts[-2:])

    def network(path: Path, **more: Path) -> Network:
        name = _name("-".join((folder.name, *path.relative_to(folder).parts)))
        return Network(source=str(path), name=name, group=group, **more)  # type: ignore[arg-type]

    configs = sorted(path for ending in ("*.sumocfg", "*.sumo.cfg") for path in folder.rglob(ending))
    net_files = sorted(path for ending in ("*.net.xml", "*.net.xml.gz") for path in folder.rglob(ending))
    walked = {net.resolve() for net in net_files}
    networks, started, folders = [], set(), set()
    for path in configs:
        named = _named_files(path)
        nets = {file for option, file in named if option == "net-file"}
        is_complete = all(file.exists() for _, file in named)
        if not is_complete and nets & walked and not _existing(named, "route-files"):
            continue  # its net gets random demand
        started |= nets
        folders.add(path.parent)
        if re.fullmatch(r"run_\d+\.sumocfg", path.name):  # it is run.sumocfg with other demand
            continue
        networks.append(network(path) if is_complete else network(path, incomplete=path))
    for net in net_files:
        if net.resolve() not in started and net.parent not in folders:
            networks.append(network(net, net_file=net))
    return networks


def _existing(named: Iterable[tuple[str, Path]], option: str) -> list[Path]:
    return [file for name, file in named if name == option and file.exists()]


def _named_files(config: Path) -> list[tuple[str, Path]]:
    """The nets, route files and additional files that a sumocfg names; nothing for a file that is not XML."""
    short = {"n": "net-file", "net": "net-file", "r": "route-files", "a": "additional-files"}
    try:
        options = list(ElementTree.parse(config).getroot().iter())
    except ElementTree.ParseError:
        return []
    found = []
    for option in options:
        name = short.get(option.tag, option.tag)
        if name in short.values():
            values = option.get("value", option.get("v", "")).split(",")
            found += [(name, (config.parent / value.strip()).resolve()) for value in values if value.strip()]
    return found


def _name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", re.sub(r"\.(sumocfg|sumo\.cfg|net\.xml|net\.xml\.gz)$", "", text)).strip("-.")


def random_networks(count: int, first_seed: int) -> list[Network]:
    return [
        Network(source=f"random network {seed}", name=f"random-{seed:04d}", group=RANDOM, seed=seed)
        for seed in range(first_seed, first_seed + count)
    ]


def with_own_names(networks: Iterable[Network], taken: Mapping[str, str]) -> list[Network]:
    """The networks with different names. taken: source → name of an earlier call, which a network keeps."""
    owner = {name: source for source, name in taken.items()}
    named = []
    for network in networks:
        name, number = taken.get(network.source, network.name), 2
        while owner.setdefault(name, network.source) != network.source:
            name, number = f"{network.name}-{number}", number + 1
        named.append(_changed(network, name=name))
    return named


def with_trainings(networks: Sequence[Network], every: int) -> list[Network]:
    """The networks with a training for each of this number in a group, beginning with the first of the group."""
    numbers: dict[str, int] = {}
    chosen = []
    for network in networks:
        number = numbers[network.group] = numbers.get(network.group, -1) + 1
        chosen.append(_changed(network, is_trained=number % every == 0))
    return chosen


def _changed(network: Network, **changes: Any) -> Network:
    return Network(**{**vars(network), **changes})


# -- the records


class RecordsFile:
    """OUT/networks.jsonl. The last record of a network and step counts.

    A last line that a kill cut short is dropped. Raises ConfigError if the file has other content.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._records: dict[tuple[str, str], dict[str, Any]] = {}
        kept = []
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                self._records[record["source"], record["step"]] = record
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                if number == len(lines):
                    break
                raise ConfigError(f"{path}:{number} is not the record of a step: choose another --out") from error
            kept.append(f"{line}\n")
        write_atomically(path, "".join(kept).encode())

    def append(self, record: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(record)}\n")
        self._records[record["source"], record["step"]] = record

    def get(self, network: Network, step: str) -> dict[str, Any] | None:
        return self._records.get((network.source, step))

    def names(self) -> dict[str, str]:
        return {source: record["name"] for (source, _), record in self._records.items()}

    def durations_s(self) -> set[int]:
        return {record["duration_s"] for record in self._records.values()}


# -- one network


def run_network(network: Network, settings: Settings, file: RecordsFile, again: Sequence[str]) -> None:
    """Run the steps that the file does not have, until one is not ok.

    again: steps that ended like this are run once more, with the steps after them.
    """
    is_new = False
    for step in (PREPARE, *steps_of(network, settings)):
        record = file.get(network, step)
        if record is None or is_new or record["status"] in again:
            is_new = True
            begin = time.monotonic()
            outcome = _prepare(network, settings) if step == PREPARE else _run_step(step, network, settings, file)
            record = {
                "source": network.source,
                "name": network.name,
                "group": network.group,
                "step": step,
                "status": outcome.status,
                "seconds": round(time.monotonic() - begin, 1),
                "message": outcome.message,
                "duration_s": settings.duration_s,
                **outcome.facts,
            }
            file.append(record)
        if record["status"] != OK:
            return


def steps_of(network: Network, settings: Settings) -> tuple[str, ...]:
    return tuple(step for step in settings.steps if step != "train" or network.is_trained)


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    status: str
    message: str
    facts: dict[str, Any]


def _prepare(network: Network, settings: Settings) -> StepOutcome:
    """Make the network if it has to be made, count its signals, and see what SUMO itself makes of it."""
    facts: dict[str, Any] = {"word": network.source}
    try:
        if network.seed is not None or network.net_file is not None:
            facts |= _make(network, settings)
        elif Path(network.source).exists():
            facts |= _stripped(network, settings)
        else:
            facts["signals"] = _signals_of_word(network.source)
    except (TscError, OSError, ElementTree.ParseError) as error:
        return StepOutcome(status=FAILED, message=_shortened(str(error)), facts=facts)
    return StepOutcome(status=NO_SIGNALS if facts["signals"] == 0 else OK, message="", facts=facts)


def _make(network: Network, settings: Settings) -> dict[str, Any]:
    """Write net (of a random network), demand and sumocfg into OUT."""
    folder = settings.folder("demand" if network.seed is None else RANDOM, network)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if network.seed is not None:
        sumocfg, drawn = build_network(network.seed, folder)
        begin_s = drawn.demand.begin_s
        facts = {"signals": num_signals(folder / "net.net.xml"), "notes": drawn.described()}
    else:
        assert network.net_file is not None
        signals = num_signals(network.net_file)
        if not signals:
            return {"signals": 0}
        demand = Demand(seed=1, duration_s=DEMAND_S, rate_veh_per_h=max(300, min(3600, 150 * signals)))
        sumocfg = folder / f"{network.name}.sumocfg"
        route_files = write_demand(demand, network.net_file, folder)
        write_sumocfg(sumocfg, network.net_file, route_files, begin_s=0, end_s=DEMAND_S)
        begin_s = demand.begin_s
        facts = {"signals": signals, "notes": f"random demand, {demand.rate_veh_per_h} veh/h"}
    num_arrived = vehicles_arrived(sumocfg, folder, begin_s=begin_s, end_s=begin_s + TRIED_S)
    if not num_arrived:
        raise ScenarioError(f"no vehicle arrives within {TRIED_S} s of plain SUMO")
    return {**facts, "word": str(sumocfg), "arrived_in_plain_sumo": num_arrived}


def _stripped(network: Network, settings: Settings) -> dict[str, Any]:
    """What SUMO itself says to the files of a sumocfg, without its other options.

    Of an incomplete sumocfg, the tools get the same: a sumocfg with the files that exist.
    """
    named = _named_files(Path(network.source))
    nets = _existing(named, "net-file")
    if not nets:
        return {"signals": None}
    folder = settings.folder("files", network)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    facts: dict[str, Any] = {"signals": None}
    sumocfg = folder / f"{network.name}.sumocfg"
    try:
        facts["signals"] = num_signals(nets[0])
        additional = []
        for path in _existing(named, "additional-files"):
            quiet = without_outputs(path)  # plain SUMO would write next to files that are only to be read
            if quiet is not None:
                path = folder / path.name
                write_atomically(path, quiet)
            additional.append(path)
        options = {"additional-files": ",".join(map(str, additional))} if additional else {}
        options["ignore-route-errors"] = "true"
        write_sumocfg(sumocfg, nets[0], _existing(named, "route-files"), begin_s=0, end_s=DEMAND_S, **options)
        if network.incomplete is not None:
            missing = ", ".join(file.name for _, file in named if not file.exists())
            facts |= {"word": str(sumocfg), "notes": f"its sumocfg without {missing}, which does not exist"}
        end_s = _end_s(Path(network.source))
        vehicles_arrived(sumocfg, folder, begin_s=end_s - 1, end_s=end_s)  # one step, after all files are read
    except (TscError, OSError, EOFError, gzip.BadGzipFile, ElementTree.ParseError) as error:
        facts["plain_sumo"] = _shortened(str(error))
    return facts


def _end_s(config: Path) -> int:
    """Flows without an end of their own end here, so an earlier end could make them invalid."""
    for option in ElementTree.parse(config).getroot().iter():
        value = option.get("value", option.get("v", ""))
        if option.tag in ("end", "e") and value.removesuffix(".00").isdigit() and int(float(value)) > 0:
            return int(float(value))
    return FAR_END_S


def _signals_of_word(word: str) -> int | None:
    """None if there is no such word. What is wrong with it is for the tools to say."""
    try:
        with tempfile.TemporaryDirectory(prefix="tsc-networks-") as folder:
            return num_signals(traffic_scenarios([word], Path(folder))[0].net_file)
    except (TscError, OSError, ElementTree.ParseError):
        return None


def _run_step(step: str, network: Network, settings: Settings, file: RecordsFile) -> StepOutcome:
    prepared = file.get(network, PREPARE)
    assert prepared is not None
    if step != "verify":  # which only reads
        shutil.rmtree(_output(step, network, settings), ignore_errors=True)
    command, knobs = _command(step, network, settings, word=prepared["word"], signals=prepared["signals"] or 1)
    log = settings.folder("logs", network) / f"{step}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    status = _run(command, knobs, log, settings.timeout_s)
    text = log.read_text(encoding="utf-8", errors="replace")
    facts = _facts(step, network, settings, text)
    # verify ends with status 1 where replays are less exact than on our own nets; the table has their shares
    if status == 0 or (step == "verify" and status == 1 and facts.get("not_replayed") == 0):
        return StepOutcome(status=OK, message="", facts=facts)
    if status is None:
        return StepOutcome(status=FAILED, message=f"not done after {settings.timeout_s} s", facts=facts)
    refusal = re.search(r"^error: .*\Z", text, re.MULTILINE | re.DOTALL)
    if status == 2 and refusal and "Traceback (most recent call last)" not in text:
        return StepOutcome(status=REFUSED, message=_shortened(refusal[0].removeprefix("error: ")), facts=facts)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return StepOutcome(status=FAILED, message=_shortened(f"status {status}: {lines[-1]}"), facts=facts)


def _output(step: str, network: Network, settings: Settings) -> Path:
    return settings.folder("data" if step == "generate" else step, network)


def _command(
    step: str, network: Network, settings: Settings, *, word: str, signals: int
) -> tuple[list[str], dict[str, str]]:
    """The command of a step, and the environment variables that it gets."""
    output = str(_output(step, network, settings))
    data = str(_output("generate", network, settings))
    duration = ["--duration", str(settings.duration_s)]
    if step == "inspect":
        return [*_tool("data_tools", "inspect_scenario.py"), word, "--simulate", duration[1], "--out", output], {}
    if step == "evaluate":
        command = [*_tool("scripts", "evaluate.py"), "--scenarios", word, "--controllers", *CONTROLLERS]
        # naming the reference spares the episodes that would choose it: the table does not compare controllers
        command += ["--reference", CONTROLLERS[0]]
        return [*command, "--seeds", "1", "--workers", "1", *duration, "--out", output], {}
    if step == "generate":
        config = settings.folder("configs", network).with_suffix(".yaml")
        config.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(config, yaml.safe_dump(dataset_config(settings.duration_s, signals)).encode())
        command = [*_tool("data_tools", "generate_dataset.py"), "--scenario", word, "--config", str(config)]
        command += ["--episodes", "1", "--validation-episodes", "1", "--workers", str(WORKERS), *duration]
        return [*command, "--out", output], {}
    if step == "verify":
        command = [*_tool("data_tools", "verify_states.py"), "--data", data, "--sample", "20"]
        Path(output).mkdir(parents=True, exist_ok=True)
        return [*command, "--workers", str(WORKERS), "--json", f"{output}/replays.json"], {}
    knobs = {
        "SCENARIO": word, "DATA": data, "STEPS": "2", "BATCH_PROMPTS": "4", "ROLLOUT_N": "2", "MICRO_BATCH": "8",
        "SFT_EPOCHS": "1", "SFT_BATCH_CHATS": "4", "EVAL_SEEDS": "0", "HARDWARE": "cpu", "WANDB": "off",
        "RUNS": str(Path(output).parent), "RUN_NAME": network.name,
    }  # fmt: skip
    return ["bash", "scripts/train_grpo.sh"], knobs


def _tool(*parts: str) -> list[str]:
    return [sys.executable, str(REPO_ROOT.joinpath(*parts))]


def dataset_config(duration_s: int, signals: int) -> dict[str, Any]:
    """Settings of generate_dataset.py with which two episodes of this network give some NUM_LABELS labels."""
    warm_up_s = min(60, duration_s // 10)
    sampled_s = max(1, duration_s - warm_up_s - HORIZON_S)
    lookahead = 0.25 if signals <= MAX_SIGNALS_WITH_LOOKAHEAD else 0.0
    num_decisions = 2 * signals * sampled_s / SECONDS_A_DECISION
    return {
        "behaviours": {"static": 0.25, "max_pressure": 0.5 - lookahead, "lookahead": lookahead, "random": 0.25},
        "behaviour_block_s": 60,
        "warm_up_s": warm_up_s,
        "sample_share": round(min(1.0, NUM_LABELS / num_decisions), 5),
    }


def _run(command: Sequence[str], knobs: Mapping[str, str], log: Path, timeout_s: int) -> int | None:
    """The exit status of the command, or None if it took longer than timeout_s. Nothing that it started is left."""
    # whatever packages the interpreter has installed, the tools import those of this repository
    python_path = os.pathsep.join([str(REPO_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    parent_id = os.getpid()
    with log.open("w", encoding="utf-8") as file:
        file.write(f"$ {' '.join([*(f'{name}={value}' for name, value in knobs.items()), shlex.join(command)])}\n")
        file.flush()
        process = subprocess.Popen(
            command,
            cwd=REPO_ROOT,
            env={**os.environ, **knobs, "PYTHONPATH": python_path},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, which can be ended as a whole
            preexec_fn=lambda: die_with_parent(parent_id),
        )
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            return
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue


def _facts(step: str, network: Network, settings: Settings, log: str) -> dict[str, Any]:
    """What a step's own output says about the network, as far as it came."""
    output = _output(step, network, settings)
    if step == "evaluate" and (output / "episodes.jsonl").is_file():
        episodes = [json.loads(line) for line in (output / "episodes.jsonl").read_text().splitlines()]
        return {
            "finished_veh": {each["controller"]: each["finished_veh"] for each in episodes if "finished_veh" in each},
            "not_applicable": {
                each["controller"]: each["not_applicable"] for each in episodes if "not_applicable" in each
            },
        }
    if step == "generate":
        count = re.search(r"^(\d+) samples of", log, re.MULTILINE)
        return {"samples": int(count[1])} if count else {}
    if step == "verify" and (output / "replays.json").is_file():
        rows = json.loads((output / "replays.json").read_text())
        names = ("states", "not replayed", "identical outcomes", "same better answer")
        values = {name: [row["value"] for row in rows if row["name"].endswith(f": {name}")] for name in names}
        return {name.replace(" ", "_"): found[0] for name, found in values.items() if len(found) == 1}
    return {}


def _shortened(text: str) -> str:
    """In one line, without the folders of files, which are of this machine."""
    line = re.sub(r"(?<![\w.])/(?:[\w.@+-]+/)+", "", " ".join(text.split()))
    return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 1]}…"


# -- the table


def verdict(network: Network, settings: Settings, file: RecordsFile) -> tuple[str, dict[str, Any]] | None:
    """How the network ended, with the record that decides it. None if steps are still missing."""
    record: dict[str, Any] | None = None
    for step in (PREPARE, *steps_of(network, settings)):
        record = file.get(network, step)
        if record is None:
            return None
        if record["status"] != OK:
            is_broken = record["status"] in (REFUSED, FAILED) and "plain_sumo" in (file.get(network, PREPARE) or {})
            return BROKEN if is_broken else record["status"], record
    assert record is not None
    return OK, record


def table(networks: Sequence[Network], settings: Settings, file: RecordsFile) -> str:
    """The report in Markdown."""
    verdicts = {network.source: verdict(network, settings, file) for network in networks}

    def ended(network: Network, *statuses: str) -> bool:
        found = verdicts[network.source]
        return found is not None and found[0] in statuses

    counted = [network for network in networks if not ended(network, *NOT_COUNTED)]
    lines = [
        f"# {len(networks)} networks",
        "",
        f"Steps: {', '.join(settings.steps)}; {settings.duration_s} s of simulated time. `–`: not run, because an "
        "earlier step did not end well, or because the network was not chosen for a training.",
        "",
        *_totals(counted, ended),
        "",
        f"| network | signals | {' | '.join(settings.steps)} | identical outcomes | same better answer |",
        f"|:---|---:|{':---|' * len(settings.steps)}---:|---:|",
    ]
    for network in counted:
        prepared, verified = file.get(network, PREPARE) or {}, file.get(network, "verify") or {}
        known = verdicts[network.source]
        cells = [_cell(file.get(network, step)) for step in settings.steps]
        if known is not None and known[1]["step"] == PREPARE:
            cells[0] = "not made"
        elif known is not None and known[0] != OK:  # records of later steps come from before the failure
            after = settings.steps.index(known[1]["step"]) + 1
            cells[after:] = ["–"] * (len(cells) - after)
        shares = [verified.get(name) for name in ("identical_outcomes", "same_better_answer")]
        cells += ["–" if share is None else f"{100 * share:.0f} %" for share in shares]
        signals = prepared.get("signals")
        lines.append(f"| {' | '.join([network.name, '?' if signals is None else str(signals), *cells])} |")
    messages = [
        f"- {network.name}, {known[1]['step']} {known[0]}: {known[1]['message']}"
        for network in counted
        if (known := verdicts[network.source]) is not None and known[0] != OK
    ]
    lines += _section("Networks that did not go through", messages)
    lines += _section(
        "Networks without a signal at a road, which do not count",
        [f"- {network.name}" for network in networks if ended(network, NO_SIGNALS)],
    )
    lines += _section(
        "Networks that SUMO itself cannot load, which do not count",
        [
            f"- {network.name}: {(file.get(network, PREPARE) or {})['plain_sumo']}"
            for network in networks
            if ended(network, BROKEN)
        ],
    )
    lines += _section(
        "How networks were made",
        [
            f"- {network.name}: {record['notes']}"
            for network in networks
            if (record := file.get(network, PREPARE)) is not None and "notes" in record
        ],
    )
    return "\n".join(lines)


def _totals(counted: Sequence[Network], ended: Callable[..., bool]) -> list[str]:
    lines = ["| group | networks | end to end | refused | failed | not done yet |", "|:---|---:|---:|---:|---:|---:|"]
    groups = list(dict.fromkeys(network.group for network in counted))
    for group in [*groups, None]:
        members = [network for network in counted if group in (None, network.group)]
        ok, refused, failed = (sum(ended(network, status) for network in members) for status in (OK, REFUSED, FAILED))
        share = f" ({100 * ok / len(members):.0f} %)" if members else ""
        open_ = len(members) - ok - refused - failed
        lines.append(f"| {group or 'all'} | {len(members)} | {ok}{share} | {refused} | {failed} | {open_} |")
    return lines


def _cell(record: Mapping[str, Any] | None) -> str:
    return "–" if record is None else str(record["status"])


def _section(title: str, items: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *items] if items else []


# -- the command


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is written")
    parser.add_argument(
        "--networks", nargs="+", default=[], metavar="WORD_OR_FOLDER", help="networks to try (default: random ones)"
    )
    parser.add_argument(
        "--random", type=at_least(0), default=100, metavar="N", help="random networks (default: %(default)s)"
    )
    parser.add_argument(
        "--first-seed", type=at_least(0), default=1, metavar="SEED", help="of the random networks (%(default)s)"
    )
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="steps to run (default: all)")
    parser.add_argument(
        "--seconds", type=at_least(60), default=600, metavar="S", help="simulated time of an episode (%(default)s)"
    )
    parser.add_argument(
        "--train-every", type=at_least(1), default=10, metavar="N", help="train each N-th network (%(default)s)"
    )
    parser.add_argument(
        "--timeout", type=at_least(1), default=600, metavar="S", help="real time of a step, s (default: %(default)s)"
    )
    parser.add_argument(
        "--again",
        nargs="+",
        choices=(REFUSED, FAILED),
        default=[],
        help="also repeat steps that ended like this in an earlier call",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    steps = tuple(step for step in STEPS if step in arguments.steps)
    if "generate" not in steps and {"verify", "train"} & set(steps):
        raise ConfigError("--steps has verify or train without generate, which makes their data: add generate")
    settings = Settings(
        out=arguments.out.resolve(), steps=steps, duration_s=arguments.seconds, timeout_s=arguments.timeout
    )
    networks = [*found_networks(arguments.networks), *random_networks(arguments.random, arguments.first_seed)]
    if not networks:
        raise ConfigError("nothing to try: give --networks, or --random above 0")
    with folder_lock(settings.out, "the table"):
        file = RecordsFile(settings.out / "networks.jsonl")
        if file.durations_s() - {settings.duration_s}:
            raise ConfigError(f"{settings.out} has networks with other --seconds: choose another --out")
        networks = with_trainings(with_own_names(networks, file.names()), arguments.train_every)
        for network in tqdm(networks, unit=" networks", disable=None):
            run_network(network, settings, file, arguments.again)
            write_atomically(settings.out / "table.md", f"{table(networks, settings, file)}\n".encode())
        print(table(networks, settings, file))
        print(f"\ntable and logs: {settings.out / 'table.md'}, {settings.out / 'logs'}")


if __name__ == "__main__":
    run_main(main)
