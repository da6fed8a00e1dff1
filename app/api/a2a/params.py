"""The parameters of A2A requests, checked before the SDK parses them.

The SDK's errors name its parser's types, and stop at the first field. These texts are as those of
the REST API: all fields at once, named as clients write them.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from a2a.compat.v0_3.jsonrpc_adapter import JSONRPC03Adapter
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher
from a2a.utils.proto_utils import validate_proto_required_fields
from google.protobuf.json_format import ParseDict

from app.api.problems import problems_of, problems_text

_Id = Annotated[str, msgspec.Meta(min_length=1)]
_Object = dict[str, Any] | None


class _Part(msgspec.Struct, rename="camel"):
    text: str | None = None
    data: Any = None
    raw: str | None = None
    url: str | None = None
    metadata: _Object = None
    filename: str | None = None
    media_type: str | None = None


class _AnyMessage(msgspec.Struct, rename="camel", kw_only=True):
    message_id: _Id
    context_id: str | None = None
    task_id: str | None = None
    metadata: _Object = None
    extensions: list[str] | None = None
    reference_task_ids: list[str] | None = None


class _Message(_AnyMessage, kw_only=True):
    role: Literal["ROLE_USER", "ROLE_AGENT"]
    parts: Annotated[list[_Part], msgspec.Meta(min_length=1)]


class _Configuration(msgspec.Struct, rename="camel"):
    accepted_output_modes: list[str] | None = None
    task_push_notification_config: _Object = None
    history_length: int | None = None
    return_immediately: bool | None = None


class _Send(msgspec.Struct):
    message: _Message
    configuration: _Configuration | None = None
    metadata: _Object = None
    tenant: str | None = None


class _OfTask(msgspec.Struct, rename="camel"):
    id: _Id
    history_length: int | None = None
    metadata: _Object = None
    tenant: str | None = None


class _TextPart03(msgspec.Struct, tag_field="kind", tag="text"):
    text: str
    metadata: _Object = None


class _DataPart03(msgspec.Struct, tag_field="kind", tag="data"):
    data: dict[str, Any]
    metadata: _Object = None


class _FilePart03(msgspec.Struct, tag_field="kind", tag="file"):
    file: dict[str, Any]
    metadata: _Object = None


class _Message03(_AnyMessage, kw_only=True):
    role: Literal["user", "agent"]
    parts: list[_TextPart03 | _DataPart03 | _FilePart03]


class _Configuration03(msgspec.Struct, rename="camel"):
    accepted_output_modes: list[str] | None = None
    blocking: bool | None = None
    history_length: int | None = None
    push_notification_config: _Object = None


class _Send03(msgspec.Struct):
    message: _Message03
    configuration: _Configuration03 | None = None
    metadata: _Object = None


_PARAMS: Final[Mapping[str, Any]] = {
    "SendMessage": _Send,
    "SendStreamingMessage": _Send,
    "GetTask": _OfTask,
    "CancelTask": _OfTask,
    "SubscribeToTask": _OfTask,
    "message/send": _Send03,
    "message/stream": _Send03,
    "tasks/get": _OfTask,
    "tasks/cancel": _OfTask,
    "tasks/resubscribe": _OfTask,
}


def refusal_of_params(message: Mapping[str, Any]) -> str | None:
    """The problems of the parameters of a JSON-RPC message; None if the SDK can handle it."""
    method, params = message.get("method"), message.get("params", {})
    type_ = _PARAMS.get(method) if isinstance(method, str) else None
    if type_ is None:
        return None
    text = problems_text(_problems(params, type_))
    # The protocol allows other spellings, such as names with underscores.
    return None if not text or _is_accepted(str(method), message) else text


def _problems(params: object, type_: Any) -> Iterator[str]:
    found = problems_of(params, type_, "params", strict=True)
    first = next(found, None)
    if first is not None:
        yield first
        yield from found
    elif type_ is _Send:
        parts = msgspec.convert(params, _Send).message.parts
        for index, part in enumerate(parts):
            given = [
                name for name in ("text", "data", "raw", "url") if getattr(part, name) is not None
            ]
            if len(given) > 1:
                yield f"params.message.parts[{index}]: has {' and '.join(given)}, must have one"


def _is_accepted(method: str, message: Mapping[str, Any]) -> bool:
    """Whether the SDK parses the message."""
    try:
        if (model := JSONRPC03Adapter.METHOD_TO_MODEL.get(method)) is not None:
            model.model_validate(message)
            return True
        params, parsed = message.get("params", {}), JsonRpcDispatcher.METHOD_TO_MODEL[method]()
        validate_proto_required_fields(ParseDict(params, parsed, ignore_unknown_fields=True))
        return True
    except Exception:  # of its parsers, or of what they call
        return False
