r"""Binned Poisson likelihood of a signal and a background in every bin at once: Fisher scoring, then Newton.

With n events in a window the extended likelihood has its maximum at a total yield of n, so what is left to fit is

.. math:: -\ln L = -\sum_i n_i \ln p_i(\theta) + \tfrac12\sum_a\bigl((\theta_a - \bar\theta_a)/\sigma_a\bigr)^2, \qquad
   p_i = (1-b)\,S_i/S + b\,B_i , \qquad \theta = (\ln s, \ln w, b, \tau)

(s scale, w relative width, b background fraction, tau background slope), with weak priors on tau and, if asked, on w.
A step solves :math:`(F + \lambda\,\mathrm{diag}F)\,\delta = -\nabla`, with F the expected information, or near the
minimum the observed Hessian H; parameters that push against a bound are frozen for that step. The covariance is the
inverse of H; for counts whose variance is not their value (weighted simulation, background added without noise) it is
:math:`H^{-1} J H^{-1}` with :math:`J = \sum_i v_i\,\partial\ln p_i\,\partial\ln p_i^T`, v_i the variance of n_i.

A p_i below a floor counts as the floor, which has no derivative: a Gaussian does not see events some seven widths
away; if these are a tenth of all, the fit has not converged.

Not for: shapes (`musclecal.fits.shapes`), the choice of bins (`musclecal.fits.mass_fits`).
"""

import math
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from musclecal.compiled import borrowing, in_order, innermost, kernel, summing
from musclecal.fits.shapes import SignalModel
from musclecal.fits.shapes.cumulative import (
    ShapeAxis,
    background_cdf,
    background_curvature,
    signal_cdf,
    signal_curvature,
)
from musclecal.records import BinFits, Floats, Ints
from musclecal.vector_math import log

__all__ = ["BACKGROUNDS", "PARAMETER_NAMES", "FitStatus", "expected_counts", "expected_shares", "fit_bins"]

PARAMETER_NAMES = ("scale", "width", "background_fraction", "background_slope")
BACKGROUNDS = {"none": 0, "exponential": 1, "linear": 2}

_BLOCK = 64
_MAX_ITERATIONS = 1000
_EDM_GOAL = 1e-7
_MOST_FLOORED = 0.1
"""Of the events: with more in bins where the model has none, what was found is no fit of them."""
_WIDEST = (0.1, 1.0)
"""Errors of ln s and ln w: where they are larger, there is no peak that the events fix."""
_NEAR = 0.5
"""Estimated distance to the minimum below which steps are taken with the observed Hessian."""


# The values of `FitStatus`, for kernels.
_GOOD, _NO_EVENTS, _NOT_CONVERGED, _HESSIAN_NOT_POSITIVE, _AT_LIMIT = 0, 1, 2, 3, 4


class FitStatus(IntEnum):
    """How the fit of one bin ended."""

    GOOD = _GOOD
    NO_EVENTS = _NO_EVENTS
    NOT_CONVERGED = _NOT_CONVERGED
    HESSIAN_NOT_POSITIVE = _HESSIAN_NOT_POSITIVE
    AT_LIMIT = _AT_LIMIT
    """Scale or width ran to the end of what is sensible, or the events do not fix them."""


class _Likelihood(NamedTuple):
    """What all bins of a fit have in common.

    Attributes
    ----------
    background : a value of `BACKGROUNDS`.
    weight : (4,) inverse variances of the Gaussian priors. bounds : (4, 2).
    goal : the estimated distance to the minimum at which a fit ends. floor : of probabilities.
    """

    axis: ShapeAxis
    background: int
    weight: Floats
    bounds: Floats
    max_iterations: int = _MAX_ITERATIONS
    goal: float = _EDM_GOAL
    floor: float = 1e-12


class _Room(NamedTuple):
    """Arrays of n_mass bins that the fits of one block are made in.

    Attributes
    ----------
    p, dp : (n,) and (4, n) probabilities and their derivatives by theta.
    signal, background : (3, n + 1) of `signal_cdf`; of `background_cdf` and `background_curvature`.
    curvature : (3, n + 1) of `signal_curvature`.
    work : (7, size of the axis).
    lower : (4, 4).
    """

    p: Floats
    dp: Floats
    signal: Floats
    background: Floats
    curvature: Floats
    work: Floats
    lower: Floats


