"""Webhooks: tells receivers what happened in runs, signed, until they have taken it."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import aiohttp
import msgspec

from app.db import DatabaseUnavailable
from app.runs.records import DeliveryStatus
from app.runs.webhooks.outbox import Attempt, Attempted, Outbox
from app.runs.webhooks.url_guard import AddressRefused, UrlGuard

logger = logging.getLogger("crew_capture.webhooks")

# Soon at first, for a receiver that restarts; a day altogether, for one that somebody must mend.
RETRY_DELAYS_SECONDS: Final = (
    *(1, 2, 5, 15, 60, 300),
    *(seconds * 3600 for seconds in (0.5, 1, 2, 4, 8, 8)),
)
TIMEOUT_SECONDS: Final = 15.0
# Longer than an attempt may take: what a process that died had begun waits no longer than this.
LEASE_SECONDS: Final = 30.0

_JITTER: Final = 0.2  # receivers that were away are not all told again at once
_LOOK_SECONDS: Final = 1.0
_MAX_UNDER_WAY: Final = 64
_MAX_UNDER_WAY_PER_HOST: Final = 16  # one that never answers leaves room for the others


def sign(secret: bytes, webhook_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` of Standard Webhooks."""
    signed = b"%b.%d.%b" % (webhook_id.encode(), timestamp, body)
    digest = hmac.digest(secret, signed, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


class WebhookSender:
    """Sends what is in the outbox, beside the runs and never in their way.

    Each event arrives at least once, unless its receiver refuses it for as long as
    `retry_delays_seconds` last. Several processes may share an outbox.
    """

    def __init__(
        self,
        outbox: Outbox,
        targets: UrlGuard,
        *,
        secret: bytes,
        timeout_seconds: float = TIMEOUT_SECONDS,
        retry_delays_seconds: Sequence[float] = RETRY_DELAYS_SECONDS,
    ) -> None:
        self._outbox = outbox
        self._targets = targets
        self._secret = secret
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._retry_delays_seconds = retry_delays_seconds
        self._under_way: dict[asyncio.Task[None], Attempt] = {}
        self._freed = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """How many deliveries are under way."""
        return len(self._under_way)

    def start(self) -> None:
        """Look for what is due now, and from then on every second."""
        self._sending = asyncio.create_task(self._send_forever())

    async def aclose(self) -> None:
        """Stop; deliveries under way are left for whoever looks when their lease has ended."""
        tasks = [*self._under_way, *([self._sending] if self._sending else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._outbox.aclose()

    async def _send_forever(self) -> None:
        async with aiohttp.ClientSession(
            connector=self._targets.connector(),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            headers={"User-Agent": "crew-capture"},
        ) as session:
            while True:
                self._freed.clear()
                try:
                    await self._send_due(session)
                except DatabaseUnavailable:
                    logger.debug("The database is away: webhooks wait")
                except Exception:  # the next look may do better; without looks nothing is sent
                    logger.exception("Webhooks that are due could not be looked up")
                await self._wait()

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._freed.wait(), _LOOK_SECONDS)

    async def _send_due(self, session: aiohttp.ClientSession) -> None:
        for attempt in await self._outbox.claim(
            list(self._under_way.values()),
            limit=_MAX_UNDER_WAY,
            limit_per_host=_MAX_UNDER_WAY_PER_HOST,
        ):
            task = asyncio.create_task(self._send(session, attempt))
            self._under_way[task] = attempt
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        self._freed.set()

    async def _send(self, session: aiohttp.ClientSession, attempt: Attempt) -> None:
        attempted = self._classify(attempt, await self._post(session, attempt))
        if attempted.status is DeliveryStatus.FAILED:
            logger.warning(
                "Webhook %s to %s failed for good at attempt %d: %s",
                attempt.webhook_id,
                attempt.host,
                attempt.number,
                attempted.result,
            )
        try:
            await self._outbox.record(attempted)
        except DatabaseUnavailable:
            logger.warning("Webhook %s may be sent again: database away", attempt.webhook_id)

    def _classify(self, attempt: Attempt, answer: int | str) -> Attempted:
        """What an answer means: an HTTP status, or what kept it from coming."""
        if isinstance(answer, int) and 200 <= answer < 300:
            return Attempted(attempt, DeliveryStatus.DELIVERED, f"HTTP {answer}", None)
        result = f"HTTP {answer}" if isinstance(answer, int) else answer
        retries = len(self._retry_delays_seconds)
        if answer in _FINAL or attempt.number > retries:
            return Attempted(attempt, DeliveryStatus.FAILED, result, None)
        delay = self._retry_delays_seconds[attempt.number - 1]
        delay *= random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - not a secret
        due_at = datetime.now(UTC) + timedelta(seconds=delay)
        return Attempted(attempt, DeliveryStatus.PENDING, result, due_at)

    async def _post(self, session: aiohttp.ClientSession, attempt: Attempt) -> int | str:
        """The HTTP status of the answer, or a word on why there was none."""
        body = msgspec.json.encode(attempt.body)
        timestamp = int(datetime.now(UTC).timestamp())
        headers = {
            "Content-Type": "application/json",
            "webhook-id": attempt.webhook_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._secret, attempt.webhook_id, timestamp, body),
        }
        if attempt.webhook.authorization is not None:
            headers["Authorization"] = attempt.webhook.authorization
        try:
            async with session.post(
                attempt.webhook.url, data=body, headers=headers, allow_redirects=False
            ) as response:
                return response.status  # what else it says is nobody's concern, and unread
        except Exception as error:
            return _reason(error)


_REFUSED: Final = "address refused"
# Gone is how a receiver says that it wants no more.
_FINAL: Final = frozenset({_REFUSED, 410})

# The first that fits. Texts of errors stay here: they may hold the URL, and that a secret.
_REASONS: Final[Mapping[type[Exception], str]] = {
    TimeoutError: "timeout",
    aiohttp.ClientConnectorDNSError: "name not found",
    aiohttp.ClientSSLError: "TLS error",
    aiohttp.ClientConnectorError: "no connection",
    aiohttp.InvalidURL: _REFUSED,
    aiohttp.ClientError: "no answer",
    OSError: "no answer",
}


def _reason(error: Exception) -> str:
    """A word on why there was no answer."""
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(
        error.os_error, AddressRefused
    ):
        return _REFUSED
    return next((word for kind, word in _REASONS.items() if isinstance(error, kind)), "error")
