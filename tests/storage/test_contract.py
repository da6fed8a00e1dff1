"""The contract of every backend and every chain: one suite over all of them."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from storage import OutputNotFound, OutputStore, StorageError, StoreClosed, SweepOutcome
from storage.drivers import Driver
from tests.storage.model import model_of
from tests.storage.sites import INSTALLATION, Site, key
from tests.storage.waiting import until

CONTENTS = {
    "empty": b"",
    "one byte": b"x",
    "50 KB": b"0123456789" * 5000,
    "5 MB": bytes(range(256)) * 20_000,
    "not ASCII": "Größe, 日本語, 🚀".encode(),
    "line ends and NUL": b"a\r\nb\nc\rd\0e\x1a",
}
TEXTS = [
    *(data.decode() for name, data in CONTENTS.items() if name != "5 MB"),
    "half \ud83d a pair",
]


def name(number: int = 0) -> str:
    return str(key(number))


@pytest.mark.parametrize("content", CONTENTS)
async def test_get_gives_the_bytes_that_were_put(driver: Driver, content: str) -> None:
    await driver.put(name(), CONTENTS[content])
    assert await driver.get(name()) == CONTENTS[content]


async def test_read_gives_the_text_that_was_persisted(store: OutputStore) -> None:
    for number, text in enumerate(TEXTS):
        stored = await store.persist(key(number), text)
        assert stored.size_bytes == len(text.encode("utf-8", "surrogatepass"))
        assert await store.read(key(number)) == text


async def test_get_of_a_name_never_written_says_so(driver: Driver) -> None:
    with pytest.raises(OutputNotFound, match=name()):
        await driver.get(name())


async def test_read_of_a_key_never_written_says_so_after_three_attempts(store: OutputStore) -> None:
    with pytest.raises(OutputNotFound, match=name()):
        await store.read(key())
    assert store.counters.reads_retried == 2


async def test_put_replaces_the_whole_and_readers_never_see_a_part(driver: Driver) -> None:
    versions = [letter * size for letter, size in ((b"a", 100_000), (b"b", 50), (b"c", 60_000))]
    await driver.put(name(), versions[0])
    seen = set()

    async def read() -> None:
        for _ in range(3):
            seen.add(await driver.get(name()))

    async def write() -> None:
        for version in versions[1:] * 2:
            await driver.put(name(), version)

    await asyncio.gather(write(), *(read() for _ in range(100)))
    assert seen <= set(versions)
    assert await driver.get(name()) == versions[-1]


async def test_delete_of_a_missing_output_is_not_an_error(driver: Driver) -> None:
    await driver.put(name(1), b"here")
    assert await driver.delete([name(0), name(1), name(2)]) == {}
    assert await driver.delete([name(1)]) == {}
    assert await driver.delete([]) == {}
    with pytest.raises(OutputNotFound):
        await driver.get(name(1))


async def test_more_than_a_thousand_outputs_are_listed_and_deleted(driver: Driver) -> None:
    """Also while others are written and deleted."""
    stay = [name(number) for number in range(1001)]
    await asyncio.gather(*(driver.put(one, b"stays") for one in stay))
    passing = [name(number) for number in range(2000, 2020)]

    async def passing_once(one: str) -> None:
        await driver.put(one, b"goes")
        await driver.delete([one])

    changes = asyncio.gather(*(passing_once(one) for one in passing))
    try:
        listing = await driver.list()
    except StorageError:  # moto's server can fail while its keys change
        await changes
        listing = await driver.list()
    await changes
    listed = [entry.name for entry in listing.entries]
    assert listed == sorted(set(listed))
    assert set(stay) <= set(listed) <= set(stay) | set(passing)

    assert await driver.delete(stay) == {}
    assert (await driver.list()).entries == []


async def test_a_listing_gives_size_and_time_in_utc_of_names_with_the_prefix(
    driver: Driver, site: Site
) -> None:
    before = datetime.now(UTC) - timedelta(seconds=site.tick_seconds + 1)
    mine, other = uuid4(), uuid4()
    names = [str(key(number, run_id=mine)) for number in (3, 1, 2)]
    for size, one in enumerate(names):
        await driver.put(one, b"x" * size)
    await driver.put(str(key(run_id=other)), b"other")
    listing = await driver.list(f"{mine.hex}_")
    assert [(entry.name, entry.size_bytes) for entry in listing.entries] == [
        (names[1], 1),
        (names[2], 2),
        (names[0], 0),
    ]
    for entry in listing.entries:
        assert entry.modified_at.tzinfo is UTC
        assert before < entry.modified_at < datetime.now(UTC) + timedelta(seconds=1)
        assert -1 <= entry.age_seconds < 60


async def test_listings_at_once_are_each_complete(driver: Driver) -> None:
    runs = [uuid4() for _ in range(50)]
    names = {run: [str(key(number, run_id=run)) for number in range(2)] for run in runs}
    await asyncio.gather(*(driver.put(one, b"x") for run in runs for one in names[run]))
    listings = await asyncio.gather(*(driver.list(f"{run.hex}_") for run in runs))
    for run, listing in zip(runs, listings, strict=True):
        assert [entry.name for entry in listing.entries] == names[run]


async def test_a_listing_has_what_was_put_before_it_while_others_are_under_way(
    driver: Driver,
) -> None:
    async def put_then_list(number: int) -> bool:
        await driver.put(name(number), b"x")
        return name(number) in {entry.name for entry in (await driver.list()).entries}

    assert all(await asyncio.gather(*(put_then_list(number) for number in range(50))))


async def test_many_writers_at_once_do_not_mix(driver: Driver) -> None:
    contents = {name(number): f"{number} ".encode() * 5000 for number in range(64)}
    await asyncio.gather(*(driver.put(one, data) for one, data in contents.items()))
    for one, data in contents.items():
        assert await driver.get(one) == data


async def test_a_cancelled_put_leaves_nothing_behind(driver: Driver, site: Site) -> None:
    """At whichever step the cancellation arrives."""
    done: set[str] = set()
    cancelled: set[str] = set()
    for number in range(40):
        put = asyncio.create_task(driver.put(name(number), b"x" * 200_000))
        for _ in range(number // 2):
            await asyncio.sleep(0 if number % 2 else 0.001)
        put.cancel()
        with suppress(asyncio.CancelledError):
            await put
        (cancelled if put.cancelled() else done).add(name(number))
    assert cancelled or not site.remote

    async def only_finished_puts_are_there() -> bool:
        listing = await driver.list()
        return {entry.name for entry in listing.entries} == done and not listing.leftovers

    await until(only_finished_puts_are_there)
    await driver.aclose()  # after it, nothing is written any more
    if site.lasting:
        again = site.make()
        await again.start()
        listing = await again.list()
        await again.aclose()
        assert {entry.name for entry in listing.entries} == done
        assert not listing.leftovers


async def test_a_put_after_a_cancelled_one_of_the_same_name_stays(driver: Driver) -> None:
    for number in range(10):
        put = asyncio.create_task(driver.put(name(number), b"x" * 200_000))
        await asyncio.sleep(0.001 * number)
        put.cancel()
        with suppress(asyncio.CancelledError):
            await put
        await driver.put(name(number), b"x" * 200_000)
    await until(lambda: _holds_exactly(driver, 10))


async def _holds_exactly(driver: Driver, count: int) -> bool:
    listing = await driver.list()
    return len(listing.entries) == count and not listing.leftovers


async def test_a_sweep_removes_what_is_older_than_the_limit_and_nothing_else(
    store: OutputStore, site: Site
) -> None:
    limit_seconds = max(2 * site.tick_seconds, 0.5)  # what is fresh stays so on a busy machine
    old, fresh = [key(number) for number in range(3)], key(9)
    begun = time.monotonic()
    for one in old:
        await store.persist(one, "old")
    apart_seconds = time.monotonic() - begun

    async def old_enough() -> bool:
        usage = await store.usage()
        assert usage.oldest_age_seconds is not None
        # The youngest of them, too:
        return usage.oldest_age_seconds >= limit_seconds + apart_seconds + 2 * site.tick_seconds

    await until(old_enough)
    await store.persist(fresh, "fresh")
    report = await store.sweep(limit_seconds)
    assert (report.removed, report.removed_bytes) == (3, 9)
    assert (report.kept, report.failed, report.outcome) == (0, 0, SweepOutcome.DONE)
    assert await store.read(fresh) == "fresh"
    with pytest.raises(OutputNotFound):
        await store.read(old[0])

    assert (await store.sweep(3600)).removed == 0
    assert (await store.sweep(0)).removed == 1
    assert (await store.usage()).count == 0


async def test_names_that_are_not_outputs_are_neither_shown_nor_touched(
    site: Site, store: OutputStore
) -> None:
    await store.persist(key(), "ours")
    foreign = ["README.md", f"{uuid4()}_1_a.md", f"{uuid4().hex}_1_A.md"]
    for driver in store._driver.leaf_drivers():  # beside the store's own way
        for one in foreign:
            await driver.put(one, b"not ours")
    assert (await store.usage()).count == 1
    assert (await store.sweep(0)).removed == 1
    for driver in store._driver.leaf_drivers():
        for one in foreign:
            assert await driver.get(one) == b"not ours"


async def test_usage_equals_the_listing(driver: Driver, site: Site) -> None:
    store = OutputStore(driver)
    await store.start(INSTALLATION)
    empty = await store.usage()
    assert (empty.count, empty.size_bytes, empty.oldest_age_seconds) == (0, 0, None)
    for number in range(5):
        await store.persist(key(number), "x" * number)
    usage = await store.usage()
    entries = [entry for entry in (await driver.list()).entries if entry.name.endswith(".md")]
    assert usage.count == len(entries) == 5
    assert usage.size_bytes == sum(entry.size_bytes for entry in entries) == 10
    assert usage.oldest_age_seconds is not None
    oldest = max(entry.age_seconds for entry in entries)
    assert 0 <= oldest - usage.oldest_age_seconds < 5


async def test_after_aclose_every_call_raises_store_closed(store: OutputStore) -> None:
    await store.persist(key(), "text")
    await store.aclose()
    await store.aclose()
    calls: list[Callable[[], object]] = [
        lambda: store.persist(key(), "text"),
        lambda: store.read(key()),
        lambda: store.delete([key()]),
        lambda: store.find(key().run_id),
        store.usage,
        lambda: store.sweep(0),
        store.verify_owner,
        store.check_writable,
    ]
    for call in calls:
        with pytest.raises(StoreClosed):
            await call()  # type: ignore[misc]


async def test_a_call_under_way_at_aclose_ends_well_or_says_so(store: OutputStore) -> None:
    await store.persist(key(0), "x" * 50_000)
    calls = [
        asyncio.create_task(call)
        for call in (
            store.persist(key(1), "x" * 50_000),
            store.read(key(0)),
            store.delete([key(0)]),
            store.sweep(0),
            store.usage(),
        )
    ]
    await asyncio.sleep(0)
    await store.aclose()
    done, _ = await asyncio.wait(calls, timeout=30)
    assert len(done) == len(calls)
    for call in done:
        if call.exception() is not None:
            assert isinstance(call.exception(), StorageError)


def test_any_sequence_of_calls_equals_the_same_on_a_dictionary(
    new_site: Callable[[], Site], request: pytest.FixtureRequest
) -> None:
    remote = new_site().remote
    run_state_machine_as_test(
        model_of(new_site),
        settings=settings(
            max_examples=5 if remote else 40,
            stateful_step_count=15 if remote else 30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
