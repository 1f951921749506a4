"""Download a model from the Hugging Face Hub into the Hub's cache, so that training can start from a folder.

Example:
    python recipes/models/hub_model.py --name Qwen/Qwen2.5-0.5B-Instruct

Prints the folder. It has the config, the tokenizer and the safetensors weights; with --only-config it has only the
config, which is enough for a plan. Files that are in the cache already are not downloaded again and need no network.
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
    """The folder of model `name` (OWNER/NAME) in the Hub's cache. Raises ConfigError if it cannot be downloaded."""
    # imported late, because huggingface_hub is slow to import
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not HUB_NAME.fullmatch(name):
        raise ConfigError(
            f"MODEL_PATH={name} is neither a local folder nor OWNER/NAME on the Hugging Face Hub: give one of them, "
            f"smollm2, or nothing for a tiny model; with DRY_RUN=1 also {', '.join(known_models())}"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=ONLY_CONFIG if only_config else WHOLE_MODEL))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"MODEL_PATH={name} is not a local folder and could not be downloaded from the Hugging Face Hub "
            f"({reason}): check the name and, for a model with terms of use, HF_TOKEN; or give the folder of a model"
        ) from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="OWNER/NAME")
    parser.add_argument("--only-config", action="store_true", help="download config.json only")
    options = parser.parse_args()
    print(fetch(options.name, options.only_config))


if __name__ == "__main__":
    run_main(main)
