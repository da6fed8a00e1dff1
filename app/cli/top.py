"""`crew-capture top`: a running service at a glance, from its metrics."""

import math
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from threading import Event

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.cli.scrape import Scrape, ScrapeFailed, metrics_url, scrape
from app.settings import load_settings
from app.telemetry import metrics
from app.telemetry.estimates import increase, quantile
from app.telemetry.instruments import Gauge

# Rates and quantiles of the last seconds: long enough to be steady, short enough to follow.
_WINDOW_SECONDS = 30.0
_MAX_ERRORS = 8


@click.command()
@click.option(
    "--url",
    metavar="URL",
    help="The service, or its /metrics; otherwise that of HOST and METRICS_PORT or PORT.",
)
@click.option(
    "--key",
    envvar="CREW_CAPTURE_KEY",
    metavar="KEY",
    help="A key of the role metrics or admin; otherwise CREW_CAPTURE_KEY.",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="The time between two frames.",
)
@click.option("--once", is_flag=True, help="Print one frame and exit, as without a terminal.")
def top(url: str | None, key: str | None, interval: float, *, once: bool) -> None:
    """Show runs, rates, latency, model calls, storage, webhooks and errors of a running service."""
    console = Console()
    try:
        target = metrics_url(url or _own_url())
        first = scrape(target, key)
        if once or not console.is_terminal:
            console.print(frame(target, [first]))
        else:
            _watch(console, target, key, interval, first)
    except ScrapeFailed as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        return


def _stopped_by_ctrl_c() -> Event:
    """An event that Ctrl-C sets: Python drops a KeyboardInterrupt inside a destructor."""
    stopped = Event()

    def interrupt(*_: object) -> None:
        stopped.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    return stopped


def _own_url() -> str:
    """The URL of the service that the settings describe."""
    settings = load_settings()
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{settings.metrics_port or settings.port}"


def _watch(console: Console, url: str, key: str | None, interval: float, first: Scrape) -> None:
    """Show a frame after each interval. A service that does not respond is tried again."""
    scrapes = deque([first])
    stopped = _stopped_by_ctrl_c()
    with Live(frame(url, scrapes), console=console, screen=True, auto_refresh=False) as live:
        while not stopped.is_set():
            time.sleep(interval)
            problem = ""
            try:
                scrapes.append(scrape(url, key))
            except ScrapeFailed as error:
                problem = str(error)
            while len(scrapes) > 2 and scrapes[-1].at - scrapes[0].at > _WINDOW_SECONDS:
                scrapes.popleft()
            live.update(frame(url, scrapes, problem), refresh=True)


def frame(url: str, scrapes: Sequence[Scrape], problem: str = "") -> RenderableType:
    """One frame: the amounts now, and what has happened since the oldest of the scrapes."""
    now = scrapes[-1]
    before = scrapes[0] if len(scrapes) > 1 else None
    since = "since the start" if before is None else f"the last {now.at - before.at:.0f} s"
    processes = _number(now.total(metrics.PROCESSES))
    title = Text(f"Crew Capture  {url}", style="bold", no_wrap=True)
    title.append(f"\nprocesses: {processes}  rates and times: {since}", style="not bold")
    parts: list[RenderableType] = [title, *([Text(problem, style="red")] if problem else [])]
    parts += [
        "",
        _amounts(now),
        "",
        _rates(now, before),
        "",
        _storage(now),
        "",
        _errors(now, before),
    ]
    return Group(*parts)


def _amounts(now: Scrape) -> Table:
    """The amounts in flight now."""
    slots = _number(now.total(metrics.RUN_SLOTS))
    rows = (
        (
            ("runs in flight", f"{_number(now.total(metrics.RUN_SLOTS_USED))} of {slots}"),
            ("model calls", _number(now.total(metrics.MODEL_CALLS_IN_FLIGHT))),
            ("tool calls", _number(now.total(metrics.TOOL_CALLS_IN_FLIGHT))),
        ),
        (
            ("runs queued", _of_database(now, metrics.RUNS, status="queued")),
            ("awaiting humans", _of_database(now, metrics.RUNS, status="awaiting_human")),
            ("requests", _number(now.total(metrics.ACTIVE_REQUESTS))),
        ),
        (
            ("webhooks pending", _of_database(now, metrics.WEBHOOKS_PENDING)),
            ("oldest webhook", f"{_of_database(now, metrics.OLDEST_WEBHOOK)} s"),
            ("memory", _bytes(now.total(metrics.PROCESS_MEMORY))),
        ),
    )
    table = Table.grid(padding=(0, 2))
    for row in rows:
        table.add_row(*(cell for name, value in row for cell in (Text(name, style="dim"), value)))
    return table


