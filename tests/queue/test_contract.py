"""The promises of `Driver` and `RunQueue`, on each kind of broker."""

import asyncio
from uuid import UUID, uuid4

from app.runs.queue.base import Delivery, Hint, RunQueue
from tests.queue.brokers import Broker, Connect

CREW = "idea"
WAIT_SECONDS = 20.0
NOTHING_SECONDS = 0.3


def hints(count: int, crew: str = CREW) -> list[Hint]:
    return [Hint(uuid4(), crew) for _ in range(count)]


async def receive(queue: RunQueue, count: int, crew: str = CREW) -> list[Delivery]:
    """Receive exactly this many hints."""
    received: list[Delivery] = []
    async with asyncio.timeout(60):
        while len(received) < count:
            received += await queue.receive(crew, count - len(received), WAIT_SECONDS)
    return received


def ids(deliveries: list[Delivery]) -> list[UUID]:
    return [delivery.hint.run_id for delivery in deliveries]


async def settled(queue: RunQueue, crew: str = CREW) -> None:
    """Wait until no hint waits, as far as acknowledgements show."""
    async with asyncio.timeout(30):
        while queue.in_hand or await queue.waiting(crew):  # noqa: ASYNC110 - the broker's count
            await asyncio.sleep(0.01)


async def test_a_hint_is_delivered_with_its_run_and_crew(connect: Connect) -> None:
    publisher, worker = await connect(), await connect()
    [hint] = hints(1, "crew with spaces.and:dots/*>")
    await publisher.publish([hint])
    [delivery] = await receive(worker, 1, hint.crew)
    assert delivery.hint == hint


async def test_hints_arrive_in_the_order_of_publication(connect: Connect) -> None:
    queue = await connect()
    published = hints(50)
    await queue.publish(published)
    assert ids(await receive(queue, 50)) == [hint.run_id for hint in published]


async def test_a_receiver_that_waits_gets_a_hint_that_is_published_later(connect: Connect) -> None:
    publisher, worker = await connect(), await connect()
    waiting = asyncio.create_task(receive(worker, 1))
    await worker.receive("another", 1, NOTHING_SECONDS)  # meanwhile it does wait
    [hint] = hints(1)
    publisher.publish_soon(hint)
    assert ids(await waiting) == [hint.run_id]


async def test_at_most_as_many_are_received_as_requested(connect: Connect) -> None:
    queue = await connect()
    await queue.publish(hints(5))
    assert len(await queue.receive(CREW, 2, WAIT_SECONDS)) <= 2


async def test_nothing_is_received_if_nothing_waits(connect: Connect) -> None:
    queue = await connect()
    assert list(await queue.receive(CREW, 5, NOTHING_SECONDS)) == []


async def test_hints_of_a_crew_go_to_its_workers_alone(connect: Connect) -> None:
    queue = await connect()
    [other], [mine] = hints(1, "other"), hints(1)
    await queue.publish([other, mine])
    assert ids(await receive(queue, 1)) == [mine.run_id]
    assert await queue.waiting("other") == 1


async def test_each_hint_goes_to_one_of_several_workers(connect: Connect) -> None:
    publisher, *workers = [await connect() for _ in range(4)]
    published = hints(300)
    received: list[Delivery] = []

    async def work(worker: RunQueue) -> None:
        while len(received) < len(published):
            deliveries = await worker.receive(CREW, 10, NOTHING_SECONDS)
            received.extend(deliveries)
            for delivery in deliveries:
                worker.acknowledge(delivery)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for worker in workers:
            group.create_task(work(worker))
        await publisher.publish(published)
    assert sorted(ids(received)) == sorted(hint.run_id for hint in published)


async def test_a_repeated_hint_is_dropped_while_the_first_waits_or_is_in_hand(
    connect: Connect,
) -> None:
    queue = await connect()
    published = hints(2)
    await queue.publish(published)
    await queue.publish(published)
    await receive(queue, 2)
    await queue.publish(published)
    assert list(await queue.receive(CREW, 5, NOTHING_SECONDS)) == []


async def test_a_hint_can_be_published_again_after_its_acknowledgement(connect: Connect) -> None:
    queue = await connect()
    [hint] = hints(1)
    for _ in range(3):
        deliveries: list[Delivery] = []
        async with asyncio.timeout(30):
            while not deliveries:  # the acknowledgement before is on its way
                await queue.publish([hint])
                deliveries = list(await queue.receive(CREW, 1, NOTHING_SECONDS))
        assert ids(deliveries) == [hint.run_id]
        queue.acknowledge(deliveries[0])