def _room(axis: ShapeAxis) -> _Room:
    n_edge = axis.u.size
    return _Room(
        np.empty(n_edge - 1), np.empty((4, n_edge - 1)), np.empty((3, n_edge)), np.zeros((3, n_edge)),
        np.empty((3, n_edge)), np.empty((7, axis.ratio.size)), np.empty((4, 4)),
    )  # fmt: skip


@borrowing
def _probabilities(like: _Likelihood, table: Floats, theta: Floats, room: _Room) -> None:
    """p_i and dp_i/dtheta of one bin into ``room``."""
    p, dp, signal, other = room.p, room.dp, room.signal, room.background
    signal_cdf(like.axis, math.exp(theta[0]), math.exp(theta[1]), table, signal, room.work)
    n = p.size
    inverse = 1.0 / (signal[0, n] - signal[0, 0])
    d_scale = (signal[1, n] - signal[1, 0]) * inverse
    d_width = (signal[2, n] - signal[2, 0]) * inverse
    b = 0.0
    if like.background > 0:
        b = theta[2]
        background_cdf(like.background, like.axis.u, theta[3], other)
    for i in range(n):
        s = (signal[0, i + 1] - signal[0, i]) * inverse
        q = other[0, i + 1] - other[0, i]
        p[i] = (1.0 - b) * s + b * q
        dp[0, i] = (1.0 - b) * ((signal[1, i + 1] - signal[1, i]) * inverse - s * d_scale)
        dp[1, i] = (1.0 - b) * ((signal[2, i + 1] - signal[2, i]) * inverse - s * d_width)
        dp[2, i] = q - s
        dp[3, i] = b * (other[1, i + 1] - other[1, i])


@summing
def _cost(like: _Likelihood, counts: Floats, p: Floats, theta: Floats, centre: Floats) -> float:
    cost = 0.0
    for i in range(counts.size):
        cost -= counts[i] * log(like.floor if p[i] < like.floor else p[i])  # nan stays nan
    for a in range(4):
        cost += 0.5 * like.weight[a] * (theta[a] - centre[a]) ** 2
    return cost


@summing
def _products(weight: Floats, dp: Floats, out: Floats) -> None:
    """out[a, b] = sum_i weight_i dp_a dp_b, (4, 4); dp (4, n), ``weight`` as long or longer."""
    s00, s10, s11, s20, s21, s22, s30, s31, s32, s33 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(dp.shape[1]):
        d0, d1, d2, d3 = dp[0, i], dp[1, i], dp[2, i], dp[3, i]
        w0, w1, w2, w3 = weight[i] * d0, weight[i] * d1, weight[i] * d2, weight[i] * d3
        s00 += w0 * d0
        s10 += w1 * d0
        s11 += w1 * d1
        s20 += w2 * d0
        s21 += w2 * d1
        s22 += w2 * d2
        s30 += w3 * d0
        s31 += w3 * d1
        s32 += w3 * d2
        s33 += w3 * d3
    out[0, 0], out[1, 1], out[2, 2], out[3, 3] = s00, s11, s22, s33
    out[0, 1] = out[1, 0] = s10
    out[0, 2] = out[2, 0] = s20
    out[1, 2] = out[2, 1] = s21
    out[0, 3] = out[3, 0] = s30
    out[1, 3] = out[3, 1] = s31
    out[2, 3] = out[3, 2] = s32


@summing
def _score(
    like: _Likelihood, counts: Floats, events: float, theta: Floats, centre: Floats, room: _Room, gradient: Floats,
    information: Floats,
) -> None:  # fmt: skip
    """Gradient (4,) of the cost and its expected Hessian (4, 4)."""
    p, dp, work = room.p, room.dp, room.work[0]
    g0, g1, g2, g3 = 0.0, 0.0, 0.0, 0.0
    for i in range(counts.size):
        inverse = 1.0 / p[i] if p[i] > like.floor else 0.0
        ratio = counts[i] * inverse
        work[i] = events * inverse
        g0 -= ratio * dp[0, i]
        g1 -= ratio * dp[1, i]
        g2 -= ratio * dp[2, i]
        g3 -= ratio * dp[3, i]
    gradient[0], gradient[1], gradient[2], gradient[3] = g0, g1, g2, g3
    _products(work, dp, information)
    for a in range(4):
        gradient[a] += like.weight[a] * (theta[a] - centre[a])
        information[a, a] += like.weight[a]


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


