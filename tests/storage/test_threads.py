"""Blocking calls of many in few threads."""

import asyncio
import threading
from functools import partial

import pytest

from storage.drivers.threads import BatchingThreadPool
from tests.storage.waiting import until


def threads_of(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


async def test_each_call_gets_its_own_result_or_error() -> None:
    def work(number: int) -> int:
        if number % 10 == 0:
            raise ValueError(number)
        return number

    threads = BatchingThreadPool("own", 2)
    results = await asyncio.gather(
        *(threads.submit(partial(work, number)) for number in range(500)), return_exceptions=True
    )
    for number, result in enumerate(results):
        if number % 10:
            assert result == number
        else:
            assert isinstance(result, ValueError)
            assert result.args == (number,)
    await threads.aclose()


async def test_calls_of_one_turn_go_down_together() -> None:
    threads = BatchingThreadPool("together", 4)
    ids = await asyncio.gather(*(threads.submit(threading.get_ident) for _ in range(200)))
    assert len(set(ids)) == 1
    await threads.aclose()


async def test_a_slow_call_holds_up_no_other() -> None:
    threads = BatchingThreadPool("slow", 3)
    go_on = threading.Event()
    slow = [threads.submit(partial(go_on.wait, 240)) for _ in range(2)]
    quick = [threads.submit(lambda: "done") for _ in range(50)]
    assert await asyncio.wait_for(asyncio.gather(*quick), 60) == ["done"] * 50
    later = threads.submit(lambda: "done, too")
    assert await asyncio.wait_for(later, 60) == "done, too"
    assert not any(call.done() for call in slow)
    go_on.set()
    assert await asyncio.gather(*slow) == [True, True]
    await threads.aclose()


async def test_results_before_a_slow_call_do_not_wait_for_it() -> None:
    threads = BatchingThreadPool("before", 1)
    go_on = threading.Event()
    quick, slow = threads.submit(lambda: "done"), threads.submit(partial(go_on.wait, 240))
    assert await asyncio.wait_for(quick, 60) == "done"
    assert not slow.done()
    go_on.set()
    await threads.aclose()
    assert slow.result()


async def test_a_cancelled_call_disturbs_no_other() -> None:
    threads = BatchingThreadPool("cancelled", 1)
    calls = [threads.submit(partial(int, number)) for number in range(10)]
    calls[3].cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results[3], asyncio.CancelledError)
    assert [result for result in results if isinstance(result, int)] == [0, 1, 2, *range(4, 10)]
    await threads.aclose()


async def test_aclose_waits_for_the_calls_under_way_and_ends_the_threads() -> None:
    threads = BatchingThreadPool("closing", 2)
    began, go_on = threading.Event(), threading.Event()

    def work() -> bool:
        began.set()
        return go_on.wait(240)

    call = threads.submit(work)
    call.cancel()
    closing = asyncio.create_task(threads.aclose())
    await until(began.is_set)
    assert not closing.done()
    go_on.set()
    await asyncio.wait_for(closing, 60)
    for thread in threads_of("closing"):
        thread.join(10)
    assert threads_of("closing") == []
    await threads.aclose()


@pytest.mark.parametrize("turns", [1, 20])
async def test_calls_from_calls_results_go_on(turns: int) -> None:
    """A chain of calls, each made from the result of the one before, in many tasks."""
    threads = BatchingThreadPool("chain", 2)

    async def chain() -> int:
        total = 0
        for _ in range(turns):
            total += await threads.submit(lambda: 1)
        return total

    assert await asyncio.gather(*(chain() for _ in range(100))) == [turns] * 100
    await threads.aclose()
