"""Construction of the output store from its settings."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from storage.drivers import Driver
from storage.drivers.local import LocalDriver
from storage.drivers.memory import MemoryDriver
from storage.layers import Fallback, Timeout
from storage.stamp import STAMP_NAME
from storage.store import OutputStore

_DIRECTORY_NAME = "idea_crew_outputs"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """The arguments of `create_store`. Each backend reads its own fields only.

    backend: `local`, `memory`, `s3` or `obstore`, or an ordered chain of these, joined by `+`.
    directory: the parent folder of the outputs' folder. None means the system's temporary folder,
        where many installations meet: the name of the outputs' folder then ends with
        `installation_id`.
    memory_max_bytes: the byte budget of `memory`.
    s3_endpoint_url: None means Amazon S3.
    s3_region: None means the region that boto3 chooses.
    s3_max_connections: the largest number of concurrent calls to S3, each in a thread.
    obstore_url: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX.
    obstore_endpoint_url: the server of an s3:// URL. None means Amazon S3.
    timeout_seconds: how long `s3` and `obstore` may leave all calls unanswered before they fail.
    local_timeout_seconds: the same for `local`. Its threads compete with all threads of this
        process: beside sixty busy ones, a write lasted more than ten seconds.
    read_attempts, read_backoff_seconds: see `OutputStore.read`.
    """

    backend: str = "local"
    directory: Path | None = None
    installation_id: str = ""
    memory_max_bytes: int = 256 * 1024 * 1024
    s3_bucket: str | None = None
    s3_prefix: str = "crew-capture/"
    s3_endpoint_url: str | None = None
    s3_region: str | None = None
    s3_max_connections: int = 32
    obstore_url: str | None = None
    obstore_endpoint_url: str | None = None
    timeout_seconds: float = 10.0
    local_timeout_seconds: float = 60.0
    read_attempts: int = 3
    read_backoff_seconds: float = 0.1


def create_store(settings: StorageSettings) -> OutputStore:
    """The store that the settings describe, not started. Raises ValueError for wrong settings."""
    names = [name.strip() for name in settings.backend.split("+")]
    if not set(names) <= _MAKERS.keys() or len(set(names)) < len(names):
        allowed = ", ".join(_MAKERS)
        raise ValueError(
            f"backend {settings.backend!r}: allowed are {allowed}, "
            "and chains of different ones joined by +, such as memory+s3"
        )
    drivers = [_MAKERS[name](settings) for name in names]
    return OutputStore(
        drivers[0] if len(drivers) == 1 else Fallback(drivers),
        read_attempts=settings.read_attempts,
        read_backoff_seconds=settings.read_backoff_seconds,
    )


def _local(settings: StorageSettings) -> Driver:
    if settings.directory is not None:
        driver = LocalDriver(settings.directory.absolute() / _DIRECTORY_NAME)
    else:
        folder = Path(tempfile.gettempdir()) / f"{_DIRECTORY_NAME}_{settings.installation_id}"
        # Each installation has one: empty ones would pile up.
        driver = LocalDriver(folder, removed_with={STAMP_NAME})
    return Timeout(driver, settings.local_timeout_seconds)


def _memory(settings: StorageSettings) -> Driver:
    return MemoryDriver(settings.memory_max_bytes)


def _s3(settings: StorageSettings) -> Driver:
    if not settings.s3_bucket:
        raise ValueError("backend s3 needs the name of a bucket")
    _check_endpoint("S3_ENDPOINT_URL", settings.s3_endpoint_url)
    # Importing boto3 needs a third of a second, so only the S3 backend imports it.
    from storage.drivers.s3 import S3Driver  # noqa: PLC0415

    prefix = settings.s3_prefix.strip("/")
    driver = S3Driver(
        bucket=settings.s3_bucket,
        prefix=f"{prefix}/" if prefix else "",
        endpoint_url=settings.s3_endpoint_url or None,
        region=settings.s3_region or None,
        threads=settings.s3_max_connections,
        timeout_seconds=settings.timeout_seconds,
    )
    return Timeout(driver, settings.timeout_seconds)


def _obstore(settings: StorageSettings) -> Driver:
    if not settings.obstore_url:
        raise ValueError("backend obstore needs a URL such as s3://BUCKET/PREFIX")
    _check_endpoint("OBSTORE_ENDPOINT_URL", settings.obstore_endpoint_url)
    # Only this backend imports obstore, as above.
    from storage.drivers.obstore import ObstoreDriver  # noqa: PLC0415

    driver = ObstoreDriver(
        settings.obstore_url,
        endpoint_url=settings.obstore_endpoint_url or None,
        timeout_seconds=settings.timeout_seconds,
    )
    return Timeout(driver, settings.timeout_seconds)


def _check_endpoint(setting: str, endpoint_url: str | None) -> None:
    if endpoint_url:
        url = urlsplit(endpoint_url)
        if url.scheme not in {"http", "https"} or not url.hostname or url.username is not None:
            raise ValueError(
                f"{setting} must be a URL such as https://s3.example.org, "
                "without a user name or password"
            )


_MAKERS: dict[str, Callable[[StorageSettings], Driver]] = {
    "local": _local,
    "memory": _memory,
    "s3": _s3,
    "obstore": _obstore,
}
