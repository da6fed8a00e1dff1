"""Pacing: the callers of a process share its event loop (fair queueing by measured cost)."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from math import exp
from typing import Any, Final, Generic, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

# Steps of runs and requests need up to a millisecond each. A statement of the database lasts some
# passes, so that a pass must be short.
_PER_PASS: Final = 2
# A caller that used more of the loop's time in about the last second is heavy, unless the heaviest
# one used more than this multiple of its use. Others are light.
_HEAVY_SECONDS: Final = 0.1
_HEAVIEST_FACTOR: Final = 2.0
# While a light caller is active, heavy callers rest after each step, for this multiple of its time.
_REST_FACTOR: Final = 2.0
_MAX_REST_SECONDS: Final = 0.1
# After a long step of a heavy caller, the loop is free for this time. So requests that have arrived
# meanwhile are read before the next such step, also those of callers that were not active.
_LONG_SECONDS: Final = 0.005
_PAUSE_SECONDS: Final = 0.001
# So long after a step, its caller is active. A commit, which the caller waits for, lasts so long.
_ACTIVE_SECONDS: Final = 0.05
# Event loops round shorter times to none, so that they would be busy with waiting.
_MIN_TIMER_SECONDS: Final = 0.001
# Nothing is left then of the use of a second.
_FORGOTTEN_SECONDS: Final = 10.0
_MIN_ACCOUNTS: Final = 1000

P = ParamSpec("P")
T = TypeVar("T")


class Pacer:
    """Shares an event loop among callers.

    A pass of the loop executes all tasks that are ready. A thousand runs that are claimed together
    would block all requests for a second. So tasks wait for their turn before a step that may be
    long. A few tasks proceed in each pass, callers in rotation.

    Each step is charged to its caller: the time in which it blocked the loop. While light callers
    are active, heavy ones get about a third of the loop. One of their tasks proceeds at a time, of
    the caller with the least use. A rest follows, which is twice as long as its steps. A caller
    that is alone does not rest, but pauses for a millisecond after a long step.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now: Final = now
        self._light = _Waiting()
        self._heavy = _Waiting()
        self._accounts: dict[str, _Account] = {}
        # All accounts fade alike, so that a charge alone can change which one it is.
        self._heaviest = _Account(0.0)
        self._prune_at = _MIN_ACCOUNTS
        self._rest_until = 0.0
        self._active_until = 0.0
        self._pause_until = 0.0
        self._is_long = False  # the last step of a heavy caller
        self._proceeding = 0  # in this pass
        self._is_counting = False  # the next pass is scheduled
        self._rest: asyncio.TimerHandle | None = None

    async def turn(self, caller: str, *, is_long: bool = False) -> None:
        """Return at once, or in a later pass when it is the caller's turn.

        After a step that `is_long`, no other one proceeds in the same pass.
        """
        is_heavy = self._is_heavy(caller)
        waiting = self._heavy if is_heavy else self._light
        if waiting or self._proceeding >= (self._heavy_per_pass() if is_heavy else _PER_PASS):
            future = waiting.add(caller, _share_of_pass(is_long))
            self._wake_later()
            await future
        else:
            self._proceeding += _share_of_pass(is_long)
            self._wake_later()

    def charge(self, caller: str, seconds: float) -> None:
        """Count a step of the caller, which blocked the loop for this time."""
        now = self.now()
        account = self._accounts.get(caller) or self._open_account(caller, now)
        account.used = seconds + account.used_at(now)
        account.at = now
        if account.used > self._heaviest.used_at(now):
            self._heaviest = account
        if not self._is_heavy(caller):
            self._active_until = now + _ACTIVE_SECONDS
        else:
            rest_until = max(self._rest_until, now) + _REST_FACTOR * seconds
            self._rest_until = min(rest_until, now + _MAX_REST_SECONDS)
            self._is_long = seconds > _LONG_SECONDS
            if self._is_long:
                self._pause_until = now + _PAUSE_SECONDS

    def _use(self, caller: str) -> float:
        account = self._accounts.get(caller)
        return account.used_at(self.now()) if account else 0.0

    def _is_heavy(self, caller: str) -> bool:
        use = self._use(caller)
        if use <= _HEAVY_SECONDS:
            return False
        return _HEAVIEST_FACTOR * use >= self._heaviest.used_at(self.now())

    def _open_account(self, caller: str, now: float) -> "_Account":
        if len(self._accounts) >= self._prune_at:
            kept = {c: a for c, a in self._accounts.items() if a.at > now - _FORGOTTEN_SECONDS}
            self._accounts = kept
            self._prune_at = max(_MIN_ACCOUNTS, 2 * len(kept))
        account = self._accounts[caller] = _Account(now)
        return account

    def _heavy_per_pass(self) -> int:
        """How many tasks of heavy callers may proceed in this pass."""
        now = self.now()
        if now >= self._active_until:
            return int(now >= self._pause_until) if self._is_long else _PER_PASS
        return int(now >= self._rest_until)

    def _wake_later(self) -> None:
        """Schedule the next pass, or the end of the rest that all waiting tasks wait for."""
        loop = asyncio.get_running_loop()
        if self._proceeding:
            if not self._is_counting:
                self._is_counting = True
                loop.call_soon(self._next_pass)
        elif self._heavy and self._rest is None:
            rest_until = max(min(self._rest_until, self._active_until), self._pause_until)
            rest = max(rest_until - self.now(), _MIN_TIMER_SECONDS)
            self._rest = loop.call_later(rest, self._end_rest)

    def _next_pass(self) -> None:
        self._proceeding = 0
        self._is_counting = False
        allowed = min(self._heavy_per_pass(), 1 if self._light else _PER_PASS)
        while self._heavy and self._proceeding < allowed:
            self._proceeding += self._heavy.release(min(self._heavy, key=self._use))
        while self._light and self._proceeding < _PER_PASS:
            caller = next(iter(self._light))
            if self._is_heavy(caller):  # since it began to wait
                self._heavy.move(caller, self._light)
            else:
                self._proceeding += self._light.release(caller)
        self._wake_later()

    def _end_rest(self) -> None:
        self._rest = None
        if not self._is_counting:
            self._next_pass()


