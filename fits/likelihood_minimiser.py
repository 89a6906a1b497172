r"""Compiled search for the minimum of a likelihood of one bin, and of a block of bins: Fisher scoring, then Newton.

A step solves :math:`(F + \lambda\,\mathrm{diag}F)\,\delta = -\nabla`, with F the expected information, or near the
minimum the observed Hessian; it is taken if it lowers the cost. Parameters that push against a bound are frozen for
that step.

Not for: the likelihood itself (`musclecal.fits.likelihood_kernels`), starts, threads (`musclecal.fits.likelihood`).
"""

import math

import numpy as np

from musclecal.compiled import borrowing, innermost, kernel
from musclecal.fits.likelihood_kernels import (
    Likelihood,
    Room,
    cost_of,
    n_floored,
    observed_hessian,
    probabilities,
    sandwich,
    score,
)
from musclecal.records import Floats, Ints

__all__ = ["AT_LIMIT", "GOOD", "HESSIAN_NOT_POSITIVE", "NOT_CONVERGED", "NO_EVENTS", "fit_block"]

_MOST_FLOORED = 0.1
"""Of the events: with more in bins where the model has none, what was found is no fit of them."""
_WIDEST = (0.1, 1.0)
"""Errors of ln s and ln w: where they are larger, there is no peak that the events fix."""
_NEAR = 0.5
"""Estimated distance to the minimum below which steps are taken with the observed Hessian."""


GOOD, NO_EVENTS, NOT_CONVERGED, HESSIAN_NOT_POSITIVE, AT_LIMIT = 0, 1, 2, 3, 4
"""The values of `musclecal.fits.likelihood.FitStatus`."""


@borrowing
def _solve(matrix: Floats, right: Floats, free: Ints, damping: float, lower: Floats, out: Floats) -> bool:
    """Solve (matrix + damping diag) out = right over the free parameters by Cholesky; frozen ones give 0."""
    lower[:, :] = 0.0
    for a in range(4):
        out[a] = 0.0
    for a in range(4):
        if not free[a]:
            continue
        for b in range(a + 1):
            if not free[b]:
                continue
            total = matrix[a, b] * (1.0 + damping if a == b else 1.0)
            for c in range(b):
                total -= lower[a, c] * lower[b, c]
            if a == b:
                if not total > 0.0:
                    return False
                lower[a, a] = math.sqrt(total)
            else:
                lower[a, b] = total / lower[b, b]
    for a in range(4):
        if free[a]:
            total = right[a]
            for c in range(a):
                total -= lower[a, c] * out[c]
            out[a] = total / lower[a, a]
    for a in range(3, -1, -1):
        if free[a]:
            total = out[a]
            for c in range(a + 1, 4):
                if free[c]:
                    total -= lower[c, a] * out[c]
            out[a] = total / lower[a, a]
    return True


@borrowing
def _invert(hessian: Floats, free: Ints, room: Room, unit: Floats, covariance: Floats) -> bool:
    """Inverse over the free parameters, 0 elsewhere; False where it is not positive."""
    for a in range(4):
        for b in range(4):
            unit[b] = 1.0 if a == b else 0.0
        if free[a] and not _solve(hessian, unit, free, 0.0, room.lower, covariance[a]):
            return False
    return True


@innermost
def _copy(one: Floats, to: Floats) -> None:
    """(4, 4). An assignment of arrays would compile its error messages as well."""
    for a in range(4):
        for b in range(4):
            to[a, b] = one[a, b]


@borrowing
def _choose_free(like: Likelihood, theta: Floats, gradient: Floats, free: Ints) -> None:
    """Parameters that may move: not those of a background that is not fitted, nor those held by a bound."""
    bounds = like.bounds
    for a in range(4):
        floats = a < 2 or like.background > 0
        at_low = theta[a] <= bounds[a, 0] and gradient[a] > 0.0
        at_high = theta[a] >= bounds[a, 1] and gradient[a] < 0.0
        free[a] = 1 if floats and not at_low and not at_high else 0


@borrowing
def _bounded_step(theta: Floats, delta: Floats, bounds: Floats, trial: Floats) -> None:
    """theta - delta, no further than two widths in the scale, 0.25 in the fraction, 0.7 in the others."""
    for a in range(4):
        limit = 0.7 if a != 2 else 0.25
        if a == 0:
            limit = 2.0 * math.exp(theta[1])
        move = min(max(-delta[a], -limit), limit)
        trial[a] = min(max(theta[a] + move, bounds[a, 0]), bounds[a, 1])


@borrowing
def _downhill(
    like: Likelihood, counts: Floats, table: Floats, theta: Floats, centre: Floats, gradient: Floats, matrix: Floats,
    free: Ints, observed: bool, damping: float, cost: float, delta: Floats, trial: Floats, room: Room,
) -> tuple[bool, float, float]:  # fmt: skip
    """A step to ``trial`` that lowers the cost; whether there is one, the cost there, the next damping.

    ``delta`` is the step without damping, which is tried first if ``matrix`` is the observed Hessian.
    """
    for attempt in range(30):
        if attempt > 0 or not observed:
            _solve(matrix, gradient, free, damping, room.lower, delta)
        _bounded_step(theta, delta, like.bounds, trial)
        probabilities(like, table, trial, room)
        trial_cost = cost_of(like, counts, room.p, trial, centre)
        if trial_cost <= cost + 1e-9:
            return True, trial_cost, max(0.1 * damping, 1e-9)
        damping = max(10.0 * damping, 1e-6)
    return False, cost, damping


