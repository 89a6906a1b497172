r"""Combined values along ranges of prior correlations.

A scan changes few rows of C: :math:`C' = C + U\Delta U^T` with U the unit vectors of the p sources it touches. With
:math:`V = C^{-1}U`, :math:`S = (1 + \Delta\,U^T V)^{-1}\Delta`, :math:`H` half the Hessian, :math:`\Sigma = H^{-1}`

.. math:: C'^{-1} = C^{-1} - VSV^T,\qquad \Sigma' = \Sigma + G\,T\,G^T,\qquad
          G = \Sigma V,\quad T = (1 - S\,V^T G)^{-1} S

(Woodbury). Where chi2 is a parabola that is everything: the prior pulls towards zero, so that

.. math:: \theta' = \theta + G\,T\,V^T\theta,\qquad \chi^2{}' = \chi^2 - \theta^T V\,T\,V^T\theta

and all points of a scan are matrices p x p. Otherwise the fit is done again at each point, from the point before. C' is
positive definite if :math:`1 + L^T\Delta L` is, with :math:`U^T V = L L^T`.
"""

from dataclasses import dataclass

import numpy as np

from musclecal.errors import InputError
from musclecal.fits.combination.joined_inputs import likelihood_of
from musclecal.fits.combination.likelihood import Likelihood
from musclecal.fits.combination.near_refit import Approximation, refit_near
from musclecal.fits.combination.newton import Mask, covariance_at, minimise
from musclecal.fits.combination.other_sides import lowest_minimum
from musclecal.fits.combination.prior import clamped, pair_of, prior_correlations, prior_precision
from musclecal.records import Floats, Ints
from musclecal.records.combination_likelihood import (
    CONVERGED,
    NOT_A_MINIMUM,
    CorrelationScan,
    LikelihoodFit,
    LikelihoodProblem,
    ScanCurve,
)

__all__ = ["scan_correlations"]


@dataclass(frozen=True)
class _Prior:
    """Of the fit: correlations C, their inverse, free sources, all (n_source, ...); G-to-be: Sigma C^-1."""

    sources: tuple[str, ...]
    correlations: Floats
    precision: Floats
    free: Mask
    propagated: Floats


@dataclass(frozen=True)
class _Change:
    """Of the prior along one scan.

    Attributes
    ----------
    touched : (p,) sources. rho : (n_point, n_range). step : (n_point, p, p) Delta. slope : (p, p) d Delta/d fraction.
    precision : (n_point, p, p) S. allowed : (n_point,) C' is positive definite.
    """

    touched: Ints
    rho: Floats
    step: Floats
    slope: Floats
    precision: Floats
    allowed: Mask


def _change(scan: CorrelationScan, prior: _Prior, fraction: Floats) -> _Change:
    pairs = [pair_of(one, prior.sources) for one in scan.ranges]
    for one, (i, j) in zip(scan.ranges, pairs, strict=True):
        if prior.free[i] or prior.free[j]:
            raise InputError(f"scan {scan.name!r}: {one.first!r} or {one.second!r} is free, without a prior")
        if not (abs(one.start) <= 1.0 and abs(one.stop) <= 1.0):
            raise InputError(f"scan {scan.name!r}: {one.start} to {one.stop} leaves [-1, 1]")
    touched = np.unique(np.array(pairs, dtype=np.int64))
    place = {int(source): n for n, source in enumerate(touched)}
    rho = np.stack([clamped(one.start + fraction * (one.stop - one.start)) for one in scan.ranges], axis=1)
    p = len(touched)
    step, slope = np.zeros((len(fraction), p, p)), np.zeros((p, p))
    for n, (one, (i, j)) in enumerate(zip(scan.ranges, pairs, strict=True)):
        a, b = place[i], place[j]
        step[:, a, b] = step[:, b, a] = rho[:, n] - prior.correlations[i, j]
        slope[a, b] = slope[b, a] = one.stop - one.start
    inside = prior.precision[np.ix_(touched, touched)]
    lower = np.linalg.cholesky(inside)
    allowed = np.linalg.eigvalsh(np.eye(p) + lower.T @ step @ lower)[:, 0] > 1e-9
    safe = np.where(allowed[:, None, None], step, 0.0)
    precision = np.asarray(np.linalg.solve(np.eye(p) + safe @ inside, safe), dtype=np.float64)
    return _Change(touched, rho, step, slope, precision, allowed)


