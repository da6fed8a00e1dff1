"""Projects as `crewai create crew` writes them, registered by folder; flows: test_flows.py."""

from pathlib import Path
from typing import Any

import pytest

from app.crews.registry import load_crews
from app.settings import load_settings
from tests.load.stub_model import StubModel, run_stub
from tests.serving import Running, Serve


async def run(service: Running, **inputs: Any) -> dict[str, Any]:
    body = {"crew": "research", "inputs": inputs}
    started = await service.http.post("/api/runs", json=body)
    assert started.status_code == 202, started.text
    async with service.http.stream("GET", f"{started.headers['Location']}/events") as events:
        async for _ in events.aiter_lines():
            pass  # it ends with the run
    ended: dict[str, Any] = (await service.http.get(started.headers["Location"])).json()
    return ended


def files_named(name: str, folder: Path) -> list[Path]:
    return [*folder.rglob(name), *Path().glob(name)]


async def test_a_json_project_calls_the_model_that_it_names(
    serve: Serve, json_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = StubModel(delay_seconds=0, record=True)
    async with run_stub(stub) as base_url:
        # It has a memory as well, whose embeddings the stub can't give: a run does without.
        monkeypatch.setenv("OPENAI_API_KEY", "key-of-openai")
        monkeypatch.setenv("OPENAI_BASE_URL", base_url)
        crews = load_crews(load_settings(crews=f"research={json_project}"))
        async with serve(crews) as service:
            ended = await run(service)
            assert await service.stored() == 0
    assert ended["status"] == "succeeded", ended
    assert ended["outputs"]["research_task"].startswith("# Answer ")
    assert {body["model"] for body in stub.bodies} == {"gpt-4o"}
    assert "Research current AI trends" in str(stub.bodies[0]["messages"])


async def test_a_json_project_on_the_model_of_the_service(
    serve: Serve, json_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    file = tmp_path / "crews.toml"
    file.write_text("[research]\nreplace_models = true\n")
    crews = load_crews(load_settings(crews=f"research={json_project}", crews_file=file))
    async with serve(crews, crews_file=file) as service:
        ended = await run(service)
    assert ended["status"] == "succeeded", ended
    assert list(ended["outputs"]) == ["research_task"]
    assert "[offline model]" in ended["outputs"]["research_task"]
    assert "Research current AI trends" in ended["outputs"]["research_task"]


async def test_a_classic_project(serve: Serve, classic_project: Path) -> None:
    crews = load_crews(load_settings(crews=f"research={classic_project}"))
    async with serve(crews) as service:
        body = {"crew": "research", "inputs": {"topic": "tea"}}
        refused = await service.http.post("/api/runs", json=body)
        assert refused.status_code == 400
        assert "current_year: missing" in refused.json()["error"]
        ended = await run(service, topic="tea", current_year=2026)
    assert ended["status"] == "succeeded", ended
    assert list(ended["outputs"]) == ["research_task", "report"]
    assert "tea" in ended["outputs"]["research_task"]
    assert not files_named("report.md", classic_project)  # its task's output_file
