"""The texts of users and models in spans, as JSON in the form of OpenTelemetry's conventions.

Spans have them only if OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT is true.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple


class Prompt(NamedTuple):
    """The messages of a model call; `system` are the instructions before the conversation."""

    system: str | None
    messages: str


def prompt(messages: Any) -> Prompt:
    """The messages that a model is sent: a text, or a list of messages as OpenAI's API has them."""
    given = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    conversation = [_message(one) for one in given or ()]
    instructions = []
    while conversation and conversation[0].get("role") == "system":
        instructions += _parts(conversation.pop(0))
    system = to_json(instructions) if instructions else None
    return Prompt(
        system, to_json([{"role": m.get("role"), "parts": _parts(m)} for m in conversation])
    )


def answer(given: Any, finish_reason: str | None) -> str:
    """The answer of a model: a text, calls of tools, or an object of the caller's type."""
    if isinstance(given, list):
        parts = [_tool_call(call) for call in given]
    else:
        parts = [_text(given if isinstance(given, str) else to_json(given))]
    message = {"role": "assistant", "parts": parts}
    return to_json([message | ({"finish_reason": finish_reason} if finish_reason else {})])


def to_json(value: Any) -> str:
    """A value as JSON; objects of other types by their fields, or as text."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=_plain)
    except Exception:  # an object of the crew's that can't be shown
        text = json.dumps(type(value).__qualname__)
    return text.encode("utf-8", "replace").decode()  # without lone surrogates


def _message(message: Any) -> Mapping[str, Any]:
    return message if isinstance(message, Mapping) else {"role": "user", "content": str(message)}


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return str(value)


def _parts(message: Mapping[str, Any]) -> list[Any]:
    content, parts = message.get("content"), []
    if message.get("role") == "tool":
        return [
            {
                "type": "tool_call_response",
                "id": message.get("tool_call_id"),
                "response": content,
            }
        ]
    if isinstance(content, str):
        parts = [_text(content)] if content else []
    elif isinstance(content, Sequence):
        parts = [_part(part) for part in content]
    return parts + [_tool_call(call) for call in message.get("tool_calls") or ()]


def _part(part: Any) -> Any:
    if isinstance(part, Mapping) and part.get("type") == "text":
        return _text(part.get("text"))
    return part


def _text(content: Any) -> dict[str, Any]:
    return {"type": "text", "content": content}


def _tool_call(call: Any) -> dict[str, Any]:
    function = _field(call, "function") or call
    arguments = _field(function, "arguments")
    if arguments is None:  # as Anthropic's and Bedrock's APIs have them
        arguments = _field(function, "input")
    if isinstance(arguments, str):
        with suppress(ValueError):
            arguments = json.loads(arguments)
    return {
        "type": "tool_call",
        "id": _field(call, "id") or _field(call, "toolUseId"),
        "name": _field(function, "name"),
        "arguments": arguments,
    }


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
