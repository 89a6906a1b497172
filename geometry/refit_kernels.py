r"""Compiled least-squares fits of one track.

With V = V_hit + sum_j K_j Q_j K_j^T the covariance of the hits with scattering marginalised, and L its Cholesky factor,
all is whitened by L^-1: residuals r = measured - predicted, A = d(predicted)/d(local), G = d(predicted)/d(module
parameters). A Gauss-Newton step of the local parameters is (A^T A)^-1 A^T r (physics.md section 5).

Not for: two tracks with a common vertex (`musclecal.geometry.pair_kernels`), or arrays of tracks, threads, cuts
(`musclecal.geometry.refit`).
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from musclecal.compiled import innermost, kernel
from musclecal.geometry.small_matrices import (
    back_substitute,
    cholesky,
    forward_substitute,
    inverse_of,
)
from musclecal.geometry.trace import GAMMA, TRACED, B, M, Planes, Trace, W, new_trace, trace
from musclecal.records import Floats

__all__ = [
    "CONVERGED",
    "DID_NOT_CONVERGE",
    "LOST_TRACK",
    "NOT_POSITIVE",
    "TOO_FEW_HITS",
    "Fit",
    "Hits",
    "fit_track",
    "measured_rows",
    "new_fit",
    "outlier_chi2",
    "parameter_rows",
    "perigee_state",
    "seed",
    "whiten",
]  # fmt: skip

CONVERGED, LOST_TRACK, NOT_POSITIVE, DID_NOT_CONVERGE, TOO_FEW_HITS = 0, 1, 2, 3, 4
"""Status of a fit."""


class Hits(NamedTuple):
    """One track: ``module`` (n,) sensors in the order of the track, and its hits (n,) in cm; u and v are nan where
    nothing was measured, which keeps the matter of the plane.
    """

    module: NDArray[np.int32]
    u: Floats
    v: Floats
    sigma_u: Floats
    sigma_v: Floats


class Fit(NamedTuple):
    """Room for the fit of one track of up to n planes, and what is known after it.

    Attributes
    ----------
    rows : (2 n, n_start + 1 + n_column) whitened A, then r, then G.
    lower : (2 n, 2 n) L. kicks : (2 n, 2 n) transposed d predicted/d kick in standard deviations.
    which : (2 n,) rows of the trace that were measured. n : (1,) how many.
    """

    trace: Trace
    rows: Floats
    lower: Floats
    kicks: Floats
    which: NDArray[np.int64]
    n: NDArray[np.int64]


@kernel
def new_fit(n: int, n_start: int, n_column: int) -> Fit:
    """Room for ``n`` planes and ``n_column`` columns of module parameters."""
    return Fit(
        new_trace(n, n_start, n_column > 0), np.zeros((2 * n, n_start + 1 + n_column)), np.zeros((2 * n, 2 * n)),
        np.zeros((2 * n, 2 * n)), np.zeros(2 * n, np.int64), np.zeros(1, np.int64),
    )  # fmt: skip


@innermost
def perigee_state(local: Floats, state: Floats, derivative: Floats) -> None:
    """State (6,) and derivative (6, 5) of (q/p, lambda, phi, d, z): (x, y) = d (-sin phi, cos phi)."""
    sin_phi, cos_phi, d = math.sin(local[2]), math.cos(local[2]), local[3]
    state[0], state[1], state[2] = local[0], local[1], local[2]
    state[3], state[4], state[5] = -d * sin_phi, d * cos_phi, local[4]
    derivative[:, :] = 0.0
    derivative[0, 0] = derivative[1, 1] = derivative[2, 2] = 1.0
    derivative[3, 2], derivative[4, 2] = -d * cos_phi, -d * sin_phi
    derivative[3, 3], derivative[4, 3] = -sin_phi, cos_phi
    derivative[5, 4] = 1.0


@innermost
def wrapped(phi: float) -> float:
    """The same angle from -pi to pi."""
    return phi - 2.0 * math.pi * math.floor((phi + math.pi) / (2.0 * math.pi))


@innermost
def measured_rows(hits: Hits, n: int, n_start: int, fit: Fit) -> int:
    """Fill A, r and the lower triangle of V of ``fit`` from its trace; the number of measured rows."""
    out, rows, lower, kicks, which = fit.trace, fit.rows, fit.lower, fit.kicks, fit.which
    n_row = 0
    for i in range(n):
        for k in range(2):
            value, sigma = (hits.u[i], hits.sigma_u[i]) if k == 0 else (hits.v[i], hits.sigma_v[i])
            if np.isnan(value):
                continue
            row = 2 * i + k
            which[n_row] = row
            for c in range(n_start):
                rows[n_row, c] = out.derivative[row, c]
            rows[n_row, n_start] = value - out.predicted[row]
            lower[n_row, :n_row] = 0.0
            lower[n_row, n_row] = sigma * sigma
            for j in range(2 * i):
                kick = math.sqrt(out.variance[j // 2, j % 2]) * out.derivative[row, n_start + j]
                kicks[j, n_row] = kick
                # Along the second index: earlier rows have no kick from planes behind them
                for b in range(n_row + 1):
                    lower[n_row, b] += kick * kicks[j, b]
            kicks[2 * i : 2 * n, n_row] = 0.0
            n_row += 1
    fit.n[0] = n_row
    return n_row


@innermost
def parameter_rows(
    hits: Hits, n: int, n_start: int, planes: Planes, parameters: Floats, fit: Fit, units: NDArray[np.int32]
) -> int:
    """Fill G of ``fit`` from its trace: columns in the order of ``units``, which is written; the number of units."""
    out, n_row, n_slot = fit.trace, fit.n[0], parameters.shape[1]
    g = fit.rows[:, n_start + 1 :]
    extra = n_start + 2 * n
    n_unit = 0
    for i in range(n):
        module = hits.module[i]
        unit = planes.unit[module]
        if n_unit == 0 or units[n_unit - 1] != unit:
            units[n_unit] = unit
            n_unit += 1
            g[:n_row, (n_unit - 1) * n_slot : n_unit * n_slot] = 0.0
        first = (n_unit - 1) * n_slot
        for a in range(n_row):
            row = fit.which[a]
            g[a, first + M] += out.derivative[row, extra + 2 * i] * out.loss[i]
            g[a, first + B] += out.derivative[row, extra + 2 * i + 1]
            if row == 2 * i:
                g[a, first + planes.slot[module]] -= 1.0
            elif row == 2 * i + 1:
                g[a, first + 1] -= 1.0
            if n_slot > W and row // 2 == i:
                sign = 1.0 if row == 2 * i else -1.0
                other = 2 * i + 1 if row == 2 * i else 2 * i
                turned = sign * parameters[unit, GAMMA]
                g[a, first + W] += out.slope[row] + turned * out.slope[other]
                g[a, first + GAMMA] += sign * out.local[i, other - 2 * i]
    return n_unit


@innermost
def whiten(fit: Fit, n_column: int) -> bool:
    """L and the first ``n_column`` columns of the rows times L^-1; False where V is not positive."""
    if not cholesky(fit.lower, fit.n[0]):
        return False
    forward_substitute(fit.lower, fit.n[0], fit.rows, n_column)
    return True


@innermost
def normal_equations(rows: Floats, n_row: int, n_local: int, matrix: Floats, vector: Floats) -> float:
    """A^T A and A^T r of whitened rows into ``matrix`` and ``vector``; r^T r."""
    chi2 = 0.0
    matrix[:n_local, :n_local] = 0.0
    vector[:n_local] = 0.0
    for row in range(n_row):
        r = rows[row, n_local]
        chi2 += r * r
        for a in range(n_local):
            factor = rows[row, a]
            vector[a] += factor * r
            for b in range(a + 1):
                matrix[a, b] += factor * rows[row, b]
    return chi2


@innermost
def fit_track(
    hits: Hits, n: int, planes: Planes, parameters: Floats, local: Floats, covariance: Floats, fit: Fit,
    most_steps: int, tolerance: float, work: Floats,
) -> tuple[int, float]:  # fmt: skip
    """Improve ``local`` (5,) from its start value; status and chi2.

    The end is where the next step would lower chi2 by less than ``tolerance``; that step is still made.
    """
    state, derivative, matrix, step = work[0], work[1:7, :5], work[7:12, :5], work[12]
    chi2 = math.nan
    for _ in range(most_steps):
        perigee_state(local, state, derivative)
        if trace(state, derivative, hits.module, n, planes, parameters, False, fit.trace) != TRACED:
            return LOST_TRACK, chi2
        if measured_rows(hits, n, 5, fit) < 5:
            return TOO_FEW_HITS, chi2
        if not whiten(fit, 6):
            return NOT_POSITIVE, chi2
        chi2 = normal_equations(fit.rows, fit.n[0], 5, matrix, step)
        if not cholesky(matrix, 5):
            return NOT_POSITIVE, chi2
        column = step[:5].reshape(5, 1)
        forward_substitute(matrix, 5, column, 1)
        gain = 0.0
        for k in range(5):
            gain += step[k] * step[k]
        back_substitute(matrix, 5, column, 1)
        for k in range(5):
            local[k] += step[k]
        if gain < tolerance:
            inverse_of(matrix, 5, covariance)
            return CONVERGED, chi2 - gain
    return DID_NOT_CONVERGE, chi2


@innermost
def track_jacobian(
    hits: Hits, n: int, planes: Planes, parameters: Floats, local: Floats, fit: Fit, work: Floats,
    units: NDArray[np.int32], jacobian: Floats,
) -> int:  # fmt: skip
    """d local/d module parameters of a fitted track, H^-1 A^T G, into ``jacobian`` (5, n P); how many units, or -1.

    How much the fit changes if reality moves: what is fitted at p0 while the detector is at p is off by J (p - p0).
    """
    state, derivative, matrix, step = work[0], work[1:7, :5], work[7:12, :5], work[12]
    n_slot = parameters.shape[1]
    perigee_state(local, state, derivative)
    if trace(state, derivative, hits.module, n, planes, parameters, True, fit.trace) != TRACED:
        return -1
    if measured_rows(hits, n, 5, fit) < 5:
        return -1
    n_unit = parameter_rows(hits, n, 5, planes, parameters, fit, units)
    n_column = n_unit * n_slot
    if not whiten(fit, 6 + n_column):
        return -1
    normal_equations(fit.rows, fit.n[0], 5, matrix, step)
    if not cholesky(matrix, 5):
        return -1
    jacobian[:, :n_column] = 0.0
    for row in range(fit.n[0]):
        for k in range(5):
            factor = fit.rows[row, k]
            for c in range(n_column):
                jacobian[k, c] += factor * fit.rows[row, 6 + c]
    forward_substitute(matrix, 5, jacobian, n_column)
    back_substitute(matrix, 5, jacobian, n_column)
    return n_unit


@innermost
def seed(hits: Hits, n: int, planes: Planes, local: Floats) -> bool:
    """Start value of a fit from hits alone; False where there are fewer than three or they say nothing.

    Straight lines: z against r of the hits that measure v (of all, where these are fewer than two), and the
    azimuth against r, phi(r) = phi_0 + rho r/2, of a track from the beam line. Strips of an end-cap stand at the radius
    at which the first line meets their plane. The second sides of stereo modules are left out.
    """
    for pixels in (True, False):
        z0, tan_lam, used = _line(hits, n, planes, pixels)
        if used >= 2:
            break
    if used < 2:
        return False
    s0, s1, s2, t0, t1, first, bend, n_used = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0
    for i in range(n):
        k = hits.module[i]
        if np.isnan(hits.u[i]) or planes.slot[k] != 0:
            continue
        centre, u, v = planes.centre[k], planes.axes[k, 0], planes.axes[k, 1]
        along = 0.0 if np.isnan(hits.v[i]) else hits.v[i]
        radial = (v[0] * centre[0] + v[1] * centre[1]) / math.hypot(centre[0], centre[1])
        if np.isnan(hits.v[i]) and abs(radial) > 0.5 and tan_lam != 0.0:
            along = ((centre[2] - z0) / tan_lam - math.hypot(centre[0], centre[1])) / radial
        x = centre[0] + hits.u[i] * u[0] + along * v[0]
        y = centre[1] + hits.u[i] * u[1] + along * v[1]
        r, azimuth = math.hypot(x, y), math.atan2(y, x)
        if n_used == 0:
            first = azimuth
            bend = planes.bending[0, planes.z.size // 2]
        turned = (azimuth - first + math.pi) % (2.0 * math.pi) - math.pi
        s0, s1, s2, t0, t1 = s0 + 1.0, s1 + r, s2 + r * r, t0 + turned, t1 + r * turned
        n_used += 1
    determinant = s0 * s2 - s1 * s1
    if n_used < 3 or not determinant > 0.0:
        return False
    half_turn = (s0 * t1 - s1 * t0) / determinant
    local[1] = math.atan(tan_lam)
    local[2] = first + (t0 - half_turn * s1) / s0
    local[0] = -2.0 * half_turn * math.cos(local[1]) / bend
    local[3] = 0.0
    local[4] = z0
    return True


@innermost
def _line(hits: Hits, n: int, planes: Planes, pixels: bool) -> tuple[float, float, int]:
    """z = z0 + tan(lambda) r through hits: z0, tan(lambda) and the number of hits at different r or z."""
    s0, s1, s2, t0, t1, used = 0.0, 0.0, 0.0, 0.0, 0.0, 0
    for i in range(n):
        k = hits.module[i]
        if np.isnan(hits.u[i]) or (pixels and np.isnan(hits.v[i])):
            continue
        u, v, centre = planes.axes[k, 0], planes.axes[k, 1], planes.centre[k]
        along = 0.0 if np.isnan(hits.v[i]) else hits.v[i]
        x = centre[0] + hits.u[i] * u[0] + along * v[0]
        y = centre[1] + hits.u[i] * u[1] + along * v[1]
        z = centre[2] + hits.u[i] * u[2] + along * v[2]
        r = math.hypot(x, y)
        s0, s1, s2, t0, t1 = s0 + 1.0, s1 + r, s2 + r * r, t0 + z, t1 + r * z
        used += 1
    determinant = s0 * s2 - s1 * s1
    if not determinant > 1e-9:
        return 0.0, 0.0, 0
    slope = (s0 * t1 - s1 * t0) / determinant
    return (t0 - slope * s1) / s0, slope, used


@innermost
def outlier_chi2(fit: Fit, n_local: int, matrix: Floats, work: Floats) -> tuple[int, float]:
    """The measured row that the fit would gain most without, and by how much; ``matrix`` is the factor of A^T A.

    Without row a chi2 falls by (V^-1 e)_a^2/(V^-1 - V^-1 A H^-1 A^T V^-1)_aa, e the residuals of the fit.
    """
    n_row, rows, lower = fit.n[0], fit.rows, fit.lower
    worst, largest = -1, 0.0
    for a in range(n_row):
        column = work[:n_row, :1]
        for b in range(n_row):
            column[b, 0] = 1.0 if a == b else 0.0
        forward_substitute(lower, n_row, column, 1)
        pull, variance = 0.0, 0.0
        for b in range(a, n_row):
            pull += column[b, 0] * rows[b, n_local]
            variance += column[b, 0] * column[b, 0]
        projected = work[n_row : n_row + n_local, :1]
        for k in range(n_local):
            projected[k, 0] = 0.0
            for b in range(a, n_row):
                projected[k, 0] += rows[b, k] * column[b, 0]
        forward_substitute(matrix, n_local, projected, 1)
        for k in range(n_local):
            variance -= projected[k, 0] * projected[k, 0]
        if variance > 1e-9 and pull * pull / variance > largest:
            worst, largest = a, pull * pull / variance
    return worst, largest
