"""Runs as tasks of A2A agents. The database is the only state: nothing is kept in memory."""

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from uuid import UUID

from a2a.helpers import new_message, new_text_artifact, new_text_message, new_text_part
from a2a.server.context import ServerCallContext
from a2a.server.events import Event as AgentEvent
from a2a.server.request_handlers.request_handler import RequestHandler, validate_request_params
from a2a.types import (
    AgentCard,
    Artifact,
    CancelTaskRequest,
    DeleteTaskPushNotificationConfigRequest,
    GetExtendedAgentCardRequest,
    GetTaskPushNotificationConfigRequest,
    GetTaskRequest,
    ListTaskPushNotificationConfigsRequest,
    ListTaskPushNotificationConfigsResponse,
    ListTasksRequest,
    ListTasksResponse,
    Message,
    SendMessageRequest,
    SubscribeToTaskRequest,
    Task,
    TaskArtifactUpdateEvent,
    TaskPushNotificationConfig,
    TaskState,
    TaskStatus,
    TaskStatusUpdateEvent,
)
from a2a.utils.errors import (
    A2AError,
    ExtendedAgentCardNotConfiguredError,
    InternalError,
    InvalidParamsError,
    PushNotificationNotSupportedError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)

from app.access.callers import Caller
from app.api.a2a.client_values import ClientValues
from app.api.a2a.messages import HOW_TO_ANSWER, budget_of, inputs_in, review_in
from app.api.errors import accepted, error_text
from app.runs import (
    Event,
    HumanInput,
    InvalidInput,
    NotAwaitingHuman,
    Run,
    RunOptions,
    RunService,
    RunStatus,
    UnknownCrew,
    UnknownRun,
    clean_text,
)

_MAX_CONTEXT_CHARACTERS = 255

# A run in any other state is working.
_STATES: Mapping[str, TaskState] = {
    RunStatus.QUEUED: TaskState.TASK_STATE_SUBMITTED,
    RunStatus.AWAITING_HUMAN: TaskState.TASK_STATE_INPUT_REQUIRED,
    RunStatus.SUCCEEDED: TaskState.TASK_STATE_COMPLETED,
    RunStatus.FAILED: TaskState.TASK_STATE_FAILED,
    RunStatus.CANCELLED: TaskState.TASK_STATE_CANCELED,
}


