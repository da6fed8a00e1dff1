"""Models as agents call them: offline, or any that CrewAI knows.

Everything here is a CrewAI `BaseLLM`: `call` for threads, `acall` for the event loop.
"""

from app.engine.llm.create import create_model
from app.engine.llm.offline import OfflineAnswer, OfflineModel
from app.engine.llm.settings import ModelSettings

__all__ = ["ModelSettings", "OfflineAnswer", "OfflineModel", "create_model"]
