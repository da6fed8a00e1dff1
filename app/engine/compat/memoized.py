"""Keeps what the methods of a `@CrewBase` class return with their instance.

CrewAI keeps it in one dictionary of the process, under the `id` of the instance (`memoize` in
crewai/project/utils.py). So every crew ever built stays in memory, and an instance at the address
of a deleted one gets the crew of another run (crewAIInc/crewAI#7338).
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from crewai import Crew
from crewai.project import utils

_ATTRIBUTE = "_memoized_results"
_Results = dict[Any, tuple[Any, Any, Any]]

_noted: ContextVar[list[Any] | None] = ContextVar("instances_with_results", default=None)
_own_memoize = utils.memoize


def memoize(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return `method`, called once for each instance and its arguments."""
    own = _own_memoize(method)  # for functions outside of classes
    if inspect.iscoroutinefunction(method):

        @wraps(method)
        async def memoized_coroutine(*args: Any, **options: Any) -> Any:
            if (results := _results_of(args)) is None:
                return await own(*args, **options)
            key = _key(method, args, options)
            if key not in results:
                results[key] = (args[1:], options, await method(*args, **options))
            return results[key][-1]

        return memoized_coroutine

    @wraps(method)
    def memoized(*args: Any, **options: Any) -> Any:
        if (results := _results_of(args)) is None:
            return own(*args, **options)
        key = _key(method, args, options)
        if key not in results:
            results[key] = (args[1:], options, method(*args, **options))
        return results[key][-1]

    return memoized


@contextmanager
def instances_noted() -> Iterator[list[Any]]:
    """Give a list of the instances that keep their first result within this."""
    noted: list[Any] = []
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


def forget_results(instance: Any) -> None:
    """Forget what an instance keeps, once its crew is not used any more.

    The instance, its methods and its crew refer to each other. Python's garbage collector would
    free them later, after thousands of further runs.
    """
    fields = vars(instance)
    results = fields.pop(_ATTRIBUTE, {})
    if any(isinstance(result, Crew) for *_, result in results.values()):
        for name in ("agents", "tasks"):  # CrewAI has set them when the crew was built
            fields.pop(name, None)
    if "__crew_metadata__" in fields:
        fields.pop("_all_methods", None)  # CrewAI uses them while it creates the instance
        fields["__crew_metadata__"]["after_kickoff"]["close_mcp_server"] = close_mcp_server


def close_mcp_server(instance: Any, outputs: Any) -> Any:
    """The hook of all instances, which is a method of the instance in CrewAI."""
    return instance.close_mcp_server(instance, outputs)


def _results_of(args: tuple[Any, ...]) -> _Results | None:
    """The results of the instance that is the first argument; None without an instance.

    A result is kept with its arguments: a key has their `id`, which must stay theirs.
    """
    if not args or not hasattr(args[0], "__dict__"):
        return None
    kept: _Results | None = vars(args[0]).get(_ATTRIBUTE)
    if kept is None:
        kept = vars(args[0])[_ATTRIBUTE] = {}
        if (noted := _noted.get()) is not None:
            noted.append(args[0])
    return kept


def _key(method: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    hashable = utils._make_hashable
    named = sorted((name, hashable(value)) for name, value in options.items())
    return str((method.__name__, [hashable(value) for value in args[1:]], named))
