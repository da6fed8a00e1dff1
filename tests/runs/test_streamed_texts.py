"""The texts that models have streamed, for subscribers that connect later."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from app.runs.events.event import Event, EventSeq, EventType
from app.runs.events.hub import EventHub
from app.runs.events.streamed_texts import StreamedTexts

_RUN = uuid4()


def _tokens(text: str, index: int = 0, run_id: UUID = _RUN) -> Event:
    data = {"index": index, "name": f"task {index}", "text": text}
    return Event(run_id, None, EventType.TASK_TOKENS, data, datetime.now(UTC))


def _stored(type_: EventType, seq: int = 1) -> Event:
    return Event(_RUN, EventSeq(seq), type_, {"index": 0}, datetime.now(UTC))


def _texts(texts: StreamedTexts, run_id: UUID = _RUN) -> dict[int, str]:
    return {index: event.data["text"] for index, event in texts.of(run_id).items()}


def test_a_text_lasts_until_its_task_is_finished() -> None:
    texts = StreamedTexts()
    for event in (_tokens("one "), _tokens("other", 1), _tokens("two")):
        texts.note(event)
    assert _texts(texts) == {0: "one two", 1: "other"}
    texts.note(_stored(EventType.TASK_FINISHED))
    assert _texts(texts) == {1: "other"}


@pytest.mark.parametrize("type_", ["run.succeeded", "run.cancelled", "run.queued"])
def test_a_text_ends_with_its_attempt(type_: str) -> None:
    texts = StreamedTexts()
    texts.note(_tokens("text"))
    texts.note(_stored(EventType(type_)))
    assert _texts(texts) == {}


def test_texts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.runs.events.streamed_texts.MAX_CHARACTERS", 10)
    monkeypatch.setattr("app.runs.events.streamed_texts._MAX_CHARACTERS_IN_ALL", 25)
    texts, others = StreamedTexts(), [uuid4(), uuid4()]
    for _ in range(3):
        texts.note(_tokens("12345678"))
    assert _texts(texts) == {0: "1234567812"}
    for run_id in others:
        texts.note(_tokens("1234567890", run_id=run_id))
    assert [_texts(texts, run_id) for run_id in (_RUN, *others)] == [
        {},
        {0: "1234567890"},
        {0: "1234567890"},
    ]


async def test_each_piece_of_a_text_is_received_once() -> None:
    hub = EventHub()
    hub.publish(_tokens("before "))
    with hub.subscribe(_RUN, tokens=True, after_seq=-1, heartbeat_seconds=60) as subscriber:
        hub.publish(_tokens("meanwhile "))
        subscriber.prepend([_stored(EventType.TASK_STARTED)], hub.streamed_texts(_RUN))
        hub.publish(_tokens("after"))
        received = await subscriber.receive()
    assert [event.data.get("text") for event in received] == [None, "before meanwhile ", "after"]
    assert [event.data.get("so_far", False) for event in received] == [False, True, False]
