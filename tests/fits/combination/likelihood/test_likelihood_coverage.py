"""Toys: profiled fits of two experiments with a common source, combined; RMS over sigma of the result."""

import numpy as np
import pytest

from musclecal.fits.combination.likelihood_fit import fit_likelihood
from musclecal.fits.combination.likelihood_input import from_hessian
from musclecal.records.combination_likelihood import LikelihoodProblem

N_TOYS = 4000
N_SOURCE = 3


def _designs() -> list[np.ndarray]:
    """Of each experiment: rows of data, linear in its sources and in x, which both constrain sources well."""
    rng = np.random.default_rng(2)
    return [np.hstack([rng.normal(0.0, 0.8, (8, N_SOURCE)), rng.normal(0.6, 0.5, (8, 1))]) for _ in range(2)]


@pytest.fixture(scope="module")
def toys() -> dict[bool, tuple[float, float, float]]:
    """RMS/sigma, mean chi2 and ndf, with and without the fitted values. Sources are drawn from their prior."""
    rng, designs = np.random.default_rng(7), _designs()
    prior = np.diag([1.0] * N_SOURCE + [0.0])
    pulls: dict[bool, list[float]] = {True: [], False: []}
    chi2: dict[bool, list[float]] = {True: [], False: []}
    ndf = {}
    names = [f"s{n}" for n in range(N_SOURCE)]
    for _ in range(N_TOYS):
        true = np.concatenate([rng.normal(size=N_SOURCE), [5.0]])
        inputs = []
        for n, design in enumerate(designs):
            data = design @ true + rng.normal(size=len(design))
            hessian = design.T @ design + prior
            *sources, value = np.linalg.solve(hessian, design.T @ data)
            fitted = dict(zip(names, sources, strict=True))
            inputs.append(from_hessian(f"in{n}", [*names, f"e{n}"], hessian, {f"e{n}": value}, fitted=fitted))
        problem = LikelihoodProblem(tuple(inputs), (("x", ("e0", "e1")),))
        for use in (True, False):
            fit = fit_likelihood(problem, fitted_values=use)
            pulls[use].append((fit.values[0] - 5.0) / fit.errors[0])
            chi2[use].append(fit.chi2)
            ndf[use] = fit.ndf
    return {use: (float(np.std(pulls[use])), float(np.mean(chi2[use])), ndf[use]) for use in (True, False)}


def test_errors_cover_with_the_values_that_inputs_fitted(
    toys: dict[bool, tuple[float, float, float]],
) -> None:
    """The RMS of 4000 has an uncertainty of 0.011."""
    assert toys[True][0] == pytest.approx(1.0, abs=0.02)


def test_errors_are_too_small_without_them(toys: dict[bool, tuple[float, float, float]]) -> None:
    assert toys[False][0] > 1.04


def test_chi2_has_its_degrees_of_freedom(toys: dict[bool, tuple[float, float, float]]) -> None:
    """Two estimates and three measured sources each, for one value: the mean of chi2 is 7."""
    _, mean, ndf = toys[True]
    assert ndf == 7
    assert mean == pytest.approx(7.0, abs=4.0 * np.sqrt(2.0 * 7.0 / N_TOYS))
