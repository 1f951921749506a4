"""The card of an exported model: the decisions that it was trained on. It lies in the model's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from recipes.models.model_folder import read_json_object
from tsc.errors import ConfigError
from tsc.files import write_atomically
from tsc.junction.seen_decisions import SeenDecisions

CARD_FILE = "tsc_card.json"
# of data_tools/json_to_parquet.py: the file beside the Parquet files, and its key
SUMMARY_FILE = "summary.json"
SEEN = "trained_on"


def seen_in(data: Path) -> SeenDecisions | None:
    """The decisions of a folder of json_to_parquet. None if it does not have a summary with them, as a folder of other
    Parquet files. Raises ConfigError for a summary that cannot be read."""
    file = data / SUMMARY_FILE
    values = read_json_object(file).get(SEEN) if file.is_file() else None
    return None if values is None else _checked(values, file)


def write_card(folder: Path, seen: SeenDecisions) -> None:
    """The same decisions give the same bytes."""
    text = json.dumps(seen.model_dump(mode="json"), indent=2)
    write_atomically(folder / CARD_FILE, f"{text}\n".encode())


def read_card(model: Path, adapter: Path | None = None) -> SeenDecisions | None:
    """The card of a model folder, or of its adapter. None if there is none. Raises ConfigError for a broken one."""
    file = (adapter or model) / CARD_FILE
    return _checked(read_json_object(file), file) if file.is_file() else None


def warning(model: str, where: str, differences: Sequence[str]) -> str:
    """One line for the user. where: names what asks, such as a scenario. There is at least one difference."""
    return (
        f"warning: {where} asks {model} about decisions that it was not trained on: {'; '.join(differences)}. Its "
        "answers may be poor or invalid: train it on such decisions, too"
    )


def _checked(values: object, file: Path) -> SeenDecisions:
    try:
        return SeenDecisions.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(map(str, fault["loc"])) or "value"
        raise ConfigError(f"{file}: {field}: {fault['msg']}: export the model again, or remove the file") from error
