"""The engine: knows every crew, chooses how each is run, and runs it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from crewai import Crew
from crewai.crews.crew_output import CrewOutput
from crewai.flow.flow import Flow
from crewai.llms.base_llm import BaseLLM

from app.engine.console import silence
from app.engine.coverage import (
    NotCovered,
    check_native_covers,
    check_plan_covers,
    check_surroundings,
)
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
from app.engine.folders import paths_from, settle_paths
from app.engine.llm import deferred_clients
from app.engine.models import CrewModel, default_model, settle_models
from app.engine.native import run_natively
from app.engine.plan import Plan
from app.engine.recording import definition, fingerprint, record_plan
from app.engine.results import CrewResult, OnStep, Replay, RunObserver, Way
from app.engine.scope import RunScope
from app.engine.stock import StockThreads
from app.engine.threads import WorkThreads
from app.engine.watching import watch_model

Mode = Literal["auto", "native", "stock"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Served:
    """A crew and its way. `plan` and `models` (its agents', in their order) belong to the plan
    way; a static crew's runs all use these models, others those of the crew built for the run.
    """

    source: CrewSource
    description: CrewDescription
    plan: Plan | None = None
    models: tuple[BaseLLM, ...] = ()


class Engine:
    """Runs crews. One per process and event loop.

    `model` is the model of every agent that names none of its own. `mode` keeps all crews from
    faster ways: "native" from plans, "stock" from anything but CrewAI's own kickoff.
    `max_stock_threads` is how many stock runs go at once. `models_of_crews` are those of crews that
    do not use `model`.
    """

    def __init__(
        self,
        *,
        model: BaseLLM,
        mode: Mode,
        max_stock_threads: int,
        models_of_crews: Mapping[str, CrewModel] | None = None,
    ) -> None:
        self._model = CrewModel(model)
        self._models_of_crews = models_of_crews or {}
        self._mode = mode
        self._stock_threads = StockThreads(max_stock_threads)
        self._work_threads = WorkThreads(max_stock_threads)
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

    def fingerprint(self, name: str) -> str:
        """The crew's fingerprint; empty for a crew that is not served."""
        served = self._served.get(name)
        return served.description.fingerprint if served else ""

    async def run(
        self,
        name: str,
        inputs: Mapping[str, object],
        observer: RunObserver | None = None,
        replays: Mapping[int, Replay] | None = None,
        *,
        on_step: OnStep | None = None,
    ) -> CrewResult:
        """Run a crew once. Nothing is shared with any other run.

        `replays` are tasks, by their place in the crew, that an earlier attempt at the run has
        finished, of a crew with the same fingerprint: they are not executed or told again.
        `on_step` hears of the agents' steps; those of the stock way are not told.

        Cancelling the awaiting task cancels the run. Raises CrewUnknown, EngineClosed, CrewBroken
        (its factory failed just now), ModelError, CrewFailed, NoResult, or what the observer
        raised.
        """
        if self._closed:
            raise EngineClosed("the engine is closed")
        served = self._find(name)
        scope = RunScope(
            tasks=served.description.tasks,
            observer=observer,
            threads=self._work_threads,
            replays=replays,
            on_step=on_step,
        )
        folder = served.source.folder
        model = self._model_of(name).llm
        with scope.entered(), default_model(model), paths_from(folder):
            try:
                output, way = await self._execute(served, inputs, scope)
            except Exception as error:
                failure = failure_of(error, scope)
                if failure is error:
                    raise
                raise failure from error
            finally:
                await scope.journal.aclose()
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
        self._stock_threads.close()
        self._work_threads.close()

    async def _prepare(self, source: CrewSource) -> _Served:
        crew = self._build(source)
        refuse_unservable(source.name, crew)
        _refuse_sharing(source.name, crew, self._build(source))
        plan, way, reason = await self._choose(source, crew)
        description = CrewDescription(
            name=source.name,
            inputs=required_inputs(crew),
            tasks=task_descriptions(crew),
            way=way,
            reason=reason,
            fingerprint=fingerprint(crew),
        )
        return _Served(source, description, plan, _models(crew) if plan else ())

    async def _choose(self, source: CrewSource, crew: Crew) -> tuple[Plan | None, Way, str]:
        """The fastest way that is right for a crew, and what keeps it from the faster ones."""
        reasons = []
        if self._mode == "auto":
            try:
                check_surroundings()
                plan = await record_plan(lambda: self._build(source), self._stock_threads.kick_off)
            except NotCovered as feature:
                reasons.append(f"no plan covers {feature}")
            else:
                return plan, "plan", ""
        if self._mode != "stock":
            try:
                check_native_covers(crew)
            except NotCovered as feature:
                reasons.append(f"the native executor does not cover {feature}")
            else:
                return None, "native", "; ".join(reasons) or "asked for by the engine's mode"
        return None, "stock", "; ".join(reasons) or "asked for by the engine's mode"

    async def _execute(
        self, served: _Served, inputs: Mapping[str, object], scope: RunScope
    ) -> tuple[CrewOutput, Way]:
        crew = None if served.plan and served.source.static else self._build(served.source)
        if served.plan is not None:
            try:
                models = served.models if crew is None else _models_as_planned(served.plan, crew)
                return await served.plan.run(models, inputs, scope), "plan"
            except NotCovered as feature:
                _logger.info("crew %s: a run goes on natively: %s", served.source.name, feature)
                scope.journal.handed_over = True
                scope.quiet = False
        crew = crew or self._build(served.source)
        if served.description.way != "stock":
            try:
                check_native_covers(crew)
            except NotCovered as feature:
                _logger.info("crew %s: a run goes on as stock: %s", served.source.name, feature)
            else:
                return await run_natively(crew, inputs, scope), "native"
        return await self._stock_threads.run(crew, inputs, scope), "stock"

    def _build(self, source: CrewSource) -> Crew:
        model = self._model_of(source.name)
        try:
            with default_model(model.llm), deferred_clients(), paths_from(source.folder):
                crew = source.build()
                if isinstance(crew, Crew):
                    settle_paths(crew)
        except Exception as error:
            raise CrewBroken(f"crew {source.name} can't be built: {one_line(error)}") from error
        if not isinstance(crew, Crew):
            kind = "a flow" if isinstance(crew, Flow) else f"a {type(crew).__name__}"
            raise CrewBroken(f"crew {source.name}: its factory returns {kind}, not a crew")
        for llm in settle_models(crew, model):
            watch_model(type(llm))
        silence(crew)
        # The result is awaited as a whole; CrewAI's streaming would also change shared models.
        crew.stream = False
        return crew

    def _model_of(self, name: str) -> CrewModel:
        return self._models_of_crews.get(name, self._model)

    def _find(self, name: str) -> _Served:
        try:
            return self._served[name]
        except KeyError:
            raise CrewUnknown(f"no crew is named {name}") from None


def _models(crew: Crew) -> tuple[BaseLLM, ...]:
    return tuple(agent.llm for agent in crew.agents if isinstance(agent.llm, BaseLLM))


def _models_as_planned(plan: Plan, crew: Crew) -> tuple[BaseLLM, ...]:
    """The models of a crew that was built for one run, if it still is the crew that was planned.

    A factory is code: tomorrow it may put another date into a backstory.
    """
    check_plan_covers(crew)
    if definition(crew) != plan.definition:
        raise NotCovered("a crew that differs from the recorded one")
    return _models(crew)


def _refuse_sharing(name: str, one: Crew, other: Crew) -> None:
    """Two runs never share an agent or a task, so a factory must not hand out the same ones."""
    ours = {id(thing) for thing in (one, *one.agents, *one.tasks)}
    if any(id(thing) in ours for thing in (other, *other.agents, *other.tasks)):
        raise CrewBroken(
            f"crew {name}: its factory hands out the same objects twice; build agents, tasks and "
            "the crew inside of it"
        )
