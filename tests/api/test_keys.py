"""`/api/keys`: admins manage keys; others, and services without keys, can't."""

import pytest

from app.access.api_keys import Role
from tests.runs.scripted import until
from tests.serving import Running, Serve


async def _as(service: Running, role: Role) -> dict[str, str]:
    """The headers of a new key."""
    key = await service.inside.api_keys.create("someone", role)
    return {"Authorization": f"Bearer {key}"}


async def test_a_key_is_created_used_limited_and_revoked(serve: Serve) -> None:
    async with serve(auth="keys") as service:
        admin = await _as(service, Role.ADMIN)
        body = {"name": "a team", "limits": {"runs_per_day": 1, "max_cost": 0.5}}
        response = await service.http.post("/api/keys", json=body, headers=admin)
        assert response.status_code == 201, response.text
        created = response.json()
        assert created["key"].startswith(f"cc_{created['id']}_")
        assert (created["name"], created["role"]) == ("a team", "user")
        assert created["limits"]["max_cost"] == 0.5
        assert created["limits"]["tokens_per_day"] is None
        team = {"Authorization": f"Bearer {created['key']}"}
        path = f"/api/keys/{created['id']}"
        unlimited = await service.http.put(
            f"{path}/limits", json={"runs_per_day": 2}, headers=admin
        )
        assert unlimited.json()["max_cost"] is None
        for status in (202, 202, 429):
            run = await service.http.post("/api/runs", json={"crew": "idea"}, headers=team)
            assert run.status_code == status, run.text
        await until(service.all_settled)
        text = (await service.http.get("/api/keys", headers=admin)).text
        assert created["key"].split("_", 2)[2] not in text
        listed = await service.http.get("/api/keys", headers=admin)
        (found,) = [key for key in listed.json()["keys"] if key["id"] == created["id"]]
        assert found["limits"]["runs_per_day"] == 2
        assert found["today"]["runs"] == 2
        assert found["today"]["calls"] == 6
        assert found["last_30_days"] == found["today"]
        assert found["revoked_at"] is None
        assert (await service.http.post(f"{path}/revoke", headers=admin)).status_code == 204
        assert (await service.http.get("/api/runs", headers=team)).status_code == 401
        listed = await service.http.get("/api/keys", headers=admin)
        assert all(key["revoked_at"] for key in listed.json()["keys"] if key["id"] == found["id"])


async def test_only_admins_manage_keys(serve: Serve) -> None:
    async with serve(auth="keys") as service:
        admin = await _as(service, Role.ADMIN)
        for role in (Role.USER, Role.METRICS):
            headers = await _as(service, role)
            for method, path, body in (
                ("GET", "/api/keys", None),
                ("POST", "/api/keys", {"name": "mine", "role": "admin"}),
                ("PUT", "/api/keys/1/limits", {}),
                ("POST", "/api/keys/1/revoke", None),
                ("GET", "/api/operations", None),
                ("GET", "/api/operations/events", None),
                ("POST", "/api/operations/sweep", None),
            ):
                response = await service.http.request(method, path, json=body, headers=headers)
                assert response.status_code == 403, path
        assert len((await service.http.get("/api/keys", headers=admin)).json()["keys"]) == 3
        for path in ("limits", "revoke"):
            method = "PUT" if path == "limits" else "POST"
            body = {} if path == "limits" else None
            response = await service.http.request(
                method, f"/api/keys/none/{path}", json=body, headers=admin
            )
            assert response.status_code == 404
            assert "none" in response.json()["error"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "x", "role": "root"}, "role"),
        ({"name": "x", "limits": {"runs_per_day": 0}}, "limits.runs_per_day"),
        ({"name": "x", "limits": {"max_cost": -1}}, "limits.max_cost"),
    ],
)
async def test_a_wrong_key_is_refused_by_field(
    serve: Serve, body: dict[str, object], field: str
) -> None:
    async with serve(auth="keys") as service:
        headers = await _as(service, Role.ADMIN)
        response = await service.http.post("/api/keys", json=body, headers=headers)
        assert response.status_code == 400
        assert response.json()["error"].startswith(f"{field}: ")


async def test_a_service_without_keys_creates_none(service: Running) -> None:
    """A caller of any kind could keep it until the service requires keys."""
    for method, path, body in (("GET", "", None), ("POST", "", {"name": "x", "role": "admin"})):
        response = await service.http.request(method, f"/api/keys{path}", json=body)
        assert response.status_code == 403
        assert "AUTH=off" in response.json()["error"]
    assert await service.inside.api_keys.all() == []
