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

    calls: how often each operation was called.
    """

    def __init__(self, driver: Driver) -> None:
        self.location = driver.location
        self.calls: Counter[Operation] = Counter()
        self._driver = driver
        self._faults: dict[tuple[Operation, bool], list[Fault]] = {}

    def inject(
        self, operation: Operation, fault: Fault, *, times: int = 1, after: bool = False
    ) -> None:
        """Lets the next `times` calls meet the fault, before the driver does its work or `after`.

        The fault is an error to raise (`delete` reports it for every name), or a function to await,
        which may wait for something, or raise.
        """
        self._faults.setdefault((operation, after), []).extend([fault] * times)

    def heal(self) -> None:
        """Forgets the faults that nobody has met yet."""
        self._faults.clear()

    async def start(self) -> None:
        await self._driver.start()

    async def put(self, name: str, data: bytes) -> None:
        await self._meet("put", self._driver.put, name, data)

    async def get(self, name: str) -> bytes:
        return await self._meet("get", self._driver.get, name)

    async def delete(self, names: Collection[str]) -> Mapping[str, StorageError]:
        try:
            return await self._meet("delete", self._driver.delete, names)
        except StorageError as error:
            return dict.fromkeys(names, error)

    async def list(self, prefix: str = "") -> Listing:
        return await self._meet("list", self._driver.list, prefix)

    async def aclose(self) -> None:
        await self._driver.aclose()

    async def _meet(
        self,
        operation: Operation,
        act: Callable[P, Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        self.calls[operation] += 1
        await self._suffer(operation, after=False)
        answer = await act(*args, **kwargs)
        await self._suffer(operation, after=True)
        return answer

    async def _suffer(self, operation: Operation, *, after: bool) -> None:
        faults = self._faults.get((operation, after))
        if faults:
            fault = faults.pop(0)
            if isinstance(fault, StorageError):
                raise fault
            await fault()
