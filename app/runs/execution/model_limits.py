"""Holds model calls until the shared limits of their model and key permit them."""

import asyncio
import contextlib
import hashlib
import math
import time
from collections.abc import Awaitable
from functools import lru_cache, partial
from typing import Final

from app.db import Database
from app.engine import CallObserver, ModelCall, ToolCall, characters
from app.runs.execution.database_waits import once_available
from app.runs.persistence.model_permits import ModelKey, ModelPermits

# Of characters of English text. The tokens that the model reports are counted in the end.
_CHARACTERS_PER_TOKEN: Final = 4
# The output that is counted beforehand for a call whose model has no limit of its own.
_OUTPUT_TOKENS: Final = 1000
_MAX_MODEL_CHARACTERS: Final = 200
# The pause after a refusal whose `Retry-After` is not known.
_REFUSED_SECONDS: Final = 5.0


class ModelLimits(CallObserver):
    """The limits of this process's model calls.

    A call waits for its permit, in order with the calls of all processes. If the model's server
    refuses a request with 429, no process gets a permit until the server's wait is over. The calls
    of several event loops and threads may wait at once.
    """

    def __init__(
        self, database: Database, requests_per_minute: int | None, tokens_per_minute: int | None
    ) -> None:
        """The limits are those of each model and key; None is no limit."""
        self._permits = ModelPermits(database, requests_per_minute, tokens_per_minute)
        self._estimates: dict[ModelCall, int] = {}
        self._loop = asyncio.get_running_loop()

    def admit(self, call: ModelCall) -> Awaitable[None]:
        """Wait until the call is permitted."""
        return self._acquire(call)

    def call_finished(self, call: ModelCall | ToolCall) -> None:
        """Count the tokens that a model call has used, instead of the estimate."""
        if not isinstance(call, ModelCall):
            return
        estimate = self._estimates.pop(call, None)
        used = call.input_tokens + call.output_tokens
        if estimate is not None and used and used != estimate:
            self._soon(partial(self._permits.correct, _key(call), used - estimate))
        if getattr(call.error, "status_code", None) == 429 and not call.refused:
            self._refused(_key(call), _REFUSED_SECONDS)

    async def aclose(self) -> None:
        """Wait for the writes under way."""
        await self._permits.aclose()

    async def _acquire(self, call: ModelCall) -> None:
        key, begun = _key(call), time.monotonic_ns()
        call.on_refused = partial(self._refused, key)
        output = call.max_tokens or _OUTPUT_TOKENS
        tokens = math.ceil(characters(call.messages) / _CHARACTERS_PER_TOKEN) + output
        self._estimates[call] = tokens
        try:
            permit = partial(self._permits.acquire, key, tokens)
            await asyncio.sleep(await once_available(permit))
        except BaseException:
            self._estimates.pop(call, None)
            raise
        call.waited += time.monotonic_ns() - begun

    def _refused(self, key: ModelKey, seconds: float) -> None:
        self._soon(partial(self._permits.pause, key, seconds))

    def _soon(self, write: "partial[None]") -> None:
        with contextlib.suppress(RuntimeError):  # the loop of a process that has ended
            self._loop.call_soon_threadsafe(write)


def _key(call: ModelCall) -> ModelKey:
    return ModelKey(call.model[:_MAX_MODEL_CHARACTERS], _digest(call.api_key))


@lru_cache(maxsize=1000)
def _digest(api_key: str) -> str:
    """A short name for a key, from which the key can't be guessed; '' for none."""
    return hashlib.sha256(api_key.encode()).hexdigest()[:16] if api_key else ""
