"""What a run that waits for humans keeps in its row, so that it needs nothing else to go on."""

from collections.abc import Mapping
from datetime import datetime

import msgspec

from app.engine import Paused, Replay, Review
from app.runs.models import RunStatus, UserRun
from app.runs.texts import replace_surrogates


class KeptTask(msgspec.Struct, frozen=True):
    """A task that was done before the run paused."""

    text: str
    structured: str | None
    started_at: datetime
    finished_at: datetime

    @property
    def replay(self) -> Replay:
        return Replay(self.text, self.structured, self.started_at, self.finished_at)


class TaskReview(msgspec.Struct, frozen=True):
    """What a human said of the output of the task at `index`."""

    index: int
    output: str
    feedback: str
    approve: bool


class HumanInput(msgspec.Struct, frozen=True):
    """Where a run was paused last, and all that humans have said of its outputs.

    `attempt` is the one that paused, `fingerprint` its crew's; `index` and `task` are the task that
    waits or waited, `kept` the tasks that need not be done again, by their place.
    """

    attempt: int
    fingerprint: str
    index: int
    task: str
    agent: str
    kept: dict[int, KeptTask]
    past_reviews: tuple[TaskReview, ...] = msgspec.field(default=(), name="said")

    @property
    def output(self) -> str:
        """What the human is to look at."""
        return self.kept[self.index].text

    @property
    def reviews(self) -> Mapping[int, list[Review]]:
        reviews: dict[int, list[Review]] = {}
        for said in self.past_reviews:
            review = Review(said.output, said.feedback, said.approve)
            reviews.setdefault(said.index, []).append(review)
        return reviews

    def answered(self, feedback: str, approve: bool) -> "HumanInput":
        """With what a human said now; an output that was not approved of is not kept."""
        review = TaskReview(self.index, self.output, feedback, approve)
        kept = self.kept if approve else {i: k for i, k in self.kept.items() if i != self.index}
        past_reviews = (*self.past_reviews, review)
        return msgspec.structs.replace(self, past_reviews=past_reviews, kept=kept)


def human_input(stored: object) -> HumanInput | None:
    """What the row of a run keeps, if it has ever paused."""
    if stored is None:
        return None
    return msgspec.convert(stored, HumanInput, str_keys=True, strict=False)


def awaited_by(run: UserRun) -> HumanInput | None:
    """What the run waits for a human about, if it waits now."""
    return human_input(run.human_input) if run.status == RunStatus.AWAITING_HUMAN else None


def paused_at(
    paused: Paused, attempt: int, fingerprint: str, before: HumanInput | None
) -> HumanInput:
    """What is to be kept of a run that pauses now."""
    asked = paused.finished[paused.index]
    kept = {
        index: KeptTask(
            replace_surrogates(done.text),
            done.structured,
            done.started_at,
            done.finished_at,
        )
        for index, done in paused.finished.items()
    }
    past = before.past_reviews if before is not None else ()
    return HumanInput(attempt, fingerprint, paused.index, asked.name, asked.agent, kept, past)
