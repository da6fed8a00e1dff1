"""Cross-site request forgery (CSRF): state-changing requests of other sites' pages are refused.

A browser sends a "simple" request (a form, or text/plain with `mode: no-cors`) to any address,
loopback included, without a preflight. With `AUTH=off` such a request would submit runs and name a
webhook that receives their outputs.
"""

from collections.abc import Collection
from urllib.parse import urlsplit

from litestar.exceptions import HTTPException
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change no state."""

FORM = {"form": True}
"""The `opt` of a handler for forms of the service's own pages."""

# Fetch Metadata (W3C): `none` is a request that the user made, not a page.
_TRUSTED_SITES = frozenset({"same-origin", "none"})


class CsrfGuard(ASGIMiddleware):
    """Refuses state-changing requests that a page of another site can send.

    A body must be JSON by its `Content-Type` (415). A browser sends that type to another site only
    after a preflight, which `app.api.middleware.cors` answers for `allowed_origins` alone. If the
    browser names the page's origin (`Origin`, `Sec-Fetch-Site`), it must be the service's own or in
    `allowed_origins` (403).
    """

    def __init__(self, allowed_origins: Collection[str] = ()) -> None:
        """`allowed_origins`: origins of trusted pages, such as `https://app.example.com`."""
        self._allowed = frozenset(origin.lower() for origin in allowed_origins)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        if scope.get("method", "GET") not in SAFE_METHODS:
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            self._check_origin(headers)
            if scope["route_handler"].opt.get("form"):
                _check_form(headers)
            else:
                _check_content_type(headers)
        await next_app(scope, receive, send)

    def _check_origin(self, headers: dict[bytes, str]) -> None:
        origin = headers.get(b"origin")
        if origin is not None and origin.lower() in self._allowed:
            return
        site = headers.get(b"sec-fetch-site", "none").lower()
        is_own = origin is None or _host_of(origin) == headers.get(b"host", "").lower()
        if site not in _TRUSTED_SITES or not is_own:
            problem = "Origin: not this service's own; ALLOWED_ORIGINS lists the others"
            raise HTTPException(problem, status_code=403)


def _host_of(origin: str) -> str | None:
    """The host and port of an origin; None for `null`. A proxy may have changed the scheme."""
    try:
        return urlsplit(origin.lower()).netloc or None
    except ValueError:
        return None


def _check_form(headers: dict[bytes, str]) -> None:
    is_own = headers.get(b"sec-fetch-site", "").lower() == "same-origin" or (
        _host_of(headers.get(b"origin", "")) == headers.get(b"host", "").lower()
    )
    if not is_own:
        raise HTTPException("Origin: forms are for this service's own pages", status_code=403)
    if _media_type(headers) != "application/x-www-form-urlencoded":
        problem = "Content-Type: must be application/x-www-form-urlencoded"
        raise HTTPException(problem, status_code=415)


def _check_content_type(headers: dict[bytes, str]) -> None:
    has_body = headers.get(b"content-length", "0") != "0" or b"transfer-encoding" in headers
    media_type = _media_type(headers)
    is_json = media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )
    if has_body and not is_json:
        given = f"{media_type[:100]!r}" if media_type else "missing"
        problem = f"Content-Type: {given}; a request body must be application/json"
        raise HTTPException(problem, status_code=415)


def _media_type(headers: dict[bytes, str]) -> str:
    return headers.get(b"content-type", "").partition(";")[0].strip().lower()
