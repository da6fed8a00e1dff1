"""What can be asked for with runs: start, wait, look, list, watch, cancel, delete.

Every way in asks here, and says who asks: a run of another owner is an unknown run.
"""

import hashlib
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec

from app.access.callers import Caller
from app.crews.registry import CrewSpec, Registry
from app.engine import Engine, InputRefused
from app.runs.crew_info import CrewInfo, crew_info
from app.runs.errors import (
    AwaitingHuman,
    IdempotencyConflict,
    InvalidInput,
    NotAwaitingHuman,
    Overloaded,
    RunMoved,
    RunUnsettled,
    ShuttingDown,
    UnknownCrew,
    UnknownRun,
)
from app.runs.events.hub import EVENTS_PER_ATTEMPT, Event, EventHub
from app.runs.execution.worker import SettledRun, Worker
from app.runs.human_input import human_input
from app.runs.inputs import clean_text, validate_inputs
from app.runs.models import UNSETTLED, RunStatus, UserRun, WebhookDelivery
from app.runs.persistence.queries import RunFilter, RunPage, RunQueries
from app.runs.persistence.repository import NewRun, Outcome, ReviewDecision, RunRepository
from app.runs.webhooks.payloads import FIELDS, Webhooks, webhooks_at
from app.runs.webhooks.url_guard import UrlGuard

logger = logging.getLogger("crew_capture.runs")

