"""The parts of CrewAI that this package replaces, once per process, for every crew.

Outside of runs, each replacement does what CrewAI's code does, so other code finds CrewAI
unchanged. `app.pins.crewai` lists these and all other internals of
CrewAI that the engine relies on; a test compares their sources with those that were read.
Two public methods of Python that start threads are replaced, too.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from crewai import Agent, Crew, Task
from crewai import crew as crew_module
from crewai import task as task_module
from crewai.agents import agent_executor
from crewai.agents.agent_builder import base_agent
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.crews.crew_output import CrewOutput
from crewai.events.base_events import BaseEvent
from crewai.events.event_bus import CrewAIEventsBus
from crewai.flow.runtime import Flow
from crewai.knowledge.source import base_file_knowledge_source, excel_knowledge_source
from crewai.llms.base_llm import BaseLLM
from crewai.mcp import tool_resolver
from crewai.mcp.transports.http import HTTPTransport
from crewai.project import annotations
from crewai.skills import loader
from crewai.tasks.task_output import TaskOutput
from crewai.tools.base_tool import BaseTool
from crewai.utilities import constants, llm_utils
from crewai.utilities.agent_utils import get_llm_response, handle_context_length
from crewai.utilities.formatter import DIVIDERS
from crewai.utilities.guardrail import GuardrailResult, process_guardrail
from crewai.utilities.i18n import I18N_DEFAULT
from crewai.utilities.planning_handler import CrewPlanner

from app.engine.calls import note_finish_reason, note_token
from app.engine.compat import schemas
from app.engine.compat.configuration_files import PARSED_ONCE
from app.engine.compat.memoized import memoize
from app.engine.compat.models import current_default_model
from app.engine.compat.paths import KNOWLEDGE, discover_skills
from app.engine.compat.silence import silence_process
from app.engine.compat.tracing import UNTRACED
from app.engine.flows.crew_kickoff import akickoff, kickoff, kickoff_async
from app.engine.flows.isolation import attach_usage, detach_usage, isolate_flows
from app.engine.memory import embedders, knowledge, pipelines
from app.engine.native.executor import NativeExecutor
from app.engine.native.runner import prepare_tasks
from app.engine.results import Replay, Review
from app.engine.runtime import input_files, thread_fields, tool_hooks
from app.engine.runtime.context import RunContext, current_run
from app.engine.runtime.mcp_connections import connect_by_http, mcp_client
from app.engine.runtime.model_hooks import count_reported
from app.engine.runtime.request_limit import RequestLimit
from app.engine.runtime.signals import ContextTooLong, exits_contained
from app.engine.runtime.unreported_events import UNREPORTED
from app.engine.runtime.waiting import offload, suspendable

_own_fallback = llm_utils._llm_via_environment_or_fallback
_own_track_usage = BaseLLM._track_token_usage_internal
_own_emit_call_completed = BaseLLM._emit_call_completed_event
_own_emit_stream_chunk = BaseLLM._emit_stream_chunk_event
_own_execute_core = Task._execute_core
_own_aexecute_core = Task._aexecute_core
_own_ainvoke_guardrail = Task._ainvoke_guardrail_function
_own_aexport_output = Task._aexport_output
_own_create_manager_agent = Crew._create_manager_agent
_own_create_planning_agent = CrewPlanner._create_planning_agent
_own_handle_crew_planning = Crew._handle_crew_planning
_own_aexecute_tasks = Crew._aexecute_tasks
_own_get_mcp_tools = Agent.get_mcp_tools
_own_get_platform_tools = Agent.get_platform_tools
_own_get_agent_to_use = Crew._get_agent_to_use
_own_create_agent_executor = Agent.create_agent_executor
_own_emit = CrewAIEventsBus.emit


class NoTaskOutputStorage:
    """Replaces CrewAI's task output storage, which only `crew.replay` reads."""

    def update(self, task_index: int, log: dict[str, Any]) -> None: ...

    def add(self, *args: object, **kwargs: object) -> None: ...

    def reset(self) -> None: ...

    def load(self) -> None: ...


