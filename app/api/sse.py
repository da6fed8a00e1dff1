"""Server-sent events: the events of a run as `text/event-stream`."""

from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec
from litestar.response import Stream

from app.runs import Event, EventType, output_path

EVENT_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""The headers of every stream: no proxy keeps or collects its events."""


def server_sent_events(
    batches: AsyncIterator[Sequence[Event]], headers: Mapping[str, str] | None = None
) -> Stream:
    """A response that streams events until the iterator ends; an empty batch is a heartbeat."""
    return Stream(
        _encoded(batches),
        status_code=200,
        media_type="text/event-stream",
        headers={**EVENT_STREAM_HEADERS, **(headers or {})},
    )


async def _encoded(batches: AsyncIterator[Sequence[Event]]) -> AsyncIterator[bytes]:
    async for events in batches:
        # One write for a batch: a write to a client costs more than everything else for an event.
        yield b"".join(map(_encode, events)) or b": still here\n\n"


def _encode(event: Event) -> bytes:
    number = b"" if event.seq is None else b"id: %d\n" % event.seq
    fields = {"run_id": event.run_id, "at": event.at, **event.data}
    if event.type == EventType.TASK_FINISHED:
        fields["output_path"] = output_path(event.run_id, event.data["name"])
    data = msgspec.json.encode(fields)
    return b"%bevent: %b\ndata: %b\n\n" % (number, event.type.encode(), data)
