r"""The best linear unbiased estimate (BLUE; Lyons, Gibaut, Clifford, NIM A 270 (1988) 110).

Inputs y (n), design U (n, m), total covariance :math:`V = \sum_s V_s`. With a whitening F, :math:`F V F^T = 1`, and
:math:`F U = Q R` (Q with orthonormal columns, R triangular)

.. math:: W = R^{-1} Q^T F, \quad x = W y, \quad \mathrm{cov}(x) = (U^T V^{-1} U)^{-1} = R^{-1} R^{-T}, \quad
          \chi^2 = |(1 - Q Q^T) F y|^2 .

The uncertainty splits by source as :math:`W V_s W^T`, which adds up exactly. This is not the impact of a fit that is
repeated with the source frozen: weights would change.

Not for: asymmetric uncertainties, or those that grow with the result (`blue_rescaled` iterates these).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import solve_triangular
from scipy.special import chdtrc

from musclecal.fits.combination.inputs import checked_inputs, refuse_bad_sources
from musclecal.records import Combined, Floats, Measurements

__all__ = ["blue", "combine", "whitening"]

_UNTESTED = 1e-10
"""A residual with less than this share of the variance of its input is nothing but rounding."""


def whitening(total: Floats) -> Floats:
    """(n, n) lower triangular F with F V F^T = 1. Raises numpy's LinAlgError if V is not positive definite."""
    unit = np.sqrt(np.diagonal(total))
    factor = np.linalg.cholesky(total / unit[:, None] / unit)
    return np.asarray(solve_triangular(factor, np.diag(1.0 / unit), lower=True, check_finite=False))


def blue(
    values: ArrayLike,
    sources: Mapping[str, ArrayLike],
    design: ArrayLike | None = None,
    *,
    names: Sequence[str] | None = None,
    observables: Sequence[str] | None = None,
) -> Combined:
    """Combine correlated measurements of one or many observables.

    Parameters
    ----------
    values : (n,).
    sources : covariance (n, n) of each source; the statistical one is a source like others. They may be singular,
        their sum may not.
    design : (n, m), 1 where an input measures an observable; by default all measure the same one.
    names, observables : (n,) and (m,), for messages.

    Raises
    ------
    InputError : wrong shapes, not finite, not symmetric; an input that measures nothing, an observable that is not
        measured; a total covariance that is singular or not positive definite, with the inputs that make it so.
    """
    given = checked_inputs(values, sources, design, names, observables)
    y, u, total = given.values, given.design, given.total
    white = whitening(total)
    q, r = np.linalg.qr(white @ u)
    half = solve_triangular(r, np.eye(len(r)), check_finite=False)
    weights = half @ (q.T @ white)
    covariance = half @ half.T
    residual_white = white - q @ (q.T @ white)
    residual = residual_white @ y
    chi2, ndf = float(residual @ residual), len(y) - len(r)
    precision = residual_white.T @ residual_white
    parts = weights @ given.stack @ weights.T
    combined = weights @ y
    intrinsic = np.diagonal(covariance)[:, None] * u.T**2 / np.diagonal(total)
    return Combined(
        values=combined,
        covariance=covariance,
        chi2=chi2 if ndf else 0.0,
        ndf=ndf,
        p_value=float(chdtrc(ndf, chi2)) if ndf else 1.0,
        weights=weights,
        by_source=dict(zip(given.sources, parts, strict=True)),
        pulls=_pulls(y - u @ combined, total, u @ covariance @ u.T),
        intrinsic_weights=intrinsic,
        correlation_weights=1.0 - intrinsic.sum(axis=1),
        marginal_weights=_marginal_weights(weights, covariance, precision),
        residual_precision=precision,
        inputs=y,
        design=u,
        input_covariance=total,
        names=given.names,
        observables=given.observables,
    )


def combine(measurements: Measurements) -> Combined:
    """`blue` of measurements with signed shifts."""
    refuse_bad_sources(measurements)
    return blue(
        measurements.values,
        measurements.covariances,
        measurements.design,
        names=measurements.names,
        observables=measurements.observables,
    )


def _pulls(residuals: Floats, total: Floats, predicted: Floats) -> Floats:
    """(n,) residuals over the root of V_ii - (U cov U^T)_ii; NaN where that is nothing but rounding."""
    variance = np.diagonal(total) - np.diagonal(predicted)
    tested = variance > _UNTESTED * np.diagonal(total)
    return np.where(tested, residuals / np.sqrt(np.where(tested, variance, 1.0)), np.nan)


def _marginal_weights(weights: Floats, covariance: Floats, precision: Floats) -> Floats:
    """(m, n) 1 - var(x) / var(x without input i), where leaving i out adds W_ai^2 / P_ii to the variance."""
    lost = weights**2
    kept = np.diagonal(covariance)[:, None] * np.diagonal(precision)
    total = lost + kept
    return np.asarray(np.where(total > 0.0, lost / np.where(total > 0.0, total, 1.0), 0.0))
