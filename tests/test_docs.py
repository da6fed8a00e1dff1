"""The documents keep up with the code."""

import ast
import re
from pathlib import Path

import pytest

from app.settings import Settings

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_operations_guide_explains_every_setting() -> None:
    guide = (ROOT / "docs/operations.md").read_text()
    table = guide.partition("## Settings")[2].partition("## Tuning")[0]
    assert set(re.findall(r"`([A-Z][A-Z0-9_]+)`", table)) >= {
        name.upper() for name in Settings.model_fields
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_every_make_command_in_the_documents_exists() -> None:
    commands = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL):
            assert set(re.findall(r"\bmake ([a-z-]+)", block)) <= commands


def test_every_file_and_function_in_the_documents_exists() -> None:
    named = set[tuple[str, str]]()
    for document in DOCUMENTS:
        if document.name != "CHANGELOG.md":
            text = document.read_text()
            named |= set(re.findall(r"`((?:app|storage|tests)/[\w./]*)(?::([\w.]+))?`", text))
    assert ("app/runs/webhooks/url_guard.py", "UrlGuard.check") in named
    assert [name for name in sorted(named) if not exists(*name)] == []


def exists(path: str, name: str) -> bool:
    file = ROOT / path
    if not name:
        return file.exists()
    body = ast.parse(file.read_text()).body if file.is_file() else []
    for part in name.split("."):
        definition = next((node for node in body if getattr(node, "name", None) == part), None)
        if definition is None:
            return False
        body = getattr(definition, "body", [])
    return True


def test_a_name_that_is_gone_is_found() -> None:
    assert exists("storage/store.py", "OutputStore.sweep")
    assert not exists("storage/store.py", "OutputStore.purge")
    assert not exists("storage/gone.py", "OutputStore")
    assert not exists("storage/gone.py", "")
