"""OpenAI models whose HTTP clients are built on first use: saves 43 ms of CPU per model.

CrewAI builds both HTTP clients with the model, and reads the system's certificates for each. It can
also build them at the first call. A pooled model never uses them.
"""

import contextvars
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from crewai.llms.providers.openai.completion import OpenAICompletion

_deferring: contextvars.ContextVar[bool] = contextvars.ContextVar("deferring", default=False)


@contextmanager
def deferred_clients() -> Iterator[None]:
    """Within this, new OpenAI models build their clients on first use."""
    token = _deferring.set(True)
    try:
        yield
    finally:
        _deferring.reset(token)


def _unless_deferring(build: Callable[[OpenAICompletion], Any]) -> Callable[..., Any]:
    @wraps(build)
    def build_or_leave(self: OpenAICompletion) -> Any:
        # In CrewAI, None stands for a client that is not built yet.
        return None if _deferring.get() else build(self)

    return build_or_leave


# On the class: pydantic has compiled the validator that calls these methods, not the methods.
OpenAICompletion._build_sync_client = _unless_deferring(OpenAICompletion._build_sync_client)  # type: ignore[method-assign]
OpenAICompletion._build_async_client = _unless_deferring(OpenAICompletion._build_async_client)  # type: ignore[method-assign]
