r"""Intervals where the chi2, minimised in everything else, has risen by 1 (or another amount).

.. math:: \Delta(v) = \min_{\theta\setminus x}\chi^2(x = v) - \chi^2_\mathrm{min},\qquad
          \frac{d\Delta}{dv} = \frac{\partial\chi^2}{\partial x}\ \text{at the profiled point}

:math:`\sqrt\Delta` is nearly a straight line, so Newton on it converges in three or four profiles, each of them started
where a parabola would have its minimum.
"""

import numpy as np

from musclecal.fits.combination.likelihood import Likelihood
from musclecal.fits.combination.newton import Mask, Minimum, minimise
from musclecal.records import Floats
from musclecal.records.combination_likelihood import CONVERGED

__all__ = ["intervals"]

_CLOSE = 1e-7
"""In units of the standard deviation."""


def _crossing(
    likelihood: Likelihood,
    minimum: Minimum,
    covariance: Floats,
    index: int,
    direction: float,
    rise: float,
    fixed: Mask,
) -> float:
    """Distance at which the profiled chi2 has risen by ``rise``; nan if a profile does not converge."""
    sigma, best = float(np.sqrt(covariance[index, index])), minimum.parameters[index]
    along = covariance[:, index] / covariance[index, index]
    frozen = fixed.copy()
    frozen[index] = True
    distance, wanted = float(np.sqrt(rise)) * sigma, float(np.sqrt(rise))
    start, at = minimum.parameters, 0.0
    for _ in range(30):
        moved = start + (direction * distance - at) * np.where(fixed, 0.0, along)
        moved[index] = best + direction * distance
        point = minimise(likelihood, moved, frozen)
        risen = point.chi2 - minimum.chi2
        if point.status != CONVERGED or not risen > 0.0:
            return float("nan")
        slope = (
            direction
            * float(likelihood.gradient(point.parameters, point.side)[index])
            / (2.0 * np.sqrt(risen))
        )
        start, at = point.parameters, direction * distance
        if not slope > 0.0:
            return float("nan")
        change = float(np.clip((wanted - np.sqrt(risen)) / slope, -0.5 * distance, distance))
        distance += change
        if abs(change) < _CLOSE * sigma:
            return distance
    return float("nan")


def intervals(
    likelihood: Likelihood, minimum: Minimum, covariance: Floats, rise: float = 1.0, fixed: Mask | None = None
) -> tuple[Floats, Floats]:
    """Up and down (n_obs,) of all combined values.

    Parameters
    ----------
    covariance : (n_par, n_par) at the minimum, for the first guess.
    fixed : (n_par,) parameters that do not move at all, as for frozen impacts.
    """
    fixed = np.zeros(likelihood.n_par, dtype=np.bool_) if fixed is None else fixed
    found = [
        [
            _crossing(likelihood, minimum, covariance, index, direction, rise, fixed)
            for direction in (1.0, -1.0)
        ]
        for index in range(likelihood.n_source, likelihood.n_par)
    ]
    both = np.array(found)
    return both[:, 0], both[:, 1]
