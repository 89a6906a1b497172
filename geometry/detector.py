"""Detectors made from short tables of layers, and the arrays of a detector that kernels take.

`cms_tracker` is like the silicon tracker of CMS in 2016: radii, numbers of modules, stereo layers and resolutions are
those of that detector (CMS Collaboration, JINST 3 (2008) S08004), shapes are simplified: all modules of a layer stand
at one radius or at one z, those of disks are rectangles, none is tilted. `barrel_tracker` is a small one for tests and
demos. Neighbours overlap by a per cent, so that no track goes between two modules.

Not for: files (`musclecal.geometry.detector_files`), or which modules a track meets (`musclecal.geometry.navigation`).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from musclecal.constants import MUON_MASS
from musclecal.errors import InputError
from musclecal.geometry.field import SOLENOID
from musclecal.geometry.helix import BENDING_PER_TESLA
from musclecal.geometry.material import LossTable, loss_table
from musclecal.geometry.trace import Planes
from musclecal.records import Detector, FieldMap, Floats

__all__ = ["Barrel", "Ring", "barrel_tracker", "cms_tracker", "detector_of", "planes_of"]

STEREO_ANGLE: Final = 0.1
"""rad, between the two sensors of a stereo module."""
_STEREO_GAP: Final = 0.03
"""cm, between the two sensors."""
_OVERLAP: Final = 1.01
_GRAMS: Final = 21.82
"""g/cm2 of a radiation length of silicon (PDG, Atomic and nuclear properties of materials)."""


class Barrel(NamedTuple):
    """A cylinder of ``n_phi`` x ``n_z`` units, up to |z| = ``half_length``.

    ``x0`` : radiation lengths of a unit in the middle; with services it grows as z^4, to ``x0`` (1 + ``more``) at the
    end. ``sigma_v`` is 0 for strips. Lengths in cm, resolutions in um.
    """

    name: str
    radius: float
    n_phi: int
    n_z: int
    half_length: float
    stereo: bool
    sigma_u: float
    sigma_v: float
    x0: float
    more: float


class Ring(NamedTuple):
    """``n_phi`` units of a disk at ``z``, which cover radii from ``low`` to ``high``; the rest as in `Barrel`."""

    name: str
    z: float
    low: float
    high: float
    n_phi: int
    stereo: bool
    sigma_u: float
    sigma_v: float
    x0: float


# Name, radius, in phi, in z, half length, stereo, sigma u, sigma v, X0, growth of X0
_PXB = (
    Barrel("PXB1", 4.4, 20, 8, 26.6, False, 10.0, 25.0, 0.024, 0.8),
    Barrel("PXB2", 7.3, 32, 8, 26.6, False, 10.0, 25.0, 0.021, 0.8),
    Barrel("PXB3", 10.2, 44, 8, 26.6, False, 10.0, 25.0, 0.023, 1.2),
)
_TIB = (
    Barrel("TIB1", 25.5, 28, 12, 67.0, True, 23.0, 0.0, 0.042, 2.0),
    Barrel("TIB2", 33.9, 36, 12, 67.0, True, 23.0, 0.0, 0.042, 2.0),
    Barrel("TIB3", 41.85, 45, 12, 67.0, False, 35.0, 0.0, 0.030, 2.0),
    Barrel("TIB4", 49.8, 54, 12, 67.0, False, 35.0, 0.0, 0.032, 2.0),
)
_TOB = (
    Barrel("TOB1", 60.8, 42, 12, 109.0, True, 53.0, 0.0, 0.040, 2.2),
    Barrel("TOB2", 69.2, 48, 12, 109.0, True, 53.0, 0.0, 0.040, 2.2),
    Barrel("TOB3", 78.0, 54, 12, 109.0, False, 53.0, 0.0, 0.028, 2.2),
    Barrel("TOB4", 86.8, 60, 12, 109.0, False, 53.0, 0.0, 0.028, 2.2),
    Barrel("TOB5", 96.5, 66, 12, 109.0, False, 35.0, 0.0, 0.028, 2.2),
    Barrel("TOB6", 108.0, 74, 12, 109.0, False, 35.0, 0.0, 0.028, 2.2),
)

_PIXEL_DISKS = (34.5, 46.5)
_PIXEL_EDGES = (5.9, 7.2, 8.5, 9.75, 11.0, 12.25, 13.5, 14.8)
_TID_DISKS = (80.0, 85.0, 90.0)
# Lowest and highest radius, in phi, stereo, sigma u, X0 of a unit
_TID_RINGS = (
    (21.0, 32.0, 24, True, 24.0, 0.085),
    (31.5, 41.5, 24, True, 28.0, 0.090),
    (41.0, 52.0, 40, False, 34.0, 0.095),
)
_TEC_WHEELS = (131.5, 145.5, 159.5, 173.5, 187.5, 205.5, 225.0, 245.5, 267.5)
_TEC_FIRST_RING = (1, 1, 1, 2, 2, 2, 3, 3, 4)
_TEC_RINGS = (
    (21.5, 32.0, 24, True, 24.0, 0.108),
    (31.5, 41.0, 24, True, 28.0, 0.104),
    (40.5, 50.5, 40, False, 34.0, 0.101),
    (50.0, 61.0, 56, False, 37.0, 0.104),
    (60.5, 75.5, 40, True, 40.0, 0.120),
    (75.0, 91.0, 56, False, 44.0, 0.115),
    (90.5, 114.0, 80, False, 50.0, 0.115),
)
_PIXEL_STAGGER, _STAGGER = 0.1, 0.3
"""cm in z between every second ring of a disk and the disk."""


def cms_tracker() -> Detector:
    """A tracker like that of CMS in 2016: 1,440 pixel and 15,148 strip sensors, 13,300 units, 165 layers.

    A track of |eta| < 2.4 meets about 17 sensors, and 0.4 radiation lengths at eta 0, 1.8 at 1.5.
    """
    rings = [ring for side in (1, -1) for ring in (*_pixel_rings(side), *_strip_rings(side))]
    return detector_of("CMS-like 2016", (*_PXB, *_TIB, *_TOB, *rings))


def barrel_tracker(finer: int = 1) -> Detector:
    """Three pixel and four strip layers, two of them stereo, for |eta| < 1: 416 units, 544 sensors.

    ``finer`` : with so many times more units in phi and in z.
    """
    layers = (
        Barrel("PXB1", 4.4, 10, 4, 13.0, False, 10.0, 25.0, 0.022, 0.0),
        Barrel("PXB2", 7.3, 12, 4, 16.5, False, 10.0, 25.0, 0.022, 0.0),
        Barrel("PXB3", 10.2, 14, 4, 20.0, False, 10.0, 25.0, 0.022, 0.0),
        Barrel("STB1", 26.0, 16, 4, 39.0, True, 23.0, 0.0, 0.040, 0.0),
        Barrel("STB2", 50.0, 16, 4, 67.0, True, 35.0, 0.0, 0.040, 0.0),
        Barrel("STB3", 76.0, 18, 4, 98.0, False, 35.0, 0.0, 0.030, 0.0),
        Barrel("STB4", 105.0, 18, 4, 132.0, False, 35.0, 0.0, 0.030, 0.0),
    )
    cut = [layer._replace(n_phi=finer * layer.n_phi, n_z=finer * layer.n_z) for layer in layers]
    return detector_of("barrel" if finer == 1 else f"barrel, {finer} x finer", cut)


def _pixel_rings(side: int) -> list[Ring]:
    """Seven rings of 24 on each of two disks, at z of the sign ``side``."""
    return [
        Ring(f"PXF{side * disk:+d} ring {ring + 1}", side * (z + _staggered(ring, _PIXEL_STAGGER)), low, high + 0.14,
             24, False, 10.0, 25.0, 0.045)
        for disk, z in enumerate(_PIXEL_DISKS, 1)
        for ring, (low, high) in enumerate(pairwise(_PIXEL_EDGES))
    ]  # fmt: skip


def _strip_rings(side: int) -> list[Ring]:
    """TID and TEC at z of the sign ``side``."""
    disks = [("TID", disk, z, 1, _TID_RINGS) for disk, z in enumerate(_TID_DISKS, 1)]
    wheels = [
        ("TEC", wheel, z, first, _TEC_RINGS)
        for wheel, (z, first) in enumerate(zip(_TEC_WHEELS, _TEC_FIRST_RING, strict=True), 1)
    ]
    return [
        Ring(f"{name}{side * disk:+d} ring {ring}", side * (z + _staggered(ring, _STAGGER)), low, high, n, stereo,
             sigma, 0.0, x0)
        for name, disk, z, first, rings in (*disks, *wheels)
        for ring, (low, high, n, stereo, sigma, x0) in enumerate(rings, 1)
        if ring >= first
    ]  # fmt: skip


def _staggered(ring: int, distance: float) -> float:
    """Neighbouring rings overlap in r: they may not stand at one z."""
    return distance if ring % 2 else -distance


def detector_of(name: str, layers: Sequence[Barrel | Ring], field_map: str = SOLENOID) -> Detector:
    """A detector of ``layers``; sensors in their order, the second one of a stereo module behind the first."""
    rows = [_barrel_units(layer) if isinstance(layer, Barrel) else _ring_units(layer) for layer in layers]
    stereo = np.concatenate(
        [np.full(len(row), layer.stereo) for row, layer in zip(rows, layers, strict=True)]
    )
    layer_of = np.repeat(np.arange(len(layers)), [len(row) for row in rows])
    sensors = 1 + stereo.astype(np.int64)
    unit = np.repeat(np.arange(len(stereo)), sensors)
    side = np.concatenate([np.zeros(1, np.int64), (unit[1:] == unit[:-1]).astype(np.int64)])
    # centre, u, v, w, half_u, half_v and X0 of each unit
    values = np.concatenate(rows)[unit]
    layer = layer_of[unit]
    x0 = values[:, 14] / sensors[unit]
    sigma_u, sigma_v = (
        np.array([1e-4 * getattr(each, key) for each in layers])[layer] for key in ("sigma_u", "sigma_v")
    )
    angle = STEREO_ANGLE * side
    c, s, u, v, w = (
        np.cos(angle)[:, None],
        np.sin(angle)[:, None],
        values[:, 3:6],
        values[:, 6:9],
        values[:, 9:12],
    )
    # The second sensor reaches over all of the first
    half_u = values[:, 12] * c[:, 0] + values[:, 13] * s[:, 0]
    half_v = values[:, 13] * c[:, 0] + values[:, 12] * s[:, 0]
    return Detector(
        name, field_map, tuple(each.name for each in layers), layer.astype(np.int32), unit.astype(np.int32),
        side.astype(np.int8), sigma_v > 0.0, values[:, :3] + _STEREO_GAP * side[:, None] * w, c * u + s * v,
        c * v - s * u, w.copy(), half_u, half_v, sigma_u, np.where(sigma_v > 0.0, sigma_v, np.inf), x0, _GRAMS * x0,
    )  # fmt: skip


def _barrel_units(layer: Barrel) -> Floats:
    """(n_phi n_z, 15): centre, u, v, w, half_u, half_v, X0."""
    in_phi = 2.0 * math.pi * (np.arange(layer.n_phi) + 0.5) / layer.n_phi
    in_z = layer.half_length * ((2.0 * np.arange(layer.n_z) + 1.0) / layer.n_z - 1.0)
    phi, z = np.repeat(in_phi, layer.n_z), np.tile(in_z, layer.n_phi)
    one, zero, c, s = np.ones_like(phi), np.zeros_like(phi), np.cos(phi), np.sin(phi)
    half_u = _OVERLAP * layer.radius * math.tan(math.pi / layer.n_phi)
    half_v = _OVERLAP * layer.half_length / layer.n_z
    x0 = layer.x0 * (1.0 + layer.more * (z / layer.half_length) ** 4)
    return np.stack(
        [layer.radius * c, layer.radius * s, z, -s, c, zero, zero, zero, one, c, s, zero, half_u * one, half_v * one,
         x0], axis=1,
    )  # fmt: skip


def _ring_units(ring: Ring) -> Floats:
    """(n_phi, 15): centre, u, v, w, half_u, half_v, X0."""
    phi = 2.0 * math.pi * (np.arange(ring.n_phi) + 0.5) / ring.n_phi
    one, zero, c, s = np.ones_like(phi), np.zeros_like(phi), np.cos(phi), np.sin(phi)
    away = math.copysign(1.0, ring.z)
    # A rectangle holds the wedge if it begins where the wedge's lower corners are
    low = ring.low * math.cos(math.pi / ring.n_phi)
    middle, half_v = 0.5 * (ring.high + low), 0.5 * (ring.high - low)
    half_u = _OVERLAP * ring.high * math.tan(math.pi / ring.n_phi)
    return np.stack(
        [middle * c, middle * s, ring.z * one, -s, c, zero, -away * c, -away * s, zero, zero, zero, away * one,
         half_u * one, half_v * one, ring.x0 * one], axis=1,
    )  # fmt: skip


def planes_of(detector: Detector, field_map: FieldMap, loss: LossTable | None = None) -> Planes:
    """A detector in a field as the kernels of `musclecal.geometry.trace` take it; ``loss`` is that of silicon.

    Raises
    ------
    InputError : the detector names another field map.
    """
    if detector.field_map != field_map.id:
        raise InputError(
            f"detector {detector.name!r} stands in the field {detector.field_map!r}, not in {field_map.id!r}"
        )
    loss = loss_table() if loss is None else loss
    return Planes(
        np.ascontiguousarray(detector.centre),
        np.ascontiguousarray(np.stack([detector.u, detector.v, detector.w], axis=1)),
        np.ascontiguousarray(detector.radiation_lengths),
        np.ascontiguousarray(detector.mass_thickness),
        np.ascontiguousarray(detector.measures_v),
        np.ascontiguousarray(detector.unit),
        detector.side.astype(np.int32),
        np.ascontiguousarray(field_map.r),
        np.ascontiguousarray(field_map.z),
        np.ascontiguousarray(field_map.table * BENDING_PER_TESLA),
        loss.table,
        loss.first,
        loss.step,
        MUON_MASS,
    )