class CrewAgents(RequestHandler):
    """Handlers of A2A requests. The context's state names the crew and the caller,
    and has the values of a message.

    A task's id is the id of its run. A task of another crew or owner is not found.
    """

    def __init__(self, runs: RunService) -> None:
        self._runs = runs

    @validate_request_params
    async def on_message_send(self, params: SendMessageRequest, context: ServerCallContext) -> Task:
        """Submit a run, or resume one that waits for a human.

        Waits until the run ends or waits for a human, unless the client requests an immediate
        response.
        """
        with _a2a_errors():
            run_id, after_seq = await self._accept(params.message, context)
            with accepted(run_id):
                if not params.configuration.return_immediately:
                    async with aclosing(self._follow(run_id, after_seq, context)) as events:
                        async for _ in events:
                            pass
                return _task(await self._run(run_id, context))

    @validate_request_params
    async def on_message_send_stream(
        self, params: SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[AgentEvent]:
        """The same as `on_message_send`, as a stream of updates."""
        with _a2a_errors():
            run_id, after_seq = await self._accept(params.message, context)
            with accepted(run_id):
                async with aclosing(self._updates(run_id, after_seq, context)) as updates:
                    async for update in updates:
                        yield update

    @validate_request_params
    async def on_subscribe_to_task(
        self, params: SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[AgentEvent]:
        """Stream a task as it stands, then its updates."""
        with _a2a_errors():
            run = await self._run(_run_id(params.id), context)
            if run.is_settled:
                raise UnsupportedOperationError(f"task {params.id} has ended: it is {run.status}")
            async with aclosing(self._updates(run.run_id, -1, context)) as updates:
                async for update in updates:
                    yield update

    @validate_request_params
    async def on_get_task(self, params: GetTaskRequest, context: ServerCallContext) -> Task:
        with _a2a_errors():
            return _task(await self._run(_run_id(params.id), context))

    @validate_request_params
    async def on_cancel_task(self, params: CancelTaskRequest, context: ServerCallContext) -> Task:
        with _a2a_errors():
            run = await self._run(_run_id(params.id), context)
            await self._runs.cancel(run.run_id, _caller(context))
            now = await self._run(run.run_id, context)
            if run.is_settled or now.status != RunStatus.CANCELLED:
                raise TaskNotCancelableError(f"task {params.id} has ended: it is {now.status}")
            return _task(now)

    async def on_list_tasks(
        self, params: ListTasksRequest, context: ServerCallContext
    ) -> ListTasksResponse:
        raise UnsupportedOperationError("tasks are listed by GET /api/runs")

    async def on_create_task_push_notification_config(
        self, params: TaskPushNotificationConfig, context: ServerCallContext
    ) -> TaskPushNotificationConfig:
        raise PushNotificationNotSupportedError

    async def on_get_task_push_notification_config(
        self, params: GetTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> TaskPushNotificationConfig:
        raise PushNotificationNotSupportedError

    async def on_list_task_push_notification_configs(
        self, params: ListTaskPushNotificationConfigsRequest, context: ServerCallContext
    ) -> ListTaskPushNotificationConfigsResponse:
        raise PushNotificationNotSupportedError

    async def on_delete_task_push_notification_config(
        self, params: DeleteTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> None:
        raise PushNotificationNotSupportedError

    async def on_get_extended_agent_card(
        self, params: GetExtendedAgentCardRequest, context: ServerCallContext
    ) -> AgentCard:
        raise ExtendedAgentCardNotConfiguredError

    async def _accept(self, message: Message, context: ServerCallContext) -> tuple[UUID, int]:
        """Submit or resume a run, as a message requests.

        Returns the run's id, and the number of the event after which updates begin.
        """
        if message.task_id:
            return await self._resume(message, context)
        clean_text(message.context_id, "contextId", _MAX_CONTEXT_CHARACTERS)
        crew = self._runs.crew(context.state["crew"])
        options = RunOptions(
            context_id=message.context_id or None, budget=budget_of(_values(context))
        )
        inputs = inputs_in(message, _values(context), crew)
        run = await self._runs.submit(crew.name, inputs, _caller(context), options)
        return run.run_id, -1

    async def _resume(self, message: Message, context: ServerCallContext) -> tuple[UUID, int]:
        run = await self._run(_run_id(message.task_id), context)
        if message.context_id not in ("", _context_id(run)):
            raise InvalidInput("contextId", f"not that of task {run.run_id}")
        if run.status != RunStatus.AWAITING_HUMAN:
            raise UnsupportedOperationError(
                f"task {run.run_id} is {run.status} and accepts no message; send one without taskId"
            )
        review = review_in(message, _values(context), run.run_id)
        resumed = await self._runs.resume(review, _caller(context))
        return run.run_id, resumed.seq or -1

    async def _run(self, run_id: UUID, context: ServerCallContext) -> Run:
        run = await self._runs.get(run_id, _caller(context))
        if run.crew != context.state["crew"]:
            raise UnknownRun(run_id)
        return run

    def _follow(
        self, run_id: UUID, after_seq: int, context: ServerCallContext
    ) -> AsyncGenerator[Event]:
        return self._runs.follow(run_id, _caller(context), after_seq=after_seq)

    async def _updates(
        self, run_id: UUID, after_seq: int, context: ServerCallContext
    ) -> AsyncGenerator[AgentEvent]:
        """Updates of a task: as it stands, its progress, and then its artifacts and final state.

        Ends when the run ends or waits for a human.
        """
        run = await self._run(run_id, context)
        task_id, context_id = str(run_id), _context_id(run)
        yield _task(run, artifacts=False)
        if run.status == RunStatus.AWAITING_HUMAN:
            return
        async with aclosing(self._follow(run_id, after_seq, context)) as events:
            async for event in events:
                if (status := _progress(event)) is not None:
                    yield TaskStatusUpdateEvent(
                        task_id=task_id, context_id=context_id, status=status
                    )
        run = await self._run(run_id, context)
        for artifact in _artifacts(run):
            yield TaskArtifactUpdateEvent(
                task_id=task_id, context_id=context_id, artifact=artifact, last_chunk=True
            )
        yield TaskStatusUpdateEvent(task_id=task_id, context_id=context_id, status=_status(run))


def _caller(context: ServerCallContext) -> Caller:
    caller: Caller = context.state["caller"]
    return caller


def _values(context: ServerCallContext) -> ClientValues:
    values: ClientValues = context.state["values"]
    return values


def _run_id(task_id: str) -> UUID:
    try:
        return UUID(task_id)
    except ValueError:
        raise TaskNotFoundError(f"there is no task {task_id}") from None


def _task(run: Run, *, artifacts: bool = True) -> Task:
    return Task(
        id=str(run.run_id),
        context_id=_context_id(run),
        status=_status(run),
        artifacts=_artifacts(run) if artifacts else [],
    )


def _context_id(run: Run) -> str:
    """The client's group of tasks; a task without a group forms its own."""
    return run.context_id or str(run.run_id)


def _status(run: Run) -> TaskStatus:
    message, changed_at = None, run.finished_at or run.started_at or run.created_at
    if run.status == RunStatus.FAILED:
        message = new_text_message(f"{run.error_type}: {run.error}")
    elif (human := run.awaiting) is not None:
        message, changed_at = _review_request(human), human.finished_at
    return TaskStatus(
        state=_STATES.get(run.status, TaskState.TASK_STATE_WORKING),
        message=message,
        timestamp=changed_at,
    )


def _review_request(human: HumanInput) -> Message:
    """The instructions for a human, then the output to review."""
    return new_message(
        [
            new_text_part(f"{human.task} is done, and a human must review it. {HOW_TO_ANSWER}"),
            new_text_part(human.output, media_type="text/markdown"),
        ]
    )


def _progress(event: Event) -> TaskStatus | None:
    """The status of a working task after an event; None if the event does not change it."""
    message = None
    if event.type in ("task.started", "task.finished"):
        message = new_text_message(f"{event.data['name']} {event.type.removeprefix('task.')}")
    elif event.type != "run.running":
        return None
    return TaskStatus(state=TaskState.TASK_STATE_WORKING, message=message, timestamp=event.at)


def _artifacts(run: Run) -> list[Artifact]:
    return [
        new_text_artifact(name, text, "text/markdown", artifact_id=name)
        for name, text in (run.outputs or {}).items()
    ]


@contextmanager
def _a2a_errors() -> Iterator[None]:
    """Translate errors within the block to A2A errors."""
    try:
        yield
    except A2AError:
        raise
    except UnknownRun as error:
        raise TaskNotFoundError(str(error)) from None
    except InvalidInput as error:
        raise InvalidParamsError(str(error)) from None
    except (NotAwaitingHuman, UnknownCrew) as error:
        raise UnsupportedOperationError(str(error)) from None
    except Exception as error:
        raise InternalError(error_text(error)) from None
