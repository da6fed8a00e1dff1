"""The engine: registers crews, chooses the execution mode of each, and runs them."""

import asyncio
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from crewai import Crew
from crewai.crews.crew_output import CrewOutput
from crewai.flow.flow import Flow
from crewai.llms.base_llm import BaseLLM
from crewai.tools.base_tool import BaseTool

from app.engine import patches
from app.engine.calls import CallObserver, OnGuardrail
from app.engine.compat.copying import copy_crew, shared_memory, shared_tools, use_own_tools
from app.engine.compat.coverage import (
    Unsupported,
    check_environment,
    check_native_covers,
    check_plan_covers,
    ignored_files,
)
from app.engine.compat.executors import keep_memory_and_knowledge
from app.engine.compat.mcp_adapters import mcp_adapters
from app.engine.compat.memoized import instances_noted
from app.engine.compat.models import (
    CrewModel,
    agents_of,
    configure_models,
    default_model,
    models_of,
)
from app.engine.compat.paths import configure_paths
from app.engine.compat.silence import silence
from app.engine.description import (
    CrewDescription,
    CrewSource,
    flow_docstring,
    refuse_human_input,
    required_inputs,
    task_descriptions,
)
from app.engine.errors import (
    CrewBroken,
    CrewUnknown,
    EngineClosed,
    ThreadsExhausted,
    one_line,
)
from app.engine.flows.context import FlowContext
from app.engine.flows.runner import (
    accepts_any_input,
    check_flow_inputs,
    flow_defaults,
    flow_state_schema,
    refuse_sharing_flows,
    refuse_unsupported_flow,
    result_description,
    run_flow,
)
from app.engine.llm import OfflineModel, deferred_clients
from app.engine.llm.answer_limit import MAX_OUTPUT_CHARS
from app.engine.llm.embeddings import Embedder, HashEmbedder
from app.engine.memory.embedders import CrewEmbedder, embedder_of_service
from app.engine.memory.remembered import memory_of_factory
from app.engine.memory_store import MemoryStore
from app.engine.native.runner import run_natively
from app.engine.replay.plan import Plan
from app.engine.replay.recorder import definition, fingerprint, record_plan
from app.engine.results import (
    CrewResult,
    ExecutionMode,
    OnStep,
    Paused,
    Replay,
    Review,
    RunObserver,
    Usage,
)
from app.engine.runtime.context import RunContext, current_run
from app.engine.runtime.failures import failure_of
from app.engine.runtime.mcp_connections import (
    MAX_CONNECTIONS,
    McpConnections,
    McpHeaders,
    McpScope,
)
from app.engine.runtime.model_hooks import instrument_model, model_name
from app.engine.runtime.signals import ReviewRequired
from app.engine.runtime.threads import (
    AbandonedThreads,
    BuildThreads,
    WorkThreads,
    in_own_thread,
)
from app.engine.stock import StockThreads
from app.projects import outside, within
from crew_capture.secrets import building_at_start, secrets_of_run

EngineMode = Literal["auto", "native", "stock"]

MAX_ABANDONED_THREADS: Final = 32

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _RegisteredCrew:
    """A crew or flow as it was registered at start.

    `plan` and `models` (one per agent, in order) belong to the execution mode "plan". Runs of a
    static crew share these models; other runs use the models of the crew that is built for the run.
    `flow` is the instance that was built at start; it never runs. `named_models` are all models of
    a crew; those of a flow are known only when it runs.
    """

    source: CrewSource
    description: CrewDescription
    plan: Plan | None = None
    models: tuple[BaseLLM, ...] = ()
    flow: Flow[Any] | None = None
    named_models: tuple[BaseLLM, ...] = ()


