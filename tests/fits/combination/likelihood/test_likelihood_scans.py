"""Scans against fits with the correlations put in."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.fits.combination.joined_inputs import likelihood_of
from musclecal.fits.combination.likelihood_fit import fit_likelihood
from musclecal.fits.combination.likelihood_scans import scan_correlations
from musclecal.records.combination_likelihood import (
    NOT_A_MINIMUM,
    CorrelationRange,
    CorrelationScan,
    LikelihoodFit,
    LikelihoodInput,
    LikelihoodProblem,
)

Make = Callable[..., LikelihoodInput]
Combine = Callable[..., LikelihoodProblem]

KINDS = {"quadratic": {}, "relative": {"relative": 2}, "asymmetric": {"asymmetric": 2, "relative": 1}}


def _problem(
    kind: str, make_profiled: Make, make_tabulated: Make, make_combined: Combine
) -> LikelihoodProblem:
    """Three correlations scanned one by one, the first two also together; one is not scanned."""
    relative = 2 if kind == "relative" else 0
    inputs = (
        make_profiled("a", 3, 5, seed=31, relative=relative),
        make_tabulated("b", 4, 5, seed=32, **KINDS[kind]),
    )
    problem = make_combined(inputs, rho=0.4)
    together = CorrelationScan("together", tuple(one.ranges[0] for one in problem.scans[:2]))
    fixed = CorrelationRange("a_s4", "b_s4", -0.3, -0.3, -0.3)
    return replace(problem, scans=(*problem.scans, together), correlations=(*problem.correlations, fixed))


def _fit_at(problem: LikelihoodProblem, scan: CorrelationScan, fraction: float, form: str) -> LikelihoodFit:
    at = [
        CorrelationRange(one.first, one.second, one.start + fraction * (one.stop - one.start), 0.0, 0.0)
        for one in scan.ranges
    ]
    return fit_likelihood(replace(problem, correlations=(*problem.correlations, *at)), form, minos=False)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("form", ["neyman", "pearson"])
@pytest.mark.parametrize("refit", [False, True])
def test_points_are_fits(
    make_profiled: Make, make_tabulated: Make, make_combined: Combine, kind: str, form: str, refit: bool
) -> None:
    problem = _problem(kind, make_profiled, make_tabulated, make_combined)
    fit = fit_likelihood(problem, form)
    assert fit.quadratic == (kind == "quadratic" and form == "neyman")
    curves = scan_correlations(problem, fit, points=5, refit=refit)
    assert [curve.name for curve in curves] == [scan.name for scan in problem.scans]
    for scan, curve in zip(problem.scans, curves, strict=True):
        for n, fraction in enumerate(curve.fraction):
            expected = _fit_at(problem, scan, fraction, form)
            np.testing.assert_allclose(
                curve.values[n], expected.values, rtol=0.0, atol=1e-5 * expected.errors.min()
            )
            np.testing.assert_allclose(curve.errors[n], expected.errors, rtol=1e-6)
            assert curve.chi2[n] == pytest.approx(expected.chi2, abs=1e-7)


def test_slopes_and_half_ranges(make_profiled: Make, make_tabulated: Make, make_combined: Combine) -> None:
    problem = _problem("quadratic", make_profiled, make_tabulated, make_combined)
    fit = fit_likelihood(problem)
    for scan, curve in zip(problem.scans, scan_correlations(problem, fit, points=7), strict=True):
        step = 1e-4
        ends = [
            fit_likelihood(
                replace(
                    problem,
                    correlations=(
                        *problem.correlations,
                        *(replace(r, rho=r.rho + sign * step * (r.stop - r.start)) for r in scan.ranges),
                    ),
                )
            )
            for sign in (1.0, -1.0)
        ]
        slope = (ends[0].values - ends[1].values) / (2.0 * step)
        of_error = (ends[0].errors - ends[1].errors) / (2.0 * step)
        np.testing.assert_allclose(curve.value_slope, slope, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(curve.error_slope, of_error, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(curve.half_range, np.ptp(curve.values, axis=0) / 2.0)
        np.testing.assert_allclose(curve.error_half_range, np.ptp(curve.errors, axis=0) / 2.0)


def test_points_that_contradict_other_correlations_have_a_status(
    make_tabulated: Make, make_combined: Combine
) -> None:
    """b0 with both a0 and a1, which are correlated: 1 - rho^2 - ... is negative near the ends."""
    problem = make_combined((make_tabulated("a", 2, 3, seed=1), make_tabulated("b", 2, 3, seed=2)), rho=0.0)
    kept = (CorrelationRange("a_s0", "a_s1", 0.8, 0.8, 0.8), CorrelationRange("a_s1", "b_s0", 0.6, 0.6, 0.6))
    wide = CorrelationRange("a_s0", "b_s0", 0.5, -1.0, 1.0)
    problem = replace(problem, correlations=(*kept, wide), scans=(CorrelationScan("wide", (wide,)),))
    (curve,) = scan_correlations(problem, fit_likelihood(problem), points=201)
    room = np.sqrt((1.0 - 0.8**2) * (1.0 - 0.6**2))
    allowed = np.abs(curve.rho[:, 0] - 0.48) < room - 1e-9
    np.testing.assert_array_equal(curve.status == 0, allowed)
    assert np.all(curve.status[~allowed] == NOT_A_MINIMUM)
    assert np.all(np.isnan(curve.values[~allowed]))
    assert np.all(np.isfinite(curve.half_range))


def test_held_sources_are_followed(make_tabulated: Make, make_combined: Combine) -> None:
    """Sources that stand on a kink at the fit, and leave it somewhere along the scan."""
    problem = make_combined(
        (make_tabulated("a", 3, 4, seed=5, asymmetric=4), make_tabulated("b", 3, 4, seed=6))
    )
    one_sided = replace(problem.inputs[0], down=problem.inputs[0].up)
    scans = tuple(
        CorrelationScan(s.name, (replace(s.ranges[0], start=-0.9, stop=0.9),)) for s in problem.scans
    )
    problem = replace(problem, inputs=(one_sided, problem.inputs[1]), scans=scans)
    fit = fit_likelihood(problem, minos=False)
    assert np.any(fit.held)
    for scan, curve in zip(problem.scans, scan_correlations(problem, fit, points=9), strict=True):
        for n, fraction in enumerate(curve.fraction):
            rho = scan.ranges[0].start + fraction * 1.8
            changed = replace(problem, correlations=(*problem.correlations, replace(scan.ranges[0], rho=rho)))
            likelihood = likelihood_of(changed)
            again = fit_likelihood(changed, minos=False)
            assert curve.chi2[n] == pytest.approx(likelihood.chi2(again.parameters), abs=1e-7)


def test_refusals(make_profiled: Make, make_tabulated: Make, make_combined: Combine) -> None:
    problem = _problem("quadratic", make_profiled, make_tabulated, make_combined)
    fit = fit_likelihood(problem)
    with pytest.raises(InputError, match="1 points"):
        scan_correlations(problem, fit, points=1)
    for change, message in (({"second": "nobody"}, "no source 'nobody'"), ({"stop": 1.5}, "leaves")):
        wrong = CorrelationScan("wrong", (replace(problem.scans[0].ranges[0], **change),))
        with pytest.raises(InputError, match=message):
            scan_correlations(replace(problem, scans=(wrong,)), fit)
