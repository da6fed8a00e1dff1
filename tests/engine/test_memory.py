"""A finished run's memory is free at once: nothing of it waits for the garbage collector."""

import gc
from collections.abc import Iterator

import pytest

from app.engine import Engine
from tests.engine.crews import three
from tests.engine.recording import RecordingLLM, Source

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_RUNS = 20


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
async def test_planned_runs_leave_no_reference_cycles() -> None:
    model = RecordingLLM()
    engine = Engine(model=model, mode="auto", max_stock_threads=4)
    await engine.start([Source("crew", lambda: three(model), static=True)])
    assert engine.describe("crew").execution_mode == "plan"
    await engine.run("crew", {"topic": "tea", "year": 1})
    while gc.collect():  # what the start left, whose finalizers leave more
        pass
    for number in range(_RUNS):
        await engine.run("crew", {"topic": f"tea {number}", "year": number})
    assert gc.collect() < _RUNS, "each run leaves something to the collector"
    await engine.aclose()
