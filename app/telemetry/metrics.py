"""The table of all metrics, and the functions that record calls of models and tools.

Names have the units of Prometheus. Those of OpenTelemetry's conventions are used where they exist.
The values of labels are few: registered crews, statuses, backends, models, tools, routes.
"""

from collections.abc import Callable, Iterable
from typing import Final

from app.telemetry.instruments import (
    Combine,
    Counter,
    Gauge,
    Histogram,
    Instrument,
    Labels,
    Numbers,
    leave_shared_folder,
    read_numbers,
    recording,
    render,
    shared_folder,
)

__all__ = [
    "TABLE",
    "Numbers",
    "leave_shared_folder",
    "read_numbers",
    "recording",
    "render",
    "shared_folder",
]

TABLE: Final = Instrument.table
"""All metrics by name."""

OTHER: Final = "other"
"""The label of crews that are not registered, and of models and tools beyond a limit."""

# Of names that crews' code chooses. Further ones count as OTHER.
_MAX_NAMES: Final = 100

_SHORT: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_REQUESTS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_RUNS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_QUEUES: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
# Those of the conventions.
_CALLS: Final = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64),
    *(1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
_CHANGES: Final = (1, 2, 5, 10, 25, 50, 100, 250, 500)

_MODEL: Final = ("gen_ai_request_model",)
_TOOL: Final = ("gen_ai_tool_name",)
_ERROR: Final = ("error_type",)


def _of_store(memory: Combine) -> Callable[[Labels], Combine]:
    """How numbers of backends are combined: each process has a memory of its own."""
    return lambda labels: memory if labels == ("memory",) else "newest"


# Runs.
RUNS_SUBMITTED = Counter("crewcapture_runs_submitted_total", "Accepted runs.", ("crew",))
RUNS_ENDED = Counter(
    "crewcapture_runs_ended_total",
    "Runs that ended. error_type is empty for those that succeeded. A retried run ends again.",
    ("crew", "status", "error_type"),
)
RUN_DURATION = Histogram(
    "crewcapture_run_duration_seconds",
    "Time from the start of the last attempt to the end of the run.",
    ("crew", "status"),
    bounds=_RUNS,
)
RUN_QUEUE_DURATION = Histogram(
    "crewcapture_run_queue_duration_seconds",
    "Time from the submission of a run to its first attempt.",
    ("crew",),
    bounds=_QUEUES,
)
RUNS = Gauge(
    "crewcapture_runs",
    "Runs in the database that have not ended, of all machines.",
    ("status",),
    "newest",
)
RUN_SLOTS = Gauge("crewcapture_run_slots", "MAX_RUNS_IN_FLIGHT of all processes here.")
RUN_SLOTS_USED = Gauge("crewcapture_run_slots_used", "Runs that have a slot.")

# Leases and attempts.
RUN_LEASES = Gauge("crewcapture_run_leases", "Runs that processes here execute, or have queued.")
LEASE_RENEWALS = Counter(
    "crewcapture_lease_renewals_total", "Renewals of a process's leases.", ("result",)
)
RUN_TAKEOVERS = Counter(
    "crewcapture_run_takeovers_total", "Runs claimed that another process had held.", ("crew",)
)
SCHEDULES_DISPATCHED = Counter(
    "crewcapture_schedules_dispatched_total",
    "Due times of schedules: submitted, skipped, postponed, failed.",
    ("result",),
)
ATTEMPTS_DROPPED = Counter(
    "crewcapture_attempts_dropped_total",
    "Attempts whose outcome was dropped, because another attempt had begun.",
)

# The queue between processes (QUEUE_URL).
QUEUE_DISCONNECTED = Gauge(
    "crewcapture_queue_disconnected", "Processes here that can't reach the broker of QUEUE_URL."
)
QUEUE_PUBLISHED = Counter(
    "crewcapture_queue_published_total", "Ids of runs that were published to the broker."
)
QUEUE_DELIVERED = Counter(
    "crewcapture_queue_delivered_total", "Ids of runs that the broker has delivered."
)
QUEUE_RECONNECTS = Counter(
    "crewcapture_queue_reconnects_total", "Connections to the broker after an outage."
)

# Calls of models and tools.
MODEL_CALLS_IN_FLIGHT = Gauge("crewcapture_model_calls_in_flight", "Model calls under way.", _MODEL)
MODEL_CALL_DURATION = Histogram(
    "gen_ai_client_inference_duration_seconds",
    "Time of a model call with its retries. error_type is empty for those that succeeded.",
    _MODEL + _ERROR,
    bounds=_CALLS,
)
MODEL_FIRST_CHUNK = Histogram(
    "gen_ai_client_inference_time_to_first_chunk_seconds",
    "Time from a streaming model call to its first tokens.",
    _MODEL,
    bounds=_CALLS,
)
INPUT_TOKENS = Counter(
    "gen_ai_client_inference_usage_input_tokens_total",
    "Input tokens that models reported, cached ones included.",
    _MODEL,
)
OUTPUT_TOKENS = Counter(
    "gen_ai_client_inference_usage_output_tokens_total",
    "Output tokens that models reported.",
    _MODEL,
)
CACHED_TOKENS = Counter(
    "gen_ai_client_inference_usage_cache_read_input_tokens_total",
    "Input tokens that models had in a cache.",
    _MODEL,
)
MODEL_CALL_RETRIES = Counter(
    "crewcapture_model_call_retries_total", "Repeated requests of model calls.", _MODEL
)
MODEL_CALL_WAIT = Histogram(
    "crewcapture_model_call_wait_duration_seconds",
    "Time that a model call waited for a connection.",
    _MODEL,
    bounds=_SHORT,
)
TOOL_CALLS_IN_FLIGHT = Gauge("crewcapture_tool_calls_in_flight", "Tool calls under way.", _TOOL)
TOOL_CALL_DURATION = Histogram(
    "gen_ai_execute_tool_duration_seconds",
    "Time of a tool call. error_type is empty for those that succeeded.",
    _TOOL + _ERROR,
    bounds=_CALLS,
)

# The output store.
STORED_OUTPUTS = Gauge(
    "crewcapture_stored_outputs", "Stored outputs.", ("backend",), _of_store("sum")
)
STORED_BYTES = Gauge(
    "crewcapture_stored_outputs_bytes", "Size of stored outputs.", ("backend",), _of_store("sum")
)
OLDEST_OUTPUT = Gauge(
    "crewcapture_stored_outputs_oldest_age_seconds",
    "Age of the oldest stored output; 0 without any.",
    ("backend",),
    _of_store("max"),
)
STORAGE_FREE = Gauge(
    "crewcapture_storage_free_bytes",
    "Room for outputs, where the backend knows it.",
    ("backend",),
    _of_store("sum"),
)
STORAGE_UP = Gauge(
    "crewcapture_storage_up",
    "1 if the backend could be listed, otherwise 0.",
    ("backend",),
    "newest",
)
STORAGE_OPERATIONS = Counter(
    "crewcapture_storage_operations_total",
    "Outputs that were to be stored (persist), read or deleted.",
    ("operation", "result"),
)
PERSISTED_BYTES = Counter("crewcapture_storage_persisted_bytes_total", "Size of outputs stored.")
READ_RETRIES = Counter("crewcapture_storage_read_retries_total", "Repeated reads of an output.")
CLEANUP_FAILURES = Counter(
    "crewcapture_storage_cleanup_failures_total", "Outputs that could not be deleted."
)
SWEEPS = Counter(
    "crewcapture_storage_sweeps_total",
    "Sweeps. Unless the result is done, a location was left as it was.",
    ("result",),
)
LAST_SWEEP = Gauge(
    "crewcapture_storage_last_sweep_timestamp_seconds",
    "Time of the last sweep with this result, in Unix time.",
    ("result",),
    "max",
)
SWEPT_OUTPUTS = Counter("crewcapture_storage_swept_outputs_total", "Outputs that sweeps removed.")
SWEPT_BYTES = Counter(
    "crewcapture_storage_swept_bytes_total", "Size of outputs that sweeps removed."
)

# The database.
DATABASE_UP = Gauge(
    "crewcapture_database_up",
    "1 if the database answered the last scrape, otherwise 0.",
    combine="newest",
)
DATABASE_ERRORS = Counter(
    "crewcapture_database_errors_total", "Queries that failed: the database was unavailable."
)
COMMIT_DURATION = Histogram(
    "crewcapture_database_commit_duration_seconds",
    "Time of a transaction that joins the changes of many runs.",
    bounds=_SHORT,
)
COMMIT_CHANGES = Histogram(
    "crewcapture_database_commit_changes",
    "Changes that were joined in a transaction.",
    bounds=_CHANGES,
)

# Webhooks.
WEBHOOKS_PENDING = Gauge(
    "crewcapture_webhook_deliveries_pending",
    "Deliveries of webhooks that are due or wait for a retry, counted up to 10,000.",
    combine="newest",
)
OLDEST_WEBHOOK = Gauge(
    "crewcapture_webhook_deliveries_oldest_age_seconds",
    "Age of the oldest pending delivery; 0 without any.",
    combine="newest",
)
WEBHOOK_ATTEMPTS = Counter(
    "crewcapture_webhook_attempts_total",
    "Attempts to deliver a webhook: delivered, retried later, or failed for good.",
    ("result",),
)

# HTTP.
REQUEST_DURATION = Histogram(
    "http_server_request_duration_seconds",
    "Time of a request until its response ended. Status 0: the client disconnected before.",
    ("http_request_method", "http_route", "http_response_status_code"),
    bounds=_REQUESTS,
)
ACTIVE_REQUESTS = Gauge("http_server_active_requests", "Requests under way.")
SUBSCRIBERS = Gauge("crewcapture_subscribers", "Clients that receive the events of a run.")

# Processes.
PROCESSES = Gauge("crewcapture_processes", "Processes that execute runs.")
EVENT_LOOP_LAG = Histogram(
    "crewcapture_event_loop_lag_seconds",
    "Time that a due callback waited for the event loop, sampled twice a second.",
    bounds=_SHORT,
)
ABANDONED_THREADS = Gauge(
    "crewcapture_abandoned_threads", "Threads that execute code of runs that have ended."
)
PROCESS_CPU = Counter("process_cpu_seconds_total", "CPU time of all processes.")
PROCESS_MEMORY = Gauge("process_resident_memory_bytes", "Resident memory of all processes.")
PROCESS_FILES = Gauge("process_open_fds", "Open file descriptors of all processes.")
PROCESS_MAX_FILES = Gauge("process_max_fds", "Limit of open file descriptors of all processes.")
PROCESS_START = Gauge(
    "process_start_time_seconds", "Start of the newest process, in Unix time.", combine="max"
)


class _Names:
    """The names that label calls, the first of them; further ones are OTHER."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        if name in self._known:
            return name
        if len(self._known) >= _MAX_NAMES:
            return OTHER
        self._known.add(name)
        return name


_models, _tools, _errors = _Names(), _Names(), _Names()


def count_model_calls_in_flight(model: str, change: int) -> None:
    """Count a model call that begins (1) or ends (-1)."""
    MODEL_CALLS_IN_FLIGHT.inc(_models.label(model), by=change)


def observe_model_call(
    *,
    model: str,
    end: str,
    seconds: float,
    seconds_to_first_token: float | None,
    input_tokens: int,
    output_tokens: int,
    cached_tokens: int,
    retries: int,
    waited_seconds: float,
) -> None:
    """Record a model call that has ended: `end` is "ok", or the type of the error."""
    name = _models.label(model)
    MODEL_CALL_DURATION.observe(seconds, name, _error(end))
    if seconds_to_first_token is not None:
        MODEL_FIRST_CHUNK.observe(seconds_to_first_token, name)
    if input_tokens:
        INPUT_TOKENS.inc(name, by=input_tokens)
    if output_tokens:
        OUTPUT_TOKENS.inc(name, by=output_tokens)
    if cached_tokens:
        CACHED_TOKENS.inc(name, by=cached_tokens)
    if retries:
        MODEL_CALL_RETRIES.inc(name, by=retries)
    MODEL_CALL_WAIT.observe(waited_seconds, name)


def count_tool_calls_in_flight(tool: str, change: int) -> None:
    """Count a tool call that begins (1) or ends (-1)."""
    TOOL_CALLS_IN_FLIGHT.inc(_tools.label(tool), by=change)


def observe_tool_call(*, tool: str, end: str, seconds: float) -> None:
    """Record a tool call that has ended: `end` is "ok", or the type of the error."""
    TOOL_CALL_DURATION.observe(seconds, _tools.label(tool), _error(end))


def prepare_crews(crews: Iterable[str]) -> None:
    """Show the metrics of crews before their first runs: a rate needs to know that they were 0."""
    for crew in crews:
        RUNS_SUBMITTED.prepare(crew)
        RUN_TAKEOVERS.prepare(crew)
        RUN_QUEUE_DURATION.prepare(crew)
        RUNS_ENDED.prepare(crew, "succeeded", "")
        RUN_DURATION.prepare(crew, "succeeded")
        RUN_DURATION.prepare(crew, "failed")


def _error(end: str) -> str:
    return "" if end == "ok" else _errors.label(end)