@kernel
def _sandwich(like: _Likelihood, variances: Floats, room: _Room, covariance: Floats) -> None:
    """Replace the inverse Hessian H^-1 in ``covariance`` by H^-1 J H^-1."""
    spread, p, work = np.empty((4, 4)), room.p, room.work[0]
    for i in range(p.size):
        work[i] = variances[i] / (p[i] * p[i]) if p[i] > like.floor else 0.0
    _products(work, room.dp, spread)
    inverse = covariance.copy()
    for a in range(4):
        for b in range(4):
            total = 0.0
            for c in range(4):
                for d in range(4):
                    total += inverse[a, c] * spread[c, d] * inverse[d, b]
            covariance[a, b] = total


@summing
def _second_derivatives(
    like: _Likelihood, counts: Floats, theta: Floats, room: _Room, hessian: Floats
) -> None:
    """Observed Hessian (4, 4) of the cost at theta, where ``room`` is: sum_i n_i (dp_a dp_b/p^2 - d2p_ab/p).

    S = F/T with T = F(last edge) - F(first): S_ab = F_ab/T - (S_a T_b + S_b T_a + S T_ab)/T.
    """
    p, signal, other, curvature = room.p, room.signal, room.background, room.curvature
    n, work, floor = p.size, room.work[0], like.floor
    b = theta[2] if like.background > 0 else 0.0
    for i in range(n):
        work[i] = counts[i] / (p[i] * p[i]) if p[i] > floor else 0.0
    _products(work, room.dp, hessian)
    inverse = 1.0 / (signal[0, n] - signal[0, 0])
    t0, t1 = (signal[1, n] - signal[1, 0]) * inverse, (signal[2, n] - signal[2, 0]) * inverse
    t00 = (curvature[0, n] - curvature[0, 0]) * inverse
    t01 = (curvature[1, n] - curvature[1, 0]) * inverse
    t11 = (curvature[2, n] - curvature[2, 0]) * inverse
    h00, h01, h11, h02, h12, h23, h33 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        ratio = counts[i] / p[i] if p[i] > floor else 0.0
        s = (signal[0, i + 1] - signal[0, i]) * inverse
        s0 = (signal[1, i + 1] - signal[1, i]) * inverse - s * t0
        s1 = (signal[2, i + 1] - signal[2, i]) * inverse - s * t1
        h00 += ratio * ((curvature[0, i + 1] - curvature[0, i]) * inverse - 2.0 * s0 * t0 - s * t00)
        h01 += ratio * ((curvature[1, i + 1] - curvature[1, i]) * inverse - s0 * t1 - s1 * t0 - s * t01)
        h11 += ratio * ((curvature[2, i + 1] - curvature[2, i]) * inverse - 2.0 * s1 * t1 - s * t11)
        h02 -= ratio * s0
        h12 -= ratio * s1
        h23 += ratio * (other[1, i + 1] - other[1, i])
        h33 += ratio * (other[2, i + 1] - other[2, i])
    hessian[0, 0] -= (1.0 - b) * h00
    hessian[0, 1] -= (1.0 - b) * h01
    hessian[1, 1] -= (1.0 - b) * h11
    hessian[0, 2] -= h02
    hessian[1, 2] -= h12
    hessian[2, 3] -= h23
    hessian[3, 3] -= b * h33
    for a in range(4):
        hessian[a, a] += like.weight[a]
        for c in range(a):
            hessian[a, c] = hessian[c, a]


@innermost
def _copy(one: Floats, to: Floats) -> None:
    """(4, 4). An assignment of arrays would compile its error messages as well."""
    for a in range(4):
        for b in range(4):
            to[a, b] = one[a, b]


@borrowing
def _observe(
    like: _Likelihood, counts: Floats, table: Floats, theta: Floats, room: _Room, hessian: Floats
) -> None:  # fmt: skip
    """`_second_derivatives` at theta, where p and dp of ``room`` are."""
    signal_curvature(like.axis, math.exp(theta[0]), math.exp(theta[1]), table, room.curvature, room.work)
    if like.background > 0:
        background_curvature(like.background, like.axis.u, theta[3], room.background)
    _second_derivatives(like, counts, theta, room, hessian)


