"""Webhooks: each event arrives, signed, whatever stops or fails; runs don't wait for it."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from aiohttp import web
from sqlalchemy import event, func, select

from app.access.callers import OPERATOR
from app.db import Database
from app.logs import RunFields, run_fields
from app.runs.events.event import Event, EventSeq, EventType
from app.runs.models import WebhookDelivery
from app.runs.records import Delivery, RunOptions, webhooks_at
from app.runs.webhooks.outbox import Attempt, Outbox, put_in_outbox
from app.runs.webhooks.sender import RETRY_DELAYS_SECONDS, WebhookSender, sign
from app.runs.webhooks.url_guard import UrlGuard
from app.telemetry.metrics import recording
from storage import OutputStore
from tests.runs.receiver import (
    SECRET,
    SETTING,
    Arrival,
    Receiver,
    accept,
    fails_first,
    never,
    receiving,
    verified,
)
from tests.runs.scripted import TASKS, USED, Parts, Stage, running_service, until
from tests.telemetry.scraped import scraped

Condition = Callable[[], Awaitable[bool]]

INPUTS = {"topic": "rain"}
REPORTED = ["run.succeeded", *["task.finished"] * 3]
QUICK = (0.01,) * 6
DOCUMENT = Path(__file__).parents[2] / "docs/webhooks.md"


@pytest.fixture
async def targets() -> AsyncIterator[UrlGuard]:
    """Any address will do."""
    targets = UrlGuard(allow_private=True)
    yield targets
    await targets.aclose()


@pytest.fixture
async def parts(database: Database, store: OutputStore, targets: UrlGuard) -> AsyncIterator[Parts]:
    """A service that takes webhooks; who delivers them is the test's affair."""
    async with running_service(database, store, url_guard=targets) as parts:
        yield parts


@asynccontextmanager
async def _delivering(
    database: Database,
    targets: UrlGuard,
    *,
    lease_seconds: float = 60,
    timeout_seconds: float = 10,
    delays: tuple[float, ...] = QUICK,
) -> AsyncIterator[WebhookSender]:
    outbox = Outbox(database, lease_seconds=lease_seconds)
    deliverer = WebhookSender(
        database.clock,
        outbox,
        targets,
        secret=SECRET,
        timeout_seconds=timeout_seconds,
        retry_delays_seconds=delays,
    )
    deliverer.start()
    try:
        yield deliverer
    finally:
        await deliverer.aclose()


async def _run(parts: Parts, url: str) -> UUID:
    """Run once, to its end."""
    run_id = await parts.submit("poem", INPUTS, OPERATOR, RunOptions(webhooks=webhooks_at(url)))
    await parts.wait(run_id, OPERATOR)
    return run_id


async def _deliveries(parts: Parts, run_id: UUID, count: int = 4) -> list[Delivery]:
    """The deliveries of a run, once there are so many."""

    async def stored() -> bool:
        return len(await parts.queries.deliveries(run_id)) == count

    await until(stored)
    return await parts.queries.deliveries(run_id)


async def _until_all_are(parts: Parts, run_id: UUID, status: str, count: int = 4) -> None:
    async def are() -> bool:
        deliveries = await parts.queries.deliveries(run_id)
        return [delivery.status for delivery in deliveries] == [status] * count

    await until(are, seconds=20)


async def test_a_run_reports_its_tasks_and_its_end(parts: Parts, targets: UrlGuard) -> None:
    async with receiving() as receiver, _delivering(parts.database, targets):
        run_id = await _run(parts, receiver.url)
        await _until_all_are(parts, run_id, "delivered")
    assert sorted(receiver.types) == REPORTED
    (end,) = (a.event for a in receiver.arrivals if a.type == "run.succeeded")
    row = await parts.runs.get(run_id, OPERATOR)
    assert end["data"] == {
        "run_id": str(run_id),
        "crew": "poem",
        "status": "succeeded",
        "outputs": row.outputs,
        "error": None,
        "error_type": None,
    }
    tasks = [a.event["data"] for a in receiver.arrivals if a.type == "task.finished"]
    assert sorted(task["name"] for task in tasks) == sorted(TASKS)
    assert {task["run_id"] for task in tasks} == {str(run_id)}
    fields = {"run_id", "crew", "index", "name", "agent", "started_at", "output_path"}
    assert set(tasks[0]) == fields | {"usage", "run_usage"}
    assert all(task["usage"] == asdict(USED) for task in tasks)
    assert tasks[0]["output_path"] == f"/api/runs/{tasks[0]['run_id']}/outputs/{tasks[0]['name']}"


