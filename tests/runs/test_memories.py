"""Memories of crews: each caller's own, shared by all processes, exported and deleted by it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.access.api_keys import Role
from app.crews.options import CrewOptions
from app.crews.registry import CrewSpec, Registry
from app.engine import MemoryChanges
from app.model_setup import configured_embedder
from app.runs import memories
from app.settings import SettingsError
from tests.listener import SAID, create
from tests.load.stub_model import StubModel, run_stub
from tests.serving import MakeSettings, Running, Serve


def _crews(**options: Any) -> Registry:
    return Registry([CrewSpec("listener", create, options=CrewOptions(**options))])


@asynccontextmanager
async def _two(
    serve: Serve, database_url: str, **settings: Any
) -> AsyncIterator[tuple[Running, Running]]:
    values = {"auth": "keys", "database_url": database_url, **settings}
    async with serve(_crews(), **values) as one, serve(_crews(), **values) as other:
        yield one, other


async def _key(service: Running, role: Role = Role.USER) -> dict[str, str]:
    return {"Authorization": f"Bearer {await service.inside.api_keys.create('app', role)}"}


async def _said(service: Running, text: str, headers: dict[str, str] | None = None) -> str:
    """The secrets that the crew knows when this is said."""
    body = {"crew": "listener", "inputs": {"said": text}}
    response = await service.http.post("/api/runs?wait=60", json=body, headers=headers or {})
    assert response.status_code == 200, response.text
    run = response.json()
    assert run["status"] == "succeeded", run
    return " ".join(sorted(set(SAID.findall(json.dumps(run["outputs"])))))


async def _exported(service: Running, headers: dict[str, str], query: str = "") -> list[Any]:
    response = await service.http.get(f"/api/memory{query}", headers=headers)
    assert response.status_code == 200, response.text
    exported: list[Any] = response.json()["memories"]
    return exported


async def test_100_end_users_recall_their_own_memories_and_no_others(
    serve: Serve, database_url: str
) -> None:
    async with _two(serve, database_url) as services:
        key = await _key(services[0])
        users = [{**key, "X-End-User": f"user {number}"} for number in range(100)]

        async def say(number: int, round_: int) -> str:
            text = f"secret-{'ab'[round_]}-{number}"
            return await _said(services[(number + round_) % 2], text, users[number])

        first = await asyncio.gather(*(say(number, 0) for number in range(100)))
        assert first == [f"secret-a-{number}" for number in range(100)]
        second = await asyncio.gather(*(say(number, 1) for number in range(100)))
        assert second == [f"secret-a-{number} secret-b-{number}" for number in range(100)]
        for number in (0, 99):
            texts = json.dumps(await _exported(services[0], users[number]))
            own = {f"secret-a-{number}", f"secret-b-{number}"}
            assert set(SAID.findall(texts)) == own
        assert len(await _exported(services[0], key)) == 200
        assert await _exported(services[0], await _key(services[0], Role.ADMIN)) == []


async def test_callers_export_and_delete_their_own(serve: Serve, database_url: str) -> None:
    async with _two(serve, database_url) as (one, other):
        anna, berta = await _key(one), await _key(one)
        await _said(one, "secret-anna-1", anna)
        await _said(other, "secret-berta-1", berta)
        (memory,) = await _exported(other, anna)
        assert memory["content"] == "They said secret-anna-1"
        assert (memory["crew"], memory["user"], memory["categories"]) == (
            "listener",
            None,
            ["said"],
        )
        assert await _exported(one, anna, "?crew=another") == []
        assert (await one.http.get("/api/memory?crews=x", headers=anna)).status_code == 400
        assert (await one.http.get("/api/memory")).status_code == 401
        response = await other.http.delete("/api/memory?crew=another", headers=anna)
        assert response.json() == {"deleted": 0}
        response = await other.http.delete("/api/memory", headers=anna)
        assert response.json() == {"deleted": 1}
        assert await _exported(one, anna) == []
        assert len(await _exported(one, berta)) == 1
        assert await _said(one, "what?", anna) == ""


async def test_without_a_caller_memory_ends_with_the_run(serve: Serve) -> None:
    async with serve(_crews()) as service:
        assert await _said(service, "secret-x-1") == "secret-x-1"
        assert await _said(service, "what?") == ""
        named = {"X-End-User": "anna"}
        await _said(service, "secret-x-2", named)
        assert await _said(service, "what?", named) == "secret-x-2"
        assert await _said(service, "what?") == ""


@pytest.mark.parametrize(("whose", "known"), [("run", ""), ("crew", "secret-x-1")])
async def test_memory_may_belong_to_the_run_or_the_crew(
    serve: Serve, whose: str, known: str
) -> None:
    async with serve(_crews(memory=whose), auth="keys") as service:
        await _said(service, "secret-x-1", await _key(service))
        assert await _said(service, "what?", await _key(service)) == known


async def test_unused_and_surplus_memories_are_deleted(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memories, "MAX_MEMORIES", 3)
    async with serve(_crews(), auth="keys") as service:
        key = await _key(service)
        for number in range(5):
            await _said(service, f"secret-x-{number}", key)
        assert len(await _exported(service, key)) == 3
        stored = service.inside.memories
        assert await stored.purge(timedelta(hours=1)) == 0
        assert await stored.purge(timedelta(0)) == 3
        assert await _exported(service, key) == []


async def test_only_the_current_attempt_of_a_run_stores_memories(
    serve: Serve, tmp_path: Path
) -> None:
    async with serve(_crews(), auth="keys") as service:
        key = await _key(service)
        await _said(service, "secret-x-1", key)
        (row,) = await service.rows()
        stored = service.inside.memories
        owner = memories.MemoryOwner(row.owner, "", "listener")
        (entry,) = await stored.load(owner)
        changes = MemoryChanges(deleted={entry.id})

        class Lost:
            run_id, attempt = row.run_id, row.attempt - 1

        await stored.apply(owner, Lost, changes)
        assert len(await stored.load(owner)) == 1
        Lost.attempt += 1
        await stored.apply(owner, Lost, changes)
        assert len(await stored.load(owner)) == 0


async def test_memories_are_embedded_by_the_model_server(serve: Serve) -> None:
    stub = StubModel(delay_seconds=0)
    async with run_stub(stub) as url:
        settings = {"llm_base_url": url, "llm_model": "openai/some", "embedding_model": "small"}
        async with serve(_crews(), auth="keys", **settings) as service:
            key = await _key(service)
            await _said(service, "secret-x-1", key)
            assert await _said(service, "what?", key) == "secret-x-1"
    assert {model for model, _ in stub.embedded} == {"small"}
    texts = [text for _, text in stub.embedded]
    assert texts.count("They said secret-x-1") == 3  # a query, and a memory of each run
    assert "They said what?" in texts


@pytest.mark.parametrize("model", ["offline", "anthropic/claude"])
def test_an_embedding_model_without_its_server_is_refused(
    model: str, settings: MakeSettings
) -> None:
    with pytest.raises(SettingsError, match=f"EMBEDDING_MODEL=small: LLM_MODEL={model} is not"):
        configured_embedder(settings(llm_model=model, embedding_model="small"))
