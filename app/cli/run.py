"""`crew-capture run`: one run of a crew in the terminal, with its progress."""

from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from app.access.callers import OPERATOR
from app.bootstrap import open_service
from app.cli.reports import write_reports
from app.engine import EngineError
from app.runs import CrewInfo, Event, InvalidInput, Run, RunError
from app.settings import Settings


async def run_once(
    settings: Settings,
    crew: str,
    given: dict[str, str],
    output_dir: Path | None,
    *,
    as_json: bool,
) -> int:
    """Run the crew and show or write its reports; the process's exit code."""
    progress = _RunProgress(quiet=as_json)
    try:
        async with open_service(settings) as service:
            run = await service.runs.submit(crew, _typed(service.runs.crew(crew), given), OPERATOR)
            events = service.runs.subscribe(
                run.run_id, OPERATOR, after_seq=-1, heartbeat_seconds=60
            )
            with progress:
                async for happened in events:
                    for event in happened:
                        progress.show(event)
            run = await service.runs.wait(run, OPERATOR)
    except (RunError, EngineError) as error:
        click.echo(f"crew-capture: {error}", err=True)
        return 1
    if as_json:
        click.echo(msgspec.json.encode(_as_dict(run)))
    if run.outputs is None:
        if not as_json:
            click.echo(f"{run.error_type}: {run.error}", err=True)
        return 1
    if output_dir is not None:
        for path in write_reports(output_dir, run.outputs):
            click.echo(path, err=as_json)
    elif not as_json:
        click.echo("\n\n".join(run.outputs.values()))
    return 0


def _typed(crew: CrewInfo, given: dict[str, str]) -> dict[str, Any]:
    """What was given as text, as what it is declared to be."""
    other = {input_.name for input_ in crew.inputs if input_.type not in (None, "string")}
    inputs: dict[str, Any] = dict(given)
    for name in other & given.keys():
        try:
            inputs[name] = msgspec.json.decode(given[name])
        except msgspec.DecodeError:
            raise InvalidInput(name, "must be JSON") from None
    return inputs


def _as_dict(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "status": run.status,
        "inputs": run.inputs,
        "outputs": run.outputs,
        "raw_result": run.raw_result,
        "usage": run.usage,
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

    def show(self, event: Event) -> None:
        if event.type == "task.started":
            self._lines[event.data["index"]] = self._progress.add_task(
                f"{event.data['name']} ({event.data['agent'].strip()})", total=None
            )
        elif event.type == "task.finished":
            self._progress.update(self._lines[event.data["index"]], total=1, completed=1)
