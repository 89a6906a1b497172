"""354 sources, 19 estimates, 77 scans of 20 points, the size of the LHC's largest combination by likelihood.

Best of three, as other work on the machine may interfere. Bars: 0.3 s for the fit, 2 s with impacts and scans.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from musclecal.fits.combination.impacts import covariance_impacts, frozen_impacts, statistical_errors
from musclecal.fits.combination.likelihood_fit import fit_likelihood
from musclecal.fits.combination.likelihood_scans import scan_correlations
from musclecal.records.combination_likelihood import (
    CorrelationRange,
    CorrelationScan,
    LikelihoodInput,
    LikelihoodProblem,
)

Make = Callable[..., LikelihoodInput]


@pytest.fixture(scope="module")
def large() -> Callable[[Make, Make, int], LikelihoodProblem]:
    def make(profiled: Make, tabulated: Make, relative: int) -> LikelihoodProblem:
        inputs = (
            profiled("a", 4, 120, seed=1, relative=relative),
            profiled("b", 5, 90, seed=2, relative=relative),
            tabulated("c", 10, 144, seed=3, relative=relative),
        )
        estimates = tuple(estimate for one in inputs for estimate in one.estimates)
        ranges = [CorrelationRange(f"a_s{n}", f"{'bc'[n % 2]}_s{n}", 0.5, 0.2, 0.8) for n in range(77)]
        scans = tuple(CorrelationScan(one.first, (one,)) for one in ranges)
        return LikelihoodProblem(
            inputs, (("x", estimates[::2]), ("y", estimates[1::2])), tuple(ranges), scans
        )

    return make


def test_quadratic(
    large: Callable[[Make, Make, int], LikelihoodProblem], make_profiled: Make, make_tabulated: Make
) -> None:
    problem = large(make_profiled, make_tabulated, 0)
    assert (len(problem.sources), sum(len(one.estimates) for one in problem.inputs)) == (354, 19)
    groups = {f"group{n}": problem.sources[5 * n : 5 * n + 5] for n in range(70)}
    fits, totals = [], []
    for _ in range(3):
        start = time.perf_counter()
        fit = fit_likelihood(problem)
        fits.append(time.perf_counter() - start)
        frozen_impacts(fit), frozen_impacts(fit, groups), covariance_impacts(fit), statistical_errors(fit)
        curves = scan_correlations(problem, fit, points=20)
        totals.append(time.perf_counter() - start)
    assert fit.quadratic
    assert sum(np.count_nonzero(curve.status == 0) for curve in curves) == 77 * 20
    assert min(fits) < 0.3
    assert min(totals) < 2.0


def test_relative_and_pearson_fit(
    large: Callable[[Make, Make, int], LikelihoodProblem], make_profiled: Make, make_tabulated: Make
) -> None:
    """Newton; scans of it take some ms a point, so five of them are asked for here."""
    problem = large(make_profiled, make_tabulated, 40)
    problem = replace(problem, scans=problem.scans[:5])
    fits, scans = [], []
    for _ in range(3):
        start = time.perf_counter()
        fit = fit_likelihood(problem, "pearson", minos=False)
        fits.append(time.perf_counter() - start)
        start = time.perf_counter()
        scan_correlations(problem, fit, points=20)
        scans.append(time.perf_counter() - start)
    assert not fit.quadratic
    assert min(fits) < 0.3
    assert min(scans) < 1.0
