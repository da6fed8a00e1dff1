"""What a flow finds around it, for as long as its run lasts: where `@persist` keeps states, where
its memory lies, and who answers its questions. Crews find their memory in the same way.

By default CrewAI keeps the states and memories of all runs of a machine together, and asks at
the terminal.
"""

import logging
from tempfile import mkdtemp
from typing import Any

from crewai.flow.async_feedback.providers import ConsoleProvider
from crewai.flow.flow_config import flow_config
from crewai.flow.persistence.base import FlowPersistence
from crewai.flow.persistence.factory import set_flow_persistence_factory
from crewai.flow.persistence.sqlite import SQLiteFlowPersistence
from crewai.flow.runtime import Flow
from crewai.memory.storage.factory import set_memory_storage_factory
from crewai.types.usage_metrics import UsageMetrics
from crewai_core.paths import db_storage_path
from pydantic import BaseModel
from pydantic_core import from_json, to_json

from app.engine.errors import CrewBroken
from app.engine.flows.context import current_flow
from app.engine.runtime.context import RunContext, current_context

_logger = logging.getLogger(__name__)

_own_attach = Flow._attach_usage_aggregation_listener
_own_detach = Flow._detach_usage_aggregation_listener

_DEFAULT_MEMORY = "lancedb"


def isolate_flows() -> None:
    """Put these in place, for the whole process. Outside of runs all is as CrewAI has it."""
    set_flow_persistence_factory(StatesOfTheRun)
    set_memory_storage_factory(_memory_of_the_run)
    flow_config.input_provider = flow_config.input_provider or NobodyToAsk()
    flow_config.hitl_provider = flow_config.hitl_provider or NobodyToAsk()


class StatesOfTheRun(FlowPersistence):
    """What `@persist` keeps where it is told no other place: for the run, and for it alone."""

    persistence_type: str = "StatesOfTheRun"

    def init_db(self) -> None: ...

    def save_state(
        self, flow_uuid: str, method_name: str, state_data: dict[str, Any] | BaseModel
    ) -> None:
        scope = current_context()
        if scope is None:
            SQLiteFlowPersistence().save_state(flow_uuid, method_name, state_data)
        else:
            scope.flow_states[flow_uuid] = to_json(state_data, fallback=str)

    def load_state(self, flow_uuid: str) -> dict[str, Any] | None:
        scope = current_context()
        if scope is None:
            return SQLiteFlowPersistence().load_state(flow_uuid)
        kept = scope.flow_states.get(flow_uuid)
        return None if kept is None else from_json(kept)


class _MemoryOfTheRun:
    """CrewAI's memory storage, opened when it is first used: every flow is given one."""

    def __init__(self, scope: RunContext) -> None:
        self._scope = scope
        self._opened: Any = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        with self._scope.memory_lock:  # memories save in threads of their own
            if self._opened is None:
                self._opened = self._open()
        return getattr(self._opened, name)

    def _open(self) -> Any:
        from crewai.memory.storage.lancedb_storage import LanceDBStorage  # noqa: PLC0415

        scope = self._scope
        if scope.memory_folder is None:
            scope.memory_folder = mkdtemp(prefix="memory_of_a_run_", dir=db_storage_path())
        return LanceDBStorage(path=scope.memory_folder)


def _memory_of_the_run(storage: str) -> Any:
    scope = current_flow() or current_context()
    if scope is None or storage != _DEFAULT_MEMORY:
        return None
    return _MemoryOfTheRun(scope)


class NobodyToAsk:
    """Answers a flow's questions: nobody sits at the server's terminal."""

    def request_input(self, message: str, flow: Any, metadata: dict[str, Any] | None = None) -> Any:
        """For `Flow.ask`, where None is CrewAI's word for no answer."""
        if current_flow() is None:
            return ConsoleProvider().request_input(message, flow, metadata)
        _logger.warning("a flow asks, and there is nobody to answer")
        return None

    def request_feedback(self, context: Any, flow: Any) -> Any:
        if current_flow() is None:
            return ConsoleProvider().request_feedback(context, flow)
        raise CrewBroken("the flow waits for a human's feedback, which can't be served")


def attach_usage(self: Flow[Any]) -> None:
    """In place of CrewAI's: an event listener per flow, which hears the calls of all flows."""
    scope = current_flow()
    if scope is None or type(self).is_crewai_internal:
        return _own_attach(self)
    if self._usage_aggregation_handler is not None:
        return None
    used, lock = self._aggregated_usage_metrics, self._usage_metrics_lock

    def count(metrics: UsageMetrics) -> None:
        with lock:
            used.add_usage_metrics(metrics)

    self._usage_aggregation_handler = count
    scope.count_with(count)
    return None


def detach_usage(self: Flow[Any]) -> None:
    scope = current_flow()
    if scope is not None and self._usage_aggregation_handler is not None:
        scope.stop_counting(self._usage_aggregation_handler)
    _own_detach(self)
