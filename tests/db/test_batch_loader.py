"""Look-ups of many callers, joined in few questions."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from app.db import BatchLoader, DatabaseUnavailable


class Shelf:
    """Values that can be looked up; counts the questions, and holds them up until told."""

    def __init__(self) -> None:
        self.values = {number: f"value {number}" for number in range(100)}
        self.asked: list[Sequence[int]] = []
        self.begun = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def read(self, keys: Sequence[int]) -> Mapping[int, str]:
        self.asked.append(keys)
        self.begun.set()
        found = {key: self.values[key] for key in keys if key in self.values}
        await self.open.wait()
        return found


async def test_simultaneous_look_ups_are_one_question() -> None:
    shelf = Shelf()
    group = BatchLoader(shelf.read)
    found = await asyncio.gather(*(group.get(number) for number in [1, 2, 3, 2, 1000]))
    assert found == ["value 1", "value 2", "value 3", "value 2", None]
    assert shelf.asked == [[1, 2, 3, 1000]]


async def test_a_look_up_is_answered_by_a_question_that_began_after_it() -> None:
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


async def test_a_caller_who_goes_away_takes_no_answer_with_it() -> None:
    shelf = Shelf()
    group = BatchLoader(shelf.read)
    leaving, staying = (asyncio.create_task(group.get(1)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == "value 1"
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_no_question_is_larger_than_a_group() -> None:
    shelf = Shelf()
    group = BatchLoader(shelf.read, max_group=40)
    found = await asyncio.gather(*(group.get(number) for number in range(100)))
    assert found == list(shelf.values.values())
    assert [len(keys) for keys in shelf.asked] == [40, 40, 20]


async def test_all_hear_of_a_failure_and_the_next_question_is_asked_anew() -> None:
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
