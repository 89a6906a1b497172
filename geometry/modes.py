r"""What is known of modules before any track: independent widths, and the ways in which structures move as a whole.

Independent priors alone hold a coherent shift of n modules to width/sqrt(n): far tighter than what is known of a layer.
So the prior of the parameters p is that of p = x + S^T a, x independent, and a the amplitudes of explicit modes.

A mode of position is a displacement d(x) of what stands at x; a sensor is shifted by d.u along u (pixels d.v along v,
by option d.w along w, and turned about w by the antisymmetric part of grad d). Modes are named as in the alignment
literature (the nine of D. N. Brown et al. for BaBar, dr, r dphi and dz against r, phi and z; CMS, JINST 9 (2014)
P06009):

    radial           dr = c r               curl       r dphi = c r^2          telescope    dz = c r
    bowing           dr = c (Z^2 - z^2)     twist      r dphi = c r z          z expansion  dz = c z
    elliptical       dr = c r cos 2 phi     sagitta    r dphi = c r cos phi    skew         dz = c r cos phi

those with cos also with sin; and for each layer its rotation, its translations along x and y, and along v of pixels.
Each mode is scaled so that its largest displacement (change of field, of material) is 1: a width is a largest
displacement.

Not for: which modes tracks do not see (`musclecal.geometry.modules`).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from musclecal.errors import InputError
from musclecal.records import PARAMETER_TYPES, Floats

__all__ = [
    "ModeWidths", "Modes", "Widths", "independent_widths", "no_modes", "parameter_kinds", "structure_modes",
    "sub_detectors",
]  # fmt: skip

KIND = {name: number for number, name in enumerate(PARAMETER_TYPES)}
"""Numbers of the types of parameters."""

_DERIVATIVE_STEP = 1e-3
"""cm, of the rotation of a sensor in a displacement field: these are smooth over metres."""

_Displacement = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Widths:
    """Prior widths of independent parameters: cm, rad, and relative for field and material.

    inf: nothing is known. 0: the parameter is known, and is not fitted.
    """

    pixel_u: float = 0.003
    pixel_v: float = 0.005
    strip_u: float = 0.005
    field: float = 5e-4
    material: float = 0.1
    w: float = 0.01
    gamma: float = 5e-4


@dataclass(frozen=True)
class ModeWidths:
    """Prior widths of amplitudes: largest displacement in cm, relative for field and material; 0 leaves modes out.

    ``field`` is of the field as a whole, ``field_shape`` of each of its 11 shapes, together up to 1.7e-3: the field of
    a tracker is mapped to some 1e-3 before it is installed (for CMS arXiv:1110.0607). ``material`` is of matter as a
    whole and of sub-detectors.
    """

    layer: float = 0.01
    layer_v: float = 0.01
    detector: float = 0.03
    sub_detector: float = 0.01
    field: float = 2e-3
    field_shape: float = 5e-4
    material: float = 0.05
    layer_material: float = 0.05


@dataclass(frozen=True)
class Modes:
    """Coherent changes of many parameters.

    Attributes
    ----------
    names : (n_mode,).
    vectors : (n_mode, n_units P) sparse, the parameters at amplitude 1.
    widths : (n_mode,) of the amplitudes.
    """

    names: tuple[str, ...]
    vectors: csr_array
    widths: Floats

    def dense(self, n_slots: int) -> Floats:
        """(n_mode, n_units, P)."""
        return np.asarray(self.vectors.toarray()).reshape(
            len(self.names), self.vectors.shape[1] // n_slots, n_slots
        )

    def only(self, names: Sequence[str]) -> "Modes":
        """Some of them, in the order of ``names``."""
        missing = sorted(set(names) - set(self.names))
        if missing:
            raise InputError(f"no mode {missing[0]!r}; there are {', '.join(self.names)}")
        which = [self.names.index(name) for name in names]
        return Modes(tuple(names), self.vectors[which], self.widths[which])


def no_modes(n_units: int, n_slots: int) -> Modes:
    """No coherent change at all."""
    return Modes((), csr_array((0, n_units * n_slots)), np.zeros(0))


def parameter_kinds(
    unit: NDArray[np.int32], side: NDArray[np.int8], measures_v: NDArray[np.bool_], n_slots: int
) -> NDArray[np.int8]:
    """(n_units, P) what each slot is, numbers in `PARAMETER_TYPES`; the arguments (n,) are of sensors.

    Raises
    ------
    InputError : units without a first sensor, or other than 4 or 6 slots.
    """
    if n_slots not in (4, 6):
        raise InputError(f"{n_slots} parameters of a unit: there are 4, or with w and gamma 6")
    kinds = np.zeros((int(unit.max()) + 1, n_slots), dtype=np.int8)
    kinds[unit[side == 0], 0] = KIND["u"]
    kinds[unit[(side == 0) & measures_v], 1] = KIND["v"]
    kinds[unit[side == 1], 1] = KIND["u_stereo"]
    for slot, name in enumerate(("field", "material", "w", "gamma")[: n_slots - 2], start=2):
        kinds[:, slot] = KIND[name]
    if np.any(kinds[:, 0] == 0):
        raise InputError(f"unit {np.flatnonzero(kinds[:, 0] == 0)[0]} has no sensor of side 0")
    return kinds


def independent_widths(kinds: NDArray[np.int8], widths: Widths | None = None) -> Floats:
    """(n_units, P) prior widths of the parameters ``kinds`` (n_units, P); 0 in slots that are not in use.

    Raises
    ------
    InputError : a width that is negative or no number.
    """
    widths = Widths() if widths is None else widths
    for name, width in vars(widths).items():
        if not width >= 0.0:
            raise InputError(f"prior width of {name}: {width} is not one (0 or more, inf for none)")
    pixel = (kinds == KIND["v"]).any(axis=1)
    of_type = {"v": widths.pixel_v, "u_stereo": widths.strip_u, "field": widths.field,
               "material": widths.material, "w": widths.w, "gamma": widths.gamma}  # fmt: skip
    out = np.zeros(kinds.shape)
    out[:, 0] = np.where(pixel, widths.pixel_u, widths.strip_u)
    for name, width in of_type.items():
        out[kinds == KIND[name]] = width
    return out


def sub_detectors(layer_names: Sequence[str]) -> tuple[str, ...]:
    """(n_layer,) the letters that a layer's name begins with, and its side: PXB1 -> PXB, TID-2 ring 1 -> TID-."""
    found = [re.match(r"[^\W\d_]+[+-]?", name) for name in layer_names]
    return tuple(match.group() if match else name for match, name in zip(found, layer_names, strict=True))


