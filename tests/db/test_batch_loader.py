"""Lookups of many callers, joined in few queries."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from app.db import BatchLoader, DatabaseUnavailable


class Shelf:
    """Values that can be looked up; records the queries, and delays them while it is not `open`."""

    def __init__(self) -> None:
        self.values = {number: f"value {number}" for number in range(100)}
        self.queries: list[Sequence[int]] = []
        self.begun = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def read(self, keys: Sequence[int]) -> Mapping[int, str]:
        self.queries.append(keys)
        self.begun.set()
        found = {key: self.values[key] for key in keys if key in self.values}
        await self.open.wait()
        return found


async def test_simultaneous_lookups_are_one_query() -> None:
    shelf = Shelf()
    group = BatchLoader(shelf.read)
    found = await asyncio.gather(*(group.get(number) for number in [1, 2, 3, 2, 1000]))
    assert found == ["value 1", "value 2", "value 3", "value 2", None]
    assert shelf.queries == [[1, 2, 3, 1000]]


async def test_a_lookup_gets_the_result_of_a_query_that_began_after_it() -> None:
    shelf = Shelf()
    group = BatchLoader(shelf.read)
    shelf.open.clear()
    before = asyncio.create_task(group.get(1))
    await shelf.begun.wait()
    shelf.values[1] = "changed"
    after = asyncio.create_task(group.get(1))
    await asyncio.sleep(0)
    shelf.open.set()
    assert (await before, await after) == ("value 1", "changed")


async def test_a_cancelled_caller_does_not_cancel_the_lookup_of_others() -> None:
    shelf = Shelf()
    group = BatchLoader(shelf.read)
    leaving, staying = (asyncio.create_task(group.get(1)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == "value 1"
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_no_query_is_larger_than_a_group() -> None:
    shelf = Shelf()
    group = BatchLoader(shelf.read, max_group=40)
    found = await asyncio.gather(*(group.get(number) for number in range(100)))
    assert found == list(shelf.values.values())
    assert [len(keys) for keys in shelf.queries] == [40, 40, 20]


async def test_a_failure_is_raised_to_all_callers_and_the_next_query_is_independent() -> None:
    shelf = Shelf()
    failing = True

    async def read(keys: Sequence[int]) -> Mapping[int, str]:
        if failing:
            raise DatabaseUnavailable("away")
        return await shelf.read(keys)

    group = BatchLoader(read)
    failures = await asyncio.gather(group.get(1), group.get(2), return_exceptions=True)
    assert [type(failure) for failure in failures] == [DatabaseUnavailable] * 2
    failing = False
    assert await group.get(1) == "value 1"
