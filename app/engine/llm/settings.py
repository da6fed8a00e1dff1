"""The settings of a model."""

from dataclasses import dataclass, field

from app.engine.llm.answer_limit import MAX_OUTPUT_CHARS


@dataclass(frozen=True)
class ModelSettings:
    """The model of every agent without a model of its own, and the limits of all model calls.

    `model` is `offline` or any name that CrewAI accepts. With `base_url`, `model` is its name on
    the OpenAI-compatible server at that address, with or without the prefix `openai/`. `api_key`
    never appears in a repr or an error.

    `timeout_seconds` limits one model call with all its attempts, from the first request.
    `max_concurrency` limits the concurrent model calls of this process; further calls wait.
    `max_connections` limits the open connections (None: as many as calls). With `temperature` None,
    the model's default applies. `max_output_chars` limits the text of one response.
    """

    model: str = "offline"
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout_seconds: float = 120.0
    max_concurrency: int = 4000
    max_connections: int | None = None
    temperature: float | None = None
    max_output_chars: int = MAX_OUTPUT_CHARS
