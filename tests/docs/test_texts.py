"""The documents keep up with the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from app.cli.main import cli
from app.crews.idea.profile import DEFAULTS
from app.settings import Settings
from app.telemetry.metrics import TABLE

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_operations_guide_explains_every_setting() -> None:
    guide = (ROOT / "docs/operations.md").read_text()
    table = guide.partition("## Settings")[2].partition("## Tuning")[0]
    assert set(re.findall(r"`([A-Z][A-Z0-9_]+)`", table)) >= {
        name.upper() for name in Settings.model_fields
    }


def test_the_operations_guide_says_of_every_metric_what_to_watch() -> None:
    guide = (ROOT / "docs/operations.md").read_text()
    table = guide.partition("### Metrics to watch")[2].partition("###")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(TABLE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_reference_of_commands_has_every_command_and_option() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    inputs = {f"--{name.replace('_', '-')}" for name in DEFAULTS}
    for words, command in _commands(cli, []):
        rows = [row for row in page.splitlines() if re.match(rf"\| `{words}[` ]", row)]
        assert len(rows) == 1, words
        options = {option for parameter in command.params for option in parameter.opts}
        named = {option for option in options if option.startswith("--")} - inputs
        assert [option for option in named if option not in rows[0]] == [], words


def _commands(group: click.Group, words: list[str]) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, [*words, name])
        else:
            yield " ".join([*words, name]), command


def test_the_reference_of_the_api_has_every_type_of_error() -> None:
    page = (ROOT / "docs/rest-api.md").read_text()
    table = set(re.findall(r"^\| (\d{3}) \| (.+?) \|", page, re.MULTILINE))
    named = {word for _, words in table for word in re.findall(r"`(\w+)`", words)}
    source = (ROOT / "app/api/errors.py").read_text()
    answered = set(re.findall(r'error_response\(\d+, "(\w+)"', source))
    answered |= set(re.findall(r'^    \d+: "(\w+)",$', source, re.MULTILINE))
    assert answered | {"no_results", "model_error", "run_timeout", "worker_lost"} <= named
    assert len(answered) > 10


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
