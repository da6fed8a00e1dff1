"""The parameters of requests: their names on the wire, and the refusal of unknown ones."""

from collections.abc import Iterator
from typing import Any

from litestar import Request
from litestar.exceptions import ClientException
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter
from litestar.typing import FieldDefinition

from app.api.problems import problems_text, unknown_name


def wire_name(parameter: FieldDefinition) -> str:
    """The name of a parameter in requests: of a header, a query parameter or a part of the path."""
    definition = parameter.kwarg_definition
    aliases = (getattr(definition, kind, None) for kind in ("header", "query", "name"))
    return next(filter(None, aliases), parameter.name)


def with_query_prefix(prefix: str) -> dict[str, Any]:
    """The `opt` of a handler with query parameters of any name after the prefix."""
    return {"query_prefix": prefix}


def refuse_unknown_parameters(request: Request[Any, Any, Any]) -> None:
    """Refuse query parameters that the handler does not have: Litestar's `before_request` hook.

    A parameter that is misspelt would have no effect. Raises ClientException (400).
    """
    if request.scope["query_string"] and (text := problems_text(_problems(request))):
        raise ClientException(text)


def _problems(request: Request[Any, Any, Any]) -> Iterator[str]:
    handler: HTTPRouteHandler = request.route_handler
    parameters = handler.parsed_fn_signature.parameters.values()
    known = [wire_name(p) for p in parameters if isinstance(p.kwarg_definition, QueryParameter)]
    prefix: str | None = handler.opt.get("query_prefix")
    for name in dict.fromkeys(request.query_params):
        if name not in known and not (prefix and name.startswith(prefix)):
            yield unknown_name("query parameter", name, known)
