"""`on_disconnect=cancel`: a client that disconnects cancels its run."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Annotated, Final, Literal
from uuid import UUID

from litestar.params import QueryParameter

from app.api.middleware.auth import CallerRequest
from app.db import DatabaseUnavailable
from app.runs import Event, RunService, UnknownRun
from app.runs.shield import shielded

logger = logging.getLogger("crew_capture.api")

_REASON: Final = "the client disconnected"

OnDisconnect = Annotated[
    Literal["continue", "cancel"],
    QueryParameter(
        description="`cancel`: the run is cancelled if the client disconnects before the response "
        "is complete"
    ),
]


@contextmanager
def cancelled_on_disconnect(
    request: CallerRequest, runs: RunService, run_id: UUID
) -> Iterator[None]:
    """Within the block, the run is cancelled if the client disconnects."""
    watch = asyncio.create_task(_cancel_on_disconnect(request, runs, run_id))
    try:
        yield
    finally:
        watch.cancel()


async def until_disconnected(
    events: AsyncGenerator[Sequence[Event]],
    request: CallerRequest,
    runs: RunService,
    run_id: UUID,
) -> AsyncGenerator[Sequence[Event]]:
    """The same events. The run is cancelled if the client disconnects before their end.

    Their end is the run's, or that of the subscription: a client that falls behind cancels nothing.
    """
    async with aclosing(events):
        with cancelled_on_disconnect(request, runs, run_id):
            async for batch in events:
                yield batch


async def _cancel_on_disconnect(request: CallerRequest, runs: RunService, run_id: UUID) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    try:
        await shielded(runs.cancel, run_id, request.user, _REASON)
    except (DatabaseUnavailable, UnknownRun) as error:
        logger.warning("Run %s of a client that disconnected is not cancelled: %s", run_id, error)
