"""The end user whose request it is: a header of every request, or a field of a run's body.

A client with many users and one API key names them by ids of its own. The service trusts it to name
the right one. An end user has no key.
"""

from dataclasses import replace
from typing import Annotated, Final

import msgspec

from app.access.callers import Caller
from app.runs import InvalidInput, clean_text

HEADER: Final = "X-End-User"
_MAX_CHARACTERS: Final = 200

EndUser = (
    Annotated[
        str,
        msgspec.Meta(
            min_length=1,
            max_length=_MAX_CHARACTERS,
            description=f"Your own id of the end user whose run it is, as the header {HEADER}",
        ),
    ]
    | None
)


def end_user_of_header(value: bytes) -> str:
    """The id of an end user in the header. Raises InvalidInput."""
    try:
        return _checked(value.decode(), HEADER)
    except UnicodeDecodeError:
        raise InvalidInput(HEADER, "must be UTF-8") from None


def on_behalf_of(caller: Caller, user: str | None) -> Caller:
    """The caller with the end user that a body names. Raises InvalidInput.

    The header of the same request must name no other.
    """
    if user is None:
        return caller
    user = _checked(user, "user")
    if caller.end_user not in ("", user):
        raise InvalidInput("user", f"is another end user than in the header {HEADER}")
    return replace(caller, end_user=user)


def _checked(user: str, field: str) -> str:
    user = clean_text(user, field, _MAX_CHARACTERS).strip()
    if not user or not user.isprintable():
        raise InvalidInput(field, "must be an id of printable characters")
    return user
