"""The language model that a controller's word names, and how to have it answer.

llm:NAME=MODEL            a model's folder, which vLLM serves as long as it is needed
llm:NAME=MODEL+ADAPTER    the same with a LoRA adapter
llm:NAME=ADAPTER          the same; the adapter's own adapter_config.json names the model
llm:NAME=MODEL_ID         with --base-url: a model of that server
llm                       with --base-url: the only model of that server
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from recipes.models.model_folder import check_adapter_folder, check_model_folder, no_progress_bars_in_logs
from recipes.serving.chat_endpoint import ChatEndpoint
from recipes.serving.vllm_server import VllmServer, check_servable, is_cpu_build
from tsc.controllers.registry import LANGUAGE_MODEL
from tsc.errors import ConfigError

# It becomes part of file names.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
FORMS = "llm:NAME=MODEL, llm:NAME=MODEL+ADAPTER or llm:NAME=ADAPTER (folders)"
FORMS_OF_SERVER = "llm:NAME=MODEL, or llm for the only model of the server"
DIGESTED_SUFFIXES = (".safetensors", ".json", ".bin", ".jinja")
# Of a model's folder, what a merged one gets anew.
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.index.json", "config.json")


@dataclass(frozen=True, kw_only=True)
class LocalModelChoice:
    """Folders on this machine. name: the controller's."""

    name: str
    model: Path
    adapter: Path | None = None

    def identity(self) -> str:
        """Digest of the names and contents of the weights, tokenizers and settings."""
        digest = hashlib.sha256()
        for folder in (self.model, self.adapter):
            for path in sorted(folder.iterdir()) if folder else ():
                if path.suffix in DIGESTED_SUFFIXES:
                    with path.open("rb") as file:
                        digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class ServedModelChoice:
    """A model of someone's server. model_id: None for the only one that it serves, until it was asked."""

    name: str
    base_url: str
    model_id: str | None

    def identity(self) -> str:
        return f"{self.base_url} {self.model_id}"


ModelChoice = LocalModelChoice | ServedModelChoice


def parse_model_choice(word: str, base_url: str | None = None) -> ModelChoice:
    """Raises ConfigError for a word of another form, and for folders that are not what they should be."""
    kind, colon, rest = word.partition(":")
    name, equals, value = rest.partition("=")
    if kind != LANGUAGE_MODEL or (colon and not (equals and value)):
        forms = FORMS_OF_SERVER if base_url else FORMS
        raise ConfigError(f"controller {word!r}: write {forms}")
    if colon and not NAME.fullmatch(name):
        raise ConfigError(f"controller {word!r}: the name {name!r} may have letters, digits and . _ - only")
    if base_url is not None:
        return ServedModelChoice(name=name or LANGUAGE_MODEL, base_url=base_url, model_id=value or None)
    if not colon:
        raise ConfigError(f"controller {word!r}: write {FORMS}; or give --base-url for a model of a running server")
    first, plus, second = value.partition("+")
    if plus and not (first and second):
        raise ConfigError(f"controller {word!r}: write {FORMS}")
    try:
        if plus:
            model, adapter = Path(first), Path(second)
        elif _is_adapter_alone(Path(first)):
            model, adapter = _base_of(Path(first)), Path(first)
        else:
            model, adapter = Path(first), None
        check_model_folder(model)
        if adapter is not None:
            check_adapter_folder(adapter)
    except ConfigError as error:
        raise ConfigError(f"controller {word!r}: {error}") from error
    return LocalModelChoice(name=name, model=model, adapter=adapter)


def checked(choice: ModelChoice) -> ModelChoice:
    """The choice, with the name of the server's only model filled in; asks the server, loads nothing.

    Raises ConfigError where the model cannot be had: no vLLM, no chat template, no server, key refused, unknown name.
    """
    if isinstance(choice, LocalModelChoice):
        check_servable(choice.model, choice.adapter)
        return choice
    with ChatEndpoint(choice.base_url, choice.model_id) as endpoint:
        return replace(choice, model_id=endpoint.check())


@contextmanager
def answering(
    choice: ModelChoice, *, max_answer_tokens: int, time_limit_s: float | None, log_file: Path
) -> Iterator[ChatEndpoint]:
    """The model's endpoint, whose `ask` is an Ask of tsc.controllers.language_model. A local model is served by vLLM,
    which writes to log_file and ends with the block. Raises ConfigError and EndpointError."""
    if isinstance(choice, ServedModelChoice):
        with ChatEndpoint(
            choice.base_url, choice.model_id, max_answer_tokens=max_answer_tokens, time_limit_s=time_limit_s
        ) as endpoint:
            endpoint.check()
            yield endpoint
        return
    # vLLM's LoRA layers take ten times as long as the model itself on the CPU, where training merges the adapter too.
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
        ) as endpoint:
            yield endpoint


def merge_adapter(model: Path, adapter: Path, out: Path) -> None:
    """Write to the folder `out` the model with the adapter in its weights, in fp32. Raises ConfigError."""
    import torch
    from transformers import AutoModelForCausalLM

    from recipes.serving.text_generation import with_adapter

    with no_progress_bars_in_logs():
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        with_adapter(base, adapter, model).save_pretrained(out)
    for path in model.iterdir():
        if path.is_file() and not any(path.match(pattern) for pattern in WEIGHT_FILES):
            shutil.copy(path, out)


def _is_adapter_alone(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _base_of(adapter: Path) -> Path:
    file = adapter / "adapter_config.json"
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    if not base or not Path(base).is_dir():
        raise ConfigError(
            f"the adapter in {adapter} is made for the model {base!r}, which is no folder here: name its folder too, "
            "MODEL+ADAPTER"
        )
    return Path(base)
