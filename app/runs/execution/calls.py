"""The observers of an attempt's calls to models and tools, as one."""

from collections.abc import Awaitable, Sequence

from app.engine import CallObserver, ModelCall, ToolCall


class CallObservers(CallObserver):
    """Passes the calls of an attempt to several observers.

    A model call is admitted by all observers in their order, and started only then.
    """

    def __init__(self, observers: Sequence[CallObserver]) -> None:
        self._observers = observers

    def admit(self, call: ModelCall) -> Awaitable[None] | None:
        """Admit a call: nothing to wait for, unless an observer has to wait."""
        waits = [waiting for one in self._observers if (waiting := one.admit(call)) is not None]
        if not waits:
            return None
        return waits[0] if len(waits) == 1 else _all(waits)

    def call_started(self, call: ModelCall | ToolCall) -> None:
        """Report a call that begins."""
        for one in self._observers:
            one.call_started(call)

    def call_finished(self, call: ModelCall | ToolCall) -> None:
        """Report a call that has ended, to the last observer first."""
        for one in reversed(self._observers):
            one.call_finished(call)


async def _all(waits: Sequence[Awaitable[None]]) -> None:
    for waiting in waits:
        await waiting