def structure_modes(
    centre: Floats,
    axes: Floats,
    unit: NDArray[np.int32],
    side: NDArray[np.int8],
    measures_v: NDArray[np.bool_],
    layer: NDArray[np.int32],
    layer_names: Sequence[str],
    *,
    n_slots: int = 4,
    widths: ModeWidths | None = None,
    groups: Sequence[str] | None = None,
) -> Modes:
    """The structure modes of a detector of n sensors.

    Parameters
    ----------
    centre : (n, 3) cm. axes : (n, 3, 3) unit vectors u, v, w of each sensor.
    unit, side, measures_v, layer : (n,) as in `Detector`. layer_names : (n_layer,).
    groups : (n_layer,) sub-detector of each layer; by default as `sub_detectors` says.

    Modes that change nothing (a radial expansion of a barrel without slots for w) are left out.
    """
    widths = ModeWidths() if widths is None else widths
    for name, width in vars(widths).items():
        if not 0.0 <= width < np.inf:
            raise InputError(f"prior width of modes, {name}: {width} is not one (0 or more, and finite)")
    groups = sub_detectors(layer_names) if groups is None else groups
    group_of = np.asarray(groups)[layer]
    sensors = _Sensors(centre, axes, unit, side, measures_v, n_slots)
    everywhere = np.ones(len(layer), dtype=np.bool_)
    several = sorted(set(groups)) if len(set(groups)) > 1 else []
    made: list[tuple[str, Floats, float]] = []

    def add(name: str, vector: Floats, width: float) -> None:
        if width > 0.0 and np.any(vector):
            made.append((name, vector, width))

    for number, name in enumerate(layer_names):
        here = layer == number
        for what, displacement in _layer_displacements():
            add(f"{what} {name}", sensors.moved(displacement, here), widths.layer)
        if np.any(measures_v & here):
            add(f"v shift {name}", sensors.slot(1, np.ones(len(layer)), here & measures_v), widths.layer_v)
        add(f"material {name}", sensors.slot(3, np.ones(len(layer)), here), widths.layer_material)
    for group in several:
        for what, displacement in _weak_displacements(centre[group_of == group]):
            add(f"{what} {group}", sensors.moved(displacement, group_of == group), widths.sub_detector)
        add(f"material {group}", sensors.slot(3, np.ones(len(layer)), group_of == group), widths.material)
    for what, displacement in _weak_displacements(centre):
        add(what, sensors.moved(displacement, everywhere), widths.detector)
    for what, change in _field_changes(centre):
        width = widths.field if what == "field" else widths.field_shape
        add(what, sensors.slot(2, change, everywhere), width)
    add("material", sensors.slot(3, np.ones(len(layer)), everywhere), widths.material)
    if not made:
        return no_modes(int(unit.max()) + 1, n_slots)
    names, vectors, width_of = zip(*made, strict=True)
    return Modes(names, csr_array(np.stack(vectors)), np.array(width_of))


