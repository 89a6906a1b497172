r"""Binned Poisson likelihood of a signal and a background in one bin: cost, score, Hessian, as compiled loops.

With n events in a window the extended likelihood has its maximum at a total yield of n, so what is left to fit is

.. math:: -\ln L = -\sum_i n_i \ln p_i(\theta) + \tfrac12\sum_a\bigl((\theta_a - \bar\theta_a)/\sigma_a\bigr)^2, \qquad
   p_i = (1-b)\,S_i/S + b\,B_i , \qquad \theta = (\ln s, \ln w, b, \tau)

(s scale, w relative width, b background fraction, tau background slope), with weak priors on tau and, if asked, on w.
The covariance is the inverse of the observed Hessian H; for counts whose variance is not their value (weighted
simulation, background added without noise) it is :math:`H^{-1} J H^{-1}` with
:math:`J = \sum_i v_i\,\partial\ln p_i\,\partial\ln p_i^T`, v_i the variance of n_i.

A p_i below a floor counts as the floor, which has no derivative: a Gaussian does not see events some seven widths
away; if these are a tenth of all, the fit has not converged.

Not for: the way to the minimum (`musclecal.fits.likelihood_minimiser`), or shapes (`musclecal.fits.shapes`).
"""

import math
from typing import NamedTuple

import numpy as np

from musclecal.compiled import borrowing, kernel, summing
from musclecal.fits.shapes.cumulative import (
    ShapeAxis,
    background_cdf,
    background_curvature,
    signal_cdf,
    signal_curvature,
)
from musclecal.records import Floats, Ints
from musclecal.vector_math import log

__all__ = [
    "Likelihood", "Room", "cost_of", "n_floored", "new_room", "observed_hessian", "probabilities", "sandwich", "score",
    "shares_of",
]  # fmt: skip

_MAX_ITERATIONS = 1000
_EDM_GOAL = 1e-7


class Likelihood(NamedTuple):
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


class Room(NamedTuple):
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


def new_room(axis: ShapeAxis) -> Room:
    n_edge = axis.u.size
    return Room(
        np.empty(n_edge - 1), np.empty((4, n_edge - 1)), np.empty((3, n_edge)), np.zeros((3, n_edge)),
        np.empty((3, n_edge)), np.empty((7, axis.ratio.size)), np.empty((4, 4)),
    )  # fmt: skip


@borrowing
def probabilities(like: Likelihood, table: Floats, theta: Floats, room: Room) -> None:
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
def cost_of(like: Likelihood, counts: Floats, p: Floats, theta: Floats, centre: Floats) -> float:
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
def score(
    like: Likelihood, counts: Floats, events: float, theta: Floats, centre: Floats, room: Room, gradient: Floats,
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


@kernel
def sandwich(like: Likelihood, variances: Floats, room: Room, covariance: Floats) -> None:
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
def _second_derivatives(like: Likelihood, counts: Floats, theta: Floats, room: Room, hessian: Floats) -> None:
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


@borrowing
def observed_hessian(
    like: Likelihood, counts: Floats, table: Floats, theta: Floats, room: Room, hessian: Floats
) -> None:  # fmt: skip
    """`_second_derivatives` at theta, where p and dp of ``room`` are."""
    signal_curvature(like.axis, math.exp(theta[0]), math.exp(theta[1]), table, room.curvature, room.work)
    if like.background > 0:
        background_curvature(like.background, like.axis.u, theta[3], room.background)
    _second_derivatives(like, counts, theta, room, hessian)


@summing
def n_floored(like: Likelihood, counts: Floats, p: Floats) -> float:
    """Events where the model has none."""
    total = 0.0
    for i in range(p.size):
        total += counts[i] if p[i] <= like.floor else 0.0
    return total


@kernel
def shares_of(
    like: Likelihood, tables: Floats, table_of: Ints, theta: Floats, p: Floats, dp: Floats, room: Room
) -> None:
    for n in range(theta.shape[0]):
        probabilities(like, tables[table_of[n]], theta[n], room)
        p[n] = room.p
        dp[n] = room.dp
