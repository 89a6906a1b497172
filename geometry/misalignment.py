r"""Where a detector really is: displacements, field and matter to be found again.

Coherent displacements are the weak modes of the alignment literature (e.g. CMS Collaboration, JINST 9 (2014) P06009):
in units of their amplitude at :math:`\rho = r/100\,\mathrm{cm} = 1` and :math:`\zeta = z/100\,\mathrm{cm} = 1`,

- ``radial``: :math:`\Delta r = \rho`
- ``elliptical``: :math:`\Delta r = \rho \cos 2(\varphi - \varphi_0)`
- ``curl``: :math:`r\Delta\varphi = \rho^2`, layers turned: changes q/pT of all tracks
- ``sagitta``: :math:`r\Delta\varphi = \rho^2 \cos(\varphi - \varphi_0)`, :math:`\Delta r = \rho^2 \sin(\varphi -
  \varphi_0)`: changes q/pT with phi
- ``twist``: :math:`r\Delta\varphi = \rho\,\zeta`: changes q/pT with eta
- ``telescope``: :math:`\Delta z = \rho`
- ``skew``: :math:`\Delta z = \rho \cos(\varphi - \varphi_0)`
- ``z_expansion``: :math:`\Delta z = \zeta`

Units are moved, not turned. With four parameters a unit, what moves along the normal is left out.

Not for: what tracks make of it (`musclecal.geometry.simulate`).
"""

import math
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from musclecal.errors import InputError
from musclecal.geometry.trace import GAMMA, B, M, W
from musclecal.records import Detector, Floats, Ints
from musclecal.simulate import stream_of

__all__ = ["MODES", "Misalignment", "misaligned", "mode_parameters", "shift_parameters"]

MODES: Final = ("radial", "elliptical", "curl", "sagitta", "twist", "telescope", "skew", "z_expansion")
"""Coherent displacements."""

_STREAM = 11
_SCALE = 100.0
_FARTHEST_Z, _FARTHEST_R = 280.0, 110.0
_LEAST_MATTER = -0.9


@dataclass(frozen=True)
class Misalignment:
    """Sizes of what is wrong. Lengths in cm, the rest relative; signs and phases are drawn, amplitudes of modes kept.

    Attributes
    ----------
    pixel_u, pixel_v, strip_u, strip_v : random displacement of units along u and v (v of strips is seen by stereo).
    unit_w, unit_gamma : random, along w (cm) and about it (rad), with six parameters a unit.
    layer_shift : random, of whole layers in x, y and z. layer_rotation : about the beam, as a path at their radius.
    radial ... z_expansion : amplitudes of `MODES`.
    field : of dB/B everywhere. field_polynomial : random coefficients of z, z^2, r^2, z r^2 and z^4, with z and r in
        units of 280 and 110 cm. field_unit : random, of each unit.
    matter, matter_layer, matter_unit : of m everywhere, and random of layers and units.
    """

    pixel_u: float = 0.0010
    pixel_v: float = 0.0020
    strip_u: float = 0.0012
    strip_v: float = 0.0020
    unit_w: float = 0.0030
    unit_gamma: float = 2e-4
    layer_shift: float = 0.0003
    layer_rotation: float = 0.0002
    radial: float = 0.0050
    elliptical: float = 0.0030
    curl: float = 0.0020
    sagitta: float = 0.0030
    twist: float = 0.0008
    telescope: float = 0.0050
    skew: float = 0.0030
    z_expansion: float = 0.0050
    field: float = 1e-3
    field_polynomial: float = 5e-4
    field_unit: float = 2e-4
    matter: float = 0.05
    matter_layer: float = 0.05
    matter_unit: float = 0.10

    @classmethod
    def none(cls, **sizes: float) -> "Misalignment":
        """Nothing wrong but ``sizes``.

        Raises
        ------
        InputError : an unknown name.
        """
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(sizes) - known):
            raise InputError(f"misalignment {unknown[0]!r}: one of {', '.join(sorted(known))}")
        return cls(**{name: sizes.get(name, 0.0) for name in known})


def misaligned(
    detector: Detector, seed: int, settings: Misalignment = Misalignment(), n_slots: int = 4
) -> Floats:
    """(n_units, n_slots) true parameters of a detector. Each part has random numbers of its own.

    Raises
    ------
    InputError : ``n_slots`` is neither 4 nor 6.
    """
    if n_slots not in (4, 6):
        raise InputError(f"n_slots: 4 or 6, got {n_slots}")
    first, _ = _sensors_of_units(detector)
    centre = detector.centre[first]
    moved = _moved_units(detector, first, settings, stream_of(seed, _STREAM, 0))
    moved += _moved_layers(detector, first, settings, stream_of(seed, _STREAM, 1))
    drawn = stream_of(seed, _STREAM, 2)
    for mode in MODES:
        sign, phase = drawn.choice([-1.0, 1.0]), drawn.uniform(-math.pi, math.pi)
        moved += sign * getattr(settings, mode) * _displacement(mode, centre, phase)
    values = shift_parameters(detector, moved, n_slots)
    values[:, B] = _field(centre, settings, stream_of(seed, _STREAM, 3))
    values[:, M] = _matter(detector.layer[first], detector.n_layers, settings, stream_of(seed, _STREAM, 4))
    if n_slots == 6:
        rng = stream_of(seed, _STREAM, 5)
        values[:, W] += settings.unit_w * rng.standard_normal(detector.n_units)
        values[:, GAMMA] = settings.unit_gamma * rng.standard_normal(detector.n_units)
    return values


