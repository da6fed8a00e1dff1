"""Authentication: the `Caller` of every request, including requests to SDK applications.

A request has an API key in `Authorization`, or the cookie of a browser's session. Requests of a
session that change state also have its CSRF token, which no page of another site can read.
"""

import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, TypeAlias

from litestar import Request
from litestar.datastructures import State
from litestar.exceptions import (
    ClientException,
    NotAuthorizedException,
    PermissionDeniedException,
)
from litestar.middleware import ASGIMiddleware
from litestar.openapi.spec import Operation
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from app.access.api_keys import ApiKey, ApiKeys, Role, caller_of
from app.access.callers import Caller, Quota
from app.access.errors import RateLimitExceeded
from app.access.rate_limits import RateLimits
from app.access.sessions import Session, WebSessions
from app.api.end_users import end_user_of_header
from app.api.middleware.csrf import SAFE_METHODS
from app.api.middleware.open_requests import KeyRevoked, OpenRequests
from app.pacer import identify, turn

CallerRequest: TypeAlias = Request[Caller, Any, State]
"""A request whose `user` is the `Caller`."""

PUBLIC = {"public": True}
"""The `opt` of a handler that requires no key; its `operation_class` is `PublicOperation`."""

FOR_METRICS = {"roles": frozenset({Role.METRICS, Role.ADMIN})}
"""The `opt` of a handler for keys that may read metrics. Others are for users and admins."""

FOR_ADMINS = {"roles": frozenset({Role.ADMIN})}
"""The `opt` of a handler for keys of admins alone."""

RPC = {"rpc": True}
"""The `opt` of a handler whose `read_message` responds to callers beyond their rate limit."""

SESSION_COOKIE = "crew_capture_session"
"""The cookie with the token of a session."""

CSRF_HEADER = "x-csrf-token"
"""The header of a session's CSRF token; forms have a field instead."""

_ROLES = frozenset({Role.USER, Role.ADMIN})
_MAX_ADDRESS_CHARACTERS = 64
# Keys of this service have 59 characters.
_MAX_KEY_CHARACTERS = 200
_UNKNOWN_KEY = "Authorization: no such API key", ' error="invalid_token"'


@dataclass
class PublicOperation(Operation):
    """The description of an operation that requires no key, whatever the others require."""

    def __post_init__(self) -> None:
        self.security = []  # Litestar leaves out an empty list


class AuthMiddleware(ASGIMiddleware):
    """Sets `scope["user"]`, which is `request.user`, to the `Caller`.

    `request.auth` is the `Session` of a request with a session's cookie, otherwise None.

    Raises NotAuthorizedException (401), PermissionDeniedException (403), RateLimitExceeded (429)
    and ClientException (400).
    The `exception_handlers` of a handler or a router apply to them.

    A request waits for its caller's turn. With a wrong key or none, its caller is its address.
    """

    def __init__(
        self,
        *,
        needs_key: bool,
        allowed_hosts: Collection[str] | None,
        quota: Quota | None = None,
        is_rate_limited: bool = False,
    ) -> None:
        """Configure the checks.

        `allowed_hosts`: host names of this service, with any port; None allows any name.
        `quota`: the default quota of a caller; its key can override parts of it.
        """
        self._needs_key = needs_key
        self._hosts = encoded_hosts(allowed_hosts)
        self._quota = quota
        self._is_rate_limited = is_rate_limited

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        check_host(scope, self._hosts)
        address = _address(scope)
        scope["auth"] = None
        if scope["route_handler"].opt.get("public"):
            scope["user"] = Caller(None, is_admin=not self._needs_key, address=address)
            await _turn_of(scope["user"])
        else:
            caller = await self._caller(scope, address)
            if (end_user := _header(scope, b"x-end-user")) is not None:
                caller = replace(caller, end_user=end_user_of_header(end_user))
            scope["user"] = caller
            await _turn_of(caller)
            if self._is_rate_limited:
                send = await self._count(scope, send, caller.owner, address)
            if caller.owner is not None:
                await _respond_until_revoked(caller.owner, scope, receive, send, next_app)
                return
        await next_app(scope, receive, send)

    async def _count(
        self, scope: Scope, send: Send, owner: str | None, address: str | None
    ) -> Send:
        """Count the request; the returned `send` adds `RateLimit-*` headers."""
        try:
            return _with_limit_headers(send, await _count_request(scope, owner, address))
        except RateLimitExceeded as error:
            if not scope["route_handler"].opt.get("rpc"):
                raise
            scope["state"]["refusal"] = error
            return send

    async def _caller(self, scope: Scope, address: str | None) -> Caller:
        if not self._needs_key:
            return Caller(None, is_admin=True, address=address, quota=self._quota)
        try:
            key = await _key(scope)
        except NotAuthorizedException as error:
            await _turn_of(Caller(None, is_admin=False, address=address))
            if self._is_rate_limited:
                limits = await _count_request(scope, None, address)
                error.headers = {**(error.headers or {}), **limits}
            raise
        allowed = scope["route_handler"].opt.get("roles", _ROLES)
        if key.role not in allowed:
            names = " or ".join(sorted(allowed))
            raise PermissionDeniedException(f"the role of this key is {key.role}, not {names}")
        return caller_of(key, address, self._quota)