async def test_an_acknowledged_hint_is_gone(connect: Connect) -> None:
    queue = await connect(redelivery_seconds=0.5)
    await queue.publish(hints(1))
    [delivery] = await receive(queue, 1)
    queue.acknowledge(delivery)
    assert list(await queue.receive(CREW, 1, 1.5)) == []


async def test_a_worker_that_stops_gives_its_hints_back_at_once(connect: Connect) -> None:
    stopping, other = await connect(), await connect()
    published = hints(3)
    await stopping.publish(published)
    await receive(stopping, 3)
    await stopping.aclose()
    assert sorted(ids(await receive(other, 3))) == sorted(hint.run_id for hint in published)


async def test_a_hint_that_is_given_back_is_delivered_at_once(connect: Connect) -> None:
    queue = await connect()
    await queue.publish(hints(1))
    for _ in range(5):
        [delivery] = await receive(queue, 1)
        await queue.give_back([delivery])
    assert len(await receive(queue, 1)) == 1


async def test_hints_of_a_dead_worker_are_delivered_again(broker: Broker, connect: Connect) -> None:
    dead = broker.driver(redelivery_seconds=1.0)
    await dead.start()
    other = await connect(redelivery_seconds=1.0)
    published = hints(20)
    await other.publish(published)
    received: list[Delivery] = []
    while len(received) < 20:
        received += await dead.receive(CREW, 20, WAIT_SECONDS)
    # It neither keeps nor acknowledges them any more.
    assert sorted(ids(await receive(other, 20))) == sorted(hint.run_id for hint in published)
    await dead.aclose()


async def test_hints_in_hand_are_kept(connect: Connect) -> None:
    worker, other = await connect(redelivery_seconds=1.5), await connect(redelivery_seconds=1.5)
    await worker.publish(hints(5))
    await receive(worker, 5)
    assert list(await other.receive(CREW, 5, 2.5)) == []


async def test_a_wait_that_is_cancelled_loses_no_hint(connect: Connect) -> None:
    publisher, worker = await connect(), await connect()
    published = hints(30)
    received: list[Delivery] = []
    for hint in published:
        waiting = asyncio.create_task(worker.receive(CREW, 1, WAIT_SECONDS))
        await asyncio.sleep(0)
        await publisher.publish([hint])
        waiting.cancel()
        [result] = await asyncio.gather(waiting, return_exceptions=True)
        if not isinstance(result, BaseException):
            received += result
    received += await receive(worker, len(published) - len(received))
    assert sorted(ids(received)) == sorted(hint.run_id for hint in published)


async def test_waiting_counts_the_hints_that_are_not_delivered(connect: Connect) -> None:
    queue = await connect()
    assert await queue.waiting(CREW) == 0
    await queue.publish(hints(7))
    assert await queue.waiting(CREW) == 7
    for delivery in await receive(queue, 7):
        queue.acknowledge(delivery)
    await settled(queue)


async def test_ten_thousand_hints(connect: Connect) -> None:
    publisher, worker = await connect(), await connect()
    published = hints(10_000)
    for start in range(0, len(published), 500):
        await publisher.publish(published[start : start + 500])
    received: list[UUID] = []
    while len(received) < len(published):
        deliveries = await receive(worker, 100)
        received += ids(deliveries)
        for delivery in deliveries:
            worker.acknowledge(delivery)
    assert sorted(received) == sorted(hint.run_id for hint in published)
    await settled(worker)


async def test_live_messages_reach_all_subscribers_in_order(connect: Connect) -> None:
    sender, first, second = await connect(), await connect(), await connect()
    received: dict[str, list[bytes]] = {"sender": [], "first": [], "second": []}
    all_received = asyncio.Event()

    for name, queue in (("sender", sender), ("first", first), ("second", second)):

        def receive_one(message: bytes, name: str = name) -> None:
            received[name].append(message)
            if all(len(messages) == 20 for messages in received.values()):
                all_received.set()

        await queue.subscribe("events", receive_one)
    for number in range(20):
        assert await sender.send("events", bytes([number]) * 1000)
    async with asyncio.timeout(30):
        await all_received.wait()
    expected = [bytes([number]) * 1000 for number in range(20)]
    assert received == dict.fromkeys(received, expected)


async def test_live_messages_of_other_topics_do_not_arrive(connect: Connect) -> None:
    queue = await connect()
    received: list[bytes] = []
    arrived = asyncio.Event()

    def receive_one(message: bytes) -> None:
        received.append(message)
        arrived.set()

    await queue.subscribe("mine", receive_one)
    await queue.send("other", b"no")
    await queue.send("mine", b"yes")
    async with asyncio.timeout(30):
        await arrived.wait()
    assert received == [b"yes"]


async def test_the_check_is_a_round_trip(connect: Connect) -> None:
    queue = await connect()
    await queue.check()
    await queue.check()