@borrowing
def _invert(hessian: Floats, free: Ints, room: _Room, unit: Floats, covariance: Floats) -> bool:
    """Inverse over the free parameters, 0 elsewhere; False where it is not positive."""
    for a in range(4):
        for b in range(4):
            unit[b] = 1.0 if a == b else 0.0
        if free[a] and not _solve(hessian, unit, free, 0.0, room.lower, covariance[a]):
            return False
    return True


@summing
def _n_floored(like: _Likelihood, counts: Floats, p: Floats) -> float:
    """Events where the model has none."""
    total = 0.0
    for i in range(p.size):
        total += counts[i] if p[i] <= like.floor else 0.0
    return total


@borrowing
def _choose_free(like: _Likelihood, theta: Floats, gradient: Floats, free: Ints) -> None:
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


@kernel
def _fit_one(
    like: _Likelihood, counts: Floats, table: Floats, centre: Floats, theta: Floats, covariance: Floats, room: _Room
) -> tuple[int, float, int]:  # fmt: skip
    """Fit one bin from ``theta``, which becomes the result. Gives status, edm, iterations."""
    events = counts.sum()
    gradient, delta, trial = np.empty(4), np.empty(4), np.empty(4)
    matrix, hessian = np.empty((4, 4)), np.empty((4, 4))
    free = np.ones(4, dtype=np.int64)
    damping = 1e-3
    edm = math.inf
    observed = False
    _probabilities(like, table, theta, room)
    cost = _cost(like, counts, room.p, theta, centre)
    iteration = 0
    while iteration < like.max_iterations:
        iteration += 1
        _score(like, counts, events, theta, centre, room, gradient, matrix)
        _choose_free(like, theta, gradient, free)
        observed, solved = False, False
        if edm < _NEAR:
            _observe(like, counts, table, theta, room, hessian)
            observed = solved = _solve(hessian, gradient, free, 0.0, room.lower, delta)
            if observed:
                _copy(hessian, matrix)
        if not solved:
            solved = _solve(matrix, gradient, free, 0.0, room.lower, delta) or _solve(
                matrix, gradient, free, 1e-2, room.lower, delta
            )
        if not solved:
            return _NOT_CONVERGED, edm, iteration
        edm = 0.5 * (gradient * delta).sum()
        if edm < like.goal:
            # A fraction whose next step would leave the allowed range belongs on the bound.
            if not (free[2] and theta[2] <= 2.0 * delta[2]):
                break
            theta[2] = 0.0
            _probabilities(like, table, theta, room)
            cost = _cost(like, counts, room.p, theta, centre)
            continue
        accepted = False
        for attempt in range(30):
            if attempt > 0 or not observed:
                _solve(matrix, gradient, free, damping, room.lower, delta)
            _bounded_step(theta, delta, like.bounds, trial)
            _probabilities(like, table, trial, room)
            trial_cost = _cost(like, counts, room.p, trial, centre)
            if trial_cost <= cost + 1e-9:
                accepted = True
                damping = max(0.1 * damping, 1e-9)
                break
            damping = max(10.0 * damping, 1e-6)
        if not accepted:
            observed = False
            _probabilities(like, table, theta, room)
            if edm < 1e3 * like.goal:
                break
            return _NOT_CONVERGED, edm, iteration
        cost, observed = trial_cost, False
        for a in range(4):
            theta[a] = trial[a]
    if edm >= 1e3 * like.goal:
        return _NOT_CONVERGED, edm, iteration
    if _n_floored(like, counts, room.p) > _MOST_FLOORED * events:
        return _NOT_CONVERGED, edm, iteration
    for a in range(2):
        if not like.bounds[a, 0] < theta[a] < like.bounds[a, 1]:
            return _AT_LIMIT, edm, iteration
    if theta[2] <= 0.0:
        free[3] = 0  # the slope of no background is not measured
    if not observed:
        _observe(like, counts, table, theta, room, hessian)
    if not _invert(hessian, free, room, delta, covariance):
        return _HESSIAN_NOT_POSITIVE, edm, iteration
    for a in range(2):
        if covariance[a, a] > _WIDEST[a] ** 2:
            return _AT_LIMIT, edm, iteration
    return _GOOD, edm, iteration


