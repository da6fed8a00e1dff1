"""Live messages between services: these tests wait for no poll but those that messages cause."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing

from app.access.callers import OPERATOR
from app.runs.events.event import EventType
from app.runs.records import RunStatus
from tests.runs.scripted import TASKS, Parts, Stage, succeed, until
from tests.runs.test_shared_dispatch import INPUTS, Machines, machines, settled, start

__all__ = ["machines"]

NEVER_SECONDS = 3600.0


def poll_if_woken(*services: Parts) -> None:
    """Start the pollers, after whose first pass only live messages make them poll."""
    for parts in services:
        parts.peer_poller.interval_seconds = NEVER_SECONDS
        parts.peer_poller.start()


async def test_a_cancel_reaches_the_process_that_executes_the_run(machines: Machines) -> None:
    begun = asyncio.Event()

    async def hang(inputs: Mapping[str, object], stage: Stage) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with machines.machine() as accepting, machines.machine(hang) as working:
        start(working)
        run_id = await accepting.submit("poem", INPUTS, OPERATOR)
        await begun.wait()
        await accepting.runs.cancel(run_id, OPERATOR)

        async def is_stopped() -> bool:
            return not len(working.worker)

        await until(is_stopped)
        assert await settled(accepting, run_id) == [RunStatus.CANCELLED]


async def test_events_reach_subscribers_in_another_process(machines: Machines) -> None:
    go_on = asyncio.Event()

    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        await go_on.wait()
        await succeed(inputs, stage)

    async with machines.machine() as accepting, machines.machine(script) as working:
        poll_if_woken(accepting, working)
        start(working)
        run_id = await accepting.submit("poem", INPUTS, OPERATOR)
        received = []
        async with asyncio.timeout(30), aclosing(accepting.runs.follow(run_id, OPERATOR)) as events:
            async for event in events:
                received.append(event.type)
                go_on.set()
        assert received[-1] == EventType.RUN_SUCCEEDED
        assert received.count(EventType.TASK_FINISHED) == len(TASKS)


async def test_tokens_reach_subscribers_in_another_process(machines: Machines) -> None:
    begun, subscribed, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        begun.set()
        await subscribed.wait()
        assert stage.stream(0, "a word")
        await go_on.wait()
        await succeed(inputs, stage)

    async with machines.machine() as accepting, machines.machine(script) as working:
        poll_if_woken(accepting, working)
        start(working)
        run_id = await accepting.submit("poem", INPUTS, OPERATOR)
        await begun.wait()
        assert not working.events.needs_tokens(run_id)
        subscription = accepting.runs.subscribe(
            run_id, OPERATOR, after_seq=-1, heartbeat_seconds=60
        )
        texts = []
        async with asyncio.timeout(30), aclosing(subscription) as batches:
            async for batch in batches:
                if not subscribed.is_set():

                    async def is_needed() -> bool:
                        return working.events.needs_tokens(run_id)

                    await until(is_needed)
                    subscribed.set()
                for event in batch:
                    if event.type == EventType.TASK_TOKENS:
                        texts.append(event.data["text"])
                        go_on.set()
        assert texts == ["a word"]