def _default_model_or_fallback() -> Any:
    return current_default_model() or _own_fallback()


def _track_usage(self: BaseLLM, usage_data: dict[str, Any]) -> None:
    _own_track_usage(self, usage_data)
    count_reported(usage_data)


def _emit_call_completed(self: BaseLLM, *args: Any, **kwargs: Any) -> None:
    note_finish_reason(kwargs.get("finish_reason"))
    _own_emit_call_completed(self, *args, **kwargs)


def _emit_stream_chunk(self: BaseLLM, *args: Any, **kwargs: Any) -> None:
    note_token()
    _own_emit_stream_chunk(self, *args, **kwargs)


def _execute_core(
    self: Task, agent: Any, context: str | None, tools: list[Any] | None
) -> TaskOutput:
    run = current_run()
    index = run.index_of(self) if run is not None else None
    if run is None or index is None:
        return _own_execute_core(self, agent, context, tools)
    file = _detach_output_file(self)
    role = str(getattr(agent or self.agent, "role", ""))
    if (replay := run.replay(index, role, structured=_is_structured(self))) is not None:
        return _with_file(run, file, _replayed(self, role, replay))
    run.on_loop(run.start_task(index, role))
    # CrewAI's thread of an asynchronous task would end here, and its waiter would hang.
    with run.calling(index), exits_contained():
        output = _own_execute_core(self, agent, context, tools)
    _with_file(run, file, output)
    run.on_loop(run.finish_task(index, role, output.raw, _structured(output)))
    return output


async def _aexecute_core(
    self: Task, agent: Any, context: str | None, tools: list[Any] | None
) -> TaskOutput:
    run = current_run()
    index = run.index_of(self) if run is not None else None
    if run is None or index is None:
        return await _own_aexecute_core(self, agent, context, tools)
    with run.as_side_task():
        run.stop_for_review()
        file = _detach_output_file(self)
        role = str(getattr(agent or self.agent, "role", ""))
        if (replay := run.replay(index, role, structured=_is_structured(self))) is not None:
            run.require_review(index)
            return _with_file(run, file, _replayed(self, role, replay))
        context = _with_feedback(context, run.approvals())
        await run.start_task(index, role)
        # An asyncio task that ends by SystemExit ends its event loop.
        with run.listening(index, role), exits_contained(may_be_cancelled=True):
            output = await suspendable(_own_aexecute_core(self, agent, context, tools))
        if file and run.reads_files:
            await run.threads.run(_with_file, run, file, output)
        await run.finish_task(index, role, output.raw, _structured(output))
    run.require_review(index)
    return output


def _detach_output_file(task: Task) -> str | None:
    """The task's `output_file`, to which CrewAI then writes nothing: it names the output."""
    file, task.output_file = task.output_file, None
    return file


def _with_file(run: RunContext, file: str | None, output: TaskOutput) -> TaskOutput:
    """The output, with its text in the file that other code of the run may read."""
    if file and run.reads_files:
        if output.json_dict:
            text = json.dumps(output.json_dict, ensure_ascii=False, indent=2)
        else:
            text = output.pydantic.model_dump_json() if output.pydantic else output.raw
        run.files.write(file, text)
    return output


def _with_feedback(context: str | None, approvals: list[Review]) -> str | None:
    """A task's context, and the feedback on outputs before it in CrewAI's format."""
    template = I18N_DEFAULT.slice("feedback_instructions")
    feedback = [template.format(feedback=r.feedback) for r in approvals if r.feedback.strip()]
    return DIVIDERS.join([*([context] if context else []), *feedback]) if feedback else context


def _is_structured(task: Task) -> bool:
    return bool(task.output_pydantic or task.output_json or task.response_model)


def _structured(output: TaskOutput) -> str | None:
    """The structured part of an output as JSON; None if there is none."""
    if output.pydantic is not None:
        return output.pydantic.model_dump_json()
    return None if output.json_dict is None else json.dumps(output.json_dict)


