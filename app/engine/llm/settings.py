"""What a deployment says about its model."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModelSettings:
    """The model of every agent that names none of its own, and the limits of all model calls.

    `model` is `offline` or any name CrewAI accepts. With `base_url` set, `model` is whatever
    the OpenAI-compatible server at that address calls it, with or without `openai/` before it.
    `api_key` never shows in a repr or an error.

    `timeout_seconds` bounds one model call with all its attempts, from when it is sent.
    `max_concurrency` is how many model calls of this process may be under way at once; further
    calls wait. `max_connections` bounds the open connections (None: as many as calls).
    `temperature` None leaves it to the model.
    """

    model: str = "offline"
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout_seconds: float = 120.0
    max_concurrency: int = 4000
    max_connections: int | None = None
    temperature: float | None = None
