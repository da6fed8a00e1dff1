"""Runs that wait for a human: they hold nothing, survive everything, and go on when told to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.callers import OPERATOR
from app.commands import sweep_by_hand
from app.runs.maintenance.retention import purge
from app.runs.models import UserRun
from app.runs.persistence.queries import RunQueries
from tests.api.crews import LETTER, Letters
from tests.runs.receiver import SETTING, receiving
from tests.runs.scripted import until
from tests.serving import MakeSettings, Running, Serve


async def _start(service: Running, **body: Any) -> str:
    answer = await service.http.post("/api/runs", json={"crew": "letter", "inputs": LETTER, **body})
    assert answer.status_code == 202, answer.text
    run_id: str = answer.json()["run_id"]
    return run_id


async def _get(service: Running, run_id: str) -> dict[str, Any]:
    run: dict[str, Any] = (await service.http.get(f"/api/runs/{run_id}")).json()
    return run


async def _until(service: Running, run_id: str, status: str) -> dict[str, Any]:
    async def reached() -> bool:
        run = await _get(service, run_id)
        assert run["status"] == status or run["status"] not in ("failed", "succeeded"), run
        return bool(run["status"] == status)

    await until(reached, seconds=30)
    return await _get(service, run_id)


async def _let_go(service: Running) -> None:
    """Wait until this process carries nothing more: what it commits is seen before."""

    async def empty() -> bool:
        return len(service.inside.worker) == 0

    await until(empty)


async def _waiting(service: Running) -> str:
    run_id = await _start(service)
    await _until(service, run_id, "awaiting_human")
    return run_id


async def _resume(service: Running, run_id: str, **answer: Any) -> Any:
    body = {"task": "draft", "approve": True, **answer}
    return await service.http.post(f"/api/runs/{run_id}/resume", json=body)


async def _event_types(service: Running, run_id: str) -> list[str]:
    return [
        event.type for event in await RunQueries(service.inside.database).events([UUID(run_id)])
    ]


async def test_a_run_waits_with_its_output_and_holds_nothing(
    serve: Serve, letters: Letters, database_url: str
) -> None:
    async with serve(letters.crews, database_url=database_url) as service:
        run_id = await _waiting(service)
        run = await _get(service, run_id)
        assert run["awaiting"] == {
            "task": "draft",
            "output": "text 1",
            "agent": "Letter writer",
            "since": run["awaiting"]["since"],
        }
        assert run["awaiting"]["since"] >= run["started_at"]
        assert [task["status"] for task in run["tasks"]] == ["awaiting_human", "pending"]
        await _let_go(service)
        (row,) = await service.rows()
        assert row.lease_until is None
        assert (await _resume(service, run_id)).status_code == 200
        run = await _until(service, run_id, "succeeded")
        await _let_go(service)
        assert run["outputs"] == {"draft": "text 1", "translation": "text 2"}
        assert run["awaiting"] is None
        assert len(letters.prompts) == 2
        assert [task["replayed"] for task in run["tasks"]] == [True, False]
        assert await service.stored() == 0
        assert await _event_types(service, run_id) == [
            "run.queued",
            "run.running",
            "task.started",
            "task.finished",
            "run.awaiting_human",
            "run.resumed",
            "run.running",
            "task.started",
            "task.finished",
            "run.succeeded",
        ]


async def test_a_restart_between_pause_and_resume_changes_nothing(
    serve: Serve, letters: Letters, database_url: str
) -> None:
    """Not even where outputs were kept in memory: the row has all that is needed."""
    options: dict[str, Any] = {"database_url": database_url, "temp_backend": "memory"}
    async with serve(letters.crews, **options) as service:
        run_id = await _waiting(service)
    async with serve(letters.crews, **options) as service:
        assert (await _get(service, run_id))["awaiting"]["output"] == "text 1"
        assert (await _resume(service, run_id)).status_code == 200
        run = await _until(service, run_id, "succeeded")
    assert run["outputs"] == {"draft": "text 1", "translation": "text 2"}
    assert len(letters.prompts) == 2


async def test_an_output_that_was_not_approved_is_made_again_and_reviewed_again(
    serve: Serve, letters: Letters
) -> None:
    async with serve(letters.crews) as service:
        run_id = await _waiting(service)
        for turn in range(2, 6):
            answer = await _resume(service, run_id, approve=False, feedback=f"wrong {turn}")
            assert answer.status_code == 200
            run = await _until(service, run_id, "awaiting_human")
            assert run["awaiting"]["output"] == f"text {turn}"
            assert f"wrong {turn}" in letters.prompts[-1]
        # More pauses than MAX_ATTEMPTS allows a run to be lost.
        assert (run["attempt"], len(letters.prompts)) == (5, 5)
        await _resume(service, run_id, feedback="mind the tone")
        run = await _until(service, run_id, "succeeded")
        await _let_go(service)
        assert run["outputs"] == {"draft": "text 5", "translation": "text 6"}
        assert "mind the tone" in letters.prompts[-1]
        assert "wrong" not in letters.prompts[-1]
        assert await service.stored() == 0


async def test_of_two_answers_at_once_one_counts(
    serve: Serve, letters: Letters, database_url: str
) -> None:
    async with (
        serve(letters.crews, database_url=database_url) as one,
        serve(letters.crews, database_url=database_url) as other,
    ):
        run_id = await _waiting(one)
        answers = await asyncio.gather(
            *(
                _resume(service, run_id, feedback=f"said {number}")
                for number, service in enumerate([one, other, one, other])
            )
        )
        assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]
        await _until(one, run_id, "succeeded")
        assert (await _event_types(one, run_id)).count("run.resumed") == 1
    said = str([answer.status_code for answer in answers].index(200))
    assert f"said {said}" in letters.prompts[-1]
    assert len(letters.prompts) == 2


async def test_a_review_that_no_run_awaits_is_refused(serve: Serve, letters: Letters) -> None:
    async with serve(letters.crews) as service:
        run_id = await _waiting(service)
        answer = await _resume(service, run_id, task="translation")
        assert (answer.status_code, answer.json()["error_type"]) == (400, "not_awaiting_human")
        assert "it waits about draft" in answer.json()["error"]
        answer = await _resume(service, run_id, feedback="\0")
        assert (answer.status_code, answer.json()["error_type"]) == (400, "invalid_input")
        await _resume(service, run_id)
        await _until(service, run_id, "succeeded")
        answer = await _resume(service, run_id)
        assert (answer.status_code, answer.json()["error_type"]) == (400, "not_awaiting_human")
        unknown = await _resume(service, str(UUID(int=0)))
        assert unknown.status_code == 404


async def test_runs_that_await_a_human_hold_no_slot(serve: Serve, letters: Letters) -> None:
    async with serve(letters.crews, max_runs_in_flight=1, max_runs_queued=200) as service:
        body = {"crew": "letter", "inputs": [LETTER] * 100}
        run_ids = (await service.http.post("/api/runs/batch", json=body)).json()["run_ids"]

        async def all_wait() -> bool:
            query = {"status": "awaiting_human", "limit": "200"}
            return len((await service.http.get("/api/runs", params=query)).json()["runs"]) == 100

        await until(all_wait, seconds=60)
        await _let_go(service)
        last = await _start(service)
        await _until(service, last, "awaiting_human")
        await _resume(service, run_ids[50])
        await _until(service, run_ids[50], "succeeded")


async def test_a_waiting_run_can_be_cancelled_and_then_deleted(
    serve: Serve, letters: Letters
) -> None:
    async with serve(letters.crews) as service:
        run_id = await _waiting(service)
        assert await service.stored() == 1
        assert (await service.http.delete(f"/api/runs/{run_id}")).status_code == 409
        cancelled = (await service.http.post(f"/api/runs/{run_id}/cancel")).json()
        assert (cancelled["status"], cancelled["awaiting"]) == ("cancelled", None)
        assert await service.stored() == 0
        assert (await _resume(service, run_id)).status_code == 400
        assert (await service.http.delete(f"/api/runs/{run_id}")).status_code == 204
        assert await service.rows() == []


async def test_a_run_that_awaits_a_human_is_neither_swept_nor_purged_nor_claimed(
    serve: Serve, settings: MakeSettings, letters: Letters
) -> None:
    async with serve(letters.crews, lease_seconds=10) as service:
        run_id = await _waiting(service)
        report = await sweep_by_hand(settings(), 1e-9)
        assert report.kept == 1
        assert await service.stored() == 1
        assert await purge(service.inside.database, timedelta(0)) == 0
        assert await RunQueries(service.inside.database).stalled(["letter"], 10) == []
        # Even what the operator removes by force is not needed.
        await sweep_by_hand(settings(), 0)
        assert await service.stored() == 0
        await _resume(service, run_id)
        run = await _until(service, run_id, "succeeded")
        assert run["outputs"]["draft"] == "text 1"


async def test_waiting_does_not_count_as_running_time(serve: Serve, letters: Letters) -> None:
    async with serve(letters.crews, run_timeout_seconds=5) as service:
        run_id = await _waiting(service)
        async with service.inside.database.write() as connection, AsyncSession(connection) as s:
            run = (await s.scalars(select(UserRun))).one()
            assert run.started_at is not None
            run.created_at -= timedelta(days=9)
            run.started_at -= timedelta(days=9)
            await s.flush()
        await _resume(service, run_id)
        await _until(service, run_id, "succeeded")


async def test_watchers_stay_while_a_run_waits(serve: Serve, letters: Letters) -> None:
    async with serve(letters.crews) as service:
        run_id = UUID(await _waiting(service))
        types: list[str] = []
        events = service.inside.runs.subscribe(run_id, OPERATOR, after_seq=-1, heartbeat_seconds=20)
        async for happened in events:
            for event in happened:
                types.append(event.type)
                if event.type == "run.awaiting_human":
                    assert event.data["output"] == "text 1"
                    await _resume(service, str(run_id))
        assert types[-1] == "run.succeeded"


async def test_following_a_run_ends_where_it_waits_now(serve: Serve, letters: Letters) -> None:
    async with serve(letters.crews) as service:
        run_id = await _waiting(service)

        async def followed() -> list[str]:
            events = service.inside.runs.follow(UUID(run_id), OPERATOR)
            return [event.type async for event in events]

        attempt = ["run.running", "task.started", "task.finished"]
        assert await followed() == ["run.queued", *attempt]
        await _resume(service, run_id)
        await _until(service, run_id, "succeeded")
        # What was answered ends nothing.
        assert await followed() == [
            "run.queued",
            *attempt,
            "run.resumed",
            *attempt,
            "run.succeeded",
        ]


@asynccontextmanager
async def _with_receiver(serve: Serve, letters: Letters) -> AsyncIterator[tuple[Running, Any]]:
    options: dict[str, Any] = {"webhook_secret": SETTING, "webhook_allow_private": True}
    async with receiving() as receiver, serve(letters.crews, **options) as service:
        yield service, receiver


async def test_our_webhook_is_notified_that_a_run_waits(serve: Serve, letters: Letters) -> None:
    async with _with_receiver(serve, letters) as (service, receiver):
        run_id = await _start(service, webhook_url=receiver.url)

        async def arrived() -> bool:
            return "run.awaiting_human" in receiver.types

        await until(arrived)
        (event,) = (a.event for a in receiver.arrivals if a.type == "run.awaiting_human")
    assert event["data"]["run_id"] == run_id
    assert (event["data"]["name"], event["data"]["output"]) == ("draft", "text 1")


@pytest.mark.parametrize(
    ("authentication", "header"),
    [
        ({"strategy": "bearer", "token": "hush"}, "Bearer hush"),
        ({"strategy": "basic", "username": "ada", "password": "hush"}, "Basic YWRhOmh1c2g="),
        (None, None),
    ],
)
async def test_the_platforms_clients_are_notified_and_review(
    serve: Serve, letters: Letters, authentication: Any, header: str | None
) -> None:
    async with _with_receiver(serve, letters) as (service, receiver):
        human = {"url": f"{receiver.url}/human"}
        if authentication is not None:
            human["authentication"] = authentication
        body = {"inputs": LETTER, "humanInputWebhook": human, "meta": {"n": 1}}
        kickoff_id = (await service.http.post("/crews/letter/kickoff", json=body)).json()[
            "kickoff_id"
        ]

        async def notified() -> bool:
            return bool(receiver.arrivals)

        await until(notified)
        (question,) = receiver.arrivals
        assert question.authorization == header
        assert question.event == {
            "execution_id": kickoff_id,
            "kickoff_id": kickoff_id,
            "task_id": "draft",
            "output": "text 1",
            "meta": {"n": 1},
        }
        status = (await service.http.get(f"/crews/letter/status/{kickoff_id}")).json()
        assert status == {
            "status": "running",
            "state": "PENDING HUMAN INPUT",
            "current_task": "draft",
            "progress": {"completed_tasks": 0, "total_tasks": 2},
            "awaiting_human": {"task_id": "draft", "output": "text 1"},
        }
        answer = {
            "execution_id": kickoff_id,
            "task_id": "draft",
            "human_feedback": "Warmer.",
            "is_approve": False,
            "crewWebhookUrl": f"{receiver.url}/crew",
        }
        url = "/crews/letter/resume"
        assert (await service.http.post(url, json=answer)).json()["status"] == "retrying"

        async def notified_again() -> bool:
            return len(receiver.arrivals) == 2

        await until(notified_again)  # the addresses of the kickoff are kept
        assert receiver.arrivals[-1].event["output"] == "text 2"
        answer |= {"is_approve": True}
        assert (await service.http.post(url, json=answer)).json()["status"] == "resumed"
        assert (await service.http.post(url, json=answer)).status_code == 400

        async def end_arrived() -> bool:
            path: str = receiver.arrivals[-1].path
            return path.endswith("/crew")

        await until(end_arrived)
        assert "hush" not in str(await _get(service, kickoff_id))
        missing = {**answer, "execution_id": str(UUID(int=0))}
        assert (await service.http.post(url, json=missing)).status_code == 404
    assert receiver.arrivals[-1].event["result"] == "text 3"
