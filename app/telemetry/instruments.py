"""Counters, gauges and histograms that all processes of a service show together.

Each process writes its values to files in a folder that the processes share: memory maps in the
format of prometheus-client's multiprocess mode. A scrape reads all files, in any process. The
client's own classes decide at import whether they use files, and mix in the metrics of crews' code.

A process holds a slot, a number that names its files. Its lock ends with the process. The next
process with that slot continues the totals, so that counters never fall, and deletes the gauges. So
the number of files is that of processes at a time.
"""

import fcntl
import json
import math
import os
import shutil
import struct
import tempfile
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import IO, Final, Literal, NamedTuple

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.utils import floatToGoString

_VARIABLE: Final = "CREW_CAPTURE_METRICS_FOLDER"
_PREFIX: Final = "crew-capture-metrics-"
# A folder without users that is younger may be one that another process creates just now.
_ABANDONED_AFTER_SECONDS: Final = 60.0
# Of calls in threads. Each holds it for less than a microsecond.
_lock: Final = threading.Lock()

Labels = tuple[str, ...]
Kind = Literal["counter", "gauge", "histogram"]
Combine = Literal["sum", "max", "newest"]


class _Key(NamedTuple):
    """A value in a file. `part` of a histogram is `sum` or the index of a bucket."""

    name: str
    labels: Labels
    part: str

    def encode(self) -> str:
        return json.dumps(self)


@cache
def _decode(key: str) -> _Key:
    name, labels, part = json.loads(key)
    return _Key(name, tuple(labels), part)


class _Value:
    """One number of this process, and its copy in a file while the process records."""

    __slots__ = ("key", "number")

    def __init__(self, key: str, file: MmapedDict | None) -> None:
        self.key = key
        self.number = 0.0
        self.open(file)

    def open(self, file: MmapedDict | None) -> None:
        """Continue the number in the file; begin at 0 without one."""
        self.number = 0.0 if file is None else file.read_value(self.key)[0]


class Instrument:
    """A metric with its name, help and labels; `table` holds all of them, in their order.

    The value of each label is one of a few: the number of time series is bounded.
    """

    kind: Kind
    table: Final[dict[str, "Instrument"]] = {}

    def __init__(self, name: str, help_: str, labels: Labels = ()) -> None:
        self.name = name
        self.help = help_
        self.labels = labels
        self._file: MmapedDict | None = None
        self._values: dict[Labels, list[_Value]] = {}
        Instrument.table[name] = self
        if not labels:
            self.prepare()

    def prepare(self, *labels: str) -> None:
        """Show the value before its first change: a rate needs to know that it was 0."""
        with _lock:
            self._find(labels)

    def open(self, file: MmapedDict | None) -> None:
        """Record in the file from now on; without one, in memory. Values of labels start anew."""
        self._file = file
        if file is None:
            self._values = {} if self.labels else self._values
        for values in self._values.values():
            for value in values:
                value.open(file)

    def parts(self) -> Sequence[str]:
        """The numbers of which each value consists."""
        return ("",)

    def samples(self, metric: Metric, numbers: Mapping[str, float], labels: Labels) -> None:
        """Add the samples of one value to a metric family."""
        metric.add_sample(self.name, self._named(labels), numbers[""])

    def _find(self, labels: Labels) -> list[_Value]:
        """The value of these labels. The lock must be held."""
        found = self._values.get(labels)
        if found is None:
            if len(labels) != len(self.labels):
                raise ValueError(f"{self.name} has the labels {self.labels}, not {labels}")
            keys = [_Key(self.name, labels, part).encode() for part in self.parts()]
            found = self._values[labels] = [_Value(key, self._file) for key in keys]
        return found

    def _add(self, value: _Value, amount: float) -> None:
        value.number += amount
        if self._file is not None:
            self._file.write_value(value.key, value.number, 0.0)

    def _named(self, labels: Labels) -> dict[str, str]:
        return dict(zip(self.labels, labels, strict=True))


class Counter(Instrument):
    """A total that only grows."""

    kind: Kind = "counter"

    def inc(self, *labels: str, by: float = 1.0) -> None:
        with _lock:
            self._add(self._find(labels)[0], by)


