"""The OpenAI SDK's internals: `app.engine.llm` makes plain chat completions without it."""

from app.pins.pin import Pin

PINS: tuple[Pin, ...] = (
    # Extended by openai_client.py
    Pin(
        "openai:AsyncOpenAI.chat",
        "688610d08af2",
        "a cached property; ours gives the resource that sends over the pool",
    ),
    Pin(
        "openai.resources.chat:AsyncChat.completions",
        "0dd96aa2cbac",
        "the same",
    ),
    Pin(
        "openai.resources.chat.completions:AsyncCompletions.with_raw_response",
        "78ae62d16add",
        "the same; CrewAI reads answers through it",
    ),
    Pin(
        "openai.resources.chat.completions:AsyncCompletions.create",
        "43dd9e4f09e0",
        "its parameters are the request body; what it does beside sending is done by ours",
    ),
    Pin(
        "openai.resources.chat.completions:AsyncCompletions.parse",
        "42776a05524b",
        "the same for a structured answer, whose schema is part of the body",
    ),
    Pin(
        "openai.lib._parsing._completions:type_to_response_format_param",
        "9d379da9d664",
        "makes the schema of a structured answer, which the engine keeps for each class",
    ),
    Pin(
        "openai.lib._parsing:parse_chat_completion",
        "18a2753f4399",
        "makes the structured answer",
    ),
    Pin(
        "openai:AsyncOpenAI.beta",
        "ff17a4030c9a",
        "CrewAI calls `parse` below it",
    ),
    Pin(
        "openai.resources.chat.completions.completions:AsyncCompletionsWithRawResponse",
        "7959e81d9e1d",
        "`create` and `parse` are attributes that ours replaces",
    ),
    Pin(
        "openai._legacy_response:LegacyAPIResponse.parse",
        "09887d7c0d95",
        "CrewAI calls it on a raw response; ours gives the completion in the pool's reply",
    ),
    Pin(
        "openai._legacy_response:LegacyAPIResponse.text",
        "d482b2dfb453",
        "the same, of the body's text",
    ),
    Pin(
        "openai:AsyncOpenAI.auth_headers",
        "d8c9b7d1fe7c",
        "headers of a request that the pool sends",
    ),
    Pin(
        "openai:AsyncOpenAI.default_headers",
        "f5c1bbc751c6",
        "the same; values that are no strings stand for headers to leave out",
    ),
    Pin(
        "openai._base_client:BaseClient.default_query",
        "d2d42cc13a74",
        "the query of a request that the pool sends",
    ),
    Pin(
        "openai:AsyncOpenAI._make_status_error",
        "6a12dfd80360",
        "which error a status is",
    ),
    Pin(
        "openai._base_client:BaseClient._make_status_error_from_response",
        "8cc269906d51",
        "called for a refusal that the pool received",
    ),
    Pin(
        "openai._models:BaseModel.construct",
        "4e81750a6092",
        "makes an answer that lacks fields, without validation",
    ),
    # Below the SDK (transport.py)
    Pin(
        "openai._base_client:AsyncAPIClient.request",
        "daafccf29901",
        "which errors of the transport are raised as they are: those that ours raises",
    ),
    Pin(
        "openai._base_client:SyncAPIClient.request",
        "a1d84c01a9ea",
        "the same",
    ),
    # Made once for each class (engine/compat/schemas.py)
    Pin(
        "openai.resources.chat.completions.completions:_type_to_response_format",
        "9d379da9d664",
        "depends on the class alone",
    ),
)
