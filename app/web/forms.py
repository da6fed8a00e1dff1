"""Forms of the pages: their fields, and the CSRF token of the session."""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from litestar import Request
from litestar.exceptions import ClientException

from app.api.middleware.auth import check_csrf_token

_MAX_FIELDS: Final = 1000


async def read_form(request: Request[Any, Any, Any]) -> Mapping[str, str]:
    """The fields of a form, the last value of each.

    Raises PermissionDeniedException (403) without the session's CSRF token, ClientException (400)
    for a body that is no form.
    """
    try:
        text = (await request.body()).decode()
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError:
        raise ClientException("body: not a form in UTF-8") from None
    form = dict(pairs)
    token = form.pop("csrf_token", "")
    if request.auth is not None:
        check_csrf_token(request.auth, token)
    return form
