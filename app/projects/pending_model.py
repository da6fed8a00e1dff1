"""The model of agents that are made where a project is imported, and that name no model.

The deployment's model is not known there yet. The engine replaces it when it configures a crew.
"""

from typing import Any

from crewai.llms.base_llm import BaseLLM
from crewai.utilities import llm_utils
from typing_extensions import override


class PendingModel(BaseLLM):
    """Calls the model of an agent that names none where the call is made."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"model": "pending", "provider": "pending", **settings})

    @override
    def call(self, *args: Any, **options: Any) -> Any:
        return self._model.call(*args, **options)

    @override
    async def acall(self, *args: Any, **options: Any) -> Any:
        return await self._model.acall(*args, **options)

    @property
    def _model(self) -> BaseLLM:
        model = llm_utils._llm_via_environment_or_fallback()
        if model is None or isinstance(model, PendingModel):
            raise RuntimeError("code calls a model where it is imported")
        return model
