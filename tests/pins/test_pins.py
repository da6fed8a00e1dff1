"""The internals of libraries that this service relies on are those that it was written against."""

import ast
import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from openai.resources.chat import AsyncChat
from openai.resources.chat.completions import AsyncCompletions
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors import Multiprocess

from app.cli.connections import BoundedHttpProtocol
from app.cli.supervisor import Supervisor
from app.engine.llm import openai_client
from app.engine.patches import removed
from app.pins import PINS, changed

_ROOT = Path(__file__).parents[2]


def test_no_pinned_code_has_changed() -> None:
    with removed():
        lines = changed()
    assert not lines, "\n".join(
        [
            "read the code that changed and the code that relies on it, then update app/pins/:",
            *lines,
        ]
    )


def test_changed_code_is_named_with_its_reason() -> None:
    pin = dataclasses.replace(PINS[0], digest="another")
    gone = dataclasses.replace(PINS[1], where="uvicorn.server:Server.no_such_method")
    changed_line, missing = changed((pin, gone))
    assert pin.where in changed_line
    assert pin.reason in changed_line
    assert "no_such_method is gone" in missing


def test_each_pin_has_a_reason_and_is_listed_once() -> None:
    locations = [pin.where for pin in PINS]
    assert len(set(locations)) == len(locations)
    assert all(pin.reason for pin in PINS)


def test_the_pins_can_be_read_without_the_code_that_relies_on_them() -> None:
    # A release that removes a name may fail the import of that code.
    code = "import app.pins, sys; print(*(name for name in sys.modules if name.startswith('app.')))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=_ROOT, capture_output=True, text=True, check=True
    )
    modules = done.stdout.split()
    assert "app.pins" in modules
    assert all(module.startswith("app.pins") for module in modules)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (BoundedHttpProtocol, HttpToolsProtocol),
        (Supervisor, Multiprocess),
        (openai_client._ShortcutOpenAI, AsyncOpenAI),
        (openai_client._Chat, AsyncChat),
        (openai_client._Completions, AsyncCompletions),
    ],
)
def test_every_overridden_method_is_pinned(ours: type, theirs: type) -> None:
    overridden = {name for name in vars(ours) if name in dir(theirs) and not name.startswith("__")}
    assert overridden
    whole_class = any(pin.where.endswith(f":{theirs.__name__}") for pin in PINS)
    pinned = {pin.where.rpartition(":")[2] for pin in PINS}
    for name in overridden:
        assert whole_class or f"{theirs.__name__}.{name}" in pinned, name


def test_every_private_module_that_is_imported_is_pinned() -> None:
    private = {
        node.module
        for folder in ("app", "storage")
        for file in (_ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and "._" in node.module
    }
    assert "openai._models" in private
    for module in private:
        assert importlib.util.find_spec(module)
        assert any(pin.where.startswith(module) for pin in PINS), module