def _replayed(task: Task, role: str, replay: Replay) -> TaskOutput:
    """The output of a task that an earlier attempt finished; later tasks read it."""
    model = task.output_pydantic if replay.structured is not None else None
    output = TaskOutput(
        name=task.name or task.description,
        description=task.description,
        expected_output=task.expected_output,
        raw=replay.text,
        pydantic=model.model_validate_json(replay.structured or "") if model else None,
        json_dict=json.loads(replay.structured) if replay.structured and not model else None,
        agent=role,
        output_format=task._get_output_format(),
    )
    task.output = output
    return output


async def _ainvoke_guardrail(self: Task, *args: Any, **kwargs: Any) -> TaskOutput:
    """Call a guardrail in a thread: it may block, and CrewAI would call it on the event loop."""
    run = current_run()
    if run is None or run.use_native_executor is None:
        return await _own_ainvoke_guardrail(self, *args, **kwargs)
    return await run.threads.run(self._invoke_guardrail_function, *args, **kwargs)


async def _aexport_output(self: Task, result: Any) -> Any:
    """Call a task's own converter in a thread: its methods that CrewAI awaits are CrewAI's own."""
    run = current_run()
    if run is None or run.use_native_executor is None or self.converter_cls is None:
        return await _own_aexport_output(self, result)
    return await run.threads.run(self._export_output, result, step="its converter")


def _process_guardrail(*args: Any, **options: Any) -> GuardrailResult:
    run = current_run()
    if run is None or run.on_guardrail is None:
        return process_guardrail(*args, **options)
    passed = False
    try:
        result = process_guardrail(*args, **options)
        passed = result.success
        return result
    finally:
        run.finish_guardrail(options.get("retry_count", 0), passed=passed)


def _create_manager_agent(self: Crew) -> None:
    _own_create_manager_agent(self)
    run = current_run()
    if run is not None and run.use_native_executor is not None and self.manager_agent is not None:
        run.use_native_executor(self.manager_agent)


def _handle_crew_planning(self: Crew) -> None:
    run = current_run()
    if run is None or run.use_native_executor is None or run.may_block():
        _own_handle_crew_planning(self)
    else:  # on the event loop: before the tasks, in a thread
        run.planner_required = True


def _create_planning_agent(self: CrewPlanner) -> Agent:
    planner = _own_create_planning_agent(self)
    run = current_run()
    if run is not None and run.use_native_executor is not None:
        run.use_native_executor(planner)
    return planner


async def _aexecute_tasks(self: Crew, tasks: list[Task], *args: Any, **options: Any) -> CrewOutput:
    run = current_run()
    if run is not None and run.executes(self):
        await prepare_tasks(self, run)
    return await _own_aexecute_tasks(self, tasks, *args, **options)


def _get_agent_to_use(self: Crew, task: Task) -> BaseAgent | None:
    run = current_run()
    stand_in = run.stand_ins.get(id(task)) if run is not None else None
    return stand_in or _own_get_agent_to_use(self, task)


def _create_agent_executor(self: Agent, tools: Any = None, task: Task | None = None) -> None:
    """Create an agent's executor for its first task: CrewAI would change all of it then."""
    run = current_run()
    if task is not None or run is None or run.use_native_executor is None:
        _own_create_agent_executor(self, tools, task)


def _get_mcp_tools(self: Agent, mcps: Any) -> list[BaseTool]:
    """Connect to MCP servers in a thread: CrewAI would block the event loop."""
    return offload(_own_get_mcp_tools, self, mcps)


def _get_platform_tools(self: Agent, apps: Any) -> list[BaseTool]:
    """Fetch the tools of apps in a thread, likewise."""
    return offload(_own_get_platform_tools, self, apps)


def _get_llm_response(*args: Any, **options: Any) -> Any:
    executor = options.get("executor_context")
    if isinstance(executor, NativeExecutor):
        return executor.answer_or_interrupt(options)
    return get_llm_response(*args, **options)