async def test_deliveries_and_retries_do_not_wait_for_the_next_poll(
    parts: Parts, targets: UrlGuard
) -> None:
    polled = asyncio.Event()

    class WatchedOutbox(Outbox):
        async def claim(self, *args: Any, **kwargs: Any) -> list[Attempt]:
            due = await super().claim(*args, **kwargs)
            polled.set()
            return due

    outbox = WatchedOutbox(parts.database, lease_seconds=60)
    sender = WebhookSender(
        parts.database.clock,
        outbox,
        targets,
        secret=SECRET,
        retry_delays_seconds=(0.3,) * 6,
        poll_seconds=600,
    )
    async with receiving(fails_first(2)) as receiver:
        sender.start()
        await polled.wait()
        run_id = await _run(parts, receiver.url)
        await _until_all_are(parts, run_id, "delivered")
        await sender.aclose()
    assert set(receiver.ids.values()) == {3}


async def test_only_runs_with_webhooks_wake_the_sender(parts: Parts) -> None:
    outbox, woken = Outbox(parts.database, lease_seconds=60), asyncio.Event()
    stop_listening = outbox.listen(woken.set)
    await parts.run("poem", INPUTS, OPERATOR)
    await parts.rows.aclose()  # all is committed
    assert not woken.is_set()
    run_id = await _run(parts, "http://127.0.0.1:9/")
    assert woken.is_set()
    woken.clear()
    stop_listening()
    await _deliveries(parts, run_id)
    await _deliveries(parts, await _run(parts, "http://127.0.0.1:9/"))
    assert not woken.is_set()


async def test_a_failed_and_a_cancelled_run_are_reported(
    database: Database, store: OutputStore, targets: UrlGuard
) -> None:
    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        if inputs["topic"] == "rain":
            raise RuntimeError("thunder")
        await asyncio.Event().wait()

    async with (
        running_service(database, store, script, url_guard=targets) as parts,
        receiving() as receiver,
        _delivering(database, targets),
    ):
        failed = await _run(parts, receiver.url)
        options = RunOptions(webhooks=webhooks_at(receiver.url))
        cancelled = await parts.submit("poem", {"topic": "snow"}, OPERATOR, options)
        await parts.runs.cancel(cancelled, OPERATOR)
        await _until_all_are(parts, failed, "delivered", 1)
        await _until_all_are(parts, cancelled, "delivered", 1)
    events = {a.event["data"]["run_id"]: a.event for a in receiver.arrivals}
    assert events[str(failed)]["type"] == "run.failed"
    assert events[str(failed)]["data"]["error_type"] == "internal_error"
    assert events[str(cancelled)]["type"] == "run.cancelled"
    assert events[str(cancelled)]["data"]["outputs"] is None


async def test_a_receiver_that_fails_four_times_gets_each_event_under_one_id(
    parts: Parts, targets: UrlGuard
) -> None:
    async with receiving(fails_first(4)) as receiver, _delivering(parts.database, targets):
        run_id = await _run(parts, receiver.url)
        await _until_all_are(parts, run_id, "delivered")
        deliveries = await parts.queries.deliveries(run_id)
    assert sorted(receiver.ids.values()) == [5] * 4
    assert {delivery.attempts for delivery in deliveries} == {5}
    assert {delivery.last_result for delivery in deliveries} == {"HTTP 200"}
    assert {delivery.due_at for delivery in deliveries} == {None}


async def test_attempts_are_given_up_in_the_end(parts: Parts, targets: UrlGuard) -> None:
    async with (
        receiving(fails_first(100)) as receiver,
        _delivering(parts.database, targets, delays=(0.01, 0.01)),
    ):
        run_id = await _run(parts, receiver.url)
        await _until_all_are(parts, run_id, "failed")
        deliveries = await parts.queries.deliveries(run_id)
    assert sorted(receiver.ids.values()) == [3] * 4
    assert {delivery.last_result for delivery in deliveries} == {"HTTP 503"}


async def test_attempts_are_counted_by_their_results(parts: Parts, targets: UrlGuard) -> None:
    def counted(**results: float) -> Condition:
        async def are_counted() -> bool:
            found = scraped()
            counts = {r: found("crewcapture_webhook_attempts_total", result=r) for r in results}
            return counts == results

        return are_counted

    with recording():
        async with (
            receiving(fails_first(100)) as refusing,
            receiving(fails_first(1)) as accepting,
            _delivering(parts.database, targets, delays=(0.01, 0.01)),
        ):
            await _run(parts, refusing.url)
            await _run(parts, accepting.url)
            await until(counted(failed=4, delivered=4, retried=4 * 2 + 4 * 1), seconds=20)


def test_attempts_go_on_for_about_a_day() -> None:
    assert 0.95 < sum(RETRY_DELAYS_SECONDS) / 86_400 < 1.05
    assert list(RETRY_DELAYS_SECONDS) == sorted(RETRY_DELAYS_SECONDS)


