"""Forms of the pages: their fields, and the CSRF token of the session."""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from litestar import Request
from litestar.exceptions import ClientException

from app.api.middleware.auth import check_csrf_token
from app.pacer import next_step

_MAX_FIELDS: Final = 1000
# So many bytes of a field are unquoted in one step.
_STEP_BYTES: Final = 32_768


async def read_form(request: Request[Any, Any, Any]) -> Mapping[str, str]:
    """The fields of a form, the last value of each.

    Raises PermissionDeniedException (403) without the session's CSRF token, ClientException (400)
    for a body that is no form.
    """
    body = await request.body()
    if body.count(b"&") >= _MAX_FIELDS:
        raise ClientException(f"body: at most {_MAX_FIELDS:,} fields are allowed")
    form = {}
    try:
        for pair in filter(None, body.split(b"&")):
            name, _, value = pair.partition(b"=")
            form[await _unquoted(name)] = await _unquoted(value)
    except ValueError:
        raise ClientException("body: not a form in UTF-8") from None
    token = form.pop("csrf_token", "")
    if request.auth is not None:
        check_csrf_token(request.auth, token)
    return form


async def _unquoted(quoted: bytes) -> str:
    """A name or a value. A megabyte needs a tenth of a second, so it is unquoted in steps."""
    parts = []
    start = 0
    while start < len(quoted):
        end = start + _STEP_BYTES
        if start:
            await next_step()
        if (escape := quoted.rfind(b"%", end - 2, end)) >= 0:
            end = escape  # an escape has three characters, and is not divided
        parts.append(unquote_to_bytes(quoted[start:end].replace(b"+", b" ")))
        start = end
    return b"".join(parts).decode()
