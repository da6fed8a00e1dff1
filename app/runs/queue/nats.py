"""NATS: hints in a JetStream stream on disk, live messages by core publish and subscribe.

The stream is a work queue with one subject for each run, `PREFIX.runs.CREW.RUN`, which holds one
message at most. So the server drops repeated hints, however late they are. A durable pull consumer
for each crew is shared by all processes.
"""

import asyncio
import itertools
import json
import logging
import ssl
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote
from uuid import UUID

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import NotFoundError

from app.runs.queue.base import (
    Delivery,
    Driver,
    Hint,
    QueueUnavailable,
    Receiver,
    backoff_seconds,
    retry,
)

logger = logging.getLogger("crew_capture.queue")

_START_SECONDS: Final = 5.0
_REQUEST_SECONDS: Final = 5.0
_FIRST_CONNECTS: Final = 2
# A consumer that is lost, or that another server leads, is ready again by then.
_RESTORE_SECONDS: Final = 0.1
# A hint that no worker has received by then is published again by the database's reconciliation.
_MAX_AGE_SECONDS: Final = 24 * 3600.0
# A pull request is forgotten so long after its expiry.
_GRACE_SECONDS: Final = 1.0
# The server's code for a subject that has its message already.
_STORE_FAILED: Final = 10077

_ERRORS: Final = (nats.errors.Error, OSError, TimeoutError)


@dataclass(slots=True, eq=False)
class _Consumer:
    """The messages of a crew that arrived, and the number that the server may still send.

    `requested` is the number of messages in pull requests under way, which expire by
    `expires_at`, by the loop's clock.
    """

    arrived: deque[Delivery] = field(default_factory=deque)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    subscription: Subscription | None = None
    requested: int = 0
    expires_at: float = 0.0


class _Client(Client):
    """A client that keeps its login from servers without TLS, if their URL is `tls://`."""

    def _connect_command(self) -> bytes:
        server = self._current_server
        assert server is not None  # noqa: S101 - it has answered
        if server.uri.scheme == "tls" and not self._server_info.get("tls_required"):
            raise nats.errors.Error("the server has no TLS, which tls:// requires")
        command: bytes = super()._connect_command()
        return command


