"""Sums of the global fit of module parameters, and what the fit gives.

Slots of a unit: 0 shift along u of its first sensor, 1 shift along v (pixels) or along u of its second sensor (stereo),
2 dB/B, 3 relative material, and by option 4 shift along w, 5 rotation about w.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musclecal.errors import InputError
from musclecal.records.arrays import Floats, Ints

__all__ = ["PARAMETER_TYPES", "PARAMETER_UNITS", "ModuleCorrections", "ModuleSums"]

PARAMETER_TYPES = ("unused", "u", "v", "u_stereo", "field", "material", "w", "gamma")
"""Names of what a slot can be, by the number that stands in ``kinds``."""

PARAMETER_UNITS = {
    "u": "cm", "v": "cm", "u_stereo": "cm", "field": "1", "material": "1", "w": "cm", "gamma": "rad",
}  # fmt: skip


@dataclass(frozen=True)
class ModuleSums:
    """Normal equations of the module parameters, summed over pairs of tracks; the local parameters are eliminated.

    chi2(p) = chi2 - 2 g^T (p - values) + (p - values)^T C (p - values), with C symmetric, in blocks of units.

    Attributes
    ----------
    first : (n_units + 1,) where the blocks of a unit's row begin.
    columns : (n_block,) int32, unit of the column, rising in a row, never less than the row.
    blocks : (n_block, P, P) of C, its upper triangle; those on the diagonal are complete.
    vector : (n_units, P) g.
    uses : (n_units,) how many tracks have met the unit.
    n_pairs, chi2, ndf : of the sample; of a weighted one chi2 and ndf are weighted.
    values : (n_units, P) parameters at which the tracks were fitted.
    detector : fingerprint of the detector and its field.
    n_read : pairs that there were, used or not.
    n_events : events that there were, with a pair or without.
    cuts, mass : in words, how pairs were chosen, and their masses measured; "" where the mass was left free.
    """

    first: Ints
    columns: NDArray[np.int32]
    blocks: Floats
    vector: Floats
    uses: Ints
    n_pairs: int
    chi2: float
    ndf: float
    values: Floats
    detector: str
    n_read: int = 0
    cuts: str = ""
    mass: str = ""
    n_events: int = 0

    def __post_init__(self) -> None:
        n_units, n_slots = self.vector.shape
        expected = {
            "first": (n_units + 1,),
            "columns": (self.blocks.shape[0],),
            "blocks": (self.blocks.shape[0], n_slots, n_slots),
            "uses": (n_units,),
            "values": (n_units, n_slots),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise InputError(
                    f"sums of modules: {name} has the shape {getattr(self, name).shape}, not {shape}"
                )

    @property
    def n_units(self) -> int:
        """Number of mechanical units."""
        return len(self.uses)

    @property
    def n_slots(self) -> int:
        """Parameters of a unit, 4 or 6."""
        return self.vector.shape[1]


@dataclass(frozen=True)
class ModuleCorrections:
    """What the global fit says that the modules, the field and the material are, relative to the nominal ones.

    Attributes
    ----------
    values, sigma : (n_units, P) in cm, rad or relative; 0 in slots that are not in use. A unit without uses has the
        value that its neighbours give it through the modes, else 0.
    kinds : (n_units, P) int8, numbers in `PARAMETER_TYPES`.
    uses : (n_units,) how many tracks have met the unit.
    sigma_is : "exact", or "lower bound": the error if all other units, and modes, were known.
    mode_names : (n_mode,) names of the structure modes.
    amplitudes, amplitude_sigma : (n_mode,) in the unit of the mode; sigma as ``sigma_is`` says.
    chi2, ndf : of the tracks at ``values``, to second order; ndf without the module parameters.
    prior_chi2 : what the values cost in the prior.
    n_pairs : in the sums.
    iterations : of conjugate gradients, 0 of the direct solver.
    residual : what is left of the equations, relative to their right-hand side.
    detector : fingerprint of the detector.
    """

    values: Floats
    sigma: Floats
    kinds: NDArray[np.int8]
    uses: Ints
    sigma_is: str
    mode_names: tuple[str, ...]
    amplitudes: Floats
    amplitude_sigma: Floats
    chi2: float
    ndf: float
    prior_chi2: float
    n_pairs: int
    iterations: int
    residual: float
    detector: str

    @property
    def without_hits(self) -> Ints:
        """Units that no track has met: they keep their prior."""
        return np.flatnonzero(self.uses == 0)
