"""A client's mistake is a 400 that names the field, on every way in, and makes no large log."""

import base64
import logging
from collections.abc import AsyncIterator

import pytest

from app.logs import configure_logging
from tests.serving import JSON, Running, Serve

_DEEP = b"[" * 100_000 + b"]" * 100_000
_ID = "00000000-0000-4000-8000-000000000000"
_RPC_HEADERS = JSON | {"Accept": "application/json, text/event-stream", "A2A-Version": "1.0"}


def _cursor(position: str) -> str:
    return base64.urlsafe_b64encode(position.encode()).decode()


def _mcp(argument: bytes) -> bytes:
    return (
        b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "idea", '
        b'"arguments": {"interest_area": %b}}}' % argument
    )


def _a2a(part: bytes, more: bytes = b"") -> bytes:
    return (
        b'{"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": {'
        b'"messageId": "1", "role": "ROLE_USER", "parts": [%b]%b}}}' % (part, more)
    )


@pytest.fixture
async def each(serve: Serve, database_url: str) -> AsyncIterator[Running]:
    """A service on each kind of database."""
    async with serve(database_url=database_url) as service:
        yield service


async def test_a_wrong_query_is_refused_by_name(each: Running) -> None:
    for query, field in {
        "crew=%ff": "query",
        "%ff=1": "query",
        "crew=a%00b": "crew",
        "crew=" + "x" * 101: "crew",
        "cursor=%C3%A9": "cursor",
        "cursor=a%00b": "cursor",
        "cursor=" + _cursor(f'["0001-01-01T00:00:00+14:00", "{_ID}"]'): "cursor",
        "cursor=" + _cursor(f'["9999-12-31T23:59:59-14:00", "{_ID}"]'): "cursor",
        "cursor=" + _cursor(f'["2020-01-01T00:00:00", "{_ID}"]'): "cursor",
        "cursor=" + _cursor("[" * 20_000): "cursor",
        "created_from=0001-01-01T00:00:00%2B14:00": "created_from",
        "created_before=9999-12-31T23:59:59-14:00": "created_before",
        "status=%00": "status",
        "limit=" + "9" * 5000: "limit",
    }.items():
        response = await each.http.get(f"/api/runs?{query}")
        assert response.status_code == 400, (query[:60], response.text)
        assert response.json()["error"].startswith(f"{field}: "), response.text
    edges = "created_from=0001-01-01T00:00:00Z&created_before=9999-12-31T23:59:59Z"
    assert (await each.http.get(f"/api/runs?{edges}")).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/run", b'{"interest_area": "\xff"}'),
        ("/api/runs", b'{"crew": "id\xffea"}'),
        ("/api/runs", b'{"crew": "idea", "inputs": {"a": %b}}' % _DEEP),
        ("/api/runs/batch", b'{"crew": "idea", "inputs": [{"a": %b}]}' % _DEEP),
        ("/crews/idea/kickoff", b'{"inputs": {"a": "\xff"}}'),
        ("/mcp", _mcp(b'"\xff"')),
        ("/mcp", _mcp(_DEEP)),
        ("/a2a/idea", _a2a(b'{"text": "\xff"}')),
        ("/a2a/idea", _a2a(b'{"data": {"a": %b}}' % _DEEP)),
    ],
    ids=range(9),
)
async def test_a_body_that_is_no_json_is_refused(
    service: Running, caplog: pytest.LogCaptureFixture, path: str, body: bytes
) -> None:
    response = await service.http.post(path, content=body, headers=_RPC_HEADERS)
    assert response.status_code == 400, response.text
    assert "body: " in response.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/runs", b'{"crew": "idea", "inputs": {"interest_aera": "Food"}}'),
        ("/api/runs/batch", b'{"crew": "idea", "inputs": [{"interest_aera": "Food"}]}'),
        ("/crews/idea/kickoff", b'{"inputs": {"interest_aera": "Food"}}'),
        ("/a2a/idea", _a2a(b'{"data": {"interest_aera": "Food"}}')),
    ],
    ids=["run", "batch", "amp", "a2a"],
)
async def test_an_unknown_input_is_refused_with_the_nearest_name(
    service: Running, path: str, body: bytes
) -> None:
    response = await service.http.post(path, content=body, headers=_RPC_HEADERS)
    expected = "interest_aera: the crew idea has no such input; did you mean interest_area?"
    assert expected in response.text
    assert await service.rows() == []


@pytest.mark.parametrize("body", [b"{", b"{]", b"nothing", b'{"crew": "idea"} x'])
@pytest.mark.parametrize("path", ["/api/run", "/api/runs", "/crews/idea/kickoff"])
async def test_the_error_for_a_body_that_is_no_json_names_the_body(
    service: Running, path: str, body: bytes
) -> None:
    response = await service.http.post(path, content=body, headers=JSON)
    assert response.status_code == 400
    answer = response.json()
    assert answer.get("message", answer["error"]).startswith("body: "), answer


@pytest.mark.parametrize(
    "path",
    ["/%ff", "/api/runs/%ff", f"/api/runs/{_ID}/outputs/%ff", "/crews/%ff/inputs", "/api/%C3%28"],
)
async def test_a_path_that_is_not_utf8_is_refused(service: Running, path: str) -> None:
    response = await service.http.get(path)
    assert response.status_code == 400, response.text
    assert "path: not UTF-8" in response.text
    assert (await service.http.get("/%C3%A9")).status_code == 404


async def test_meta_has_the_bounds_of_inputs(service: Running) -> None:
    deep: object = 0
    for _ in range(100):
        deep = [deep]
    for value, problem in (
        (deep, "nested deeper than 64 levels"),
        ([0] * 10_001, "meta may hold at most 10,000 values"),
    ):
        response = await service.http.post("/crews/idea/kickoff", json={"meta": {"a": value}})
        assert response.status_code == 400, response.text
        message = response.json()["message"]
        assert message.startswith("meta.a[0]" if value is deep else "meta.a"), message
        assert problem in message
    assert await service.rows() == []
    kept = {"meta": {"text": "\u0001\r\n", "number": 7}}
    assert (await service.http.post("/crews/idea/kickoff", json=kept)).status_code == 200
    assert [row.meta for row in await service.rows()] == [kept["meta"]]


async def test_a_context_with_a_control_character_is_refused(each: Running) -> None:
    data = b'{"data": {"interest_area": "Food"}}'
    for context in (b'"a\\u0000b"', b'"a\\u001fb"'):
        body = _a2a(data, b', "contextId": %b' % context)
        response = await each.http.post("/a2a/idea", content=body, headers=_RPC_HEADERS)
        assert "contextId: control character" in response.json()["error"]["message"]
    assert await each.rows() == []


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_line_of_the_log_is_bounded(
    log_format: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "filters", [])
    monkeypatch.setattr(root, "level", root.level)
    configure_logging("INFO", log_format)  # type: ignore[arg-type]
    try:
        raise ValueError("x" * 300_000)
    except ValueError:
        logging.getLogger("crew_capture.test").exception("long %s the end", "y" * 300_000)
    written = capsys.readouterr().err
    assert "the end" in written
    assert "Traceback" in written
    assert len(written) < 20_000
