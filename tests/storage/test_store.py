"""The store's own behaviour, over memory and injected faults."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from storage import (
    ForeignLocation,
    InvalidKey,
    OutputConflict,
    OutputKey,
    OutputNotFound,
    OutputStore,
    OutputUnavailable,
    StoreClosed,
    SweepOutcome,
)
from storage.drivers.memory import MemoryDriver
from storage.layers import Faults
from storage.stamp import STAMP_NAME
from tests.storage.sites import INSTALLATION, MEMORY_BYTES, key


@pytest.fixture
async def faults() -> Faults:
    return Faults(MemoryDriver(MEMORY_BYTES))


@pytest.fixture
async def store(faults: Faults) -> AsyncIterator[OutputStore]:
    store = OutputStore(faults, read_backoff_seconds=0.001)
    await store.start(INSTALLATION)
    faults.calls.clear()
    yield store
    await store.aclose()


def down(name: str = "an output") -> OutputUnavailable:
    return OutputUnavailable(name, "memory", "injected")


async def test_persist_returns_key_size_and_sha256(store: OutputStore) -> None:
    stored = await store.persist(key(), "Größe")
    assert stored.key == key()
    assert stored.size_bytes == 7
    assert stored.sha256 == hashlib.sha256("Größe".encode()).hexdigest()


async def test_calls_before_start_raise_store_closed() -> None:
    store = OutputStore(MemoryDriver(MEMORY_BYTES))
    with pytest.raises(StoreClosed):
        await store.persist(key(), "text")
    await store.aclose()


async def test_the_same_text_can_be_persisted_again(store: OutputStore) -> None:
    assert await store.persist(key(), "text") == await store.persist(key(), "text")
    assert await store.read(key()) == "text"


async def test_the_same_text_persisted_again_exists_even_if_it_was_removed(
    store: OutputStore, faults: Faults
) -> None:
    await store.persist(key(), "text")
    await faults.delete([str(key())])
    await store.persist(key(), "text")
    assert await store.read(key()) == "text"


async def test_another_text_under_the_same_key_is_a_conflict(store: OutputStore) -> None:
    await store.persist(key(), "first")
    with pytest.raises(OutputConflict, match=str(key())):
        await store.persist(key(), "second")
    assert await store.read(key()) == "first"


async def test_two_texts_persisted_at_once_under_one_key_are_a_conflict(store: OutputStore) -> None:
    results = await asyncio.gather(
        store.persist(key(), "first"), store.persist(key(), "second"), return_exceptions=True
    )
    assert [type(result).__name__ for result in results] == ["StoredOutput", "OutputConflict"]


async def test_after_a_failed_persist_the_key_is_free(store: OutputStore, faults: Faults) -> None:
    faults.inject("put", down())
    with pytest.raises(OutputUnavailable):
        await store.persist(key(), "first")
    await store.persist(key(), "second")
    assert await store.read(key()) == "second"
    assert store.counters.persists_failed == 1


async def test_find_gives_the_outputs_of_all_attempts_of_a_run(store: OutputStore) -> None:
    run, other = uuid4(), uuid4()
    keys = [OutputKey(run, 2, "a"), OutputKey(run, 1, "b"), OutputKey(run, 1, "a")]
    for one in [*keys, OutputKey(other, 1, "a")]:
        await store.persist(one, str(one.started_at) * 3)
    found = await store.find(run)
    assert [one.key for one in found] == sorted(keys)
    assert {one.size_bytes for one in found} == {3}
    assert await store.find(uuid4()) == []


async def test_find_and_usage_show_no_stamp(store: OutputStore, faults: Faults) -> None:
    assert [entry.name for entry in (await faults.list()).entries] == [STAMP_NAME]
    assert (await store.usage()).count == 0
    with pytest.raises(InvalidKey):
        OutputKey.parse(STAMP_NAME)


async def test_counters_count_each_operation(store: OutputStore, faults: Faults) -> None:
    for number in range(3):
        await store.persist(key(number), "12345")
    faults.inject("get", down(), times=2)
    await store.read(key(0))
    await store.delete([key(0)])
    faults.inject("delete", down())
    await store.delete([key(1)])
    await store.sweep(0)
    counters = store.counters
    assert (counters.outputs_persisted, counters.bytes_persisted) == (3, 15)
    assert (counters.outputs_read, counters.reads_retried, counters.reads_failed) == (1, 2, 0)
    assert (counters.outputs_deleted, counters.cleanup_failures) == (1, 1)
    assert (counters.outputs_swept, counters.bytes_swept) == (2, 10)


async def test_a_sweep_logs_what_it_removed(
    store: OutputStore, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(150):
        await store.persist(key(number), "x" * 50_000)
    with caplog.at_level(logging.INFO, "crew_capture.storage"):
        await store.sweep(0)
        await store.sweep(0)  # removes nothing, and says nothing
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert record.name == "crew_capture.storage"
    assert record.getMessage() == "Cleaned up 150 old temp file(s) (7.5 MB) from memory"


async def test_a_sweep_keeps_the_outputs_of_runs_that_need_them(store: OutputStore) -> None:
    needed, orphaned = uuid4(), uuid4()
    queried: list[set[UUID]] = []

    async def find_needed(runs: set[UUID]) -> set[UUID]:
        queried.append(runs)
        return {needed}

    for run in (needed, orphaned):
        await store.persist(key(run_id=run), "text")
    report = await store.sweep(0, find_needed)
    assert (report.removed, report.kept) == (1, 1)
    assert queried == [{needed, orphaned}]
    assert await store.read(key(run_id=needed)) == "text"


async def test_a_sweep_queries_only_runs_whose_outputs_are_old(store: OutputStore) -> None:
    async def find_needed(runs: set[UUID]) -> set[UUID]:
        raise AssertionError(runs)

    await store.persist(key(), "text")
    assert (await store.sweep(3600, find_needed)).outcome is SweepOutcome.DONE


async def test_a_sweep_that_can_not_query_runs_deletes_nothing_and_reports_it(
    store: OutputStore, caplog: pytest.LogCaptureFixture
) -> None:
    async def find_needed(_: set[UUID]) -> set[UUID]:
        raise ConnectionError("the database is away")

    await store.persist(key(), "text")
    report = await store.sweep(0, find_needed)
    assert (report.outcome, report.removed) == (SweepOutcome.RUNS_UNKNOWN, 0)
    assert "Nothing cleaned up in memory" in caplog.text
    assert "the database is away" in caplog.text
    assert await store.read(key()) == "text"


async def test_one_sweep_runs_at_a_time(store: OutputStore) -> None:
    queried, answer = asyncio.Event(), asyncio.Event()

    async def find_needed(_: set[UUID]) -> set[UUID]:
        queried.set()
        await answer.wait()
        return set()

    await store.persist(key(), "text")
    first = asyncio.create_task(store.sweep(0, find_needed))
    await queried.wait()
    second = await store.sweep(0)
    assert (second.outcome, second.removed) == (SweepOutcome.ALREADY_RUNNING, 0)
    answer.set()
    assert (await first).removed == 1
    assert (await store.sweep(0)).outcome is SweepOutcome.DONE


async def test_a_sweep_of_an_unreachable_backend_says_so_and_does_not_raise(
    store: OutputStore, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    await store.persist(key(), "text")
    faults.inject("list", down("*"))
    report = await store.sweep(0)
    assert (report.outcome, report.skipped) == (
        SweepOutcome.UNREACHABLE,
        {"memory": SweepOutcome.UNREACHABLE},
    )
    assert "Nothing cleaned up in memory: injected" in caplog.text


async def test_a_location_of_another_installation_is_refused_at_start(faults: Faults) -> None:
    await OutputStore(faults).start("one")
    with pytest.raises(ForeignLocation, match="TEMP_TAKE_OVER=yes"):
        await OutputStore(faults).start("another")
    await OutputStore(faults).start("one")


async def test_a_location_can_be_stamped_anew_and_its_former_owner_notices(faults: Faults) -> None:
    former, latter = OutputStore(faults), OutputStore(faults)
    await former.start("former")
    await former.persist(key(), "text")
    assert await former.verify_owner()
    await latter.start("latter", replace_stamp=True)
    assert not former.foreign
    assert not await former.verify_owner()
    assert former.foreign
    assert await latter.verify_owner()


async def test_a_sweep_removes_nothing_from_a_foreign_location(
    faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    former = OutputStore(faults)
    await former.start("former")
    await former.persist(key(), "text")
    await OutputStore(faults).start("latter", replace_stamp=True)
    report = await former.sweep(0)
    assert (report.outcome, report.removed) == (SweepOutcome.NOT_OURS, 0)
    assert former.foreign
    assert "belongs to another installation" in caplog.text
    assert await former.read(key()) == "text"


async def test_a_stamp_that_was_removed_is_put_back(faults: Faults) -> None:
    store = OutputStore(faults)
    await store.start("one")
    await faults.delete([STAMP_NAME])
    assert await store.verify_owner()
    with pytest.raises(ForeignLocation):
        await OutputStore(faults).start("another")


async def test_read_of_a_closed_store_gives_up_between_attempts(
    store: OutputStore, faults: Faults
) -> None:
    async def close() -> None:
        await store.aclose()
        raise OutputNotFound(str(key()), "memory")

    faults.inject("get", close)
    with pytest.raises(StoreClosed):
        await store.read(key())
