"""Sends webhooks: signed events of runs, retried with backoff until the receiver accepts them."""

import asyncio
import base64
import hashlib
import hmac
import logging
import random
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import aiohttp
import msgspec

from app.db import DatabaseClock, DatabaseUnavailable
from app.logs import lines_of_run
from app.runs.background import PeriodicService
from app.runs.records import DeliveryStatus
from app.runs.webhooks.delivery_slots import MAX_IN_FLIGHT, CircuitBreakers, DeliverySlots
from app.runs.webhooks.outbox import Attempt, Attempted, Outbox
from app.runs.webhooks.url_guard import AddressRefused, UrlGuard
from app.telemetry import metrics

logger = logging.getLogger("crew_capture.webhooks")

# Backoff: short at first, for a receiver that restarts. A day in total, for one that must be fixed.
RETRY_DELAYS_SECONDS: Final = (
    *(1, 2, 5, 15, 60, 300),
    *(seconds * 3600 for seconds in (0.5, 1, 2, 4, 8, 8)),
)
TIMEOUT_SECONDS: Final = 15.0
# To resolve the name and to connect, of the total time.
_CONNECT_SECONDS: Final = 5.0
# A response that needs longer is a failure to the receiver's circuit breaker.
SLOW_SECONDS: Final = 5.0
# Longer than an attempt can last. Deliveries of a process that died are retried after this time.
LEASE_SECONDS: Final = 30.0

_JITTER: Final = 0.2  # deliveries to receivers that were down are not all retried at once
# New deliveries of this process and its retries wake the sender. Polling finds those of others.
POLL_SECONDS: Final = 1.0


