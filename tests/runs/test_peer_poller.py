"""Events and tokens of runs that another process executes, in the order in which they occurred."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.db import Database, DatabaseClock
from app.runs.events.event import Event, EventSeq, EventType
from app.runs.events.hub import EventHub
from app.runs.events.token_relay import TokenRelay
from app.runs.execution.peer_poller import PeerPoller
from app.runs.persistence.queries import RunQueries
from app.runs.persistence.repository import RunRepository
from app.runs.records import NewRun
from storage import OutputStore
from tests.runs.scripted import running_service

_DATA = {"index": 0, "name": "poem", "agent": "Poet", "text": "a piece"}


class Executing:
    """Another process, which executes a run and reports one task of it."""

    def __init__(self, database: Database) -> None:
        self._events = EventHub()
        self._rows = RunRepository(database, self._events, str, worker="peer", lease_seconds=60)
        self._tokens = TokenRelay(database, "peer")
        self._seq = EventSeq.first(1)
        self.run_id = uuid4()

    async def claim(self) -> None:
        await self._rows.add([NewRun(self.run_id, "poem", {}, datetime.now(UTC))])
        assert await self._rows.claim(self.run_id) is not None

    async def report(self, type_: EventType, at: datetime | None = None) -> None:
        """Store an event of the task; committed when this returns."""
        self._seq = self._seq.next()
        happened = Event(self.run_id, self._seq, type_, _DATA, at or datetime.now(UTC))
        self._rows.append_soon(happened, {})
        await self._rows.aclose()

    async def stream(self) -> None:
        """Relay tokens that follow the last event; committed when this returns."""
        self._events.remote_subscribers = await self._tokens.subscriptions()
        tokens = Event(self.run_id, None, EventType.TASK_TOKENS, _DATA, datetime.now(UTC))
        self._rows.relay_tokens(tokens, self._seq)
        await self._rows.aclose()


def _after_the_first(
    monkeypatch: pytest.MonkeyPatch,
    methods: list[tuple[type, str]],
    then: Callable[[], Awaitable[None]],
) -> None:
    """Have `then` happen once, as the first call of any of these methods has its result."""
    called = False

    def patched(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **options: Any) -> Any:
            nonlocal called
            result = await method(*args, **options)
            if not called:
                called = True
                await then()
            return result

        return call

    for owner, name in methods:
        monkeypatch.setattr(owner, name, patched(getattr(owner, name)))


async def test_no_event_overtakes_the_tokens_before_it(
    database: Database, store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if both are committed while a poll is between its two queries."""
    peer = Executing(database)
    await peer.claim()
    await peer.report(EventType.TASK_STARTED)

    async def go_on() -> None:
        await peer.stream()
        await peer.report(EventType.TASK_FINISHED)

    queries = [(RunQueries, "events"), (TokenRelay, "receive")]
    _after_the_first(monkeypatch, queries, go_on)
    async with running_service(database, store) as parts:
        types = await _received(parts.events, peer.run_id, parts.peer_poller.start)
    assert types == ["task.started", "task.tokens", "task.finished"]


async def test_events_and_tokens_of_one_poll_are_published_in_their_order(
    database: Database, store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = Executing(database)
    await peer.claim()

    async def go_on() -> None:
        await peer.report(EventType.TASK_STARTED)
        await peer.stream()
        await peer.report(EventType.TASK_FINISHED)

    _after_the_first(monkeypatch, [(TokenRelay, "subscribe")], go_on)
    async with running_service(database, store) as parts:
        types = await _received(parts.events, peer.run_id, parts.peer_poller.start)
    assert types == ["task.started", "task.tokens", "task.finished"]


async def test_events_during_a_pause_of_the_process_are_published_after_it(
    database: Database, store: OutputStore
) -> None:
    pause, peer = 0.0, Executing(database)
    await peer.claim()
    async with running_service(database, store) as parts:
        poller = PeerPoller(
            "paused",
            DatabaseClock(lambda: datetime.now(UTC).timestamp() + pause),
            parts.worker,
            parts.events,
            parts.queries,
            TokenRelay(database, "paused"),
        )
        with parts.events.subscribe(
            peer.run_id, tokens=False, after_seq=EventSeq.first(1), heartbeat_seconds=60
        ) as subscriber:
            await poller.run_once()
            await peer.report(EventType.TASK_STARTED)
            pause = 60.0
            await poller.run_once()
            async with asyncio.timeout(20):
                (event,) = await subscriber.receive()
    assert event.type is EventType.TASK_STARTED


async def test_events_are_published_however_late_they_are_committed(
    database: Database, store: OutputStore
) -> None:
    """As those of a worker that could not reach the database."""
    peers = [Executing(database) for _ in range(20)]
    async with running_service(database, store) as parts, AsyncExitStack() as stack:
        subscribers = []
        for number, peer in enumerate(peers):
            await peer.claim()
            after_seq = EventSeq.first(1) + number  # each of them has another part of the history
            for _ in range(number):
                await peer.report(EventType.TASK_STARTED)
            subscribed = parts.events.subscribe(
                peer.run_id, tokens=False, after_seq=after_seq, heartbeat_seconds=60
            )
            subscribers.append(stack.enter_context(subscribed))
        await parts.peer_poller.run_once()
        for peer in peers:
            await peer.report(EventType.TASK_FINISHED, datetime.now(UTC) - timedelta(hours=1))
        await parts.peer_poller.run_once()
        for subscriber in subscribers:
            async with asyncio.timeout(20):
                (event,) = await subscriber.receive()
            assert event.type is EventType.TASK_FINISHED


async def _received(events: EventHub, run_id: UUID, start: Callable[[], None]) -> list[EventType]:
    """The types of the task's events, as a subscriber gets them once polling has started."""
    types: list[EventType] = []
    after_seq = EventSeq.first(1)
    with events.subscribe(
        run_id, tokens=True, after_seq=after_seq, heartbeat_seconds=60
    ) as subscriber:
        start()
        async with asyncio.timeout(20):
            while len(types) < 3:
                types += [event.type for event in await subscriber.receive()]
    return types
