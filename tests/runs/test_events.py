"""The events that subscribers to a run receive, and when."""

import asyncio
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from app.runs.events.event import Event, EventSeq, EventType
from app.runs.events.hub import EventHub, Subscriber

RUN = uuid4()


_DATA = {"index": 0, "name": "report", "agent": "Writer", "text": "a piece"}


def _event(seq: int | None, type_: str = "task.started", run_id: UUID = RUN) -> Event:
    number = None if seq is None else EventSeq(seq)
    return Event(run_id, number, EventType(type_), _DATA, datetime.now(UTC))


def _subscribed(
    hub: EventHub, *, tokens: bool = True, after_seq: int = -1, heartbeat_seconds: float = 60
) -> AbstractContextManager[Subscriber]:
    return hub.subscribe(
        RUN, tokens=tokens, after_seq=after_seq, heartbeat_seconds=heartbeat_seconds
    )


async def _received(subscriber: Subscriber) -> list[int | None]:
    return [event.seq for event in await asyncio.wait_for(subscriber.receive(), 60)]


async def test_events_since_the_last_time_are_received_together() -> None:
    hub = EventHub()
    with _subscribed(hub) as subscriber:
        waiting = asyncio.create_task(_received(subscriber))
        await asyncio.sleep(0)
        hub.publish(_event(1))
        hub.publish(_event(2))
        hub.publish(_event(1, run_id=uuid4()))
        assert await waiting == [1, 2]
        hub.publish(_event(3))
        assert await _received(subscriber) == [3]
    assert hub.subscribed_runs() == set()


async def test_history_comes_first_and_nothing_twice() -> None:
    hub = EventHub()
    with _subscribed(hub, after_seq=2) as subscriber:
        for seq in (2, 3, None, 4, 5):
            hub.publish(_event(seq))
        subscriber.prepend([_event(3), _event(4)])
        assert await _received(subscriber) == [3, 4, None, 5]
        hub.publish(_event(4))
        hub.publish(_event(6))
        assert await _received(subscriber) == [6]


async def test_the_end_of_a_run_is_received_also_when_it_comes_while_others_are_sent() -> None:
    hub = EventHub()
    with _subscribed(hub) as subscriber:
        hub.publish(_event(1))
        assert await _received(subscriber) == [1]
        hub.publish(_event(9, "run.succeeded"))
        hub.publish(_event(None, "task.tokens"))  # too late
        assert not subscriber.is_over
        assert await _received(subscriber) == [9]
        assert subscriber.is_over


async def test_an_end_that_is_stored_before_the_history_is_read_ends_the_subscription() -> None:
    hub = EventHub()
    with _subscribed(hub) as subscriber:
        subscriber.prepend([_event(1), _event(9, "run.succeeded")])
        hub.publish(_event(9, "run.succeeded"))  # late: it is known already
        assert await _received(subscriber) == [1, 9]
        assert subscriber.is_over


async def test_an_end_before_a_retry_does_not_end_the_subscription() -> None:
    hub = EventHub()
    with _subscribed(hub) as subscriber:
        hub.publish(_event(10, "run.queued"))
        subscriber.prepend([_event(1), _event(9, "run.failed")], {0: _event(None, "task.tokens")})
        assert await _received(subscriber) == [1, 9, None, 10]
        assert not subscriber.is_over


async def test_the_end_of_an_earlier_attempt_that_is_published_late_ends_nothing() -> None:
    hub = EventHub()
    with _subscribed(hub) as subscriber:
        hub.publish(_event(9, "run.failed"))
        subscriber.prepend([_event(1), _event(9, "run.failed"), _event(10, "run.queued")])
        hub.publish(_event(11))
        assert await _received(subscriber) == [1, 9, 10, 11]
        assert not subscriber.is_over


async def test_tokens_go_to_subscribers_that_need_them() -> None:
    hub = EventHub()
    with _subscribed(hub, tokens=False) as subscriber:
        assert not hub.needs_tokens(RUN)
        assert (hub.subscribed_runs(), hub.subscribed_runs(tokens=True)) == ({RUN}, set())
        hub.publish(_event(None, "task.tokens"))
        hub.publish(_event(1))
        assert await _received(subscriber) == [1]
        with _subscribed(hub):
            assert hub.needs_tokens(RUN)
            assert hub.subscribed_runs(tokens=True) == {RUN}


async def test_a_subscriber_that_falls_behind_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.runs.events.hub._MAX_BEHIND", 5)
    hub = EventHub()
    with _subscribed(hub) as slow, _subscribed(hub) as quick:
        received: list[int | None] = []
        for seq in range(1, 9):
            hub.publish(_event(seq))
            received += await _received(quick)
        assert received == [1, 2, 3, 4, 5, 6, 7, 8]
        assert await _received(slow) == [1, 2, 3, 4, 5]
        assert slow.is_over
        assert not quick.is_over


async def test_heartbeats_come_again_and_again() -> None:
    with _subscribed(EventHub(), heartbeat_seconds=0.01) as subscriber:
        for _ in range(3):
            assert await _received(subscriber) == []
        assert not subscriber.is_over


async def test_a_stopping_process_ends_all_subscriptions() -> None:
    hub = EventHub()
    with _subscribed(hub) as subscriber:
        hub.publish(_event(1))
        hub.close()
        assert await _received(subscriber) == [1]
        assert subscriber.is_over


def test_each_attempt_has_a_range_of_numbers_of_its_own() -> None:
    assert (EventSeq.first(0), EventSeq.last(0)) == (0, 99_999)
    numbers = [EventSeq.first(2), EventSeq.first(2).next()]
    numbers += [EventSeq.paused(2), EventSeq.resumed(2), EventSeq.last(2)]
    assert numbers == [200_000, 200_001, 299_997, 299_998, 299_999]
    assert {number.attempt for number in numbers} == {2}
