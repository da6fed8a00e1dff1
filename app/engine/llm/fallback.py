"""The model that answers while another one fails."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from crewai.llms.base_llm import BaseLLM
from openai import APIConnectionError, APIStatusError

from app.engine.calls import active_model_call
from app.engine.errors import chain_of
from storage.layers.circuit_breaker import CircuitBreaker

logger = logging.getLogger("crew_capture.models")

_PAUSE_SECONDS: Final = 30.0
# Beside server errors: a timeout, a rate limit.
_STATUSES: Final = (408, 429)


class ModelFallback:
    """Answers a call by a second model if the first one fails, after all its retries.

    The first model is left out after `failures_allowed` consecutive failures. Every 30 seconds one
    call tries it again. Errors that are about the request itself are not the model's: they are
    raised. The active call is recorded as one to the model that answered.
    """

    def __init__(self, first: str, model: BaseLLM, name: str, failures_allowed: int) -> None:
        """`first` is the name of the first model, and `name` that of the second, `model`."""
        self.model: Final = model
        self._name = name
        self._breaker = CircuitBreaker(
            f"The model {first}", _PAUSE_SECONDS, logger, failures_allowed=failures_allowed
        )

    def call(self, first: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The answer to a call of the first model, `first`, or else of the second."""
        if self._breaker.allow():
            try:
                answer = first(*args, **kwargs)
            except Exception as error:
                self._record(error)
            else:
                self._breaker.record_success()
                return answer
        self._note_call()
        return self.model.call(*args, **kwargs)

    async def acall(self, first: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """The same for a call on an event loop."""
        if self._breaker.allow():
            try:
                answer = await first(*args, **kwargs)
            except Exception as error:
                self._record(error)
            else:
                self._breaker.record_success()
                return answer
        self._note_call()
        return await self.model.acall(*args, **kwargs)

    def _record(self, error: Exception) -> None:
        """Count a failure of the model. Raises the error if it is not the model's."""
        if not _is_failure(error):
            raise error
        self._breaker.record_failure(" ".join(str(error).split())[:200])

    def _note_call(self) -> None:
        call = active_model_call.get()
        if call is not None:
            call.model, call.provider = self._name, str(self.model.provider)
            call.on_refused = None  # it was for the first model


def _is_failure(error: Exception) -> bool:
    for link in chain_of(error):
        if isinstance(link, APIStatusError):
            return link.status_code >= 500 or link.status_code in _STATUSES
        if isinstance(link, APIConnectionError):
            return True
    return False