class NatsDriver(Driver):
    """A connection to a NATS server or cluster."""

    def __init__(
        self,
        servers: Sequence[str],
        *,
        prefix: str,
        credentials: Path | None = None,
        ca_file: Path | None = None,
        replicas: int = 1,
        redelivery_seconds: float = 30.0,
    ) -> None:
        """`prefix` begins all names, so that several installations can share a cluster.

        `ca_file` has the authorities to trust, instead of those of the machine.
        """
        self._servers = list(servers)
        self._prefix = prefix
        self._stream = prefix.replace(".", "_")
        self._credentials = credentials
        self._ca_file = ca_file
        self._replicas = replicas
        self.redelivery_seconds = redelivery_seconds
        self._client: Client = _Client()
        self._stream_context: JetStreamContext | None = None
        self._consumers: dict[str, _Consumer] = {}
        self._topics: list[tuple[str, Receiver]] = []
        self._numbers = itertools.count()
        self._inbox = ""
        self._responses: dict[str, asyncio.Future[bool]] = {}
        self._preparing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._problem: BaseException | None = None
        self._failed_connects = 0
        self._is_closing = False

    async def start(self) -> None:
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._connect()
        except (*_ERRORS, ValueError) as error:
            self._is_closing = True
            with suppress(Exception):
                await self._client.close()
            raise self._failure(self._problem or error) from None
        self.is_connected = True

    def _failure(self, error: BaseException) -> QueueUnavailable:
        """The error of a start, with the setting to correct."""
        cause = str(error).removeprefix("nats: ") or "no server answered in time"
        if isinstance(error, ssl.SSLCertVerificationError):
            cause = f"{error.verify_message}; it must name the authority of the servers"
            return QueueUnavailable(f"the certificate of NATS is not trusted: {cause}", "ca_file")
        if not _refuses_login(error):
            return QueueUnavailable(f"NATS can't be used: {cause}")
        if self._credentials is None:
            fix = "it needs a user and a password that the servers know"
            return QueueUnavailable(f"NATS can't be used: {cause}; {fix}")
        fix = f"{self._credentials} must be of a user of these servers"
        return QueueUnavailable(f"NATS can't be used: {cause}; {fix}", "credentials")

    async def _connect(self) -> None:
        options: dict[str, Any] = {}
        if self._credentials is not None:
            _check_credentials(self._credentials)
            options["user_credentials"] = str(self._credentials)
        if self._ca_file is not None:
            options["tls"] = _trusting(self._ca_file)
        self._problem = None
        client = self._client = _Client()
        await client.connect(
            servers=self._servers,
            name="crew-capture",
            max_reconnect_attempts=_FIRST_CONNECTS,
            reconnect_to_server_handler=self._next_server,
            reconnect_time_wait=0.3,  # type: ignore[arg-type] # seconds
            connect_timeout=2,
            ping_interval=5,
            max_outstanding_pings=2,
            error_cb=self._note_error,
            disconnected_cb=self._disconnected,
            reconnected_cb=self._reconnected,
            closed_cb=self._closed,
            **options,
        )
        client.options["max_reconnect_attempts"] = -1  # from now on, without an end
        self._stream_context = client.jetstream(timeout=_REQUEST_SECONDS)
        self._inbox = client.new_inbox()
        await client.subscribe(f"{self._inbox}.*", cb=self._receive_response)
        await self._ensure_stream()
        for topic, receiver in self._topics:
            await self._subscribe(topic, receiver)

    async def publish(self, hints: Sequence[Hint]) -> None:
        try:
            refused = await self._publish(hints)
            if refused:  # the stream is lost, with the server's disk
                await self._ensure_stream()
                refused = await self._publish(refused)
        except _ERRORS as error:
            raise _unavailable(error) from error
        if refused:
            raise QueueUnavailable("NATS did not store hints")

    async def _publish(self, hints: Sequence[Hint]) -> list[Hint]:
        """Publish hints; returns those that no stream stored."""
        self._check_connection()
        loop = asyncio.get_running_loop()
        responses = [loop.create_future() for _ in hints]
        for hint, response in zip(hints, responses, strict=True):
            number = next(self._numbers)
            self._responses[str(number)] = response
            subject = f"{self._prefix}.runs.{_token(hint.crew)}.{hint.run_id.hex}"
            await self._client.publish(subject, reply=f"{self._inbox}.{number}")
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                statuses = await asyncio.gather(*responses)
        finally:
            for response in responses:
                response.cancel()
        return [hint for hint, is_stored in zip(hints, statuses, strict=True) if not is_stored]

    async def _receive_response(self, message: Msg) -> None:
        """Resolve a publication: whether a stream has stored it, or had it already."""
        response = self._responses.pop(message.subject.rpartition(".")[2], None)
        if response is None or response.done():
            return
        error = json.loads(message.data).get("error") if message.data else {}  # no stream
        response.set_result(error is None or error.get("err_code") == _STORE_FAILED)

    async def waiting(self, crew: str) -> int:
        try:
            self._check_connection()
            await self._consumer(crew)
            info = await self._jetstream.consumer_info(self._stream, _token(crew))
        except NotFoundError as error:
            self._start(self._restore_soon())
            raise _unavailable(error) from error
        except _ERRORS as error:
            raise _unavailable(error) from error
        return info.num_pending or 0

    async def receive(self, crew: str, count: int, wait_seconds: float) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        try:
            self._check_connection()
            consumer = await self._consumer(crew)
            while not consumer.arrived:
                self._check_connection()
                consumer.changed.clear()
                now = loop.time()
                if now >= deadline:
                    return ()
                await self._request(crew, consumer, count, max(deadline - now, 0.1))
                with suppress(TimeoutError):
                    async with asyncio.timeout(deadline - now):
                        await consumer.changed.wait()
        except _ERRORS as error:
            raise _unavailable(error) from error
        arrived = consumer.arrived
        return [arrived.popleft() for _ in range(min(count, len(arrived)))]

    async def _request(
        self, crew: str, consumer: _Consumer, count: int, expires_seconds: float
    ) -> None:
        """Request as many messages as are missing, so that the server sends them at once."""
        now = asyncio.get_running_loop().time()
        if now > consumer.expires_at + _GRACE_SECONDS:
            consumer.requested = 0  # a response of the server was lost
        missing = count - consumer.requested
        if missing <= 0:
            return
        assert consumer.subscription is not None  # noqa: S101 - consumers are complete
        consumer.requested += missing
        consumer.expires_at = max(consumer.expires_at, now + expires_seconds)
        request = {"batch": missing, "expires": int(expires_seconds * 1e9)}
        await self._client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{_token(crew)}",
            json.dumps(request).encode(),
            reply=consumer.subscription.subject,
        )

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        await self._respond(deliveries, b"+ACK")

    async def keep(self, deliveries: Sequence[Delivery]) -> None:
        await self._respond(deliveries, b"+WPI")

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        await self._respond(deliveries, b"-NAK")

    async def send(self, topic: str, message: bytes) -> None:
        try:
            self._check_connection()
            await self._client.publish(f"{self._prefix}.live.{topic}", message)
        except _ERRORS as error:
            raise _unavailable(error) from error

    async def subscribe(self, topic: str, receiver: Receiver) -> None:
        self._topics.append((topic, receiver))
        try:
            await self._subscribe(topic, receiver)
        except _ERRORS as error:
            raise _unavailable(error) from error

    async def _subscribe(self, topic: str, receiver: Receiver) -> None:
        async def receive(message: Msg) -> None:
            receiver(message.data)

        await self._client.subscribe(f"{self._prefix}.live.{topic}", cb=receive)
        await self._client.flush(timeout=int(_REQUEST_SECONDS))

    async def aclose(self) -> None:
        self._is_closing = True
        self.is_connected = False
        for consumer in self._consumers.values():
            with suppress(*_ERRORS):
                await self._respond(list(consumer.arrived), b"-NAK")
        for task in self._tasks:
            task.cancel()
        if self._stream_context is None:
            return  # it was never connected
        with suppress(*_ERRORS):
            await self._client.flush(timeout=1)
        with suppress(*_ERRORS):
            await self._client.close()

    @property
    def _jetstream(self) -> JetStreamContext:
        assert self._stream_context is not None  # noqa: S101 - it is started
        return self._stream_context

    async def _respond(self, deliveries: Sequence[Delivery], response: bytes) -> None:
        try:
            for delivery in deliveries:
                await self._client.publish(delivery.receipt, response)
        except _ERRORS as error:
            raise _unavailable(error) from error

    async def _consumer(self, crew: str) -> _Consumer:
        """The consumer of a crew, which exists on the server, too."""
        consumer = self._consumers.get(crew)
        if consumer is not None and consumer.subscription is not None:
            return consumer
        async with self._preparing:
            consumer = self._consumers.setdefault(crew, _Consumer())
            if consumer.subscription is None:
                await self._ensure_consumer(crew)

                async def receive(message: Msg) -> None:
                    self._arrived(consumer, message)

                inbox = self._client.new_inbox()
                consumer.subscription = await self._client.subscribe(inbox, cb=receive)
        return consumer

    def _arrived(self, consumer: _Consumer, message: Msg) -> None:
        status = (message.headers or {}).get("Status") if not message.data else None
        if status is None:
            consumer.requested = max(0, consumer.requested - 1)
            *_, crew, run = message.subject.split(".")
            hint = Hint(UUID(run), unquote(crew))
            consumer.arrived.append(Delivery(hint, message.reply))
        elif status == "408":  # expired, with the number that was not sent
            left = (message.headers or {}).get("Nats-Pending-Messages", "0")
            consumer.requested = max(0, consumer.requested - int(left))
        else:  # the consumer is lost, or another server leads it
            self._start(self._restore_soon())
            return
        consumer.changed.set()

    async def _ensure_stream(self) -> None:
        config = StreamConfig(
            name=self._stream,
            subjects=[f"{self._prefix}.runs.*.*"],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            max_msgs_per_subject=1,
            discard_new_per_subject=True,
            max_age=_MAX_AGE_SECONDS,
            num_replicas=self._replicas,
        )
        try:
            await self._jetstream.stream_info(self._stream)
        except NotFoundError:
            await self._jetstream.add_stream(config)

    async def _ensure_consumer(self, crew: str) -> None:
        config = ConsumerConfig(
            durable_name=_token(crew),
            filter_subject=f"{self._prefix}.runs.{_token(crew)}.*",
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self.redelivery_seconds,
            max_deliver=-1,
            max_ack_pending=100_000,
            max_waiting=4096,
        )
        await self._jetstream.add_consumer(self._stream, config)

    async def _restore(self) -> None:
        """Create the stream and the consumers where the server has lost them."""
        async with self._preparing:
            await self._ensure_stream()
            for crew, consumer in self._consumers.items():
                await self._ensure_consumer(crew)
                consumer.requested = 0
                consumer.changed.set()

    async def _restore_soon(self) -> None:
        await asyncio.sleep(_RESTORE_SECONDS)
        with suppress(*_ERRORS):
            await self._restore()

    async def _disconnected(self) -> None:
        self.is_connected = False
        for consumer in self._consumers.values():
            # Without a connection their receipts are of no use; the server repeats them.
            consumer.arrived.clear()
            consumer.requested = 0
            consumer.changed.set()
        if not self._is_closing:
            logger.warning("The queue is away; runs in hand continue, and new ones wait")

    async def _reconnected(self) -> None:
        self._start(self._after_reconnect())

    async def _closed(self) -> None:
        """Connect anew: the client gives up if a server refuses it, perhaps for a while."""
        self.is_connected = False
        if not self._is_closing:
            self._start(self._connect_anew())

    async def _connect_anew(self) -> None:
        for consumer in self._consumers.values():
            consumer.subscription = None
        await retry(self._connect_again, (QueueUnavailable,))
        await self._after_reconnect()

    async def _connect_again(self) -> None:
        try:
            await self._connect()
        except _ERRORS as error:
            raise self._failure(self._problem or error) from None

    async def _after_reconnect(self) -> None:
        """Restore the stream, which needs a while in a cluster without its leader."""
        client = self._client
        if await retry(self._restore, _ERRORS, is_needed=lambda: client.is_connected):
            self._failed_connects = 0
            self.is_connected = True
            self.on_restored()

    def _next_server(self, servers: list[Any], _info: Any) -> tuple[Any, float]:
        """The server to connect to next, and the seconds to wait before: exponential backoff."""
        rounds, index = divmod(self._failed_connects, len(servers))
        self._failed_connects += 1
        return servers[index], backoff_seconds(rounds) if rounds else 0.0

    async def _note_error(self, error: Exception) -> None:
        logger.debug("NATS: %s", error)
        # A server that refuses a client also closes its connection, which is another error.
        if not (self._problem and _is_refusal(self._problem)):
            self._problem = error

    def _check_connection(self) -> None:
        if not self.is_connected:
            raise QueueUnavailable("NATS is not connected")

    def _start(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, ssl.SSLError) or _refuses_login(error)


def _refuses_login(error: BaseException) -> bool:
    return "authorization violation" in str(error).lower()


def _check_credentials(path: Path) -> None:
    """Raises QueueUnavailable; the client would fail in many ways."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise QueueUnavailable(f"{path} can't be read: {error}", "credentials") from None
    if not ("BEGIN NATS USER JWT" in text and "BEGIN USER NKEY SEED" in text):
        raise QueueUnavailable(f"{path} is not a credentials file of NATS", "credentials")


def _trusting(path: Path) -> ssl.SSLContext:
    """Raises QueueUnavailable."""
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        raise QueueUnavailable(f"{path} has no certificates in PEM: {error}", "ca_file") from None


def _token(crew: str) -> str:
    """A crew's name as a part of subjects and names of consumers."""
    return quote(crew, safe="").replace(".", "%2E")


def _unavailable(error: BaseException) -> QueueUnavailable:
    return QueueUnavailable(f"NATS: {str(error) or type(error).__name__}")
