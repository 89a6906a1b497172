r"""A muon through the planes of a detector: predicted hits, and their derivatives in everything that can be fitted.

At each plane, in the order of the track (physics.md section 5):

1. a helix step to the plane in the field B (1 + b), B the map half-way between where the track is and the centre of the
   module;
2. the local coordinates of the crossing, less the shifts of the module, are what a hit should be;
3. the mean energy loss E' = E - eps(p) x (1 + m)/|c|, with eps (GeV cm2/g), the thickness x (g/cm2) and the cosine c of
   the angle to the normal; scattering with the variance of Highland in lambda, and that over cos^2(lambda) in phi.

Derivatives are carried forward as d state/d column; a step multiplies them by one 6 x 6 Jacobian. The change of the
field along a step is not in them: relative to what is, it is 1e-4.

The simulation uses the same steps, so that a fit with the true constants finds the truth to rounding.

Not for: fits (`musclecal.geometry.refit`), or which modules a track meets (`musclecal.geometry.simulate`).
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from musclecal.compiled import innermost, kernel
from musclecal.geometry.field import field_at
from musclecal.geometry.helix import CROSSED, propagate_along, reach_along, stay_on_plane
from musclecal.geometry.material import highland_variance, loss_at
from musclecal.records import Floats

__all__ = ["GAMMA", "LOST_TRACK", "TRACED", "B", "M", "Planes", "Trace", "W", "new_trace", "trace"]

TRACED = 0
"""Status: the track crosses all of its planes."""
LOST_TRACK = 1
"""Status: it misses one, or it stops."""

B, M, W, GAMMA = 2, 3, 4, 5
"""Slots of a unit's parameters, after the shifts 0 and 1 (`ModuleParameters`)."""

_KICKS = 2
_STRAIGHT = 1e-9
"""1/GeV: below it a track loses no energy."""


class Planes(NamedTuple):
    """What a track goes through: n sensors of n_unit mechanical units.

    Attributes
    ----------
    centre : (n, 3) cm. axes : (n, 3, 3) the unit vectors u, v and w (normal).
    radiation_lengths, mass_thickness : (n,) 1 and g/cm2, at normal incidence.
    measures_v : (n,) whether there is a hit in v as well.
    unit, slot : (n,) of the sensor, and which of the unit's parameters is its shift along u.
    r, z, bending : (n_r,), (n_z,) cm and (n_r, n_z) GeV/cm, the field map times the curvature constant.
    loss : (n_p, 2) eps at momenta whose logarithms are ``log_p`` (first, step) apart, and d eps/d ln p.
    muon_mass : GeV.
    """

    centre: Floats
    axes: Floats
    radiation_lengths: Floats
    mass_thickness: Floats
    measures_v: NDArray[np.bool_]
    unit: NDArray[np.int32]
    slot: NDArray[np.int32]
    r: Floats
    z: Floats
    bending: Floats
    loss: Floats
    first_log_p: float
    log_p_step: float
    muon_mass: float


class Trace(NamedTuple):
    """What `trace` writes, for up to n planes; rows 2 i and 2 i + 1 are u and v of plane i.

    Columns: ``n_start`` of the start; the kicks in lambda and phi behind plane i at n_start + 2 i and + 1; and, with
    parameters, the kick in q/p behind plane i and b of the step to it at n_start + 2 n + 2 i and + 1.

    Attributes
    ----------
    predicted : (2 n,) cm. derivative : (2 n, n_column) d predicted/d column.
    variance : (n, 2) of the kicks. loss : (n,) d(q/p)/d m behind a plane. slope : (2 n,) d predicted/d w.
    local : (n, 2) the crossing in the module without shifts, cm.
    state : (6,) behind the last plane.
    carried : (6, n_column) d state/d column.
    jacobian, d_b, d_s, d_offset : (6, 6) and (6,) derivatives of one step. direction : (3,) (cos(phi), sin(phi),
        tan(lambda)) behind it. end : (6,) room.
    """

    predicted: Floats
    derivative: Floats
    variance: Floats
    loss: Floats
    slope: Floats
    local: Floats
    state: Floats
    carried: Floats
    jacobian: Floats
    d_b: Floats
    d_s: Floats
    d_offset: Floats
    direction: Floats
    end: Floats


@kernel
def new_trace(n: int, n_start: int, with_parameters: bool) -> Trace:
    """Room for ``n`` planes."""
    n_column = n_start + (4 * n if with_parameters else 2 * n)
    return Trace(
        np.zeros(2 * n), np.zeros((2 * n, n_column)), np.zeros((n, 2)), np.zeros(n), np.zeros(2 * n),
        np.zeros((n, 2)), np.zeros(6), np.zeros((6, n_column)), np.zeros((6, 6)), np.zeros(6),
        np.zeros(6), np.zeros(6), np.zeros(3), np.zeros(6),
    )  # fmt: skip