class Gauge(Instrument):
    """A number that grows and falls. It disappears with its process.

    `combine` is how the numbers of several processes become one, perhaps by the labels. `newest` is
    for facts that all processes share: the last one that is set counts.
    """

    kind: Kind = "gauge"

    def __init__(
        self,
        name: str,
        help_: str,
        labels: Labels = (),
        combine: Combine | Callable[[Labels], Combine] = "sum",
    ) -> None:
        self._combine = combine
        super().__init__(name, help_, labels)

    def inc(self, *labels: str, by: float = 1.0) -> None:
        with _lock:
            self._add(self._find(labels)[0], by)

    def set(self, number: float | None, *labels: str) -> None:
        """Set the number; None if it is not known, and then it is not shown."""
        with _lock:
            (value,) = self._find(labels)
            value.number = math.nan if number is None else number
            if self._file is not None:
                self._file.write_value(value.key, value.number, time.time())

    def combined(self, labels: Labels, numbers: Sequence[tuple[float, float]]) -> float:
        """One number of those of the processes, each with the time at which it was set."""
        combine = self._combine if isinstance(self._combine, str) else self._combine(labels)
        if combine == "newest":
            return max(numbers, key=lambda each: each[1])[0]
        known = [number for number, _ in numbers if not math.isnan(number)]
        if not known:
            return math.nan
        return sum(known) if combine == "sum" else max(known)


class Histogram(Instrument):
    """The distribution of a number: how often it was within each of some bounds, and its sum."""

    kind: Kind = "histogram"

    def __init__(
        self, name: str, help_: str, labels: Labels = (), *, bounds: Sequence[float]
    ) -> None:
        self.bounds = tuple(bounds)
        super().__init__(name, help_, labels)

    def observe(self, number: float, *labels: str) -> None:
        with _lock:
            values = self._find(labels)
            self._add(values[-1], number)
            self._add(values[bisect_left(self.bounds, number)], 1.0)

    def parts(self) -> Sequence[str]:
        return [*map(str, range(len(self.bounds) + 1)), "sum"]

    def samples(self, metric: Metric, numbers: Mapping[str, float], labels: Labels) -> None:
        named, total = self._named(labels), 0.0
        for index, bound in enumerate((*self.bounds, math.inf)):
            total += numbers[str(index)]
            le = {**named, "le": floatToGoString(bound)}
            metric.add_sample(f"{self.name}_bucket", le, total)
        metric.add_sample(f"{self.name}_count", named, total)
        metric.add_sample(f"{self.name}_sum", named, numbers["sum"])


class _Recorder:
    """The files of this process, which its instruments write to while anything here records."""

    def __init__(self) -> None:
        self._users = 0
        self._folder: Path | None = None
        self._stack = ExitStack()

    @property
    def folder(self) -> Path:
        assert self._folder is not None, "nothing records"  # noqa: S101
        return self._folder

    @contextmanager
    def use(self) -> Iterator[None]:
        """Record in the folder of the environment, or where this process records already."""
        if not self._users:
            self._open()
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._stack.close()

    def _open(self) -> None:
        with ExitStack() as stack:
            given = os.environ.get(_VARIABLE)
            if not given or not Path(given).is_dir():
                stack.enter_context(shared_folder())
            self._folder = folder = Path(os.environ[_VARIABLE])
            stack.enter_context(_in_use(folder))
            slot, lock = _free_slot(folder)
            stack.enter_context(lock)
            _live(folder, slot).unlink(missing_ok=True)  # of a dead process
            totals = stack.enter_context(closing(MmapedDict(str(_totals(folder, slot)))))
            gauges = stack.enter_context(closing(MmapedDict(str(_live(folder, slot)))))
            stack.callback(_open_all, None, None)
            _open_all(totals, gauges)
            self._stack = stack.pop_all()

    def forget(self) -> None:
        """Record nothing in a fork of a process that records: its files are the parent's."""
        self._users = 0
        self._stack.pop_all()  # without its callbacks: the folder is the parent's
        _open_files(None, None)


def _open_all(totals: MmapedDict | None, gauges: MmapedDict | None) -> None:
    with _lock:
        _open_files(totals, gauges)


def _open_files(totals: MmapedDict | None, gauges: MmapedDict | None) -> None:
    for instrument in Instrument.table.values():
        instrument.open(gauges if isinstance(instrument, Gauge) else totals)


def _after_fork() -> None:
    _recorder.forget()
    _lock.release()