@kernel
def _fit_block(
    like: _Likelihood, counts: Floats, variances: Floats, tables: Floats, table_of: Ints, centres: Floats,
    starts: Floats, theta: Floats, covariance: Floats, status: Ints, edm: Floats, chi2: Floats, iterations: Ints,
    room: _Room,
) -> None:  # fmt: skip
    for n in range(counts.shape[0]):
        events = counts[n].sum()
        status[n] = _NO_EVENTS
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
            if status[n] == _GOOD:
                break
        # Near a fraction of zero only its prior holds the slope: there can be a minimum for either sign of it.
        if like.background > 0 and (
            status[n] == _HESSIAN_NOT_POSITIVE or (status[n] == _GOOD and theta[n, 2] < 0.02)
        ):
            best = _cost(like, counts[n], room.p, theta[n], centres[n]) if status[n] == _GOOD else math.inf
            for sign in (-1.0, 1.0):
                other, other_covariance = theta[n].copy(), np.zeros((4, 4))
                other[2], other[3] = 0.02, 0.5 * sign * min(like.bounds[3, 1], 4.0)
                end, other_edm, more = _fit_one(
                    like, counts[n], table, centres[n], other, other_covariance, room
                )
                iterations[n] += more
                cost = _cost(like, counts[n], room.p, other, centres[n])
                if end == _GOOD and cost < best - 1e-6:
                    best, status[n], edm[n] = cost, end, other_edm
                    _copy(other_covariance, covariance[n])
                    for a in range(4):
                        theta[n, a] = other[a]
            _probabilities(like, table, theta[n], room)
        if status[n] == _GOOD and variances.shape[0] > 0:
            _sandwich(like, variances[n], room, covariance[n])
        chi2[n] = 0.0
        for i in range(counts.shape[1]):
            expected = events * max(room.p[i], like.floor)
            chi2[n] += (counts[n, i] - expected) ** 2 / expected


def _starts(start: Floats, background: int) -> Floats:
    """(n_bin, n_attempt, 4) starting points: the given one, then narrower, wider, and other background fractions."""
    fractions = (None, 0.02, 0.4, 0.1) if background else (None, None, None, None)
    attempts = []
    for log_width, fraction in zip((0.0, -0.4, 0.4, 0.0), fractions, strict=True):
        attempt = start.copy()
        attempt[:, 1] += log_width
        if fraction is not None:
            attempt[:, 2] = fraction
        attempts.append(attempt)
    return np.stack(attempts, axis=1)


def fit_bins(
    counts: Floats,
    model: SignalModel,
    background: str,
    *,
    variances: Floats | None = None,
    start: Floats | None = None,
    slope_prior: float = 2.0,
    width_prior: tuple[Floats, float] | None = None,
    threads: int | None = None,
) -> BinFits:
    """Fit every row of ``counts``.

    Parameters
    ----------
    counts : (n_bin, n_mass) events per mass bin.
    model : the signal and the mass axis; its table of each row.
    background : a key of `BACKGROUNDS`.
    variances : (n_bin, n_mass) variance of ``counts`` where it is not the Poisson one.
    start : (n_bin, 4) scale, width, background fraction, slope; by default 1, the model's start width, 0.1, 0.
    slope_prior : standard deviation of the Gaussian prior on the slope across the window.
    width_prior : (n_bin,) centre and relative standard deviation of a Gaussian prior on ln w, or None.

    Returns
    -------
    BinFits : parameters as in `PARAMETER_NAMES`; the slope is per window width.
    """
    counts = np.ascontiguousarray(counts, dtype=np.float64)
    n_bin, n_mass = counts.shape
    spread = np.empty((0, n_mass)) if variances is None else np.ascontiguousarray(variances, dtype=np.float64)
    kind = BACKGROUNDS[background]
    if start is None:
        start = np.tile([1.0, model.start_width, 0.1, 0.0], (n_bin, 1))
    start = np.array(start, dtype=np.float64)
    start[:, 0:2] = np.log(start[:, 0:2])
    start[:, 2] = np.clip(start[:, 2], 1e-4, 0.9) if kind else 0.0
    if not kind:
        start[:, 3] = 0.0
    starts = _starts(start, kind)
    centres = np.zeros((n_bin, 4))
    weight = np.array([0.0, 0.0, 0.0, slope_prior**-2])
    if width_prior is not None:
        centres[:, 1] = np.log(width_prior[0])
        weight[1] = width_prior[1] ** -2
    slope_bound = 1.0 if kind == BACKGROUNDS["linear"] else 30.0
    bounds = np.array(
        [[-0.1, 0.1], [math.log(1e-4), math.log(0.3)], [0.0, 0.995], [-slope_bound, slope_bound]]
    )
    theta, covariance = np.full((n_bin, 4), np.nan), np.zeros((n_bin, 4, 4))
    status, iterations = np.ones(n_bin, dtype=np.int64), np.zeros(n_bin, dtype=np.int64)
    edm, chi2 = np.full(n_bin, np.nan), np.full(n_bin, np.nan)
    like, tables = _Likelihood(model.axis, kind, weight, bounds), model.kernel_tables

    def work(rows: slice) -> None:
        _fit_block(
            like, counts[rows], spread[rows], tables, model.table_of[rows], centres[rows], starts[rows], theta[rows],
            covariance[rows], status[rows], edm[rows], chi2[rows], iterations[rows], _room(like.axis),
        )  # fmt: skip

    for _ in in_order(work, [slice(n, n + _BLOCK) for n in range(0, n_bin, _BLOCK)], threads):
        pass
    return _as_record(counts, theta, covariance, status, edm, chi2, iterations, kind)


