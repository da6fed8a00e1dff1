"""Execution mode "flow": CrewAI's own Flow, in a thread and an event loop of its own.

The methods of a flow are users' code and may block, so none of them runs on the engine's event
loop. The crews that the flow kicks off do run there (crew_kickoff.py).
"""

import asyncio
import copy
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from crewai.crews.crew_output import CrewOutput
from crewai.flow.async_feedback.types import HumanFeedbackPending
from crewai.flow.flow import Flow
from crewai.lite_agent_output import LiteAgentOutput
from crewai.tasks.task_output import TaskOutput
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from app.engine.compat.coverage import foreign_listeners
from app.engine.description import TaskDescription
from app.engine.errors import CrewBroken, InputRefused, NoResult, one_line
from app.engine.flows.context import RESULT, FlowContext
from app.engine.runtime.signals import RunCancelled, exits_contained
from app.engine.stock import StockThreads
from app.projects.secrets import is_secret, without_secrets

_TRIGGER = "crewai_trigger_payload"
_ID = "id"
# Concurrent methods of one flow; CrewAI allows six on two cores, for all flows together.
_MAX_METHOD_THREADS = 64


def result_description(flow: Flow[Any]) -> TaskDescription:
    """The one output of a flow that is known before a run."""
    return TaskDescription("result", flow._definition.name)


def flow_defaults(flow: Flow[Any]) -> dict[str, Any]:
    """A flow's inputs with their defaults: the fields of its state and a trigger's payload.

    A secret default is not among them: the flow's own state has it.
    """
    fields = from_json(_state_as_json(flow)).items()
    defaults = {name: None if is_secret(name, value) else value for name, value in fields}
    return {**defaults, _TRIGGER: None}


def accepts_any_input(flow: Flow[Any]) -> bool:
    """Whether the flow's state keeps inputs that it does not name."""
    state = flow.state
    return not isinstance(state, BaseModel) or state.model_config.get("extra") == "allow"


def flow_state_schema(flow: Flow[Any]) -> dict[str, Any] | None:
    """The JSON Schema of a flow's state; None for a dict, and for fields that have no schema.

    It has no defaults that are secret.
    """
    if not isinstance(flow.state, BaseModel):
        return None
    try:
        with exits_contained():
            return without_secrets(type(flow.state).model_json_schema())
    except Exception:  # such as of a field of a class of its own
        return None


def refuse_unsupported_flow(name: str, flow: Flow[Any]) -> None:
    """Raise CrewBroken for a flow that would wait for input at the server's terminal."""
    for method, definition in flow._definition.methods.items():
        if definition.human_feedback is not None:
            raise CrewBroken(
                f"crew {name}: method {method} has human_feedback, which is not supported in flows"
            )


def refuse_sharing_flows(name: str, one: Flow[Any], other: Flow[Any]) -> None:
    """Raise CrewBroken for a factory that returns one flow, or one state, twice."""
    if one is other or one.state is other.state:
        raise CrewBroken(
            f"crew {name}: its factory returned the same flow or state twice; build them inside "
            "the factory"
        )


def check_flow_inputs(flow: Flow[Any], inputs: Mapping[str, Any]) -> None:
    """Raise InputRefused for an input that the flow's state can't hold.

    The state's validators are code of the flow: whatever they raise refuses the inputs.
    """
    if _ID in inputs:
        raise InputRefused(
            _ID, "identifies a flow's state, and each run has its own state: leave it out"
        )
    state = flow.state
    if isinstance(state, BaseModel):
        try:
            with exits_contained():
                type(state).model_validate({**state.model_dump(), **inputs})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"])) or next(iter(inputs), "inputs")
            raise InputRefused(field, first["msg"]) from None
        except Exception as error:
            raise InputRefused(
                "inputs", f"the flow can't validate them: {one_line(error)}"
            ) from error


async def run_flow(
    build: Callable[[], Flow[Any]],
    inputs: Mapping[str, Any],
    run: FlowContext,
    stock_threads: StockThreads,
) -> CrewOutput:
    """Run a flow from its beginning.

    Cancelling this cancels the run at once: the model connections of its crews are closed, and its
    async methods are cancelled. An active sync method can't be stopped; its thread ends at its next
    crew or model call.
    """
    role = run.result.agent
    await run.start_task(RESULT, role)
    run.suppress_events = not foreign_listeners()
    with run.calling(RESULT):
        text = await stock_threads.call(lambda: _run(build, inputs, run), run, "its flow")
    if not text.strip():
        raise NoResult("the flow returned an empty result")
    await run.finish_task(RESULT, role, text)
    return CrewOutput(raw=text, tasks_output=run.task_outputs)


def _run(build: Callable[[], Flow[Any]], inputs: Mapping[str, Any], run: FlowContext) -> str:
    run.check_cancelled()
    try:
        with exits_contained(may_be_cancelled=True):
            flow = build()
            with asyncio.Runner() as runner:
                methods = ThreadPoolExecutor(_MAX_METHOD_THREADS, thread_name_prefix="crew-flow")
                runner.get_loop().set_default_executor(methods)
                value = runner.run(_kick_off(flow, inputs, run))
            if value is None and run.task_outputs and getattr(flow, "returns_last_output", False):
                value = run.task_outputs[-1]
            return _as_text(value, flow)
    except asyncio.CancelledError:
        if run.cancelled:
            raise RunCancelled from None
        raise RuntimeError("the flow cancelled itself") from None


async def _kick_off(flow: Flow[Any], inputs: Mapping[str, Any], run: FlowContext) -> Any:
    # CrewAI copies a dict that a class defines as its state, but not the values in it.
    flow._state = flow._copy_state()
    # Callers need the whole result.
    flow.stream = False
    with run.stoppable():
        value = await flow.kickoff_async(inputs=copy.deepcopy(dict(inputs)) or None)
    if isinstance(value, HumanFeedbackPending):
        raise CrewBroken("the flow requires human feedback, which is not supported in flows")
    return value


def _as_text(value: Any, flow: Flow[Any]) -> str:
    """The return value of `Flow.kickoff` as text; the flow's state if it is None."""
    if value is None:
        return _state_as_json(flow).decode()
    if isinstance(value, str):
        return value
    if isinstance(value, CrewOutput | TaskOutput | LiteAgentOutput):
        return value.raw
    return to_json(value, fallback=str).decode()


def _state_as_json(flow: Flow[Any]) -> bytes:
    state = flow.state
    if isinstance(state, BaseModel):
        return to_json(state, exclude={_ID}, fallback=str)
    return to_json({name: value for name, value in state.items() if name != _ID}, fallback=str)
