"""Every way to break a deployment, on every database and backend: `python -m tests.faults.suite`.

Prints one table for each scenario, in markdown. Exits with 1 if a promise was broken.

    python -m tests.faults.suite --only process_killed --only stopped --runs 300
"""

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.commands import launch
from tests.faults import scenarios
from tests.faults.deployment import Servers, Site
from tests.faults.scenarios import Figures, Scenario

_DATABASES = ("sqlite", "postgresql")
_BACKENDS = ("local", "s3", "memory+s3")
_AnyScenario = Callable[..., Coroutine[Any, Any, Figures]]
# No case may take longer, whatever hangs.
_CASE_SECONDS = 400.0


@dataclass(frozen=True, slots=True)
class Case:
    """A scenario on one database and backend."""

    name: str
    scenario: Scenario
    database: str
    backend: str
    runs: int


def cases() -> Iterator[Case]:
    """All of them, in the order in which they are run."""
    everywhere = list(itertools.product(_DATABASES, _BACKENDS))
    on_local = [(database, "local") for database in _DATABASES]
    for runs, (database, backend) in itertools.product((300, 1000), everywhere):
        yield Case("process_killed", scenarios.process_killed, database, backend, runs)
    for database, backend in everywhere:
        yield Case("one_worker_killed", scenarios.one_worker_killed, database, backend, 300)
    yield from _cases_of_machines()
    yield from (Case("crew_limited", scenarios.crew_limited, *on, 300) for on in on_local)
    for database, backend in on_local:
        scenario = scenarios.killed_at_a_due_time
        yield Case("killed_at_a_due_time", scenario, database, backend, 120)
    for database, backend in everywhere:
        poisonous = partial(scenarios.poisonous_run, max_attempts=3)
        yield Case("poisonous_run", poisonous, database, backend, 30)
    for database, backend in everywhere:
        yield Case("worker_frozen", scenarios.worker_frozen, database, backend, 300)
    for database, backend in on_local:
        scenario = scenarios.worker_frozen_inside_a_write
        yield Case("worker_frozen_inside_a_write", scenario, database, backend, 300)
    for database, backend in everywhere:
        yield Case("stopped", scenarios.stopped, database, backend, 300)
    for database, backend in on_local:
        at_once = partial(scenarios.stopped_at_once, workers=2)
        yield Case("stopped_at_once", at_once, database, backend, 300)
    for backend in _BACKENDS:
        away = partial(scenarios.database_killed, away_seconds=30)
        yield Case("database_killed", away, "postgresql", backend, 300)
    for backend in ("s3", "memory+s3", "s3+local"):
        away = partial(scenarios.objects_killed, away_seconds=30)
        yield Case("objects_killed", away, "sqlite", backend, 300)


def _cases_of_machines() -> Iterator[Case]:
    """Those in which processes share runs by a queue."""

    def case(scenario: _AnyScenario, runs: int, **options: Any) -> Case:
        return Case(scenario.__name__, partial(scenario, **options), "postgresql", "local", runs)

    for queue, is_emptied in (("nats", False), ("nats", True), ("postgresql", False)):
        yield case(scenarios.machine_killed, 2000, queue=queue, is_emptied=is_emptied)
    for queue in ("nats", "postgresql", ""):
        yield case(scenarios.crowd, 5000, queue=queue)
    for queue in ("nats", "postgresql"):
        yield case(scenarios.workers_replaced, 1000, queue=queue)
    for queue in ("nats", "postgresql"):
        yield case(scenarios.machine_frozen, 1000, queue=queue)
        yield case(scenarios.accepting_frozen, 1000, queue=queue)
        yield case(scenarios.upgraded, 1000, queue=queue)
    yield case(scenarios.network_cut, 1000)
    for server in ("nats", "database"):
        yield case(scenarios.packets_dropped, 1000, to=server)
    for seconds in (60, -60):
        yield case(scenarios.clock_off, 1000, seconds=seconds)
    yield case(scenarios.cluster_of_nats, 1000)
    yield case(scenarios.follower_of_nats, 1000)
    for is_frozen in (False, True):
        away = partial(scenarios.machines_without_objects, is_frozen=is_frozen, away_seconds=20)
        yield Case("machines_without_objects", away, "postgresql", "s3", 1000)
    yield case(scenarios.disk_full, 1000)
    yield case(scenarios.limits_shared, 300)
    yield case(scenarios.machines_without_database, 1000, away_seconds=30)


def main() -> int:
    """Runs the chosen cases one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", help="a scenario, by its name")
    parser.add_argument("--database", action="append", choices=_DATABASES)
    parser.add_argument("--backend", action="append")
    parser.add_argument("--runs", type=int, help="only the cases with this many runs")
    options = parser.parse_args()
    chosen = [
        case
        for case in cases()
        if case.name in (options.only or [case.name])
        and case.database in (options.database or [case.database])
        and case.backend in (options.backend or [case.backend])
        and case.runs == (options.runs or case.runs)
    ]
    broken = 0
    with (
        tempfile.TemporaryDirectory(prefix="crew-capture-faults-") as folder,
        Servers(Path(folder)) as servers,
    ):
        numbered = enumerate(chosen, start=1)
        for name, group in itertools.groupby(numbered, key=lambda pair: pair[1].name):
            results: list[tuple[Case, Figures | None]] = []
            for number, case in group:
                site = Site(
                    servers, Path(folder) / str(number), case.database, case.backend, launch
                )
                results.append((case, _figures(case, site, f"{number}/{len(chosen)}")))
            broken += sum(figures is None for _, figures in results)
            print(f"### {name}\n\n{_table(results)}\n", flush=True)
    print(f"{len(chosen) - broken} of {len(chosen)} cases held")
    return 1 if broken else 0


def _figures(case: Case, site: Site, position: str) -> Figures | None:
    begun = time.monotonic()
    what = f"{case.name} {case.database} {case.backend} {case.runs}"
    print(f"[{position}] {what} ...", end=" ", file=sys.stderr, flush=True)
    try:
        figures = asyncio.run(_bounded(case, site))
    except Exception as error:
        print("BROKEN", file=sys.stderr)
        traceback.print_exception(error)
        return None
    print(f"held, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return figures


async def _bounded(case: Case, site: Site) -> Figures:
    async with asyncio.timeout(_CASE_SECONDS):
        return await case.scenario(site, case.runs)


def _table(results: list[tuple[Case, Figures | None]]) -> str:
    names = list(dict.fromkeys(name for _, figures in results for name in figures or {}))
    head = ["database", "backend", "runs", *names]
    rows = [
        [
            case.database,
            case.backend,
            str(case.runs),
            *([_shown(figures.get(name)) for name in names] if figures else ["BROKEN"]),
        ]
        for case, figures in results
    ]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(figure: float | None) -> str:
    if figure is None:
        return ""
    return str(figure) if isinstance(figure, int) else f"{figure:.1f}"


if __name__ == "__main__":
    sys.exit(main())
