"""Minimum of a chi2 with kinks: damped Newton on one side of each kink at a time, and the covariance there.

A source of asymmetric response has different slopes on both sides of 0. The minimum may lie on such a kink, where chi2
rises both ways though no derivative vanishes; the source is then held at 0, as a bound would hold it.

Not for: several minima. From the start that is given, the next one is found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri, dpotrs

from musclecal.errors import InputError
from musclecal.fits.combination.likelihood import Likelihood
from musclecal.records import Floats
from musclecal.records.combination_likelihood import CONVERGED, NO_STEPS_LEFT, NOT_A_MINIMUM

__all__ = ["Minimum", "covariance_at", "inverse", "minimise", "settled", "solve_quadratic"]

Mask = NDArray[np.bool_]

_NEAR = 1e-9
"""A step that lowers chi2 by less is the last: Newton squares the distance, so it ends at rounding."""
_SMALLEST_PIVOT = 1e-13
"""Of a Hessian scaled to unit diagonal; less is a direction that nothing fixes."""


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended.

    Attributes
    ----------
    parameters, side : (n_par,), (n_source,) the side of each kink. held : (n_source,) sources on a kink.
    chi2 : there. iterations, status : as in `LikelihoodFit`.
    """

    parameters: Floats
    side: Floats
    held: Mask
    chi2: float
    iterations: int
    status: int


def _factor(matrix: Floats) -> tuple[Floats, Floats] | None:
    """Lower Cholesky factor of ``matrix`` scaled to unit diagonal, and the scale; None if not positive definite."""
    diagonal = np.diagonal(matrix)
    if not np.all(diagonal > 0.0):
        return None
    scale = 1.0 / np.sqrt(diagonal)
    factor, info = dpotrf(matrix * scale[:, None] * scale, lower=1)
    if info != 0 or np.min(np.diagonal(factor), initial=1.0) ** 2 < _SMALLEST_PIVOT:
        return None
    return factor, scale


def inverse(matrix: Floats) -> Floats | None:
    """(n, n) inverse of a positive definite ``matrix``, None if it is not."""
    factored = _factor(matrix)
    if factored is None:
        return None
    lower, _ = dpotri(factored[0], lower=1)
    full = np.tril(lower) + np.tril(lower, -1).T
    return np.asarray(full * factored[1][:, None] * factored[1])


def _solution(matrix: Floats, vector: Floats) -> Floats | None:
    factored = _factor(matrix)
    if factored is None:
        return None
    solved, _ = dpotrs(factored[0], vector * factored[1], lower=1)
    return np.asarray(solved * factored[1])


def _refuse_singular(hessian: Floats, names: Sequence[str]) -> NoReturn:
    size = np.sqrt(np.maximum(np.abs(np.diagonal(hessian)), np.finfo(np.float64).tiny))
    eigenvalues, vectors = np.linalg.eigh(hessian / size[:, None] / size)
    leading = np.argsort(-np.abs(vectors[:, 0]))[:3]
    raise InputError(
        f"combination: the inputs do not fix a combination of {', '.join(names[i] for i in leading)} "
        f"(smallest eigenvalue of the scaled Hessian {eigenvalues[0]:.3g})"
    )


def solve_quadratic(likelihood: Likelihood, names: Sequence[str]) -> tuple[Minimum, Floats]:
    """The minimum of a quadratic chi2 by one linear system, and the covariance (n_par, n_par)."""
    start = likelihood.start()
    hessian = likelihood.hessian(start)
    half_inverse = inverse(hessian)
    if half_inverse is None:
        _refuse_singular(hessian, names)
    parameters = start - half_inverse @ likelihood.gradient(start)
    parameters = parameters - half_inverse @ likelihood.gradient(parameters)
    nowhere = np.zeros(likelihood.n_source, dtype=np.bool_)
    minimum = Minimum(
        parameters, likelihood.sides(parameters), nowhere, likelihood.chi2(parameters), 1, CONVERGED
    )
    return minimum, 2.0 * half_inverse


def _descending_step(hessian: Floats, gradient: Floats) -> Floats:
    """-H^-1 g; where H is not positive definite, with as much of its diagonal added as makes it so."""
    more = 0.0
    diagonal = np.maximum(np.abs(np.diagonal(hessian)), np.finfo(np.float64).tiny)
    for _ in range(60):
        step = _solution(hessian + np.diag(more * diagonal) if more else hessian, -gradient)
        if step is not None:
            return step
        more = max(1e-3, 2.0 * more)
    return -gradient / diagonal


