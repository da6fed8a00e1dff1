"""Code that runs no crew never imports CrewAI, which lasts seconds."""

from pathlib import Path

import pytest

from tests.commands import run_python

_LIGHT = """
import importlib, sys

for module in (
    "app.access.api_keys", "app.cli", "app.commands", "app.crews.options", "app.crews.registry",
    "app.crews.sources", "app.db", "app.engine", "app.engine.llm.settings", "app.resources",
    "app.runs", "app.runs.service", "app.settings", "app.cli.doctor",
):
    importlib.import_module(module)
    assert "crewai" not in sys.modules, f"{module} imports CrewAI"

from click.testing import CliRunner
from app.cli.main import cli

for command, exit_code, text in (
    ("purge --older-than-days 0", 0, "0 run(s) removed"),
    ("sweep", 0, "done: 0 removed"),
    ("keys create alice", 0, "cc_"),
    ("keys list", 0, "alice"),
):
    ran = CliRunner().invoke(cli, command.split())
    assert ran.exit_code == exit_code and text in ran.output, (command, ran.output, ran.exception)
    assert "crewai" not in sys.modules, f"{command} imports CrewAI"

ran = CliRunner(env={"PORT": "no number"}).invoke(cli, ["doctor"])
assert ran.exit_code == 1 and "PORT" in ran.output, (ran.output, ran.exception)
assert "crewai" not in sys.modules, "doctor imports CrewAI before the settings are right"
"""


def test_what_runs_no_crew_does_not_import_crewai(tmp_path: Path) -> None:
    run_python(
        _LIGHT,
        tmp_path,
        DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path}/runs.db",
        TEMP_DIR=str(tmp_path),
    )


def test_an_unknown_name_of_the_engine_is_an_attribute_error() -> None:
    import app.engine

    with pytest.raises(AttributeError, match=r"module 'app\.engine' has no attribute 'Motor'"):
        app.engine.Motor  # noqa: B018
