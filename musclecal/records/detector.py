"""What tracks go through: sensors in space, and the magnetic field."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musclecal.records.arrays import Floats

__all__ = ["Detector", "FieldMap"]


@dataclass(frozen=True)
class Detector:
    """Flat sensors, one row a sensor. A hit's ``module`` is the number of its row.

    A layer is one surface: a cylinder, or a ring of a disk at one z. A unit is what moves as a whole: the two sensors
    of a stereo module are one. Axes u, v, w are orthonormal and right-handed: w is the normal, away from the beam line
    (barrel) or from z = 0 (disks); u is the precise coordinate, towards rising phi; v is along z (barrel) or along r
    (disks: inwards at z > 0, outwards at z < 0). The second sensor of a stereo module is turned about w.

    Attributes
    ----------
    name : of the detector. field_map : id of the `FieldMap` that it stands in.
    layer_names : (n_layer,) such as "TIB3" or "TID-2 ring 1".
    layer : (n,) of each sensor. unit : (n,) 0 to n_units - 1. side : (n,) 0, or 1 for the second sensor of a unit.
    measures_v : (n,) pixels do, strips do not.
    centre : (n, 3) cm. u, v, w : (n, 3).
    half_u, half_v : (n,) cm, of the sensitive area. sigma_u, sigma_v : (n,) cm; sigma_v is inf where v is not measured.
    radiation_lengths : (n,) thickness at normal incidence, this sensor's share of support and services with it.
    mass_thickness : (n,) g/cm2 of silicon that takes the same energy, at normal incidence.
    """

    name: str
    field_map: str
    layer_names: tuple[str, ...]
    layer: NDArray[np.int32]
    unit: NDArray[np.int32]
    side: NDArray[np.int8]
    measures_v: NDArray[np.bool_]
    centre: Floats
    u: Floats
    v: Floats
    w: Floats
    half_u: Floats
    half_v: Floats
    sigma_u: Floats
    sigma_v: Floats
    radiation_lengths: Floats
    mass_thickness: Floats

    def __len__(self) -> int:
        return len(self.layer)

    @property
    def n_modules(self) -> int:
        """Number of sensors."""
        return len(self.layer)

    @property
    def n_units(self) -> int:
        """Number of mechanical units."""
        return int(self.unit.max()) + 1 if len(self.unit) else 0

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.layer_names)

    @property
    def is_barrel(self) -> NDArray[np.bool_]:
        """(n,) whether the normal points away from the beam line rather than along it."""
        return np.abs(self.w[:, 2]) < 0.5


@dataclass(frozen=True)
class FieldMap:
    """The field along z on a grid in r and z, the only component that bends a helix along z.

    Attributes
    ----------
    id : what a `Detector` calls it.
    r : (n_r,) cm, increasing. z : (n_z,) cm, increasing.
    table : (n_r, n_z) T.
    """

    id: str
    r: Floats
    z: Floats
    table: Floats
