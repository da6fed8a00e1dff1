"""Links of the OpenAPI description: from the response of one operation to the next operation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from litestar.openapi.spec import Link, OpenAPIResponse, Operation

_OF_RUN = (
    "get_run",
    "run_events",
    "list_run_calls",
    "get_output",
    "get_outputs",
    "cancel_run",
    "resume_run",
    "delete_run",
)
_OF_BATCH = ("get_batch", "cancel_batch")
_OF_SCHEDULE = (
    "get_schedule",
    "list_schedule_times",
    "update_schedule",
    "pause_schedule",
    "resume_schedule",
    "run_schedule",
    "delete_schedule",
)


@dataclass
class _LinkedOperation(Operation):
    """An operation whose successful response has links."""

    of_success: ClassVar[Mapping[str, Link]]

    def __post_init__(self) -> None:
        for status, response in (self.responses or {}).items():
            if status.startswith("2") and isinstance(response, OpenAPIResponse):
                response.links = dict(self.of_success)


def linked(links: Mapping[str, Link]) -> type[Operation]:
    """The `operation_class` of a handler whose successful response has these links."""
    return type("LinkedOperation", (_LinkedOperation,), {"of_success": links})


def links_to_run(pointer: str) -> dict[str, Link]:
    """Links to the operations on a run, whose id is at this JSON pointer in the response."""
    return _links(_OF_RUN, "run_id", pointer)


def links_to_batch(pointer: str) -> dict[str, Link]:
    """Links to the operations on a batch, whose id is at this JSON pointer in the response."""
    return _links(_OF_BATCH, "batch_id", pointer)


def links_to_schedule(pointer: str) -> dict[str, Link]:
    """Links to the operations on a schedule, whose id is at this JSON pointer in the response."""
    return _links(_OF_SCHEDULE, "schedule_id", pointer)


def _links(operations: Iterable[str], parameter: str, pointer: str) -> dict[str, Link]:
    return {
        operation: Link(operation_id=operation, parameters={parameter: f"$response.body#{pointer}"})
        for operation in operations
    }
