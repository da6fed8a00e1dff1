"""The texts of calls to models and tools as JSON, from whatever objects CrewAI and tools use."""

from typing import Any

import msgspec

from app.engine import ModelCall, ToolCall
from app.runs.call_records import CallContent
from app.runs.texts import replace_surrogates


def given_to(call: ModelCall | ToolCall) -> CallContent:
    """The texts that a call begins with, encoded: CrewAI extends its messages later."""
    if isinstance(call, ToolCall):
        return CallContent(input=_encoded(call.input))
    return CallContent(messages=_encoded(call.messages), tools=_encoded(call.tools))


def content_as_json(given: CallContent, call: ModelCall | ToolCall) -> bytes:
    """The texts of a call that has ended, as JSON."""
    if isinstance(call, ToolCall):
        content = CallContent(input=given.input, result=_encoded(call.result))
    else:
        answer = _encoded(call.answer)
        content = CallContent(messages=given.messages, tools=given.tools, answer=answer)
    return msgspec.json.encode(content)


def _encoded(value: Any) -> msgspec.Raw | None:
    if value is None:
        return None
    try:
        return msgspec.Raw(msgspec.json.encode(value, enc_hook=_plain))
    except Exception:  # values of any kind, from code of crews
        try:
            return msgspec.Raw(msgspec.json.encode(_storable(value)))
        except Exception:
            return msgspec.Raw(msgspec.json.encode(f"<{type(value).__name__}>"))


def _plain(value: Any) -> Any:
    """The substitute for an object that JSON does not have."""
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if callable(dump) else replace_surrogates(str(value))


def _storable(value: Any) -> Any:
    """The value with texts and numbers that JSON can have."""
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, dict):
        return {replace_surrogates(str(name)): _storable(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_storable(item) for item in value]
    if value is None or isinstance(value, int | float):
        return value
    return _storable(_plain(value))
