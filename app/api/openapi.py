"""The OpenAPI description of this API, at `/schema`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Router
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, YamlRenderPlugin
from litestar.openapi.spec import Components, Schema, SecurityScheme
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition

from app.api.description_page import CONTENT_SECURITY_POLICY, PATH, DescriptionPage
from app.api.middleware.auth import PUBLIC
from app.version import VERSION

if TYPE_CHECKING:
    from litestar._openapi.schema_generation import SchemaCreator
    from litestar.handlers import HTTPRouteHandler


def openapi_config(*, needs_key: bool) -> OpenAPIConfig:
    """The configuration of the description; reading it requires no key."""
    config = OpenAPIConfig(
        title="Crew Capture",
        version=VERSION,
        operation_id_creator=_operation_id,
        render_plugins=[DescriptionPage(), JsonRenderPlugin(), YamlRenderPlugin()],
        openapi_router=Router(
            PATH,
            route_handlers=[],
            include_in_schema=False,
            opt=PUBLIC,
            response_headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY},
        ),
    )
    if needs_key:
        scheme = SecurityScheme(type="http", scheme="bearer")
        config.components = Components(security_schemes={"key": scheme})
        config.security = [{"key": []}]
    return config


def _operation_id(handler: HTTPRouteHandler, *_: Any) -> str:
    """The name of the handler: generated clients name their functions after it."""
    return handler.handler_name


class ClosedObjects(OpenAPISchemaPlugin):
    """Sets `additionalProperties` to false for structs that forbid unknown fields."""

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        if field_definition.is_union or not field_definition.is_subclass_of(msgspec.Struct):
            return False
        return bool(field_definition.annotation.__struct_config__.forbid_unknown_fields)

    def to_openapi_schema(
        self, field_definition: FieldDefinition, schema_creator: SchemaCreator
    ) -> Schema:
        schema: Schema = next(
            plugin.to_openapi_schema(field_definition, schema_creator)
            for plugin in schema_creator.plugins
            if plugin is not self and schema_creator.plugin_supports_field(plugin, field_definition)
        )
        schema.additional_properties = False
        return schema