@innermost
def trace(
    start: Floats, start_derivative: Floats, modules: NDArray[np.int32], n: int, planes: Planes, parameters: Floats,
    with_parameters: bool, out: Trace,
) -> int:  # fmt: skip
    """Follow a track through ``n`` planes and fill ``out``; the status.

    ``start`` (6,) and its derivatives ``start_derivative`` (6, n_start); ``modules`` (n,) sensors in the order of the
    track; ``parameters`` (n_unit, n_slot) where the detector is assumed to be.
    """
    n_start = start_derivative.shape[1]
    extra = n_start + _KICKS * n
    state, carried, direction = out.state, out.carried, out.direction
    direction[0], direction[1], direction[2] = math.cos(start[2]), math.sin(start[2]), math.tan(start[1])
    carried[:, :] = 0.0
    out.derivative[: 2 * n, :] = 0.0
    for k in range(6):
        state[k] = start[k]
        for c in range(n_start):
            carried[k, c] = start_derivative[k, c]
    for i in range(n):
        module = modules[i]
        behind = n_start + _KICKS * i
        if _step(module, planes, parameters, out) != CROSSED:
            return LOST_TRACK
        _advance(carried, out.jacobian, 0, behind)
        _measure(module, i, planes, parameters, out, 0, behind)
        if with_parameters:
            b = extra + 2 * i + 1
            _advance(carried, out.jacobian, extra, b - 1)
            for k in range(6):
                carried[k, b] = out.d_b[k]
            _measure(module, i, planes, parameters, out, extra, b + 1)
        if _matter(module, i, planes, parameters, out, behind, extra, with_parameters) != TRACED:
            return LOST_TRACK
    return TRACED


@innermost
def _step(module: int, planes: Planes, parameters: Floats, out: Trace) -> int:
    """Move ``state`` to the plane; derivatives of the step into ``out``."""
    state, normal, unit = out.state, planes.axes[module, 2], planes.unit[module]
    n_x, n_y, n_z = normal[0], normal[1], normal[2]
    c_x, c_y, c_z = planes.centre[module, 0], planes.centre[module, 1], planes.centre[module, 2]
    x, y, z = 0.5 * (state[3] + c_x), 0.5 * (state[4] + c_y), 0.5 * (state[5] + c_z)
    bending = field_at(math.sqrt(x * x + y * y), z, planes.r, planes.z, planes.bending)
    if parameters.shape[1] > W:
        w = parameters[unit, W]
        c_x, c_y, c_z = c_x + w * n_x, c_y + w * n_y, c_z + w * n_z
    offset = state[3] - c_x, state[4] - c_y, state[5] - c_z
    direction = out.direction[0], out.direction[1], out.direction[2]
    b = parameters[unit, B]
    half_turn = -0.5 * bending * (1.0 + b) * state[0] * math.sqrt(1.0 + direction[2] * direction[2])
    status, s = reach_along(offset, direction, half_turn, (n_x, n_y, n_z), 0.0)
    if status != CROSSED:
        return int(status)
    propagate_along(state, direction, s, bending, b, out.end, out.jacobian, out.d_b, out.d_s)
    stay_on_plane(out.jacobian, out.d_b, out.d_s, normal, out.d_offset)
    for k in range(6):
        state[k] = out.end[k]
    for k in range(3):
        out.direction[k] = out.d_s[3 + k]
    return int(status)


@innermost
def _advance(carried: Floats, j: Floats, first: int, last: int) -> None:
    """Columns ``first`` to ``last`` times the Jacobian ``j`` of a step, which leaves q/p and lambda as they are.

    Written out, and with an index that cannot be negative: so it is vectorised.
    """
    p0, p1, p2, p3, p4, p5 = j[2, 0], j[2, 1], j[2, 2], j[2, 3], j[2, 4], j[2, 5]
    x0, x1, x2, x3, x4, x5 = j[3, 0], j[3, 1], j[3, 2], j[3, 3], j[3, 4], j[3, 5]
    y0, y1, y2, y3, y4, y5 = j[4, 0], j[4, 1], j[4, 2], j[4, 3], j[4, 4], j[4, 5]
    z0, z1, z2, z3, z4, z5 = j[5, 0], j[5, 1], j[5, 2], j[5, 3], j[5, 4], j[5, 5]
    for c in range(max(first, 0), last):
        q, lam, phi = carried[0, c], carried[1, c], carried[2, c]
        x, y, z = carried[3, c], carried[4, c], carried[5, c]
        carried[2, c] = p0 * q + p1 * lam + p2 * phi + p3 * x + p4 * y + p5 * z
        carried[3, c] = x0 * q + x1 * lam + x2 * phi + x3 * x + x4 * y + x5 * z
        carried[4, c] = y0 * q + y1 * lam + y2 * phi + y3 * x + y4 * y + y5 * z
        carried[5, c] = z0 * q + z1 * lam + z2 * phi + z3 * x + z4 * y + z5 * z


