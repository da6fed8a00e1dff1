"""The metrics of a run's calls to models and tools."""

from app.engine import CallObserver, ModelCall, ToolCall
from app.telemetry import metrics


class CallMetrics(CallObserver):
    """Counts calls under way, and records those that have ended.

    It keeps no state: all runs share one.
    """

    def call_started(self, call: ModelCall | ToolCall) -> None:
        """Count a call that begins."""
        if isinstance(call, ToolCall):
            metrics.count_tool_calls_in_flight(call.tool, 1)
        else:
            metrics.count_model_calls_in_flight(call.model, 1)

    def call_finished(self, call: ModelCall | ToolCall) -> None:
        """Record a call that has ended."""
        end = type(call.error).__name__ if call.error is not None else "ok"
        seconds = ((call.finished_at or call.started_at) - call.started_at) / 1e9
        if isinstance(call, ToolCall):
            metrics.count_tool_calls_in_flight(call.tool, -1)
            metrics.observe_tool_call(tool=call.tool, end=end, seconds=seconds)
            return
        first = call.first_token_at
        metrics.count_model_calls_in_flight(call.model, -1)
        metrics.observe_model_call(
            model=call.model,
            end=end,
            seconds=seconds,
            seconds_to_first_token=None if first is None else (first - call.started_at) / 1e9,
            input_tokens=call.input_tokens,
            output_tokens=call.output_tokens,
            cached_tokens=call.cached_tokens,
            retries=call.retries,
            waited_seconds=call.waited / 1e9,
        )
