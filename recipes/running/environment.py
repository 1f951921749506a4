"""What the processes of a run read from the environment.

Example (for scripts/ray_cluster.sh, whose node is the environment of its workers):
    eval "$(python recipes/running/environment.py --hardware cpu)"
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Literal

from tsc.errors import run_main
from tsc.files import write_atomically

# On a cluster the workers are not children of the launcher, so Ray hands these on.
WORKER_VARIABLES = (
    "VERL_PLATFORM", "VERL_ENGINE_VENDOR", "VERL_USE_EXTERNAL_MODULES", "VERL_FILE_LOGGER_PATH", "TENSORBOARD_DIR",
    "TQ_NUM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "VLLM_CPU_OMP_THREADS_BIND", "TORCH_COMPILE_DISABLE",
    "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "WANDB_MODE", "WANDB_RUN_ID",
    "WANDB_RESUME", "WANDB_DIR", "WANDB_DATA_DIR", "WANDB_SILENT", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_TAGS",
)  # fmt: skip
CPU_PLATFORM = "recipes.verl_plugins.cpu"


def run_environment(hardware: str, given: Mapping[str, str]) -> dict[str, str]:
    """The variables that a run on this hardware sets; what the user gave stays, where that makes sense."""
    # verl's training engine: recipes/verl_plugins/answer_engine.py
    always = {
        "VERL_ENGINE_VENDOR": "answers",
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HYDRA_FULL_ERROR": "1",
    }
    # TransferQueue's threads: its default of 8 fills the log with warnings on fewer cores
    unless_given = {"TQ_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    if hardware == "cpu":
        always |= {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": CPU_PLATFORM}
        unless_given |= cpu_environment(len(os.sched_getaffinity(0)))
    return always | {name: given.get(name) or value for name, value in unless_given.items()}


def cpu_environment(num_threads: int) -> dict[str, str]:
    """What torch and vLLM read on a CPU that other processes need, too."""
    return {
        "OMP_NUM_THREADS": str(num_threads),
        # Threads that wait by spinning take the cores from other processes: 3 times slower where they share.
        "OMP_WAIT_POLICY": "PASSIVE",
        # vLLM would tie its threads to cores on which others run, too.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # torch compiles with a C++ compiler, which not every machine has; vLLM's sampling would be all it compiles.
        "TORCH_COMPILE_DISABLE": "1",
    }


def ray_token(given: Mapping[str, str]) -> dict[str, str]:
    """The nodes of a cluster know each other by a token, where this machine has one."""
    file = Path(given.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if given.get("RAY_AUTH_TOKEN") or (file.is_file() and file.stat().st_size):
        return {"RAY_AUTH_MODE": given.get("RAY_AUTH_MODE") or "token"}
    return {}


def log_environment(
    stage: Path,
    id: str,
    wandb: Literal["auto", "online", "offline", "off"],
    *,
    group: str,
    tags: Sequence[str],
) -> dict[str, str]:
    """Where verl's loggers write: VERL_FILE_LOGGER_PATH, TENSORBOARD_DIR, and WANDB_… unless wandb is off.

    stage: folder of the training. id: of the run in wandb, which gets a random number once and keeps it, so that a
    resumed run continues its curves. group: of the trainings that belong together. tags: the first is the algorithm.
    What the user's environment says of group and tags stays.
    """
    folder = stage.resolve()
    for name in ("metrics", "tensorboard"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    # verl's file logger starts its file anew: with a file for each start, a resumed run keeps what was written before
    metrics = folder / "metrics" / f"{datetime.now(UTC):%Y%m%dT%H%M%S}.jsonl"
    found = {"VERL_FILE_LOGGER_PATH": str(metrics), "TENSORBOARD_DIR": str(folder / "tensorboard")}
    if wandb == "off":
        return found
    (folder / "wandb").mkdir(exist_ok=True)
    id_file = folder / "wandb_id"
    if not id_file.is_file():
        write_atomically(id_file, f"{id}-{random.SystemRandom().randrange(10**9)}\n".encode())
    if wandb == "auto":
        wandb = "online" if has_wandb_key() else "offline"
    named = {"WANDB_RUN_GROUP": group, "WANDB_JOB_TYPE": tags[0], "WANDB_TAGS": ",".join(tags)}
    found |= {name: os.environ.get(name) or value for name, value in named.items()}
    return found | {
        "WANDB_MODE": wandb,
        "WANDB_RUN_ID": id_file.read_text().strip(),
        "WANDB_RESUME": "allow",
        "WANDB_DIR": str(folder),
        # artifacts wait here until they are sent, not in the user's home
        "WANDB_DATA_DIR": str(folder / "wandb"),
        "WANDB_SILENT": "true",
    }


def has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc(os.environ.get("NETRC")).authenticators("api.wandb.ai") is not None
    except (OSError, NetrcParseError):
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", required=True, help="name of a file in configs/hardware")
    options = parser.parse_args()
    for name, value in (run_environment(options.hardware, os.environ) | ray_token(os.environ)).items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    run_main(main)
