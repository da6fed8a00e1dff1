"""Limits of a caller: requests, runs in flight, runs and tokens of a day."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from app.access.api_keys import Role
from app.crews.registry import Registry, load_crews
from app.runs.models import CallerUsage, UserRun
from app.settings import load_settings
from tests.runs.scripted import until
from tests.serving import Running, Serve

FIELDS = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


def _crews_behind(gate: threading.Event) -> Registry:
    """The idea crew, with a model that answers when the gate is open."""
    spec = load_crews(load_settings()).get("idea")
    assert spec is not None

    def answer(prompt: str) -> str:
        assert gate.wait(20)
        return "a thought"

    return Registry([replace(spec, offline_answer=answer)])


async def _start(service: Running, key: str | None = None, **more: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    headers |= more.pop("headers", {})
    return await service.http.post("/api/runs", json={"crew": "idea", **more}, headers=headers)


async def _key(service: Running, **quota: int) -> str:
    key: str = await service.inside.api_keys.create("a team", Role.USER, **quota)
    return key


def _refused(response: httpx.Response) -> int:
    """For how many seconds a request is refused."""
    assert response.status_code == 429, response.text
    assert response.json()["error_type"] == "too_many_requests"
    assert response.headers["RateLimit-Remaining"] == "0"
    assert response.headers["RateLimit-Reset"] == response.headers["Retry-After"]
    return int(response.headers["Retry-After"])


@pytest.fixture
async def two(serve: Serve, database_url: str) -> AsyncIterator[Callable[..., Any]]:
    """Two processes' worth of services that share a database."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> tuple[Running, Running]:
            settings |= {"database_url": database_url}
            first = await stack.enter_async_context(serve(**settings))
            return first, await stack.enter_async_context(serve(**settings))

        yield start


async def test_without_limits_no_response_has_limit_headers(service: Running) -> None:
    response = await _start(service)
    assert response.status_code == 202
    assert not any(field in response.headers for field in FIELDS)
    async with service.inside.database.read() as connection:
        assert list(await connection.execute(select(CallerUsage))) == []
        assert await connection.scalar(select(UserRun.address)) is None


async def test_requests_are_counted_by_all_processes_together(two: Callable[..., Any]) -> None:
    services = await two(rate_limit="40/hour")
    responses = await asyncio.gather(
        *(services[index % 2].http.get("/api/runs") for index in range(60))
    )
    assert Counter(r.status_code for r in responses) == {200: 40, 429: 20}
    left = sorted(int(r.headers["RateLimit-Remaining"]) for r in responses if r.status_code == 200)
    assert left == list(range(40))
    for response in responses:
        assert response.headers["RateLimit-Limit"] == "40"
        assert 1 <= int(response.headers["RateLimit-Reset"]) <= 3600
        if response.status_code == 429:
            assert _refused(response) <= 3600
        else:
            assert "Retry-After" not in response.headers
    for service in services:
        assert (await service.http.get("/health/live")).status_code == 200


async def test_every_response_reports_what_is_left(serve: Serve) -> None:
    async with serve(rate_limit="1000/hour;5000/day") as service:
        run_id = (await _start(service)).json()["run_id"]
        for method, path, status in (
            ("GET", f"/api/runs/{run_id}", 200),
            ("GET", f"/api/runs/{run_id}/events", 200),
            ("GET", "/api/runs/00000000-0000-0000-0000-000000000007", 404),
            ("GET", "/api/runs?limit=0", 400),
            ("POST", "/api/run", 400),
        ):
            response = await service.http.request(method, path)
            assert response.status_code == status
            assert [response.headers.get(field) is not None for field in FIELDS] == [True] * 3
            assert response.headers["RateLimit-Limit"] == "1000"  # closer to its end


async def test_the_longest_exceeded_limit_says_when_to_come_again(serve: Serve) -> None:
    async with serve(rate_limit="2/hour;1/2hour") as service:
        assert (await service.http.get("/api/runs")).status_code == 200
        seconds = _refused(await service.http.get("/api/runs"))
        assert _refused(await service.http.get("/api/runs")) <= seconds
        now = datetime.now(UTC).timestamp()
        assert abs(seconds - (7200 - now % 7200)) < 10


