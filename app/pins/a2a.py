"""The A2A SDK's internals: `app.api.a2a` calls its dispatcher without the SDK's routes."""

from app.pins.pin import Pin

PINS: tuple[Pin, ...] = (
    Pin(
        "a2a.server.routes.jsonrpc_dispatcher:JsonRpcDispatcher.__init__",
        "590467184c93",
        "accepts the request handler, the context builder and the switch for version 0.3",
    ),
    Pin(
        "a2a.server.routes.jsonrpc_dispatcher:JsonRpcDispatcher.handle_requests",
        "365d2c1e4578",
        "reads the request and maps errors of the handler to JSON-RPC",
    ),
    Pin(
        "a2a.server.request_handlers.request_handler:validate_request_params",
        "89e12cf5847f",
        "checks required fields and closes the generator of a stream",
    ),
)
