"""End users behind one API key: whose run it is, by the client's own id."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.access.api_keys import Role
from tests.load.stub_model import StubModel, run_stub
from tests.serving import Running, Serve


@pytest.fixture
async def guarded(serve: Serve, database_url: str) -> AsyncIterator[Running]:
    """A service that requires keys, on each kind of database."""
    async with serve(auth="keys", database_url=database_url) as service:
        yield service


async def _key(service: Running, role: Role = Role.USER) -> dict[str, str]:
    return {"Authorization": f"Bearer {await service.inside.api_keys.create('app', role)}"}


def _for(key: dict[str, str], user: str) -> dict[str, str]:
    return {**key, "X-End-User": user}


async def _submit(service: Running, headers: dict[str, str], **body: Any) -> httpx.Response:
    return await service.http.post("/api/runs", json={"crew": "idea", **body}, headers=headers)


async def _users(service: Running, path: str, headers: dict[str, str]) -> list[str | None]:
    response = await service.http.get(path, headers=headers)
    assert response.status_code == 200, response.text
    return [run["user"] for run in response.json()["runs"]]


async def test_an_end_user_sees_its_own_runs_and_the_key_all_of_them(guarded: Running) -> None:
    key, other, admin = await _key(guarded), await _key(guarded), await _key(guarded, Role.ADMIN)
    anna = (await _submit(guarded, _for(key, "anna"))).json()
    berta = (await _submit(guarded, key, user="berta")).json()
    await _submit(guarded, _for(other, "anna"))
    unnamed = (await _submit(guarded, key)).json()
    assert (anna["user"], berta["user"], unnamed["user"]) == ("anna", "berta", None)

    assert await _users(guarded, "/api/runs", _for(key, "anna")) == ["anna"]
    assert await _users(guarded, "/api/runs", _for(key, "berta")) == ["berta"]
    assert await _users(guarded, "/api/runs", _for(key, "eve")) == []
    assert await _users(guarded, "/api/runs", key) == [None, "berta", "anna"]
    assert len(await _users(guarded, "/api/runs", admin)) == 4
    assert await _users(guarded, "/api/runs", _for(admin, "anna")) == []  # not the admin key's own

    path = f"/api/runs/{anna['run_id']}"
    for use in ("", "/events", "/calls"):
        assert (await guarded.http.get(path + use, headers=_for(key, "berta"))).status_code == 404
    for use in ("/cancel", "/retry"):
        response = await guarded.http.post(path + use, headers=_for(key, "berta"))
        assert response.status_code == 404
    assert (await guarded.http.get(path, headers=_for(key, "anna"))).status_code == 200
    assert (await guarded.http.get(path, headers=key)).status_code == 200


async def test_a_batch_is_of_its_end_user(guarded: Running) -> None:
    key = await _key(guarded)
    body = {"crew": "idea", "inputs": [{}, {}], "user": "anna"}
    batch = (await guarded.http.post("/api/runs/batch", json=body, headers=key)).json()
    path = f"/api/batches/{batch['batch_id']}"
    for headers, status, count in ((_for(key, "anna"), 200, 1), (_for(key, "eve"), 404, 0)):
        assert (await guarded.http.get(path, headers=headers)).status_code == status
        listed = await guarded.http.get("/api/batches", headers=headers)
        assert len(listed.json()["batches"]) == count
    assert await _users(guarded, "/api/runs", _for(key, "anna")) == ["anna", "anna"]


async def test_an_idempotency_key_gives_no_end_user_the_run_of_another(guarded: Running) -> None:
    key = {**await _key(guarded), "Idempotency-Key": "order-1"}
    first = await _submit(guarded, _for(key, "anna"))
    assert (await _submit(guarded, _for(key, "anna"))).json()["run_id"] == first.json()["run_id"]
    assert (await _submit(guarded, _for(key, "berta"))).status_code == 409


@pytest.mark.parametrize(
    ("header", "body", "field"),
    [
        (b"", {}, "X-End-User"),
        (b"\xff", {}, "X-End-User"),
        (b"x" * 201, {}, "X-End-User"),
        (b"anna", {"user": "berta"}, "user"),
        (None, {"user": ""}, "user"),
        (None, {"user": "a\nb"}, "user"),
        (None, {"user": 7}, "user"),
    ],
)
async def test_a_wrong_end_user_is_refused_by_name(
    service: Running, header: bytes | None, body: dict[str, Any], field: str
) -> None:
    headers = [] if header is None else [(b"X-End-User", header)]
    response = await service.http.post("/api/runs", json={"crew": "idea", **body}, headers=headers)
    assert response.status_code == 400
    assert field in response.text
    assert await service.rows() == []


async def test_an_end_user_has_limits_within_those_of_the_key(serve: Serve) -> None:
    stub = StubModel(delay_seconds=60)
    limits = {"max_runs_per_end_user": 2, "max_runs_per_caller": 3}
    async with (
        run_stub(stub) as url,
        serve(auth="keys", llm_model="openai/stub", llm_base_url=url, **limits) as service,
    ):
        key = await _key(service)
        accepted = [await _submit(service, _for(key, "anna")) for _ in range(2)]
        assert [response.status_code for response in accepted] == [202, 202]
        refused = await _submit(service, _for(key, "anna"))
        assert refused.status_code == 429
        assert "an end user" in refused.text
        assert (await _submit(service, _for(key, "berta"))).status_code == 202
        assert "a caller" in (await _submit(service, _for(key, "eve"))).text
        path = f"/api/runs/{accepted[0].json()['run_id']}/cancel"
        assert (await service.http.post(path, headers=_for(key, "anna"))).status_code == 200
        assert (await _submit(service, _for(key, "anna"))).status_code == 202


async def test_runs_of_a_day_are_counted_for_each_end_user(serve: Serve) -> None:
    async with serve(auth="keys", runs_per_day_per_end_user=1) as service:
        key, other = await _key(service), await _key(service)
        for headers in (_for(key, "anna"), _for(key, "berta"), _for(other, "anna"), key, key):
            assert (await _submit(service, headers)).status_code == 202
        refused = await _submit(service, _for(key, "anna"))
        assert refused.status_code == 429
        assert "1 runs of an end user" in refused.text
