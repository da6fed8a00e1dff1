"""Nothing accepted is lost, whatever dies: each case in its short form, by `make faults`.

They are kept out of `make test` as long as some of them depend on how busy the machine is.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import scenarios
from tests.faults.deployment import Servers, Site

pytestmark = pytest.mark.skipif(not os.environ.get("FAULTS"), reason="run by `make faults`")

MakeSite = Callable[[str, str], Site]
RUNS = 30


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with Servers(tmp_path_factory.mktemp("servers")) as servers:
        yield servers


@pytest.fixture
def site(servers: Servers, tmp_path: Path) -> MakeSite:
    return lambda database, backend: Site(servers, tmp_path, database, backend)


@pytest.mark.parametrize(
    ("database", "backend"), [("sqlite", "local"), ("postgresql", "memory+s3")]
)
async def test_a_killed_process_loses_no_run(site: MakeSite, database: str, backend: str) -> None:
    await scenarios.process_killed(site(database, backend), RUNS)


async def test_a_killed_worker_s_runs_are_taken_over_by_the_other(site: MakeSite) -> None:
    await scenarios.one_worker_killed(site("sqlite", "s3"), RUNS)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_a_worker_frozen_past_its_lease_changes_nothing_more(
    site: MakeSite, database: str
) -> None:
    await scenarios.worker_frozen(site(database, "local"), RUNS)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_a_worker_frozen_inside_a_write_loses_no_run(site: MakeSite, database: str) -> None:
    await scenarios.worker_frozen_inside_a_write(site(database, "local"), RUNS)


async def test_a_stop_ends_what_it_can_and_hands_back_the_rest(site: MakeSite) -> None:
    await scenarios.stopped(site("sqlite", "local"), RUNS, workers=2)


async def test_a_second_signal_stops_all_workers_at_once(site: MakeSite) -> None:
    await scenarios.stopped_at_once(site("postgresql", "local"), RUNS, workers=2)


async def test_postgresql_may_die_under_load(site: MakeSite) -> None:
    await scenarios.database_killed(site("postgresql", "local"), RUNS, away_seconds=2)


@pytest.mark.parametrize("backend", ["s3", "memory+s3", "s3+local"])
async def test_s3_may_die_under_load(site: MakeSite, backend: str) -> None:
    await scenarios.objects_killed(site("sqlite", backend), RUNS, away_seconds=2)