@innermost
def _measure(
    module: int, i: int, planes: Planes, parameters: Floats, out: Trace, first: int, last: int
) -> None:
    """Predicted hit in plane ``i`` and its derivatives in the columns ``first`` to ``last``."""
    centre, axes, state, direction = planes.centre, planes.axes, out.state, out.direction
    carried, derivative, unit = out.carried, out.derivative, planes.unit[module]
    gamma = parameters[unit, GAMMA] if parameters.shape[1] > W else 0.0
    forward = 0.0
    for c in range(3):
        forward += axes[module, 2, c] * direction[c]
    for k in range(2):
        turn = gamma if k == 0 else -gamma
        ax = axes[module, k, 0] + turn * axes[module, 1 - k, 0]
        ay = axes[module, k, 1] + turn * axes[module, 1 - k, 1]
        az = axes[module, k, 2] + turn * axes[module, 1 - k, 2]
        row = 2 * i + k
        position, slope = 0.0, 0.0
        for c in range(3):
            position += axes[module, k, c] * (state[3 + c] - centre[module, c])
            slope += axes[module, k, c] * direction[c]
        out.local[i, k] = position
        out.slope[row] = slope / forward
        for c in range(max(first, 0), last):
            derivative[row, c] = ax * carried[3, c] + ay * carried[4, c] + az * carried[5, c]
    u, v = out.local[i, 0], out.local[i, 1]
    out.predicted[2 * i] = u + gamma * v - parameters[unit, planes.slot[module]]
    out.predicted[2 * i + 1] = v - gamma * u - (parameters[unit, 1] if planes.measures_v[module] else 0.0)


@innermost
def _matter(
    module: int, i: int, planes: Planes, parameters: Floats, out: Trace, behind: int, extra: int,
    with_parameters: bool,
) -> int:  # fmt: skip
    """Energy loss and scattering in plane ``i``: the state behind it, and the columns that begin there."""
    state, carried, axes = out.state, out.carried, planes.axes
    n_x, n_y, n_z = axes[module, 2, 0], axes[module, 2, 1], axes[module, 2, 2]
    q_over_p, cos_phi, sin_phi, tan_lam = state[0], out.direction[0], out.direction[1], out.direction[2]
    cos_lam = 1.0 / math.sqrt(1.0 + tan_lam * tan_lam)
    sin_lam = tan_lam * cos_lam
    across = n_x * cos_phi + n_y * sin_phi
    cosine = across * cos_lam + n_z * sin_lam
    path = 1.0 / abs(cosine)
    out.variance[i, 0], out.variance[i, 1], out.loss[i] = 0.0, 0.0, 0.0
    if abs(q_over_p) < _STRAIGHT:
        return TRACED
    p = 1.0 / abs(q_over_p)
    energy = math.sqrt(p * p + planes.muon_mass * planes.muon_mass)
    variance = highland_variance(p, energy, planes.radiation_lengths[module] * path)
    out.variance[i, 0] = variance
    out.variance[i, 1] = variance / (cos_lam * cos_lam)

    eps, eps_slope = loss_at(math.log(p), planes.loss, planes.first_log_p, planes.log_p_step)
    nominal = planes.mass_thickness[module] * path
    thickness = nominal * (1.0 + parameters[planes.unit[module], M])
    left = energy - eps * thickness
    if not left > planes.muon_mass:
        return LOST_TRACK
    p_left = math.sqrt(left * left - planes.muon_mass * planes.muon_mass)
    after = q_over_p * p / p_left
    by_energy = -after / p_left * (left / p_left)
    by_p = by_energy * (p / energy - eps_slope / p * thickness)
    by_q_over_p = -by_p * p / q_over_p
    by_path = -by_energy * eps * thickness * abs(cosine)
    by_lam = by_path * _d_path(cosine, n_z * cos_lam - across * sin_lam)
    by_phi = by_path * _d_path(cosine, (n_y * cos_phi - n_x * sin_phi) * cos_lam)
    out.loss[i] = -by_energy * eps * nominal
    state[0] = after
    for c in range(behind):
        carried[0, c] = by_q_over_p * carried[0, c] + by_lam * carried[1, c] + by_phi * carried[2, c]
    carried[1, behind] = 1.0
    carried[2, behind + 1] = 1.0
    if with_parameters:
        for c in range(extra, extra + 2 * i + 2):
            carried[0, c] = by_q_over_p * carried[0, c] + by_lam * carried[1, c] + by_phi * carried[2, c]
        carried[0, extra + 2 * i] = 1.0
    return TRACED


@innermost
def _d_path(cosine: float, d_cosine: float) -> float:
    """d(1/abs(cosine)) of a change of the cosine."""
    return -d_cosine / (cosine * abs(cosine))
