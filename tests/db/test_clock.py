"""The database's clock: sampled, then kept by the time elapsed, whatever the machine's shows."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from app.db import Database, DatabaseClock, clock
from app.resources import open_database
from app.settings import load_settings

HOUR = 3600.0
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Elapsed:
    """Elapsed seconds as a test moves them on."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def elapsed(monkeypatch: pytest.MonkeyPatch) -> Elapsed:
    elapsed = Elapsed()
    monkeypatch.setattr(clock, "elapsed_seconds", elapsed)
    return elapsed


def _after_noon(clock: DatabaseClock) -> float:
    return (clock.now() - NOON).total_seconds()


def test_steps_of_the_machines_clock_change_nothing_after_a_sample(elapsed: Elapsed) -> None:
    machine = [NOON.timestamp() - HOUR]
    database_clock = DatabaseClock(lambda: machine[0])
    assert _after_noon(database_clock) == -HOUR
    database_clock.adjust(NOON, sent=998.0, received=1000.0)  # it was noon at 999
    assert _after_noon(database_clock) == pytest.approx(1)
    machine[0] += 5 * HOUR
    elapsed.seconds += 7
    assert _after_noon(database_clock) == pytest.approx(8)


def test_a_sample_changes_a_clock_no_more_than_it_proves_wrong(elapsed: Elapsed) -> None:
    database_clock = DatabaseClock()
    database_clock.adjust(NOON, sent=1000.0, received=1000.0)
    database_clock.adjust(NOON, sent=990.0, received=1020.0)  # a slow answer proves little
    assert _after_noon(database_clock) == pytest.approx(0)
    database_clock.adjust(NOON + timedelta(seconds=5), sent=999.0, received=1001.0)
    assert _after_noon(database_clock) == pytest.approx(4)
    database_clock.adjust(NOON, sent=999.0, received=1001.0)
    assert _after_noon(database_clock) == pytest.approx(1)


@pytest.fixture(params=[HOUR, -HOUR], ids=["ahead", "behind"])
def wrong_clock(request: pytest.FixtureRequest) -> Callable[[], float]:
    return lambda: time.time() + request.param


async def _difference(database: Database) -> float:
    """How many seconds the clock differs from the server's."""
    async with database.read() as connection:
        servers: datetime = await connection.scalar(text("SELECT clock_timestamp()"))
    return abs((database.clock.now() - servers).total_seconds())


async def test_postgresqls_clock_counts_not_the_machines(
    postgresql_url: str, wrong_clock: Callable[[], float]
) -> None:
    database = Database(postgresql_url, DatabaseClock(wrong_clock))
    assert await _difference(database) > HOUR / 2
    await database.sync_clock()
    assert await _difference(database) < HOUR / 2
    await database.aclose()


async def test_a_database_is_opened_with_its_clock_read(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch, wrong_clock: Callable[[], float]
) -> None:
    monkeypatch.setattr("app.db.session.DatabaseClock", lambda: DatabaseClock(wrong_clock))
    async with open_database(load_settings(database_url=postgresql_url)) as database:
        assert await _difference(database) < HOUR / 2


async def test_on_sqlite_the_machines_clock_is_the_databases() -> None:
    machine = [NOON.timestamp()]
    database = Database("sqlite://", DatabaseClock(lambda: machine[0]))
    await database.sync_clock()
    machine[0] += 60
    assert _after_noon(database.clock) == 60
    await database.aclose()
