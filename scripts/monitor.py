"""Show the trainings of a folder in a browser, while they run and afterwards.

Example:
    bash scripts/monitor.sh --runs runs

The pages show curves, samples with their scores, the machine and the evaluations. They change nothing in the folder.
Ctrl-C ends it. A training needs no monitor, and does not notice one.
"""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import tempfile
from pathlib import Path

from tsc.errors import ConfigError, run_main

# The curves that come first, as trackio takes their names.
PLOT_ORDER = "reward/score,reward/traffic,reward/answer_yes,reward/answer_no,reward/*,train/*"
LOCAL = ("127.0.0.1", "localhost", "::1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs (default: %(default)s)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, this machine only); any other one takes a token, which is "
        "printed, or that of TSC_MONITOR_TOKEN",
    )
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    options = parser.parse_args()
    runs = options.runs
    if not runs.is_dir():
        raise ConfigError(f"--runs {runs} is not a folder: name the folder of the runs (RUNS of the training scripts)")
    token = None
    if options.host not in LOCAL:
        token = os.environ.get("TSC_MONITOR_TOKEN") or secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory(prefix="tsc-monitor-") as folder:
        # trackio reads these when it is imported. The folder ends with this process.
        os.environ |= {"TRACKIO_DIR": folder, "TRACKIO_PLOT_ORDER": PLOT_ORDER, "HF_HUB_OFFLINE": "1"}
        import uvicorn

        from recipes.monitor.board import Board
        from recipes.monitor.pages import application

        listening = _listening(options.host, options.port)
        board = Board(runs)
        board.start()
        name = f"[{options.host}]" if ":" in options.host else options.host
        address = f"http://{name}:{options.port}/{f'?token={token}' if token else ''}"
        print(f"{runs} on {address}   (Ctrl-C ends it)", flush=True)
        server = uvicorn.Server(uvicorn.Config(application(board, token=token), log_level="warning"))
        server.run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    """Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}, port {port}: {error.strerror}: choose another --port") from error


if __name__ == "__main__":
    run_main(main)
