"""Requests whose JSON is decoded in a time that is linear in its size."""

from typing import Any, Final

import msgspec
from litestar import Request
from litestar.datastructures import State
from litestar.exceptions import SerializationException

from app.access.callers import Caller
from app.json_decoding import decode
from app.runs import InvalidInput

_DECODED: Final = "decoded_json"


class JsonRequest(Request[Caller, Any, State]):
    """A request; its JSON is decoded once, also if the response is an error."""

    async def json(self) -> Any:
        """The decoded body; None if it is empty. Raises SerializationException, InvalidInput."""
        state = self.scope["state"]
        if _DECODED not in state:
            body = await self.body()
            try:
                state[_DECODED] = await self._decoded(body or b"null")
            except msgspec.DecodeError as error:
                raise SerializationException(str(error)) from error
            except UnicodeDecodeError:
                raise InvalidInput("body", "not UTF-8") from None
            except RecursionError:
                raise InvalidInput("body", "nested too deep") from None
        return state[_DECODED]

    async def _decoded(self, body: bytes) -> Any:
        return decode(body)


def decoded_json(request: Request[Any, Any, Any]) -> Any:
    """The JSON of a request, if it is decoded; otherwise None."""
    return request.scope["state"].get(_DECODED)
