"""Runs as tasks of A2A's agents. Rows are the only truth: nothing is kept here."""

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any
from uuid import UUID

import msgspec
from a2a.helpers import (
    get_data_parts,
    get_message_text,
    get_raw_parts,
    get_url_parts,
    new_text_artifact,
    new_text_message,
)
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

from app.api.errors import error_text
from app.runs.callers import Caller
from app.runs.errors import InvalidInput, UnknownRun
from app.runs.events import Event
from app.runs.models import UNSETTLED, RunStatus, UserRun
from app.runs.served import ServedCrew
from app.runs.service import RunOptions, RunService

_HEARTBEAT_SECONDS = 60.0
_MAX_CONTEXT_CHARACTERS = 255

# A run that is neither waiting for its turn nor settled is at work.
_STATES: Mapping[str, TaskState] = {
    RunStatus.QUEUED: TaskState.TASK_STATE_SUBMITTED,
    RunStatus.SUCCEEDED: TaskState.TASK_STATE_COMPLETED,
    RunStatus.FAILED: TaskState.TASK_STATE_FAILED,
    RunStatus.CANCELLED: TaskState.TASK_STATE_CANCELED,
}


class CrewAgents(RequestHandler):
    """What the agents are asked. The context's state names the crew and the caller.

    A task's id is its run's. A task of another crew or owner is not found.
    """

    def __init__(self, runs: RunService) -> None:
        self._runs = runs
        self._crews = {crew.name: crew for crew in runs.crews()}

    @validate_request_params
    async def on_message_send(self, params: SendMessageRequest, context: ServerCallContext) -> Task:
        """Start a run; unless the client wants its task at once, wait for the end."""
        with _told():
            run_id = await self._start(params.message, context)
            if not params.configuration.return_immediately:
                async with aclosing(self._events(run_id, context)) as events:
                    async for _ in events:
                        pass
            return _task(await self._run(run_id, context))

    @validate_request_params
    async def on_message_send_stream(
        self, params: SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[AgentEvent]:
        """Start a run, and tell what happens in it."""
        with _told():
            run_id = await self._start(params.message, context)
            async with aclosing(self._updates(run_id, context)) as updates:
                async for update in updates:
                    yield update

    @validate_request_params
    async def on_subscribe_to_task(
        self, params: SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[AgentEvent]:
        """Tell how a run stands, then what happens in it."""
        with _told():
            run = await self._run(_run_id(params.id), context)
            if run.status not in UNSETTLED:
                raise UnsupportedOperationError(f"task {params.id} has ended: it is {run.status}")
            async with aclosing(self._updates(run.run_id, context)) as updates:
                async for update in updates:
                    yield update

    @validate_request_params
    async def on_get_task(self, params: GetTaskRequest, context: ServerCallContext) -> Task:
        with _told():
            return _task(await self._run(_run_id(params.id), context))

    @validate_request_params
    async def on_cancel_task(self, params: CancelTaskRequest, context: ServerCallContext) -> Task:
        with _told():
            run = await self._run(_run_id(params.id), context)
            await self._runs.cancel(run.run_id, _caller(context))
            now = await self._run(run.run_id, context)
            if run.status not in UNSETTLED or now.status != RunStatus.CANCELLED:
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

    async def _start(self, message: Message, context: ServerCallContext) -> UUID:
        if message.task_id:
            run = await self._run(_run_id(message.task_id), context)
            raise UnsupportedOperationError(
                f"task {run.run_id} is {run.status} and takes no message; send one without taskId"
            )
        if len(message.context_id) > _MAX_CONTEXT_CHARACTERS:
            raise InvalidInput("contextId", f"at most {_MAX_CONTEXT_CHARACTERS} characters")
        crew = self._crews[context.state["crew"]]
        options = RunOptions(context_id=message.context_id or None)
        return await self._runs.start(crew.name, _inputs(message, crew), _caller(context), options)

    async def _run(self, run_id: UUID, context: ServerCallContext) -> UserRun:
        run = await self._runs.get(run_id, _caller(context))
        if run.crew != context.state["crew"]:
            raise UnknownRun(f"there is no run {run_id}")
        return run

    async def _events(self, run_id: UUID, context: ServerCallContext) -> AsyncGenerator[Event]:
        watching = self._runs.watch(
            run_id,
            _caller(context),
            after_seq=-1,
            heartbeat_seconds=_HEARTBEAT_SECONDS,
            tokens=False,
        )
        async with aclosing(watching) as events:
            async for event in events:
                if event is not None:
                    yield event

    async def _updates(
        self, run_id: UUID, context: ServerCallContext
    ) -> AsyncGenerator[AgentEvent]:
        """The task as it stands, then what changes; at the end its artifacts and its state."""
        run = await self._run(run_id, context)
        task_id, context_id = str(run_id), _context_id(run)
        yield _task(run, artifacts=False)
        async with aclosing(self._events(run_id, context)) as events:
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


def _run_id(task_id: str) -> UUID:
    try:
        return UUID(task_id)
    except ValueError:
        raise TaskNotFoundError(f"there is no task {task_id}") from None


def _inputs(message: Message, crew: ServedCrew) -> dict[str, Any]:
    """The inputs in a message: those of its data, and its text.

    A text is the one input that the crew needs, if it is one, and otherwise inputs as JSON.
    """
    if get_raw_parts(message.parts) or get_url_parts(message.parts):
        raise InvalidInput("parts", "files are not taken; send data or text")
    given: dict[str, Any] = {}
    for data in get_data_parts(message.parts):
        given |= _named(_whole_numbers(data), crew)
    text = get_message_text(message)
    if not text.strip():
        return given
    if len(crew.required) != 1:
        try:
            return given | _named(msgspec.json.decode(text), crew)
        except (msgspec.MsgspecError, RecursionError):
            raise _not_inputs(crew) from None
    (name,) = crew.required
    if name in given:
        raise InvalidInput(name, "given twice, as data and as text")
    return given | {name: text}


def _named(inputs: object, crew: ServedCrew) -> dict[str, Any]:
    if not isinstance(inputs, dict):
        raise _not_inputs(crew)
    return inputs


def _not_inputs(crew: ServedCrew) -> InvalidInput:
    names = ", ".join(input_.name for input_ in crew.inputs) or "no inputs"
    return InvalidInput(
        "parts", f"expected an object of inputs, as data or as JSON text; {crew.name} takes {names}"
    )


def _whole_numbers(value: Any) -> Any:
    """The value with whole numbers as such: in data they all come as floating point numbers."""
    if isinstance(value, dict):
        return {name: _whole_numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _task(run: UserRun, *, artifacts: bool = True) -> Task:
    return Task(
        id=str(run.run_id),
        context_id=_context_id(run),
        status=_status(run),
        artifacts=_artifacts(run) if artifacts else [],
    )


def _context_id(run: UserRun) -> str:
    """What the client groups its tasks by; a task without a group is one of its own."""
    return run.context_id or str(run.run_id)


def _status(run: UserRun) -> TaskStatus:
    said = None
    if run.status == RunStatus.FAILED:
        said = new_text_message(f"{run.error_type}: {run.error}")
    changed_at = run.finished_at or run.started_at or run.created_at
    return TaskStatus(
        state=_STATES.get(run.status, TaskState.TASK_STATE_WORKING),
        message=said,
        timestamp=changed_at,
    )


def _progress(event: Event) -> TaskStatus | None:
    """What an event says of a task that goes on."""
    said = None
    if event.type in ("task.started", "task.finished"):
        said = new_text_message(f"{event.data['name']} {event.type.removeprefix('task.')}")
    elif event.type != "run.running":
        return None
    return TaskStatus(state=TaskState.TASK_STATE_WORKING, message=said, timestamp=event.at)


def _artifacts(run: UserRun) -> list[Artifact]:
    return [
        new_text_artifact(name, text, "text/markdown", artifact_id=name)
        for name, text in (run.outputs or {}).items()
    ]


@contextmanager
def _told() -> Iterator[None]:
    """Errors within the block become what A2A says of them."""
    try:
        yield
    except A2AError:
        raise
    except UnknownRun as error:
        raise TaskNotFoundError(str(error)) from None
    except InvalidInput as error:
        raise InvalidParamsError(str(error)) from None
    except Exception as error:
        raise InternalError(error_text(error)) from None