def settled(
    likelihood: Likelihood, parameters: Floats, side: Floats, fixed: Mask
) -> tuple[Floats, Floats, Mask]:
    """Gradient, sides and held sources: sources on a kink go down on the steeper side, or stay if both go up."""
    n = likelihood.n_source
    on_kink = likelihood.responses.kink & (parameters[:n] == 0.0) & ~fixed[:n]
    if not np.any(on_kink):
        return likelihood.gradient(parameters, side), side, on_kink
    upper = likelihood.gradient(parameters, np.where(on_kink, 1.0, side))
    lower = likelihood.gradient(parameters, np.where(on_kink, -1.0, side))
    held = on_kink & (lower[:n] <= 0.0) & (upper[:n] >= 0.0)
    below = on_kink & (lower[:n] > 0.0) & (lower[:n] > -upper[:n])
    side = np.where(on_kink, np.where(below, -1.0, 1.0), side)
    return np.concatenate([np.where(below, lower[:n], upper[:n]), upper[n:]]), side, held


def _advance(
    likelihood: Likelihood, parameters: Floats, step: Floats, side: Floats, before: float, slope: float
) -> Floats:
    """The next point along ``step``: halved until chi2 falls; across kinks, or up to them if that is lower."""
    n = likelihood.n_source
    rounding = 1e-12 * (1.0 + abs(before))
    length = 1.0
    for _ in range(40):
        through = parameters + length * step
        options = [through]
        crossed = likelihood.responses.kink & (through[:n] * side < 0.0)
        if np.any(crossed):
            stopped = through.copy()
            stopped[:n][crossed] = 0.0
            options.append(stopped)
        chi2 = [likelihood.chi2(option) for option in options]
        best = int(np.argmin(np.nan_to_num(chi2, nan=np.inf)))
        if chi2[best] <= before + 1e-4 * length * slope + rounding:
            return options[best]
        length *= 0.5
    return parameters


def minimise(
    likelihood: Likelihood, start: Floats, fixed: Mask | None = None, max_iterations: int = 100
) -> Minimum:
    """Newton from ``start`` (n_par,), with the parameters ``fixed`` (n_par,) left where they are."""
    n = likelihood.n_source
    fixed = np.zeros(likelihood.n_par, dtype=np.bool_) if fixed is None else fixed
    parameters, side = start.copy(), likelihood.sides(start)
    held, status, iterations = np.zeros(n, dtype=np.bool_), NO_STEPS_LEFT, 0
    while iterations < max_iterations:
        iterations += 1
        gradient, side, held = settled(likelihood, parameters, side, fixed)
        free = ~fixed
        free[:n] &= ~held
        hessian = likelihood.hessian(parameters, side)
        step = np.zeros(len(parameters))
        if np.any(free):
            step[free] = _descending_step(hessian[np.ix_(free, free)], gradient[free])
        slope = float(gradient @ step)
        crossing = bool(np.any(likelihood.responses.kink & ((parameters + step)[:n] * side < 0.0)))
        if -0.5 * slope < _NEAR and not crossing:
            parameters, status = parameters + step, CONVERGED
            break
        after = _advance(likelihood, parameters, step, side, likelihood.chi2(parameters), slope)
        if np.array_equal(after, parameters):
            status = CONVERGED if -0.5 * slope < _NEAR else NOT_A_MINIMUM
            break
        parameters = after
        moved = parameters[:n] != 0.0
        side = np.where(moved, likelihood.sides(parameters), side)
    return Minimum(parameters, side, held, likelihood.chi2(parameters), iterations, status)


def covariance_at(likelihood: Likelihood, minimum: Minimum) -> Floats | None:
    """(n_par, n_par) inverse of half the Hessian, with zeros for held sources; None if it is not positive definite."""
    free = np.ones(likelihood.n_par, dtype=np.bool_)
    free[: likelihood.n_source] = ~minimum.held
    half_inverse = inverse(likelihood.hessian(minimum.parameters, minimum.side)[np.ix_(free, free)])
    if half_inverse is None:
        return None
    result = np.zeros((likelihood.n_par, likelihood.n_par))
    result[np.ix_(free, free)] = 2.0 * half_inverse
    return result
