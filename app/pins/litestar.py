"""Litestar's internals: `app.api.openapi` changes the schemas that it makes."""

from app.pins.pin import Pin

PINS: tuple[Pin, ...] = (
    Pin(
        "litestar._openapi.schema_generation.schema:SchemaCreator.__init__",
        "588aca0967a3",
        "sets `plugins`, among which the next plugin for a field is found",
    ),
    Pin(
        "litestar._openapi.schema_generation.schema:SchemaCreator.plugin_supports_field",
        "b9d2dba13bb4",
        "whether a plugin makes the schema of a field",
    ),
)
