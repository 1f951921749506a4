"""The language models that --controllers can name, and how they are served.

llm:NAME=MODEL            a model folder; vLLM serves it for as long as it is needed
llm:NAME=MODEL+ADAPTER    a model folder with a LoRA adapter's folder
llm:NAME=ADAPTER          an adapter's folder; its adapter_config.json names the model
llm:NAME=MODEL_ID         with --base-url: a model of that server
llm                       with --base-url: the only model of that server
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recipes.models.model_card import CARD_FILE, read_card
from recipes.models.model_folder import (
    check_adapter_folder,
    check_model_folder,
    no_progress_bars_in_logs,
    read_json_object,
)
from recipes.serving.chat_endpoint import GREEDY, ChatEndpoint, Sampling
from recipes.serving.vllm_server import VllmServer, check_servable, is_cpu_build
from tsc.controllers.registry import LANGUAGE_MODEL, NAME
from tsc.errors import ConfigError
from tsc.files import without_password
from tsc.junction.seen_decisions import SeenDecisions

FORMS = "llm:NAME=MODEL, llm:NAME=MODEL+ADAPTER or llm:NAME=ADAPTER (folders)"
FORMS_OF_SERVER = "llm:NAME=MODEL, or llm for the only model of the server"
DIGESTED_SUFFIXES = (".safetensors", ".json", ".bin", ".jinja")
# Files of a model folder that merging writes anew; the others are copied.
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.index.json", "config.json")


@dataclass(frozen=True, kw_only=True)
class LocalModelChoice:
    """A model in folders on this machine. name: the controller's name."""

    name: str
    model: Path
    adapter: Path | None = None

    @property
    def where(self) -> str:
        return str(self.model) + (f" with the adapter {self.adapter}" if self.adapter else "")

    def identity(self) -> str:
        """A digest of the names and contents of the weights, tokenizers and settings."""
        digest = hashlib.sha256()
        for folder in (self.model, self.adapter):
            for path in sorted(folder.iterdir()) if folder else ():
                if path.suffix in DIGESTED_SUFFIXES and path.name != CARD_FILE:
                    with path.open("rb") as file:
                        digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def seen(self) -> SeenDecisions | None:
        """The decisions that the model was trained on, if its folder says it. Raises ConfigError for a broken card."""
        return read_card(self.model, self.adapter)


@dataclass(frozen=True, kw_only=True)
class ServedModelChoice:
    """A model on a running server. model_id: None for the server's only model, until `checked` fills it in."""

    name: str
    base_url: str = field(repr=False)
    model_id: str | None

    def identity(self) -> str:
        """The server's address and the model's name there, which may be shown and kept."""
        return f"{without_password(self.base_url).rstrip('/')} {self.model_id}"

    def seen(self) -> None:
        """A server does not say what its model was trained on."""

    @property
    def where(self) -> str:
        return f"{self.model_id} at {without_password(self.base_url)}"


ModelChoice = LocalModelChoice | ServedModelChoice


def parse_model_choice(word: str, base_url: str | None = None) -> ModelChoice:
    """The model that `word` names. Raises ConfigError for a word of another form, and for incomplete folders."""
    kind, colon, rest = word.partition(":")
    name, equals, value = rest.partition("=")
    if kind != LANGUAGE_MODEL or (colon and not (equals and value)):
        forms = FORMS_OF_SERVER if base_url else FORMS
        raise ConfigError(f"controller {word!r}: write {forms}")
    if colon and not NAME.fullmatch(name):
        raise ConfigError(f"controller {word!r}: the name {name!r} may only have letters, digits and . _ -")
    if base_url is not None:
        return ServedModelChoice(name=name or LANGUAGE_MODEL, base_url=base_url, model_id=value or None)
    if not colon:
        raise ConfigError(f"controller {word!r}: write {FORMS}, or give --base-url for a model of a running server")
    try:
        return local_model(name, value)
    except ConfigError as error:
        raise ConfigError(f"controller {word!r}: {error}") from error