class Engine:
    """Runs crews and flows. One per process and event loop.

    `model` is the model of every agent that names none of its own. `mode` rules out faster
    execution modes: "native" rules out plans, "stock" everything but CrewAI's own kickoff.
    `max_stock_threads` limits the stock and flow runs at a time. `models_of_crews` holds the models
    of crews that do not use `model`, by the name of the crew. `max_output_chars` limits the text of
    each output: a longer one fails its run. While `max_abandoned_threads` threads of ended runs
    still execute, no run begins in an execution mode other than "plan". `embedder` embeds memories
    and knowledge of crews without an embedder of their own; None: by hashes of words.
    `max_mcp_connections` limits the connections to MCP servers that are kept. `mcp_headers` are
    those that the deployment adds to the servers of a crew, by the name of the crew.
    """

    def __init__(
        self,
        *,
        model: BaseLLM,
        mode: EngineMode,
        max_stock_threads: int,
        models_of_crews: Mapping[str, CrewModel] | None = None,
        max_output_chars: int = MAX_OUTPUT_CHARS,
        max_abandoned_threads: int = MAX_ABANDONED_THREADS,
        embedder: Embedder | None = None,
        max_mcp_connections: int = MAX_CONNECTIONS,
        mcp_headers: Mapping[str, McpHeaders] | None = None,
    ) -> None:
        self._embedder = embedder or HashEmbedder()
        self._max_output_chars = max_output_chars
        self._model = CrewModel(model)
        self._models_of_crews = models_of_crews or {}
        self._mode = mode
        self._abandoned = AbandonedThreads(max_abandoned_threads)
        self._build_threads = BuildThreads(self._abandoned)
        self._stock_threads = StockThreads(max_stock_threads, self._abandoned)
        self._work_threads = WorkThreads(max_stock_threads, self._abandoned)
        self._mcp_connections = McpConnections(max_mcp_connections)
        self._mcp_headers = mcp_headers or {}
        self._crews: dict[str, _RegisteredCrew] = {}
        # The crews whose code builds them once, so that each run needs a copy.
        self._copied: set[str] = set()
        # The tools that builds of a crew have in common, of which each run gets copies.
        self._shared_tools: dict[str, list[BaseTool]] = {}
        # Those that were built for the start, and never run.
        self._built_at_start: list[Crew] = []
        self._closed = False
        patches.apply()

    async def start(self, crews: Sequence[CrewSource]) -> None:
        """Register `crews`: build each once, choose its execution mode, and log it in one line.

        Raises CrewBroken with one line for the first crew that can't be built or run.
        """
        for source in crews:
            if source.name in self._crews:
                raise CrewBroken(f"crew {source.name}: two crews have this name")
            with within(source.project), building_at_start():
                try:
                    registered = await self._prepare(source)
                finally:
                    for crew in self._built_at_start:
                        self._stop(source, mcp_adapters(crew))
                    self._built_at_start.clear()
            self._crews[source.name] = registered
            mode, reason = registered.description.execution_mode, registered.description.reason
            why = f" ({reason})" if reason else ""
            _logger.info("crew %s: execution mode %s%s", source.name, mode, why)

    def describe(self, name: str) -> CrewDescription:
        """The description of a registered crew. Raises CrewUnknown."""
        return self._find(name).description

    def models(self, name: str) -> tuple[BaseLLM, ...]:
        """The models that a registered crew calls; none for a flow. Raises CrewUnknown."""
        return self._find(name).named_models

    def fingerprint(self, name: str) -> str | None:
        """The crew's fingerprint, empty for a flow; None if no crew of this name is registered."""
        registered = self._crews.get(name)
        return registered.description.fingerprint if registered else None

    def check_inputs(self, name: str, inputs: Mapping[str, object]) -> None:
        """Raise InputRefused for an input that a flow's state can't hold. Raises CrewUnknown."""
        flow = self._find(name).flow
        if flow is not None:
            check_flow_inputs(flow, inputs)

    @property
    def abandoned_threads(self) -> int:
        """The number of threads that still execute code of runs that have ended."""
        return len(self._abandoned)

    def check_threads(self, name: str) -> None:
        """Raise ThreadsExhausted if a run of this crew would not begin now. Raises CrewUnknown."""
        if self._abandoned.is_full and self._find(name).description.execution_mode != "plan":
            raise ThreadsExhausted(
                f"{self.abandoned_threads} threads of ended runs still execute, and "
                f"MAX_ABANDONED_THREADS={self._abandoned.limit}: runs of {name} begin when some end"
            )

    async def run(
        self,
        name: str,
        inputs: Mapping[str, object],
        observer: RunObserver | None = None,
        replays: Mapping[int, Replay] | None = None,
        *,
        reviews: Mapping[int, Sequence[Review]] | None = None,
        on_step: OnStep | None = None,
        usage: Usage | None = None,
        models: list[str] | None = None,
        calls: CallObserver | None = None,
        on_guardrail: OnGuardrail | None = None,
        secrets: Mapping[str, str] | None = None,
        memory_store: MemoryStore | None = None,
        caller: Hashable = None,
    ) -> CrewResult | Paused:
        """Run a crew or flow once. Nothing is shared with any other run.

        `replays` are the tasks that an earlier attempt at the run finished, by task index; the crew
        must have the same fingerprint. They are neither executed nor reported again. A flow ignores
        them.

        A finished task with `human_input` pauses the run unless its last review approved it. To
        resume, run again with the finished tasks as `replays` and with all `reviews` so far of each
        task. A task that was not approved must not be among the replays.

        `on_step` receives the agents' steps; stock runs report none. `usage` counts the tokens as
        the models report them, and `models` lists the models that are called, so both are known
        however the run ends. `calls` receives the calls to models and tools, and
        `on_guardrail` the rounds of guardrails. `secrets` is what `run_secret` returns to the code
        of the crew. The run reads and stores its memories in `memory_store`; None: they end with
        the run. Runs of one `caller` share connections to MCP servers.

        Cancelling the awaiting task cancels the run. Raises CrewUnknown, EngineClosed, CrewBroken
        (the factory failed for this run), InputRefused, ModelError, CrewFailed, NoResult, or the
        error that an observer raised.
        """
        if self._closed:
            raise EngineClosed("the engine is closed")
        registered = self._find(name)
        self.check_inputs(name, inputs)
        run = self._new_context(registered, observer, replays, on_step, calls, on_guardrail)
        run.reviews = reviews or {}
        run.memory_store = memory_store
        run.mcp_scope = McpScope(
            self._mcp_connections,
            name,
            caller,
            registered.source.project,
            self._mcp_headers.get(name, {}),
        )
        if usage is not None:
            run.usage = usage
        if models is not None:
            run.models = models
        with (
            run.activate(),
            self._models(name),
            within(registered.source.project, run.files),
            secrets_of_run(secrets or {}),
        ):
            try:
                output, mode = await self._execute(registered, inputs, run)
                await run.end_background(cancel=False)
                run.check_cancelled()
                run.check_length("of the crew", output.raw)
            except asyncio.CancelledError:
                run.memory = None  # a cancelled run stores nothing
                raise
            except ReviewRequired:
                if run.stop_error is not None:
                    raise run.stop_error from None
                return run.paused()
            except Exception as error:
                failure = failure_of(error, run)
                if failure is error:
                    raise
                raise failure from error
            finally:
                await run.end_background(cancel=True)
                await run.journal.aclose()
                run.files.remove()
                run.release()
                if run.memory is not None:
                    with outside():
                        await run.memory.store()
        output.token_usage = run.usage_metrics()
        return CrewResult(
            raw=output.raw,
            tasks=run.outcomes(output.tasks_output),
            usage=run.usage,
            output=output,
            execution_mode=mode,
        )

    async def aclose(self) -> None:
        """Refuse further runs. The caller cancels the active ones."""
        self._closed = True
        await self._mcp_connections.aclose()
        self._build_threads.close()
        self._stock_threads.close()
        self._work_threads.close()

    def _new_context(
        self,
        registered: _RegisteredCrew,
        observer: RunObserver | None,
        replays: Mapping[int, Replay] | None,
        on_step: OnStep | None,
        calls: CallObserver | None,
        on_guardrail: OnGuardrail | None,
    ) -> RunContext:
        tasks, threads = registered.description.tasks, self._work_threads
        if registered.flow is None:
            return RunContext(
                tasks=tasks,
                observer=observer,
                threads=threads,
                replays=replays,
                on_step=on_step,
                max_output_chars=self._max_output_chars,
                calls=calls,
                on_guardrail=on_guardrail,
            )
        return FlowContext(
            result=tasks[0],
            observer=observer,
            threads=threads,
            on_step=on_step,
            configure=partial(_configure, model=self._model_of(registered.source.name)),
            native=self._mode != "stock",
            max_output_chars=self._max_output_chars,
            calls=calls,
            on_guardrail=on_guardrail,
        )

    async def _prepare(self, source: CrewSource) -> _RegisteredCrew:
        crew = await self._build_in_thread(source)
        if isinstance(crew, Flow):
            return await self._prepare_flow(source, crew)
        if _shares(crew, other := await self._build_crew(source)):
            if holder := shared_memory(crew, other):
                raise CrewBroken(
                    f"crew {source.name}: the memory of {holder} is made where its code is "
                    "imported, so all users would share it; build it in a function that returns "
                    "the crew"
                )
            self._copied.add(source.name)
            crew, other = await self._build_crew(source), await self._build_crew(source)
            _refuse_sharing(source.name, crew, other)
        self._shared_tools[source.name] = shared_tools(crew, other)
        if ignored := ignored_files(crew):
            _logger.warning(
                "crew %s: CrewAI ignores input_files of %s without the package crewai-files",
                source.name,
                " and ".join(ignored),
            )
        plan, mode, reason = await self._choose(source, crew)
        if mode == "stock":
            refuse_human_input(source.name, crew, reason)
        description = CrewDescription(
            name=source.name,
            inputs=tuple(sorted({*required_inputs(crew), *source.required})),
            tasks=task_descriptions(crew),
            execution_mode=mode,
            reason=reason,
            fingerprint=fingerprint(crew),
            models=tuple(dict.fromkeys(map(model_name, models_of(crew)))),
        )
        return _RegisteredCrew(
            source,
            description,
            plan,
            _models(crew) if plan else (),
            named_models=tuple(models_of(crew)),
        )

    async def _prepare_flow(self, source: CrewSource, flow: Flow[Any]) -> _RegisteredCrew:
        refuse_unsupported_flow(source.name, flow)
        other = _as_flow(source.name, await self._build_in_thread(source))
        refuse_sharing_flows(source.name, flow, other)
        instrument_model(type(self._model_of(source.name).llm))
        description = CrewDescription(
            name=source.name,
            inputs=tuple(sorted(source.required)),
            tasks=(result_description(flow),),
            execution_mode="flow",
            reason="",
            fingerprint="",
            defaults=flow_defaults(flow),
            about=flow_docstring(flow),
            state_schema=flow_state_schema(flow),
            allow_extra_inputs=accepts_any_input(flow),
        )
        return _RegisteredCrew(source, description, flow=flow)

    async def _choose(
        self, source: CrewSource, crew: Crew
    ) -> tuple[Plan | None, ExecutionMode, str]:
        """The fastest correct execution mode of a crew, and the reason against faster ones."""
        reasons = []
        if self._mode == "auto":
            try:
                if source.parameters:
                    raise Unsupported("a factory with parameters")
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
                return None, "native", "; ".join(reasons) or "required by the engine's mode"
        return None, "stock", "; ".join(reasons) or "required by the engine's mode"

    async def _execute(
        self, registered: _RegisteredCrew, inputs: Mapping[str, object], run: RunContext
    ) -> tuple[CrewOutput, ExecutionMode]:
        source = registered.source
        arguments = {name: inputs[name] for name in source.parameters if name in inputs}
        inputs = {name: value for name, value in inputs.items() if name not in arguments}
        if isinstance(run, FlowContext):
            await self._abandoned.wait_below_limit()
            # In the flow's own thread, as all of its code.
            build = partial(self._build_flow, source, arguments)
            return await run_flow(build, inputs, run, self._stock_threads), "flow"
        if registered.plan is None:
            await self._abandoned.wait_below_limit()
        is_needed = registered.plan is None or not source.static
        crew = await self._build_crew(source, arguments) if is_needed else None
        adapters = mcp_adapters(crew) if crew is not None else []
        try:
            return await self._execute_crew(registered, crew, arguments, inputs, run)
        finally:
            self._stop(source, adapters)

    async def _execute_crew(
        self,
        registered: _RegisteredCrew,
        crew: Crew | None,
        arguments: Mapping[str, object],
        inputs: Mapping[str, object],
        run: RunContext,
    ) -> tuple[CrewOutput, ExecutionMode]:
        source = registered.source
        if (plan := registered.plan) is not None:
            try:
                models = registered.models if crew is None else _models_as_planned(plan, crew)
                return await plan.run(models, inputs, run), "plan"
            except Unsupported as feature:
                _logger.info("crew %s: a run falls back to native: %s", source.name, feature)
                run.journal.fell_back = True
                run.suppress_events = False
                await self._abandoned.wait_below_limit()
        crew = crew or await self._build_crew(source, arguments)
        if registered.description.execution_mode != "stock":
            try:
                check_native_covers(crew)
            except Unsupported as feature:
                _logger.info("crew %s: a run falls back to stock: %s", source.name, feature)
            else:
                return await run_natively(crew, inputs, run), "native"
        refuse_human_input(source.name, crew, "this run is stock CrewAI's")
        return await self._stock_threads.run(crew, inputs, run), "stock"

    def _build(
        self, source: CrewSource, arguments: Mapping[str, object] | None = None
    ) -> Crew | Flow[Any]:
        model = self._model_of(source.name)
        if arguments is None:
            arguments = {k: value for k, value in source.parameters.items() if value is not None}
        try:
            with (
                self._models(source.name),
                memory_of_factory(),
                deferred_clients(),
                within(source.project),
                instances_noted() as instances,
            ):
                built = source.build(**arguments)
                if (run := current_run()) is not None:
                    run.instances += instances
                if isinstance(built, Crew):
                    if source.name in self._copied:
                        built = copy_crew(built)
                    use_own_tools(built, self._shared_tools.get(source.name, ()))
                    _configure(built, model)
                    if run is None:
                        self._built_at_start.append(built)
        except BaseException as error:  # a factory may call exit()
            raise CrewBroken(f"crew {source.name} can't be built: {one_line(error)}") from error
        if not isinstance(built, Crew | Flow):
            kind = type(built).__name__
            raise CrewBroken(f"crew {source.name}: its factory returns a {kind}, not a crew")
        return built

    async def _build_in_thread(
        self, source: CrewSource, arguments: Mapping[str, object] | None = None
    ) -> Crew | Flow[Any]:
        """Build a crew or flow; without arguments, with the values for the build at start."""
        build = partial(self._build, source, arguments)
        return await self._build_threads.run(source.name, build)

    async def _build_crew(
        self, source: CrewSource, arguments: Mapping[str, object] | None = None
    ) -> Crew:
        built = await self._build_in_thread(source, arguments)
        if not isinstance(built, Crew):
            raise CrewBroken(
                f"crew {source.name}: its factory returned a crew at start and now a flow"
            )
        return built

    def _build_flow(
        self, source: CrewSource, arguments: Mapping[str, object] | None = None
    ) -> Flow[Any]:
        return _as_flow(source.name, self._build(source, arguments))

    def _stop(self, source: CrewSource, adapters: list[Any]) -> None:
        """Stop the MCP servers of a crew in a thread: that may last seconds.

        Copies of a crew share its servers, which stay open.
        """
        if adapters and source.name not in self._copied:
            in_own_thread(lambda: [adapter.stop() for adapter in adapters])

    @contextmanager
    def _models(self, name: str) -> Iterator[None]:
        """Within this, the crew gets its model and embedder where it names none itself."""
        model = self._model_of(name)
        # Without a network, an embedder of the crew's own fails.
        replaces = model.replaces or isinstance(model.llm, OfflineModel)
        with default_model(model.llm), embedder_of_service(CrewEmbedder(self._embedder, replaces)):
            yield

    def _model_of(self, name: str) -> CrewModel:
        return self._models_of_crews.get(name, self._model)

    def _find(self, name: str) -> _RegisteredCrew:
        try:
            return self._crews[name]
        except KeyError:
            raise CrewUnknown(f"no crew is named {name}") from None


