"""Read a YAML file into a pydantic model. Errors name the file, the key, the value and the allowed values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from tsc.errors import ConfigError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    """A section of a file. It does not accept other keys than its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _DuplicateKey(yaml.YAMLError):
    pass


class _Loader(yaml.SafeLoader):
    """Like safe_load, but a key given twice is an error: YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        line_of_key: dict[str, int] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                key, line = key_node.value, key_node.start_mark.line + 1
                if key in line_of_key:
                    raise _DuplicateKey(f"line {line}: key '{key}' is already given in line {line_of_key[key]}")
                line_of_key[key] = line
        return super().construct_mapping(node, deep=deep)


def load_yaml(path: Path, model: type[Model]) -> Model:
    """Read the file `path` as a `model`. An empty file means all defaults.

    Raises a ConfigError that names the file and, for each fault, the key, the value and the allowed values. For a key
    that the model does not have, it gives the nearest spelling.
    """
    return validate_values(read_yaml(path), model, where=str(path))


def read_yaml(path: Path) -> object:
    """The content of the file; `{}` for an empty file. Raises ConfigError if the file is not readable YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}): is it a YAML file?") from error
    try:
        values = yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader
    except _DuplicateKey as error:
        raise ConfigError(f"{path}: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: broken YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: broken YAML: {error}") from error
    return {} if values is None else values


def validate_values(values: object, model: type[Model], *, where: str) -> Model:
    """Check `values` as a `model`. Raises ConfigError, whose message begins with `where` (a file, for example)."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: holds a {type(values).__name__}, expected keys: {', '.join(_keys(model))}")
    try:
        return model.model_validate(values)
    except ConfigError as error:  # from a validator that builds one of our own checked objects
        raise ConfigError(f"{where}: {error}") from error
    except ValidationError as error:
        faults = [_fault(detail, model) for detail in error.errors(include_url=False)]
    raise ConfigError(f"{where}: {faults[0]}" if len(faults) == 1 else "\n  ".join([f"{where}:", *faults]))


def _fault(detail: ErrorDetails, model: type[BaseModel]) -> str:
    location = detail["loc"]
    key = ".".join(str(part) for part in location)
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):  # of a model, of a dataclass
        known = _keys(_model_at(model, location[:-1]))
        meant = did_you_mean(str(location[-1]), known)
        return f"unknown key '{key}': {meant}allowed: {', '.join(known)}"
    if detail["type"] == "missing":
        return f"key '{key}' is missing"
    message = detail["msg"].removeprefix("Value error, ")
    if not location:  # the message of a check of several keys names them itself
        return message
    # the message explains a fault of a whole section; all its values would bury it
    value = "" if isinstance(detail["input"], dict) else f" is {detail['input']!r}"
    return f"{key}{value}: {message[:1].lower()}{message[1:]}"


def _keys(model: type) -> list[str]:
    if issubclass(model, BaseModel):
        return [field.alias or name for name, field in model.model_fields.items()]
    return [field.name for field in dataclasses.fields(model)] if dataclasses.is_dataclass(model) else []


def _model_at(model: type, location: Sequence[int | str]) -> type:
    """The model or dataclass of the section at `location`. If a section has several possible models, the first that
    fits the path."""
    for part in location:
        field = model.model_fields.get(str(part)) if issubclass(model, BaseModel) else None
        if field is None:  # an index of a list, or the tag of a union
            continue
        model = next(_models_in(field.annotation), model)
    return model


def _models_in(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)