async def test_a_receiver_that_is_gone_gets_no_more_requests(
    parts: Parts, targets: UrlGuard
) -> None:
    async def gone(_: Arrival) -> web.StreamResponse:
        return web.Response(status=410)

    async with receiving(gone) as receiver, _delivering(parts.database, targets):
        run_id = await _run(parts, receiver.url)
        await _until_all_are(parts, run_id, "failed")
    assert set(receiver.ids.values()) == {1}


async def test_a_redirect_is_not_followed(parts: Parts, targets: UrlGuard) -> None:
    async with receiving() as inside:

        async def redirect(_: Arrival) -> web.StreamResponse:
            return web.Response(status=307, headers={"Location": inside.url})

        async with (
            receiving(redirect) as receiver,
            _delivering(parts.database, targets, delays=()),
        ):
            run_id = await _run(parts, receiver.url)
            await _until_all_are(parts, run_id, "failed")
            deliveries = await parts.queries.deliveries(run_id)
        assert {delivery.last_result for delivery in deliveries} == {"HTTP 307"}
        assert inside.arrivals == []


async def test_one_that_never_answers_slows_neither_runs_nor_other_receivers(
    parts: Parts, targets: UrlGuard
) -> None:
    async with (
        receiving(never) as silent,
        receiving() as other,
        _delivering(parts.database, targets, timeout_seconds=60),
    ):
        begun = time.monotonic()
        runs = await asyncio.gather(*(_run(parts, silent.url) for _ in range(30)))
        assert time.monotonic() - begun < 5  # each would wait for a minute

        async def silent_is_full() -> bool:
            return len(silent.arrivals) == 16

        await until(silent_is_full)
        await _until_all_are(parts, await _run(parts, other.url), "delivered")
        assert len(silent.arrivals) == 16
        assert {d.status for run in runs for d in await parts.queries.deliveries(run)} == {
            "pending"
        }


async def test_no_answer_in_time_is_another_attempt(parts: Parts, targets: UrlGuard) -> None:
    slow = 4

    async def answer(arrival: Arrival) -> web.StreamResponse:
        if len(receiver.arrivals) <= slow:
            await asyncio.Event().wait()
        return web.Response()

    async with (
        receiving(answer) as receiver,
        _delivering(parts.database, targets, timeout_seconds=0.3),
    ):
        run_id = await _run(parts, receiver.url)
        await _until_all_are(parts, run_id, "delivered")
    assert len(receiver.arrivals) == slow + 4


async def test_what_was_committed_when_a_process_died_is_delivered_by_the_next(
    parts: Parts, targets: UrlGuard
) -> None:
    async with receiving() as receiver:
        run_id = await _run(parts, receiver.url)  # nobody delivers in this process
        assert {d.status for d in await _deliveries(parts, run_id)} == {"pending"}
        async with _delivering(parts.database, targets):
            await _until_all_are(parts, run_id, "delivered")
    assert sorted(receiver.types) == REPORTED


async def test_what_was_being_sent_when_a_process_died_is_sent_again(
    parts: Parts, targets: UrlGuard
) -> None:
    async with receiving(never) as receiver:
        run_id = await _run(parts, receiver.url)
        await _deliveries(parts, run_id)
        async with _delivering(parts.database, targets, lease_seconds=0.5):
            await until(_has_arrivals(receiver, 4))
        receiver.answer = accept
        async with _delivering(parts.database, targets):
            await _until_all_are(parts, run_id, "delivered")
    assert set(receiver.ids.values()) == {2}
    assert {d.attempts for d in await parts.queries.deliveries(run_id)} == {2}


async def test_an_answer_that_comes_after_the_lease_ended_changes_nothing(
    parts: Parts, targets: UrlGuard
) -> None:
    """As when a process was stopped for a while and goes on."""
    first, answer_first = asyncio.Event(), asyncio.Event()

    async def answer(arrival: Arrival) -> web.StreamResponse:
        if receiver.ids[arrival.id] == 1:
            first.set()
            await answer_first.wait()
            return web.Response(status=410)
        return web.Response()

    async with (
        receiving(answer) as receiver,
        _delivering(parts.database, targets, lease_seconds=0.5) as frozen,
    ):
        run_id = await _run(parts, receiver.url)
        await first.wait()
        async with _delivering(parts.database, targets):
            await _until_all_are(parts, run_id, "delivered")
        answer_first.set()
        await until(_is_idle(frozen))
        assert {d.status for d in await parts.queries.deliveries(run_id)} == {"delivered"}


async def test_several_processes_send_each_delivery_once(parts: Parts, targets: UrlGuard) -> None:
    async with receiving() as receiver:
        runs = await asyncio.gather(*(_run(parts, receiver.url) for _ in range(25)))
        for run_id in runs:
            await _deliveries(parts, run_id)
        async with (
            _delivering(parts.database, targets),
            _delivering(parts.database, targets),
            _delivering(parts.database, targets),
        ):
            for run_id in runs:
                await _until_all_are(parts, run_id, "delivered")
    assert len(receiver.ids) == 100
    assert set(receiver.ids.values()) == {1}