@dataclass(frozen=True)
class _Sensors:
    """From what happens at the places of sensors to vectors (n_units P,) of parameters."""

    centre: Floats
    axes: Floats
    unit: NDArray[np.int32]
    side: NDArray[np.int8]
    measures_v: NDArray[np.bool_]
    n_slots: int

    def moved(self, displacement: _Displacement, here: NDArray[np.bool_]) -> Floats:
        """Parameters of the sensors ``here`` in a displacement field, its largest displacement among them 1 cm."""
        d = displacement(self.centre)
        largest = np.linalg.norm(d[here], axis=1).max()
        out = np.zeros((int(self.unit.max()) + 1, self.n_slots))
        if not largest > 0.0:
            return out.ravel()
        along = np.einsum("ni,nki->nk", d, self.axes) / largest
        first, second, pixels = here & (self.side == 0), here & (self.side == 1), here & self.measures_v
        out[self.unit[first], 0] = along[first, 0]
        out[self.unit[pixels], 1] = along[pixels, 1]
        out[self.unit[second], 1] = along[second, 0]
        if self.n_slots == 6:
            out[self.unit[first], 4] = along[first, 2]
            out[self.unit[first], 5] = self._turned(displacement)[first] / largest
        out[np.abs(out) < 1e-14] = 0.0
        return out.ravel()

    def _turned(self, displacement: _Displacement) -> Floats:
        """(n,) rotation about w: half of v.(u.grad) d - u.(v.grad) d."""
        u, v = self.axes[:, 0], self.axes[:, 1]
        h = _DERIVATIVE_STEP
        along_u = displacement(self.centre + h * u) - displacement(self.centre - h * u)
        along_v = displacement(self.centre + h * v) - displacement(self.centre - h * v)
        return np.asarray((np.sum(v * along_u, axis=1) - np.sum(u * along_v, axis=1)) / (4.0 * h))

    def slot(self, slot: int, change: Floats, here: NDArray[np.bool_]) -> Floats:
        """Parameters when the slot of the units ``here`` changes by ``change`` (n,) at their first sensors."""
        out = np.zeros((int(self.unit.max()) + 1, self.n_slots))
        first = here & (self.side == 0)
        out[self.unit[first], slot] = change[first]
        return out.ravel()


@dataclass(frozen=True)
class _Places:
    """Cylindrical coordinates (n,) of places, and the directions (n, 3) of rising r, phi and z."""

    r: Floats
    cos: Floats
    sin: Floats
    z: Floats
    directions: dict[str, Floats]


def _places(x: Floats) -> _Places:
    r = np.hypot(x[:, 0], x[:, 1])
    cos, sin, zero = x[:, 0] / r, x[:, 1] / r, np.zeros(len(x))
    directions = {"r": [cos, sin, zero], "phi": [-sin, cos, zero], "z": [zero, zero, zero + 1.0]}
    return _Places(r, cos, sin, x[:, 2], {name: np.stack(of, axis=1) for name, of in directions.items()})


def _along(direction: str, size: Callable[[_Places], Floats]) -> _Displacement:
    """The displacement by ``size`` cm along r, phi or z."""

    def displacement(x: Floats) -> Floats:
        at = _places(x)
        return np.asarray(size(at)[:, None] * at.directions[direction])

    return displacement


def _layer_displacements() -> list[tuple[str, _Displacement]]:
    return [
        ("rotation", _along("phi", lambda at: at.r)),
        ("x shift", lambda x: np.tile([1.0, 0.0, 0.0], (len(x), 1))),
        ("y shift", lambda x: np.tile([0.0, 1.0, 0.0], (len(x), 1))),
    ]


def _weak_displacements(centre: Floats) -> list[tuple[str, _Displacement]]:
    """The weak modes of what stands at ``centre``: its half-length sets the bowing."""
    z_end = np.abs(centre[:, 2]).max()
    return [
        ("radial", _along("r", lambda at: at.r)),
        ("bowing", _along("r", lambda at: z_end**2 - at.z**2)),
        ("elliptical cos", _along("r", lambda at: at.r * (at.cos**2 - at.sin**2))),
        ("elliptical sin", _along("r", lambda at: at.r * 2.0 * at.sin * at.cos)),
        ("curl", _along("phi", lambda at: at.r**2)),
        ("twist", _along("phi", lambda at: at.r * at.z)),
        ("sagitta cos", _along("phi", lambda at: at.r * at.cos)),
        ("sagitta sin", _along("phi", lambda at: at.r * at.sin)),
        ("telescope", _along("z", lambda at: at.r)),
        ("z expansion", _along("z", lambda at: at.z)),
        ("skew cos", _along("z", lambda at: at.r * at.cos)),
        ("skew sin", _along("z", lambda at: at.r * at.sin)),
    ]


def _power(name: str, n: int) -> str:
    return "" if n == 0 else f" {name}{n if n > 1 else ''}"


def _field_changes(centre: Floats) -> list[tuple[str, Floats]]:
    """Polynomials of dB/B in z and r^2 up to the fourth degree, and a few more; the largest value of each is 1."""
    at = _places(centre)
    changes = [
        ("field" + _power("z", i) + _power("r", 2 * j), at.z**i * at.r ** (2 * j))
        for j in range(3)
        for i in range(5 - 2 * j)
    ]
    changes += [("field r", at.r), ("field cos", at.cos), ("field sin", at.sin)]
    return [(name, change / max(np.abs(change).max(), 1e-300)) for name, change in changes]
