"""Records of a run's calls to models and tools: few numbers each, and texts only if they are kept.

Without `KEEP_MESSAGES`, a record holds no text of users or models. The names of models, tools and
tasks are the crew's.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from app.prices import usd

_NANOSECONDS: Final = 1e9

MAX_CALLS_PER_ATTEMPT: Final = 10_000
"""How many calls of an attempt are recorded."""

MAX_CONTENT_BYTES: Final = 4 * 2**20
"""How many bytes of texts, as JSON, a run keeps with `KEEP_MESSAGES`."""

MAX_CONTENT_BYTES_PER_PAGE: Final = 2**20
"""How many bytes of texts a page of calls has, if it has more than one call."""


class CallRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A call to a model or to a tool. The database keeps it as JSON, with these names.

    `id` counts the calls of the attempt from 1, in the order of their starts. A call to a tool has
    a `tool`, one to a model a `model`. `index` is the task's. `within` is the id of the tool call
    that makes it. Times are in nanoseconds since the epoch, `waited` in nanoseconds. A call without
    an end is under way, or was so as the attempt ended. `error_type` is the name of the error's
    class. `cost` is in nano-dollars (1e-9 USD), known once the call has ended. `content_bytes` is
    the size of its texts as JSON; `content_omitted` is set if the run had no room for them.
    """

    attempt: int
    id: int
    started_at: int
    finished_at: int | None = None
    first_token_at: int | None = None
    task: str | None = None
    index: int | None = None
    within: int | None = None
    model: str | None = None
    tool: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    finish_reason: str | None = None
    retries: int = 0
    waited: int = 0
    error_type: str | None = None
    cost: int | None = None
    content_bytes: int = 0
    content_omitted: bool = False

    @property
    def began_at(self) -> datetime:
        """The time of the start."""
        return datetime.fromtimestamp(self.started_at / _NANOSECONDS, UTC)

    @property
    def ended_at(self) -> datetime | None:
        """The time of the end; None for a call without one."""
        if self.finished_at is None:
            return None
        return datetime.fromtimestamp(self.finished_at / _NANOSECONDS, UTC)

    @property
    def first_token_seconds(self) -> float | None:
        """The time from the start to the first token of the answer; None if none was streamed."""
        if self.first_token_at is None:
            return None
        return (self.first_token_at - self.started_at) / _NANOSECONDS

    @property
    def waited_seconds(self) -> float:
        """The time for which the call waited before it was sent."""
        return self.waited / _NANOSECONDS

    @property
    def cost_usd(self) -> float | None:
        """The cost in USD; None if the model has no price, or the call no end."""
        return None if self.cost is None else usd(self.cost)


class CallContent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The texts of a call, as JSON values.

    A call to a model has `messages`, `tools` (their definitions) and an `answer`; one to a tool has
    an `input` and a `result`.
    """

    messages: Any = None
    tools: Any = None
    answer: Any = None
    input: Any = None
    result: Any = None


CallId = tuple[int, int]
"""The attempt and the id of a call: calls of a run are in the order of these."""


@dataclass(frozen=True, slots=True)
class CallBatch:
    """Calls of one attempt that are stored together, as the row of this `number`.

    `contents` are the compressed texts of those that have any, by the ids of the calls.
    """

    run_id: UUID
    attempt: int
    number: int
    calls: Sequence[CallRecord]
    contents: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class CallPage:
    """Calls of a run, each with its texts if they are kept, in the order of their starts.

    `next_cursor` requests the page after them; None on the last page.
    """

    calls: Sequence[tuple[CallRecord, CallContent | None]]
    next_cursor: str | None


def call_id(call: CallRecord) -> CallId:
    """The position of a call among those of its run."""
    return call.attempt, call.id


def compressed(content: bytes) -> bytes:
    """The stored form of a CallContent that is encoded as JSON."""
    return zlib.compress(content, 1)


def content_of(stored: bytes) -> CallContent:
    """The texts of a call from their stored form."""
    return msgspec.json.decode(zlib.decompress(stored), type=CallContent)


encode_calls: Final = msgspec.json.Encoder().encode
decode_calls: Final = msgspec.json.Decoder(list[CallRecord]).decode
encode_contents: Final = msgspec.msgpack.Encoder().encode
decode_contents: Final = msgspec.msgpack.Decoder(dict[int, bytes]).decode
