"""The combination by likelihood: minimum, covariance, intervals, chi2.

Not for: measurements without profiled fits, relative or asymmetric sources and correlations to scan; there the closed
form (BLUE) gives the same numbers, and weights.
"""

import numpy as np
from scipy.special import chdtrc

from musclecal.errors import InputError
from musclecal.fits.combination.joined_inputs import likelihood_of
from musclecal.fits.combination.likelihood import Likelihood
from musclecal.fits.combination.minos import intervals
from musclecal.fits.combination.newton import Minimum, covariance_at, minimise, solve_quadratic
from musclecal.fits.combination.other_sides import lowest_minimum
from musclecal.records import Floats
from musclecal.records.combination_likelihood import LikelihoodFit, LikelihoodProblem

__all__ = ["fit_likelihood", "minimum_of"]


def _minimum(likelihood: Likelihood, names: tuple[str, ...], newton: bool) -> tuple[Minimum, Floats]:
    if likelihood.is_quadratic and not newton:
        return solve_quadratic(likelihood, names)
    minimum = minimise(likelihood, likelihood.start())
    covariance = covariance_at(likelihood, minimum)
    if covariance is None:
        raise InputError(
            f"combination: no minimum found in {minimum.iterations} steps (chi2 {minimum.chi2:.6g}); the Hessian is "
            "not positive definite: is a source free and in no fit, or a shift as large as its value?"
        )
    return lowest_minimum(likelihood, minimum, covariance)


def minimum_of(fit: LikelihoodFit, likelihood: Likelihood) -> Minimum:
    """Where ``fit`` ended, to go on from there."""
    return Minimum(
        fit.parameters, likelihood.sides(fit.parameters), fit.held, fit.chi2, fit.iterations, fit.status
    )


def fit_likelihood(
    problem: LikelihoodProblem,
    form: str = "neyman",
    *,
    fitted_values: bool = True,
    minos: bool = True,
    newton: bool = False,
) -> LikelihoodFit:
    """Combined values of ``problem``.

    Parameters
    ----------
    form : "neyman", the weights of the inputs as they are, or "pearson", for counts.
    fitted_values : use the values that inputs have fitted for their sources. Without them errors are too small.
    minos : intervals by profiles; for a quadratic chi2 they are those of the covariance, and cost nothing.
    newton : do not use that the chi2 is quadratic.

    Raises
    ------
    InputError : as `likelihood_of`; parameters that the inputs do not fix.
    """
    likelihood = likelihood_of(problem, form, fitted_values)
    observables = tuple(name for name, _ in problem.observables) + problem.spectators
    minimum, covariance = _minimum(likelihood, problem.sources + observables, newton)
    n = likelihood.n_source
    errors = np.sqrt(np.diagonal(covariance)[n:])
    profile = minos and not (likelihood.is_quadratic and not newton)
    up, down = intervals(likelihood, minimum, covariance) if profile else (errors, errors)
    ndf = likelihood.ndf
    return LikelihoodFit(
        observables=observables,
        n_spectator=len(problem.spectators),
        sources=problem.sources,
        parameters=minimum.parameters,
        covariance=covariance,
        up=up,
        down=down,
        chi2=minimum.chi2,
        ndf=ndf,
        p_value=float(chdtrc(ndf, max(minimum.chi2, 0.0))) if ndf > 0 else 1.0,
        form=form,
        fitted_values=fitted_values,
        quadratic=likelihood.is_quadratic,
        held=minimum.held,
        iterations=minimum.iterations,
        status=minimum.status,
    )
