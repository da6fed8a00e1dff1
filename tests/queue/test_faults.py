"""Brokers that go away and come back without the hints."""

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from app.runs.queue.base import QueueUnavailable, RunQueue
from app.runs.queue.nats import NatsDriver
from tests.queue.brokers import Broker, Connect
from tests.queue.test_contract import CREW, NOTHING_SECONDS, hints, ids, receive
from tests.servers import NatsServer, free_ports


async def outage(broker: Broker, *queues: RunQueue) -> None:
    """Stop the broker, until all queues have noticed."""
    await broker.stop()
    async with asyncio.timeout(60):
        while any(queue.is_connected for queue in queues):  # noqa: ASYNC110 - a property
            await asyncio.sleep(0.01)


def restored(queue: RunQueue) -> asyncio.Event:
    """Is set when the queue reports that hints may be lost."""
    event = asyncio.Event()
    queue.on_lost = event.set
    return event


async def test_a_broker_that_restarts_empty_is_reported_and_works(
    broker: Broker, connect: Connect
) -> None:
    publisher, worker = await connect(), await connect()
    [lost, in_hand] = hints(2)
    await publisher.publish([in_hand])
    [delivery] = await receive(worker, 1)
    await publisher.publish([lost])
    restorations = [restored(publisher), restored(worker)]
    await outage(broker, publisher, worker)
    await broker.start_empty()
    async with asyncio.timeout(60):
        for event in restorations:
            await event.wait()
    assert publisher.is_connected
    assert worker.is_connected
    published = [lost, *hints(1)]
    await publisher.publish(published)
    # Of a hint that is lost: harmless, although an emptied table numbers its rows anew.
    worker.acknowledge(delivery)
    await asyncio.gather(*worker._tasks)
    assert set(ids(await receive(worker, 2))) == {hint.run_id for hint in published}


async def test_an_outage_is_reported_by_every_call_and_ends_by_itself(
    broker: Broker, connect: Connect
) -> None:
    queue = await connect()
    event = restored(queue)
    await outage(broker, queue)
    with pytest.raises(QueueUnavailable):
        await queue.publish(hints(1))
    with pytest.raises(QueueUnavailable):
        await queue.waiting(CREW)
    with pytest.raises(QueueUnavailable):
        await queue.receive(CREW, 1, NOTHING_SECONDS)
    assert not await queue.send("topic", b"message")
    queue.on_lost = (lost := asyncio.Event()).set
    queue.publish_soon(hints(1)[0])
    async with asyncio.timeout(30):
        await lost.wait()
    queue.on_lost = event.set
    await broker.start_empty()
    async with asyncio.timeout(60):
        await event.wait()
    await queue.check()


async def test_a_receiver_that_waits_during_an_outage_receives_later(
    broker: Broker, connect: Connect
) -> None:
    publisher, worker = await connect(), await connect()
    arrived = asyncio.Event()

    async def work() -> None:
        while True:
            try:
                if await worker.receive(CREW, 1, 5.0):
                    arrived.set()
                    return
            except QueueUnavailable:
                await asyncio.sleep(0.05)

    working = asyncio.create_task(work())
    event = restored(publisher)
    await outage(broker, publisher, worker)
    await broker.start_empty()
    async with asyncio.timeout(60):
        await event.wait()
        await publisher.publish(hints(1))
        await arrived.wait()
    await working


async def test_subscriptions_continue_after_an_outage(broker: Broker, connect: Connect) -> None:
    sender, receiver = await connect(), await connect()
    arrived = asyncio.Event()
    await receiver.subscribe("topic", lambda _: arrived.set())
    events = [restored(sender), restored(receiver)]
    await outage(broker, sender, receiver)
    await broker.start_empty()
    async with asyncio.timeout(60):
        for event in events:
            await event.wait()
        assert await sender.send("topic", b"message")
        await arrived.wait()


async def test_a_nats_server_that_keeps_its_disk_keeps_the_hints(tmp_path: Path) -> None:
    with NatsServer(tmp_path / "streams") as server:
        queue = RunQueue(NatsDriver([server.url], prefix="test"))
        await queue.start()
        published = hints(5)
        await queue.publish(published)
        event = restored(queue)
        server.kill()
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(60):
            await event.wait()
        assert ids(await receive(queue, 5)) == [hint.run_id for hint in published]
        await queue.aclose()


async def test_the_time_of_redelivery_is_that_of_the_last_start(nats_server: NatsServer) -> None:
    def driver(redelivery_seconds: float) -> NatsDriver:
        return NatsDriver(
            [nats_server.url], prefix="changed", redelivery_seconds=redelivery_seconds
        )

    lost = driver(300.0)
    await lost.start()
    published = hints(3)
    await lost.publish(published)
    while not await lost.receive(CREW, 3, 5.0):
        pass
    await lost.aclose()
    queue = RunQueue(driver(1.0))
    await queue.start()
    assert sorted(ids(await receive(queue, 3))) == sorted(hint.run_id for hint in published)
    await queue.aclose()


async def test_a_server_that_is_not_there_is_one_line_without_the_password() -> None:
    (port,) = free_ports(1)
    driver = NatsDriver([f"nats://user:secret-word@127.0.0.1:{port}"], prefix=uuid4().hex)
    with pytest.raises(QueueUnavailable) as raised:
        await driver.start()
    assert "\n" not in str(raised.value)
    assert "secret-word" not in str(raised.value)
