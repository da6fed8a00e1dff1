"""A receiver of webhooks: a real HTTP server that answers as a test wants it to."""

import asyncio
import base64
import hashlib
import hmac
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from aiohttp import web

SECRET = b"the thirty-two bytes of a secret"
SETTING = f"whsec_{base64.b64encode(SECRET).decode()}"


@dataclass(frozen=True)
class Arrival:
    """A request as it came in; its signature was valid."""

    id: str
    timestamp: int
    event: dict[str, Any]
    path: str = ""
    authorization: str | None = None
    traceparent: str | None = None

    @property
    def type(self) -> str:
        return str(self.event["type"])


Answer = Callable[[Arrival], Awaitable[web.StreamResponse]]


async def accept(_: Arrival) -> web.StreamResponse:
    return web.Response(status=204)


@dataclass
class Receiver:
    """What came, in its order; `answer` decides what is said to it."""

    url: str
    answer: Answer = accept
    arrivals: list[Arrival] = field(default_factory=list)

    @property
    def ids(self) -> Counter[str]:
        return Counter(arrival.id for arrival in self.arrivals)

    @property
    def types(self) -> list[str]:
        return [arrival.type for arrival in self.arrivals]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        arrival = replace(
            verified(dict(request.headers), await request.read()),
            path=request.path,
            authorization=request.headers.get("Authorization"),
            traceparent=request.headers.get("traceparent"),
        )
        self.arrivals.append(arrival)
        return await self.answer(arrival)


def verified(headers: dict[str, str], body: bytes) -> Arrival:
    """What a request says, as Standard Webhooks verifies it; AssertionError for a forged one."""
    headers = {name.lower(): value for name, value in headers.items()}
    webhook_id, timestamp = headers["webhook-id"], headers["webhook-timestamp"]
    to_sign = webhook_id.encode() + b"." + timestamp.encode() + b"." + body
    expected = base64.b64encode(hmac.new(SECRET, to_sign, hashlib.sha256).digest()).decode()
    signatures = [one.split(",") for one in headers["webhook-signature"].split(" ")]
    assert ["v1", expected] in signatures
    assert headers["content-type"] == "application/json"
    return Arrival(webhook_id, int(timestamp), msgspec.json.decode(body))


@asynccontextmanager
async def receiving(answer: Answer = accept, *, port: int = 0) -> AsyncIterator[Receiver]:
    """A receiver that listens while the block lasts."""
    receiver = Receiver("", answer)
    app = web.Application()
    app.router.add_post("/{path:.*}", receiver.handle)
    # A handler that never answers ends with its client's connection, and with the server.
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()


async def never(_: Arrival) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def fails_first(times: int) -> Answer:
    """Fails so many times for each event, then takes it."""
    seen: Counter[str] = Counter()

    async def answer(arrival: Arrival) -> web.StreamResponse:
        seen[arrival.id] += 1
        return web.Response(status=503 if seen[arrival.id] <= times else 200)

    return answer
