"""What any request is held to, and what any answer carries."""

import asyncio
import logging

import pytest

from app.api.middleware import request_limits as bounds
from tests.runs.scripted import until
from tests.serving import Running


@pytest.mark.parametrize(
    "path", ["/health/live", "/api/runs", "/api/runs/none", "/nowhere", "/mcp"]
)
async def test_no_browser_runs_frames_or_keeps_an_answer(service: Running, path: str) -> None:
    headers = (await service.http.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert "no-store" in headers["cache-control"]


async def test_the_pages_of_the_description_may_load_their_scripts(service: Running) -> None:
    answer = await service.http.get("/schema")
    assert answer.status_code == 200
    assert "content-security-policy" not in answer.headers


async def test_headers_beyond_the_limit_are_refused(service: Running) -> None:
    for headers in ([("X-Long", "x" * 40_000)], [("a", "")] * 7_000):
        answer = await service.http.get("/api/runs", headers=headers)
        assert answer.status_code == 431
        assert answer.json()["error"] == "the headers are larger than 32 KiB"


async def test_a_body_that_does_not_arrive_is_given_up(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "_BODY_SECONDS", 0.05)
    url = service.http.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        b"POST /api/run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 100\r\n\r\n{"goal_type": '
    )
    assert b" 408 " in await asyncio.wait_for(reader.readline(), 30)
    writer.close()
    assert await service.rows() == []


@pytest.mark.parametrize("path", ["/mcp", "/a2a/idea", "/api/run", "/api/runs", "/api/runs/batch"])
async def test_a_client_that_goes_away_before_its_body_has_arrived_is_no_error(
    service: Running, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def asked() -> bool:
        return any("run_asgi" in repr(task.get_coro()) for task in asyncio.all_tasks())

    async def answered() -> bool:
        return not await asked()

    url = service.http.base_url
    _, writer = await asyncio.open_connection(url.host, url.port)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f'{head}Content-Length: 100\r\n\r\n{{"goal_type": '.encode())
    await until(asked)
    writer.close()
    await until(answered)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert await service.rows() == []