@borrowing
def _judged(
    like: Likelihood, counts: Floats, events: float, theta: Floats, free: Ints, hessian: Floats, unit: Floats,
    covariance: Floats, room: Room,
) -> int:  # fmt: skip
    """Status of a minimum, with its covariance."""
    if n_floored(like, counts, room.p) > _MOST_FLOORED * events:
        return NOT_CONVERGED
    for a in range(2):
        if not like.bounds[a, 0] < theta[a] < like.bounds[a, 1]:
            return AT_LIMIT
    if theta[2] <= 0.0:
        free[3] = 0  # the slope of no background is not measured
    if not _invert(hessian, free, room, unit, covariance):
        return HESSIAN_NOT_POSITIVE
    for a in range(2):
        if covariance[a, a] > _WIDEST[a] ** 2:
            return AT_LIMIT
    return GOOD


@kernel
def _fit_one(
    like: Likelihood, counts: Floats, table: Floats, centre: Floats, theta: Floats, covariance: Floats, room: Room
) -> tuple[int, float, int]:  # fmt: skip
    """Fit one bin from ``theta``, which becomes the result. Gives status, edm, iterations."""
    events = counts.sum()
    gradient, delta, trial = np.empty(4), np.empty(4), np.empty(4)
    matrix, hessian = np.empty((4, 4)), np.empty((4, 4))
    free = np.ones(4, dtype=np.int64)
    damping = 1e-3
    edm = math.inf
    observed = False
    probabilities(like, table, theta, room)
    cost = cost_of(like, counts, room.p, theta, centre)
    iteration = 0
    while iteration < like.max_iterations:
        iteration += 1
        score(like, counts, events, theta, centre, room, gradient, matrix)
        _choose_free(like, theta, gradient, free)
        observed, solved = False, False
        if edm < _NEAR:
            observed_hessian(like, counts, table, theta, room, hessian)
            observed = solved = _solve(hessian, gradient, free, 0.0, room.lower, delta)
            if observed:
                _copy(hessian, matrix)
        if not solved:
            solved = _solve(matrix, gradient, free, 0.0, room.lower, delta) or _solve(
                matrix, gradient, free, 1e-2, room.lower, delta
            )
        if not solved:
            return NOT_CONVERGED, edm, iteration
        edm = 0.5 * (gradient * delta).sum()
        if edm < like.goal:
            # A fraction whose next step would leave the allowed range belongs on the bound.
            if not (free[2] and theta[2] <= 2.0 * delta[2]):
                break
            theta[2] = 0.0
            probabilities(like, table, theta, room)
            cost = cost_of(like, counts, room.p, theta, centre)
            continue
        accepted, cost, damping = _downhill(
            like,
            counts,
            table,
            theta,
            centre,
            gradient,
            matrix,
            free,
            observed,
            damping,
            cost,
            delta,
            trial,
            room,
        )
        observed = False
        if not accepted:
            probabilities(like, table, theta, room)
            if edm < 1e3 * like.goal:
                break
            return NOT_CONVERGED, edm, iteration
        for a in range(4):
            theta[a] = trial[a]
    if edm >= 1e3 * like.goal:
        return NOT_CONVERGED, edm, iteration
    if not observed:
        observed_hessian(like, counts, table, theta, room, hessian)
    return _judged(like, counts, events, theta, free, hessian, delta, covariance, room), edm, iteration


@kernel
def fit_block(
    like: Likelihood, counts: Floats, variances: Floats, tables: Floats, table_of: Ints, centres: Floats,
    starts: Floats, theta: Floats, covariance: Floats, status: Ints, edm: Floats, chi2: Floats, iterations: Ints,
    room: Room,
) -> None:  # fmt: skip
    for n in range(counts.shape[0]):
        events = counts[n].sum()
        status[n] = NO_EVENTS
        if not events > 0.0:
            continue
        table = tables[table_of[n]]
        for attempt in range(starts.shape[1]):
            for a in range(4):
                theta[n, a] = starts[n, attempt, a]
            covariance[n] = 0.0
            status[n], edm[n], iterations[n] = _fit_one(
                like, counts[n], table, centres[n], theta[n], covariance[n], room
            )
            if status[n] == GOOD:
                break
        # Near a fraction of zero only its prior holds the slope: there can be a minimum for either sign of it.
        if like.background > 0 and (
            status[n] == HESSIAN_NOT_POSITIVE or (status[n] == GOOD and theta[n, 2] < 0.02)
        ):
            best = cost_of(like, counts[n], room.p, theta[n], centres[n]) if status[n] == GOOD else math.inf
            for sign in (-1.0, 1.0):
                other, other_covariance = theta[n].copy(), np.zeros((4, 4))
                other[2], other[3] = 0.02, 0.5 * sign * min(like.bounds[3, 1], 4.0)
                end, other_edm, more = _fit_one(
                    like, counts[n], table, centres[n], other, other_covariance, room
                )
                iterations[n] += more
                cost = cost_of(like, counts[n], room.p, other, centres[n])
                if end == GOOD and cost < best - 1e-6:
                    best, status[n], edm[n] = cost, end, other_edm
                    _copy(other_covariance, covariance[n])
                    for a in range(4):
                        theta[n, a] = other[a]
            probabilities(like, table, theta[n], room)
        if status[n] == GOOD and variances.shape[0] > 0:
            sandwich(like, variances[n], room, covariance[n])
        chi2[n] = 0.0
        for i in range(counts.shape[1]):
            expected = events * max(room.p[i], like.floor)
            chi2[n] += (counts[n, i] - expected) ** 2 / expected
