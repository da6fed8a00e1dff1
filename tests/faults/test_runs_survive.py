"""Nothing accepted is lost, whatever dies: each case in its short form.

The databases and backends are spread over the cases. `make faults` has them all on each.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands import ForkServer
from tests.faults import scenarios
from tests.faults.deployment import Servers, Site

MakeSite = Callable[[str, str], Site]
RUNS = 30


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with Servers(tmp_path_factory.mktemp("servers")) as servers:
        yield servers


@pytest.fixture
def site(servers: Servers, tmp_path: Path, fork_server: ForkServer) -> MakeSite:
    return lambda database, backend: Site(servers, tmp_path, database, backend, fork_server.launch)


async def test_a_killed_process_loses_no_run(site: MakeSite) -> None:
    await scenarios.process_killed(site("sqlite", "local"), RUNS)


async def test_a_killed_worker_s_runs_continue_in_the_other(site: MakeSite) -> None:
    await scenarios.one_worker_killed(site("postgresql", "memory+s3"), RUNS)


@pytest.mark.parametrize(
    ("queue", "is_emptied"), [("nats", False), ("nats", True), ("postgresql", False)]
)
async def test_a_killed_machine_s_runs_continue_on_others(
    site: MakeSite, queue: str, is_emptied: bool
) -> None:
    machines = site("postgresql", "local")
    await scenarios.machine_killed(machines, 200, queue=queue, is_emptied=is_emptied)


async def test_workers_are_replaced_under_load_and_no_run_is_refused_or_repeated(
    site: MakeSite,
) -> None:
    await scenarios.workers_replaced(site("postgresql", "local"), RUNS, queue="nats")


async def test_a_worker_without_its_queue_ends_its_runs_and_receives_later(
    site: MakeSite,
) -> None:
    await scenarios.network_cut(site("postgresql", "local"), RUNS)


async def test_limits_hold_over_two_workers(site: MakeSite) -> None:
    await scenarios.limits_shared(site("postgresql", "local"), RUNS)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_the_limit_of_a_crew_holds_over_two_services(site: MakeSite, database: str) -> None:
    await scenarios.crew_limited(site(database, "local"), RUNS)


async def test_all_machines_may_lose_the_database(site: MakeSite) -> None:
    await scenarios.machines_without_database(site("postgresql", "local"), RUNS, away_seconds=2)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_each_due_time_has_one_run_though_a_process_dies(
    site: MakeSite, database: str
) -> None:
    await scenarios.killed_at_a_due_time(site(database, "local"), 120)


async def test_a_run_that_ends_its_process_fails_alone(site: MakeSite) -> None:
    await scenarios.poisonous_run(site("sqlite", "local"), RUNS, max_attempts=2)


async def test_a_worker_frozen_past_its_lease_changes_nothing_more(site: MakeSite) -> None:
    await scenarios.worker_frozen(site("sqlite", "s3"), RUNS)


async def test_a_worker_frozen_inside_a_write_loses_no_run(site: MakeSite) -> None:
    await scenarios.worker_frozen_inside_a_write(site("postgresql", "local"), RUNS)


async def test_a_stop_ends_what_it_can_and_hands_back_the_rest(site: MakeSite) -> None:
    await scenarios.stopped(site("sqlite", "local"), RUNS)


async def test_a_second_signal_stops_all_workers_at_once(site: MakeSite) -> None:
    await scenarios.stopped_at_once(site("postgresql", "local"), RUNS, workers=2)


async def test_postgresql_may_die_under_load(site: MakeSite) -> None:
    await scenarios.database_killed(site("postgresql", "local"), RUNS, away_seconds=2)


async def test_s3_may_die_under_load(site: MakeSite) -> None:
    await scenarios.objects_killed(site("sqlite", "memory+s3"), RUNS, away_seconds=2)
