"""`crew-capture run`: one run of a crew in the terminal, with its progress."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from app.access.callers import OPERATOR
from app.cli.reports import write_reports
from app.cli.waiting import importing, settings_of_command
from app.crews.idea.profile import FIELDS
from app.settings import Settings

if TYPE_CHECKING:
    from app.runs import CrewInfo, Event, Run, RunService

F = TypeVar("F", bound=Callable[..., Any])

# The exit code of a command that a signal ended: 128 and the number of SIGINT.
_CANCELLED: Final = 130
# The time for a cancelled run to close its model connections.
_CANCEL_SECONDS: Final = 2.0


def _profile_options(command: F) -> F:
    for field in reversed(FIELDS):
        option = f"--{field.name.replace('_', '-')}"
        help_text = f"{field.description} Default: {field.default}"
        command = click.option(option, field.name, metavar="TEXT", help=help_text)(command)
    return command


def _inputs(_: click.Context, __: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    given = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE")
        given[name] = value
    return given


def _time(_: click.Context, __: click.Parameter, given: str | None) -> datetime | None:
    if given is None:
        return None
    try:
        at = datetime.fromisoformat(given)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        example = "2030-01-31T08:00:00Z"
        raise click.BadParameter(f"{given!r} is no time with a zone, such as {example}")
    return at


@click.command()
@click.option("--crew", default="idea", show_default=True, metavar="NAME", help="The crew to run.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    callback=_inputs,
    metavar="NAME=VALUE",
    help="An input; as JSON if its declared type is not a string. May be repeated.",
)
@_profile_options
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write each report to DIR/NAME.md.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the run as JSON and nothing else.")
@click.option(
    "--not-before",
    callback=_time,
    metavar="TIME",
    help="Leave the run to a service, which begins it at this time at the earliest, such as "
    "2030-01-31T08:00:00Z. Prints the id of the run.",
)
@click.option(
    "--priority",
    type=click.IntRange(-100, 100),
    metavar="NUMBER",
    help="With --not-before: among waiting runs, the highest begin first. Default: 0",
)
def run(
    crew: str,
    inputs: dict[str, str],
    output_dir: Path | None,
    as_json: bool,
    not_before: datetime | None,
    priority: int | None,
    **profile: str | None,
) -> None:
    """Run a crew once, here, without a server: the idea crew, or one of CREWS.

    The idea crew's inputs are options, too. Ctrl-C cancels the run.
    """
    if not_before is None and priority is not None:
        raise click.UsageError("--priority is for runs that wait; use it with --not-before")
    settings = settings_of_command()
    of_profile = {name: value for name, value in profile.items() if value is not None}
    if of_profile and crew != "idea":
        option = next(iter(of_profile)).replace("_", "-")
        raise click.UsageError(f"--{option} is the idea crew's; use --input NAME=VALUE")
    given = of_profile | inputs
    with importing():  # outside of the event loop, so that Ctrl-C ends it
        import app.bootstrap  # noqa: F401
    if not_before is not None:
        sys.exit(asyncio.run(_submit(settings, crew, given, not_before, priority or 0)))
    code = asyncio.run(_run_once(settings, crew, given, output_dir, as_json=as_json))
    if code == _CANCELLED:  # a tool's thread can't be stopped, and Python would wait for it
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


async def _submit(
    settings: Settings, crew: str, given: dict[str, str], not_before: datetime, priority: int
) -> int:
    """Submit a run for a service to execute, and print its id; returns the exit code."""
    from app.bootstrap import open_service
    from app.runs import RunError, RunOptions

    options = RunOptions(priority=priority, not_before=not_before)
    try:
        async with open_service(settings, is_one_shot=True) as service:
            inputs = _typed(service.runs.crew(crew), given)
            submitted = await service.runs.submit(crew, inputs, OPERATOR, options)
    except RunError as error:
        click.echo(f"crew-capture: {error}", err=True)
        return 1
    click.echo(submitted.run_id)
    return 0


async def _run_once(
    settings: Settings,
    crew: str,
    given: dict[str, str],
    output_dir: Path | None,
    *,
    as_json: bool,
) -> int:
    """Run the crew and show or write its reports; returns the exit code."""
    from app.bootstrap import open_service
    from app.model_setup import unusable_models
    from app.runs import RunError, UnknownCrew

    this = asyncio.current_task()
    assert this is not None  # noqa: S101 - this is a coroutine
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    try:
        async with open_service(settings, is_one_shot=True) as service:
            names = [info.name for info in service.runs.crews()]
            if crew not in names:
                raise UnknownCrew(f"no crew is named {crew}; available are {', '.join(names)}")
            if problems := unusable_models(crew, service.engine.models(crew)):
                click.echo(f"crew-capture: {problems[0]}", err=True)
                return 1
            inputs = _typed(service.runs.crew(crew), given)
            submitting = asyncio.create_task(service.runs.submit(crew, inputs, OPERATOR))
            try:
                run = await asyncio.shield(submitting)
                run = await _wait(service.runs, run, quiet=as_json)
            except asyncio.CancelledError:
                run = await submitting  # it may be under way already
                await service.runs.cancel(run.run_id, OPERATOR)
                await service.stop(_CANCEL_SECONDS)
                click.echo(f"crew-capture: run {run.run_id} is cancelled", err=True)
                return _CANCELLED
    except RunError as error:
        click.echo(f"crew-capture: {error}", err=True)
        return 1
    if as_json:
        click.echo(msgspec.json.encode(_as_dict(run)))
    if run.raw_result is None or run.outputs is None:
        if not as_json:
            click.echo(f"{run.error_type}: {run.error}", err=True)
        return 1
    if output_dir is not None:
        for path in write_reports(output_dir, run.outputs):
            click.echo(path, err=as_json)
    elif not as_json:
        click.echo("\n\n".join(run.outputs.values()))
    return 0


async def _wait(runs: "RunService", run: "Run", *, quiet: bool) -> "Run":
    """Show the run's progress until its end; returns the run as it stands then."""
    progress = _RunProgress(quiet=quiet)
    events = runs.subscribe(run.run_id, OPERATOR, after_seq=-1, heartbeat_seconds=60)
    with progress:
        async with aclosing(events):
            async for batch in events:
                for event in batch:
                    progress.show(event)
    return await runs.wait(run, OPERATOR)


