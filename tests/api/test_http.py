"""HTTP as clients expect it: request ids, HEAD, content types, and pages of other origins."""

import logging
import re
from typing import Any

import msgspec
import pytest

from app.api.middleware.request_limits import MAX_HEADER_BYTES
from app.logs import configure_logging, request_id
from tests.serving import JSON, Running, Serve

_APP = "https://app.example.com"
_FOREIGN = "https://evil.example"
_UNKNOWN = "/api/runs/5f0c0f6e-5d0c-4a55-9d0b-0a54c8f0a111"


async def _responses(service: Running, headers: dict[str, str]) -> dict[str, Any]:
    """A response of each kind."""
    send = service.http.request
    run = await send("POST", "/api/runs", json={"crew": "idea"}, headers=headers)
    url = run.headers["Location"]
    return {
        "202": run,
        "events": await send("GET", f"{url}/events", headers=headers),
        "200": await send("GET", url, headers=headers),
        "text": await send("GET", f"{url}/outputs/profile_analysis_task", headers=headers),
        "html": await send("GET", f"{url}/outputs/profile_analysis_task?as=html", headers=headers),
        "crews": await send("GET", "/api/crews", headers=headers),
        "agents": await send("GET", "/a2a", headers=headers),
        "ready": await send("GET", "/health/ready", headers=headers),
        "schema": await send("GET", "/schema/openapi.json", headers=headers),
        "400": await send("GET", "/api/runs?limit=x", headers=headers),
        "404": await send("GET", _UNKNOWN, headers=headers),
        "no route": await send("GET", "/nowhere", headers=headers),
        "405": await send("PUT", "/api/runs", json={}, headers=headers),
        "413": await send("POST", "/api/run", content=b" " * 1_000_001, headers=JSON | headers),
        "415": await send("POST", "/api/run", content=b"x", headers=headers),
        "431": await send("GET", "/api/runs", headers={"X": "x" * MAX_HEADER_BYTES} | headers),
    }


async def test_every_response_has_the_request_id(service: Running) -> None:
    for name, response in (await _responses(service, {"X-Request-ID": "a.b-1:7"})).items():
        assert response.headers.get_list("X-Request-ID") == ["a.b-1:7"], name
    made = set()
    for wrong in ("x" * 129, "a b", "\xe9", "<script>", "-x", "", "a\tb"):
        for path in ("/health/live", "/nowhere"):
            headers = {b"X-Request-ID": wrong.encode("latin-1")}
            response = await service.http.get(path, headers=headers)
            made.add(response.headers["X-Request-ID"])
    assert len(made) == 14
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)


async def test_a_refusal_by_a_rate_limit_has_the_request_id(serve: Serve) -> None:
    async with serve(rate_limit="1/hour") as service:
        responses = [
            await service.http.get("/api/runs", headers={"X-Request-ID": "mine"}) for _ in range(2)
        ]
        assert [response.status_code for response in responses] == [200, 429]
        assert {response.headers["X-Request-ID"] for response in responses} == {"mine"}


