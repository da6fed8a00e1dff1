"""Records the calls of an attempt to models and tools."""

import itertools
import re
import threading
from typing import Any, Final, NamedTuple
from uuid import UUID

from app.engine import CallObserver, ModelCall, ToolCall
from app.runs.call_records import (
    MAX_CALLS_PER_ATTEMPT,
    CallBatch,
    CallContent,
    CallId,
    CallRecord,
    call_id,
    compressed,
)
from app.runs.execution.call_content import content_as_json, given_to

# The server of a model may send any text as its reason.
_WORD: Final = re.compile(r"[A-Za-z_]{1,40}")


class _Started(NamedTuple):
    """A call under way; `content` has the texts that it began with, if texts are kept."""

    id: int
    within: int | None
    content: CallContent | None


class CallRecorder(CallObserver):
    """Keeps the finished calls of an attempt until they are stored.

    Calls begin and end in any thread; all other methods are called on the event loop. Calls beyond
    `MAX_CALLS_PER_ATTEMPT` are not recorded.
    """

    def __init__(self, run_id: UUID, attempt: int) -> None:
        self._run_id = run_id
        self._attempt = attempt
        self._ids = itertools.count(1)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._under_way: dict[ModelCall | ToolCall, _Started] = {}
        self._finished: list[CallRecord] = []
        self._contents: dict[int, bytes] = {}
        # They are shown until they are stored.
        self._unstored: dict[int, CallBatch] = {}
        self._keeps_content = False
        self._content_bytes_left = 0

    def keep_content(self, max_bytes: int) -> None:
        """Keep the texts of calls as well, up to that many bytes as JSON."""
        self._keeps_content = True
        self._content_bytes_left = max_bytes

    def call_started(self, call: ModelCall | ToolCall) -> None:
        """Note a call that begins."""
        # CrewAI extends its list of messages later.
        content = given_to(call) if self._keeps_content else None
        with self._lock:
            number = next(self._ids)
            if number <= MAX_CALLS_PER_ATTEMPT:
                outer = self._under_way.get(call.within) if call.within is not None else None
                within = outer.id if outer is not None else None
                self._under_way[call] = _Started(number, within, content)

    def call_finished(self, call: ModelCall | ToolCall) -> None:
        """Record a call that has ended."""
        content = None
        started = self._under_way.get(call)
        if started is not None and started.content is not None:
            content = content_as_json(started.content, call)
        with self._lock:
            started = self._under_way.pop(call, None)
            if started is None:  # the attempt has ended, or it has too many calls
                return
            is_omitted = content is not None and len(content) > self._content_bytes_left
            if content is None or is_omitted:
                self._finished.append(self._record(call, started, 0, is_omitted))
                return
            self._content_bytes_left -= len(content)
            self._contents[started.id] = compressed(content)
            self._finished.append(self._record(call, started, len(content)))

    def batch(self) -> CallBatch | None:
        """The finished calls that are in no batch yet, to be stored; None without any."""
        with self._lock:
            if not self._finished:
                return None
            batch = CallBatch(
                self._run_id, self._attempt, next(self._numbers), self._finished, self._contents
            )
            self._unstored[batch.number] = batch
            self._finished, self._contents = [], {}
            return batch

    def last_batch(self) -> CallBatch | None:
        """The rest, as the attempt ends: calls under way have no end. None without any."""
        with self._lock:
            for call, started in self._under_way.items():
                self._finished.append(
                    self._record(call, started, content_omitted=self._keeps_content)
                )
            self._under_way.clear()
        return self.batch()

    def note_stored(self, batch: CallBatch) -> None:
        """Forget a batch that the database has, or that was lost."""
        self._unstored.pop(batch.number, None)

    def calls(self) -> dict[CallId, tuple[CallRecord, bytes | None]]:
        """The calls that may not be stored yet, with their compressed texts."""
        with self._lock:
            found = [self._record(call, started) for call, started in self._under_way.items()]
            found += self._finished
            contents = dict(self._contents)
        for batch in self._unstored.values():
            found += batch.calls
            contents |= batch.contents
        return {call_id(call): (call, contents.get(call.id)) for call in found}

    def _record(
        self,
        call: ModelCall | ToolCall,
        started: _Started,
        content_bytes: int = 0,
        content_omitted: bool = False,
    ) -> CallRecord:
        task, error = call.task, call.error
        common: dict[str, Any] = {
            "attempt": self._attempt,
            "id": started.id,
            "started_at": call.started_at,
            "finished_at": call.finished_at,
            "task": task.name if task is not None else None,
            "index": task.index if task is not None else None,
            "within": started.within,
            "error_type": type(error).__name__ if error is not None else None,
            "content_bytes": content_bytes,
            "content_omitted": content_omitted,
        }
        if isinstance(call, ToolCall):
            return CallRecord(tool=call.tool, **common)
        reason = call.finish_reason
        return CallRecord(
            model=call.model,
            first_token_at=call.first_token_at,
            input_tokens=call.input_tokens,
            output_tokens=call.output_tokens,
            cached_tokens=call.cached_tokens,
            reasoning_tokens=call.reasoning_tokens,
            finish_reason=reason if reason is None or _WORD.fullmatch(reason) else "other",
            retries=call.retries,
            waited=call.waited,
            cost=call.cost,
            **common,
        )
