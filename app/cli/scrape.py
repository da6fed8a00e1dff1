"""Reads the metrics of a running service over HTTP."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from prometheus_client.parser import text_string_to_metric_families

from app.telemetry.instruments import Counter, Gauge, Histogram, Instrument

_TIMEOUT_SECONDS = 10.0
_PATH = "/metrics"


class ScrapeFailed(Exception):
    """The metrics can't be read; the message has the fix."""


@dataclass(frozen=True)
class Scrape:
    """The samples of one response, and when it was read, by a monotonic clock.

    `where` selects samples by their labels. A sample that does not exist counts as 0.
    """

    at: float
    samples: Mapping[str, Sequence[tuple[Mapping[str, str], float]]] = field(default_factory=dict)

    def has(self, instrument: Instrument, **where: str) -> bool:
        """Whether there is such a sample: a gauge that is not known has none."""
        return bool(self._values(instrument.name, where))

    def total(self, instrument: Counter | Gauge, **where: str) -> float:
        return sum(self._values(instrument.name, where))

    def count(self, histogram: Histogram, **where: str) -> float:
        return sum(self._values(f"{histogram.name}_count", where))

    def buckets(self, histogram: Histogram, **where: str) -> dict[float, float]:
        """The number of observations up to each bound."""
        found: dict[float, float] = {}
        for labels, value in self.samples.get(f"{histogram.name}_bucket", ()):
            if where.items() <= labels.items():
                bound = float(labels["le"])
                found[bound] = found.get(bound, 0.0) + value
        return found

    def by(self, label: str, name: str) -> dict[str, float]:
        """The samples of a name, added by the value of a label."""
        found: dict[str, float] = {}
        for labels, value in self.samples.get(name, ()):
            key = labels.get(label, "")
            found[key] = found.get(key, 0.0) + value
        return found

    def _values(self, name: str, where: Mapping[str, str]) -> list[float]:
        samples = self.samples.get(name, ())
        return [value for labels, value in samples if where.items() <= labels.items()]


def metrics_url(url: str) -> str:
    """The URL of the metrics of a service. Raises ScrapeFailed if it can't be one."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ScrapeFailed(f"{url} is no URL of a service; write http://HOST:PORT")
    return url if parts.path.rstrip("/") else f"{parts.scheme}://{parts.netloc}{_PATH}"


def scrape(url: str, key: str | None) -> Scrape:
    """Read the metrics at the URL. Raises ScrapeFailed."""
    request = Request(url, headers={"Accept": "text/plain"})  # noqa: S310 - metrics_url checks it
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with _opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
            text = response.read().decode()
    except HTTPError as error:
        with error:
            raise ScrapeFailed(_refusal(url, error.code)) from error
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        reason = getattr(reason, "strerror", None) or reason
        raise ScrapeFailed(
            f"{url} does not respond ({reason}); is the service running? --url names another one"
        ) from error
    except ValueError as error:
        raise ScrapeFailed(_NO_METRICS.format(url)) from error
    return parse(text, url)


def parse(text: str, url: str) -> Scrape:
    """The samples of a response. Raises ScrapeFailed if they are not those of this service."""
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    except ValueError as error:
        raise ScrapeFailed(_NO_METRICS.format(url)) from error
    if not any(name.startswith("crewcapture_") for name in samples):
        raise ScrapeFailed(_NO_METRICS.format(url))
    return Scrape(time.monotonic(), samples)


_NO_METRICS = "{} has no metrics of Crew Capture; --url names another service"


def _refusal(url: str, status: int) -> str:
    if status == 401:
        return f"{url} requires a key of the role metrics or admin; set CREW_CAPTURE_KEY, or --key"
    if status == 403:
        return f"the role of this key may not read {url}; use a key of the role metrics or admin"
    if status == 404:
        return _NO_METRICS.format(url)
    return f"{url} responds with HTTP {status}; see the log of the service"


class _NoRedirects(HTTPRedirectHandler):
    """A redirect would send the key to another host."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None


_opener = build_opener(_NoRedirects, ProxyHandler({}))
