"""Fault injection around a driver, for tests."""

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Literal, ParamSpec, TypeVar

from storage.drivers import Driver, Listing
from storage.errors import StorageError

P = ParamSpec("P")
T = TypeVar("T")

Operation = Literal["put", "get", "delete", "list"]
Fault = StorageError | Callable[[], Awaitable[None]]


class Faults(Driver):
    """A driver that fails on demand, for tests.

    calls: the number of calls of each operation.
    """

    def __init__(self, driver: Driver) -> None:
        self.location = driver.location
        self.backend = driver.backend
        self.calls: Counter[Operation] = Counter()
        self._driver = driver
        self._faults: dict[tuple[Operation, bool], list[Fault]] = {}

    def inject(
        self, operation: Operation, fault: Fault, *, times: int = 1, after: bool = False
    ) -> None:
        """Inject the fault into the next `times` calls, before the driver's call or `after` it.

        The fault is an error to raise (`delete` reports it for every name), or a function to await,
        which may wait or raise.
        """
        self._faults.setdefault((operation, after), []).extend([fault] * times)

    def heal(self) -> None:
        """Remove all pending faults."""
        self._faults.clear()

    async def start(self) -> None:
        await self._driver.start()

    async def put(self, name: str, data: bytes) -> None:
        await self._inject_around("put", self._driver.put, name, data)

    async def get(self, name: str) -> bytes:
        return await self._inject_around("get", self._driver.get, name)

    async def delete(self, names: Collection[str]) -> Mapping[str, StorageError]:
        try:
            return await self._inject_around("delete", self._driver.delete, names)
        except StorageError as error:
            return dict.fromkeys(names, error)

    async def list(self, prefix: str = "") -> Listing:
        return await self._inject_around("list", self._driver.list, prefix)

    async def aclose(self) -> None:
        await self._driver.aclose()

    async def _inject_around(
        self,
        operation: Operation,
        act: Callable[P, Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        self.calls[operation] += 1
        await self._inject_next(operation, after=False)
        result = await act(*args, **kwargs)
        await self._inject_next(operation, after=True)
        return result

    async def _inject_next(self, operation: Operation, *, after: bool) -> None:
        faults = self._faults.get((operation, after))
        if faults:
            fault = faults.pop(0)
            if isinstance(fault, StorageError):
                raise fault
            await fault()
