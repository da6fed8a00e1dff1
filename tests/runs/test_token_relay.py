"""Model tokens from the process that executes a run to those that subscribe to it."""

from datetime import UTC, datetime
from operator import itemgetter
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, update

from app.db import Database
from app.runs.events.event import Event, EventType
from app.runs.events.hub import EventHub
from app.runs.events.token_relay import TokenRelay
from app.runs.models import RelayedTokens, TokenSubscription
from app.runs.persistence.repository import RunRepository
from app.runs.records import NewRun, RunStatus

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


class Process:
    """One that executes runs, and may subscribe to those of others."""

    def __init__(self, database: Database, name: str) -> None:
        self.name = name
        self.events = EventHub()
        self.rows = RunRepository(database, self.events, str, worker=name, lease_seconds=60)
        self.tokens = TokenRelay(database, name)

    async def execute(self) -> UUID:
        run = NewRun(uuid4(), "idea", {}, datetime.now(UTC))
        await self.rows.add([run])
        assert await self.rows.claim(run.run_id) is not None
        return run.run_id

    async def stream(self, run_id: UUID, *tokens: str, after_seq: int = 1) -> None:
        """Relay tokens of the run; committed when this returns."""
        self.events.remote_subscribers = await self.tokens.subscriptions()
        for text in tokens:
            event = Event(
                run_id, None, EventType.TASK_TOKENS, {"index": 0, "text": text}, datetime.now(UTC)
            )
            self.rows.relay_tokens(event, after_seq)
        await self.rows.aclose()

    async def received(self) -> list[str]:
        """The tokens stored for it, in order."""
        return [
            event.data["text"]
            for _, event in sorted(await self.tokens.receive(), key=itemgetter(0))
        ]


@pytest.fixture
def one(database: Database) -> Process:
    return Process(database, "one")


@pytest.fixture
def other(database: Database) -> Process:
    return Process(database, "other")


async def _count(database: Database) -> tuple[int, int]:
    async with database.read() as connection:
        watches = await connection.scalar(select(func.count()).select_from(TokenSubscription))
        passed = await connection.scalar(select(func.count()).select_from(RelayedTokens))
    return watches or 0, passed or 0


async def _until(database: Database) -> datetime:
    async with database.read() as connection:
        (until,) = await connection.scalars(select(TokenSubscription.until))
    assert until is not None
    return until


async def test_tokens_go_to_each_subscribed_process_once_and_in_order(
    database: Database, one: Process, other: Process
) -> None:
    third = Process(database, "third")
    run_id = await one.execute()
    for process in (other, third):
        await process.tokens.subscribe({run_id})
    tokens = [f"token {number} " for number in range(20)]
    await one.stream(run_id, *tokens[:12])
    assert await other.received() == tokens[:12]
    await one.stream(run_id, *tokens[12:], after_seq=2)
    assert await other.received() == tokens[12:]
    assert await third.received() == tokens
    assert await other.received() == []


async def test_without_subscriptions_no_tokens_are_stored(
    database: Database, one: Process, other: Process
) -> None:
    watched, alone = await one.execute(), await one.execute()
    await other.tokens.subscribe({watched})
    await one.stream(alone, "for no process")
    assert not one.events.needs_tokens(alone)
    assert one.events.needs_tokens(watched)
    assert await _count(database) == (1, 0)


async def test_only_the_process_that_executes_a_run_finds_subscriptions(
    database: Database, one: Process, other: Process
) -> None:
    third = Process(database, "third")
    run_id = await one.execute()
    await other.tokens.subscribe({run_id})
    assert await one.tokens.subscriptions() == {run_id: ["other"]}
    assert await third.tokens.subscriptions() == {}
    await one.rows.cancel(run_id)
    assert await one.tokens.subscriptions() == {}


async def test_an_ended_subscription_leaves_nothing(
    database: Database, one: Process, other: Process
) -> None:
    left, kept = await one.execute(), await one.execute()
    await other.tokens.subscribe({left, kept})
    await one.tokens.subscriptions()
    await other.tokens.subscribe({kept})
    assert set(await one.tokens.subscriptions()) == {kept}
    # The process that executes the run notices it later: these tokens were on their way.
    await other.tokens.subscribe({left, kept})
    await one.stream(left, "late")
    await other.tokens.subscribe(set())
    assert await other.received() == ["late"]
    assert await _count(database) == (0, 0)


async def test_at_its_end_a_process_deletes_its_subscriptions_and_tokens(
    database: Database, one: Process, other: Process
) -> None:
    run_id = await one.execute()
    await other.tokens.subscribe({run_id})
    await one.stream(run_id, "unread")
    assert await _count(database) == (1, 1)
    await other.tokens.aclose()
    assert await _count(database) == (0, 0)


async def test_the_subscriptions_of_a_process_that_died_lapse_and_are_swept(
    database: Database, one: Process, other: Process
) -> None:
    run_id = await one.execute()
    await other.tokens.subscribe({run_id})
    await one.stream(run_id, "unread")
    await one.tokens.sweep()
    assert await _count(database) == (1, 1)  # it may live
    async with database.write() as connection:
        await connection.execute(update(TokenSubscription).values(until=LONG_AGO))
        await connection.execute(update(RelayedTokens).values(at=LONG_AGO))
    assert await one.tokens.subscriptions() == {}
    await one.stream(run_id, "for the dead")
    await one.tokens.sweep()
    assert await _count(database) == (0, 0)


async def test_a_subscription_that_lasts_is_renewed_now_and_then(
    database: Database, one: Process, other: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await one.execute()
    await other.tokens.subscribe({run_id})
    first = await _until(database)
    await other.tokens.subscribe({run_id})
    assert await _until(database) == first  # renewed just now
    monkeypatch.setattr("app.runs.events.token_relay._RENEWED_SECONDS", 0.0)
    other = Process(database, "other")
    await other.tokens.subscribe({run_id})
    second = await _until(database)
    await other.tokens.subscribe({run_id})
    assert first < second < await _until(database)


async def test_a_deleted_run_is_deleted_with_its_tokens(
    database: Database, one: Process, other: Process
) -> None:
    run_id = await one.execute()
    await other.tokens.subscribe({run_id})
    await one.stream(run_id, "soon deleted")
    await one.rows.cancel(run_id)
    assert await one.rows.delete(run_id) is RunStatus.CANCELLED
    assert await _count(database) == (0, 0)
