"""Many runs of crews that combine features at the same time: each run sees its own inputs only.

`python -m tests.engine.mixed` is the whole: all crews compared with stock, and 500 runs.
"""

import pytest

from tests.engine.mixed import check, missing_pairs, mixed_crews

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_RUNS = 120
_COMPARED = 6


def test_every_two_features_of_different_kinds_are_in_one_crew() -> None:
    assert not missing_pairs(mixed_crews())


async def test_nothing_is_mixed_between_runs_of_crews_with_all_features() -> None:
    assert await check(mixed_crews(), _RUNS, compared=_COMPARED) == []