def local_model(name: str, folders: str) -> LocalModelChoice:
    """The model of MODEL, MODEL+ADAPTER or ADAPTER (folders). Raises ConfigError for incomplete folders."""
    first, plus, second = folders.partition("+")
    if plus and not (first and second):
        raise ConfigError(f"write {FORMS}")
    if plus:
        model, adapter = Path(first), Path(second)
    elif _is_adapter_alone(Path(first)):
        model, adapter = _base_of(Path(first)), Path(first)
    else:
        model, adapter = Path(first), None
    check_model_folder(model)
    if adapter is not None:
        check_adapter_folder(adapter)
    return LocalModelChoice(name=name, model=model, adapter=adapter)


def checked(choice: ModelChoice) -> ModelChoice:
    """Check that the model can be served, without loading it. Fills in the name of a server's only model.

    Raises ConfigError if it cannot be served: no vLLM, no chat template, no server, a refused key, an unknown name.
    """
    if isinstance(choice, LocalModelChoice):
        check_servable(choice.model, choice.adapter)
        return choice
    with ChatEndpoint(choice.base_url, choice.model_id) as endpoint:
        return replace(choice, model_id=endpoint.check())


@contextmanager
def answering(
    choice: ModelChoice,
    *,
    max_answer_tokens: int,
    time_limit_s: float | None,
    log_file: Path,
    sampling: Sampling = GREEDY,
    probabilities: bool = False,
) -> Iterator[ChatEndpoint]:
    """The model's endpoint; its `ask` is an Ask of tsc.controllers.language_model.

    probabilities: whether the replies have those of the two answers.

    A local model is served by vLLM, which writes to log_file and ends with the block. Raises ConfigError and
    EndpointError.
    """
    if isinstance(choice, ServedModelChoice):
        with ChatEndpoint(
            choice.base_url,
            choice.model_id,
            max_answer_tokens=max_answer_tokens,
            time_limit_s=time_limit_s,
            sampling=sampling,
            probabilities=probabilities,
        ) as endpoint:
            endpoint.check()
            yield endpoint
        return
    # On the CPU, vLLM's LoRA layers take ten times as long as the model itself, and training merges the adapter, too.
    merge = choice.adapter is not None and is_cpu_build()
    with tempfile.TemporaryDirectory(prefix="tsc-merged-") if merge else nullcontext() as folder:
        model, adapter = choice.model, choice.adapter
        if folder is not None and adapter is not None:
            merge_adapter(model, adapter, Path(folder))
            model, adapter = Path(folder), None
        with VllmServer(
            model,
            adapter,
            name=choice.name,
            log_file=log_file,
            max_answer_tokens=max_answer_tokens,
            time_limit_s=time_limit_s,
            sampling=sampling,
            probabilities=probabilities,
        ) as endpoint:
            yield endpoint


def merge_adapter(model: Path, adapter: Path, out: Path) -> None:
    """Write the model with the adapter merged into its weights, in fp32, to the folder `out`. Raises ConfigError."""
    import torch
    from transformers import AutoModelForCausalLM

    with no_progress_bars_in_logs():
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        with_adapter(base, model, adapter).save_pretrained(out)
    for path in model.iterdir():
        if path.is_file() and not any(path.match(pattern) for pattern in WEIGHT_FILES):
            shutil.copy(path, out)


def with_adapter(base: Any, model: Path, adapter: Path) -> Any:
    """The loaded model of the folder `model` with the adapter merged into its weights. Raises ConfigError if it does
    not fit."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(base, adapter).merge_and_unload()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the adapter {adapter} does not fit the model {model}: {error}") from error


def _is_adapter_alone(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _base_of(adapter: Path) -> Path:
    base = read_json_object(adapter / "adapter_config.json").get("base_model_name_or_path")
    if not base or not Path(base).is_dir():
        raise ConfigError(
            f"the adapter in {adapter} is made for the model {base!r}, which is not a local folder: name the model's "
            "folder, too (MODEL+ADAPTER)"
        )
    return Path(base)
