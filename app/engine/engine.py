"""The engine: knows every crew, chooses how each is run, and runs it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from crewai import Crew
from crewai.crews.crew_output import CrewOutput
from crewai.llms.base_llm import BaseLLM

from app.engine.crewai_internals import install
from app.engine.description import (
    CrewDescription,
    CrewSource,
    refuse_unservable,
    required_inputs,
    task_descriptions,
)
from app.engine.errors import CrewBroken, CrewUnknown, EngineClosed, one_line
from app.engine.failures import failure_of
from app.engine.models import complete_models, default_model
from app.engine.results import CrewResult, RunObserver, Way
from app.engine.scope import RunScope
from app.engine.stock import StockThreads

Mode = Literal["auto", "native", "stock"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Served:
    source: CrewSource
    description: CrewDescription


class Engine:
    """Runs crews. One per process and event loop.

    `model` is the model of every agent that names none of its own. `mode` keeps all crews from
    faster ways: "native" from plans, "stock" from anything but CrewAI's own kickoff.
    `max_stock_threads` is how many stock runs go at once.
    """

    def __init__(self, *, model: BaseLLM, mode: Mode, max_stock_threads: int) -> None:
        self._model = model
        self._mode = mode
        self._threads = StockThreads(max_stock_threads)
        self._served: dict[str, _Served] = {}
        self._closed = False
        install()

    async def start(self, crews: Sequence[CrewSource]) -> None:
        """Take up `crews`: build each once and choose its way, told in one log line per crew.

        Raises CrewBroken with one line for the first crew that can't be built or served.
        """
        for source in crews:
            if source.name in self._served:
                raise CrewBroken(f"crew {source.name}: two crews have this name")
            served = await self._prepare(source)
            self._served[source.name] = served
            description = served.description
            why = f" ({description.reason})" if description.reason else ""
            _logger.info("crew %s runs the %s way%s", source.name, description.way, why)

    def describe(self, name: str) -> CrewDescription:
        """Raises CrewUnknown."""
        return self._find(name).description

    async def run(
        self, name: str, inputs: Mapping[str, object], observer: RunObserver | None = None
    ) -> CrewResult:
        """Run a crew once. Nothing is shared with any other run.

        Cancelling the awaiting task cancels the run. Raises CrewUnknown, EngineClosed, CrewBroken
        (its factory failed just now), ModelError, CrewFailed, NoResult, or what the observer
        raised.
        """
        if self._closed:
            raise EngineClosed("the engine is closed")
        served = self._find(name)
        scope = RunScope(model=self._model, tasks=served.description.tasks, observer=observer)
        with scope.entered(), default_model(self._model):
            try:
                output, way = await self._execute(served, inputs, scope)
            except CrewBroken:
                raise
            except Exception as error:
                raise failure_of(error, scope) from error
        output.token_usage = scope.usage.metrics()
        return CrewResult(
            raw=output.raw,
            tasks=scope.outcomes(output.tasks_output),
            usage=scope.usage,
            output=output,
            way=way,
        )

    async def aclose(self) -> None:
        """Take no more runs; those under way are the caller's to cancel."""
        self._closed = True
        self._threads.close()

    async def _prepare(self, source: CrewSource) -> _Served:
        crew = self._build(source)
        refuse_unservable(source.name, crew)
        description = CrewDescription(
            name=source.name,
            inputs=required_inputs(crew),
            tasks=task_descriptions(crew),
            way="stock",
            reason="ENGINE=stock" if self._mode == "stock" else "no faster way covers it",
        )
        return _Served(source, description)

    async def _execute(
        self, served: _Served, inputs: Mapping[str, object], scope: RunScope
    ) -> tuple[CrewOutput, Way]:
        return await self._threads.run(self._build(served.source), inputs, scope), "stock"

    def _build(self, source: CrewSource) -> Crew:
        try:
            with default_model(self._model):
                crew = source.build()
        except Exception as error:
            raise CrewBroken(f"crew {source.name} can't be built: {one_line(error)}") from error
        complete_models(crew, self._model)
        # The result is awaited as a whole; CrewAI's streaming would also change shared models.
        crew.stream = False
        return crew

    def _find(self, name: str) -> _Served:
        try:
            return self._served[name]
        except KeyError:
            raise CrewUnknown(f"no crew is named {name}") from None
