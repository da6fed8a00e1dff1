"""Slots of webhook deliveries: slow receivers of one owner leave room for those of others."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

MAX_IN_FLIGHT: Final = 128
MAX_PER_HOST: Final = 32
# To all receivers whose circuit is open.
MAX_PROBES: Final = 16

_FAILURES_TO_OPEN: Final = 3
# A receiver that is forgotten begins with a closed circuit.
_MAX_RECEIVERS: Final = 1000


class Receiver(NamedTuple):
    """A host and port, as one owner's webhooks use it. Owners may share a host."""

    owner: str
    host: str


class CircuitBreakers:
    """Circuit breakers: one per receiver.

    Consecutive failures open a circuit. Then the receiver gets one delivery at a time, a probe,
    until one succeeds and closes the circuit.
    """

    def __init__(self, *, max_receivers: int = _MAX_RECEIVERS) -> None:
        self._max_receivers = max_receivers
        self._failures: dict[Receiver, int] = {}

    def record_failure(self, receiver: Receiver) -> None:
        self._failures[receiver] = self._failures.pop(receiver, 0) + 1
        if len(self._failures) > self._max_receivers:
            del self._failures[next(iter(self._failures))]  # the longest without a failure

    def record_success(self, receiver: Receiver) -> None:
        self._failures.pop(receiver, None)

    def is_open(self, receiver: Receiver) -> bool:
        return self._failures.get(receiver, 0) >= _FAILURES_TO_OPEN

    def open_receivers(self) -> Sequence[Receiver]:
        return [receiver for receiver in self._failures if self.is_open(receiver)]


class DeliverySlots:
    """The slots that deliveries in flight leave free (bulkhead).

    There is a limit in all, one for each host, and one for probes. Within each, an owner may hold
    at most as many slots as remain free. So an owner alone gets half of them, and each further
    owner finds free ones.
    """

    def __init__(self, in_flight: Iterable[Receiver], breakers: CircuitBreakers) -> None:
        self._breakers = breakers
        self._all = _Pool(MAX_IN_FLIGHT)
        self._probes = _Pool(MAX_PROBES)
        self._by_host: dict[str, _Pool] = {}
        self._busy: set[Receiver] = set()
        for receiver in in_flight:
            self._hold(receiver)

    def acquire(self, receiver: Receiver) -> bool:
        """Hold a slot for a delivery. Returns False if the receiver may not get one now."""
        admitted = self._all.admits(receiver.owner) and self._admits(receiver)
        if admitted:
            self._hold(receiver)
        return admitted

    def full_owners(self) -> Sequence[str]:
        """The owners that may begin no delivery now."""
        return self._all.full_owners()

    def full_receivers(self) -> Sequence[Receiver]:
        """The receivers that may get no delivery now, though their owner may begin others."""
        known = {*self._busy, *self._breakers.open_receivers()}
        return [receiver for receiver in known if not self._admits(receiver)]

    def _admits(self, receiver: Receiver) -> bool:
        owner, host = receiver
        if self._breakers.is_open(receiver):
            return receiver not in self._busy and self._probes.admits(owner)
        return host not in self._by_host or self._by_host[host].admits(owner)

    def _hold(self, receiver: Receiver) -> None:
        owner, host = receiver
        self._all.hold(owner)
        self._by_host.setdefault(host, _Pool(MAX_PER_HOST)).hold(owner)
        # Those that were in flight when the circuit opened count as one probe.
        if self._breakers.is_open(receiver) and receiver not in self._busy:
            self._probes.hold(owner)
        self._busy.add(receiver)


class _Pool:
    """Slots with a dynamic threshold: an owner holds at most as many as remain free."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._held: Counter[str] = Counter()

    def admits(self, owner: str) -> bool:
        return self._held[owner] < self._free

    def hold(self, owner: str) -> None:
        self._held[owner] += 1
        self._free -= 1

    def full_owners(self) -> Sequence[str]:
        return [owner for owner in self._held if not self.admits(owner)]
