"""The values of a client in a message: JSON of any shape, which the SDK does not get.

The SDK copies each value several times, in steps that cannot be divided. Thousands of them would
block the event loop for half a second.
"""

from dataclasses import dataclass, field
from typing import Any, Final

from app.runs import InvalidInput

MAX_PARTS: Final = 100
"""How many parts a message may have; the SDK needs about 0.2 ms for each."""

CLIENT_VALUES: Final = "a2a_client_values"
"""The key of the message's `ClientValues` in the state of a request's scope."""

# In its metadata, a client of version 1.0 marks data of version 0.3 that is the member `value` of
# an object, because it is none itself.
_WRAPPED: Final = "data_part_compat"


@dataclass
class ClientValues:
    """The data of a message's parts, in their order, and the message's metadata."""

    data: list[Any] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


def detach_values(message: dict[str, Any]) -> ClientValues:
    """Replace the values in a JSON-RPC message by empty objects, and return them.

    Whole numbers become int: clients of the SDK have floating point numbers only. Values in wrong
    positions, or of wrong types, stay where they are, and the SDK refuses them.

    Raises InvalidInput: there are more than `MAX_PARTS` parts.
    """
    values = ClientValues()
    params = message.get("params")
    if not isinstance(params, dict):
        return values
    _detach_metadata(params)
    sent = params.get("message")
    if not isinstance(sent, dict):
        return values
    values.metadata = _detach_metadata(sent)
    parts = sent.get("parts")
    if not isinstance(parts, list):
        return values
    if len(parts) > MAX_PARTS:
        raise InvalidInput(
            "params.message.parts", f"{len(parts):,} parts; at most {MAX_PARTS} are allowed"
        )
    is_previous = "/" in str(message.get("method"))  # a method of version 0.3
    for part in parts:
        if isinstance(part, dict):
            metadata = _detach_metadata(part)
            if "data" in part:
                is_wrapped = is_previous and bool(metadata.get(_WRAPPED))
                values.data.append(_detach_data(part, is_previous, is_wrapped))
    return values


def _detach_metadata(holder: dict[str, Any]) -> dict[str, Any]:
    metadata = holder.get("metadata")
    if not isinstance(metadata, dict):
        return {}
    holder["metadata"] = {}
    found: dict[str, Any] = _whole_numbers(metadata)
    return found


def _detach_data(part: dict[str, Any], is_previous: bool, is_wrapped: bool) -> Any:
    data = part["data"]
    if data is None or (is_previous and not isinstance(data, dict)):
        return data  # left to the SDK
    part["data"] = {}
    if is_wrapped:
        data = data.get("value")
    return _whole_numbers(data)


def _whole_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole_numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
