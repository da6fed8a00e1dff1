"""The engine: knows every crew, chooses how each is run, and runs it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from crewai import Crew
from crewai.crews.crew_output import CrewOutput
from crewai.flow.flow import Flow
from crewai.llms.base_llm import BaseLLM

from app.engine import patches
from app.engine.compat.coverage import (
    Unsupported,
    check_environment,
    check_native_covers,
    check_plan_covers,
)
from app.engine.compat.models import CrewModel, default_model, settle_models
from app.engine.compat.paths import paths_from, settle_paths
from app.engine.compat.silence import silence
from app.engine.description import (
    CrewDescription,
    CrewSource,
    refuse_human_input,
    required_inputs,
    task_descriptions,
)
from app.engine.errors import CrewBroken, CrewUnknown, EngineClosed, one_line
from app.engine.flows.context import FlowContext
from app.engine.flows.runner import (
    check_flow_inputs,
    flow_defaults,
    refuse_sharing_flows,
    refuse_unservable_flow,
    result_description,
    run_flow,
)
from app.engine.llm import deferred_clients
from app.engine.native.runner import run_natively
from app.engine.replay.plan import Plan
from app.engine.replay.recorder import definition, fingerprint, record_plan
from app.engine.results import CrewResult, OnStep, Paused, Replay, Review, RunObserver, Way
from app.engine.runtime.context import RunContext
from app.engine.runtime.failures import failure_of
from app.engine.runtime.model_hooks import instrument_model
from app.engine.runtime.signals import ReviewRequired
from app.engine.runtime.threads import WorkThreads
from app.engine.stock import StockThreads

Mode = Literal["auto", "native", "stock"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Served:
    """A crew or flow and its way. `plan` and `models` (its agents', in their order) belong to the
    plan way; a static crew's runs all use these models, others those of the crew built for the run.
    `flow` is the one that was built at start; it never runs.
    """

    source: CrewSource
    description: CrewDescription
    plan: Plan | None = None
    models: tuple[BaseLLM, ...] = ()
    flow: Flow[Any] | None = None


class Engine:
    """Runs crews and flows. One per process and event loop.

    `model` is the model of every agent that names none of its own. `mode` keeps all crews from
    faster ways: "native" from plans, "stock" from anything but CrewAI's own kickoff.
    `max_stock_threads` is how many runs of stock crews and of flows go at once. `models_of_crews`
    are those of crews that do not use `model`.
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
        patches.apply()

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

    def check_inputs(self, name: str, inputs: Mapping[str, object]) -> None:
        """Raises InputRefused for an input that a flow's state can't hold, CrewUnknown."""
        flow = self._find(name).flow
        if flow is not None:
            check_flow_inputs(flow, inputs)

    async def run(
        self,
        name: str,
        inputs: Mapping[str, object],
        observer: RunObserver | None = None,
        replays: Mapping[int, Replay] | None = None,
        *,
        reviews: Mapping[int, Sequence[Review]] | None = None,
        on_step: OnStep | None = None,
    ) -> CrewResult | Paused:
        """Run a crew or flow once. Nothing is shared with any other run.

        `replays` are tasks, by their place in the crew, that an earlier attempt at the run has
        finished, of a crew with the same fingerprint: they are not executed or told again. A flow
        takes none.
        A task with `human_input` pauses the run when it is done, unless its last review approved of
        it: run again, with the finished tasks as `replays`, and with `reviews`, all that humans
        said so far of each task. One that was not approved of must not be among the replays.
        `on_step` hears of the agents' steps; those of the stock way are not told.

        Cancelling the awaiting task cancels the run. Raises CrewUnknown, EngineClosed, CrewBroken
        (its factory failed just now), InputRefused, ModelError, CrewFailed, NoResult, or what the
        observer raised.
        """
        if self._closed:
            raise EngineClosed("the engine is closed")
        served = self._find(name)
        self.check_inputs(name, inputs)
        scope = self._scope(served, observer, replays, on_step)
        scope.reviews = reviews or {}
        folder = served.source.folder
        model = self._model_of(name).llm
        with scope.activate(), default_model(model), paths_from(folder):
            try:
                output, way = await self._execute(served, inputs, scope)
            except ReviewRequired:
                return scope.paused()
            except Exception as error:
                failure = failure_of(error, scope)
                if failure is error:
                    raise
                raise failure from error
            finally:
                await scope.journal.aclose()
        output.token_usage = scope.usage_metrics()
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

    def _scope(
        self,
        served: _Served,
        observer: RunObserver | None,
        replays: Mapping[int, Replay] | None,
        on_step: OnStep | None,
    ) -> RunContext:
        tasks, threads = served.description.tasks, self._work_threads
        if served.flow is None:
            return RunContext(
                tasks=tasks, observer=observer, threads=threads, replays=replays, on_step=on_step
            )
        return FlowContext(
            result=tasks[0],
            observer=observer,
            threads=threads,
            on_step=on_step,
            settle=partial(_settle, model=self._model_of(served.source.name)),
            native=self._mode != "stock",
        )

    async def _prepare(self, source: CrewSource) -> _Served:
        crew = self._build(source)
        if isinstance(crew, Flow):
            return self._prepare_flow(source, crew)
        _refuse_sharing(source.name, crew, self._build_crew(source))
        plan, way, reason = await self._choose(source, crew)
        if way == "stock":
            refuse_human_input(source.name, crew, reason)
        description = CrewDescription(
            name=source.name,
            inputs=required_inputs(crew),
            tasks=task_descriptions(crew),
            way=way,
            reason=reason,
            fingerprint=fingerprint(crew),
        )
        return _Served(source, description, plan, _models(crew) if plan else ())

    def _prepare_flow(self, source: CrewSource, flow: Flow[Any]) -> _Served:
        refuse_unservable_flow(source.name, flow)
        refuse_sharing_flows(source.name, flow, self._build_flow(source))
        instrument_model(type(self._model_of(source.name).llm))
        description = CrewDescription(
            name=source.name,
            inputs=(),
            tasks=(result_description(flow),),
            way="flow",
            reason="",
            fingerprint="",
            defaults=flow_defaults(flow),
        )
        return _Served(source, description, flow=flow)

    async def _choose(self, source: CrewSource, crew: Crew) -> tuple[Plan | None, Way, str]:
        """The fastest way that is right for a crew, and what keeps it from the faster ones."""
        reasons = []
        if self._mode == "auto":
            try:
                check_environment()
                plan = await record_plan(
                    lambda: self._build_crew(source), self._stock_threads.kick_off
                )
            except Unsupported as feature:
                reasons.append(f"no plan covers {feature}")
            else:
                return plan, "plan", ""
        if self._mode != "stock":
            try:
                check_native_covers(crew)
            except Unsupported as feature:
                reasons.append(f"the native executor does not cover {feature}")
            else:
                return None, "native", "; ".join(reasons) or "asked for by the engine's mode"
        return None, "stock", "; ".join(reasons) or "asked for by the engine's mode"

    async def _execute(
        self, served: _Served, inputs: Mapping[str, object], scope: RunContext
    ) -> tuple[CrewOutput, Way]:
        if isinstance(scope, FlowContext):
            build = partial(self._build_flow, served.source)
            return await run_flow(build, inputs, scope, self._stock_threads), "flow"
        crew = None if served.plan and served.source.static else self._build_crew(served.source)
        if served.plan is not None:
            try:
                models = served.models if crew is None else _models_as_planned(served.plan, crew)
                return await served.plan.run(models, inputs, scope), "plan"
            except Unsupported as feature:
                _logger.info("crew %s: a run goes on natively: %s", served.source.name, feature)
                scope.journal.fell_back = True
                scope.quiet = False
        crew = crew or self._build_crew(served.source)
        if served.description.way != "stock":
            try:
                check_native_covers(crew)
            except Unsupported as feature:
                _logger.info("crew %s: a run goes on as stock: %s", served.source.name, feature)
            else:
                return await run_natively(crew, inputs, scope), "native"
        refuse_human_input(served.source.name, crew, "this run is stock CrewAI's")
        return await self._stock_threads.run(crew, inputs, scope), "stock"

    def _build(self, source: CrewSource) -> Crew | Flow[Any]:
        model = self._model_of(source.name)
        try:
            with default_model(model.llm), deferred_clients(), paths_from(source.folder):
                built = source.build()
                if isinstance(built, Crew):
                    _settle(built, model)
        except Exception as error:
            raise CrewBroken(f"crew {source.name} can't be built: {one_line(error)}") from error
        if not isinstance(built, Crew | Flow):
            kind = type(built).__name__
            raise CrewBroken(f"crew {source.name}: its factory returns a {kind}, not a crew")
        return built

    def _build_crew(self, source: CrewSource) -> Crew:
        built = self._build(source)
        if not isinstance(built, Crew):
            raise CrewBroken(f"crew {source.name}: its factory gave a crew, now a flow")
        return built

    def _build_flow(self, source: CrewSource) -> Flow[Any]:
        built = self._build(source)
        if not isinstance(built, Flow):
            raise CrewBroken(f"crew {source.name}: its factory gave a flow, now a crew")
        return built

    def _model_of(self, name: str) -> CrewModel:
        return self._models_of_crews.get(name, self._model)

    def _find(self, name: str) -> _Served:
        try:
            return self._served[name]
        except KeyError:
            raise CrewUnknown(f"no crew is named {name}") from None


def _settle(crew: Crew, model: CrewModel) -> None:
    """Make a crew that was just built fit for a run."""
    settle_paths(crew)
    for llm in settle_models(crew, model):
        instrument_model(type(llm))
    silence(crew)
    # The result is awaited as a whole; CrewAI's streaming would also change shared models.
    crew.stream = False


def _models(crew: Crew) -> tuple[BaseLLM, ...]:
    return tuple(agent.llm for agent in crew.agents if isinstance(agent.llm, BaseLLM))


def _models_as_planned(plan: Plan, crew: Crew) -> tuple[BaseLLM, ...]:
    """The models of a crew that was built for one run, if it still is the crew that was planned.

    A factory is code: tomorrow it may put another date into a backstory.
    """
    check_plan_covers(crew)
    if definition(crew) != plan.definition:
        raise Unsupported("a crew that differs from the recorded one")
    return _models(crew)


def _refuse_sharing(name: str, one: Crew, other: Crew) -> None:
    """Two runs never share an agent or a task, so a factory must not hand out the same ones."""
    ours = {id(thing) for thing in (one, *one.agents, *one.tasks)}
    if any(id(thing) in ours for thing in (other, *other.agents, *other.tasks)):
        raise CrewBroken(
            f"crew {name}: its factory hands out the same objects twice; build agents, tasks and "
            "the crew inside of it"
        )
