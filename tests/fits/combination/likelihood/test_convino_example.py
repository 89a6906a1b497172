"""Convino's own example (3 inputs, 2 observables, 12 sources, relative and asymmetric) against the C++ program.

Expected: output of jkiesele/Convino, commit 2e66dbf, and a Newton prototype where it prints fewer digits.
"""

from pathlib import Path

import numpy as np
import pytest

from musclecal.covariance import correlation
from musclecal.fits.combination.convino_files import read_convino
from musclecal.fits.combination.impacts import (
    covariance_impacts,
    frozen_impacts,
    refitted_impacts,
    statistical_errors,
    systematic_errors,
)
from musclecal.fits.combination.likelihood_fit import fit_likelihood
from musclecal.fits.combination.likelihood_scans import scan_correlations

EXPECTED = {
    "pearson": (4.11332, (798.690, 306.101), (7.62616, 5.50495), (7.58088, 5.39968)),
    "neyman": (4.15062, (798.670, 306.074), (7.61536, 5.50202), (7.58344, 5.39862)),
}
OF_PROGRAM = {
    "pearson": (4.11332, (798.69, 306.101), (7.62609, 5.50495), (7.58082, 5.39968)),
    "neyman": (4.15062, (798.67, 306.074), (7.61533, 5.50202), (7.58341, 5.39862)),
}
PULLS = {
    "a1": -0.7632, "b1": -0.6616, "c1": -0.1247, "a2": 0.4094, "b2": 0.5699, "c2": 0.6082, "d2": 0.1697, "a3": 0.0084,
    "b3": 0.0079, "c3": -0.0020, "d3": -0.0006, "e3": -0.0006,
}  # fmt: skip
CONSTRAINTS = (0.926, 0.904, 0.983, 0.979, 0.939, 0.938, 0.981, 0.183, 0.106, 0.221, 0.999, 0.999)
SIMPLE_IMPACTS = {
    "a1": (0.42246, 1.07550), "b1": (0.43819, 0.06560), "c1": (0.26340, 1.43034), "a2": (0.11468, 0.09994),
    "b2": (0.09435, 0.21312), "c2": (0.46765, 0.47122), "d2": (0.20797, 1.19115),
}  # fmt: skip
GROUP_IMPACTS = {"a_unc": (0.43073, 1.09068), "b_unc": (0.44598, 0.22483)}


@pytest.mark.parametrize("source", [EXPECTED, OF_PROGRAM], ids=["prototype", "program"])
@pytest.mark.parametrize("form", ["pearson", "neyman"])
def test_values_and_intervals(
    convino_example: Path,
    form: str,
    source: dict[str, tuple[float, tuple[float, ...], tuple[float, ...], tuple[float, ...]]],
) -> None:
    fit = fit_likelihood(read_convino(convino_example), form)
    chi2, values, up, down = source[form]
    assert fit.status == 0
    assert not np.any(fit.held)
    assert fit.chi2 == pytest.approx(chi2, abs=1e-5)
    np.testing.assert_allclose(fit.values, values, rtol=0.0, atol=1e-3 * min(down))
    np.testing.assert_allclose(fit.up, up, rtol=2e-5)
    np.testing.assert_allclose(fit.down, down, rtol=2e-5)


def test_degrees_of_freedom(convino_example: Path) -> None:
    fit = fit_likelihood(read_convino(convino_example), "pearson")
    assert fit.ndf == 4
    assert fit.p_value == pytest.approx(0.3909, abs=1e-4)
    assert not fit.quadratic


def test_pulls_and_constraints(convino_example: Path) -> None:
    fit = fit_likelihood(read_convino(convino_example), "pearson")
    assert fit.sources == tuple(f"sys_{name}" for name in PULLS)
    np.testing.assert_allclose(fit.pulls, list(PULLS.values()), rtol=0.0, atol=1e-4)
    np.testing.assert_allclose(fit.constraints, CONSTRAINTS, rtol=0.0, atol=2.5e-3)


def test_correlation_and_covariance(convino_example: Path) -> None:
    """The program prints its correlation times the larger side of each interval."""
    fit = fit_likelihood(read_convino(convino_example), "pearson")
    rho = correlation(fit.value_covariance)
    assert rho[0, 1] == pytest.approx(0.488586, abs=1e-4)
    larger = np.maximum(fit.up, fit.down)
    printed = rho * larger[:, None] * larger
    np.testing.assert_allclose(
        [printed[0, 0], printed[0, 1], printed[1, 1]], [58.157, 20.511, 30.305], rtol=2e-4
    )


def test_simple_impacts_are_those_of_the_covariance(convino_example: Path) -> None:
    """Correlation times the upper side of the interval, per cent of the value, without sign."""
    fit = fit_likelihood(read_convino(convino_example), "pearson")
    impacts = covariance_impacts(fit) / fit.errors * fit.up / fit.values * 100.0
    for name, expected in SIMPLE_IMPACTS.items():
        row = impacts[fit.sources.index(f"sys_{name}")]
        np.testing.assert_allclose(np.abs(row), expected, rtol=0.0, atol=2e-4)


def test_group_impacts_are_those_of_fits_with_the_group_frozen(convino_example: Path) -> None:
    problem = read_convino(convino_example)
    fit = fit_likelihood(problem, "pearson")
    groups = dict(problem.groups)
    assert groups["a_unc"] == ("sys_a1", "sys_a2", "sys_a3")
    refitted, parabola = refitted_impacts(problem, fit, groups), frozen_impacts(fit, groups)
    for name, expected in GROUP_IMPACTS.items():
        up, down = refitted[name]
        np.testing.assert_allclose(100.0 * up / fit.values, expected, rtol=0.0, atol=2e-5)
        np.testing.assert_allclose(parabola[name], 0.5 * (up + down), rtol=2e-3)


def test_statistics_and_systematics_add_up(convino_example: Path) -> None:
    problem = read_convino(convino_example)
    fit = fit_likelihood(problem, "pearson")
    total = statistical_errors(fit) ** 2 + systematic_errors(fit) ** 2
    np.testing.assert_allclose(total, fit.errors**2, rtol=1e-12)
    stat_up, _ = refitted_impacts(problem, fit, {"s": ("stat",)})["s"]
    np.testing.assert_allclose(
        frozen_impacts(fit, {"s": ("stat",)})["s"], statistical_errors(fit), rtol=1e-12
    )
    np.testing.assert_allclose(stat_up, statistical_errors(fit), rtol=1e-2)


def test_scans_go_through_the_fit_and_leave_out_what_contradicts_itself(convino_example: Path) -> None:
    problem = read_convino(convino_example)
    fit = fit_likelihood(problem, "pearson")
    single, double = scan_correlations(problem, fit, points=21)
    assert single.rho[0] == pytest.approx([-0.9])
    assert double.rho[-1] == pytest.approx([0.9, -0.4])
    middle = 10  # rho = 0, the nominal one
    np.testing.assert_allclose(single.values[middle], fit.values, rtol=1e-9)
    np.testing.assert_allclose(single.errors[middle], fit.errors, rtol=1e-7)
    assert single.chi2[middle] == pytest.approx(fit.chi2, abs=1e-9)
    assert np.flatnonzero(single.status).tolist() == [0, 20]
    assert np.all(np.isnan(single.values[[0, 20]]))
    assert np.all(np.isfinite(single.values[1:20]))