async def test_requests_are_counted_by_key_wherever_they_come_from(serve: Serve) -> None:
    async with serve(auth="keys", rate_limit="5/hour") as service:
        anna, berta = await _key(service), await _key(service)

        async def request(key: str, address: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {key}", "X-Forwarded-For": address}
            return await service.http.get("/api/runs", headers=headers)

        responses = [await request(anna, f"10.0.0.{n}") for n in range(7)]
        assert [response.status_code for response in responses] == [200] * 5 + [429] * 2
        _refused(responses[-1])
        assert (await request(berta, "10.0.0.200")).status_code == 200


async def test_wrong_keys_are_counted_by_their_address(serve: Serve) -> None:
    async with serve(auth="keys", rate_limit="5/hour") as service:
        wrong = {"Authorization": "Bearer cc_no_no"}
        statuses = [
            (await service.http.get("/api/runs", headers=wrong)).status_code for _ in range(7)
        ]
        assert statuses == [401] * 5 + [429] * 2
        key = await _key(service)
        elsewhere = {"Authorization": f"Bearer {key}", "X-Forwarded-For": "10.1.2.3"}
        assert (await service.http.get("/api/runs", headers=elsewhere)).status_code == 200


async def test_runs_in_flight_are_counted_by_all_processes_together(
    two: Callable[..., Any], gate: threading.Event
) -> None:
    services = await two(
        crews=_crews_behind(gate), engine="stock", auth="keys", max_runs_per_caller=6
    )
    anna, berta = await _key(services[0]), await _key(services[0])

    async def start(index: int, key: str, address: str) -> httpx.Response:
        return await _start(services[index % 2], key, headers={"X-Forwarded-For": address})

    responses = await asyncio.gather(*(start(n, anna, f"10.0.0.{n}") for n in range(16)))
    assert Counter(r.status_code for r in responses) == {202: 6, 429: 10}
    for response in responses:
        if response.status_code == 429:
            assert _refused(response) >= 1
    # Another key has its own, and shares its address with other callers.
    responses = await asyncio.gather(*(start(n, berta, "10.9.9.9") for n in range(10)))
    assert Counter(r.status_code for r in responses) == {202: 6, 429: 4}
    carla = await _key(services[0])
    assert (await start(0, carla, "10.9.9.9")).status_code == 429
    assert (await start(0, carla, "10.9.9.8")).status_code == 202
    gate.set()

    async def all_settled() -> bool:
        return {row.status for row in await services[0].rows()} == {"succeeded"}

    await until(all_settled, seconds=60)
    assert (await start(0, anna, "10.0.0.1")).status_code == 202
    await until(all_settled, seconds=60)
    assert {row.address for row in await services[0].rows()} == {None}


async def test_a_batch_is_refused_whole(serve: Serve, database_url: str) -> None:
    async with serve(runs_per_day=5, database_url=database_url) as service:
        body = {"crew": "idea", "inputs": [{}] * 3}
        first = await service.http.post("/api/runs/batch", json=body)
        second = await service.http.post("/api/runs/batch", json=body)
        assert first.status_code == 202
        assert _refused(second) <= 86_400
        assert len(await service.rows()) == 3
        assert (await service.http.post("/api/run", json={})).status_code == 200
        assert (await _start(service)).status_code == 202
        refused = await _start(service)
        assert "5 runs" in refused.json()["error"]
        midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0) + timedelta(days=1)
        assert abs(_refused(refused) - (midnight - datetime.now(UTC)).total_seconds()) < 10
        # A new day.
        async with service.inside.database.write() as connection:
            yesterday = (datetime.now(UTC) - timedelta(days=1)).date()
            await connection.execute(update(CallerUsage).values(day=yesterday))
        assert (await _start(service)).status_code == 202


async def test_deleting_runs_gives_no_quota_back(serve: Serve) -> None:
    async with serve(runs_per_day=1) as service:
        run_id = (await service.http.post("/api/run", json={})).json()["run_id"]
        assert (await service.http.delete(f"/api/runs/{run_id}")).status_code == 204
        assert _refused(await _start(service))


async def test_a_repeat_of_an_accepted_request_costs_nothing(
    serve: Serve, database_url: str
) -> None:
    async with serve(runs_per_day=2, max_runs_per_caller=2, database_url=database_url) as service:
        repeat = {"Idempotency-Key": "order-1"}
        ids = {(await _start(service, headers=repeat)).json()["run_id"] for _ in range(5)}
        assert len(ids) == 1
        assert (await _start(service)).status_code == 202
        assert _refused(await _start(service))
        assert (await _start(service, headers=repeat)).json()["run_id"] in ids


async def test_a_key_may_have_a_quota_of_its_own(serve: Serve) -> None:
    async with serve(auth="keys", runs_per_day=3) as service:
        for quota, allowed in (({}, 3), ({"runs_per_day": 1}, 1), ({"runs_per_day": 5}, 5)):
            key = await _key(service, **quota)
            statuses = [(await _start(service, key)).status_code for _ in range(6)]
            assert statuses == [202] * allowed + [429] * (6 - allowed)


async def test_a_key_may_have_a_quota_where_others_have_none(serve: Serve) -> None:
    async with serve(auth="keys") as service:
        limited, free = await _key(service, runs_per_day=1), await _key(service)
        assert [(await _start(service, limited)).status_code for _ in range(2)] == [202, 429]
        assert [(await _start(service, free)).status_code for _ in range(2)] == [202, 202]
