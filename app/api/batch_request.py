"""The body of a batch, decoded run by run, so that other requests are handled in between."""

from typing import Any, Final

import msgspec
from litestar import Request
from litestar.datastructures import State
from litestar.exceptions import SerializationException
from litestar.serialization import decode_json

from app.access.callers import Caller
from app.pacer import next_step
from app.runs import InvalidInput, check_batch_values

MAX_BATCH: Final = 1000
MAX_BATCH_BODY_BYTES: Final = 20_000_000
# Like the body of a request for one run.
_MAX_RUN_BYTES: Final = 1_000_000
# So many bytes are decoded in one step, at least.
_STEP_BYTES: Final = 65_536


class BatchHttpRequest(Request[Caller, Any, State]):
    """A request for a batch. Its JSON is decoded run by run, in several steps.

    Decoding 20 MB at once blocks the event loop for most of a second.
    """

    async def json(self) -> Any:
        """The decoded body; of a list that is too long, only what shows it.

        Raises InvalidInput: the body is no JSON object, a part of it has more than 1 MB, or all
        inputs exceed `MAX_BATCH_VALUES`.
        """
        try:
            members = decode_json(await self.body(), dict[str, msgspec.Raw])
        except SerializationException as error:
            if isinstance(error.__cause__, msgspec.ValidationError):
                raise InvalidInput("body", "must be a JSON object") from None
            raise
        batch: dict[str, Any] = {}
        for name, raw in members.items():
            if name == "inputs" and bytes(memoryview(raw)[:1]) == b"[":
                await next_step()  # each pass over 20 MB lasts tens of milliseconds
                batch[name] = await _decoded_runs(decode_json(raw, list[msgspec.Raw]))
            else:
                batch[name] = _decoded_part(raw, name[:100])
        return batch


async def _decoded_runs(raw_runs: list[msgspec.Raw]) -> list[Any]:
    runs = []
    values = undelayed = 0
    for index, raw in enumerate(raw_runs[: MAX_BATCH + 1]):
        run = _decoded_part(raw, f"inputs[{index}]")
        values = check_batch_values(run, values)
        runs.append(run)
        undelayed += len(raw)
        if undelayed > _STEP_BYTES:
            await next_step()
            undelayed = 0
    return runs


def _decoded_part(raw: msgspec.Raw, name: str) -> Any:
    if len(raw) > _MAX_RUN_BYTES:
        raise InvalidInput(name, f"{len(raw):,} bytes of JSON; at most 1,000,000 are allowed")
    return decode_json(raw)
