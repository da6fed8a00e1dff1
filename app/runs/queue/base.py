"""Queues that move the ids of runs, and live messages, between processes.

A run's row is the one authority over it: a delivery is a hint. A worker that receives one claims
the run by the conditional update, or drops the hint. A queue that loses all hints loses nothing but
time: whatever the database holds as queued or stalled is published again. So no input, output or
outcome passes through a queue.

`RunQueue` is the concrete front, and a `Driver` the small part that differs between brokers. One
suite, `tests/queue/`, holds all drivers to these promises.
"""

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID, uuid4

from app.telemetry import metrics

logger = logging.getLogger("crew_capture.queue")

# Publications and acknowledgements of so long share a request to the broker.
_JOINED_SECONDS: Final = 0.005
_FIRST_BACKOFF_SECONDS: Final = 0.1
_MAX_BACKOFF_SECONDS: Final = 5.0
_CHECK_SECONDS: Final = 5.0
_CHECK_CREW: Final = "crew-capture-check"


class QueueUnavailable(Exception):
    """The broker can't be reached now, or refuses this process.

    The message is one line without secrets. `about` names what is to be corrected, if it is not
    the URL.
    """

    def __init__(self, message: str, about: Literal["url", "credentials", "ca_file"] = "url"):
        super().__init__(message)
        self.about = about


async def retry(
    operation: Callable[[], Awaitable[None]],
    errors: tuple[type[BaseException], ...],
    *,
    is_needed: Callable[[], bool] = lambda: True,
) -> bool:
    """Call until there is no such error, or no need any more; whether it has succeeded."""
    failures, last_problem = 0, ""
    while is_needed():
        try:
            await operation()
        except errors as error:
            problem = str(error) or type(error).__name__
            level = logging.DEBUG if problem == last_problem else logging.WARNING
            logger.log(level, "The queue can't be used: %s; this process tries again", problem)
            last_problem = problem
            await asyncio.sleep(backoff_seconds(failures))
            failures += 1
        else:
            return True
    return False


def backoff_seconds(failures: int) -> float:
    """The pause after so many failures in a row: exponential, with jitter, five seconds at most."""
    longest = min(_FIRST_BACKOFF_SECONDS * 2.0 ** min(failures, 20), _MAX_BACKOFF_SECONDS)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret


