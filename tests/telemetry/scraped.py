"""Metrics as a scraper reads them."""

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from app.telemetry import metrics


def scraped() -> "Scraped":
    """The metrics of the processes with which this one records."""
    return Scraped(metrics.render("")[0].decode())


class Scraped:
    """The samples of a response of `/metrics`."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples = [sample for family in self.families.values() for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples of a name that have these labels."""
        return sum(self.values(name, **labels).values())

    def values(self, name: str, **labels: str) -> Mapping[tuple[tuple[str, str], ...], float]:
        """The samples of a name that have these labels, by all their labels."""
        return {
            tuple(sorted(sample.labels.items())): sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        }