def mode_parameters(detector: Detector, mode: str, phase: float = 0.0, n_slots: int = 4) -> Floats:
    """(n_units, n_slots) parameters of one of `MODES` with an amplitude of 1 cm; ``phase`` is phi_0.

    Raises
    ------
    InputError : an unknown mode.
    """
    if mode not in MODES:
        raise InputError(f"mode {mode!r}: one of {', '.join(MODES)}")
    first, _ = _sensors_of_units(detector)
    return shift_parameters(detector, _displacement(mode, detector.centre[first], phase), n_slots)


def shift_parameters(detector: Detector, moved: Floats, n_slots: int = 4) -> Floats:
    """(n_units, n_slots) parameters of units that were ``moved`` (n_units, 3) cm in space without being turned."""
    first, second = _sensors_of_units(detector)
    values = np.zeros((detector.n_units, n_slots))
    values[:, 0] = np.sum(moved * detector.u[first], axis=1)
    along_v = np.sum(moved * detector.v[first], axis=1)
    along_second = np.sum(moved * detector.u[second], axis=1)
    values[:, 1] = np.where(second >= 0, along_second, np.where(detector.measures_v[first], along_v, 0.0))
    if n_slots == 6:
        values[:, W] = np.sum(moved * detector.w[first], axis=1)
    return values


def _sensors_of_units(detector: Detector) -> tuple[Ints, Ints]:
    """(n_units,) first sensor of each unit, and the second or -1."""
    both = np.full((2, detector.n_units), -1)
    both[detector.side, detector.unit] = np.arange(len(detector))
    return both[0], both[1]


def _displacement(mode: str, centre: Floats, phase: float) -> Floats:
    """(n, 3) cm of ``mode`` at ``centre``, for an amplitude of 1 cm."""
    phi = np.arctan2(centre[:, 1], centre[:, 0])
    rho, zeta = np.hypot(centre[:, 0], centre[:, 1]) / _SCALE, centre[:, 2] / _SCALE
    outwards, around, along = np.zeros_like(rho), np.zeros_like(rho), np.zeros_like(rho)
    if mode == "radial":
        outwards = rho
    elif mode == "elliptical":
        outwards = rho * np.cos(2.0 * (phi - phase))
    elif mode == "curl":
        around = rho**2
    elif mode == "sagitta":
        outwards, around = rho**2 * np.sin(phi - phase), rho**2 * np.cos(phi - phase)
    elif mode == "twist":
        around = rho * zeta
    elif mode == "telescope":
        along = rho
    elif mode == "skew":
        along = rho * np.cos(phi - phase)
    else:
        along = zeta
    c, s = np.cos(phi), np.sin(phi)
    return np.stack([outwards * c - around * s, outwards * s + around * c, along], axis=1)


def _moved_units(d: Detector, first: Ints, settings: Misalignment, rng: Generator) -> Floats:
    pixel = d.measures_v[first]
    size_u = np.where(pixel, settings.pixel_u, settings.strip_u)
    size_v = np.where(pixel, settings.pixel_v, settings.strip_v)
    along_u, along_v = rng.standard_normal((2, d.n_units)) * [size_u, size_v]
    return np.asarray(along_u[:, None] * d.u[first] + along_v[:, None] * d.v[first])


def _moved_layers(d: Detector, first: Ints, settings: Misalignment, rng: Generator) -> Floats:
    shift = settings.layer_shift * rng.standard_normal((d.n_layers, 3))
    turn = settings.layer_rotation * rng.standard_normal(d.n_layers)
    layer, centre = d.layer[first], d.centre[first]
    around = np.stack([-centre[:, 1], centre[:, 0], np.zeros(len(first))], axis=1)
    around /= np.linalg.norm(around, axis=1)[:, None]
    return np.asarray(shift[layer] + turn[layer, None] * around)


def _field(centre: Floats, settings: Misalignment, rng: Generator) -> Floats:
    z, r2 = centre[:, 2] / _FARTHEST_Z, (centre[:, 0] ** 2 + centre[:, 1] ** 2) / _FARTHEST_R**2
    terms = np.stack([z, z**2, r2, z * r2, z**4])
    coefficients = settings.field_polynomial * rng.standard_normal(len(terms))
    noise = settings.field_unit * rng.standard_normal(len(centre))
    return np.asarray(settings.field * rng.choice([-1.0, 1.0]) + coefficients @ terms + noise)


def _matter(layer: NDArray[np.int32], n_layers: int, settings: Misalignment, rng: Generator) -> Floats:
    of_layer = settings.matter_layer * rng.standard_normal(n_layers)
    of_unit = settings.matter_unit * rng.standard_normal(len(layer))
    everywhere = settings.matter * rng.choice([-1.0, 1.0])
    return np.maximum(everywhere + of_layer[layer] + of_unit, _LEAST_MATTER)