_recorder: Final = _Recorder()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork)
recording: Final = _recorder.use
"""Record this process's metrics, for the length of a block, in the folder of its environment.

Without one, the folder is the process's own.
"""


@contextmanager
def shared_folder() -> Iterator[None]:
    """A new private folder for this process and those that it starts, for the length of the block.

    They find it in their environment. Folders of services that were killed are removed.
    """
    _remove_abandoned()
    before, creator = os.environ.get(_VARIABLE), os.getpid()
    folder = tempfile.mkdtemp(prefix=_PREFIX)  # of mode 0700
    try:
        with _in_use(Path(folder)):
            os.environ[_VARIABLE] = folder
            yield
    finally:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before
        if os.getpid() == creator:  # the end of a fork removes nothing
            shutil.rmtree(folder, ignore_errors=True)


def leave_shared_folder() -> None:
    """Forget the folder of the environment: it is that of a service whose tool started this one."""
    os.environ.pop(_VARIABLE, None)


@contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Lock the folder against removal, also by systemd-tmpfiles."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                status = os.fstat(descriptor)
                is_old = time.time() - status.st_ctime > _ABANDONED_AFTER_SECONDS
                if is_old and status.st_uid == os.getuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def render(accept: str) -> tuple[bytes, str]:
    """The metrics of all processes, in the format that an `Accept` header requests, and its type.

    Blocks for some milliseconds: it reads files. This process must record.
    """
    encode, content_type = choose_encoder(accept)
    return encode(_Families()), content_type


def read_numbers() -> "Numbers":
    """The numbers of all processes, combined, by name, labels and part.

    Blocks for some milliseconds: it reads files. This process must record.
    """
    return _numbers(_recorder.folder)


class _Families:
    """The metric families of all processes, as encoders read them."""

    def collect(self) -> Iterator[Metric]:
        numbers = _numbers(_recorder.folder)
        for instrument in Instrument.table.values():
            name = instrument.name.removesuffix("_total")
            metric = Metric(name, instrument.help, instrument.kind)
            for labels, parts in sorted(numbers[instrument.name].items()):
                instrument.samples(metric, parts, labels)
            yield metric


Numbers = defaultdict[str, defaultdict[Labels, defaultdict[str, float]]]


def _numbers(folder: Path) -> Numbers:
    """The numbers of all processes, combined, by name, labels and part."""
    found: Numbers = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
    gauges: defaultdict[_Key, list[tuple[float, float]]] = defaultdict(list)
    for path in folder.glob("*.lock"):
        slot = int(path.stem)
        for key, number, _ in _read(_totals(folder, slot)):
            found[key.name][key.labels][key.part] += number
        if not _is_dead(folder, slot):
            for key, number, at in _read(_live(folder, slot)):
                gauges[key].append((number, at))
    for key, each in gauges.items():
        instrument = Instrument.table[key.name]
        assert isinstance(instrument, Gauge)  # noqa: S101
        number = instrument.combined(key.labels, each)
        if not math.isnan(number):
            found[key.name][key.labels][key.part] = number
    return found


def _read(path: Path) -> Iterator[tuple[_Key, float, float]]:
    with suppress(FileNotFoundError, struct.error):  # a process creates it just now
        for key, number, at, _ in MmapedDict.read_all_values_from_file(str(path)):
            yield _decode(key), number, at


def _is_dead(folder: Path, slot: int) -> bool:
    """Whether no process holds the slot; the gauges of the last one are deleted then."""
    lock = _locked(folder, slot, fcntl.LOCK_SH)
    if lock is None:
        return False
    with lock:
        _live(folder, slot).unlink(missing_ok=True)
    return True


def _free_slot(folder: Path) -> tuple[int, IO[str]]:
    """A slot that no process holds, and the lock that holds it until it is closed."""
    slots = ((slot, _locked(folder, slot, fcntl.LOCK_EX)) for slot in count())
    return next((slot, lock) for slot, lock in slots if lock is not None)


def _locked(folder: Path, slot: int, how: int) -> IO[str] | None:
    """The file of a slot, locked until it is closed; None if that can't be now."""
    file = (folder / f"{slot}.lock").open("a")
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _totals(folder: Path, slot: int) -> Path:
    return folder / f"totals_{slot}.db"


def _live(folder: Path, slot: int) -> Path:
    return folder / f"live_{slot}.db"
