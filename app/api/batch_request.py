"""The body of a batch, decoded run by run, so that other requests are handled in between."""

import re
from functools import cache
from typing import Any, Final

import msgspec

from app.api.json_request import JsonRequest
from app.api.problems import unknown_name
from app.json_decoding import STEP_BYTES, decode
from app.pacer import next_step
from app.runs import InvalidInput, check_batch_values

MAX_BATCH: Final = 1000
MAX_BATCH_BODY_BYTES: Final = 10_000_000
# Like the body of a request for one run.
_MAX_RUN_BYTES: Final = 1_000_000

_Raw = msgspec.Raw | msgspec.UnsetType
# The runs of a list, and one that shows that there are too many. The decoder skips further ones: a
# list of 10 MB may have millions.
_RawRuns = msgspec.defstruct(
    "_RawRuns",
    [(f"run_{index}", _Raw, msgspec.UNSET) for index in range(MAX_BATCH + 1)],
    array_like=True,
)
_decode_runs: Final = msgspec.json.Decoder(_RawRuns).decode
_UNKNOWN_FIELD: Final = re.compile(r"unknown field `(.*)`", re.DOTALL)


class BatchHttpRequest(JsonRequest):
    """A request for a batch. Its JSON is decoded run by run, in several steps.

    Decoding 10 MB at once blocks the event loop for hundreds of milliseconds.
    """

    async def _decoded(self, body: bytes) -> Any:
        """The decoded body; of a list that is too long, only what shows it.

        Raises InvalidInput: the body is no JSON object, or has an unknown field. A part of it has
        more than 1 MB, or all inputs exceed `MAX_BATCH_VALUES`.
        """
        batch: dict[str, Any] = {}
        for name, raw in self._members(body).items():
            if name == "inputs" and bytes(memoryview(raw)[:1]) == b"[":
                await next_step()  # each pass over 10 MB lasts tens of milliseconds
                batch[name] = await _decoded_runs(raw)
            else:
                batch[name] = _decoded_part(raw, name)
        return batch

    def _members(self, body: bytes) -> dict[str, msgspec.Raw]:
        fields = {
            field.name: field
            for field in msgspec.structs.fields(self.route_handler.signature_model)
        }
        type_ = _raw_type(fields["data"].type)
        try:
            members = msgspec.json.decode(body, type=type_)
        except msgspec.ValidationError as error:
            unknown = _UNKNOWN_FIELD.search(str(error))
            if unknown and len(body) <= STEP_BYTES:  # so that the error names more than one
                return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
            if unknown:
                known = [field.encode_name for field in msgspec.structs.fields(type_)]
                name, _, problem = unknown_name("field", unknown[1], known).partition(": ")
                raise InvalidInput(name, problem) from None
            raise InvalidInput("body", "must be a JSON object") from None
        named = msgspec.structs.asdict(members)
        return {name: raw for name, raw in named.items() if raw is not msgspec.UNSET}


@cache
def _raw_type(type_: Any) -> Any:
    """The type of the request with undecoded fields, so that others are refused as they arrive."""
    names = [field.encode_name for field in msgspec.structs.fields(type_)]
    return msgspec.defstruct(
        "_RawMembers", [(name, _Raw, msgspec.UNSET) for name in names], forbid_unknown_fields=True
    )


async def _decoded_runs(raw_list: msgspec.Raw) -> list[Any]:
    raw_runs = [raw for raw in msgspec.structs.astuple(_decode_runs(raw_list)) if raw]
    runs = []
    values = undelayed = 0
    for index, raw in enumerate(raw_runs):
        run = _decoded_part(raw, f"inputs[{index}]")
        values = check_batch_values(run, values)
        runs.append(run)
        undelayed += len(raw)
        if undelayed > STEP_BYTES:
            await next_step()
            undelayed = 0
    return runs


def _decoded_part(raw: msgspec.Raw, name: str) -> Any:
    if len(raw) > _MAX_RUN_BYTES:
        raise InvalidInput(name, f"{len(raw):,} bytes of JSON; at most 1,000,000 are allowed")
    return decode(raw)