async def test_log_lines_of_a_request_have_its_id(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[str, str | None]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append((record.name, request_id.get()))

    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(service.inside.runs, "page", fail)
    logger = logging.getLogger("crew_capture.api")
    logger.addHandler(handler := Handler())
    try:
        for given in ("first", "second"):
            response = await service.http.get("/api/runs", headers={"X-Request-ID": given})
            assert response.status_code == 500
            assert response.headers["X-Request-ID"] == given
    finally:
        logger.removeHandler(handler)
    assert [of for name, of in logged if name == "crew_capture.api"] == ["first", "second"]


def test_a_line_of_the_log_has_the_request_id_as_a_field(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    for name, value in (("handlers", []), ("filters", []), ("level", root.level)):
        monkeypatch.setattr(root, name, value)
    configure_logging("INFO", "json")
    token = request_id.set("of-this-request")
    try:
        logging.getLogger("crew_capture.test").info("within a request")
    finally:
        request_id.reset(token)
    logging.getLogger("crew_capture.test").info("outside of requests")
    within, outside = map(msgspec.json.decode, capsys.readouterr().err.splitlines())
    assert within["request_id"] == "of-this-request"
    assert "request_id" not in outside


async def test_head_has_the_headers_of_get_and_no_body(service: Running) -> None:
    own = {"x-request-id", "date", "transfer-encoding"}  # the last describes a body only
    for name, got in (await _responses(service, {})).items():
        if got.request.method != "GET" or name == "431":
            continue
        head = await service.http.head(got.request.url)
        assert head.status_code == got.status_code, name
        assert head.content == b""
        expected = {key: value for key, value in got.headers.items() if key not in own}
        assert {key: value for key, value in head.headers.items() if key not in own} == expected
    for path in ("/api/run", "/mcp"):
        assert (await service.http.head(path)).status_code == 405
    refused = await service.http.put("/api/runs", json={})
    assert refused.headers["Allow"].split(", ").count("HEAD") == 1


async def test_head_of_a_stream_ends_at_once(service: Running) -> None:
    """Several on one connection: nothing of a body is left on it."""
    run = await service.http.post("/api/runs", json={"crew": "idea"})
    for _ in range(3):
        head = await service.http.head(f"{run.headers['Location']}/events")
        assert head.headers["Content-Type"].startswith("text/event-stream")


async def test_a_content_type_has_one_charset_at_most(service: Running) -> None:
    for name, response in (await _responses(service, {})).items():
        (content_type,) = response.headers.get_list("Content-Type")
        assert content_type.lower().count("charset") <= 1, (name, content_type)
        if content_type.startswith("text/"):
            assert "charset=utf-8" in content_type, name


async def test_pages_of_allowed_origins_can_read_every_response(serve: Serve) -> None:
    async with serve(allowed_origins=_APP) as service:
        for name, response in (await _responses(service, {"Origin": _APP})).items():
            assert response.headers["Access-Control-Allow-Origin"] == _APP, name
            assert response.headers["Vary"] == "Origin", name
            exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
            assert {"Location", "Retry-After", "RateLimit-Remaining", "X-Request-ID"} <= {*exposed}
        for headers in ({}, {"Origin": _FOREIGN}, {"Origin": "null"}):
            response = await service.http.get("/api/runs", headers=headers)
            assert response.status_code == 200
            assert "Access-Control-Allow-Origin" not in response.headers
            assert response.headers["Vary"] == "Origin"


async def test_a_preflight_of_an_allowed_origin_is_answered(serve: Serve) -> None:
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    async with serve(allowed_origins=_APP, auth="keys") as service:
        for path in ("/api/runs", "/api/run", "/mcp", "/a2a/idea", _UNKNOWN):
            response = await service.http.options(path, headers=preflight | {"Origin": _APP})
            assert response.status_code == 204
            assert response.headers["Access-Control-Allow-Origin"] == _APP
            allowed = response.headers["Access-Control-Allow-Headers"]
            assert {"Authorization", "Content-Type", "Idempotency-Key"} <= {*allowed.split(", ")}
            methods = response.headers["Access-Control-Allow-Methods"].split(", ")
            assert {"GET", "POST", "DELETE"} <= {*methods}
            assert "Access-Control-Allow-Credentials" not in response.headers
            refused = await service.http.options(path, headers=preflight | {"Origin": _FOREIGN})
            assert not [name for name in refused.headers if name.startswith("access-control")]


async def test_without_allowed_origins_no_response_grants_anything(service: Running) -> None:
    for headers in ({"Origin": _APP}, {"Origin": _APP, "Access-Control-Request-Method": "POST"}):
        for method in ("GET", "OPTIONS"):
            response = await service.http.request(method, "/api/runs", headers=headers)
            assert not [name for name in response.headers if name.startswith("access-control")]


async def test_the_access_log_has_head_with_its_route(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("crew_capture.access")
    logger.addHandler(caplog.handler)
    try:
        async with serve(access_log=True) as service:
            await service.http.head(_UNKNOWN)
    finally:
        logger.removeHandler(caplog.handler)
    lines = [one.getMessage() for one in caplog.records if one.name == logger.name]
    assert lines == ["HEAD /api/runs/{run_id} 404"]