_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a client may ask for beside the inputs.

    `stream`: models stream from the first call. `idempotency_key`: the same key gives the same
    run, however often it is asked for. `webhooks`: who is told of what, `meta`: what they are told
    beside it. `context_id`: what the client groups its runs by.
    """

    stream: bool = False
    idempotency_key: str | None = None
    webhooks: Webhooks = field(default_factory=dict)
    meta: Any = None
    context_id: str | None = None


class RunService:
    """Accepts runs for this process's worker. A run is accepted when its row is committed."""

    def __init__(
        self,
        *,
        crews: Registry,
        engine: Engine,
        rows: RunRepository,
        queries: RunQueries,
        worker: Worker,
        events: EventHub,
        max_runs: int,
        url_guard: UrlGuard | None = None,
    ) -> None:
        self._crews = crews
        self._engine = engine
        self._rows = rows
        self._queries = queries
        self._worker = worker
        self._events = events
        self._max_runs = max_runs
        self._webhook_targets = url_guard
        self._adding = 0
        self.accepting = True
        """Whether new runs are taken."""

    def crews(self) -> list[CrewInfo]:
        """The crews that are served, as their clients see them."""
        return [crew_info(spec, self._engine.describe(spec.name)) for spec in self._crews]

    def crew(self, name: str) -> CrewInfo:
        """A crew that is served. Raises UnknownCrew."""
        return crew_info(self._spec(name), self._engine.describe(name))

    async def start(
        self,
        crew: str,
        given: Mapping[str, Any],
        caller: Caller,
        options: RunOptions | None = None,
    ) -> UUID:
        """Accept a run: when this returns its id, its row is committed and it will be run.

        Raises what `submit` raises.
        """
        return (await self.submit(crew, given, caller, options)).run_id

    async def submit(
        self,
        crew: str,
        given: Mapping[str, Any],
        caller: Caller,
        options: RunOptions | None = None,
    ) -> UserRun:
        """The same; gives the run as it stands.

        Raises:
            UnknownCrew: no crew of this name is served.
            InvalidInput: an input can't be taken, or no webhook may go to that URL.
            IdempotencyConflict: the key was used for another request.
            LimitReached: the caller has as much as its quota allows.
            Overloaded, ShuttingDown, DatabaseUnavailable: not now; nothing was accepted.
        """
        options = options or RunOptions()
        new = self._new_run(crew, given, caller, options, "")
        await self._check_webhooks(options.webhooks)
        (run_id,) = await self._accept([new], caller)
        if run_id != new.run_id:  # an earlier one, by its key
            return await self.get(run_id, caller)
        return UserRun(
            run_id=run_id,
            crew=new.crew,
            inputs=new.inputs,
            owner=new.owner,
            status=RunStatus.QUEUED,
            attempt=0,
            created_at=new.created_at,
        )

    async def start_many(
        self,
        crew: str,
        batch: Sequence[Mapping[str, Any]],
        caller: Caller,
        *,
        webhook_url: str | None = None,
    ) -> list[UUID]:
        """Accept a run for each of the inputs, in their order: all of them, or none.

        Raises what `start` raises; InvalidInput names the place in the batch.
        """
        options = RunOptions(webhooks=webhooks_at(webhook_url))
        new = [
            self._new_run(crew, given, caller, options, f"inputs[{index}].")
            for index, given in enumerate(batch)
        ]
        await self._check_webhooks(options.webhooks)
        return await self._accept(new, caller)

    async def _check_webhooks(self, webhooks: Webhooks) -> None:
        for role, webhook in webhooks.items():
            if self._webhook_targets is None:
                problem = "webhooks are off, because WEBHOOK_SECRET is not set here"
                raise InvalidInput(FIELDS[role], problem)
            await self._webhook_targets.check(webhook.url, FIELDS[role])

    async def _accept(self, runs: Sequence[NewRun], caller: Caller) -> list[UUID]:
        self._admit(len(runs))
        self._adding += len(runs)
        try:
            added = await self._rows.add(runs, caller)
        finally:
            self._adding -= len(runs)
        for run, accepted in zip(runs, added, strict=True):
            if accepted.is_new:
                self._worker.dispatch(run.run_id, caller.name, run.crew)
            elif accepted.request_digest != run.request_digest:
                raise IdempotencyConflict("Idempotency-Key: used before for another request")
        return [accepted.run_id for accepted in added]

    async def run(self, crew: str, given: Mapping[str, Any], caller: Caller) -> SettledRun:
        """Accept a run and wait for its end.

        Whoever waits may go away: the run goes on, is saved and cleaned up.

        Raises:
            AwaitingHuman: the run waits until a human has said what to do.
            RunMoved: this process stops or lost the run; another carries it to its end.
            Exception: what `start` raises.
        """
        return await self._ended(await self.start(crew, given, caller))

    async def ended(self, run_id: UUID, caller: Caller) -> SettledRun:
        """Wait for the end of a run that this process accepted.

        Raises:
            UnknownRun: there is no such run.
            AwaitingHuman: the run waits until a human has said what to do.
            RunMoved: this process stops or lost the run; another carries it to its end.
        """
        await self.get(run_id, caller)
        return await self._ended(run_id)

    async def _ended(self, run_id: UUID) -> SettledRun:
        settled = await self._worker.ended(run_id)
        if settled is None:  # cancelled before its turn, or settled by another worker
            row = await self._queries.get(run_id)
            if row is not None and row.status == RunStatus.AWAITING_HUMAN:
                raise AwaitingHuman(f"run {run_id} waits for a human")
            if row is None or row.status in UNSETTLED:
                raise RunMoved(f"run {run_id} is accepted and goes on in another process")
            settled = _settled(row)
        return settled

    async def get(self, run_id: UUID, caller: Caller) -> UserRun:
        """The run as it stands. Raises UnknownRun, DatabaseUnavailable."""
        run = await self._queries.get(run_id)
        if run is None or not caller.may_see(run.owner):
            raise _unknown(run_id)
        return run

    async def page(
        self, wanted: RunFilter, cursor: str | None, limit: int, caller: Caller
    ) -> RunPage:
        """The caller's runs without their outputs, newest first; all runs for an admin.

        Raises InvalidInput for a wrong cursor, DatabaseUnavailable.
        """
        if not caller.is_admin:
            wanted = replace(wanted, owner=caller.owner or "")
        return await self._queries.page(wanted, cursor, limit)

    async def find(self, idempotency_key: str, caller: Caller) -> UUID | None:
        """The caller's run that was accepted with this key, if there is one."""
        return await self._queries.with_key(caller.owner or "", idempotency_key)

    async def cancel(self, run_id: UUID, caller: Caller) -> None:
        """Settle a run as cancelled: its model connections are closed, its outputs deleted.

        A settled run stays as it is. Raises UnknownRun, DatabaseUnavailable.
        """
        run = await self.get(run_id, caller)
        status = await self._rows.cancel(run_id)
        if status is None:
            raise _unknown(run_id)
        if status is RunStatus.CANCELLED:
            self._worker.abort(run_id)
            if run.status == RunStatus.AWAITING_HUMAN:  # nobody carries it
                await self._worker.clean_up(run_id)

    async def resume(self, answer: ReviewDecision, caller: Caller) -> Event:
        """Have a run that waits for a human go on: committed when this returns what happened.

        Approved, the tasks to come get the feedback as context; else the task is done again with
        it, and asked about again. Webhooks that are given replace those of their role.

        Raises:
            UnknownRun: there is no such run.
            NotAwaitingHuman: it does not wait for a human, or not about that task.
            InvalidInput: the feedback can't be taken, or no webhook may go to that URL.
            Overloaded, ShuttingDown, DatabaseUnavailable: not now; nothing was changed.
        """
        run = await self.get(answer.run_id, caller)
        if run.status != RunStatus.AWAITING_HUMAN:
            raise NotAwaitingHuman(f"run {run.run_id} is {run.status} and waits for no human")
        feedback = clean_text(answer.feedback, "feedback", self._spec(run.crew).max_input_chars)
        await self._check_webhooks(answer.webhooks)
        self._admit(1)
        resumed = await self._rows.resume(replace(answer, feedback=feedback))
        if resumed is None:
            human = human_input(run.human_input)
            other = human is not None and answer.task not in (None, human.task)
            about = f"; it waits about {human.task}" if human is not None and other else ""
            raise NotAwaitingHuman(f"run {run.run_id} does not wait for that{about}")
        self._worker.dispatch(run.run_id, run.owner, run.crew)
        return resumed

    async def delete(self, run_id: UUID, caller: Caller) -> None:
        """Delete a settled run with all it has. Raises UnknownRun, RunUnsettled."""
        await self.get(run_id, caller)
        status = await self._rows.delete(run_id)
        if status is None:
            raise _unknown(run_id)
        if status in UNSETTLED:
            raise RunUnsettled(f"run {run_id} is {status}: cancel it first")

    async def tasks(self, run: UserRun) -> list[dict[str, Any]]:
        """The run's tasks in their order: name, agent, status, times as far as known."""
        if run.tasks is not None:
            return run.tasks
        tasks: dict[int, dict[str, Any]] = {
            index: {"name": task.name, "agent": task.agent, "status": "pending"}
            for index, task in enumerate(self._engine.describe(run.crew).tasks)
        }
        if run.attempt == 0:
            return list(tasks.values())
        human = human_input(run.human_input)
        if human is not None:
            for index, kept in human.kept.items():
                tasks.get(index, {}).update(
                    status="finished", started_at=kept.started_at, finished_at=kept.finished_at
                )
        first_seq = run.attempt * EVENTS_PER_ATTEMPT
        for event in await self._queries.history(run.run_id, after_seq=first_seq):
            if event.type not in ("task.started", "task.finished"):
                continue
            known = {"name": event.data["name"], "agent": event.data["agent"]}
            task = tasks.setdefault(event.data["index"], known)  # a flow's come as they begin
            if event.type == "task.started":
                task.update(status="running", started_at=event.at)
            else:
                task.update(status="finished", finished_at=event.at)
        if human is not None and run.status == RunStatus.AWAITING_HUMAN:
            tasks.get(human.index, {}).update(status="awaiting_human")
        return [task for _, task in sorted(tasks.items())]

    async def deliveries(self, run: UserRun) -> list[WebhookDelivery]:
        """What the run's webhook was told, or is to be told, in the order of the events."""
        if run.webhooks is None:
            return []
        return await self._queries.deliveries(run.run_id)

    async def watch(
        self,
        run_id: UUID,
        caller: Caller,
        *,
        after_seq: int,
        heartbeat_seconds: float,
        tokens: bool = True,
    ) -> AsyncGenerator[Sequence[Event]]:
        """What happens in a run: stored events above a number, then what comes, until its end.

        What happened at once comes together. With `tokens`, models stream their words while this
        watches. Yields nothing once the run is known to be there, and every so many seconds. Ends
        early for a watcher that falls behind; it may come back with the number of the last event
        it saw. Raises UnknownRun.
        """
        with self._events.watch(
            run_id, tokens=tokens, after_seq=after_seq, heartbeat_seconds=heartbeat_seconds
        ) as watcher:
            # In this order nothing is missed.
            run = await self.get(run_id, caller)
            yield ()
            watcher.begin(await self._queries.history(run_id, after_seq=after_seq))
            if run.status not in UNSETTLED:
                watcher.end()
            while not watcher.is_over:
                yield await watcher.take()

    async def follow(
        self, run_id: UUID, caller: Caller, *, after_seq: int = -1
    ) -> AsyncGenerator[Event]:
        """What happens in a run until it is settled or waits for a human, without models' words.

        Nothing is told of waiting: the run as it stands after the last event does. Ends early as
        `watch` does. Raises UnknownRun.
        """
        watching = self.watch(
            run_id, caller, after_seq=after_seq, heartbeat_seconds=_PATIENCE_SECONDS, tokens=False
        )
        async with aclosing(watching):
            async for events in watching:
                for event in events:
                    if event.type != "run.awaiting_human":
                        yield event
                    elif (await self.get(run_id, caller)).status == RunStatus.AWAITING_HUMAN:
                        return  # else it was answered since

    def inputs(self, crew: str) -> Sequence[str]:
        """The names of the inputs that the crew takes. Raises UnknownCrew."""
        self._spec(crew)
        described = self._engine.describe(crew)
        return [*described.inputs, *described.defaults]

    def _spec(self, crew: str) -> CrewSpec:
        spec = self._crews.get(crew)
        if spec is None:
            raise UnknownCrew(f"no crew is named {crew}")
        return spec

    def _new_run(
        self, crew: str, given: Mapping[str, Any], caller: Caller, options: RunOptions, place: str
    ) -> NewRun:
        try:
            inputs = validate_inputs(self._spec(crew), self._engine.describe(crew).inputs, given)
            self._engine.check_inputs(crew, inputs)
        except InputRefused as error:
            raise InvalidInput(f"{place}{error.field}", error.problem) from None
        except InvalidInput as error:
            if not place:
                raise
            raise InvalidInput(f"{place}{error.field}", error.problem) from None
        digest = None
        if options.idempotency_key is not None:
            request = [crew, inputs, options.stream, options.webhooks, options.meta]
            digest = hashlib.sha256(msgspec.json.encode(request)).hexdigest()
        return NewRun(
            uuid4(),
            crew,
            inputs,
            datetime.now(UTC),
            caller.owner or "",
            (caller.address or "") if caller.quota else None,
            stream=options.stream,
            idempotency_key=options.idempotency_key,
            request_digest=digest,
            webhooks=options.webhooks,
            meta=options.meta,
            context_id=options.context_id,
        )

    def _admit(self, count: int) -> None:
        if not self.accepting:
            raise ShuttingDown("the service is shutting down")
        if len(self._worker) + self._adding + count > self._max_runs:
            raise Overloaded(f"at most {self._max_runs} runs are under way or wait at a time")


def _unknown(run_id: UUID) -> UnknownRun:
    return UnknownRun(f"there is no run {run_id}")


def _settled(row: UserRun) -> SettledRun:
    outcome = Outcome(
        RunStatus(row.status),
        outputs=row.outputs,
        raw_result=row.raw_result,
        tasks=row.tasks,
        usage=row.usage,
        error=row.error,
        error_type=row.error_type,
    )
    waited = ((row.started_at or row.created_at) - row.created_at).total_seconds()
    return SettledRun(row.run_id, row.inputs, outcome, waited)
