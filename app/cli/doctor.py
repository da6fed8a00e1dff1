"""`crew-capture doctor`: what works, what doesn't, and how to fix it."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING
from uuid import uuid4

import click
from rich.console import Console
from rich.text import Text

from app.cli.waiting import importing, log_own_warnings
from app.settings import Settings, load_settings

if TYPE_CHECKING:
    from crewai import BaseLLM
    from crewai.utilities.types import LLMMessage

    from app.engine import Engine
    from app.runs.queue.base import RunQueue
    from storage import OutputStore


@click.command()
def doctor() -> None:
    """Check settings, database, output backend, crews and models, and say how to fix them."""
    log_own_warnings("console")
    sys.exit(asyncio.run(_examine()))


async def _examine() -> int:
    """Check every part in turn and print a line for each; 1 if a part needs a fix."""
    from app.resources import open_database, open_queue, open_store

    examination = _Examination()
    async with AsyncExitStack() as stack:
        with examination.of("settings", "correct it in the environment or in .env"):
            settings = load_settings()
            examination.passed(f"backend {settings.temp_backend}, model {settings.llm_model}")
        if examination.failures:
            for part in ("database", "backend", "queue", "prices", "libraries", "model", "crews"):
                examination.skipped(part, "it needs the settings")
            return 1
        # A release of CrewAI that the engine does not fit ends the command.
        with importing():
            import app.model_setup  # noqa: F401

        with examination.of("database", "see DATABASE_URL in docs/operations.md"):
            database = await stack.enter_async_context(open_database(settings))
            examination.passed(f"{database.engine.dialect.name}, newest schema")
        if examination.failures:
            for part in ("backend", "queue"):
                examination.skipped(part, "it needs the database")
        else:
            with examination.of("backend", "see docs/operations.md, Backends"):
                store = await stack.enter_async_context(open_store(settings, database))
                examination.passed(await _round_trip(store))
            with examination.of("queue", "see QUEUE_URL in docs/machines.md"):
                async with open_queue(settings, database) as queue:
                    examination.passed(await _check_queue(queue))
        with examination.of("prices", "see docs/costs.md, Prices"):
            examination.passed(_check_prices(settings))
        with examination.of("libraries", "install the releases that requirements.lock names"):
            examination.passed(_check_pins())
        await _check_crews_and_models(settings, examination)
    return 1 if examination.failures else 0


class _Examination:
    """Prints a line for each part, and counts the parts that need a fix."""

    def __init__(self) -> None:
        self.failures = 0
        self._part = ""
        self._console = Console(highlight=False, soft_wrap=True)

    @contextmanager
    def of(self, part: str, fix: str) -> Iterator[None]:
        self._part = part
        try:
            yield
        except Exception as error:  # any error of a part; the other parts are examined, too
            self.failed(" ".join(str(error).split()) or type(error).__name__, fix)

    def passed(self, finding: str) -> None:
        self._print("✓", "green", f"{self._part}: {finding}")

    def failed(self, problem: str, fix: str) -> None:
        self.failures += 1
        self._print("✗", "red", f"{self._part}: {problem}\n    fix: {fix}")

    def skipped(self, part: str, reason: str) -> None:
        self._print("-", "yellow", f"{part}: not examined, because {reason}")

    def _print(self, mark: str, color: str, line: str) -> None:
        self._console.print(Text.assemble((mark, color), f" {line}"))


def _check_pins() -> str:
    from app.pins import changed

    if lines := changed():
        raise RuntimeError("\n".join(["internals that this service relies on changed:", *lines]))
    return f"crewai {version('crewai')}; every pinned internal is unchanged"


def _check_prices(settings: Settings) -> str:
    from app.prices import read_prices

    if settings.prices_file is None:
        return "PRICES_FILE is not set: the cost of runs is unknown"
    return f"{len(read_prices(settings.prices_file))} price(s) in {settings.prices_file}"


async def _round_trip(store: "OutputStore") -> str:
    from storage import OutputKey

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


async def _check_queue(queue: "RunQueue | None") -> str:
    if queue is None:
        return "QUEUE_URL is not set: each process executes the runs that it accepts"
    await queue.check()
    if not queue.is_live:
        return "a hint came back; no live messages arrive, so processes poll the database"
    return "a hint and a live message came back"


async def _check_crews_and_models(settings: Settings, examination: _Examination) -> None:
    """Register all crews, and call each model that they name, once."""
    from app.crews.registry import Registry, idea_crew, load_crews
    from app.engine import Engine
    from app.engine.llm import close_models
    from app.model_setup import configured_model, models_of_crews, unusable_models
    from app.projects import within

    model = None
    # Before the code of any crew is imported, which may change how models are called.
    with examination.of("model", "are LLM_MODEL, LLM_BASE_URL and LLM_API_KEY right?"):
        model = configured_model(settings, Registry([idea_crew()]))
        await _call(model, settings)
        examination.passed(f"{settings.llm_model} answers")
    if model is None:
        examination.skipped("crews", "they need LLM_MODEL")
        await close_models()
        return
    called = {id(model)}
    try:
        with examination.of("crews", "see the crew's own definition, CREWS and CREWS_FILE"):
            crews = load_crews(settings)
            model = configured_model(settings, crews)
            called.add(id(model))
            engine = Engine(
                model=model,
                models_of_crews=models_of_crews(settings, crews),
                mode=settings.engine,
                max_stock_threads=1,
            )
            try:
                await engine.start(list(crews))
            finally:
                await engine.aclose()
            for crew in crews:
                examination.passed(f"{crew.name}: {_description(engine, crew.name)}")
            for crew in crews:
                _check_models_have_prices(crew.name, engine, settings, examination)
            for crew in crews:
                unusable = unusable_models(crew.name, engine.models(crew.name))
                if unusable:
                    with examination.of("model", ""):
                        for one in unusable:
                            examination.failed(one.problem, one.fix)
                    continue
                for llm in engine.models(crew.name):
                    if id(llm) not in called:
                        called.add(id(llm))
                        with within(crew.project):
                            await _check_model_of(crew.name, llm, settings, examination)
    finally:
        await close_models()


def _description(engine: "Engine", crew: str) -> str:
    found = engine.describe(crew)
    reason = f" ({found.reason})" if found.reason else ""
    return f"{len(found.tasks)} tasks, execution mode {found.execution_mode}{reason}"


def _check_models_have_prices(
    crew: str, engine: "Engine", settings: Settings, examination: _Examination
) -> None:
    from app.prices import read_prices, unpriced_models

    with examination.of("prices", "correct PRICES_FILE"):
        prices = read_prices(settings.prices_file)
        for model in unpriced_models(prices, engine.describe(crew).models):
            examination.failed(
                f"crew {crew} calls {model}, which has no price: its cost is unknown",
                f'add ["{model}"] to {settings.prices_file}; see docs/costs.md',
            )


async def _check_model_of(
    crew: str, llm: "BaseLLM", settings: Settings, examination: _Examination
) -> None:
    from app.model_setup import model_name

    name = f"{model_name(llm)} of the crew {crew}"
    fix = (
        f"correct the model and its key in the crew's definition, or set replace_models = true "
        f"under [{crew}] in CREWS_FILE"
    )
    with examination.of(f"model {name}", fix):
        await _call(llm, settings)
        examination.passed("answers")


async def _call(llm: "BaseLLM", settings: Settings) -> None:
    """Call a model once, as the engine does. Raises any error of the model."""
    from crewai.llms.base_llm import BaseLLM

    messages: list[LLMMessage] = [{"role": "user", "content": "Answer with the word ready."}]
    seconds = settings.llm_timeout_seconds
    try:
        async with asyncio.timeout(seconds):
            if type(llm).acall is BaseLLM.acall:  # a model for threads only
                answer = await asyncio.to_thread(llm.call, messages)
            else:
                answer = await llm.acall(messages)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"no answer within {seconds:g} s") from error
    if not str(answer).strip():
        raise ValueError("the model's answer is empty")
