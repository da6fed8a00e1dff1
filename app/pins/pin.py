"""A part of a library's internals, identified by a digest of its source."""

import hashlib
import importlib
import inspect
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Pin:
    """Code of a library that may change in any release, with the reason to rely on it.

    `where` is `module:name`, or `fields module:name` for the fields of a pydantic model.
    """

    where: str
    digest: str
    reason: str


def digest(where: str) -> str | None:
    """A digest of the source at `where`; None if it is gone."""
    kind, _, path = where.rpartition(" ")
    module, _, name = path.partition(":")
    try:
        thing: Any = importlib.import_module(module)
        for part in name.split("."):
            thing = thing.__dict__[part] if inspect.isclass(thing) else getattr(thing, part)
    except (ImportError, AttributeError, KeyError):
        return None
    if kind == "fields":
        text = "\n".join(
            f"{field}={info.default!r}" for field, info in sorted(thing.model_fields.items())
        )
    else:
        text = inspect.getsource(inspect.unwrap(_function(thing)))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _function(thing: Any) -> Any:
    """The function in a method, a property or a cached property; other things as they are."""
    for name in ("__func__", "fget", "func"):
        thing = getattr(thing, name, None) or thing
    return thing