def _rates(now: Scrape, before: Scrape | None) -> Table:
    """How often things happen, and how long they last."""
    table = _table("", "total", "per second", "p50 s", "p95 s")
    for name, histogram in _TIMES.items():
        count = now.count(histogram)
        buckets = now.buckets(histogram)
        rate = "-"
        if before is not None:
            rate = f"{increase(count, before.count(histogram)) / (now.at - before.at):.1f}"
            earlier = before.buckets(histogram)
            buckets = {le: increase(n, earlier.get(le, 0.0)) for le, n in buckets.items()}
        times = (_seconds(quantile(share, buckets), buckets) for share in (0.5, 0.95))
        table.add_row(name, _number(count), rate, *times)
    return table


_TIMES = {
    "runs": metrics.RUN_DURATION,
    "wait for a slot": metrics.RUN_QUEUE_DURATION,
    "model calls": metrics.MODEL_CALL_DURATION,
    "tool calls": metrics.TOOL_CALL_DURATION,
    "requests": metrics.REQUEST_DURATION,
    "commits": metrics.COMMIT_DURATION,
}


def _storage(now: Scrape) -> Table:
    """The stored outputs of each backend."""
    table = _table("storage", "outputs", "size", "oldest", "free")
    for backend, is_up in sorted(now.by("backend", metrics.STORAGE_UP.name).items()):
        if not is_up:
            table.add_row(backend, Text("away", style="red"), "-", "-", "-")
            continue
        has_room = now.has(metrics.STORAGE_FREE, backend=backend)
        table.add_row(
            backend,
            _number(now.total(metrics.STORED_OUTPUTS, backend=backend)),
            _bytes(now.total(metrics.STORED_BYTES, backend=backend)),
            f"{now.total(metrics.OLDEST_OUTPUT, backend=backend):,.0f} s",
            _bytes(now.total(metrics.STORAGE_FREE, backend=backend)) if has_room else "-",
        )
    return table


def _errors(now: Scrape, before: Scrape | None) -> RenderableType:
    """The errors since the start; the most frequent of the window first."""
    earlier = dict(_error_counts(before)) if before is not None else {}
    rows = [
        (increase(count, earlier.get(name, 0.0)) if before else 0.0, count, name)
        for name, count in _error_counts(now)
        if count
    ]
    if not _knows_database(now):
        rows.append((math.inf, math.nan, "the database is unavailable"))
    if not rows:
        return Text("no errors since the start", style="green")
    table = _table("errors", "total", "of these, new")
    for new, count, name in sorted(rows, key=lambda row: row[:2], reverse=True)[:_MAX_ERRORS]:
        style = "red" if new else ""
        known = "-" if math.isinf(new) or before is None else _number(new)
        table.add_row(Text(name, style=style), "-" if math.isnan(count) else _number(count), known)
    return table


def _error_counts(found: Scrape) -> Iterator[tuple[str, float]]:
    for kind, count in found.by("error_type", metrics.RUNS_ENDED.name).items():
        if kind:
            yield f"runs: {kind}", count
    for name, histogram in (
        ("model calls", metrics.MODEL_CALL_DURATION),
        ("tool calls", metrics.TOOL_CALL_DURATION),
    ):
        for kind, count in found.by("error_type", f"{histogram.name}_count").items():
            if kind:
                yield f"{name}: {kind}", count
    statuses = found.by("http_response_status_code", f"{metrics.REQUEST_DURATION.name}_count")
    yield "requests: HTTP 5xx", sum(n for status, n in statuses.items() if status[:1] == "5")
    for operation in ("persist", "read", "delete"):
        labels = {"operation": operation, "result": "failed"}
        yield f"storage: {operation}", found.total(metrics.STORAGE_OPERATIONS, **labels)
    yield "storage: cleanup", found.total(metrics.CLEANUP_FAILURES)
    yield "database", found.total(metrics.DATABASE_ERRORS)
    yield "webhooks failed for good", found.total(metrics.WEBHOOK_ATTEMPTS, result="failed")
    yield "lease renewals", found.total(metrics.LEASE_RENEWALS, result="failed")
    yield "attempts dropped", found.total(metrics.ATTEMPTS_DROPPED)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", min_width=0 if index else 22)
    return table


def _knows_database(now: Scrape) -> bool:
    return now.total(metrics.DATABASE_UP) == 1


def _of_database(now: Scrape, gauge: Gauge, **where: str) -> str:
    """A number that the database has; a hyphen while it is away."""
    return _number(now.total(gauge, **where)) if _knows_database(now) else "-"


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _seconds(value: float | None, buckets: dict[float, float]) -> str:
    if value is None:
        return "-"
    if math.isinf(value):
        highest = max(bound for bound in buckets if not math.isinf(bound))
        return f"> {highest:g}"
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
