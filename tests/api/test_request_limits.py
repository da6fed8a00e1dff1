"""Request size and time limits; response security headers."""

import asyncio
import logging
from typing import Any

import pytest
from litestar.exceptions import HTTPException

from app.api.middleware import request_limits
from app.api.middleware.request_limits import RequestLimits
from tests.runs.scripted import until
from tests.serving import Running


@pytest.mark.parametrize(
    "path", ["/health/live", "/api/runs", "/api/runs/none", "/nowhere", "/mcp"]
)
async def test_no_browser_runs_frames_or_caches_a_response(service: Running, path: str) -> None:
    headers = (await service.http.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert "no-store" in headers["cache-control"]


async def test_headers_beyond_the_limit_are_refused(service: Running) -> None:
    for headers in ([("X-Long", "x" * 40_000)], [("a", "")] * 7_000):
        answer = await service.http.get("/api/runs", headers=headers)
        assert answer.status_code == 431
        assert answer.json()["error"] == "the headers are larger than 32 KiB"


async def test_a_body_that_does_not_arrive_is_refused(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_limits, "_BODY_SECONDS", 0.05)
    url = service.http.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        b"POST /api/run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 100\r\n\r\n{"goal_type": '
    )
    assert b" 408 " in await asyncio.wait_for(reader.readline(), 30)
    writer.close()
    assert await service.rows() == []


async def test_a_trickled_body_does_not_restart_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    clock, received = loop.time(), 0
    monkeypatch.setattr(loop, "time", lambda: clock)

    async def receive() -> Any:
        nonlocal clock, received
        clock, received = clock + request_limits._BODY_SECONDS / 4, received + 1
        await asyncio.sleep(0)  # the loop runs the timers that are due
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b" ", "more_body": received < 100}

    async def read_body(_: Any, receive: Any, __: Any) -> None:
        while (await receive())["more_body"]:
            pass

    async def send(_: Any) -> None:
        raise AssertionError("no response")

    scope: Any = {"type": "http", "method": "POST", "path": "/", "headers": []}
    with pytest.raises(HTTPException) as raised:
        await RequestLimits().handle(scope, receive, send, read_body)
    assert raised.value.status_code == 408
    assert received == 4


@pytest.mark.parametrize("path", ["/mcp", "/a2a/idea", "/api/run", "/api/runs", "/api/runs/batch"])
async def test_a_client_that_disconnects_before_its_body_has_arrived_is_no_error(
    service: Running, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def is_handled() -> bool:
        return any("run_asgi" in repr(task.get_coro()) for task in asyncio.all_tasks())

    async def is_done() -> bool:
        return not await is_handled()

    url = service.http.base_url
    _, writer = await asyncio.open_connection(url.host, url.port)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f'{head}Content-Length: 100\r\n\r\n{{"goal_type": '.encode())
    await until(is_handled)
    writer.close()
    await until(is_done)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert await service.rows() == []
