"""Stock CrewAI writes a task's `output_file` into the working directory."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="package", autouse=True)
def _folder_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run this package's tests in a folder that goes with them."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("engine"))
    yield
    os.chdir(before)
