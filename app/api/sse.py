"""Server-sent events: the events of a run as `text/event-stream`."""

from collections.abc import AsyncIterator, Sequence

import msgspec
from litestar.response import Stream

from app.runs import Event

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def server_sent_events(batches: AsyncIterator[Sequence[Event]]) -> Stream:
    """A response that streams events until the iterator ends; an empty batch is a heartbeat."""
    return Stream(_encoded(batches), media_type="text/event-stream", headers=_HEADERS)


async def _encoded(batches: AsyncIterator[Sequence[Event]]) -> AsyncIterator[bytes]:
    async for events in batches:
        # One write for a batch: a write to a client costs more than everything else for an event.
        yield b"".join(map(_encode, events)) or b": still here\n\n"


def _encode(event: Event) -> bytes:
    number = b"" if event.seq is None else b"id: %d\n" % event.seq
    data = msgspec.json.encode({"run_id": event.run_id, "at": event.at, **event.data})
    return b"%bevent: %b\ndata: %b\n\n" % (number, event.type.encode(), data)
