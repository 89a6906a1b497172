r"""Fits next to one that is known, without writing out or factorising a Hessian.

With an approximate covariance :math:`\tilde\Sigma`, steps :math:`-\tilde\Sigma\,\nabla\chi^2/2` end at the exact
minimum, as the gradient is exact. The variance of a value is :math:`e^T X` with :math:`\tfrac12 H X = e`, for which

.. math:: R = e - \tfrac12 HX,\quad X \leftarrow X + \tilde\Sigma R,\qquad e^T X + X^T R

is wrong only by :math:`R^T\Sigma R`. Both take a few products of a matrix and a vector where the approximation is good.

Not for: fits far away, which are `musclecal.fits.combination.newton`'s; None says that this is one, or that a lower
minimum may lie beyond a kink.
"""

from dataclasses import dataclass

import numpy as np

from musclecal.fits.combination.likelihood import Curvature, Likelihood
from musclecal.fits.combination.newton import Mask, settled
from musclecal.fits.combination.other_sides import kinks_beside, starts_beyond
from musclecal.records import Floats, Ints

__all__ = ["Approximation", "refit_near"]

_STEPS = 12
_NEAR = 1e-11
"""Expected fall of chi2 of the last step, and relative error of a variance."""


@dataclass(frozen=True)
class Approximation:
    """``covariance`` + G T G^T, of low rank p, G ``directions`` (n_par, p), T ``change`` (p, p)."""

    covariance: Floats
    directions: Floats
    change: Floats

    def times(self, vectors: Floats) -> Floats:
        """(n_par, ...)."""
        return np.asarray(
            self.covariance @ vectors + self.directions @ (self.change @ (self.directions.T @ vectors))
        )

    def columns(self, chosen: Ints) -> Floats:
        """(n_par, len(chosen))."""
        return np.asarray(
            self.covariance[:, chosen] + self.directions @ (self.change @ self.directions[chosen].T)
        )


def refit_near(
    likelihood: Likelihood, start: Floats, held: Mask, approximation: Approximation
) -> tuple[Floats, Floats, Mask] | None:
    """Parameters at the minimum, variances (n_obs,) of the values and ``held``; None where this does not converge.

    Parameters
    ----------
    held : (n_source,) sources that stand on a kink, and must still do so at the end.
    """
    n, parameters = likelihood.n_source, start.copy()
    parameters[:n][held] = 0.0
    for _ in range(_STEPS):
        gradient = likelihood.gradient(parameters)
        gradient[:n][held] = 0.0
        step = -0.5 * approximation.times(gradient)
        step[:n][held] = 0.0
        parameters += step
        if -0.5 * float(gradient @ step) < _NEAR:
            break
    else:
        return None
    nowhere = np.zeros(len(start), dtype=np.bool_)
    _, side, now_held = settled(likelihood, parameters, likelihood.sides(parameters), nowhere)
    if not np.array_equal(now_held, held) or _may_be_lower(likelihood, parameters, side, approximation):
        return None
    variances = _variances(likelihood.curvature(parameters, side), n, held, approximation)
    return None if variances is None else (parameters, variances, held)


def _may_be_lower(
    likelihood: Likelihood, parameters: Floats, side: Floats, approximation: Approximation
) -> bool:
    sources = kinks_beside(likelihood, parameters)
    return bool(starts_beyond(likelihood, parameters, side, sources, approximation.columns(sources)))


def _variances(
    curvature: Curvature, n_source: int, held: Mask, approximation: Approximation
) -> Floats | None:
    """(n_obs,) with ``held`` sources fixed."""
    n_par = curvature.prediction.jacobian.shape[1]
    unit = np.zeros((n_par, n_par - n_source))
    unit[n_source:] = np.eye(n_par - n_source)
    solution, rest = np.zeros_like(unit), unit
    for _ in range(_STEPS):
        step = approximation.times(rest)
        step[:n_source][held] = 0.0
        solution = solution + step
        rest = unit - 0.5 * curvature.times(solution)
        rest[:n_source][held] = 0.0
        variances = solution[n_source:].diagonal() + np.einsum("pa,pa->a", solution, rest)
        wrong = np.einsum("pa,pa->a", rest, approximation.times(rest))
        if np.all(np.abs(wrong) < _NEAR * variances):
            return np.asarray(variances)
    return None
