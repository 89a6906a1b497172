"""No work has become slower beside a loop that does not change: see `benchmarks.guard`.

Only with -m long as yet: ratios of one kind of processor stand in the file.
"""

import json

import numba
import pytest

from benchmarks import guard

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="only compiled kernels are fast"),
]


@pytest.mark.parametrize("name", guard.WORKS)
def test_a_work_is_not_below_60_percent_of_its_stored_ratio(name: str) -> None:
    least = guard.LEAST * guard.stored()[name]
    found = 0.0
    for _ in range(3):  # something else may have had the processor all the time
        found = max(found, guard.ratio(name))
        if found >= least:
            return
    pytest.fail(
        f"{name}: {found:.4g} runs in the time of its loop, stored is {guard.stored()[name]:.4g}: slower than before, "
        "or another machine (python -m benchmarks.guard --store on an idle one)"
    )


def test_a_ratio_is_stored_for_every_work() -> None:
    assert set(json.loads(guard.STORED.read_text(encoding="utf-8"))) == set(guard.WORKS)
