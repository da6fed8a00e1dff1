"""Human review: the state that a paused run keeps in its row, so that it needs nothing else."""

from collections.abc import Mapping
from datetime import datetime

import msgspec

from app.engine import Paused, Replay, Review
from app.runs.texts import replace_surrogates


class KeptTask(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task that was finished before the run paused."""

    text: str
    structured: str | None
    started_at: datetime
    finished_at: datetime
    models: tuple[str, ...] = ()

    @property
    def replay(self) -> Replay:
        return Replay(self.text, self.structured, self.started_at, self.finished_at, self.models)


class TaskReview(msgspec.Struct, frozen=True):
    """A human's review of an output of the task at `index`."""

    index: int
    output: str
    feedback: str
    approve: bool


class HumanInput(msgspec.Struct, frozen=True):
    """The last pause of a run, and all reviews of its outputs so far.

    `attempt` is the one that paused, `fingerprint` its crew's. `index` and `task` name the task
    whose output is or was to be reviewed. `kept` are the tasks that are not executed again, by
    their index.
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
        """The output to review."""
        return self.kept[self.index].text

    @property
    def finished_at(self) -> datetime:
        """The time at which the output to review was finished."""
        return self.kept[self.index].finished_at

    @property
    def reviews(self) -> Mapping[int, list[Review]]:
        """All reviews so far, by the index of their task."""
        reviews: dict[int, list[Review]] = {}
        for past in self.past_reviews:
            review = Review(past.output, past.feedback, past.approve)
            reviews.setdefault(past.index, []).append(review)
        return reviews

    def reviewed(self, feedback: str, approve: bool) -> "HumanInput":
        """The state with one more review; an output that was not approved is not kept."""
        review = TaskReview(self.index, self.output, feedback, approve)
        kept = self.kept if approve else {i: k for i, k in self.kept.items() if i != self.index}
        past_reviews = (*self.past_reviews, review)
        return msgspec.structs.replace(self, past_reviews=past_reviews, kept=kept)


def paused_at(
    paused: Paused, attempt: int, fingerprint: str, before: HumanInput | None
) -> HumanInput:
    """The state to keep for a run that pauses now."""
    awaited = paused.finished[paused.index]
    kept = {
        index: KeptTask(
            replace_surrogates(done.text),
            done.structured,
            done.started_at,
            done.finished_at,
            done.models,
        )
        for index, done in paused.finished.items()
    }
    past = before.past_reviews if before is not None else ()
    return HumanInput(attempt, fingerprint, paused.index, awaited.name, awaited.agent, kept, past)
