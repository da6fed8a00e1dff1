"""The limit of open files bounds the model calls at once."""

import logging
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
