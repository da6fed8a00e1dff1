"""The documents keep up with the code."""

import re
from pathlib import Path

import pytest

from app.settings import Settings

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


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
