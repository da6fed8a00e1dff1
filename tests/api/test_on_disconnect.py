"""`on_disconnect`: a client that closes its connection cancels its run, if it requested that."""

import asyncio
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from tests.load.stub_model import StubModel, run_stub
from tests.runs.scripted import until
from tests.serving import Running, Serve

STREAM = "Accept: text/event-stream\r\n"
CANCELLED = "cancelled: the client disconnected"


@dataclass
class _HeldModel(StubModel):
    """A model that answers when it may."""

    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self.arrived.set()
        await self.go_on.wait()
        return await super()._complete(request)


@pytest.fixture
def model() -> _HeldModel:
    return _HeldModel(delay_seconds=0.01)


async def _send(
    service: Running, path: str, headers: str = ""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    url = service.http.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    body = b"{}" if path.startswith("/api/run?") else b'{"crew": "idea"}'
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    return reader, writer


async def test_a_run_ends_with_its_connection_if_the_client_requested_that(
    serve: Serve, model: _HeldModel
) -> None:
    async with (
        run_stub(model) as url,
        serve(llm_model="openai/stub", llm_base_url=url) as service,
    ):
        for path, headers in (
            ("/api/runs?wait=60&on_disconnect=cancel", ""),
            ("/api/runs?on_disconnect=cancel", "Prefer: wait=60\r\n"),
            ("/api/runs?on_disconnect=cancel", STREAM),
            ("/api/run?on_disconnect=cancel", ""),
        ):
            model.arrived.clear()
            _, writer = await _send(service, path, headers)
            await model.arrived.wait()
            writer.close()
            await until(service.all_settled)
            row = (await service.rows())[-1]
            assert (row.status, row.error) == ("cancelled", CANCELLED), path
        assert len(await service.rows()) == 4


async def test_a_run_outlives_its_connection_otherwise(serve: Serve, model: _HeldModel) -> None:
    async with (
        run_stub(model) as url,
        serve(llm_model="openai/stub", llm_base_url=url) as service,
    ):
        for path, headers in (
            ("/api/runs?wait=60", ""),
            ("/api/runs?wait=60&on_disconnect=continue", ""),
            ("/api/runs", STREAM),
        ):
            model.arrived.clear()
            _, writer = await _send(service, path, headers)
            await model.arrived.wait()
            writer.close()
        # This client's connection lasts until its time is over, and then the run continues.
        response = await service.http.post(
            "/api/runs?wait=1&on_disconnect=cancel", json={"crew": "idea"}
        )
        assert response.status_code == 202
        model.go_on.set()
        await until(service.all_settled)
        assert [row.status for row in await service.rows()] == ["succeeded"] * 4


async def test_a_stream_that_the_service_ends_cancels_nothing(
    serve: Serve, model: _HeldModel
) -> None:
    async with (
        run_stub(model) as url,
        serve(llm_model="openai/stub", llm_base_url=url) as service,
    ):
        reader, writer = await _send(
            service, "/api/runs?on_disconnect=cancel", f"{STREAM}Connection: close\r\n"
        )
        await model.arrived.wait()
        service.inside.events.close()
        assert b"run.running" in await reader.read()
        writer.close()
        model.go_on.set()
        await until(service.all_settled)
        assert [row.status for row in await service.rows()] == ["succeeded"]


async def test_a_request_without_a_wait_cannot_cancel(service: Running) -> None:
    for query, problem in (
        ("on_disconnect=cancel", "on_disconnect: cancel is for requests with wait"),
        ("on_disconnect=cancel&wait=0", "on_disconnect: cancel is for requests with wait"),
        ("on_disconnect=abort", "on_disconnect: must be cancel or continue"),
    ):
        response = await service.http.post(f"/api/runs?{query}", json={"crew": "idea"})
        assert response.status_code == 400
        assert response.json()["error"].startswith(problem)
    assert await service.rows() == []
