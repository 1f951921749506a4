"""Functions of a user's own, which a configuration or an option names as pkg://module:function."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tsc.errors import ConfigError
from tsc.files import sha256_of

USER_PREFIX = "pkg://"

# SHA-256 of a module's file when it was imported. A worker may live on after the file has changed.
_imported_sha256: dict[str, str] = {}


def is_user_function(name: str) -> bool:
    return re.fullmatch(USER_PREFIX + r"\w+(\.\w+)*:\w+", name) is not None


def source_sha256(name: str, what: str) -> str:
    """SHA-256 of the file that holds the function of pkg://module:function. The module is not imported.

    what: what the function is for, for messages. Raises ConfigError if the file does not exist.
    """
    module_name = name.removeprefix(USER_PREFIX).partition(":")[0]
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError) as error:  # of a package around it
        raise _cannot_import(name, what, str(error)) from error
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise _cannot_import(name, what, f"No module named {module_name!r}")
    return sha256_of(Path(spec.origin))


def user_function(name: str, what: str) -> Callable[..., Any]:
    """Imports the function of pkg://module:function. Raises ConfigError if there is none, or if its import fails."""
    module_name, _, function_name = name.removeprefix(USER_PREFIX).partition(":")
    sha256 = source_sha256(name, what)
    try:
        module = importlib.import_module(module_name)
        if _imported_sha256.setdefault(module_name, sha256) != sha256:
            module = importlib.reload(module)
            _imported_sha256[module_name] = sha256
    except Exception as error:  # whatever the user's module does while it is imported
        raise _cannot_import(name, what, f"{type(error).__name__}: {error}") from error
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"{what} {name!r}: {module.__file__} has no function {function_name!r}: choose of {', '.join(functions)}"
        )
    return function


def _cannot_import(name: str, what: str, cause: str) -> ConfigError:
    return ConfigError(
        f"{what} {name!r} cannot be imported ({cause}): correct its name, install its package, or put the folder that "
        "holds it on PYTHONPATH"
    )
