"""`/login`: a browser's session with an API key, if the service uses keys."""

import re
from typing import Annotated, Any, Final

from litestar import Request, Response, get, post
from litestar.datastructures import Cookie
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from litestar.response import Redirect, Template

from app.access.api_keys import ApiKeys, Role
from app.access.sessions import SESSION_SECONDS, WebSessions
from app.api.middleware.auth import PUBLIC, SESSION_COOKIE, session_token
from app.api.middleware.csrf import FORM
from app.web.forms import read_form
from app.web.rendering import page

_START: Final = "/"
# Of this service: `//host` and `/\host` are addresses of other hosts.
_OWN_PATH: Final = re.compile(r"/(?![/\\])[^\s\\]*")
_MAX_KEY_CHARACTERS: Final = 200


@get("/login", opt=PUBLIC)
async def show_login(
    request: Request[Any, Any, Any],
    needs_key: NamedDependency[bool],
    next_: Annotated[str, QueryParameter(name="next")] = _START,
) -> Response[Any]:
    return _form(request, next_) if needs_key else Redirect(_START, status_code=303)


@post("/login", opt={**PUBLIC, **FORM}, status_code=303)
async def log_in(
    request: Request[Any, Any, Any], needs_key: NamedDependency[bool]
) -> Response[Any]:
    """A session begins: the cookie has its token, which is not the key."""
    form = await read_form(request)
    next_ = form.get("next", _START)
    if not needs_key:
        return Redirect(_START, status_code=303)
    keys: ApiKeys = request.app.state.api_keys
    sessions: WebSessions = request.app.state.web_sessions
    given = form.get("key", "").strip()
    key = await keys.find(given) if len(given) <= _MAX_KEY_CHARACTERS else None
    if key is None:
        return _form(request, next_, "There is no such key, or it is revoked.")
    if key.role == Role.METRICS:
        return _form(request, next_, "This key reads metrics only. Use the key of a user or admin.")
    return Redirect(
        _own_path(next_),
        status_code=303,
        cookies=[_cookie(request, await sessions.open(key), SESSION_SECONDS)],
    )


@post("/logout", opt={**PUBLIC, **FORM}, status_code=303)
async def log_out(request: Request[Any, Any, Any]) -> Redirect:
    sessions: WebSessions = request.app.state.web_sessions
    if (token := session_token(request.scope)) is not None:
        await sessions.close(token)
    return Redirect("/login", status_code=303, cookies=[_cookie(request, "", 0)])


def _form(request: Request[Any, Any, Any], next_: str, problem: str = "") -> Template:
    return page(
        request,
        "login.html",
        status_code=401 if problem else 200,
        next=_own_path(next_),
        problem=problem,
    )


def _own_path(path: str) -> str:
    return path if _OWN_PATH.fullmatch(path) else _START


def _cookie(request: Request[Any, Any, Any], value: str, seconds: int) -> Cookie:
    """The session's cookie: no script reads it, and no other site's form sends it."""
    return Cookie(
        key=SESSION_COOKIE,
        value=value,
        max_age=seconds,
        httponly=True,
        secure=request.url.scheme == "https",
        samesite="lax",
    )
