"""The page at `/schema` that shows the API's description: Swagger UI, with files of our own.

The page loads nothing from other hosts, and no script from within itself.
"""

from typing import Any

from litestar import Request, Router, get
from litestar.datastructures import CacheControlHeader
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.static_files import create_static_files_router
from openapi_ui_bundles import swagger_ui

from app.api.middleware.auth import PUBLIC

PATH = "/schema"

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # Swagger UI sets styles of elements
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

_PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Crew Capture API</title>
<link rel="icon" href="{PATH}/viewer/favicon-32x32.png">
<link rel="stylesheet" href="{PATH}/viewer/swagger-ui.css">
<script src="{PATH}/viewer/swagger-ui-bundle.js" defer></script>
<script src="{PATH}/start.js" defer></script>
</head>
<body><div id="description"></div></body>
</html>
"""

# Without a `validatorUrl`, the viewer sends the description's address to a public validator.
_START = f"""SwaggerUIBundle({{
  url: "{PATH}/openapi.json",
  dom_id: "#description",
  deepLinking: true,
  validatorUrl: null,
}});
"""


class DescriptionPage(OpenAPIRenderPlugin):
    """The page, its script, and the viewer's files from their package."""

    def __init__(self) -> None:
        super().__init__(path="/")

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The same page for every description: its script loads the description."""
        return _PAGE.encode()

    def receive_router(self, router: Router) -> None:
        """Add the routes of what the page loads."""
        router.register(_start)
        router.register(
            create_static_files_router(
                "/viewer",
                [swagger_ui.static_path],
                include_in_schema=False,
                opt=PUBLIC,
                cache_control=CacheControlHeader(public=True, max_age=3600),
            )
        )


@get("/start.js", media_type="text/javascript; charset=utf-8", sync_to_thread=False)
def _start() -> str:
    return _START
