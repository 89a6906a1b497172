r"""Compiled fits of two muons with a common vertex, with or without the mass of their resonance, and what they add to
the global fit of module parameters.

Nine local parameters: (q/p, lambda, phi) of both muons at the vertex, and the vertex (x, y, z). The logarithm of the
mass is one more measurement, with

.. math:: \frac{\partial m}{\partial (q/p)_1} = -\frac{p_1}{(q/p)_1}\,\frac{E_2 p_1/E_1 - p_2\cos\psi}{m}

and the local parameters are eliminated exactly: with H = A^T A and b = A^T r of whitened rows,
C = G^T G - (G^T A) H^{-1} (A^T G), g = G^T r - (G^T A) H^{-1} b (physics.md section 5).

Not for: which pairs are used (`musclecal.geometry.pair_refit`), sums over pairs (`musclecal.geometry.block_sums`).
"""

import math

import numpy as np
from numpy.typing import NDArray

from musclecal.compiled import innermost
from musclecal.geometry.refit_kernels import (
    CONVERGED,
    DID_NOT_CONVERGE,
    LOST_TRACK,
    NOT_POSITIVE,
    TOO_FEW_HITS,
    Fit,
    Hits,
    measured_rows,
    parameter_rows,
    whiten,
)
from musclecal.geometry.small_matrices import (
    back_substitute,
    cholesky,
    forward_substitute,
)
from musclecal.geometry.trace import TRACED, Planes, trace
from musclecal.records import Floats

__all__ = ["N_PAIR", "eliminate", "fit_pair", "pair_mass_and_derivatives"]

N_PAIR = 9
"""Local parameters of a pair."""
_START = 6
_VERTEX = 6


@innermost
def pair_mass_and_derivatives(local: Floats, mu: float, derivative: Floats) -> float:
    """Invariant mass (GeV) of a pair and its derivatives (9,); those in the vertex are zero."""
    q1, lam1, phi1, q2, lam2, phi2 = local[0], local[1], local[2], local[3], local[4], local[5]
    p1, p2 = 1.0 / abs(q1), 1.0 / abs(q2)
    e1, e2 = math.sqrt(p1 * p1 + mu * mu), math.sqrt(p2 * p2 + mu * mu)
    cos1, sin1, cos2, sin2 = math.cos(lam1), math.sin(lam1), math.cos(lam2), math.sin(lam2)
    cos_phi, sin_phi = math.cos(phi1 - phi2), math.sin(phi1 - phi2)
    cos_psi = cos1 * cos2 * cos_phi + sin1 * sin2
    # 1 - cos(psi) without cancellation
    half_phi, half_lam = math.sin(0.5 * (phi1 - phi2)), math.sin(0.5 * (lam1 - lam2))
    opening = 2.0 * (half_lam * half_lam + cos1 * cos2 * half_phi * half_phi)
    energies = (mu * mu * (p1 * p1 + p2 * p2 + mu * mu)) / (e1 * e2 + p1 * p2)
    m = math.sqrt(2.0 * mu * mu + 2.0 * (energies + p1 * p2 * opening))
    derivative[:] = 0.0
    derivative[0] = -p1 / q1 * (e2 * p1 / e1 - p2 * cos_psi) / m
    derivative[3] = -p2 / q2 * (e1 * p2 / e2 - p1 * cos_psi) / m
    turn = -p1 * p2 / m
    derivative[1] = turn * (cos1 * sin2 - sin1 * cos2 * cos_phi)
    derivative[4] = turn * (cos2 * sin1 - sin2 * cos1 * cos_phi)
    derivative[2] = -turn * cos1 * cos2 * sin_phi
    derivative[5] = turn * cos1 * cos2 * sin_phi
    return m


@innermost
def _place(column: int, muon: int) -> int:
    """Where the start parameter ``column`` of a muon is among those of the pair."""
    return 3 * muon + column if column < 3 else _VERTEX + column - 3


@innermost
def _set_unity(matrix: Floats) -> None:
    matrix[:, :] = 0.0
    for k in range(len(matrix)):
        matrix[k, k] = 1.0


