"""Operations that answer in one of several media types, in the OpenAPI description."""

from dataclasses import dataclass
from typing import ClassVar

from litestar.openapi.spec import (
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Schema,
)


@dataclass
class _AlternativeOperation(Operation):
    """An operation that also answers in other media types than that of its handler."""

    alternatives: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        response = (self.responses or {})["200"]
        if isinstance(response, OpenAPIResponse) and response.content is not None:
            for media_type in self.alternatives:
                schema = Schema(type=OpenAPIType.STRING, content_media_type=media_type)
                response.content[media_type] = OpenAPIMediaType(schema=schema)


def or_in(*media_types: str) -> type[Operation]:
    """The `operation_class` of a handler that also answers in these media types, as text or bytes.

    That of the handler itself is its `media_type`, or the one of its `ResponseSpec`.
    """
    return type("AlternativeOperation", (_AlternativeOperation,), {"alternatives": media_types})
