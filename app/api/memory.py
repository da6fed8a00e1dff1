"""`/api/memory`: what crews remember of a caller's runs: export and delete."""

from typing import Final

import msgspec
from litestar import Router, delete, get
from litestar.params import FromQuery

from app.api.dependencies import StoredMemories
from app.api.errors import error_responses
from app.api.middleware.auth import CallerRequest
from app.runs import MemoryView, clean_text

_MAX_CHARACTERS: Final = 200


class MemoryList(msgspec.Struct):
    """All memories of a caller and its end users, in the order of crews and ids."""

    memories: list[MemoryView]


class DeletedMemories(msgspec.Struct):
    """The number of memories that were deleted."""

    deleted: int


@get("/", summary="Export memories", responses=error_responses({}))
async def get_memory(
    memories: StoredMemories, request: CallerRequest, crew: FromQuery[str | None] = None
) -> MemoryList:
    """Your own; with `X-End-User`, those of this end user only. `crew` limits them to one crew."""
    found = memories.export(request.user, _crew(crew))
    return MemoryList([memory async for memory in found])


@delete("/", summary="Delete memories", status_code=200, responses=error_responses({}))
async def delete_memory(
    memories: StoredMemories, request: CallerRequest, crew: FromQuery[str | None] = None
) -> DeletedMemories:
    """The same memories that `GET` exports. Runs that execute now may store new ones."""
    return DeletedMemories(await memories.delete(request.user, _crew(crew)))


memory_router = Router("/api/memory", route_handlers=[get_memory, delete_memory], tags=["memory"])


def _crew(crew: str | None) -> str | None:
    return crew and clean_text(crew, "crew", _MAX_CHARACTERS)