def _typed(crew: "CrewInfo", given: dict[str, str]) -> dict[str, Any]:
    """The inputs with their declared types, decoded from JSON where that is not a string."""
    from app.runs import InvalidInput

    other = {input_.name for input_ in crew.inputs if input_.type not in (None, "string")}
    inputs: dict[str, Any] = dict(given)
    for name in other & given.keys():
        try:
            inputs[name] = msgspec.json.decode(given[name])
        except msgspec.DecodeError:
            raise InvalidInput(name, "must be JSON") from None
    return inputs


def _as_dict(run: "Run") -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "status": run.status,
        "inputs": run.inputs,
        "assumed_inputs": run.assumed_inputs,
        "outputs": run.outputs,
        "raw_result": run.raw_result,
        "usage": run.used,
        "cost": run.cost,
        "error": run.error,
        "error_type": run.error_type,
    }


class _RunProgress:
    """One line for each task, on standard error: waiting, running, done."""

    def __init__(self, *, quiet: bool) -> None:
        self._lines: dict[int, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=quiet,
        )

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: "Event") -> None:
        if event.type == "task.started":
            self._lines[event.data["index"]] = self._progress.add_task(
                f"{event.data['name']} ({event.data['agent'].strip()})", total=None
            )
        elif event.type == "task.finished":
            self._progress.update(self._lines[event.data["index"]], total=1, completed=1)
