r"""A charged particle in a uniform field along z: transport, crossing with a plane, and all derivatives.

State (q/p, lambda, phi, x, y, z) in 1/GeV, rad, rad, cm, cm, cm; ``s`` is the TRANSVERSE arc length in cm
(the path in space is s/cos(lambda)). With the turn per cm

.. math:: \rho = -a B (1+b)\,\frac{q/p}{\cos\lambda}, \quad h = \rho s/2, \quad \mathrm{sinc}\,h = \sin(h)/h,

.. math:: (\Delta x, \Delta y) = s\,\mathrm{sinc}(h)\,(\cos(\varphi+h), \sin(\varphi+h)), \quad
   \Delta z = s\tan\lambda, \quad \Delta\varphi = \rho s

(physics.md section 5): a particle of q > 0 in B > 0 turns towards smaller phi. Kernels take ``bending`` = a B
(GeV/cm) and the relative correction ``b`` of the field. phi is not wrapped: derivatives stay continuous.

Use `propagate` and `cross_planes` for arrays; inside a compiled loop `propagate_one` and `cross_one`, or `reach_plane`,
`propagate_with_derivatives` and `stay_on_plane` where derivatives are wanted; `reach_along` and `propagate_along` where
the direction is known.
Not for: energy loss and scattering (they happen between two steps), a field that changes along a step,
lambda = +-pi/2.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from musclecal.compiled import kernel

__all__ = [
    "BENDING_PER_TESLA",
    "CROSSED",
    "LOST",
    "Crossings",
    "Transport",
    "cross_one",
    "cross_planes",
    "propagate",
    "propagate_along",
    "propagate_one",
    "propagate_with_derivatives",
    "reach_along",
    "reach_plane",
    "sinc",
    "sinc_slope",
    "stay_on_plane",
    "turn_per_cm",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BENDING_PER_TESLA: Final = 0.00299792458
"""a in GeV/(T cm): pT = a |B| R for unit charge. The speed of light in these units, exact."""

CROSSED: Final = 0
"""Status: the state is on the plane."""
LOST: Final = 1
"""Status: no crossing found; the helix misses the plane, runs along it, or meets it far from the guess."""

_MAX_STEPS: Final = 30
_FARTHEST: Final = 1e5
"""cm"""
_LAST_STEP: Final = 1e-6
"""cm"""


@dataclass(frozen=True)
class Transport:
    """States after a given arc length; ``...`` is the common shape of the arguments.

    Attributes
    ----------
    states : (..., 6).
    jacobian : (..., 6, 6) d state / d start state at fixed s.
    d_s : (..., 6) d state / d s.
    d_b : (..., 6) d state / d b at fixed s.
    """

    states: Floats
    jacobian: Floats
    d_s: Floats
    d_b: Floats


@dataclass(frozen=True)
class Crossings:
    """States on planes; all numbers but ``status`` are nan where ``status`` is not `CROSSED`.

    Attributes
    ----------
    states : (..., 6).
    s : (...) transverse arc length to the plane in cm.
    jacobian : (..., 6, 6) d state / d start state, staying on the plane.
    d_b : (..., 6) d state / d b, staying on the plane.
    d_offset : (..., 6) d state / d (shift of the plane along its unit normal, cm).
    status : (...) `CROSSED` or `LOST`.
    """

    states: Floats
    s: Floats
    jacobian: Floats
    d_b: Floats
    d_offset: Floats
    status: Ints


@kernel
def sinc(h: float) -> float:
    """sin(h)/h. The quotient loses nothing however small h is; only h = 0 needs its limit."""
    if h == 0.0:
        return 1.0
    return math.sin(h) / h


@kernel
def sinc_slope(h: float) -> float:
    """d sinc/dh = (cos h - sinc h)/h; up to |h| = 0.5 its series -h/3 (1 - h^2/10 (1 - h^2/28 (1 - ...)))."""
    if abs(h) > 0.5:
        return (math.cos(h) - math.sin(h) / h) / h
    h2 = h * h
    series = 1.0 - h2 / 130.0 * (1.0 - h2 / 180.0)
    series = 1.0 - h2 / 28.0 * (1.0 - h2 / 54.0 * (1.0 - h2 / 88.0 * series))
    return -h / 3.0 * (1.0 - h2 / 10.0 * series)


@kernel
def turn_per_cm(q_over_p: float, lam: float, bending: float, b: float) -> float:
    """rho = d phi/d s in 1/cm; its derivatives are rho/(q/p), rho tan(lambda) and rho/(1+b)."""
    return -bending * (1.0 + b) * q_over_p / math.cos(lam)


@kernel
def propagate_one(start: Floats, s: float, bending: float, b: float, end: Floats) -> None:
    """Write the state at arc length ``s`` (cm) from ``start`` (6,) into ``end``, which may be ``start``."""
    phi = start[2]
    turn = turn_per_cm(start[0], start[1], bending, b) * s
    h = 0.5 * turn
    chord = s * sinc(h)
    end[0] = start[0]
    end[1] = start[1]
    end[2] = phi + turn
    end[3] = start[3] + chord * math.cos(phi + h)
    end[4] = start[4] + chord * math.sin(phi + h)
    end[5] = start[5] + s * math.tan(start[1])


@kernel
def propagate_with_derivatives(
    start: Floats, s: float, bending: float, b: float, end: Floats, jacobian: Floats, d_b: Floats, d_s: Floats
) -> None:
    """`propagate_one`, with d state/d start (6, 6) and d state/d b (6,) at fixed ``s``, and d state/d s (6,).

    q/p, lambda and b act through rho, with c = cos(phi + h), t = sin(phi + h):
    d(x, y)/d rho = s^2/2 (sinc'(h) c - sinc(h) t, sinc'(h) t + sinc(h) c), d phi/d rho = s; along the track
    d state/d s = (0, 0, rho, cos(phi'), sin(phi'), tan(lambda)).
    """
    direction = math.cos(start[2]), math.sin(start[2]), math.tan(start[1])
    propagate_along(start, direction, s, bending, b, end, jacobian, d_b, d_s)


@kernel
def propagate_along(
    start: Floats, direction: tuple[float, float, float], s: float, bending: float, b: float, end: Floats,
    jacobian: Floats, d_b: Floats, d_s: Floats,
) -> None:  # fmt: skip
    """`propagate_with_derivatives` of a track whose ``direction`` (cos(phi), sin(phi), tan(lambda)) is known."""
    cos_phi, sin_phi, tan_lam = direction
    square = 1.0 + tan_lam * tan_lam
    rho_q = -bending * (1.0 + b) * math.sqrt(square)
    rho = rho_q * start[0]
    h = 0.5 * rho * s
    c_h, s_h = math.cos(h), math.sin(h)
    c, t = cos_phi * c_h - sin_phi * s_h, sin_phi * c_h + cos_phi * s_h
    value, slope = (1.0 if h == 0.0 else s_h / h), sinc_slope(h)
    x_rho, y_rho = 0.5 * s * s * (slope * c - value * t), 0.5 * s * s * (slope * t + value * c)

    x, y = start[3] + s * value * c, start[4] + s * value * t
    end[0], end[1], end[2], end[3], end[4], end[5] = (
        start[0],
        start[1],
        start[2] + 2.0 * h,
        x,
        y,
        start[5] + s * tan_lam,
    )

    jacobian[:, :] = 0.0
    for n in range(6):
        jacobian[n, n] = 1.0
    for column, d_rho in ((0, rho_q), (1, rho * tan_lam)):
        jacobian[2, column] = s * d_rho
        jacobian[3, column] = x_rho * d_rho
        jacobian[4, column] = y_rho * d_rho
    jacobian[3, 2] = -s * value * t
    jacobian[4, 2] = s * value * c
    jacobian[5, 1] = s * square

    rho_b = -bending * math.sqrt(square) * start[0]
    d_b[0], d_b[1], d_b[2], d_b[3], d_b[4], d_b[5] = 0.0, 0.0, s * rho_b, x_rho * rho_b, y_rho * rho_b, 0.0
    d_s[0], d_s[1], d_s[2] = 0.0, 0.0, rho
    d_s[3], d_s[4], d_s[5] = c * c_h - t * s_h, t * c_h + c * s_h, tan_lam


@kernel
def along(normal: Floats, change: Floats) -> float:
    """n.dx in cm: how far a change (6,) of a state moves it along ``normal`` (3,)."""
    return float(normal[0] * change[3] + normal[1] * change[4] + normal[2] * change[5])


@kernel
def reach_plane(
    start: Floats, bending: float, b: float, centre: Floats, normal: Floats, s: float
) -> tuple[int, float]:
    """Newton on g(s) = n.(x(s) - c) from the guess ``s``: status and arc length.

    g' = n.(cos(phi), sin(phi), tan(lambda)). The last step is below 1e-6 cm, the one that would follow is of
    order rho 1e-12: the residual is rounding. A helix meets a plane many times; Newton takes one near the
    guess: give the arc length of the previous plane (0 will do for planes within the radius of the track).
    """
    direction = math.cos(start[2]), math.sin(start[2]), math.tan(start[1])
    offset = start[3] - centre[0], start[4] - centre[1], start[5] - centre[2]
    half_turn = 0.5 * turn_per_cm(start[0], start[1], bending, b)
    return reach_along(offset, direction, half_turn, (normal[0], normal[1], normal[2]), s)


@kernel
def reach_along(
    offset: tuple[float, float, float], direction: tuple[float, float, float], half_turn: float,
    normal: tuple[float, float, float], s: float,
) -> tuple[int, float]:  # fmt: skip
    """`reach_plane` from ``offset`` = x - c in ``direction`` (cos(phi), sin(phi), tan(lambda)), half_turn = rho/2."""
    (x, y, z), (cos_phi, sin_phi, tan_lam), (n_x, n_y, n_z) = offset, direction, normal
    for _ in range(_MAX_STEPS):
        # cos and sin of h alone: those of phi + h and phi + 2 h are sums
        h = half_turn * s
        c_h, s_h = math.cos(h), math.sin(h)
        c, t = cos_phi * c_h - sin_phi * s_h, sin_phi * c_h + cos_phi * s_h
        chord = s if h == 0.0 else s * (s_h / h)
        distance = n_x * (x + chord * c) + n_y * (y + chord * t) + n_z * (z + s * tan_lam)
        slope = n_x * (c * c_h - t * s_h) + n_y * (t * c_h + c * s_h) + n_z * tan_lam
        if slope == 0.0:
            return LOST, s
        step = distance / slope
        s -= step
        if not abs(s) < _FARTHEST:
            return LOST, s
        if abs(step) < _LAST_STEP:
            return CROSSED, s
    return LOST, s


@kernel
def cross_one(
    start: Floats, bending: float, b: float, centre: Floats, normal: Floats, s: float, end: Floats
) -> tuple[int, float]:
    """`reach_plane`, with the state there in ``end``."""
    status, s = reach_plane(start, bending, b, centre, normal, s)
    if status == CROSSED:
        propagate_one(start, s, bending, b, end)
    return status, s


@kernel
def stay_on_plane(jacobian: Floats, d_b: Floats, d_s: Floats, normal: Floats, d_offset: Floats) -> None:
    """Turn derivatives at fixed s into derivatives on the plane, in place, and write d state/d offset (6,).

    ``normal`` has length one. From n.(dx + t ds) = d offset: ds = (d offset - n.dx)/(n.t), t = ``d_s[3:]``.
    Every column of ``jacobian`` and ``d_b`` gains ds times ``d_s``.
    """
    slope = along(normal, d_s)
    n_x, n_y, n_z = normal[0], normal[1], normal[2]
    for column in range(6):
        ds = -(n_x * jacobian[3, column] + n_y * jacobian[4, column] + n_z * jacobian[5, column]) / slope
        for row in range(6):
            jacobian[row, column] += d_s[row] * ds
    ds = -along(normal, d_b) / slope
    for row in range(6):
        d_b[row] += d_s[row] * ds
        d_offset[row] = d_s[row] / slope


@kernel
def _propagate_many(
    start: Floats,
    s: Floats,
    b: Floats,
    bending: float,
    end: Floats,
    jacobian: Floats,
    d_s: Floats,
    d_b: Floats,
) -> None:
    for n in range(s.size):
        propagate_with_derivatives(start[n], s[n], bending, b[n], end[n], jacobian[n], d_b[n], d_s[n])


@kernel
def _cross_many(
    start: Floats,
    b: Floats,
    bending: float,
    centre: Floats,
    normal: Floats,
    s: Floats,
    end: Floats,
    jacobian: Floats,
    d_b: Floats,
    d_offset: Floats,
    status: Ints,
) -> None:
    d_s = np.empty(6)
    for n in range(s.size):
        status[n], s[n] = reach_plane(start[n], bending, b[n], centre[n], normal[n], s[n])
        if status[n] == CROSSED:
            propagate_with_derivatives(start[n], s[n], bending, b[n], end[n], jacobian[n], d_b[n], d_s)
            stay_on_plane(jacobian[n], d_b[n], d_s, normal[n], d_offset[n])
        else:
            s[n] = math.nan
            end[n, :] = math.nan


def propagate(states: ArrayLike, s: ArrayLike, field: float, b: ArrayLike = 0.0) -> Transport:
    """States and derivatives at transverse arc lengths ``s`` (cm, negative: backwards) in ``field`` tesla.

    ``states`` (..., 6); ``s`` and the relative field correction ``b`` broadcast against ``states[..., 0]``.
    """
    start, (length, relative), shape = _flat(states, s=s, b=b)
    end, d_s, d_b = (np.empty_like(start) for _ in range(3))
    jacobian = np.empty((len(start), 6, 6))
    _propagate_many(start, length, relative, _bending(field), end, jacobian, d_s, d_b)
    return Transport(
        states=end.reshape(*shape, 6),
        jacobian=jacobian.reshape(*shape, 6, 6),
        d_s=d_s.reshape(*shape, 6),
        d_b=d_b.reshape(*shape, 6),
    )


def cross_planes(
    states: ArrayLike,
    centre: ArrayLike,
    normal: ArrayLike,
    field: float,
    b: ArrayLike = 0.0,
    s_guess: ArrayLike = 0.0,
) -> Crossings:
    """Where each helix meets its plane through ``centre`` (cm) with ``normal``, in ``field`` tesla.

    ``states`` (..., 6), ``centre`` and ``normal`` (..., 3), ``b`` and ``s_guess`` (cm) broadcast; normals are
    scaled to length one. A helix that misses its plane is data, see `Crossings`; which crossing: `cross_one`.
    """
    lead = np.broadcast_shapes(np.shape(states)[:-1], np.shape(centre)[:-1], np.shape(normal)[:-1])
    states = np.broadcast_to(np.asarray(states, dtype=np.float64), lead + np.shape(states)[-1:])
    start, (relative, s), shape = _flat(states, b=b, s_guess=s_guess)
    centres = _vectors("centre", centre, shape)
    normals = _vectors("normal", normal, shape)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    if np.any(length == 0.0):
        raise ValueError(f"normal: zero vector at {_where(length[:, 0] == 0.0, shape)}")
    end, d_b, d_offset = (np.full_like(start, np.nan) for _ in range(3))
    jacobian = np.full((len(start), 6, 6), np.nan)
    status = np.empty(len(start), dtype=np.int64)
    _cross_many(
        start, relative, _bending(field), centres, normals / length, s, end, jacobian, d_b, d_offset, status
    )
    return Crossings(
        states=end.reshape(*shape, 6),
        s=s.reshape(shape),
        jacobian=jacobian.reshape(*shape, 6, 6),
        d_b=d_b.reshape(*shape, 6),
        d_offset=d_offset.reshape(*shape, 6),
        status=status.reshape(shape),
    )


def _bending(field: float) -> float:
    if not math.isfinite(field):
        raise ValueError(f"field: must be finite, got {field} T")
    return BENDING_PER_TESLA * float(field)


def _flat(states: ArrayLike, **scalars: ArrayLike) -> tuple[Floats, list[Floats], tuple[int, ...]]:
    """States (n, 6) and each scalar (n,), contiguous and checked, and the shape that n was."""
    start = np.asarray(states, dtype=np.float64)
    if start.ndim == 0 or start.shape[-1] != 6:
        raise ValueError(f"states: need shape (..., 6), got {start.shape}")
    shape = np.broadcast_shapes(start.shape[:-1], *(np.shape(value) for value in scalars.values()))
    start = np.array(np.broadcast_to(start, (*shape, 6))).reshape(-1, 6)
    _check_finite("states", start, shape)
    steep = np.abs(start[:, 1]) >= 0.5 * math.pi
    if np.any(steep):
        raise ValueError(f"states: |lambda| must be below pi/2, it is not at {_where(steep, shape)}")
    columns = [
        np.array(np.broadcast_to(np.asarray(value, dtype=np.float64), shape)).ravel()
        for value in scalars.values()
    ]
    for name, column in zip(scalars, columns, strict=True):
        _check_finite(name, column[:, None], shape)
    return start, columns, shape


def _vectors(name: str, vectors: ArrayLike, shape: tuple[int, ...]) -> Floats:
    values = np.asarray(vectors, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] != 3:
        raise ValueError(f"{name}: need shape (..., 3), got {values.shape}")
    values = np.array(np.broadcast_to(values, (*shape, 3))).reshape(-1, 3)
    _check_finite(name, values, shape)
    return values


def _check_finite(name: str, rows: Floats, shape: tuple[int, ...]) -> None:
    bad = ~np.all(np.isfinite(rows), axis=1)
    if np.any(bad):
        raise ValueError(f"{name}: not finite at {_where(bad, shape)}: {rows[np.argmax(bad)].tolist()}")


def _where(bad: NDArray[np.bool_], shape: tuple[int, ...]) -> str:
    """Index of the first bad row, for messages."""
    index = np.unravel_index(int(np.argmax(bad)), shape) if shape else ()
    return f"index {tuple(int(n) for n in index)}"
