"""What watchers are told of a run, and when."""

import asyncio
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from app.runs.events.hub import Event, EventHub, Subscriber

RUN = uuid4()


def _event(seq: int | None, type_: str = "task.started", run_id: UUID = RUN) -> Event:
    return Event(run_id, seq, type_, {}, datetime.now(UTC))


def _watching(
    hub: EventHub, *, tokens: bool = True, after_seq: int = -1, heartbeat_seconds: float = 60
) -> AbstractContextManager[Subscriber]:
    return hub.watch(RUN, tokens=tokens, after_seq=after_seq, heartbeat_seconds=heartbeat_seconds)


async def _told(watcher: Subscriber) -> list[int | None]:
    return [event.seq for event in await asyncio.wait_for(watcher.take(), 5)]


async def test_what_happened_since_the_last_time_comes_together() -> None:
    hub = EventHub()
    with _watching(hub) as watcher:
        waiting = asyncio.create_task(_told(watcher))
        await asyncio.sleep(0)
        hub.publish(_event(1))
        hub.publish(_event(2))
        hub.publish(_event(1, run_id=uuid4()))
        assert await waiting == [1, 2]
        hub.publish(_event(3))
        assert await _told(watcher) == [3]
    assert hub.watched() == set()


async def test_history_comes_first_and_nothing_twice() -> None:
    hub = EventHub()
    with _watching(hub, after_seq=2) as watcher:
        for seq in (2, 3, None, 4, 5):
            hub.publish(_event(seq))
        watcher.begin([_event(3), _event(4)])
        assert await _told(watcher) == [3, 4, None, 5]
        hub.publish(_event(4))
        hub.publish(_event(6))
        assert await _told(watcher) == [6]


async def test_the_end_of_a_run_is_told_also_when_it_comes_while_others_are_sent() -> None:
    hub = EventHub()
    with _watching(hub) as watcher:
        hub.publish(_event(1))
        assert await _told(watcher) == [1]
        hub.publish(_event(9, "run.succeeded"))
        hub.publish(_event(None, "task.tokens"))  # too late
        assert not watcher.is_over
        assert await _told(watcher) == [9]
        assert watcher.is_over


async def test_words_go_to_those_who_want_them() -> None:
    hub = EventHub()
    with _watching(hub, tokens=False) as watcher:
        assert not hub.wants_tokens(RUN)
        assert (hub.watched(), hub.watched(tokens=True)) == ({RUN}, set())
        hub.publish(_event(None, "task.tokens"))
        hub.publish(_event(1))
        assert await _told(watcher) == [1]
        with _watching(hub):
            assert hub.wants_tokens(RUN)
            assert hub.watched(tokens=True) == {RUN}


async def test_a_watcher_that_falls_behind_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.runs.events.hub._MAX_BEHIND", 5)
    hub = EventHub()
    with _watching(hub) as slow, _watching(hub) as quick:
        taken: list[int | None] = []
        for seq in range(1, 9):
            hub.publish(_event(seq))
            taken += await _told(quick)
        assert taken == [1, 2, 3, 4, 5, 6, 7, 8]
        assert await _told(slow) == [1, 2, 3, 4, 5]
        assert slow.is_over
        assert not quick.is_over


async def test_heartbeats_come_again_and_again() -> None:
    with _watching(EventHub(), heartbeat_seconds=0.01) as watcher:
        for _ in range(3):
            assert await _told(watcher) == []
        assert not watcher.is_over


async def test_a_stopping_process_ends_all_watching() -> None:
    hub = EventHub()
    with _watching(hub) as watcher:
        hub.publish(_event(1))
        hub.close()
        assert await _told(watcher) == [1]
        assert watcher.is_over
