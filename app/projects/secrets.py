"""Recognizes values that must not be published, such as default values of inputs."""

import os
import re
from typing import Any, Final

_SECRETS: Final = frozenset(
    {"apikey", "auth", "credential", "credentials", "dsn", "passphrase", "passwd", "password",
     "pwd", "secret", "secrets", "token"}
)  # fmt: skip
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# Shorter values, such as `en` or `1`, are in the environment by chance.
_MIN_CHARACTERS: Final = 4
_MIN_PART_CHARACTERS: Final = 8


def is_secret(name: str, value: object) -> bool:
    """Whether a value may be a secret: by its name, or because it is from the environment.

    Lists and objects are secret if anything in them is. Empty values, numbers and booleans never
    are.
    """
    if isinstance(value, dict):
        return any(is_secret(f"{name}_{key}", item) for key, item in value.items())
    if isinstance(value, list | tuple | set):
        return any(is_secret(name, item) for item in value)
    if not isinstance(value, str) or not value:
        return False
    return has_secret_name(name) or _is_from_environment(value)


def has_secret_name(name: str) -> bool:
    """Whether a name says secret: a word of it does, or its last one is `key`."""
    words = [word.lower() for word in _WORD.findall(name)]
    return not _SECRETS.isdisjoint(words) or words[-1:] == ["key"]


def without_secrets(schema: dict[str, Any], name: str = "") -> dict[str, Any]:
    """A JSON Schema without the defaults and examples that are secret."""
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("default", "examples", "const") and is_secret(name, value):
            continue
        if key in ("properties", "$defs") and isinstance(value, dict):
            kept[key] = {
                inner: without_secrets(part, inner) if isinstance(part, dict) else part
                for inner, part in value.items()
            }
        else:
            kept[key] = value
    return kept


def _is_from_environment(value: str) -> bool:
    if len(value) < _MIN_CHARACTERS:
        return False
    return any(
        value == variable
        or (len(variable) >= _MIN_PART_CHARACTERS and variable in value and has_secret_name(name))
        for name, variable in os.environ.items()
    )