def _as_flow(name: str, built: Crew | Flow[Any]) -> Flow[Any]:
    if not isinstance(built, Flow):
        raise CrewBroken(f"crew {name}: its factory returned a flow at start and now a crew")
    return built


def _configure(crew: Crew, model: CrewModel) -> None:
    """Configure a newly built crew for a run."""
    configure_paths(crew)
    for llm in configure_models(crew, model):
        instrument_model(type(llm))
    silence(crew)
    keep_memory_and_knowledge(crew)
    # Callers need the whole result; CrewAI's streaming would also change shared models.
    crew.stream = False
    # A run continues from the outputs that the service keeps; CrewAI writes files of the machine.
    crew.checkpoint = None
    for agent in agents_of(crew):
        agent.checkpoint = None


def _models(crew: Crew) -> tuple[BaseLLM, ...]:
    return tuple(agent.llm for agent in crew.agents if isinstance(agent.llm, BaseLLM))


def _models_as_planned(plan: Plan, crew: Crew) -> tuple[BaseLLM, ...]:
    """The models of a crew that was built for one run, if it is still the planned crew.

    A factory is code: it may put another date into a backstory tomorrow. Raises Unsupported.
    """
    check_plan_covers(crew)
    if definition(crew) != plan.definition:
        raise Unsupported("a crew that differs from the recorded one")
    return _models(crew)


def _shares(one: Crew, other: Crew) -> bool:
    """Whether two crews have an agent or a task in common, or are the same."""
    ours = {id(thing) for thing in (one, *one.agents, *one.tasks)}
    return any(id(thing) in ours for thing in (other, *other.agents, *other.tasks))


def _refuse_sharing(name: str, one: Crew, other: Crew) -> None:
    """Raise CrewBroken for a crew whose copies share objects: runs share no agent or task."""
    if _shares(one, other):
        raise CrewBroken(
            f"crew {name}: its factory returned the same objects twice, and they can't be copied; "
            "build agents, tasks and the crew inside the factory"
        )
