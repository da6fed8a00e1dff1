"""Slots of webhook deliveries: slow receivers delay neither other owners nor other receivers."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

import pytest
from aiohttp import web

from app.access.callers import Caller
from app.db import Database
from app.runs.records import RunOptions, webhooks_at
from app.runs.webhooks.delivery_slots import (
    MAX_IN_FLIGHT,
    MAX_PER_HOST,
    MAX_PROBES,
    CircuitBreakers,
    DeliverySlots,
    Receiver,
)
from app.runs.webhooks.outbox import Outbox
from app.runs.webhooks.sender import WebhookSender
from app.runs.webhooks.url_guard import UrlGuard
from storage import OutputStore
from tests.runs.receiver import SECRET, Arrival, never, receiving
from tests.runs.scripted import Parts, running_service, until

ANNA, BERTA = Caller("anna", is_admin=False), Caller("berta", is_admin=False)
PER_RUN = 4


@pytest.fixture
async def url_guard() -> AsyncIterator[UrlGuard]:
    guard = UrlGuard(allow_private=True)
    yield guard
    await guard.aclose()


@pytest.fixture
async def parts(
    database: Database, store: OutputStore, url_guard: UrlGuard
) -> AsyncIterator[Parts]:
    async with running_service(database, store, url_guard=url_guard) as parts:
        yield parts


@asynccontextmanager
async def _sending(
    database: Database, url_guard: UrlGuard, *, slow_seconds: float = 60
) -> AsyncIterator[WebhookSender]:
    sender = WebhookSender(
        database.clock,
        Outbox(database, lease_seconds=120),
        url_guard,
        secret=SECRET,
        timeout_seconds=60,
        slow_seconds=slow_seconds,
    )
    sender.start()
    try:
        yield sender
    finally:
        await sender.aclose()


async def _run(parts: Parts, url: str, caller: Caller, times: int = 1) -> None:
    """Run to the end so many times; all deliveries are stored then."""
    for _ in range(times):
        options = RunOptions(webhooks=webhooks_at(url))
        run_id = await parts.submit("poem", {"topic": "rain"}, caller, options)
        await parts.wait(run_id, caller)

        async def stored(run_id: UUID = run_id) -> bool:
            return len(await parts.queries.deliveries(run_id)) == PER_RUN

        await until(stored)


async def test_silent_receivers_of_one_owner_leave_slots_for_others(
    parts: Parts, url_guard: UrlGuard
) -> None:
    async with AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(receiving(never)) for _ in range(9)]
        for receiver in silent:
            await _run(parts, receiver.url, ANNA, times=MAX_PER_HOST // 2 // PER_RUN)
        sender = await stack.enter_async_context(_sending(parts.database, url_guard))

        async def annas_slots_are_full() -> bool:
            return len(sender) == MAX_IN_FLIGHT // 2

        await until(annas_slots_are_full)
        good = await stack.enter_async_context(receiving())
        await _run(parts, good.url, BERTA)

        async def berta_was_notified() -> bool:
            return len(good.arrivals) == PER_RUN

        await until(berta_was_notified)
        assert len(sender) >= MAX_IN_FLIGHT // 2  # anna's are still unanswered


async def test_owners_get_slots_in_turn(parts: Parts) -> None:
    await _run(parts, "http://127.0.0.1:9/", ANNA, times=4)  # all due before Berta's
    await _run(parts, "http://127.0.0.1:9/", BERTA)
    others = [Receiver(f"owner {i}", f"{i}:80") for i in range(MAX_IN_FLIGHT - 8)]
    outbox = Outbox(parts.database, lease_seconds=60)
    claimed = await outbox.claim(DeliverySlots(others, CircuitBreakers()))
    owners = Counter(attempt.receiver.owner for attempt in claimed)
    assert owners == {"anna": 3, "berta": 3}  # then as many are free


async def test_a_slow_receiver_gets_one_delivery_at_a_time(
    parts: Parts, url_guard: UrlGuard
) -> None:
    per_owner = MAX_PER_HOST // 2
    all_arrived, in_flight, at_arrival = asyncio.Event(), 0, []

    async def answer(_: Arrival) -> web.StreamResponse:
        nonlocal in_flight
        in_flight += 1
        at_arrival.append(in_flight)
        if in_flight == per_owner:
            all_arrived.set()
        await all_arrived.wait()
        await asyncio.sleep(0)
        in_flight -= 1
        return web.Response()

    async with receiving(answer) as receiver:
        await _run(parts, receiver.url, ANNA, times=8)
        # To this sender, every response is a slow one.
        async with _sending(parts.database, url_guard, slow_seconds=0):

            async def all_were_sent() -> bool:
                return len(receiver.arrivals) == 8 * PER_RUN

            await until(all_were_sent)
    # Three slow responses open the circuit. Two slots may be free before.
    before_open = per_owner + 2
    assert at_arrival[per_owner - 1] == per_owner
    assert set(at_arrival[before_open:]) == {1}


def _acquired(slots: DeliverySlots, receivers: Iterable[Receiver]) -> list[bool]:
    return [slots.acquire(receiver) for receiver in receivers]


def _opened(*receivers: Receiver) -> CircuitBreakers:
    breakers = CircuitBreakers()
    for receiver in receivers * 3:
        breakers.record_failure(receiver)
    return breakers


def test_an_owner_alone_gets_half_of_the_slots_and_each_other_finds_some() -> None:
    slots = DeliverySlots([], CircuitBreakers())
    counts = [
        sum(_acquired(slots, (Receiver(owner, f"{i}:80") for i in range(500)))) for owner in "abcd"
    ]
    assert counts == [MAX_IN_FLIGHT // 2, MAX_IN_FLIGHT // 4, MAX_IN_FLIGHT // 8, 8]
    assert set("abcd") == set(slots.full_owners())


def test_owners_share_the_slots_of_a_host() -> None:
    slots = DeliverySlots([Receiver("a", "shared:443")] * (MAX_PER_HOST // 2), CircuitBreakers())
    assert slots.full_receivers() == [Receiver("a", "shared:443")]
    assert not slots.acquire(Receiver("a", "shared:443"))
    assert slots.acquire(Receiver("b", "shared:443"))
    assert slots.acquire(Receiver("a", "other:443"))


def test_an_open_circuit_admits_one_probe_and_a_success_closes_it() -> None:
    silent = Receiver("a", "silent:443")
    breakers = _opened(silent)
    assert _acquired(DeliverySlots([], breakers), [silent] * 3) == [True, False, False]
    assert DeliverySlots([silent], breakers).full_receivers() == [silent]
    others = [Receiver("b", silent.host)] * 3  # its circuit is another owner's
    assert _acquired(DeliverySlots([silent], breakers), others) == [True] * 3
    breakers.record_success(silent)
    assert _acquired(DeliverySlots([], breakers), [silent] * 3) == [True] * 3


def test_probes_have_few_slots_and_an_owner_half_of_them() -> None:
    silent = [Receiver("a", f"{i}:443") for i in range(100)]
    other = Receiver("b", "restarting:443")
    slots = DeliverySlots([], _opened(*silent, other))
    assert sum(_acquired(slots, silent)) == MAX_PROBES // 2
    assert set(slots.full_receivers()) == set(silent)
    assert slots.acquire(other)
    assert slots.acquire(Receiver("a", "fine:443"))


def test_deliveries_in_flight_when_the_circuit_opens_count_as_one_probe() -> None:
    silent, other = Receiver("a", "silent:443"), Receiver("a", "restarting:443")
    assert DeliverySlots([silent] * 16, _opened(silent, other)).acquire(other)


def test_the_receivers_without_a_recent_failure_are_forgotten() -> None:
    breakers = CircuitBreakers(max_receivers=2)
    first, second, third = (Receiver("a", host) for host in "123")
    for receiver in (first, second) * 3:
        breakers.record_failure(receiver)
    breakers.record_failure(third)
    assert breakers.open_receivers() == [second]
