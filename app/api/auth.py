"""Who asks: the `Caller` of every request, to mounted applications too."""

from collections.abc import Collection
from typing import Any, TypeAlias

from litestar import Request
from litestar.datastructures import State
from litestar.exceptions import ClientException, NotAuthorizedException
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from app.api.keys import ApiKeys, Role
from app.runs.callers import Caller

CallerRequest: TypeAlias = Request[Caller, Any, State]
"""A request whose `user` is the `Caller`."""

PUBLIC = {"public": True}
"""The `opt` of a handler that needs no key."""

# Ours have 59 characters.
_MAX_KEY_CHARACTERS = 200


class Identity(ASGIMiddleware):
    """Puts the `Caller` at `scope["user"]`, which Litestar calls `request.user`.

    Raises NotAuthorizedException (401) and ClientException (400), for a handler's or a router's
    own `exception_handlers` to answer.
    """

    def __init__(self, *, needs_key: bool, allowed_hosts: Collection[str] | None) -> None:
        """`allowed_hosts`: names that this service is asked by, with any port; None: any name."""
        self._needs_key = needs_key
        self._hosts = None if allowed_hosts is None else {h.encode() for h in allowed_hosts}

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        self._check_host(scope)
        client = scope["client"]
        address = client[0] if client else None
        if not self._needs_key:
            scope["user"] = Caller(None, is_admin=True, address=address)
        elif scope["route_handler"].opt.get("public"):
            scope["user"] = Caller(None, is_admin=False, address=address)
        else:
            scope["user"] = await _owner_of_key(scope, address)
        await next_app(scope, receive, send)

    def _check_host(self, scope: Scope) -> None:
        """A page of another site whose name was bound to this address must not ask as this user."""
        host = _header(scope, b"host")
        if self._hosts is None or host is None:  # every browser sends one
            return
        name, _, port = host.rpartition(b":")
        if host.lower() not in self._hosts and not (port.isdigit() and name.lower() in self._hosts):
            raise ClientException("Host: not a name of this service; ALLOWED_HOSTS lists them")


async def _owner_of_key(scope: Scope, address: str | None) -> Caller:
    given = _header(scope, b"authorization")
    if given is None:
        raise _unauthorized("an API key is needed, as Authorization: Bearer KEY")
    scheme, _, key = given.decode("latin-1").partition(" ")
    if scheme.lower() != "bearer":
        raise _unauthorized("Authorization: not of the form Bearer KEY")
    keys: ApiKeys = scope["litestar_app"].state.api_keys
    key = key.strip()
    found = await keys.find(key) if len(key) <= _MAX_KEY_CHARACTERS else None
    if found is None:
        raise _unauthorized("Authorization: no such API key", ' error="invalid_token"')
    return Caller(found.key_id, is_admin=found.role == Role.ADMIN, address=address)


def _unauthorized(problem: str, challenge: str = "") -> NotAuthorizedException:
    return NotAuthorizedException(problem, headers={"WWW-Authenticate": f"Bearer{challenge}"})


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == wanted), None)