def _parabola(fit: LikelihoodFit, prior: _Prior, change: _Change) -> tuple[Floats, Floats, Floats, Ints]:
    """Values, variances (n_point, n_obs), chi2 (n_point,) and status of a quadratic chi2."""
    n = len(fit.sources)
    v = prior.precision[:, change.touched]
    g = prior.propagated[:, change.touched]
    of_values, pull = g[n:], v.T @ fit.pulls
    size = np.eye(len(change.touched)) - change.precision @ (v.T @ g[:n])
    t = np.linalg.solve(size, change.precision)
    values = fit.values + (t @ pull) @ of_values.T
    variances = np.diagonal(fit.value_covariance) + np.einsum("ap,tpq,aq->ta", of_values, t, of_values)
    status = np.where(change.allowed, CONVERGED, NOT_A_MINIMUM).astype(np.int64)
    return values, variances, fit.chi2 - t @ pull @ pull, status


def _refits(
    fit: LikelihoodFit, likelihood: Likelihood, prior: _Prior, change: _Change
) -> tuple[Floats, Floats, Floats, Ints]:
    """The same by a fit at each point, from the point before moved as the parabola would move."""
    n, shape = len(fit.sources), (len(change.rho), len(fit.values))
    values, variances, chi2 = np.zeros(shape), np.zeros(shape), np.zeros(shape[0])
    status = np.full(shape[0], NOT_A_MINIMUM, dtype=np.int64)
    v, g = prior.precision[:, change.touched], prior.propagated[:, change.touched]
    size = np.eye(len(change.touched)) - change.precision @ (v.T @ g[:n])
    t = np.linalg.solve(size, change.precision)
    foreseen = (t @ (v.T @ fit.pulls)) @ g.T
    left, held = np.zeros(len(fit.parameters)), fit.held
    for point in np.flatnonzero(change.allowed):
        changed = likelihood.with_penalty(likelihood.penalty - v @ change.precision[point] @ v.T)
        start = fit.parameters + foreseen[point] + left
        near = Approximation(fit.covariance, g, t[point])
        found = refit_near(changed, start, held, near) or _refit(changed, start)
        if found is None:
            continue
        parameters, variances[point], held = found
        status[point], values[point], chi2[point] = CONVERGED, parameters[n:], changed.chi2(parameters)
        left = parameters - fit.parameters - foreseen[point]
    return values, variances, chi2, status


def _refit(likelihood: Likelihood, start: Floats) -> tuple[Floats, Floats, Mask] | None:
    """Parameters, variances (n_obs,) and held sources by Newton; None if it does not converge."""
    minimum = minimise(likelihood, start)
    covariance = covariance_at(likelihood, minimum)
    if covariance is None or minimum.status != CONVERGED:
        return None
    minimum, covariance = lowest_minimum(likelihood, minimum, covariance)
    return minimum.parameters, np.diagonal(covariance)[likelihood.n_source :], minimum.held


def scan_correlations(
    problem: LikelihoodProblem, fit: LikelihoodFit, points: int = 20, *, refit: bool = False
) -> tuple[ScanCurve, ...]:
    """All scans of ``problem``; ``fit`` is its fit. Errors are those of the covariance.

    Parameters
    ----------
    points : from the start to the end of every range. refit : fit at each point even if chi2 is a parabola.

    Raises
    ------
    InputError : unknown or free sources, ranges outside [-1, 1], fewer than two points.
    """
    if points < 2:
        raise InputError(f"scan of correlations: {points} points, but a range has two ends")
    likelihood = likelihood_of(problem, fit.form, fit.fitted_values)
    correlations, n = prior_correlations(problem), len(fit.sources)
    precision = prior_precision(correlations, problem.free)
    prior = _Prior(problem.sources, correlations, precision, problem.free, fit.covariance[:, :n] @ precision)
    return tuple(
        _curve(scan, fit, likelihood, prior, points, refit or not fit.quadratic) for scan in problem.scans
    )


def _curve(
    scan: CorrelationScan, fit: LikelihoodFit, likelihood: Likelihood, prior: _Prior, points: int, refit: bool
) -> ScanCurve:
    fraction = np.linspace(0.0, 1.0, points)
    change = _change(scan, prior, fraction)
    found = _refits(fit, likelihood, prior, change) if refit else _parabola(fit, prior, change)
    values, variances, chi2, status = found
    bad = status != CONVERGED
    values[bad], variances[bad], chi2[bad] = np.nan, np.nan, np.nan
    n = len(fit.sources)
    of_values = prior.propagated[n:, change.touched]
    pull = prior.precision[change.touched] @ fit.pulls
    variance_slope = np.einsum("ap,pq,aq->a", of_values, change.slope, of_values)
    return ScanCurve(
        name=scan.name,
        fraction=fraction,
        rho=change.rho,
        values=values,
        errors=np.sqrt(variances),
        chi2=chi2,
        value_slope=of_values @ change.slope @ pull,
        error_slope=variance_slope / (2.0 * fit.errors),
        status=status,
    )