def _as_record(
    counts: Floats, theta: Floats, covariance: Floats, status: Ints, edm: Floats, chi2: Floats, iterations: Ints,
    kind: int,
) -> BinFits:  # fmt: skip
    parameters = theta.copy()
    parameters[:, 0:2] = np.exp(theta[:, 0:2])
    jacobian = np.ones_like(theta)
    jacobian[:, 0:2] = parameters[:, 0:2]
    n_free = np.count_nonzero(np.diagonal(covariance, axis1=1, axis2=2) > 0.0, axis=1)
    events = counts.sum(axis=1)
    return BinFits(
        parameter_names=PARAMETER_NAMES,
        parameters=parameters,
        covariance=covariance * jacobian[:, :, None] * jacobian[:, None, :],
        status=status,
        edm=edm,
        chi2=chi2,
        ndf=counts.shape[1] - 1 - n_free,
        n_events=events,
        n_signal=events * (1.0 - (parameters[:, 2] if kind else 0.0)),
        iterations=iterations,
    )


@kernel
def _shares(
    like: _Likelihood, tables: Floats, table_of: Ints, theta: Floats, p: Floats, dp: Floats, room: _Room
) -> None:
    for n in range(theta.shape[0]):
        _probabilities(like, tables[table_of[n]], theta[n], room)
        p[n] = room.p
        dp[n] = room.dp


def expected_shares(model: SignalModel, background: int, theta: Floats) -> tuple[Floats, Floats]:
    """p (n_bin, n_mass) and its derivatives (n_bin, 4, n_mass) at theta (n_bin, 4).

    theta is ln scale, ln width, fraction, slope; ``background`` is a value of `BACKGROUNDS`.
    """
    like = _without_priors(model, background)
    p, dp = np.empty((len(theta), model.n_mass)), np.empty((len(theta), 4, model.n_mass))
    theta = np.ascontiguousarray(theta)
    _shares(like, model.kernel_tables, model.table_of, theta, p, dp, _room(like.axis))
    return p, dp


def _without_priors(model: SignalModel, background: int) -> _Likelihood:
    return _Likelihood(model.axis, background, np.zeros(4), np.zeros((4, 2)))


def expected_counts(fits: BinFits, model: SignalModel, background: str, row: int) -> tuple[Floats, Floats]:
    """(total, background) expected counts (n_mass,) of one fitted row, for plots and toys."""
    kind = BACKGROUNDS[background]
    theta = fits.parameters[row].copy()
    theta[0:2] = np.log(theta[0:2])
    like = _without_priors(model, kind)
    room = _room(like.axis)
    _probabilities(like, model.kernel_tables[model.table_of[row]], theta, room)
    events = fits.n_events[row]
    background_counts = events * theta[2] * np.diff(room.background[0]) if kind else np.zeros(model.n_mass)
    return events * room.p, background_counts