def encoded_hosts(names: Collection[str] | None) -> Collection[bytes] | None:
    """The host names of the service as headers have them; None allows any name."""
    return None if names is None else {name.encode() for name in names}


def check_host(scope: Scope, hosts: Collection[bytes] | None) -> None:
    """Refuse a foreign Host header, as protection against DNS rebinding.

    DNS rebinding: a malicious site can point its hostname at 127.0.0.1 and send requests from a
    visitor's browser.
    """
    host = _header(scope, b"host")
    if hosts is None or host is None:  # every browser sends the header
        return
    name, _, port = host.rpartition(b":")
    if host.lower() not in hosts and not (port.isdigit() and name.lower() in hosts):
        raise ClientException("Host: not a name of this service; ALLOWED_HOSTS lists them")


async def _turn_of(caller: Caller) -> None:
    identify(caller.name)
    await turn()


def _address(scope: Scope) -> str | None:
    """The client's IP address; behind a trusted proxy, the server sets it from a header.

    Another text could equal the id of an API key, and use up the limits of that key.
    """
    client = scope["client"]
    if client is None:
        return None
    try:
        return str(ip_address(client[0]))[:_MAX_ADDRESS_CHARACTERS]
    except ValueError:
        return None


async def _key(scope: Scope) -> ApiKey:
    """The API key of a request. Raises NotAuthorizedException."""
    given = _header(scope, b"authorization")
    if given is None:
        session = await _session(scope)
        if session is not None:
            scope["auth"] = session
            return session.key
        raise _unauthorized("an API key is needed, as Authorization: Bearer KEY")
    scheme, _, key = given.decode("latin-1").partition(" ")
    if scheme.lower() != "bearer":
        raise _unauthorized("Authorization: not of the form Bearer KEY")
    keys: ApiKeys = scope["litestar_app"].state.api_keys
    key = key.strip()
    found = await keys.find(key) if len(key) <= _MAX_KEY_CHARACTERS else None
    if found is None:
        raise _unauthorized(*_UNKNOWN_KEY)
    return found


async def _session(scope: Scope) -> Session | None:
    """The session of a request without a key. Raises PermissionDeniedException."""
    token = session_token(scope)
    if token is None:
        return None
    sessions: WebSessions = scope["litestar_app"].state.web_sessions
    session = await sessions.find(token)
    is_form = scope["route_handler"].opt.get("form")  # has the token as a field
    if session is not None and scope.get("method") not in SAFE_METHODS and not is_form:
        given = (_header(scope, CSRF_HEADER.encode()) or b"").decode("latin-1")
        check_csrf_token(session, given)
    return session


def session_token(scope: Scope) -> str | None:
    """The token in the cookie of a session; None without one."""
    for header in (value for name, value in scope["headers"] if name == b"cookie"):
        for cookie in header.decode("latin-1").split(";"):
            name, _, value = cookie.strip().partition("=")
            if name == SESSION_COOKIE and len(value) <= _MAX_KEY_CHARACTERS:
                return value
    return None


def check_csrf_token(session: Session, given: str) -> None:
    """Refuse a state-changing request without the session's token (403)."""
    if not hmac.compare_digest(given.encode(), session.csrf_token.encode()):
        problem = "the CSRF token of the session is missing or wrong; load the page again"
        raise PermissionDeniedException(problem)


async def _respond_until_revoked(
    key_id: str, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp
) -> None:
    """Respond to a request; end it as soon as its key is revoked.

    A response that has begun ends as it stands. Otherwise NotAuthorizedException is raised.
    """
    open_requests: OpenRequests = scope["litestar_app"].state.open_requests
    has_begun = is_complete = False

    async def send_and_note(message: Message) -> None:
        nonlocal has_begun, is_complete
        has_begun = True
        is_complete = message["type"] == "http.response.body" and not message.get("more_body")
        await send(message)

    try:
        async with open_requests.hold(key_id):
            await next_app(scope, receive, send_and_note)
    except KeyRevoked:
        if not has_begun:
            raise _unauthorized(*_UNKNOWN_KEY) from None
        if not is_complete:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _count_request(scope: Scope, owner: str | None, address: str | None) -> Mapping[str, str]:
    """Count a request; returns its `RateLimit-*` headers. Raises RateLimitExceeded."""
    rates: RateLimits = scope["litestar_app"].state.rate_limits
    return await rates.count([name for name in (owner, address) if name] or [""])


def _with_limit_headers(send: Send, limits: Mapping[str, str]) -> Send:
    """A `send` that adds the headers to a response without limit headers of its own."""
    fields = [(name.lower().encode(), value.encode()) for name, value in limits.items()]

    async def send_with_limits(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            if not any(name.lower() == b"ratelimit-limit" for name, _ in headers):
                message["headers"] = [*headers, *fields]
        await send(message)

    return send_with_limits


def _unauthorized(problem: str, challenge: str = "") -> NotAuthorizedException:
    return NotAuthorizedException(problem, headers={"WWW-Authenticate": f"Bearer{challenge}"})


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)