@dataclass(frozen=True, slots=True)
class Hint:
    """The id of a run that a worker is to claim, and its crew."""

    run_id: UUID
    crew: str


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A hint in the hands of this process. `receipt` identifies the delivery to its driver."""

    hint: Hint
    receipt: Any


Receiver = Callable[[bytes], None]
"""Is called with each message of a topic. It neither blocks nor raises."""


class Driver(ABC):
    """A broker. Every method but `aclose` may raise QueueUnavailable.

    A delivery that is neither acknowledged, kept nor given back for `redelivery_seconds` is
    delivered again, to any process. After a loss of the connection the driver connects again by
    itself, with exponential backoff, creates whatever the broker has lost, and calls `on_restored`.
    """

    redelivery_seconds: float
    is_connected: bool = False
    is_live: bool = True
    """Whether the broker forwards live messages."""

    on_restored: Callable[[], None] = staticmethod(lambda: None)
    """Is called after each connection but the first: the broker may have lost all hints."""

    @abstractmethod
    async def start(self) -> None:
        """Connect, and create what the queue needs. Raises QueueUnavailable within seconds."""

    @abstractmethod
    async def publish(self, hints: Sequence[Hint]) -> None:
        """Store hints. A hint of a run that has one already is dropped."""

    @abstractmethod
    async def waiting(self, crew: str) -> int:
        """The number of stored hints of a crew that are not delivered."""

    @abstractmethod
    async def receive(self, crew: str, count: int, wait_seconds: float) -> Sequence[Delivery]:
        """Wait for hints of a crew, and return at most `count` as soon as there is one.

        Returns nothing if none arrives in time. Each hint is delivered to one process at a time.
        A wait that is cancelled loses no hint.
        """

    @abstractmethod
    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Remove hints. An acknowledgement that is lost is harmless: the hint is repeated."""

    @abstractmethod
    async def keep(self, deliveries: Sequence[Delivery]) -> None:
        """Put off the redelivery of hints, by `redelivery_seconds` from now."""

    @abstractmethod
    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Deliver hints again at once, to any process."""

    @abstractmethod
    async def send(self, topic: str, message: bytes) -> None:
        """Send a live message to all processes that subscribe to the topic, this one included.

        Processes that are away never receive it.
        """

    @abstractmethod
    async def subscribe(self, topic: str, receiver: Receiver) -> None:
        """Call the receiver with each message of a topic from now on, in the order of sending."""

    @abstractmethod
    async def aclose(self) -> None:
        """Disconnect. Deliveries in hand are delivered again later. Never raises."""


class RunQueue:
    """A queue: it joins requests, keeps deliveries in hand, and reports the state.

    After `start`, only `publish`, `waiting`, `receive` and `check` raise QueueUnavailable.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._publications: list[Hint] = []
        self._acknowledged: list[Delivery] = []
        self._in_hand: set[Delivery] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flushing: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self.on_lost: Callable[[], None] = lambda: None
        """Is called when hints may be lost: publish again what the database holds."""

    @property
    def is_connected(self) -> bool:
        """Whether the broker can be reached."""
        return self._driver.is_connected

    @property
    def is_live(self) -> bool:
        """Whether live messages reach other processes now."""
        return self._driver.is_connected and self._driver.is_live

    @property
    def redelivery_seconds(self) -> float:
        """The time after which the hints of a lost worker are delivered to others."""
        return self._driver.redelivery_seconds

    @property
    def in_hand(self) -> int:
        """The number of deliveries that are not acknowledged yet."""
        return len(self._in_hand)

    async def start(self) -> None:
        """Connect. Raises QueueUnavailable."""
        await self._driver.start()
        self._driver.on_restored = self._restored
        self._keeping = asyncio.create_task(self._keep_forever(), name="queue deliveries")

    async def publish(self, hints: Sequence[Hint]) -> None:
        """Store hints; when this returns, the broker has them. Raises QueueUnavailable."""
        if hints:
            await self._driver.publish(hints)
            metrics.QUEUE_PUBLISHED.inc(by=len(hints))

    def publish_soon(self, hint: Hint) -> None:
        """Store a hint within milliseconds; `on_lost` is called if it can't be stored."""
        self._publications.append(hint)
        self._flush_soon()

    async def waiting(self, crew: str) -> int:
        """The number of hints of a crew that wait for a worker. Raises QueueUnavailable."""
        return await self._driver.waiting(crew)

    async def receive(self, crew: str, count: int, wait_seconds: float) -> Sequence[Delivery]:
        """Hints of a crew, at most `count`, kept in hand until they are acknowledged.

        Raises QueueUnavailable.
        """
        deliveries = await self._driver.receive(crew, count, wait_seconds)
        self._in_hand.update(deliveries)
        metrics.QUEUE_DELIVERED.inc(by=len(deliveries))
        return deliveries

    def acknowledge(self, delivery: Delivery) -> None:
        """Remove a hint within milliseconds: its run is claimed, or needs no worker."""
        self._in_hand.discard(delivery)
        self._acknowledged.append(delivery)
        self._flush_soon()

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Deliver hints again at once, to any process."""
        self._in_hand.difference_update(deliveries)
        if deliveries:
            try:
                await self._driver.give_back(deliveries)
            except QueueUnavailable as error:
                logger.debug("%s; hints are delivered again later", error)

    async def send(self, topic: str, message: bytes) -> bool:
        """Send a live message to all processes; whether it was sent."""
        if not self.is_live:
            return False
        try:
            await self._driver.send(topic, message)
        except QueueUnavailable as error:
            logger.debug("%s; a live message is lost", error)
            return False
        return True

    def send_soon(self, topic: str, message: bytes) -> None:
        """Send a live message without waiting."""
        self._start(self._send(topic, message))

    async def subscribe(self, topic: str, receiver: Receiver) -> None:
        """Call the receiver with each message of a topic from now on."""
        await self._driver.subscribe(topic, receiver)

    async def check(self) -> None:
        """A round trip of a hint and of a live message. Raises QueueUnavailable.

        A broker that does not forward live messages passes: processes poll the database then.
        """
        topic, returned = f"check-{uuid4().hex}", asyncio.Event()
        mine = Hint(uuid4(), _CHECK_CREW)
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await self._driver.publish([mine])
                arrived = False
                while not arrived:
                    for delivery in await self._driver.receive(_CHECK_CREW, 1, 1.0):
                        await self._driver.acknowledge([delivery])
                        arrived |= delivery.hint == mine
                if self.is_live:
                    await self._driver.subscribe(topic, lambda _: returned.set())
                    await self._driver.send(topic, b"check")
                    await returned.wait()
        except TimeoutError:
            raise QueueUnavailable("a test message did not return in time") from None

    async def aclose(self) -> None:
        """Send what waits, give back the deliveries in hand, and disconnect."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.give_back(list(self._in_hand))
        await self._driver.aclose()

    def _restored(self) -> None:
        logger.info("The queue is connected again")
        metrics.QUEUE_RECONNECTS.inc()
        self.on_lost()

    def _flush_soon(self) -> None:
        if self._flushing is None:
            self._flushing = self._start(self._flush())

    async def _flush(self) -> None:
        try:
            while self._publications or self._acknowledged:
                hints, self._publications = self._publications, []
                deliveries, self._acknowledged = self._acknowledged, []
                await self._store(hints, deliveries)
                await asyncio.sleep(_JOINED_SECONDS)
        finally:
            self._flushing = None

    async def _store(self, hints: Sequence[Hint], deliveries: Sequence[Delivery]) -> None:
        try:
            await self.publish(hints)
        except QueueUnavailable as error:
            logger.debug("%s; %d hint(s) are published later", error, len(hints))
            self.on_lost()
        try:
            if deliveries:
                await self._driver.acknowledge(deliveries)
        except QueueUnavailable as error:
            logger.debug("%s; hints are delivered again", error)

    async def _send(self, topic: str, message: bytes) -> None:
        await self.send(topic, message)

    async def _keep_forever(self) -> None:
        while True:
            await asyncio.sleep(self.redelivery_seconds / 3)
            try:
                if deliveries := list(self._in_hand):
                    await self._driver.keep(deliveries)
            except QueueUnavailable as error:
                logger.debug("%s; hints may be delivered again", error)

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
