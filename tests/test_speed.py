"""No work has become slower beside a loop that does not change: see `benchmarks.guard`."""

import numba
import pytest

from benchmarks import guard
from benchmarks.peers.rows import processor

pytestmark = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="only compiled kernels are fast")


@pytest.mark.parametrize("name", guard.WORKS)
def test_a_work_is_not_below_60_percent_of_its_stored_ratio(name: str) -> None:
    if name not in guard.stored():
        pytest.skip(
            f"no ratio is stored for this processor, {processor()}: python -m benchmarks.guard --store"
        )
    least = guard.LEAST * guard.stored()[name]
    found = 0.0
    for _ in range(4):  # something else may have had the processor all the time
        found = max(found, guard.ratio(name))
        if found >= least:
            return
    pytest.fail(
        f"{name}: {found:.4g} runs in the time of its loop, stored is {guard.stored()[name]:.4g}: slower than before"
    )


def test_ratios_are_stored_for_every_work() -> None:
    known = guard._of_all_processors()
    assert known
    assert all(set(ratios) == set(guard.WORKS) for ratios in known.values())
