"""The MCP SDK's internals: `app.api.mcp` replaces a part of its server."""

from app.pins.pin import Pin

PINS: tuple[Pin, ...] = (
    Pin(
        "mcp.server.lowlevel.server:Server._handle_message",
        "00e94d1b5a2d",
        "replaces the process's warnings hook for each request; `warnings` is replaced for it",
    ),
    Pin(
        "mcp.server.streamable_http_manager:StreamableHTTPSessionManager.handle_request",
        "a675a7b9b123",
        "handles requests without a session, behind our own route",
    ),
    Pin(
        "mcp.server.streamable_http_manager:StreamableHTTPSessionManager._handle_stateless_request",
        "f699178a2baf",
        "runs a server per request, so that any process answers any request",
    ),
)
