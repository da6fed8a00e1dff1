"""The models that agents call: the offline model, or any that CrewAI supports.

Every model is a CrewAI `BaseLLM`: `call` for threads, `acall` for the event loop. Models that speak
OpenAI's API share one connection pool. Set `on_token` around a call to stream it, or set
`listener_of_call` to decide that at the start of each call. The names are imported on first use:
all but the settings import CrewAI or the OpenAI SDK.
"""

from typing import TYPE_CHECKING

from app.engine.lazy_imports import lazy_imports
from app.engine.llm.settings import ModelSettings

if TYPE_CHECKING:
    from app.engine.llm.create import (
        OFFLINE,
        close_models,
        create_embedder,
        create_model,
        missing_key,
        pooled,
    )
    from app.engine.llm.deferred import deferred_clients
    from app.engine.llm.fallback import ModelFallback
    from app.engine.llm.offline import OfflineAnswer, OfflineModel
    from app.engine.llm.openai_client import listener_of_call, on_token
else:  # a type checker that saw `__getattr__` would accept any name
    __getattr__ = lazy_imports(
        __name__,
        {
            "ModelFallback": "app.engine.llm.fallback",
            "OFFLINE": "app.engine.llm.create",
            "OfflineAnswer": "app.engine.llm.offline",
            "OfflineModel": "app.engine.llm.offline",
            "close_models": "app.engine.llm.create",
            "create_embedder": "app.engine.llm.create",
            "create_model": "app.engine.llm.create",
            "deferred_clients": "app.engine.llm.deferred",
            "listener_of_call": "app.engine.llm.openai_client",
            "missing_key": "app.engine.llm.create",
            "on_token": "app.engine.llm.openai_client",
            "pooled": "app.engine.llm.create",
        },
    )

__all__ = [
    "OFFLINE",
    "ModelFallback",
    "ModelSettings",
    "OfflineAnswer",
    "OfflineModel",
    "close_models",
    "create_embedder",
    "create_model",
    "deferred_clients",
    "listener_of_call",
    "missing_key",
    "on_token",
    "pooled",
]
