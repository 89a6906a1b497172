r"""Lower minima on the other side of a kink.

The chi2 of an asymmetric response may have a minimum on each side of 0. From the one that was found, at
:math:`\hat\lambda_i`, the others follow a source to its kink and chi2 rises by
:math:`\hat\lambda_i^2/\Sigma_{ii}`. If the slope g beyond it goes down again, there is another minimum, lower by
about :math:`g^2\Sigma_{ii}/4`: where twice that would pay, it is looked for. One source at a time:
what only two of them together would find is not found.
"""

import numpy as np

from musclecal.fits.combination.likelihood import Likelihood
from musclecal.fits.combination.newton import Minimum, covariance_at, minimise
from musclecal.records import Floats, Ints
from musclecal.records.combination_likelihood import CONVERGED

__all__ = ["kinks_beside", "lowest_minimum", "starts_beyond"]

_ROUNDS = 20
_LOWER = 1e-9


def kinks_beside(likelihood: Likelihood, parameters: Floats) -> Ints:
    """Sources with a kink, on which they do not stand."""
    beside = likelihood.responses.kink & (parameters[: likelihood.n_source] != 0.0)
    return np.flatnonzero(beside).astype(np.int64)


def _slopes_beyond(
    likelihood: Likelihood, parameters: Floats, side: Floats, sources: Ints, columns: Floats
) -> Floats:
    """(len(sources),) slopes away from the minimum just beyond each kink, to first order in the way there."""
    responses, curvature = likelihood.responses, likelihood.curvature(parameters, side)
    value, variance = parameters[sources], columns[sources, np.arange(len(sources))]
    way = curvature.prediction.jacobian @ (columns * (-value / variance))
    factor = curvature.factor[:, None] + curvature.core @ way
    relative = responses.relative[:, sources]
    size = np.where(relative, (curvature.prediction.scale / responses.values)[:, None], 1.0)
    change = np.sum(factor * (responses.up + responses.down)[:, sources] * size, axis=0)
    return np.asarray(2.0 * np.abs(value) / variance - 2.0 * change)


def starts_beyond(
    likelihood: Likelihood, parameters: Floats, side: Floats, sources: Ints, columns: Floats
) -> list[Floats]:
    """Parameters to start from beyond the kinks of ``sources``, where that could lead lower.

    ``columns`` (n_par, len(sources)) are those of the covariance at the minimum ``parameters``.
    """
    sized = columns[sources, np.arange(len(sources))] > 0.0
    sources, columns = sources[sized], columns[:, sized]
    slopes = _slopes_beyond(likelihood, parameters, side, sources, columns)
    value, variance = parameters[sources], columns[sources, np.arange(len(sources))]
    along = columns / variance
    distance = np.where(value > 0.0, 0.5, -0.5) * slopes * variance
    starts = parameters[:, None] - along * value + along * distance
    chosen = (slopes < 0.0) & (0.5 * slopes**2 * variance > value**2 / variance)
    return list(starts.T[chosen])


def _lower(likelihood: Likelihood, minimum: Minimum, covariance: Floats) -> Minimum | None:
    sources = kinks_beside(likelihood, minimum.parameters)
    for start in starts_beyond(likelihood, minimum.parameters, minimum.side, sources, covariance[:, sources]):
        other = minimise(likelihood, start)
        if other.status == CONVERGED and other.chi2 < minimum.chi2 - _LOWER:
            return other
    return None


def lowest_minimum(likelihood: Likelihood, minimum: Minimum, covariance: Floats) -> tuple[Minimum, Floats]:
    """The lowest minimum that is reached from ``minimum``, whose covariance is given, and its covariance."""
    for _ in range(_ROUNDS):
        other = _lower(likelihood, minimum, covariance)
        of_other = None if other is None else covariance_at(likelihood, other)
        if other is None or of_other is None:
            break
        minimum, covariance = other, of_other
    return minimum, covariance
