"""Projects as CrewAI's own command writes them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def create_project(where: Path, kind: str, name: str, *options: str) -> Path:
    """Run `crewai create KIND NAME` in `where`; the project's folder."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(where),
        # Nobody is there to be asked.
        "CREWAI_DMN": "true",
        "CREWAI_DISABLE_TELEMETRY": "true",
    }
    subprocess.run(
        [Path(sys.executable).with_name("crewai"), "create", kind, name, *options],
        cwd=where,
        env=environment,
        check=True,
        capture_output=True,
        timeout=60,
    )
    return where / name


@pytest.fixture(scope="session")
def json_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_project(tmp_path_factory.mktemp("projects"), "crew", "json_crew")


@pytest.fixture(scope="session")
def classic_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_project(tmp_path_factory.mktemp("projects"), "crew", "classic_crew", "--classic")


@pytest.fixture(scope="session")
def flow_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_project(tmp_path_factory.mktemp("projects"), "flow", "my_flow")


@pytest.fixture(scope="session")
def declared_flow_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_project(
        tmp_path_factory.mktemp("projects"), "flow", "declared_flow", "--declarative"
    )
