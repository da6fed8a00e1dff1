"""`crew-capture doctor`: what works, what doesn't, and how to fix it."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from uuid import uuid4

import click

from app.crews.registry import load_crews
from app.pins import changed
from app.resources import open_database, open_store
from app.settings import Settings, load_settings
from storage import OutputKey, OutputStore


@click.command()
def doctor() -> None:
    """Check settings, database, output backend and model, and say how to fix them."""
    sys.exit(asyncio.run(_examine()))


async def _examine() -> int:
    """Check every part in turn and print a line for each; 1 if a part needs a fix."""
    examination = _Examination()
    async with AsyncExitStack() as stack:
        with examination.of("settings", "correct it in the environment or in .env"):
            settings = load_settings()
            examination.passed(f"backend {settings.temp_backend}, model {settings.llm_model}")
        if examination.failures:
            return 1
        # Importing CrewAI lasts seconds. A release that the engine does not fit ends the command.
        import app.model_setup  # noqa: F401

        with examination.of("database", "is DATABASE_URL right, is the server up?"):
            database = await stack.enter_async_context(open_database(settings))
            examination.passed(f"{database.engine.dialect.name}, newest schema")
        if not examination.failures:
            with examination.of("backend", "see docs/operations.md, Backends"):
                store = await stack.enter_async_context(open_store(settings, database))
                examination.passed(await _round_trip(store))
        with examination.of("libraries", "install the releases that requirements.lock names"):
            examination.passed(_check_pins())
        with examination.of("crews", "see the crew's own definition"):
            await _describe_crews(settings, examination)
        with examination.of("model", "are LLM_MODEL, LLM_BASE_URL and LLM_API_KEY right?"):
            examination.passed(await _call_model(settings))
    return 1 if examination.failures else 0


class _Examination:
    """Prints a line for each part, and counts the parts that need a fix."""

    def __init__(self) -> None:
        self.failures = 0
        self._part = ""

    @contextmanager
    def of(self, part: str, fix: str) -> Iterator[None]:
        self._part = part
        try:
            yield
        except Exception as error:  # any error of a part; the other parts are examined, too
            self.failures += 1
            click.echo(f"✗ {part}: {str(error) or type(error).__name__}\n    fix: {fix}")

    def passed(self, finding: str) -> None:
        click.echo(f"✓ {self._part}: {finding}")


def _check_pins() -> str:
    if lines := changed():
        raise RuntimeError("\n".join(["internals that this service relies on changed:", *lines]))
    return f"crewai {version('crewai')}; every pinned internal is unchanged"


async def _round_trip(store: OutputStore) -> str:
    text = "A test of the output backend."
    key = OutputKey(uuid4(), int(datetime.now(UTC).timestamp()), "doctor")
    try:
        await store.persist(key, text)
        if await store.read(key) != text:
            raise OSError("the backend returned another text than was written")
    finally:
        await store.delete([key])
    usage = await store.usage()
    free = "" if usage.free_bytes is None else f", {usage.free_bytes / 1e6:,.0f} MB free"
    return (
        f"written, read and deleted in {store.location}; "
        f"it holds {usage.count} output(s), {usage.size_bytes / 1e6:.1f} MB{free}"
    )


async def _describe_crews(settings: Settings, examination: _Examination) -> None:
    from app.engine import Engine
    from app.model_setup import configured_model, models_of_crews

    crews = load_crews(settings)
    engine = Engine(
        model=configured_model(settings, crews),
        models_of_crews=models_of_crews(settings, crews),
        mode=settings.engine,
        max_stock_threads=1,
    )
    try:
        await engine.start(list(crews))
        for crew in crews:
            found = engine.describe(crew.name)
            reason = f" ({found.reason})" if found.reason else ""
            mode = f"execution mode {found.execution_mode}{reason}"
            examination.passed(f"{crew.name}: {len(found.tasks)} tasks, {mode}")
    finally:
        await engine.aclose()


async def _call_model(settings: Settings) -> str:
    from app.model_setup import configured_model

    model = configured_model(settings, load_crews(settings))
    answer = await model.acall([{"role": "user", "content": "Answer with the word ready."}])
    if not str(answer).strip():
        raise ValueError("the model's answer is empty")
    return f"{settings.llm_model} answers"