async def test_a_deleted_run_reports_nothing_more(parts: Parts, targets: UrlGuard) -> None:
    async with receiving() as receiver:
        run_id = await _run(parts, receiver.url)
        await _deliveries(parts, run_id)
        await parts.runs.delete(run_id, OPERATOR)
        kept = await _run(parts, receiver.url)
        async with _delivering(parts.database, targets):
            await _until_all_are(parts, kept, "delivered")
    assert {a.event["data"]["run_id"] for a in receiver.arrivals} == {str(kept)}
    assert await parts.queries.deliveries(run_id) == []


async def test_an_event_stored_while_its_run_was_deleted_is_forgotten(
    parts: Parts, targets: UrlGuard
) -> None:
    late = Event(UUID(int=1), EventSeq(100_001), EventType.TASK_FINISHED, {}, datetime.now(UTC))
    async with parts.database.write() as connection:
        await put_in_outbox(connection, [(late, webhooks_at("http://127.0.0.1:9/"))])
    async with _delivering(parts.database, targets):
        await _deliveries(parts, late.run_id, 0)


async def test_runs_without_a_webhook_cost_no_statement_more(
    parts: Parts, targets: UrlGuard
) -> None:
    statements: list[str] = []

    @event.listens_for(parts.database.engine.sync_engine, "before_cursor_execute")
    def _note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    await parts.run("poem", INPUTS, OPERATOR)
    assert statements
    assert not [statement for statement in statements if "webhook_deliveries" in statement]
    await _run(parts, "http://127.0.0.1:9/")
    assert [statement for statement in statements if "webhook_deliveries" in statement]
    async with parts.database.read() as connection:
        count = await connection.scalar(select(func.count()).select_from(WebhookDelivery))
    assert count == 4


async def test_log_lines_about_a_webhook_have_the_fields_of_its_run(
    parts: Parts, targets: UrlGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[RunFields | None] = []

    async def break_down(*_: object) -> int:
        raise ValueError

    def note(_: logging.LogRecord) -> bool:
        found.append(run_fields.get())
        return True

    async def is_logged() -> bool:
        return len(found) > count

    logger = logging.getLogger("crew_capture.webhooks")
    logger.addFilter(note)
    try:
        async with (
            receiving(fails_first(9)) as receiver,
            _delivering(parts.database, targets, delays=()) as sender,
        ):
            run_id = await _run(parts, receiver.url)
            await _until_all_are(parts, run_id, "failed")
            count = len(found)
            monkeypatch.setattr(sender, "_post", break_down)
            broken_id = await _run(parts, receiver.url)
            await until(is_logged)
    finally:
        logger.removeFilter(note)
    assert set(found[:count]) == {RunFields(str(run_id), "poem")}
    assert set(found[count:]) == {RunFields(str(broken_id), "poem")}


async def test_urls_stay_out_of_the_log(
    parts: Parts, targets: UrlGuard, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with (
        receiving(fails_first(9)) as receiver,
        _delivering(parts.database, targets, delays=()),
    ):
        run_id = await _run(parts, f"{receiver.url}?token=hush")
        await _until_all_are(parts, run_id, "failed")
    assert [r for r in caplog.records if "failed for good" in r.getMessage()]
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith("aio")]
    assert not [message for message in ours if "hush" in message]
    assert SETTING not in caplog.text


def test_the_example_of_the_documents_distinguishes_genuine_from_forged() -> None:
    found = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found
    names: dict[str, Callable[..., bool]] = {}
    exec(found[1], names)  # noqa: S102 - the document's own
    is_genuine = names["is_genuine"]
    body, now = b'{"type": "run.succeeded"}', int(time.time())

    def headers(at: int) -> dict[str, str]:
        signature = sign(SECRET, "msg_1", at, body)
        return {
            "content-type": "application/json",
            "webhook-id": "msg_1",
            "webhook-timestamp": str(at),
            "webhook-signature": signature,
        }

    assert verified(headers(now), body).id == "msg_1"
    assert is_genuine(SETTING, headers(now), body)
    assert not is_genuine(SETTING, headers(now), body + b" ")
    assert not is_genuine(SETTING, headers(now) | {"webhook-id": "msg_2"}, body)
    assert not is_genuine("whsec_" + "A" * 40, headers(now), body)
    assert not is_genuine(SETTING, headers(now - 3600), body)


def _has_arrivals(receiver: Receiver, count: int) -> Condition:
    async def has() -> bool:
        return len(receiver.arrivals) >= count

    return has


def _is_idle(deliverer: WebhookSender) -> Condition:
    async def is_idle() -> bool:
        return len(deliverer) == 0

    return is_idle
