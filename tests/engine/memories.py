"""What memories do with a recording model: their analyses, and calls without random parts."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from tests.engine.recording import Request, hashed

_RANDOM = re.compile(r"id=[0-9a-f-]{36}|created=[0-9T:.-]+")


def analysis(request: Request, nth: int) -> Any:
    """Answers each kind of a memory's analyses with JSON that depends on the request."""
    system = str(request.messages[0]["content"])
    if request.task:
        return hashed(request, nth)
    if "extract discrete" in system:
        return json.dumps({"memories": [f"fact {digest_of(request)} on tea", "tea is green"]})
    if "Existing scopes" in request.last:
        found = {"suggested_scope": f"/notes/{digest_of(request)[:1]}", "categories": ["tea"]}
        return json.dumps({**found, "importance": 0.7, "extracted_metadata": {}})
    if "EXISTING" in request.last.upper():
        return json.dumps({"actions": [], "insert_new": True, "insert_reason": "new"})
    # One query: of two that find a memory, CrewAI shows the score of whichever ends first.
    queries = [f"green tea {digest_of(request)}"]
    return json.dumps({"keywords": [], "recall_queries": queries, "complexity": "complex"})


def comparable(
    calls: Mapping[tuple[str, str], list[Request]],
) -> dict[tuple[str, str], list[str]]:
    """All that the model was sent. The analyses of a memory are concurrent: in any order."""
    sent = {
        key: [_RANDOM.sub("", json.dumps(vars(call), default=str)) for call in made]
        for key, made in calls.items()
    }
    return {key: made if key[0] else sorted(made) for key, made in sent.items()}


def digest_of(request: Request) -> str:
    """A digest of the messages without random parts."""
    return hashlib.sha256(_RANDOM.sub("", json.dumps(request.messages)).encode()).hexdigest()[:12]