@innermost
def _follow(
    hits: Hits, n: int, muon: int, planes: Planes, parameters: Floats, with_parameters: bool, local: Floats, fit: Fit,
    start: Floats, unity: Floats,
) -> int:  # fmt: skip
    """Trace and rows of one muon of the pair, not yet whitened."""
    for k in range(3):
        start[k] = local[3 * muon + k]
        start[3 + k] = local[_VERTEX + k]
    if trace(start, unity, hits.module, n, planes, parameters, with_parameters, fit.trace) != TRACED:
        return LOST_TRACK
    return CONVERGED if measured_rows(hits, n, _START, fit) >= 5 else TOO_FEW_HITS


@innermost
def _add_normal(fit: Fit, muon: int, matrix: Floats, vector: Floats) -> float:
    """Add A^T A and A^T r of one muon; r^T r."""
    chi2 = 0.0
    for row in range(fit.n[0]):
        r = fit.rows[row, _START]
        chi2 += r * r
        for a in range(_START):
            factor, i = fit.rows[row, a], _place(a, muon)
            vector[i] += factor * r
            for b in range(_START):
                matrix[i, _place(b, muon)] += factor * fit.rows[row, b]
    return chi2


@innermost
def _add_mass(
    local: Floats, mu: float, log_target: float, sigma: float, matrix: Floats, vector: Floats, row: Floats
) -> float:
    """Add the measurement of ln m, ``row`` (9,) its whitened derivatives; its chi2. None where sigma is inf.

    In ln m, whose derivative in the field is 1 for every pair: that of m is m, and goes with the residual.
    """
    if not math.isfinite(sigma):
        row[:] = 0.0
        return 0.0
    mass = pair_mass_and_derivatives(local, mu, row)
    r = (log_target - math.log(mass)) / sigma
    for a in range(N_PAIR):
        row[a] /= mass * sigma
    for a in range(N_PAIR):
        vector[a] += row[a] * r
        for b in range(N_PAIR):
            matrix[a, b] += row[a] * row[b]
    return r * r


@innermost
def fit_pair(
    plus: Hits, n_plus: int, minus: Hits, n_minus: int, planes: Planes, parameters: Floats, local: Floats,
    log_target: float, sigma: float, fit: Fit, matrix: Floats, vector: Floats, work: Floats,
    most_steps: int, tolerance: float,
) -> tuple[int, float]:  # fmt: skip
    """Improve ``local`` (9,) from its start value; status and chi2. ``matrix`` (9, 9) is then the factor of H.

    ``sigma``, of ln m, is infinite where the mass is not measured. The end is where the next step would lower chi2 by
    less than ``tolerance``; that step is still made.
    """
    start, unity, mass_row = work[0, :6], work[1:7, :6], work[7, :N_PAIR]
    _set_unity(unity)
    chi2 = math.nan
    for _ in range(most_steps):
        matrix[:, :] = 0.0
        vector[:] = 0.0
        chi2 = 0.0
        for muon in range(2):
            hits, n = (plus, n_plus) if muon == 0 else (minus, n_minus)
            status = _follow(hits, n, muon, planes, parameters, False, local, fit, start, unity)
            if status != CONVERGED:
                return status, chi2
            if not whiten(fit, _START + 1):
                return NOT_POSITIVE, chi2
            chi2 += _add_normal(fit, muon, matrix, vector)
        chi2 += _add_mass(local, planes.muon_mass, log_target, sigma, matrix, vector, mass_row)
        if not cholesky(matrix, N_PAIR):
            return NOT_POSITIVE, chi2
        column = vector.reshape(N_PAIR, 1)
        forward_substitute(matrix, N_PAIR, column, 1)
        gain = 0.0
        for k in range(N_PAIR):
            gain += vector[k] * vector[k]
        back_substitute(matrix, N_PAIR, column, 1)
        for k in range(N_PAIR):
            local[k] += vector[k]
        if local[0] * local[3] >= 0.0:
            return DID_NOT_CONVERGE, chi2
        if gain < tolerance:
            return CONVERGED, chi2 - gain
    return DID_NOT_CONVERGE, chi2


