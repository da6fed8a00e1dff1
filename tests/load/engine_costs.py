"""CPU per run of each way, with a model that costs nothing: what the engine itself costs.

    python -m tests.load.engine_costs [--runs 200] [--profile plan|native|stock]
    python -m tests.load.engine_costs --in-flight 1000

With `--in-flight`, that many runs go at once over a model that takes a second for each call (two of
them lie on a run's critical path): how long all take, and the memory of a run that waits.

The crew: three agents, two asynchronous tasks and one that builds on both. The process's CPU time
is taken over all runs, half of them one after the other and half side by side.
"""

import argparse
import asyncio
import cProfile
import gc
import logging
import pstats
import time
import warnings
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Literal

import psutil

from app.engine import Engine

from crewai import Agent, Crew, Task  # isort: skip
from crewai.llms.base_llm import BaseLLM  # isort: skip

Mode = Literal["auto", "native", "stock"]
_INPUTS = {"topic": "tea", "experience": "ten years " * 20}


class FreeModel(BaseLLM):
    """Answers at once, with what a short report could look like."""

    def call(self, messages: Any, *args: Any, **kwargs: Any) -> str:
        return "Thought: fine\nFinal Answer: " + "A short report. " * 50

    async def acall(self, messages: Any, *args: Any, **kwargs: Any) -> str:
        return "Thought: fine\nFinal Answer: " + "A short report. " * 50

    def get_input_tokens_count(self, *args: Any, **kwargs: Any) -> int:
        return 100


class SlowModel(FreeModel):
    """Answers after a second."""

    async def acall(self, messages: Any, *args: Any, **kwargs: Any) -> str:
        await asyncio.sleep(1)
        return self.call(messages)


class Source:
    """The crew; `static` says whether it is built anew for each run."""

    name = "crew"
    project = None
    parameters: ClassVar[dict[str, Any]] = {}
    required = ()

    def __init__(self, *, static: bool) -> None:
        self.static = static

    def build(self, **_: object) -> Crew:
        agents = [
            Agent(
                role=f"Expert {number} for {{topic}}",
                goal="Know all about {topic}",
                backstory="You have studied {topic} for years. {experience}",
            )
            for number in range(3)
        ]
        one, two = (
            Task(
                description=f"Part {number}: what is there to know of {{topic}}? {{experience}}",
                expected_output="A report in Markdown",
                agent=agents[number],
                async_execution=True,
            )
            for number in range(2)
        )
        last = Task(
            description="Recommend what to do about {topic}",
            expected_output="A ranked list",
            agent=agents[2],
            context=[one, two],
        )
        return Crew(agents=agents, tasks=[one, two, last])


async def cpu_ms_per_run(mode: Mode, *, static: bool, runs: int, profile: bool = False) -> float:
    engine = Engine(model=FreeModel(model="free"), mode=mode, max_stock_threads=32)
    await engine.start([Source(static=static)])

    async def run() -> None:
        result = await engine.run("crew", _INPUTS)
        assert len(result.tasks) == 3

    await _both_ways(run, max(4, runs // 10))
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    began = time.process_time()
    await _both_ways(run, runs)
    used = time.process_time() - began
    if profile:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("cumulative").print_stats(45)
    await engine.aclose()
    return used / runs * 1000


async def _both_ways(run: Callable[[], Awaitable[None]], runs: int) -> None:
    for _ in range(runs // 2):
        await run()
    await asyncio.gather(*(run() for _ in range(runs - runs // 2)))


async def run_in_flight(mode: Mode, *, static: bool, runs: int) -> tuple[float, float, float]:
    """Makespan in seconds, CPU ms per run, memory in KB of a run that waits."""
    engine = Engine(model=SlowModel(model="slow"), mode=mode, max_stock_threads=32)
    await engine.start([Source(static=static)])
    await engine.run("crew", _INPUTS)
    gc.collect()
    process = psutil.Process()
    memory, began, used = process.memory_info().rss, time.perf_counter(), time.process_time()
    tasks = [asyncio.create_task(engine.run("crew", _INPUTS)) for _ in range(runs)]
    await asyncio.sleep(0.9)
    memory = process.memory_info().rss - memory
    await asyncio.gather(*tasks)
    makespan, used = time.perf_counter() - began, time.process_time() - used
    await engine.aclose()
    return makespan, used / runs * 1000, memory / runs / 1024


def print_in_flight(runs: int) -> None:
    print(f"{f'{runs} runs at once':<20}{'makespan s':>12}{'CPU ms':>10}{'KB per run':>12}")
    for name in ("plan, static crew", "plan, factory", "native"):
        mode, static, _ = _WAYS[name]
        makespan, cpu, memory = asyncio.run(run_in_flight(mode, static=static, runs=runs))
        print(f"{name:<20}{makespan:>12.2f}{cpu:>10.2f}{memory:>12.0f}")


_WAYS: dict[str, tuple[Mode, bool, float]] = {
    # name: mode, static, share of the runs (a stock run takes a hundred times as long)
    "plan, static crew": ("auto", True, 10),
    "plan, factory": ("auto", False, 2),
    "native": ("native", False, 1),
    "stock": ("stock", False, 0.25),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--profile", choices=["plan", "native", "stock"])
    parser.add_argument("--in-flight", type=int)
    options = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    logging.getLogger("crewai").setLevel(logging.ERROR)
    if options.in_flight:
        print_in_flight(options.in_flight)
        return
    print(f"{'way':<20}{'CPU ms per run':>16}")
    for name, (mode, static, share) in _WAYS.items():
        if options.profile and not name.startswith(options.profile):
            continue
        runs = int(options.runs * share)
        profile = bool(options.profile)
        cost = asyncio.run(cpu_ms_per_run(mode, static=static, runs=runs, profile=profile))
        print(f"{name:<20}{cost:>16.2f}")


if __name__ == "__main__":
    main()
