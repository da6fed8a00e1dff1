"""Names of a package that are imported on first use (PEP 562), because they import CrewAI.

The import of CrewAI lasts seconds; a command that runs no crew must not wait for it.
"""

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from app.pins import changed, crewai


def lazy_imports(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of `package`. `modules` maps each lazy name to the module that defines it.

    The function raises ImportError with every pin that has changed if the module doesn't fit the
    installed release of CrewAI.
    """

    def import_name(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            with _without_collector():
                value = getattr(import_module(modules[name]), name)
        except Exception as error:
            # A release of CrewAI may remove a name: report all that changed, not the first only.
            if not (lines := changed(crewai.PINS)):
                raise
            text = "\n".join(["the engine does not fit this release of CrewAI:", *lines])
            raise ImportError(text, name="crewai") from error
        setattr(sys.modules[package], name, value)
        return value

    return import_name


@contextmanager
def _without_collector() -> Iterator[None]:
    """Python's collector would visit the modules' objects, which all remain, again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
