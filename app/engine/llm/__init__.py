"""Models as agents call them: offline, or any that CrewAI knows.

Everything here is a CrewAI `BaseLLM`: `call` for threads, `acall` for the event loop. Those that
speak OpenAI's API share one pool of connections. Set `on_token` around a call to have it streamed,
or `listener_of_call` where that is decided as each call begins.
"""

from app.engine.llm.create import OFFLINE, close_models, create_model, pooled
from app.engine.llm.deferred import deferred_clients
from app.engine.llm.offline import OfflineAnswer, OfflineModel
from app.engine.llm.openai_client import OnToken, listener_of_call, on_token
from app.engine.llm.settings import ModelSettings

__all__ = [
    "OFFLINE",
    "ModelSettings",
    "OfflineAnswer",
    "OfflineModel",
    "OnToken",
    "close_models",
    "create_model",
    "deferred_clients",
    "listener_of_call",
    "on_token",
    "pooled",
]
