"""API keys, and the host names of the service."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from litestar import Litestar, Router, asgi, get
from litestar.exceptions import NotAuthorizedException
from litestar.response import Response
from litestar.types import Receive, Scope, Send
from sqlalchemy import select

from app.access.api_keys import ApiKey, ApiKeys, Role
from app.api.middleware.auth import AuthMiddleware
from app.db import Database
from tests.runs.scripted import until
from tests.serving import Running, Serve


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
async def guarded(serve: Serve, database_url: str) -> AsyncIterator[Running]:
    """A service that requires keys, on each kind of database."""
    async with serve(auth="keys", database_url=database_url) as service:
        yield service


async def _key(service: Running, role: Role = Role.USER, name: str = "a team") -> str:
    key: str = await service.inside.api_keys.create(name, role)
    return key


async def _start(service: Running, key: str) -> str:
    response = await service.http.post("/api/runs", json={"crew": "idea"}, headers=bearer(key))
    assert response.status_code == 202, response.text
    run_id: str = response.json()["run_id"]
    return run_id


async def test_a_key_lets_in_and_only_a_key(guarded: Running) -> None:
    key = await _key(guarded)
    assert (await guarded.http.get("/api/runs", headers=bearer(key))).status_code == 200
    lower = {"authorization": f"bearer {key}"}
    assert (await guarded.http.get("/api/runs", headers=lower)).status_code == 200
    prefix, key_id, secret = key.split("_", 2)
    wrong_secret = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    other = await _key(guarded)
    for given in (
        None,
        "",
        "Bearer",
        f"Basic {key}",
        key,
        f"Bearer {prefix}_{key_id}_",
        f"Bearer {prefix}_{key_id}_{wrong_secret}",
        f"Bearer {prefix}_{key_id}_{other.split('_', 2)[2]}",
        f"Bearer {prefix}_nobody_{secret}",
        f"Bearer xx_{key_id}_{secret}",
        f"Bearer {key} {key}",
        "Bearer " + "x" * 5000,
        "Bearer cc_é_é",
    ):
        headers = {} if given is None else {b"authorization": given.encode()}
        response = await guarded.http.get("/api/runs", headers=headers)
        assert response.status_code == 401, given
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
        answer = response.json()
        assert (answer["success"], answer["error_type"]) == (False, "unauthorized")
        assert secret not in response.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/run"),
        ("POST", "/api/runs"),
        ("POST", "/api/runs/batch"),
        ("GET", "/api/batches"),
        ("POST", "/api/batches/00000000-0000-0000-0000-000000000007/cancel"),
        ("GET", "/api/runs/00000000-0000-0000-0000-000000000007/events"),
        ("DELETE", "/api/runs/00000000-0000-0000-0000-000000000007"),
    ],
)
async def test_no_call_goes_without_a_key(serve: Serve, method: str, path: str) -> None:
    async with serve(auth="keys") as service:
        response = await service.http.request(method, path, json={"crew": "idea"})
        assert response.status_code == 401
        assert await service.rows() == []


async def test_health_and_schema_need_no_key(serve: Serve) -> None:
    async with serve(auth="keys") as service:
        for path in ("/health/live", "/health/ready", "/schema", "/schema/openapi.json"):
            assert (await service.http.get(path)).status_code == 200, path
        schema = (await service.http.get("/schema/openapi.json")).json()
        assert schema["security"] == [{"key": []}]
        assert schema["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
        for path in schema["paths"].values():
            for operation in path.values():
                if "runs" in operation.get("tags", []):
                    assert "401" in operation["responses"]


async def test_a_revoked_key_is_refused_by_other_processes_within_seconds(
    guarded: Running, database_url: str
) -> None:
    key = await _key(guarded)
    assert (await guarded.http.get("/api/runs", headers=bearer(key))).status_code == 200
    neighbour = Database(database_url)
    assert await ApiKeys(neighbour).revoke(key.split("_")[1])
    assert not await ApiKeys(neighbour).revoke("nobody")

    async def is_refused() -> bool:
        return (await guarded.http.get("/api/runs", headers=bearer(key))).status_code == 401

    await until(is_refused, seconds=3)
    await neighbour.aclose()


async def test_the_secret_is_not_stored(guarded: Running) -> None:
    secret = (await _key(guarded)).split("_", 2)[2]
    async with guarded.inside.database.read() as connection:
        (row,) = await connection.execute(select(ApiKey.__table__))
    assert len(secret) >= 43  # 256 bits
    assert secret not in repr(tuple(row))


async def test_keys_are_looked_up_at_most_once_a_second(guarded: Running) -> None:
    key = await _key(guarded)
    keys: ApiKeys = guarded.inside.api_keys
    lookups = 0
    really = keys.all

    async def count() -> Any:
        nonlocal lookups
        lookups += 1
        return await really()

    keys.all = count  # type: ignore[method-assign]
    await asyncio.gather(*(keys.find(key) for _ in range(200)))
    assert lookups == 1


async def test_a_user_sees_its_own_runs_and_an_admin_all(guarded: Running) -> None:
    anna, berta = await _key(guarded), await _key(guarded)
    admin = await _key(guarded, Role.ADMIN)
    runs = {key: await _start(guarded, key) for key in (anna, berta, admin)}

    async def listed(key: str) -> set[str]:
        response = await guarded.http.get("/api/runs", headers=bearer(key))
        return {run["run_id"] for run in response.json()["runs"]}

    assert await listed(anna) == {runs[anna]}
    assert await listed(berta) == {runs[berta]}
    assert await listed(admin) == set(runs.values())
    for key, status in ((anna, 200), (berta, 404), (admin, 200)):
        response = await guarded.http.get(f"/api/runs/{runs[anna]}", headers=bearer(key))
        assert response.status_code == status


async def test_without_keys_an_authorization_header_is_ignored(service: Running) -> None:
    response = await service.http.get("/api/runs", headers=bearer("cc_nobody_nothing"))
    assert response.status_code == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:80"])
async def test_requests_must_name_the_service(service: Running, host: str) -> None:
    assert (await service.http.get("/api/runs", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost:x", ""]
)
@pytest.mark.parametrize("path", ["/api/runs", "/schema", "/health/live"])
async def test_a_name_that_is_not_its_own_is_refused(
    service: Running, host: str, path: str
) -> None:
    response = await service.http.get(path, headers={"Host": host})
    assert response.status_code == 400
    assert "ALLOWED_HOSTS" in response.json()["error"]


async def test_allowed_hosts_are_the_names(serve: Serve) -> None:
    async with serve(allowed_hosts="crews.example") as service:
        for host, status in (("crews.example", 200), ("CREWS.example:443", 200), ("x.y", 400)):
            response = await service.http.get("/api/runs", headers={"Host": host})
            assert response.status_code == status


async def test_mounted_applications_get_the_caller_and_routers_answer_in_their_shape(
    guarded: Running,
) -> None:
    seen: list[Any] = []

    @asgi("/mounted", is_mount=True, copy_scope=True)
    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["user"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    @get("/hello")
    async def hello() -> str:
        return "hello"

    def own_shape(_: Any, error: NotAuthorizedException) -> Response[Any]:
        return Response({"message": error.detail}, status_code=401)

    own = Router(
        "/own",
        route_handlers=[hello],
        exception_handlers={NotAuthorizedException: own_shape},
    )
    app = Litestar(
        [mounted, own],
        middleware=[AuthMiddleware(needs_key=True, allowed_hosts=None)],
    )
    app.state.api_keys = guarded.inside.api_keys
    app.state.open_requests = guarded.inside.open_requests
    key = await _key(guarded)
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        assert (await client.get("/mounted/deep")).status_code == 401
        assert (await client.get("/mounted/deep", headers=bearer(key))).status_code == 204
        assert (await client.get("/own/hello", headers=bearer(key))).text == "hello"
        assert set((await client.get("/own/hello")).json()) == {"message"}
    assert [caller.owner for caller in seen] == [key.split("_")[1]]