def sign(secret: bytes, webhook_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` of Standard Webhooks."""
    signed = b"%b.%d.%b" % (webhook_id.encode(), timestamp, body)
    digest = hmac.digest(secret, signed, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


class WebhookSender(PeriodicService):
    """Sends the deliveries of the outbox, beside the runs and never in their way.

    Each event arrives at least once, unless its receiver refuses it for as long as
    `retry_delays_seconds` last. Several processes may share an outbox.
    """

    name = "webhook delivery"
    # Under load each commit wakes the sender: deliveries of several commits share a pass.
    rest_factor = 1.0

    def __init__(
        self,
        clock: DatabaseClock,
        outbox: Outbox,
        url_guard: UrlGuard,
        *,
        secret: bytes,
        timeout_seconds: float = TIMEOUT_SECONDS,
        slow_seconds: float = SLOW_SECONDS,
        retry_delays_seconds: Sequence[float] = RETRY_DELAYS_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        super().__init__(poll_seconds)
        self._clock = clock
        self._outbox = outbox
        self._url_guard = url_guard
        self._secret = secret
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds, connect=_CONNECT_SECONDS)
        self._slow_seconds = slow_seconds
        self._retry_delays_seconds = retry_delays_seconds
        self._breakers = CircuitBreakers()
        self._in_flight: dict[asyncio.Task[None], Attempt] = {}
        self._session: aiohttp.ClientSession | None = None
        self._stop_listening = outbox.listen(self.wake)

    def __len__(self) -> int:
        """How many deliveries are in flight."""
        return len(self._in_flight)

    async def run_once(self) -> None:
        """Begin an attempt at each delivery that is due, within the limits in flight.

        Raises:
            DatabaseUnavailable: the outbox can't be read.
        """
        if len(self._in_flight) >= MAX_IN_FLIGHT:
            return
        session = self._session = self._session or self._open_session()
        receivers = [attempt.receiver for attempt in self._in_flight.values()]
        for attempt in await self._outbox.claim(DeliverySlots(receivers, self._breakers)):
            with lines_of_run(attempt.key[0], attempt.crew):
                task = asyncio.create_task(self._send(session, attempt))
            self._in_flight[task] = attempt
            task.add_done_callback(self._forget)

    async def aclose(self) -> None:
        """Stop; deliveries in flight are sent again once their lease has ended."""
        self._stop_listening()
        await super().aclose()
        deliveries = list(self._in_flight)
        for task in deliveries:
            task.cancel()
        await asyncio.gather(*deliveries, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
        await self._outbox.aclose()

    def _open_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=self._url_guard.connector(),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            headers={"User-Agent": "crew-capture"},
        )

    def _forget(self, task: asyncio.Task[None]) -> None:
        attempt = self._in_flight.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            with lines_of_run(attempt.key[0], attempt.crew):
                logger.error("A webhook could not be sent; it is due again later", exc_info=error)
        self.wake()  # its slot is free

    async def _send(self, session: aiohttp.ClientSession, attempt: Attempt) -> None:
        begun = time.monotonic()
        response = await self._post(session, attempt)
        self._record_health(attempt, response, time.monotonic() - begun)
        attempted = self._classify(attempt, response)
        if attempted.status is DeliveryStatus.FAILED:
            logger.warning(
                "Webhook %s failed for good at attempt %d: %s",
                attempt.webhook_id,
                attempt.number,
                attempted.result,
            )
        try:
            await self._outbox.record(attempted)
        except DatabaseUnavailable:
            logger.warning("Webhook %s may be sent again: database away", attempt.webhook_id)
        else:
            metrics.WEBHOOK_ATTEMPTS.inc(_RESULTS[attempted.status])
            if attempted.due_at is not None:
                self._wake_at(attempted.due_at)

    def _record_health(self, attempt: Attempt, response: int | str, seconds: float) -> None:
        if isinstance(response, int) and seconds < self._slow_seconds:
            self._breakers.record_success(attempt.receiver)
        elif response != _REFUSED:
            self._breakers.record_failure(attempt.receiver)

    def _wake_at(self, due_at: datetime) -> None:
        """Wake for a retry that is due before the next poll."""
        seconds = (due_at - self._clock.now()).total_seconds()
        if seconds < self.interval_seconds:
            asyncio.get_running_loop().call_later(seconds, self.wake)

    def _classify(self, attempt: Attempt, response: int | str) -> Attempted:
        """The result of an attempt: `response` is an HTTP status, or why there is none."""
        if isinstance(response, int) and 200 <= response < 300:
            return Attempted(attempt, DeliveryStatus.DELIVERED, f"HTTP {response}", None)
        result = f"HTTP {response}" if isinstance(response, int) else response
        retries = len(self._retry_delays_seconds)
        if response in _FINAL or attempt.number > retries:
            return Attempted(attempt, DeliveryStatus.FAILED, result, None)
        delay = self._retry_delays_seconds[attempt.number - 1]
        delay *= random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - not a secret
        due_at = self._clock.now() + timedelta(seconds=delay)
        return Attempted(attempt, DeliveryStatus.PENDING, result, due_at)

    async def _post(self, session: aiohttp.ClientSession, attempt: Attempt) -> int | str:
        """Post once; the HTTP status of the response, or the reason why there was none."""
        body = msgspec.json.encode(attempt.body)
        timestamp = int(self._clock.now().timestamp())
        headers = {
            "Content-Type": "application/json",
            "webhook-id": attempt.webhook_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._secret, attempt.webhook_id, timestamp, body),
            **attempt.trace,
        }
        if attempt.webhook.authorization is not None:
            headers["Authorization"] = attempt.webhook.authorization
        try:
            async with session.post(
                attempt.webhook.url, data=body, headers=headers, allow_redirects=False
            ) as response:
                return response.status  # the body is not read
        except Exception as error:
            return _reason(error)


_RESULTS: Final[Mapping[DeliveryStatus, str]] = {
    DeliveryStatus.DELIVERED: "delivered",
    DeliveryStatus.PENDING: "retried",
    DeliveryStatus.FAILED: "failed",
}
"""The results of attempts in metrics."""

_REFUSED: Final = "address refused"
# 410 Gone: the receiver unsubscribes.
_FINAL: Final = frozenset({_REFUSED, 410})

# The first match counts. Texts of errors are not stored: they may contain the URL, and secrets.
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
    """The reason why there was no response, in a few words."""
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(
        error.os_error, AddressRefused
    ):
        return _REFUSED
    return next((word for kind, word in _REASONS.items() if isinstance(error, kind)), "error")
