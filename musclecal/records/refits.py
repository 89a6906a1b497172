"""Tracks and pairs as fitted again from their hits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musclecal.records.arrays import Floats, Ints

__all__ = ["MassConstraint", "PairRefits", "Refits"]


@dataclass(frozen=True)
class Refits:
    """Tracks at the point that is closest to the beam line.

    Attributes
    ----------
    local : (n, 5) q/p (1/GeV), lambda, phi, d (cm, to the left of the track), z (cm).
    covariance : (n, 5, 5).
    chi2 : (n,). ndf : (n,) measured coordinates less 5.
    status : (n,) 0, or why there is no fit (`musclecal.geometry.refit_kernels`).
    rejected : (n,) coordinates that were taken out.
    taken_out : (n, n_max) which: 1 u, 2 v, 3 both of a hit.
    """

    local: Floats
    covariance: Floats
    chi2: Floats
    ndf: Ints
    status: NDArray[np.int8]
    rejected: NDArray[np.int8]
    taken_out: NDArray[np.int8]


@dataclass(frozen=True)
class PairRefits:
    """Pairs with a common vertex, fitted without their mass.

    Attributes
    ----------
    local : (n, 9) q/p, lambda, phi of mu+, of mu-, and the vertex x, y, z (cm).
    covariance : (n, 9, 9).
    mass, mass_sigma : (n,) GeV.
    chi2, ndf, status, rejected : as in `Refits`; ndf is measured coordinates less 9.
    """

    local: Floats
    covariance: Floats
    mass: Floats
    mass_sigma: Floats
    chi2: Floats
    ndf: Ints
    status: NDArray[np.int8]
    rejected: NDArray[np.int8]


@dataclass(frozen=True)
class MassConstraint:
    """The mass as a measurement of a pair: ln m = ln target + growth[0] s + growth[1] s^2 with the error sigma/target.

    s = sigma_m/m is the resolution of the pair's mass, fitted without constraint.

    Attributes
    ----------
    target : GeV, with which a simulation in ``window`` wants no change of the field: not the mass of the resonance.
    sigma : GeV, width of the generator mass after radiation, as ``robust`` sees it: not that of the resonance.
    window : (low, high) GeV, of the mass fitted without constraint.
    robust : the score of a pair that is further from its target than so many standard deviations, of sigma_m and sigma,
        does not grow any more (Huber); inf: always.
    growth : of the target with the resolution (`musclecal.geometry.mass_target`).
    error : statistical, of ln target in the middle of the pairs; 0 of one that was given. It is common to all pairs,
        and not in the errors of the global fit.
    """

    target: float
    sigma: float
    window: tuple[float, float]
    robust: float = float("inf")
    growth: tuple[float, float] = (0.0, 0.0)
    error: float = 0.0

    @property
    def definition(self) -> str:
        """In words, all that decides what a pair adds to sums: the same for sums that may be merged."""
        return (
            f"target {self.target!r} sigma {self.sigma!r} GeV, window {self.window[0]!r} to {self.window[1]!r}, "
            f"robust {self.robust!r}, growth {self.growth[0]!r} {self.growth[1]!r}"
        )
