"""Keeps what the methods of a `@CrewBase` class return with their instance.

CrewAI keeps it in one dictionary of the process, under the `id` of the instance (`memoize` in
crewai/project/utils.py). So every crew ever built stays in memory, and an instance at the address
of a deleted one gets the crew of another run (crewAIInc/crewAI#7338).
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from crewai.project import utils

_ATTRIBUTE = "_memoized_results"
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


def _results_of(args: tuple[Any, ...]) -> "dict[Any, tuple[Any, Any, Any]] | None":
    """The results of the instance that is the first argument; None without an instance.

    A result is kept with its arguments: a key has their `id`, which must stay theirs.
    """
    if not args or not hasattr(args[0], "__dict__"):
        return None
    results: dict[Any, tuple[Any, Any, Any]] = vars(args[0]).setdefault(_ATTRIBUTE, {})
    return results


def _key(method: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    hashable = utils._make_hashable
    named = sorted((name, hashable(value)) for name, value in options.items())
    return str((method.__name__, [hashable(value) for value in args[1:]], named))
