"""`webhook_url` in `/api/runs`: who may be told, and what became of it."""

import asyncio
from typing import Any
from uuid import UUID

import pytest

from app.runs.persistence.queries import RunQueries
from tests.runs.receiver import SETTING, Receiver, fails_first, receiving
from tests.runs.scripted import until
from tests.servers import free_ports
from tests.serving import Running, Serve

ALLOWED: dict[str, Any] = {"webhook_secret": SETTING, "webhook_allow_private": True}


async def _start(service: Running, receiver: Receiver, **body: Any) -> str:
    body = {"crew": "idea", "webhook_url": receiver.url, **body}
    response = await service.http.post("/api/runs", json=body)
    assert response.status_code == 202, response.text
    run_id: str = response.json()["run_id"]
    return run_id


async def _delivered(service: Running, run_id: str) -> list[dict[str, Any]]:
    """The run's webhooks, once all four have arrived."""
    webhooks: list[dict[str, Any]] = []

    async def all_delivered() -> bool:
        nonlocal webhooks
        webhooks = (await service.http.get(f"/api/runs/{run_id}")).json()["webhooks"]
        return [webhook["status"] for webhook in webhooks] == ["delivered"] * 4

    await until(all_delivered, seconds=30)
    return webhooks


async def test_a_run_shows_the_deliveries_of_its_webhook(serve: Serve, database_url: str) -> None:
    async with receiving() as receiver, serve(database_url=database_url, **ALLOWED) as service:
        run_id = await _start(service, receiver)
        webhooks = await _delivered(service, run_id)
        run = (await service.http.get(f"/api/runs/{run_id}")).json()
    assert [webhook["event"] for webhook in webhooks] == ["task.finished"] * 3 + ["run.succeeded"]
    assert {webhook["id"] for webhook in webhooks} == set(receiver.ids)
    for webhook in webhooks:
        assert webhook["host"] == receiver.url.split("/")[2]
        assert (webhook["attempts"], webhook["last_result"]) == (1, "HTTP 204")
        assert webhook["created_at"] <= webhook["attempted_at"]
        assert webhook["next_attempt_at"] is None
    (end,) = (a.event["data"] for a in receiver.arrivals if a.type == "run.succeeded")
    assert end["outputs"] == run["outputs"]


async def test_a_receiver_that_fails_at_first_receives_soon_after(serve: Serve) -> None:
    async with receiving(fails_first(1)) as receiver, serve(**ALLOWED) as service:
        run_id = await _start(service, receiver)
        webhooks = await _delivered(service, run_id)
    assert {webhook["attempts"] for webhook in webhooks} == {2}


async def test_a_webhook_that_waits_says_why_and_until_when(serve: Serve) -> None:
    async with receiving(fails_first(100)) as receiver, serve(**ALLOWED) as service:
        run_id = await _start(service, receiver)
        webhooks: list[dict[str, Any]] = []

        async def all_attempted() -> bool:
            nonlocal webhooks
            webhooks = (await service.http.get(f"/api/runs/{run_id}")).json()["webhooks"]
            return [webhook["last_result"] for webhook in webhooks] == ["HTTP 503"] * 4

        await until(all_attempted)
        assert {webhook["status"] for webhook in webhooks} == {"pending"}
        assert all(webhook["next_attempt_at"] for webhook in webhooks)


async def test_a_batch_reports_all_its_runs(serve: Serve) -> None:
    async with receiving() as receiver, serve(**ALLOWED) as service:
        body = {"crew": "idea", "inputs": [{}] * 20, "webhook_url": receiver.url}
        run_ids = (await service.http.post("/api/runs/batch", json=body)).json()["run_ids"]
        await asyncio.gather(*(_delivered(service, run_id) for run_id in run_ids))
    ended = [a.event["data"]["run_id"] for a in receiver.arrivals if a.type == "run.succeeded"]
    assert sorted(ended) == sorted(run_ids)


async def test_the_next_process_delivers_what_the_last_one_left(
    serve: Serve, database_url: str
) -> None:
    (port,) = free_ports(1)
    unreachable = Receiver(f"http://127.0.0.1:{port}/hook")
    async with serve(database_url=database_url, **ALLOWED) as service:
        run_id = await _start(service, unreachable)

        async def all_attempted() -> bool:
            run = (await service.http.get(f"/api/runs/{run_id}")).json()
            return [w["last_result"] for w in run["webhooks"]] == ["no connection"] * 4

        await until(all_attempted)
    async with (
        receiving(port=port) as receiver,
        serve(database_url=database_url, **ALLOWED) as service,
    ):
        await _delivered(service, run_id)
    assert sorted(receiver.types) == ["run.succeeded", *["task.finished"] * 3]


async def test_a_run_without_a_webhook_shows_none(serve: Serve) -> None:
    async with serve(**ALLOWED) as service:
        response = await service.http.post("/api/runs", json={"crew": "idea"})
        assert response.json()["webhooks"] == []


async def test_deleting_a_run_deletes_its_webhooks(serve: Serve) -> None:
    async with receiving() as receiver, serve(**ALLOWED) as service:
        run_id = await _start(service, receiver)
        await _delivered(service, run_id)
        assert (await service.http.delete(f"/api/runs/{run_id}")).status_code == 204
        assert await RunQueries(service.inside.database).deliveries(UUID(run_id)) == []


async def test_another_webhook_is_another_request(serve: Serve) -> None:
    async with receiving() as receiver, serve(**ALLOWED) as service:
        headers = {"Idempotency-Key": "order-19"}
        answers = []
        for url in (receiver.url, receiver.url, f"{receiver.url}/2"):
            body = {"crew": "idea", "webhook_url": url}
            answers.append(await service.http.post("/api/runs", json=body, headers=headers))
        assert [answer.status_code for answer in answers] == [202, 202, 409]


@pytest.mark.parametrize(
    ("values", "url", "problem"),
    [
        ({}, "https://8.8.8.8/", "WEBHOOK_SECRET is not set"),
        ({"webhook_secret": SETTING}, "http://127.0.0.1:8000/", "private network"),
        ({"webhook_secret": SETTING}, "http://localhost/", "private network"),
        ({"webhook_secret": SETTING}, "http://169.254.169.254/latest/", "private network"),
        (ALLOWED, "ftp://example.com/", "must start with http:// or https://"),
    ],
)
@pytest.mark.parametrize("path", ["", "/batch"])
async def test_a_forbidden_webhook_is_refused_with_its_runs(
    serve: Serve, values: dict[str, Any], url: str, problem: str, path: str
) -> None:
    body = {"crew": "idea", "inputs": [{}] if path else {}, "webhook_url": url}
    async with serve(**values) as service:
        response = await service.http.post(f"/api/runs{path}", json=body)
        assert response.status_code == 400
        assert response.json()["error_type"] == "invalid_input"
        assert response.json()["error"].startswith("webhook_url: ")
        assert problem in response.json()["error"]
        assert await service.rows() == []


async def test_neither_secret_nor_url_is_shown(serve: Serve) -> None:
    async with receiving() as receiver, serve(**ALLOWED) as service:
        run_id = await _start(service, receiver, webhook_url=f"{receiver.url}?token=hush")
        await _delivered(service, run_id)
        shown = [
            (await service.http.get(path)).text
            for path in (f"/api/runs/{run_id}", f"/api/runs/{run_id}/events", "/api/runs")
        ]
    assert "hush" not in "".join(shown)
    assert SETTING not in "".join(shown)
