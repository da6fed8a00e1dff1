"""Projects as people write them, each started and run as the service does."""

import sys
from pathlib import Path

import pytest

from app.crews.registry import load_crews
from app.engine import Engine
from app.engine.llm import ModelSettings, create_model
from app.runs.crew_info import crew_info
from app.runs.inputs import validate_inputs
from app.settings import SettingsError, load_settings
from tests.crews.shapes import REFUSED, SHAPES, Shape


async def run(shape: Shape, folder: Path) -> tuple[str, str]:
    """Run the crew of a shape with its inputs and the defaults; the result and the mode."""
    (crew,) = list(load_crews(load_settings(crews=f"shape={shape.write(folder)}")))[1:]
    engine = Engine(model=create_model(ModelSettings()), mode="auto", max_stock_threads=2)
    try:
        await engine.start([crew])
        described = engine.describe("shape")
        inputs = validate_inputs(crew_info(crew, described), shape.inputs)
        result = await engine.run("shape", inputs)
        return result.raw, described.execution_mode
    finally:
        await engine.aclose()


@pytest.mark.parametrize("name", SHAPES)
async def test_a_project_is_accepted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = SHAPES[name]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    paths = list(sys.path)
    text, mode = await run(shape, tmp_path / "project")
    assert shape.expected in text
    assert mode == shape.mode
    assert sys.path == paths
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", REFUSED)
def test_a_project_is_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    shape, problem = REFUSED[name]
    folder = tmp_path / "project"
    with pytest.raises(SettingsError) as refused:
        load_crews(load_settings(crews=f"shape={shape.write(folder)}"))
    message = str(refused.value)
    assert problem.format(folder=folder) in message
    assert "\n" not in message
