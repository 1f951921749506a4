"""Fetch a model from the Hugging Face hub into its own cache, so that training starts from a folder.

Example:
    python recipes/models/hub_model.py --name Qwen/Qwen2.5-0.5B-Instruct

Prints the folder: config, tokenizer and safetensors weights, or the config alone with --only-config, which is all that
a plan needs. What the cache has already is not fetched again, and works without a network.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from recipes.models.model_shape import known_models
from tsc.errors import ConfigError, run_main

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
ONLY_CONFIG = ["config.json"]
WHOLE_MODEL = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model"]


def fetch(name: str, only_config: bool) -> Path:
    """The folder of model `name` (OWNER/NAME) in the hub's cache. Raises ConfigError where it cannot be had."""
    # imported late: a folder needs none of it
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not HUB_NAME.fullmatch(name):
        raise ConfigError(
            f"MODEL_PATH={name} is neither a folder here nor OWNER/NAME on the Hugging Face hub: give one of them, "
            f"smollm2, or nothing for a tiny model; with DRY_RUN=1 also {', '.join(known_models())}"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=ONLY_CONFIG if only_config else WHOLE_MODEL))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"MODEL_PATH={name} is no folder here, and was not to be had from the Hugging Face hub ({reason}): check "
            "the name and, for a model with terms of use, HF_TOKEN; or give the folder of a model"
        ) from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="OWNER/NAME")
    parser.add_argument("--only-config", action="store_true")
    options = parser.parse_args()
    print(fetch(options.name, options.only_config))


if __name__ == "__main__":
    run_main(main)
