"""Messages of clients to agents: the inputs of a run, or a human's review of an output."""

from typing import Any
from uuid import UUID

import msgspec
from a2a.helpers import get_message_text, get_raw_parts, get_url_parts
from a2a.types import Message

from app.api.a2a.client_values import ClientValues
from app.api.budget_fields import budget_in
from app.api.problems import convert
from app.budgets import Budget
from app.json_decoding import decode
from app.runs import CrewInfo, InvalidInput, ReviewDecision

HOW_TO_ANSWER = (
    'Send "approve" with this task\'s id to continue the run, or send the changes to make.'
)


class _ReviewData(msgspec.Struct, forbid_unknown_fields=True):
    """A review as data; without `task` it applies to the task that the run waits for."""

    approve: bool
    feedback: str = ""
    task: str | None = None


def review_in(message: Message, values: ClientValues, run_id: UUID) -> ReviewDecision:
    """The review in a message: data, with a text as its feedback; or a text alone.

    A text alone describes the changes to make, unless it is the word `approve`. Raises
    InvalidInput.
    """
    _refuse_files(message)
    data: dict[str, Any] = {}
    for part in values.data:
        if not isinstance(part, dict):
            raise InvalidInput("parts", f"expected an object as data. {HOW_TO_ANSWER}")
        data |= part
    text = get_message_text(message).strip()
    if text and "feedback" in data:
        raise InvalidInput("feedback", "given twice, as data and as text")
    if not data:
        if not text:
            raise InvalidInput("parts", f"expected an answer. {HOW_TO_ANSWER}")
        approves = text.lower() == "approve"
        return ReviewDecision(run_id, None, "" if approves else text, approves)
    try:
        review = convert(data, _ReviewData, "parts")
    except InvalidInput as error:
        raise InvalidInput("parts", f"{error.problem}. {HOW_TO_ANSWER}") from None
    return ReviewDecision(run_id, review.task, review.feedback or text, review.approve)


def inputs_in(message: Message, values: ClientValues, crew: CrewInfo) -> dict[str, Any]:
    """The inputs in a message: those of its data, and its text.

    A text is the crew's required input if it has exactly one, and otherwise inputs as JSON. Raises
    InvalidInput.
    """
    _refuse_files(message)
    given: dict[str, Any] = {}
    for data in values.data:
        given |= _named(data, crew)
    text = get_message_text(message)
    if not text.strip():
        return given
    if len(crew.required) != 1:
        try:
            return given | _named(decode(text), crew)
        except (msgspec.MsgspecError, RecursionError):
            raise _not_inputs(crew) from None
    (name,) = crew.required
    if name in given:
        raise InvalidInput(name, "given twice, as data and as text")
    return given | {name: text}


def budget_of(values: ClientValues) -> Budget:
    """The budget in a message's metadata. Raises InvalidInput."""
    return budget_in(values.metadata)


def _named(inputs: object, crew: CrewInfo) -> dict[str, Any]:
    if not isinstance(inputs, dict):
        raise _not_inputs(crew)
    return inputs


def _not_inputs(crew: CrewInfo) -> InvalidInput:
    names = ", ".join(input_.name for input_ in crew.inputs) or "no inputs"
    return InvalidInput(
        "parts",
        f"expected an object of inputs, as data or as JSON text; {crew.name} accepts {names}",
    )


def _refuse_files(message: Message) -> None:
    if get_raw_parts(message.parts) or get_url_parts(message.parts):
        raise InvalidInput("parts", "files are not accepted; send data or text")
