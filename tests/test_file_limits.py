"""The limit of open files bounds the model calls and the clients' connections at once."""

import logging
import math
import resource

import pytest

from app import file_limits


@pytest.mark.parametrize(
    ("limit", "requested", "given"), [(1_000_000, 4000, 4000), (1024, 4000, 512)]
)
def test_model_calls_get_what_the_limit_leaves(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    limit: int,
    requested: int,
    given: int,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    with caplog.at_level(logging.WARNING):
        assert file_limits.model_connections(requested) == given
    assert bool(caplog.records) == (given < requested)


@pytest.mark.parametrize(
    ("limit", "requested", "given"),
    [(1_000_000, 4000, 995_744), (1024, 4000, 256), (1024, 100, 668), (64, 4000, 1)],
)
def test_clients_get_what_model_calls_and_the_service_leave(
    monkeypatch: pytest.MonkeyPatch, limit: int, requested: int, given: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert file_limits.client_connections(requested) == given


def test_without_a_limit_of_files_clients_are_not_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    assert file_limits.client_connections(4000) == math.inf
