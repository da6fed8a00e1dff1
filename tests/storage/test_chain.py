"""Chains: what happens when a member is full, away, and back."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from storage import (
    BufferFull,
    ForeignLocation,
    OutputNotFound,
    OutputStore,
    OutputUnavailable,
    SweepOutcome,
)
from storage.drivers.memory import MemoryDriver
from storage.layers import Fallback, Faults
from storage.stamp import STAMP_NAME
from tests.storage.sites import INSTALLATION, MEMORY_BYTES, key
from tests.storage.waiting import until

PAUSE_SECONDS = 0.2
OUTAGE = OutputUnavailable("an output", "far away", "injected")
MANY = 1000


class Member(Faults):
    """A member that fails on demand."""

    def __init__(self, location: str, max_bytes: int = MEMORY_BYTES) -> None:
        super().__init__(MemoryDriver(max_bytes))
        self.location = location

    def go_away(self) -> None:
        for operation in ("put", "get", "delete", "list"):
            self.inject(operation, OUTAGE, times=MANY)

    async def names(self) -> set[str]:
        """The names of its outputs, read around the faults."""
        return {entry.name for entry in (await self._driver.list()).entries} - {STAMP_NAME}


@pytest.fixture
def near() -> Member:
    return Member("near", max_bytes=1000)


@pytest.fixture
def far() -> Member:
    return Member("far")


@pytest.fixture
async def chain(near: Member, far: Member) -> AsyncIterator[Fallback]:
    chain = Fallback([near, far], pause_seconds=PAUSE_SECONDS)
    await chain.start()
    yield chain
    await chain.aclose()


@pytest.fixture
async def store(chain: Fallback) -> OutputStore:
    store = OutputStore(chain, read_backoff_seconds=0.001)
    await store.start(INSTALLATION)
    return store


def name(number: int = 0) -> str:
    return str(key(number))


async def leave_out(chain: Fallback, member: Member) -> None:
    """Make the chain leave the member out, for writing and reading."""
    member.go_away()
    for _ in range(3):
        await chain.put("probe", b"")
        await chain.list()
    await chain.delete(["probe"])


async def test_the_first_member_that_accepts_an_output_stores_it(
    chain: Fallback, near: Member, far: Member
) -> None:
    await chain.put(name(0), b"x" * 600)
    await chain.put(name(1), b"x" * 600)  # near is full
    await chain.put(name(2), b"x" * 300)
    assert await near.names() == {name(0), name(2)}
    assert await far.names() == {name(1)}
    assert await chain.get(name(1)) == b"x" * 600


async def test_when_all_members_are_full_the_chain_is() -> None:
    chain = Fallback([Member("near", 10), Member("far", 10)])
    with pytest.raises(BufferFull, match=name()):
        await chain.put(name(), b"x" * 11)


async def test_a_full_member_is_not_left_out(chain: Fallback, near: Member) -> None:
    for number in range(10):
        await chain.put(name(number), b"x" * 2000)
    await chain.put(name(10), b"x")
    assert await near.names() == {name(10)}


async def test_an_output_goes_to_the_next_member_when_one_fails(
    chain: Fallback, near: Member, far: Member
) -> None:
    near.inject("put", OUTAGE)
    await chain.put(name(), b"text")
    assert await far.names() == {name()}
    assert await chain.get(name()) == b"text"


async def test_when_all_members_fail_the_error_names_key_and_causes(
    chain: Fallback, near: Member, far: Member
) -> None:
    near.inject("put", OUTAGE)
    far.inject("put", OUTAGE)
    with pytest.raises(OutputUnavailable, match=rf"{name()}.*injected.*injected"):
        await chain.put(name(), b"text")


async def test_one_failure_leaves_no_member_out(chain: Fallback, near: Member) -> None:
    near.inject("put", OUTAGE)
    await chain.put(name(0), b"text")
    await chain.put(name(1), b"text")
    assert await near.names() == {name(1)}


async def test_a_member_that_keeps_failing_is_left_out_for_a_while(
    chain: Fallback, near: Member, caplog: pytest.LogCaptureFixture
) -> None:
    await leave_out(chain, near)
    near.calls.clear()
    for number in range(20):
        await chain.put(name(number), b"text")
        assert await chain.get(name(number)) == b"text"
    assert near.calls.total() <= 2  # one try for each of writing and reading, should it be time
    assert "Writing to near is left out until it responds again: injected" in caplog.text


async def test_a_member_that_is_back_is_used_again(
    chain: Fallback, near: Member, caplog: pytest.LogCaptureFixture
) -> None:
    await leave_out(chain, near)
    near.heal()
    numbers = iter(range(10_000))

    async def used_again() -> bool:
        await chain.put(name(next(numbers)), b"")
        return bool(await near.names())

    with caplog.at_level(logging.INFO):
        await until(used_again)
    assert "Writing to near is back" in caplog.text


async def test_only_one_call_tries_a_member_that_was_left_out(
    chain: Fallback, near: Member
) -> None:
    await leave_out(chain, near)
    near.heal()
    called, go_on = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        called.set()
        await go_on.wait()

    near.inject("get", hang)
    near.calls.clear()
    await chain.put(name(), b"text")
    await asyncio.sleep(PAUSE_SECONDS)  # the pause itself: the time is what is tested
    tries = [asyncio.create_task(chain.get(name())) for _ in range(20)]
    await asyncio.wait_for(called.wait(), 60)
    await asyncio.wait(tries, return_when=asyncio.FIRST_COMPLETED)
    assert near.calls["get"] == 1
    go_on.set()
    assert await asyncio.gather(*tries) == [b"text"] * 20


async def test_a_key_found_nowhere_is_unavailable_while_a_member_is_away(
    chain: Fallback, store: OutputStore, far: Member
) -> None:
    with pytest.raises(OutputNotFound):
        await store.read(key())
    far.go_away()
    for _ in range(5):  # left out or not
        with pytest.raises(OutputUnavailable, match=f"{name()}.*far"):
            await store.read(key())
    far.heal()

    async def found_missing() -> bool:
        try:
            await store.read(key())
        except OutputNotFound:
            return True
        except OutputUnavailable:
            return False
        raise AssertionError

    await until(found_missing)


async def test_what_the_others_hold_is_read_while_a_member_is_away(
    store: OutputStore, near: Member, far: Member
) -> None:
    await store.persist(key(), "x" * 2000)
    near.go_away()
    for _ in range(10):
        assert await store.read(key()) == "x" * 2000
    assert await far.names() == {name()}


async def test_a_member_that_refuses_writes_is_read_all_the_same(
    chain: Fallback, near: Member
) -> None:
    await chain.put(name(), b"text")
    near.inject("put", OUTAGE, times=MANY)
    for number in range(1, 10):
        await chain.put(name(number), b"text")
    assert await chain.get(name()) == b"text"


async def test_find_fails_when_a_member_is_unreachable(store: OutputStore, far: Member) -> None:
    await store.persist(key(), "text")
    far.inject("list", OUTAGE)
    with pytest.raises(OutputUnavailable, match="far"):
        await store.find(key().run_id)
    assert [found.key for found in await store.find(key().run_id)] == [key()]


async def test_usage_counts_what_it_reaches_and_names_the_rest(
    store: OutputStore, far: Member
) -> None:
    await store.persist(key(0), "x" * 10)
    await store.persist(key(1), "x" * 2000)
    usage = await store.usage()
    assert (usage.count, usage.size_bytes, usage.unreachable) == (2, 2010, ())
    assert usage.free_bytes is not None
    far.inject("list", OUTAGE)
    usage = await store.usage()
    assert (usage.count, usage.free_bytes, usage.unreachable) == (1, None, ("far",))


async def test_delete_calls_only_the_members_that_may_hold_the_output(
    chain: Fallback, near: Member, far: Member
) -> None:
    await chain.put(name(0), b"near")
    await chain.put(name(1), b"far" * 1000)
    await far._driver.put(name(2), b"from another process")
    await chain.delete([name(0)])
    assert far.calls["delete"] == 0
    await chain.delete([name(1), name(2)])
    assert await far.names() == set()


async def test_delete_finds_what_a_failed_put_left(
    chain: Fallback, near: Member, far: Member
) -> None:
    near.inject("put", OUTAGE, after=True)  # it was written, the answer was lost
    await chain.put(name(), b"text")
    assert await near.names() == await far.names() == {name()}
    await chain.delete([name()])
    assert await near.names() == await far.names() == set()


async def test_deletes_that_a_member_missed_are_done_when_it_is_back(
    store: OutputStore, chain: Fallback, near: Member, caplog: pytest.LogCaptureFixture
) -> None:
    keys = [key(number) for number in range(1, 5)]
    for one in keys:
        await store.persist(one, "text")
    near.go_away()
    first = await store.delete(keys[:1])
    assert list(first.failed) == keys[:1]
    assert f"Failed to cleanup {keys[0]}: injected" in caplog.text
    await leave_out(chain, near)
    assert not (await store.delete(keys[1:])).failed  # no member was called, nothing failed
    assert await near.names() == {str(one) for one in keys}
    near.heal()
    numbers = iter(range(100, 10_000))

    async def caught_up() -> bool:
        await chain.put(name(next(numbers)), b"")
        return not await near.names() & {str(one) for one in keys}

    await until(caught_up)


async def test_a_sweep_continues_in_the_other_members(
    store: OutputStore, near: Member, far: Member
) -> None:
    await store.persist(key(0), "near")
    await store.persist(key(1), "x" * 2000)
    near.go_away()
    report = await store.sweep(0)
    assert report.removed == 1
    assert report.skipped == {"near": SweepOutcome.UNREACHABLE}
    assert await far.names() == set()
    near.heal()
    report = await store.sweep(0)
    assert (report.removed, report.outcome) == (1, SweepOutcome.DONE)


async def test_each_member_is_stamped(store: OutputStore, near: Member, far: Member) -> None:
    for member in (near, far):
        assert await member.get(STAMP_NAME) == f"{INSTALLATION}\n".encode()


async def test_a_chain_with_one_member_of_another_installation_is_refused(
    near: Member, far: Member
) -> None:
    await OutputStore(far).start("another")
    with pytest.raises(ForeignLocation, match="far"):
        await OutputStore(Fallback([near, far])).start(INSTALLATION)


async def test_a_sweep_spares_a_member_with_a_foreign_stamp(
    store: OutputStore, near: Member, far: Member
) -> None:
    await store.persist(key(0), "near")
    await store.persist(key(1), "x" * 2000)
    await OutputStore(far).start("another", replace_stamp=True)
    report = await store.sweep(0)
    assert (report.removed, report.skipped) == (1, {"far": SweepOutcome.NOT_OURS})
    assert await far.names() == {name(1)}
    assert store.foreign
    assert not await store.verify_owner()


async def test_a_chain_is_usable_while_one_member_accepts_writes(
    store: OutputStore, near: Member, far: Member
) -> None:
    before = (await near.names(), await far.names())
    await store.check_writable()
    near.go_away()
    assert await store.verify_owner()
    await store.check_writable()
    far.inject("put", OUTAGE, times=MANY)  # it can still be read
    assert await store.verify_owner()
    with pytest.raises(OutputUnavailable):
        await store.check_writable()
    far.go_away()
    with pytest.raises(OutputUnavailable):
        await store.verify_owner()
    assert (await near.names(), await far.names()) == before


async def test_a_foreign_stamp_counts_though_another_member_is_away(
    store: OutputStore, near: Member, far: Member
) -> None:
    await OutputStore(far).start("another", replace_stamp=True)
    near.go_away()
    assert not await store.verify_owner()
