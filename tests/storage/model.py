"""A store against a dictionary: any sequence of calls must give the same results."""

import asyncio
from collections.abc import Callable
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from storage import OutputKey, OutputNotFound, OutputStore
from tests.storage.sites import INSTALLATION, Site

RUNS = [UUID(int=number) for number in (1, 2, 3)]
KEYS = [OutputKey(run, 1, filename) for run in RUNS for filename in ("a", "b")]

keys = st.sampled_from(KEYS)
contents = st.binary(max_size=200) | st.just(b"x" * 70_000)


def model_of(new_site: Callable[[], Site]) -> type[RuleBasedStateMachine]:
    """A machine that works on a fresh location in each of its lives."""

    class Model(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.runner = asyncio.Runner()
            self.driver = new_site().make()
            self.store = OutputStore(self.driver, read_attempts=1)
            self.runner.run(self.store.start(INSTALLATION))
            self.expected: dict[OutputKey, bytes] = {}

        def teardown(self) -> None:
            self.runner.run(self.store.aclose())
            self.runner.close()

        @rule(key=keys, data=contents)
        def put(self, key: OutputKey, data: bytes) -> None:
            self.runner.run(self.driver.put(str(key), data))
            self.expected[key] = data

        @rule(key=keys)
        def get(self, key: OutputKey) -> None:
            try:
                found = self.runner.run(self.driver.get(str(key)))
            except OutputNotFound:
                found = None
            assert found == self.expected.get(key)

        @rule(doomed=st.sets(keys))
        def delete(self, doomed: set[OutputKey]) -> None:
            report = self.runner.run(self.store.delete(doomed))
            assert not report.failed
            for key in doomed:
                self.expected.pop(key, None)

        @rule(run=st.sampled_from(RUNS))
        def find(self, run: UUID) -> None:
            found = self.runner.run(self.store.find(run))
            assert {one.key: one.size_bytes for one in found} == {
                key: len(data) for key, data in self.expected.items() if key.run_id == run
            }

        @rule(needed=st.sets(st.sampled_from(RUNS)))
        @precondition(lambda self: self.expected)
        def sweep(self, needed: set[UUID]) -> None:
            async def find_needed(runs: set[UUID]) -> set[UUID]:
                return runs & needed

            report = self.runner.run(self.store.sweep(0, find_needed))
            gone = {key for key in self.expected if key.run_id not in needed}
            assert (report.removed, report.kept) == (len(gone), len(self.expected) - len(gone))
            for key in gone:
                del self.expected[key]

        @invariant()
        def the_listing_is_the_dictionary(self) -> None:
            listing = self.runner.run(self.driver.list())
            names = [entry.name for entry in listing.entries if entry.name.endswith(".md")]
            assert names == sorted(str(key) for key in self.expected)

    return Model
