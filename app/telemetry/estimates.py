"""Rates and quantiles of metrics, estimated as Prometheus does."""

import math
from collections.abc import Mapping


def increase(now: float, before: float) -> float:
    """The increase of a counter; one that fell has begun at 0 again."""
    return now - before if now >= before else now


def quantile(share: float, buckets: Mapping[float, float]) -> float | None:
    """The value below which a share of the observations is, as Prometheus estimates it.

    None without observations, and infinite beyond the highest bound.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    rank, lower, below = share * total, 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= rank and count > below:
            if math.isinf(bound):
                return math.inf
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return math.inf
