"""OpenAI models without clients: 43 ms of CPU less for each that a crew's factory makes.

CrewAI builds both of a model's HTTP clients, and reads the system's certificates for each, when
the model is made, though it can build them at the first call as well. A model that goes over the
pool never uses them.
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
    """OpenAI models that are made within this build their clients when they first need them."""
    token = _deferring.set(True)
    try:
        yield
    finally:
        _deferring.reset(token)


def _unless_deferring(build: Callable[[OpenAICompletion], Any]) -> Callable[..., Any]:
    @wraps(build)
    def build_or_leave(self: OpenAICompletion) -> Any:
        # None is CrewAI's own word for a client that is still to be built.
        return None if _deferring.get() else build(self)

    return build_or_leave


# On the class: pydantic has compiled the validator that calls these, not these.
OpenAICompletion._build_sync_client = _unless_deferring(OpenAICompletion._build_sync_client)  # type: ignore[method-assign]
OpenAICompletion._build_async_client = _unless_deferring(OpenAICompletion._build_async_client)  # type: ignore[method-assign]
