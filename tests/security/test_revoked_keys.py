"""A revoked key ends what it has open, in processes that did not revoke it, too."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.access.api_keys import ApiKeys, Role
from app.db import Database
from tests.api.crews import Gate
from tests.runs.scripted import until
from tests.serving import Running, Serve

_MCP = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
_MCP_CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "idea", "arguments": {}},
}
_A2A_MESSAGE = {
    "jsonrpc": "2.0",
    "id": 1,
    "params": {
        "message": {
            "kind": "message",
            "role": "user",
            "messageId": "1",
            "parts": [{"kind": "data", "data": {}}],
        }
    },
}


@pytest.fixture
async def service(serve: Serve, gate: Gate, database_url: str) -> AsyncIterator[Running]:
    async with serve(gate.crews, engine="stock", auth="keys", database_url=database_url) as service:
        yield service
        gate.open.set()


async def test_the_open_requests_of_a_revoked_key_end(
    service: Running, gate: Gate, database_url: str
) -> None:
    keys = [await service.inside.api_keys.create("a team", Role.USER) for _ in range(2)]
    revoked, others = ({"Authorization": f"Bearer {key}"} for key in keys)
    streams = [
        await _opened(service, "GET", await _events_path(service, revoked), headers=revoked),
        await _opened(service, "POST", "/mcp", headers=revoked | _MCP, json=_MCP_CALL),
        await _opened(
            service,
            "POST",
            "/a2a/idea",
            headers=revoked,
            json=_A2A_MESSAGE | {"method": "message/stream"},
        ),
    ]
    kept = await _opened(service, "GET", await _events_path(service, others), headers=others)
    waiting = [
        asyncio.ensure_future(service.http.post("/api/run", json={}, headers=revoked)),
        asyncio.ensure_future(
            service.http.post(
                "/a2a/idea", headers=revoked, json=_A2A_MESSAGE | {"method": "message/send"}
            )
        ),
    ]

    async def all_are_accepted() -> bool:
        return len(await service.rows()) == 6

    await until(all_are_accepted)
    assert [response.status_code for response in streams] == [200, 200, 200]
    assert not any(request.done() for request in waiting)

    other_process = Database(database_url)
    assert await ApiKeys(other_process).revoke(keys[0].split("_")[1])
    await other_process.aclose()

    # They end although no run has, and end as complete responses.
    async with asyncio.timeout(20):
        for response in streams:
            assert b"run.succeeded" not in await response.aread()
        for request in waiting:
            answer = await request
            assert answer.status_code == 401
            assert "no such API key" in answer.text
    assert not gate.open.is_set()
    assert not await service.all_settled()

    gate.open.set()  # the runs continue, and so does the stream of the other key
    async with asyncio.timeout(20):
        assert b"run.succeeded" in await kept.aread()


async def _events_path(service: Running, headers: dict[str, str]) -> str:
    response = await service.http.post("/api/runs", json={"crew": "idea"}, headers=headers)
    return f"/api/runs/{response.json()['run_id']}/events"


async def _opened(service: Running, method: str, path: str, **request: Any) -> Any:
    """A response whose headers have arrived, and whose body has not."""
    return await service.http.send(service.http.build_request(method, path, **request), stream=True)
