"""Uvicorn's internals: `app.cli` bounds its connections and supervises its processes."""

from app.pins.pin import Pin

PINS: tuple[Pin, ...] = (
    # Extended by connections.py
    Pin(
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.connection_made",
        "6efb565ff3d3",
        "sets `loop` and `transport`, which the deadline for headers uses",
    ),
    Pin(
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.connection_lost",
        "c91a4c9bf2e2",
        "the deadline for headers ends with the connection",
    ),
    Pin(
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.data_received",
        "010a7ae59a5d",
        "feeds the parser, which calls the methods below; header bytes are counted after it",
    ),
    Pin(
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.on_message_begin",
        "96d377fdc7c2",
        "a further request on a connection starts its deadline here",
    ),
    Pin(
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.on_headers_complete",
        "1ea8589acfad",
        "the deadline for headers ends here",
    ),
    Pin(
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.on_message_complete",
        "1fbad42dc31f",
        "called at the end of a body, also if its response was sent before",
    ),
    Pin(
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.pause_writing",
        "17a8fd215d96",
        "called when the client does not read: the deadline for sending starts here",
    ),
    Pin(
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.resume_writing",
        "7844bbaa8cce",
        "called when the client has read: the deadline starts anew",
    ),
    Pin(
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.on_response_complete",
        "64e254f28e38",
        "may close the connection, whose unsent data then has the deadline",
    ),
    Pin(
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.timeout_keep_alive_handler",
        "8b53bf5f2e20",
        "closes an idle connection, whose unsent data then has the deadline",
    ),
    Pin(
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.send_400_response",
        "ae5a4a3782b6",
        "called after bytes that are not HTTP: ours answers with JSON, and not into a response",
    ),
    # Read by connections.py
    Pin(
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol._unset_keepalive_if_required",
        "00a6a4e47214",
        "any byte ends the keep-alive: only the deadline then closes the connection",
    ),
    Pin(
        "uvicorn.protocols.http.httptools_impl:RequestResponseCycle.send",
        "abdd8601b326",
        "`response_complete` ends a response, and `keep_alive` False closes the connection",
    ),
    Pin(
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.on_body",
        "dba9c32aeba3",
        "sets `message_event` of its cycle when a part of a body can be received",
    ),
    Pin(
        "uvicorn.protocols.http.httptools_impl:RequestResponseCycle.receive",
        "8124ae006be7",
        "resumes reading, and waits for `message_event`",
    ),
    # Extended and replaced by supervisor.py
    Pin(
        "uvicorn.supervisors.multiprocess:Multiprocess",
        "ea4650ac0ee7",
        "init_processes, keep_subprocess_alive, restart_all, handle_ttou and join_all are replaced",
    ),
    Pin(
        "uvicorn.supervisors.multiprocess:Process",
        "c3105a4518e3",
        "the supervisor sends the pings itself, over `parent_conn`",
    ),
    # Around the application (serve.py)
    Pin(
        "uvicorn.server:Server.capture_signals",
        "e1bbcd4770d1",
        "sets the signal handlers that ours call, and raises the signal again after the stop",
    ),
    Pin(
        "uvicorn.server:Server.startup",
        "2aa1d70a244b",
        "`started` stays False, or the process exits, where the start fails",
    ),
)
