"""Every execution mode equals stock CrewAI: the same messages, parameters, calls, results."""

import asyncio
import copy

import pytest

from tests.engine.crews import CASES, Case
from tests.engine.recording import RecordingLLM, run_engine, run_reference

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_NAMES = [case.name for case in CASES]
_FASTER: dict[str, list[str]] = {"plan": ["auto", "native", "stock"], "native": ["auto", "stock"]}


def test_every_crew_has_a_name_of_its_own() -> None:
    assert len(set(_NAMES)) == len(_NAMES) >= 30


@pytest.mark.parametrize("case", CASES, ids=_NAMES)
async def test_a_crew_runs_as_stock_does(case: Case) -> None:
    reference = await asyncio.to_thread(run_reference, case.build, _model(case), case.inputs)
    assert (reference.error is not None) == case.fails, reference.error
    for mode in _FASTER.get(case.execution_mode, ["auto"]):
        ours = await run_engine(case.build, _model(case), case.inputs, mode)
        assert ours.calls == reference.calls, mode
        assert ours.output == reference.output, mode
        assert ours.error == reference.error, mode
        if mode == "auto" and ours.output is not None:
            assert ours.execution_mode == (case.ends or case.execution_mode)
        if mode == "stock":
            assert ours.execution_mode == "stock"


def _model(case: Case) -> RecordingLLM:
    return RecordingLLM(case.answer, **copy.deepcopy(dict(case.model)))
