"""Impacts from one covariance against fits that are really done again."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.fits.combination.impacts import (
    covariance_impacts,
    frozen_impacts,
    refitted_impacts,
    statistical_errors,
    systematic_errors,
)
from musclecal.fits.combination.likelihood_fit import fit_likelihood
from musclecal.fits.combination.likelihood_input import from_table
from musclecal.records import Floats
from musclecal.records.combination_likelihood import CorrelationRange, LikelihoodInput, LikelihoodProblem

Make = Callable[..., LikelihoodInput]
Combine = Callable[..., LikelihoodProblem]


@pytest.fixture
def problem(make_profiled: Make, make_tabulated: Make, make_combined: Combine) -> LikelihoodProblem:
    """Quadratic, a fit and a table, with correlated sources."""
    return make_combined((make_profiled("fit", 3, 4, seed=21), make_tabulated("table", 4, 5, seed=22)))


def _without(problem: LikelihoodProblem, group: tuple[str, ...]) -> Floats:
    """Errors of values with rows and columns of the group taken out of the inverse covariance."""
    fit = fit_likelihood(problem)
    keep = np.array([s not in group for s in fit.sources] + [True] * len(fit.observables))
    covariance = np.linalg.inv(np.linalg.inv(fit.covariance)[np.ix_(keep, keep)])
    return np.asarray(np.sqrt(np.diagonal(covariance))[-len(fit.observables) :], dtype=np.float64)


@pytest.mark.parametrize(
    "group", [("fit_s0",), ("fit_s1", "table_s1"), ("fit_s0", "fit_s3", "table_s0", "table_s4")]
)
def test_frozen_impacts(problem: LikelihoodProblem, group: tuple[str, ...]) -> None:
    fit = fit_likelihood(problem)
    expected = np.sqrt(fit.errors**2 - _without(problem, group) ** 2)
    np.testing.assert_allclose(frozen_impacts(fit, {"g": group})["g"], expected, rtol=1e-8)
    up, down = refitted_impacts(problem, fit, {"g": group})["g"]
    np.testing.assert_allclose([up, down], [expected, expected], rtol=1e-5)


def test_a_single_source_has_the_same_impact_in_both_breakdowns(problem: LikelihoodProblem) -> None:
    fit = fit_likelihood(problem)
    single = frozen_impacts(fit)
    groups = frozen_impacts(fit, {s: (s,) for s in fit.sources})
    for n, source in enumerate(fit.sources):
        np.testing.assert_allclose(single[source], np.abs(covariance_impacts(fit)[n]), rtol=1e-12)
        np.testing.assert_allclose(single[source], groups[source], rtol=1e-8)


def test_a_sign_of_a_covariance_impact_is_that_of_the_shift() -> None:
    """One estimate, one source: the value goes where the source pulls it, by the whole shift."""
    one = from_table("one", {"e": 10.0}, [[0.04]], ["up", "down"], [[0.3, -0.5]])
    fit = fit_likelihood(LikelihoodProblem((one,), (("x", ("e",)),)))
    np.testing.assert_allclose(covariance_impacts(fit)[:, 0], [0.3, -0.5], rtol=1e-12)
    np.testing.assert_allclose(statistical_errors(fit), 0.2, rtol=1e-12)
    np.testing.assert_allclose(systematic_errors(fit), np.hypot(0.3, 0.5), rtol=1e-12)


def test_correlated_sources_count_twice_one_by_one_and_once_as_a_group() -> None:
    """Two sources of shift 1 that are nearly one: each alone explains all, so does the group."""
    one = from_table("one", {"e": 10.0}, [[1.0]], ["a", "b"], [[1.0, 1.0]])
    problem = LikelihoodProblem((one,), (("x", ("e",)),))
    rho = 0.98
    fit = fit_likelihood(replace(problem, correlations=(CorrelationRange("a", "b", rho, rho, rho),)))
    np.testing.assert_allclose(covariance_impacts(fit)[:, 0], 1.0 + rho, rtol=1e-9)
    np.testing.assert_allclose(
        frozen_impacts(fit, {"both": ("a", "b")})["both"], np.sqrt(2.0 + 2.0 * rho), rtol=1e-9
    )


def test_everything_frozen_is_statistics(problem: LikelihoodProblem) -> None:
    fit = fit_likelihood(problem)
    groups = {"stat": ("stat",), "all": fit.sources}
    found, again = frozen_impacts(fit, groups), refitted_impacts(problem, fit, groups)
    np.testing.assert_allclose(found["stat"], _without(problem, fit.sources), rtol=1e-8)
    np.testing.assert_allclose(found["all"], systematic_errors(fit), rtol=1e-12)
    np.testing.assert_allclose(again["stat"][0], found["stat"], rtol=1e-6)


def test_intervals_of_an_asymmetric_source_shrink_on_its_side(make_combined: Combine) -> None:
    """Frozen impacts up and down differ, and lie on both sides of that of the parabola with one slope."""
    one = from_table("one", {"e": 10.0}, [[0.04]], ["s"], [[0.6]], [[-0.2]])
    problem = make_combined((one,), n_obs=1)
    fit = fit_likelihood(problem)
    up, down = refitted_impacts(problem, fit, {"s": ("s",)})["s"]
    np.testing.assert_allclose([up[0], down[0]], [0.6, 0.2], rtol=1e-6)


def test_unknown_sources(problem: LikelihoodProblem) -> None:
    with pytest.raises(InputError, match="impact of 'g': no source 'nobody'"):
        frozen_impacts(fit_likelihood(problem), {"g": ("nobody",)})
