"""A few faults with a few records; `make faults` has them all, with many."""

import pytest

# Their assertions explain themselves like those of the tests.
pytest.register_assert_rewrite("arena", "checker", "harness", "network", "processes")

import processes  # noqa: E402
from arena import run  # noqa: E402

SEED = 1
RECORDS = 5_000

SCENARIOS = {scenario.name: scenario for scenario in processes.SCENARIOS}


@pytest.mark.parametrize("name", ["worker-sigkill-after-send", "broker-sigkill"])
async def test_a_fault_leaves_nothing_undone_and_nothing_done_twice(name: str) -> None:
    result = await run(SCENARIOS[name], SEED, injections=1, records=RECORDS)
    assert result.problems == []
    assert result.tally == (0, 0, 0)
    assert (result.injections, result.records >= RECORDS) == (1, True)
