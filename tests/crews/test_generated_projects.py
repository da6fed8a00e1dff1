"""Projects as CrewAI's own command generates them, with memory on."""

from pathlib import Path

import pytest
from crewai_cli.create_json_crew import create_json_crew

from app.crews.registry import load_crews
from app.engine import CrewModel, CrewResult, Engine
from app.engine.llm import OfflineModel
from app.engine.memory_store import MemoryChanges, MemoryEntry
from app.settings import Settings


class _Store:
    """Keeps the memories of one caller."""

    def __init__(self) -> None:
        self.entries: dict[str, MemoryEntry] = {}
        self.recalled = 0

    async def load(self) -> list[MemoryEntry]:
        self.recalled = len(self.entries)
        return list(self.entries.values())

    async def apply(self, changes: MemoryChanges) -> None:
        self.entries.update(changes.saved)


async def test_a_generated_project_runs_natively_and_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CREWAI_DMN", "1")  # without questions
    create_json_crew("my_crew")
    assert '"memory": true' in (tmp_path / "my_crew" / "crew.jsonc").read_text()
    crews = load_crews(Settings(crews=f"mine={tmp_path / 'my_crew'}", _env_file=None))
    (project,) = (crew for crew in crews if crew.name == "mine")
    engine = Engine(
        model=(model := OfflineModel()),
        models_of_crews={"mine": CrewModel(model, replaces=True)},
        mode="auto",
        max_stock_threads=4,
    )
    await engine.start([project])
    assert engine.describe("mine").execution_mode == "native"
    store = _Store()
    for _ in range(2):
        result = await engine.run("mine", {}, memory_store=store)
        assert isinstance(result, CrewResult)
        assert result.execution_mode == "native"
    await engine.aclose()
    assert store.recalled > 0
    assert {entry.scope.split("/agent/")[0] for entry in store.entries.values()} == {
        "/crew/my_crew"
    }
