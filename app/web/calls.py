"""`/runs/{run_id}/calls/{call}`: one call of a run to a model or a tool."""

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from litestar import get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from litestar.response import Template

from app.api.dependencies import Runs
from app.api.middleware.auth import CallerRequest
from app.runs import CallContent, CallRecord, RunService, seconds_between
from app.web.formats import text_of
from app.web.rendering import page

_KEY: Final = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})")
_MAX_CHARACTERS: Final = 200_000


class Text(NamedTuple):
    """A text of a call with its heading; `is_cut` if the page has only its beginning."""

    heading: str
    text: str
    is_cut: bool


@get("/runs/{run_id:uuid}/calls/{key:str}")
async def show_call(
    run_id: FromPath[UUID], key: FromPath[str], request: CallerRequest, runs: Runs
) -> Template:
    """`key` is the attempt and the id of the call, such as `1.3`."""
    run = await runs.get(run_id, request.user)
    found = await _call(runs, run_id, key, request)
    if found is None:
        raise NotFoundException(f"run {run_id} has no call {key}")
    call, content, next_key = found
    return page(
        request,
        "call.html",
        run=run,
        call=call,
        texts=_texts(content) if content is not None else [],
        has_content=content is not None,
        started_at=call.began_at,
        seconds=seconds_between(call.began_at, call.ended_at),
        first_token_seconds=call.first_token_seconds,
        waited_seconds=call.waited_seconds,
        cost=call.cost_usd,
        previous_key=f"{call.attempt}.{call.id - 1}" if call.id > 1 else None,
        next_key=next_key,
    )


async def _call(
    runs: RunService, run_id: UUID, key: str, request: CallerRequest
) -> tuple[CallRecord, CallContent | None, str | None] | None:
    """The call with its texts, and the key of the next one."""
    found = _KEY.fullmatch(key)
    if found is None or found[2] == "0":
        return None
    attempt, number = int(found[1]), int(found[2])
    calls = await runs.calls(run_id, request.user, cursor=f"{attempt}.{number - 1}", limit=1)
    if not calls.calls:
        return None
    call, content = calls.calls[0]
    if (call.attempt, call.id) != (attempt, number):
        return None
    has_next = calls.next_cursor is not None
    return call, content, f"{attempt}.{number + 1}" if has_next else None


def _texts(content: CallContent) -> list[Text]:
    """The messages, the answer and the other texts of a call."""
    texts: list[Text] = []
    if isinstance(content.messages, list):
        texts += [_message(message) for message in content.messages]
    elif content.messages is not None:
        texts.append(_text("Messages", content.messages))
    for heading, value in (
        ("Answer", content.answer),
        ("Input", content.input),
        ("Result", content.result),
        ("Tools offered", content.tools),
    ):
        if value is not None:
            texts.append(_text(heading, value))
    return texts


def _message(message: Any) -> Text:
    if not isinstance(message, dict):
        return _text("Message", message)
    role = str(message.get("role", "message")).capitalize()
    # Flags are marks for the provider, such as those of caches.
    rest = {
        name: value
        for name, value in message.items()
        if name not in ("role", "content") and value and not isinstance(value, bool)
    }
    content = _plain(message.get("content"))
    if not rest:
        return _text(role, content)
    if not content:
        return _text(role, rest)
    return _text(role, "\n\n".join([text_of(content, indent=2), text_of(rest, indent=2)]))


def _plain(content: Any) -> Any:
    """The text of a message's content, which may be a list of parts."""
    if isinstance(content, Sequence) and not isinstance(content, str):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        parts = [text for text in texts if isinstance(text, str)]
        if len(parts) == len(content):
            return "\n\n".join(parts)
    return content


def _text(heading: str, value: Any) -> Text:
    text = text_of(value, indent=2)
    return Text(heading, text[:_MAX_CHARACTERS], len(text) > _MAX_CHARACTERS)
