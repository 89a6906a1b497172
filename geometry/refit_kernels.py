r"""Compiled least-squares fits of one track, and of two with a common vertex.

With V = V_hit + sum_j K_j Q_j K_j^T the covariance of the hits with scattering marginalised, and L its Cholesky factor,
all is whitened by L^-1: residuals r = measured - predicted, A = d(predicted)/d(local), G = d(predicted)/d(module
parameters). A Gauss-Newton step of the local parameters is (A^T A)^-1 A^T r (physics.md section 5).

Not for: arrays of tracks, threads, cuts (`musclecal.geometry.refit`).
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from musclecal.compiled import kernel
from musclecal.geometry.small_matrices import (
    back_substitute,
    cholesky,
    forward_substitute,
    inverse_of,
)
from musclecal.geometry.trace import GAMMA, TRACED, B, M, Planes, Trace, W, new_trace, trace
from musclecal.records import Floats

__all__ = [
    "CONVERGED", "DID_NOT_CONVERGE", "NOT_POSITIVE", "LOST_TRACK", "TOO_FEW_HITS",
    "Fit", "Hits", "fit_track", "new_fit", "parameter_rows", "perigee_state", "seed", "whiten", "outlier_chi2",
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


@kernel
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


@kernel
def whiten(hits: Hits, n: int, n_start: int, fit: Fit) -> int:
    """Fill ``fit`` from its trace: measured rows, L, and the whitened A and r; the status."""
    out, rows, lower, kicks, which = fit.trace, fit.rows, fit.lower, fit.kicks, fit.which
    n_row = 0
    for i in range(n):
        for k in range(2):
            value = hits.u[i] if k == 0 else hits.v[i]
            if np.isnan(value):
                continue
            sigma = hits.sigma_u[i] if k == 0 else hits.sigma_v[i]
            row = 2 * i + k
            which[n_row] = row
            rows[n_row, :n_start] = out.derivative[row, :n_start]
            rows[n_row, n_start] = value - out.predicted[row]
            for j in range(n_row + 1):
                lower[n_row, j] = 0.0
            lower[n_row, n_row] = sigma * sigma
            for j in range(i):
                for kick in range(2):
                    kicks[2 * j + kick, n_row] = (
                        math.sqrt(out.variance[j, kick]) * out.derivative[row, n_start + 2 * j + kick]
                    )
            for j in range(2 * i, 2 * n):
                kicks[j, n_row] = 0.0
            n_row += 1
    fit.n[0] = n_row
    if n_row < n_start:
        return TOO_FEW_HITS
    for a in range(n_row):
        for j in range(2 * (which[a] // 2)):
            factor = kicks[j, a]
            for b in range(a + 1):
                lower[a, b] += factor * kicks[j, b]
    if not cholesky(lower, n_row):
        return NOT_POSITIVE
    forward_substitute(lower, n_row, rows, n_start + 1)
    return CONVERGED


@kernel
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


@kernel
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
        status = whiten(hits, n, 5, fit)
        if status != CONVERGED:
            return status, chi2
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


@kernel
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


@kernel
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


@kernel
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