def _emit(self: CrewAIEventsBus, source: Any, event: BaseEvent) -> Any:
    run = current_run()
    if run is not None and run.suppress_events:
        return None
    return _own_emit(self, source, event)


def _handle_context_length(respect_context_window: bool, *args: Any, **kwargs: Any) -> None:
    if not respect_context_window:
        raise ContextTooLong
    handle_context_length(respect_context_window, *args, **kwargs)


_REPLACEMENTS: tuple[tuple[Any, str, Any], ...] = (
    (
        llm_utils,
        "_llm_via_environment_or_fallback",
        _default_model_or_fallback,
    ),
    (BaseLLM, "_track_token_usage_internal", _track_usage),
    (Task, "_execute_core", _execute_core),
    (Task, "_aexecute_core", _aexecute_core),
    (Task, "_ainvoke_guardrail_function", _ainvoke_guardrail),
    (Task, "_aexport_output", _aexport_output),
    (task_module, "process_guardrail", _process_guardrail),
    (Crew, "_create_manager_agent", _create_manager_agent),
    (Crew, "_handle_crew_planning", _handle_crew_planning),
    (CrewPlanner, "_create_planning_agent", _create_planning_agent),
    (Crew, "_aexecute_tasks", _aexecute_tasks),
    (Crew, "_get_agent_to_use", _get_agent_to_use),
    (Agent, "create_agent_executor", _create_agent_executor),
    (Agent, "get_mcp_tools", _get_mcp_tools),
    (tool_resolver, "MCPClient", mcp_client),
    (HTTPTransport, "connect", connect_by_http),
    (Agent, "get_platform_tools", _get_platform_tools),
    (crew_module, "RPMController", RequestLimit),
    (base_agent, "RPMController", RequestLimit),
    (agent_executor, "get_llm_response", _get_llm_response),
    (CrewAIEventsBus, "emit", _emit),
    (Crew, "kickoff", kickoff),
    (Crew, "kickoff_async", kickoff_async),
    (Crew, "akickoff", akickoff),
    (Flow, "_attach_usage_aggregation_listener", attach_usage),
    (Flow, "_detach_usage_aggregation_listener", detach_usage),
    (agent_executor, "handle_context_length", _handle_context_length),
    # In the modules that have imported it, and for modules that are imported later.
    (base_file_knowledge_source, "KNOWLEDGE_DIRECTORY", KNOWLEDGE),
    (excel_knowledge_source, "KNOWLEDGE_DIRECTORY", KNOWLEDGE),
    (constants, "KNOWLEDGE_DIRECTORY", KNOWLEDGE),
    (loader, "discover_skills", discover_skills),
    (Crew.__private_attributes__["_task_output_handler"], "default_factory", NoTaskOutputStorage),
    (annotations, "memoize", memoize),
    (BaseLLM, "_emit_call_completed_event", _emit_call_completed),
    (BaseLLM, "_emit_stream_chunk_event", _emit_stream_chunk),
    *UNTRACED,
    *schemas.INSTRUMENTED,
    *input_files.INSTRUMENTED,
    *UNREPORTED,
    *PARSED_ONCE,
    *embedders.INSTRUMENTED,
    *pipelines.INSTRUMENTED,
    *knowledge.INSTRUMENTED,
    *tool_hooks.INSTRUMENTED,
    *thread_fields.INSTRUMENTED,
)
_originals: dict[tuple[int, str], Any] = {}


def apply() -> None:
    """Install all replacements. A second call has no effect."""
    isolate_flows()
    silence_process()
    for owner, name, replacement in _REPLACEMENTS:
        key = (id(owner), name)
        if key not in _originals:
            _originals[key] = getattr(owner, name)
            setattr(owner, name, replacement)


@contextmanager
def removed() -> Iterator[None]:
    """Within this, CrewAI is unpatched, for comparison. Don't use it while runs are active."""
    installed = dict(_originals)
    for owner, name, _ in _REPLACEMENTS:
        if (id(owner), name) in installed:
            setattr(owner, name, _originals.pop((id(owner), name)))
    try:
        yield
    finally:
        if installed:
            apply()
