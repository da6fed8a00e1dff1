"""The texts that models stream in tasks under way, for subscribers that connect later."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from app.runs.events.event import SETTLING, Event, EventType

MAX_CHARACTERS: Final = 200_000
"""How many characters of a task's text are kept; later ones are not."""

_MAX_CHARACTERS_IN_ALL: Final = 32_000_000
_ENDS_OF_ATTEMPTS: Final = SETTLING | {EventType.RUN_QUEUED, EventType.RUN_AWAITING_HUMAN}


class StreamedTexts:
    """The texts of tasks under way, as far as they were published in this process.

    A text is dropped when its task is finished, or its run's attempt has ended. Beyond a bound for
    the process, the texts of the run that streamed first are dropped.
    """

    def __init__(self) -> None:
        self._texts: OrderedDict[UUID, dict[int, Event]] = OrderedDict()
        self._characters = 0

    def note(self, event: Event) -> None:
        """Add the text of an event with tokens; drop texts that it ends."""
        if event.type is EventType.TASK_TOKENS:
            self._add(event)
        elif event.run_id not in self._texts:
            return
        elif event.type is EventType.TASK_FINISHED:
            ended = self._texts[event.run_id].pop(event.data["index"], None)
            if ended is not None:
                self._characters -= len(ended.data["text"])
        elif event.type in _ENDS_OF_ATTEMPTS:
            self._drop(event.run_id)

    def of(self, run_id: UUID) -> Mapping[int, Event]:
        """The texts so far of a run's tasks, as one event each, by the tasks' indexes."""
        return self._texts.get(run_id, {})

    def _add(self, event: Event) -> None:
        texts = self._texts.setdefault(event.run_id, {})
        index = event.data["index"]
        before = texts[index].data["text"] if index in texts else ""
        text = (before + event.data["text"])[:MAX_CHARACTERS]
        data = {**event.data, "text": text, "so_far": True}
        texts[index] = Event(event.run_id, None, event.type, data, event.at)
        self._characters += len(text) - len(before)
        while self._characters > _MAX_CHARACTERS_IN_ALL:
            self._drop(next(iter(self._texts)))

    def _drop(self, run_id: UUID) -> None:
        for event in self._texts.pop(run_id).values():
            self._characters -= len(event.data["text"])