def _share_of_pass(is_long: bool) -> int:
    return _PER_PASS if is_long else 1


class _Waiting(OrderedDict[str, deque[tuple[asyncio.Future[None], int]]]):
    """The tasks that wait, by their callers: the caller whose turn is next is the first."""

    def add(self, caller: str, share: int) -> asyncio.Future[None]:
        """A future that ends when the task proceeds; `share` is that of its pass."""
        future = asyncio.get_running_loop().create_future()
        self.setdefault(caller, deque()).append((future, share))
        return future

    def move(self, caller: str, other: "_Waiting") -> None:
        """Move the caller's tasks here from the others."""
        self.setdefault(caller, deque()).extend(other.pop(caller))

    def release(self, caller: str) -> int:
        """Let the caller's oldest task proceed, and the other callers before its next one.

        Returns the task's share of the pass: 0 if the task was cancelled.
        """
        futures = self.pop(caller)
        future, share = futures.popleft()
        if futures:
            self[caller] = futures
        if future.done():
            return 0
        future.set_result(None)
        return share


class _Account:
    """The loop's time that a caller used, as it was `at` a time. It fades within seconds."""

    __slots__ = ("at", "used")

    def __init__(self, at: float) -> None:
        self.used = 0.0
        self.at = at

    def used_at(self, now: float) -> float:
        return self.used * exp(self.at - now)


class _Meter:
    """The caller of a request or a run; None until it is known."""

    __slots__ = ("caller",)

    def __init__(self, caller: str | None) -> None:
        self.caller = caller


_PACERS: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, Pacer]] = WeakKeyDictionary()
# Tasks that a request or a run creates inherit its meter.
_METER: Final[ContextVar[_Meter | None]] = ContextVar("_METER", default=None)


async def turn(*, is_long: bool = False) -> None:
    """Wait for a turn of the caller of this request or run, before a step that may be long.

    With `is_long` it may last tens of milliseconds, so no other one proceeds in the same pass.
    """
    meter = _METER.get()
    await _pacer().turn((meter and meter.caller) or "", is_long=is_long)


async def next_step() -> None:
    """End this step of a long computation, so that it is charged, and wait for a turn."""
    await asyncio.sleep(0)
    await turn()


async def metered(
    caller: str | None,
    function: Callable[P, Coroutine[Any, Any, T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Await `function`, and charge its steps to a caller: None until `identify` names it."""
    _METER.set(_Meter(caller))
    return await inherited(function, *args, **kwargs)


async def inherited(
    function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Await `function` in a task of its own, and charge its steps to the task's creator."""
    meter = _METER.get()
    if meter is None:
        return await function(*args, **kwargs)
    return await _Steps(function(*args, **kwargs), meter, _pacer())


def identify(caller: str) -> None:
    """Name the caller of this request: its step under way and all later ones are charged to it."""
    meter = _METER.get()
    if meter is not None:
        meter.caller = caller


def _pacer() -> Pacer:
    """The pacer of the running event loop."""
    loop = asyncio.get_running_loop()
    pacer = _PACERS.get(loop)
    if pacer is None:
        pacer = _PACERS[loop] = Pacer()
    return pacer


class _Steps(Generic[T]):
    """An awaitable that executes a coroutine, and charges each of its steps.

    A step lasts until the coroutine awaits something that is not there yet.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], meter: _Meter, pacer: Pacer) -> None:
        self._coroutine = coroutine
        self._meter = meter
        self._pacer = pacer

    def __await__(self) -> Generator[Any, Any, T]:
        meter, pacer = self._meter, self._pacer
        now, send, throw = pacer.now, self._coroutine.send, self._coroutine.throw
        error: BaseException | None = None
        while True:
            begun = now()
            try:
                awaited = send(None) if error is None else throw(error)
            except StopIteration as end:
                result: T = end.value
                return result
            finally:
                error = None  # its traceback refers to this frame
                if meter.caller is not None:
                    pacer.charge(meter.caller, now() - begun)
            try:
                yield awaited
            except BaseException as raised:  # to raise in the coroutine, as CancelledError
                error = raised
