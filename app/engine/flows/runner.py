"""The way of a flow: CrewAI's own Flow, in a thread and an event loop of its own.

Its methods are anybody's code, and may block wherever they are, so none of it is on the engine's
event loop. The crews that it kicks off are (inner_crews.py).
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
from app.engine.errors import CrewBroken, InputRefused, NoResult
from app.engine.flows.context import RESULT, FlowContext
from app.engine.runtime.signals import ExitAttempted, RunCancelled
from app.engine.stock import StockThreads

_TRIGGER = "crewai_trigger_payload"
_ID = "id"
# Of one flow's methods that go side by side; CrewAI's are six on two cores, for all flows.
_MAX_METHOD_THREADS = 64


def result_description(flow: Flow[Any]) -> TaskDescription:
    """The one output of a flow that is known before it runs."""
    return TaskDescription("result", flow._definition.name)


def flow_defaults(flow: Flow[Any]) -> dict[str, Any]:
    """A flow's inputs with their defaults: the fields of its state, and a trigger's payload."""
    return {**from_json(_state_as_json(flow)), _TRIGGER: None}


def refuse_unservable_flow(name: str, flow: Flow[Any]) -> None:
    """Raise CrewBroken for a flow that would wait for somebody at the server's terminal."""
    for method, definition in flow._definition.methods.items():
        if definition.human_feedback is not None:
            raise CrewBroken(
                f"crew {name}: method {method} has human_feedback, which can't be served"
            )


def refuse_sharing_flows(name: str, one: Flow[Any], other: Flow[Any]) -> None:
    """Raise CrewBroken for a factory that hands out one flow, or one state, twice."""
    if one is other or one.state is other.state:
        raise CrewBroken(
            f"crew {name}: its factory hands out the same flow or state twice; build them inside "
            "of it"
        )


def check_flow_inputs(flow: Flow[Any], inputs: Mapping[str, Any]) -> None:
    """Raise InputRefused for an input that the flow's state can't hold."""
    if _ID in inputs:
        raise InputRefused(_ID, "names a flow's state, and each run has one of its own")
    state = flow.state
    if isinstance(state, BaseModel):
        try:
            type(state).model_validate({**state.model_dump(), **inputs})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"])) or next(iter(inputs), "inputs")
            raise InputRefused(field, first["msg"]) from None


async def run_flow(
    build: Callable[[], Flow[Any]],
    inputs: Mapping[str, Any],
    scope: FlowContext,
    stock_threads: StockThreads,
) -> CrewOutput:
    """Run a flow from its beginning.

    Cancelling this drops the run at once: model connections of its crews are closed, what its
    async methods wait for is cancelled. A sync method at work can't be stopped; its thread ends at
    its next crew or model call.
    """
    role = scope.result.agent
    # A task of its own: what the observer sets for model calls is not for the whole flow.
    await asyncio.create_task(scope.start_task(RESULT, role))
    scope.quiet = not foreign_listeners()
    text = await stock_threads.call(lambda: _run(build, inputs, scope), scope)
    if not text.strip():
        raise NoResult("the flow gave an empty result")
    await scope.finish_task(RESULT, role, text)
    return CrewOutput(raw=text, tasks_output=scope.task_outputs)


def _run(build: Callable[[], Flow[Any]], inputs: Mapping[str, Any], scope: FlowContext) -> str:
    scope.check()
    try:
        flow = build()
        with asyncio.Runner() as runner:
            methods = ThreadPoolExecutor(_MAX_METHOD_THREADS, thread_name_prefix="crew-flow")
            runner.get_loop().set_default_executor(methods)
            value = runner.run(_kick_off(flow, inputs, scope))
        return _as_text(value, flow)
    except asyncio.CancelledError:
        if scope.dropped:
            raise RunCancelled from None
        raise RuntimeError("the flow cancelled itself") from None
    except (KeyboardInterrupt, SystemExit) as attempt:
        raise ExitAttempted(attempt) from attempt


async def _kick_off(flow: Flow[Any], inputs: Mapping[str, Any], scope: FlowContext) -> Any:
    # A dict that a class gives as its state is copied by CrewAI, but not what is in it.
    flow._state = flow._copy_state()
    # The result is awaited as a whole.
    flow.stream = False
    with scope.stoppable():
        value = await flow.kickoff_async(inputs=copy.deepcopy(dict(inputs)) or None)
    if isinstance(value, HumanFeedbackPending):
        raise CrewBroken("the flow waits for a human's feedback, which can't be served")
    return value


def _as_text(value: Any, flow: Flow[Any]) -> str:
    """What `Flow.kickoff` returned, as text; the flow's state if it returned nothing."""
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
