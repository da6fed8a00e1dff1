"""CrewAI's events of model calls: all of them with listeners, none without."""

import asyncio
import contextlib
from typing import Any

import pytest
from crewai.events.event_bus import crewai_event_bus
from crewai.events.types.llm_events import (
    LLMCallCompletedEvent,
    LLMCallFailedEvent,
    LLMCallStartedEvent,
    LLMStreamChunkEvent,
)
from crewai.llms.base_llm import call_stop_override
from openai import BadRequestError

from app.engine.llm import on_token
from tests.engine.llm.conftest import Server
from tests.load.stub_model import Failure

KINDS = (LLMCallStartedEvent, LLMStreamChunkEvent, LLMCallCompletedEvent, LLMCallFailedEvent)


async def _events_of(model: Any, *kinds: type) -> list[Any]:
    """The events that a listener for `kinds` gets of one call."""
    events: list[Any] = []
    with crewai_event_bus.scoped_handlers():
        for kind in kinds:
            crewai_event_bus.on(kind)(lambda _, event: events.append(event))
        with contextlib.suppress(BadRequestError):
            await model.acall("for user-0123abcd")
        await asyncio.to_thread(crewai_event_bus.flush)
    return sorted(events, key=lambda event: event.emission_sequence)


def _fields_of(events: list[Any]) -> list[Any]:
    fields = ("type", "model", "messages", "response", "chunk", "usage", "finish_reason", "error")
    return [[getattr(event, name, None) for name in fields] for event in events]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_listener_receives_the_events_of_crewai(server: Server, stream: bool) -> None:
    ours = await _events_of(server.pooled(stream=stream), *KINDS)
    own = await _events_of(server.own(stream=stream), *KINDS)
    assert len(ours) > (5 if stream else 1)
    assert _fields_of(ours) == _fields_of(own)


async def test_a_subscriber_beside_a_listener_receives_each_piece_once(server: Server) -> None:
    pieces: list[str] = []
    token = on_token.set(pieces.append)
    try:
        events = await _events_of(server.pooled(), LLMStreamChunkEvent, LLMCallCompletedEvent)
    finally:
        on_token.reset(token)
    *chunks, completed = events
    assert len(chunks) > 5
    assert [chunk.chunk for chunk in chunks] == pieces
    assert "".join(pieces) == completed.response


async def test_a_listener_receives_a_failure(server: Server) -> None:
    server.stub.failures = {1: Failure(status=400), 2: Failure(status=400)}
    ours = await _events_of(server.pooled(), *KINDS)
    own = await _events_of(server.own(), *KINDS)
    assert LLMCallFailedEvent in map(type, ours)
    assert _fields_of(ours) == _fields_of(own)


async def test_a_listener_for_the_end_alone_receives_it_inside_its_scope(server: Server) -> None:
    (event,) = await _events_of(server.pooled(), LLMCallCompletedEvent)
    assert event.started_event_id is not None


async def test_without_listeners_no_event_is_made(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    emitted: list[Any] = []
    monkeypatch.setattr(crewai_event_bus, "emit", lambda _, event: emitted.append(event))
    await server.own().acall("x")
    assert len(emitted) == 2
    emitted.clear()
    await server.pooled().acall("x")
    assert emitted == []


async def test_stop_words_of_one_call_cut_no_other_call_of_the_same_model(server: Server) -> None:
    server.stub.delay_seconds = 0.05
    model = server.pooled()

    async def call_model(stop: list[str] | None) -> str:
        with call_stop_override(model, stop):
            return str(await model.acall("for user-0123abcd"))

    cut, whole = await asyncio.gather(call_model(["Start small"]), call_model(None))
    assert "Start small" not in cut
    assert whole.startswith(cut)
    assert "Start small" in whole
