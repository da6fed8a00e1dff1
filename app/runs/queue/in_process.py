"""The broker of one process: the promises of a driver without a server."""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Final
from uuid import UUID

from app.runs.queue.base import Delivery, Driver, Hint, QueueUnavailable, Receiver


class InProcessBroker:
    """Holds hints and forwards messages between the drivers of one event loop."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.receivers: dict[str, list[Receiver]] = defaultdict(list)
        self._is_away = False
        self._drivers: list[InProcessDriver] = []
        self._waiting: dict[str, OrderedDict[UUID, Hint]] = defaultdict(OrderedDict)
        # With the times of their redelivery, by the loop's clock.
        self._delivered: dict[UUID, tuple[Delivery, float]] = {}

    @property
    def is_away(self) -> bool:
        """Whether no driver can reach the broker."""
        return self._is_away

    def attach(self, driver: "InProcessDriver") -> None:
        """Report outages to a driver."""
        self._drivers.append(driver)

    def stop(self) -> None:
        """Begin an outage."""
        self._is_away = True
        for driver in self._drivers:
            driver.is_connected = False

    def restart(self, *, is_empty: bool) -> None:
        """End the outage, with or without the hints."""
        if is_empty:
            self._waiting.clear()
            self._delivered.clear()
        self._is_away = False
        for driver in self._drivers:
            driver.is_connected = True
            driver.on_restored()
        self._wake()

    def put(self, hint: Hint) -> None:
        if hint.run_id not in self._delivered:
            self._waiting[hint.crew].setdefault(hint.run_id, hint)
            self._wake()

    def waiting(self, crew: str) -> int:
        self._redeliver()
        return len(self._waiting[crew])

    def pop(self, crew: str, count: int, redelivery_seconds: float) -> Sequence[Delivery]:
        self._redeliver()
        hints = self._waiting[crew]
        deliveries: list[Delivery] = []
        while hints and len(deliveries) < count:
            run_id, hint = hints.popitem(last=False)
            delivery = Delivery(hint, None)
            self._delivered[run_id] = delivery, _now() + redelivery_seconds
            deliveries.append(delivery)
        return deliveries

    def remove(self, delivery: Delivery) -> bool:
        """Forget a delivery; whether it was still the last one of its hint."""
        last, _ = self._delivered.get(delivery.hint.run_id, (None, 0.0))
        if last is delivery:
            del self._delivered[delivery.hint.run_id]
        return last is delivery

    def keep(self, delivery: Delivery, redelivery_seconds: float) -> None:
        if self.remove(delivery):
            self._delivered[delivery.hint.run_id] = delivery, _now() + redelivery_seconds

    def _redeliver(self) -> None:
        due = [one for one, until in self._delivered.values() if until <= _now()]
        for delivery in due:
            self.remove(delivery)
            self.put(delivery.hint)

    def _wake(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class InProcessDriver(Driver):
    """A connection to the broker of this process."""

    _POLL_SECONDS: Final = 0.1

    def __init__(self, broker: InProcessBroker, *, redelivery_seconds: float = 30.0) -> None:
        self._broker = broker
        self.redelivery_seconds = redelivery_seconds

    async def start(self) -> None:
        self._reach()
        self._broker.attach(self)
        self.is_connected = True

    async def publish(self, hints: Sequence[Hint]) -> None:
        self._reach()
        for hint in hints:
            self._broker.put(hint)

    async def waiting(self, crew: str) -> int:
        self._reach()
        return self._broker.waiting(crew)

    async def receive(self, crew: str, count: int, wait_seconds: float) -> Sequence[Delivery]:
        deadline = _now() + wait_seconds
        while True:
            self._reach()
            changed = self._broker.changed
            deliveries = self._broker.pop(crew, count, self.redelivery_seconds)
            seconds_left = deadline - _now()
            if deliveries or seconds_left <= 0:
                return deliveries
            # Redeliveries are noticed by polling.
            timeout = min(seconds_left, self._POLL_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await changed.wait()

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self._reach()
        for delivery in deliveries:
            self._broker.remove(delivery)

    async def keep(self, deliveries: Sequence[Delivery]) -> None:
        self._reach()
        for delivery in deliveries:
            self._broker.keep(delivery, self.redelivery_seconds)

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        self._reach()
        for delivery in deliveries:
            if self._broker.remove(delivery):
                self._broker.put(delivery.hint)

    async def send(self, topic: str, message: bytes) -> None:
        self._reach()
        for receiver in self._broker.receivers[topic]:
            asyncio.get_running_loop().call_soon(receiver, message)

    async def subscribe(self, topic: str, receiver: Receiver) -> None:
        self._broker.receivers[topic].append(receiver)

    async def aclose(self) -> None:
        self.is_connected = False

    def _reach(self) -> None:
        if self._broker.is_away:
            raise QueueUnavailable("the broker is away")


def _now() -> float:
    return asyncio.get_running_loop().time()