@innermost
def mass_variance(local: Floats, factor: Floats, mu: float, work: Floats) -> tuple[float, float]:
    """Mass and its variance from the factor of H of a fit without mass."""
    row = work[7, :N_PAIR]
    mass = pair_mass_and_derivatives(local, mu, row)
    forward_substitute(factor, N_PAIR, row.reshape(N_PAIR, 1), 1)
    variance = 0.0
    for k in range(N_PAIR):
        variance += row[k] * row[k]
    return mass, variance


@innermost
def eliminate(
    plus: Hits, n_plus: int, minus: Hits, n_minus: int, planes: Planes, parameters: Floats, local: Floats,
    log_target: float, sigma: float, fit: Fit, matrix: Floats, vector: Floats, work: Floats,
    units: NDArray[np.int32], projected: Floats, c: Floats, g: Floats,
) -> int:  # fmt: skip
    """C and g of a pair at its fitted ``local``; the number of units, or -1.

    ``fit`` has room for columns of parameters. ``units`` (n,), ``c`` (n P, n P) with the blocks on and above the
    diagonal, ``g`` (n P,); ``projected`` (9, n P) is room for L_H^-1 A^T G.
    """
    start, unity, mass_row = work[0, :6], work[1:7, :6], work[7, :N_PAIR]
    _set_unity(unity)
    n_slot = parameters.shape[1]
    matrix[:, :] = 0.0
    vector[:] = 0.0
    n_units = 0
    for muon in range(2):
        hits, n = (plus, n_plus) if muon == 0 else (minus, n_minus)
        if _follow(hits, n, muon, planes, parameters, True, local, fit, start, unity) != CONVERGED:
            return -1
        first = n_units * n_slot
        n_units += parameter_rows(hits, n, _START, planes, parameters, fit, units[n_units:])
        last = n_units * n_slot
        if not whiten(fit, _START + 1 + last - first):
            return -1
        _add_normal(fit, muon, matrix, vector)
        projected[:, first:last] = 0.0
        c[:last, first:last] = 0.0
        g[first:last] = 0.0
        _add_parameters(fit, muon, n_slot, projected[:, first:last], c[first:last, first:last], g[first:last])
    _add_mass(local, planes.muon_mass, log_target, sigma, matrix, vector, mass_row)
    if not cholesky(matrix, N_PAIR):
        return -1
    n_column = n_units * n_slot
    forward_substitute(matrix, N_PAIR, projected, n_column)
    forward_substitute(matrix, N_PAIR, vector.reshape(N_PAIR, 1), 1)
    for a in range(n_column):
        first = (a // n_slot) * n_slot
        for k in range(N_PAIR):
            g[a] -= projected[k, a] * vector[k]
        # Row by row: what is changed nine times stays in the first cache
        for k in range(N_PAIR):
            factor = projected[k, a]
            for b in range(max(first, 0), n_column):
                c[a, b] -= factor * projected[k, b]
    return n_units


@innermost
def _add_parameters(fit: Fit, muon: int, n_slot: int, projected: Floats, c: Floats, g: Floats) -> None:
    """Add G^T G, G^T r and A^T G of one muon. What is behind a hit does not move it: the rest of its row of G is 0."""
    for row in range(fit.n[0]):
        a_row, r = fit.rows[row], fit.rows[row, _START]
        g_row = a_row[_START + 1 : _START + 1 + g.size]
        n_column = g.size
        while n_column > 0 and g_row[n_column - 1] == 0.0:
            n_column -= 1
        for k in range(_START):
            factor, place = a_row[k], _place(k, muon)
            for b in range(n_column):
                projected[place, b] += factor * g_row[b]
        for a in range(n_column):
            factor = g_row[a]
            if factor == 0.0:
                continue
            g[a] += factor * r
            for b in range(max((a // n_slot) * n_slot, 0), n_column):
                c[a, b] += factor * g_row[b]
