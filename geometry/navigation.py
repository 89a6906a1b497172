"""Which sensors a track meets: layers in the order in which a helix crosses them, and sensors by phi and z (or r).

Each layer has a grid of cells in phi and z (barrel) or phi and r (disks) with the sensors that could be met there. Any
detector will do whose layers are what `Detector` says: cylinders about the beam, or rings at one z.

Not for: what happens on the way (`musclecal.geometry.simulate`), tracks that turn back.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from musclecal.compiled import kernel
from musclecal.geometry.helix import propagate_one, turn_per_cm
from musclecal.records import Detector, Floats, Ints

__all__ = ["Navigation", "layers_ahead", "most_sensors", "navigation_of", "sensors_at"]

_MARGIN: Final = 5.0
"""cm: how far from the ideal helix a track may be where it meets a layer."""
_NEAR: Final = 0.5
"""cm: how far from where it is thought to be a track may be when sensors are looked up."""


class Navigation(NamedTuple):
    """Layers and cells.

    Attributes
    ----------
    barrel, position, low, high : (n_layer,) kind; radius or z; range in z or r, cm.
    near : (n_layer,) cm, how far outside of the range of a sensor it is still looked at.
    n_phi, n_along, first_cell : (n_layer,) cells of a layer, phi from -pi on runs slower.
    start : (n_cell + 1,) where in ``sensors`` the candidates of a cell begin, the likeliest first.
    sensors : (n_candidate,) first sensors of units. partner : (n_sensor,) the second sensor of the unit, or -1.
    """

    barrel: NDArray[np.bool_]
    position: Floats
    low: Floats
    high: Floats
    near: Floats
    n_phi: Ints
    n_along: Ints
    first_cell: Ints
    start: Ints
    sensors: Ints
    partner: Ints


class _Layer(NamedTuple):
    """One layer: its part of `Navigation`, candidates cell by cell."""

    barrel: bool
    position: float
    low: float
    high: float
    near: float
    n_phi: int
    n_along: int
    cells: list[Ints]


def navigation_of(detector: Detector) -> Navigation:
    """The navigation through ``detector``."""
    of_layer = [
        np.flatnonzero((detector.layer == layer) & (detector.side == 0)) for layer in range(detector.n_layers)
    ]
    layers = [_layer(detector, which) for which in of_layer if len(which)]
    cells = [cell for layer in layers for cell in layer.cells]
    sizes = [layer.n_phi * layer.n_along for layer in layers]
    partner = np.full(len(detector), -1)
    second = np.flatnonzero(detector.side == 1)
    first = np.zeros(detector.n_units, dtype=np.int64)
    first[detector.unit[detector.side == 0]] = np.flatnonzero(detector.side == 0)
    partner[first[detector.unit[second]]] = second
    return Navigation(
        np.array([layer.barrel for layer in layers]),
        np.array([layer.position for layer in layers]),
        np.array([layer.low for layer in layers]),
        np.array([layer.high for layer in layers]),
        np.array([layer.near for layer in layers]),
        np.array([layer.n_phi for layer in layers]),
        np.array([layer.n_along for layer in layers]),
        np.cumsum([0, *sizes])[:-1],
        np.cumsum([0, *(len(cell) for cell in cells)]),
        np.concatenate(cells),
        partner,
    )


def _layer(d: Detector, which: Ints) -> _Layer:
    """Cells of the layer with the first sensors ``which``, a quarter of a sensor each."""
    barrel = bool(d.is_barrel[which[0]])
    phi, along = _boxes(d, which, barrel)
    r = np.hypot(d.centre[which, 0], d.centre[which, 1])
    n_phi = max(1, round(4.0 * math.pi / np.median(phi[:, 1] - phi[:, 0])))
    low, high = along[:, 0].min(), along[:, 1].max()
    n_along = max(1, round(2.0 * (high - low) / np.median(along[:, 1] - along[:, 0])))
    # A flat sensor's middle is nearer than its edge: a track moves between the two
    depth = (
        np.median(r * (1.0 / np.cos(np.minimum(0.5 * (phi[:, 1] - phi[:, 0]), 1.0)) - 1.0)) if barrel else 0.0
    )
    near_phi, near = (_NEAR + depth) / r, _NEAR + 3.0 * depth
    edges = np.linspace(low, high, n_along + 1)
    cells = []
    for i in range(n_phi):
        middle = -math.pi + 2.0 * math.pi * (i + 0.5) / n_phi
        off_phi = np.abs((middle - phi.mean(axis=1) + math.pi) % (2.0 * math.pi) - math.pi)
        in_phi = off_phi < 0.5 * (phi[:, 1] - phi[:, 0]) + math.pi / n_phi + near_phi
        for j in range(n_along):
            inside = in_phi & (along[:, 0] - near < edges[j + 1]) & (along[:, 1] + near > edges[j])
            off = np.hypot(off_phi * r, along.mean(axis=1) - 0.5 * (edges[j] + edges[j + 1]))
            found = np.flatnonzero(inside)
            cells.append(which[found[np.argsort(off[found], kind="stable")]])
    position = np.mean(r) if barrel else np.mean(d.centre[which, 2])
    return _Layer(barrel, float(position), float(low), float(high), float(near), n_phi, n_along, cells)


def _boxes(d: Detector, which: Ints, barrel: bool) -> tuple[Floats, Floats]:
    """Ranges (n, 2) of sensors in phi, about that of the centre and unwrapped, and in z (barrel) or r."""
    corners = np.stack(
        [
            d.centre[which] + i * d.half_u[which, None] * d.u[which] + j * d.half_v[which, None] * d.v[which]
            for i in (-1.0, 0.0, 1.0)
            for j in (-1.0, 1.0)
        ],
        axis=1,
    )
    centre_phi = np.arctan2(d.centre[which, 1], d.centre[which, 0])[:, None]
    off = np.arctan2(corners[:, :, 1], corners[:, :, 0]) - centre_phi
    phi = centre_phi + (off + math.pi) % (2.0 * math.pi) - math.pi
    along = corners[:, :, 2] if barrel else np.hypot(corners[:, :, 0], corners[:, :, 1])
    return np.stack([phi.min(axis=1), phi.max(axis=1)], axis=1), np.stack(
        [along.min(axis=1), along.max(axis=1)], axis=1
    )


def most_sensors(detector: Detector, navigation: Navigation) -> int:
    """More sensors than any track from the beam line meets: of straight lines at all eta, and some."""
    twice = np.zeros(len(navigation.barrel), dtype=np.int64)
    used = np.unique(detector.layer)
    for i, layer in enumerate(used):
        twice[i] = 1 + np.any(detector.side[detector.layer == layer])
    most = 0
    for slope in np.sinh(np.linspace(-4.0, 4.0, 800)):
        along = np.where(navigation.barrel, navigation.position * slope, navigation.position / slope)
        met = (along > navigation.low) & (along < navigation.high)
        most = max(most, int(np.sum(twice[met])))
    return most + 6


@kernel
def layers_ahead(
    state: Floats, bending: float, navigation: Navigation, margin: float, s_of: Floats, layers: Ints
) -> int:
    """Layers that a helix from near the beam line crosses outwards, with arc lengths (cm) in order; how many."""
    n = 0
    turn = turn_per_cm(state[0], state[1], bending, 0.0)
    slope = math.tan(state[1])
    r = math.sqrt(state[3] * state[3] + state[4] * state[4])
    for layer in range(navigation.position.size):
        at = navigation.position[layer]
        if navigation.barrel[layer]:
            x = 0.5 * turn * at
            if abs(x) > 0.99 or at < r:
                continue
            s = at * (1.0 + x * x / 6.0) if abs(x) < 1e-3 else 2.0 / turn * math.asin(x)
            along = state[5] + s * slope
        else:
            if slope == 0.0:
                continue
            s = (at - state[5]) / slope
            h = 0.5 * turn * s
            if s <= 0.0 or abs(h) > 1.5:
                continue
            along = s * (1.0 - h * h / 6.0) if abs(h) < 1e-3 else s * math.sin(h) / h
        if not navigation.low[layer] - margin < along < navigation.high[layer] + margin:
            continue
        k = n
        while k > 0 and s_of[k - 1] > s:
            s_of[k] = s_of[k - 1]
            layers[k] = layers[k - 1]
            k -= 1
        s_of[k] = s
        layers[k] = layer
        n += 1
    return n


@kernel
def sensors_at(
    state: Floats, s: float, layer: int, bending: float, b: float, navigation: Navigation, point: Floats
) -> tuple[int, int, float]:
    """Candidates ``sensors[first:last]`` where the helix meets ``layer`` near arc length ``s``; first, last and s."""
    propagate_one(state, s, bending, b, point)
    r = math.sqrt(point[3] * point[3] + point[4] * point[4])
    if navigation.barrel[layer]:
        outwards = (point[3] * math.cos(point[2]) + point[4] * math.sin(point[2])) / r
        if outwards > 0.1:
            s += (navigation.position[layer] - r) / outwards
            propagate_one(state, s, bending, b, point)
        along = point[5]
    else:
        along = r
    n_phi, n_along = navigation.n_phi[layer], navigation.n_along[layer]
    low, high, near = navigation.low[layer], navigation.high[layer], navigation.near[layer]
    if not low - near < along < high + near:
        return 0, 0, s
    i = int((math.atan2(point[4], point[3]) / (2.0 * math.pi) + 0.5) * n_phi)
    j = int(math.floor((along - low) / (high - low) * n_along))
    i, j = min(max(i, 0), n_phi - 1), min(max(j, 0), n_along - 1)
    cell = navigation.first_cell[layer] + i * n_along + j
    return navigation.start[cell], navigation.start[cell + 1], s
