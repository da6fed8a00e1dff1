"""Model tokens from the process that carries a run to those that watch it."""

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
    """One that carries runs and may watch those of others."""

    def __init__(self, database: Database, name: str) -> None:
        self.name = name
        self.events = EventHub()
        self.rows = RunRepository(database, self.events, str, worker=name, lease_seconds=60)
        self.tokens = TokenRelay(database, name)

    async def carry(self) -> UUID:
        run = NewRun(uuid4(), "idea", {}, datetime.now(UTC))
        await self.rows.add([run])
        assert await self.rows.claim(run.run_id) is not None
        return run.run_id

    async def say(self, run_id: UUID, *words: str, after_seq: int = 1) -> None:
        """What a model of the run says; committed when this returns."""
        self.events.remote_subscribers = await self.tokens.subscriptions()
        for text in words:
            event = Event(run_id, None, EventType.TASK_TOKENS, {"text": text}, datetime.now(UTC))
            self.rows.relay_tokens(event, after_seq)
        await self.rows.aclose()

    async def heard(self) -> list[str]:
        """What was left for it, in order."""
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


async def test_words_go_to_each_process_that_asked_once_and_in_order(
    database: Database, one: Process, other: Process
) -> None:
    third = Process(database, "third")
    run_id = await one.carry()
    for watcher in (other, third):
        await watcher.tokens.subscribe({run_id})
    words = [f"word {number} " for number in range(20)]
    await one.say(run_id, *words[:12])
    assert await other.heard() == words[:12]
    await one.say(run_id, *words[12:], after_seq=2)
    assert await other.heard() == words[12:]
    assert await third.heard() == words
    assert await other.heard() == []


async def test_nobody_asks_nothing_is_kept(
    database: Database, one: Process, other: Process
) -> None:
    watched, alone = await one.carry(), await one.carry()
    await other.tokens.subscribe({watched})
    await one.say(alone, "said to nobody")
    assert not one.events.needs_tokens(alone)
    assert one.events.needs_tokens(watched)
    assert await _count(database) == (1, 0)


async def test_only_the_process_that_carries_a_run_is_asked(
    database: Database, one: Process, other: Process
) -> None:
    third = Process(database, "third")
    run_id = await one.carry()
    await other.tokens.subscribe({run_id})
    assert await one.tokens.subscriptions() == {run_id: ["other"]}
    assert await third.tokens.subscriptions() == {}
    await one.rows.cancel(run_id)
    assert await one.tokens.subscriptions() == {}


async def test_who_stops_watching_leaves_nothing(
    database: Database, one: Process, other: Process
) -> None:
    left, kept = await one.carry(), await one.carry()
    await other.tokens.subscribe({left, kept})
    await one.tokens.subscriptions()
    await other.tokens.subscribe({kept})
    assert set(await one.tokens.subscriptions()) == {kept}
    # The one that carries the run hears of it later: these words were on their way.
    await other.tokens.subscribe({left, kept})
    await one.say(left, "late")
    await other.tokens.subscribe(set())
    assert await other.heard() == ["late"]
    assert await _count(database) == (0, 0)


async def test_at_its_end_a_process_takes_all_back(
    database: Database, one: Process, other: Process
) -> None:
    run_id = await one.carry()
    await other.tokens.subscribe({run_id})
    await one.say(run_id, "unheard")
    assert await _count(database) == (1, 1)
    await other.tokens.aclose()
    assert await _count(database) == (0, 0)


async def test_a_process_that_died_is_asked_for_nothing_and_swept(
    database: Database, one: Process, other: Process
) -> None:
    run_id = await one.carry()
    await other.tokens.subscribe({run_id})
    await one.say(run_id, "unheard")
    await one.tokens.sweep()
    assert await _count(database) == (1, 1)  # it may live
    async with database.write() as connection:
        await connection.execute(update(TokenSubscription).values(until=LONG_AGO))
        await connection.execute(update(RelayedTokens).values(at=LONG_AGO))
    assert await one.tokens.subscriptions() == {}
    await one.say(run_id, "said to the dead")
    await one.tokens.sweep()
    assert await _count(database) == (0, 0)


async def test_who_goes_on_watching_asks_again_now_and_then(
    database: Database, one: Process, other: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await one.carry()
    await other.tokens.subscribe({run_id})
    first = await _until(database)
    await other.tokens.subscribe({run_id})
    assert await _until(database) == first  # said just now
    monkeypatch.setattr("app.runs.events.token_relay._RENEWED_SECONDS", 0.0)
    other = Process(database, "other")
    await other.tokens.subscribe({run_id})
    second = await _until(database)
    await other.tokens.subscribe({run_id})
    assert first < second < await _until(database)


async def test_a_deleted_run_takes_its_words_along(
    database: Database, one: Process, other: Process
) -> None:
    run_id = await one.carry()
    await other.tokens.subscribe({run_id})
    await one.say(run_id, "soon deleted")
    await one.rows.cancel(run_id)
    assert await one.rows.delete(run_id) is RunStatus.CANCELLED
    assert await _count(database) == (0, 0)
