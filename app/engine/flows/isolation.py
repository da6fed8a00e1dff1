"""The environment of a flow, apart for each run: `@persist` states and human input.

By default, CrewAI stores the states of all runs of a machine together, and reads input from the
terminal.
"""

import logging
from typing import Any

from crewai.flow.async_feedback.providers import ConsoleProvider
from crewai.flow.flow_config import flow_config
from crewai.flow.persistence.base import FlowPersistence
from crewai.flow.persistence.factory import set_flow_persistence_factory
from crewai.flow.persistence.sqlite import SQLiteFlowPersistence
from crewai.flow.runtime import Flow
from crewai.types.usage_metrics import UsageMetrics
from pydantic import BaseModel
from pydantic_core import from_json, to_json

from app.engine.errors import CrewBroken
from app.engine.flows.context import current_flow
from app.engine.runtime.context import current_run

_logger = logging.getLogger(__name__)

_own_attach = Flow._attach_usage_aggregation_listener
_own_detach = Flow._detach_usage_aggregation_listener


def isolate_flows() -> None:
    """Install the replacements in this process. Outside of runs, CrewAI's defaults apply."""
    set_flow_persistence_factory(StatesOfTheRun)
    flow_config.input_provider = flow_config.input_provider or NoTerminal()
    flow_config.hitl_provider = flow_config.hitl_provider or NoTerminal()


class StatesOfTheRun(FlowPersistence):
    """The default storage of `@persist`: in the run, and for this run only."""

    persistence_type: str = "StatesOfTheRun"

    def init_db(self) -> None: ...

    def save_state(
        self, flow_uuid: str, method_name: str, state_data: dict[str, Any] | BaseModel
    ) -> None:
        run = current_run()
        if run is None:
            SQLiteFlowPersistence().save_state(flow_uuid, method_name, state_data)
        else:
            run.flow_states[flow_uuid] = to_json(state_data, fallback=str)

    def load_state(self, flow_uuid: str) -> dict[str, Any] | None:
        run = current_run()
        if run is None:
            return SQLiteFlowPersistence().load_state(flow_uuid)
        kept = run.flow_states.get(flow_uuid)
        return None if kept is None else from_json(kept)


class NoTerminal:
    """Replaces the terminal for a flow's questions: a server has none."""

    def request_input(self, message: str, flow: Any, metadata: dict[str, Any] | None = None) -> Any:
        """Called by `Flow.ask`. None means no answer."""
        if current_flow() is None:
            return ConsoleProvider().request_input(message, flow, metadata)
        _logger.warning("a flow called ask(): it gets no answer, since a server has no terminal")
        return None

    def request_feedback(self, context: Any, flow: Any) -> Any:
        if current_flow() is None:
            return ConsoleProvider().request_feedback(context, flow)
        raise CrewBroken("the flow requires human feedback, which is not supported in flows")


def attach_usage(self: Flow[Any]) -> None:
    """Replaces CrewAI's method, which adds a listener per flow for the calls of all flows."""
    run = current_flow()
    if run is None or type(self).is_crewai_internal:
        return _own_attach(self)
    if self._usage_aggregation_handler is not None:
        return None
    used, lock = self._aggregated_usage_metrics, self._usage_metrics_lock

    def count(metrics: UsageMetrics) -> None:
        with lock:
            used.add_usage_metrics(metrics)

    self._usage_aggregation_handler = count
    run.count_with(count)
    return None


def detach_usage(self: Flow[Any]) -> None:
    """Replaces CrewAI's method, as `attach_usage` does."""
    run = current_flow()
    if run is not None and self._usage_aggregation_handler is not None:
        run.stop_counting(self._usage_aggregation_handler)
    _own_detach(self)
