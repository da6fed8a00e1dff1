"""`/api/schedules` over HTTP: fields, access, and the runs that schedules submit."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from app.access.api_keys import Role
from app.schedules.models import ScheduleRow
from tests.runs.scripted import until
from tests.serving import Running, Serve

DAILY = {"crew": "idea", "cron": "30 9 * * *", "time_zone": "Europe/Berlin", "name": "ideas"}


async def _create(service: Running, **fields: Any) -> Any:
    response = await service.http.post("/api/schedules", json={**DAILY, **fields})
    assert response.status_code == 201, response.text
    assert response.headers["Location"] == f"/api/schedules/{response.json()['schedule_id']}"
    return response.json()


async def test_a_schedule_is_created_shown_changed_paused_and_deleted(service: Running) -> None:
    created = await _create(service, inputs={"interest_area": "Food"}, priority=2)
    path = f"/api/schedules/{created['schedule_id']}"
    assert (await service.http.get(path)).json() == created
    assert created["description"] == "At 09:30 every day"
    assert (created["misfire"], created["overlap"]) == ("run_once", "skip")
    assert created["next_due"][11:16] in ("07:30", "08:30")
    times = (await service.http.get(f"{path}/times?count=3")).json()["times"]
    assert times[0] == created["next_due"]
    assert times == sorted(times)
    assert len(times) == 3

    body = {"cron": "0 * * * *", "time_zone": "UTC", "overlap": "queue"}
    changed = (await service.http.patch(path, json=body)).json()
    assert changed["next_due"][14:16] == "00"
    assert (changed["overlap"], changed["inputs"]) == ("queue", {"interest_area": "Food"})
    paused = (await service.http.post(f"{path}/pause")).json()
    assert (paused["paused"], paused["next_due"]) == (True, None)
    assert len((await service.http.get(f"{path}/times")).json()["times"]) == 10
    resumed = (await service.http.post(f"{path}/resume")).json()
    assert not resumed["paused"]
    assert resumed["next_due"] is not None

    (listed,) = (await service.http.get("/api/schedules")).json()["schedules"]
    assert listed == resumed
    assert (await service.http.delete(path)).status_code == 204
    assert (await service.http.get(path)).status_code == 404


async def test_a_due_schedule_and_a_request_submit_runs(service: Running) -> None:
    created = await _create(service, metadata={"a": "b"})
    path, now = f"/api/schedules/{created['schedule_id']}", service.inside.database.clock.now()
    async with service.inside.database.write() as connection:
        await connection.execute(update(ScheduleRow).values(next_due=now))
    service.inside.background[-1].wake()
    await until(lambda: _has_run(service))
    await until(service.all_settled)
    requested = await service.http.post(f"{path}/run")
    assert requested.status_code == 202
    assert requested.headers["Location"] == f"/api/runs/{requested.json()['run_id']}"
    assert requested.json()["due_at"] is None
    after = (await service.http.get(path)).json()
    assert after["next_due"] == created["next_due"]
    assert datetime.fromisoformat(after["last_due"]) == now
    runs = (await service.http.get(after["runs_path"])).json()["runs"]
    assert [run["schedule_id"] for run in runs] == [created["schedule_id"]] * 2
    assert [run["metadata"] for run in runs] == [{"a": "b"}] * 2
    assert datetime.fromisoformat(runs[1]["due_at"]) == now
    await until(service.all_settled)


async def _has_run(service: Running) -> bool:
    return bool(await service.rows())


@pytest.fixture
async def with_keys(serve: Serve) -> AsyncIterator[Running]:
    async with serve(auth="keys") as service:
        yield service


async def test_each_key_sees_its_own_and_admins_see_all(with_keys: Running) -> None:
    http, keys = with_keys.http, with_keys.inside.api_keys
    anna, ben, admin = [
        {"Authorization": f"Bearer {await keys.create(name, role)}"}
        for name, role in (("anna", Role.USER), ("ben", Role.USER), ("admin", Role.ADMIN))
    ]
    created = (await http.post("/api/schedules", json=DAILY, headers=anna)).json()
    path = f"/api/schedules/{created['schedule_id']}"
    assert (await http.get("/api/schedules", headers=ben)).json()["schedules"] == []
    for method, end in (("GET", ""), ("GET", "/times"), ("POST", "/run"), ("POST", "/pause")):
        assert (await http.request(method, path + end, headers=ben)).status_code == 404
    assert (await http.patch(path, json={"name": "x"}, headers=ben)).status_code == 404
    assert (await http.delete(path, headers=ben)).status_code == 404
    assert (await http.get(path)).status_code == 401
    for one in (anna, admin):
        assert (await http.get("/api/schedules", headers=one)).json()["schedules"] == [created]
    run = (await http.post(f"{path}/run", headers=admin)).json()
    assert (await http.get(f"/api/runs/{run['run_id']}", headers=anna)).status_code == 200
    for key in await keys.all():
        if key.name == "anna":
            await keys.revoke(key.key_id)
    gone = await http.post(f"{path}/run", headers=admin)
    assert gone.status_code == 409
    assert "is revoked" in gone.json()["error"]
    await until(with_keys.all_settled)


@pytest.mark.parametrize(
    ("fields", "status_code", "error"),
    [
        ({"cron": "every day"}, 400, "cron: must have five fields"),
        ({"time_zone": "Berlin"}, 400, "time_zone: no name of a time zone"),
        ({"misfire": "never"}, 400, "misfire"),
        ({"crew": "nothing"}, 404, "no crew is named nothing"),
        ({"inputs": {"color": "red"}}, 400, "color: the crew idea has no such input"),
        ({"priority": 1000}, 400, "priority"),
        ({"colour": "red"}, 400, "colour"),
        ({"webhook_url": "http://a.example/"}, 400, "webhook_url: webhooks are off"),
    ],
)
async def test_wrong_fields_are_refused_by_name(
    service: Running, fields: dict[str, Any], status_code: int, error: str
) -> None:
    response = await service.http.post("/api/schedules", json={**DAILY, **fields})
    assert response.status_code == status_code
    assert error in response.json()["error"]


async def test_times_that_are_due_soon_are_in_the_future(service: Running) -> None:
    created = await _create(service, cron="* * * * *", paused=True)
    assert created["next_due"] is None
    times = await service.http.get(f"/api/schedules/{created['schedule_id']}/times?count=100")
    found = [datetime.fromisoformat(text) for text in times.json()["times"]]
    assert found[0] > service.inside.database.clock.now() - timedelta(minutes=1)
    assert len(found) == 100


async def test_an_end_users_schedules_are_its_own_and_so_are_their_runs(
    with_keys: Running,
) -> None:
    http, key = with_keys.http, await with_keys.inside.api_keys.create("shop", Role.USER)
    anna, ben, shop = [
        {"Authorization": f"Bearer {key}", **({"X-End-User": name} if name else {})}
        for name in ("anna", "ben", "")
    ]
    created = (await http.post("/api/schedules", json=DAILY, headers=anna)).json()
    path = f"/api/schedules/{created['schedule_id']}"
    assert (await http.get(path, headers=ben)).status_code == 404
    assert (await http.get("/api/schedules", headers=ben)).json()["schedules"] == []
    for one in (anna, shop):
        assert (await http.get("/api/schedules", headers=one)).json()["schedules"] == [created]
    run = (await http.post(f"{path}/run", headers=shop)).json()
    assert run["user"] == "anna"
    await until(with_keys.all_settled)
