"""Pages of other sites can't change state, though any page may send requests to loopback."""

from typing import Any

import pytest

from tests.serving import JSON, Running, Serve

_CALLS: tuple[tuple[str, str, bytes], ...] = (
    ("POST", "/api/run", b"{}"),
    ("POST", "/api/runs", b'{"crew": "idea"}'),
    ("POST", "/api/runs/batch", b'{"crew": "idea", "inputs": [{}]}'),
    ("POST", "/crews/idea/kickoff", b"{}"),
    ("POST", "/mcp", b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}'),
    ("POST", "/a2a/idea", b'{"jsonrpc": "2.0", "id": 1, "method": "GetTask"}'),
)


async def _send(service: Running, call: tuple[str, str, bytes], headers: dict[str, str]) -> Any:
    method, path, body = call
    return await service.http.request(method, path, content=body, headers=headers)


@pytest.mark.parametrize("call", _CALLS, ids=lambda call: call[1])
async def test_what_a_browser_sends_without_a_preflight_starts_nothing(
    service: Running, call: tuple[str, str, bytes]
) -> None:
    # fetch(..., {mode: "no-cors"}), or a form: these types need no preflight; a Blob has none.
    for simple in (
        {"Content-Type": "text/plain"},
        {"Content-Type": "text/plain;charset=UTF-8"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "text/plain; application/json"},
        {},
    ):
        response = await _send(service, call, simple)
        assert response.status_code == 415, (simple, response.text)
        assert "application/json" in response.text
    for cross_site in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        response = await _send(service, call, JSON | cross_site)
        assert response.status_code == 403, (cross_site, response.text)
        assert "ALLOWED_ORIGINS" in response.text
    assert await service.rows() == []


async def test_a_request_without_a_body_is_bound_to_the_origin_too(service: Running) -> None:
    started = await service.http.post("/api/runs", json={"crew": "idea"})
    url = started.headers["Location"]
    for method, path in (("POST", f"{url}/cancel"), ("DELETE", url)):
        response = await service.http.request(method, path, headers={"Origin": "null"})
        assert response.status_code == 403
    assert (await service.http.post(f"{url}/cancel")).status_code == 200


async def test_the_services_own_pages_and_other_clients_are_accepted(service: Running) -> None:
    own = str(service.http.base_url).rstrip("/")
    for headers in (
        {},
        {"Origin": own, "Sec-Fetch-Site": "same-origin"},
        {"Origin": own.replace("http:", "https:")},  # behind a proxy that ends TLS
        {"Sec-Fetch-Site": "none"},
        {"Content-Type": "application/json; charset=utf-8"},
    ):
        response = await _send(service, _CALLS[1], JSON | headers)
        assert response.status_code == 202, (headers, response.text)


async def test_reading_is_free_of_it(service: Running) -> None:
    headers = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    response = await service.http.get("/api/runs", headers=headers)
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


async def test_origins_that_the_operator_trusts_are_accepted(serve: Serve) -> None:
    async with serve(allowed_origins="https://app.example.com, http://localhost:3000") as service:
        for origin in ("https://app.example.com", "http://localhost:3000"):
            headers = JSON | {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
            assert (await _send(service, _CALLS[1], headers)).status_code == 202
        headers = JSON | {"Origin": "http://app.example.com"}
        assert (await _send(service, _CALLS[1], headers)).status_code == 403
