"""The idempotency keys of runs that MCP clients submit."""

import hashlib

import msgspec


def run_key(session_id: str, request_id: object) -> str:
    """The idempotency key of a request's run: a repeated request gets the same run."""
    of_request = msgspec.json.encode([session_id, request_id])
    return f"mcp:{hashlib.sha256(of_request).hexdigest()}"
