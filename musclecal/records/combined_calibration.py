"""A, e, M of several calibrations combined."""

import math
from dataclasses import dataclass

import numpy as np

from musclecal.records.arrays import Floats
from musclecal.records.combination import Combined
from musclecal.records.scale import ScaleWithCovariance

__all__ = ["CalibrationAgainstOthers", "CombinedCalibration"]


@dataclass(frozen=True)
class CalibrationAgainstOthers:
    """One calibration against the combination of all others.

    Attributes
    ----------
    name : of the calibration.
    difference : (3 n_eta,) its A, e, M less those of the others, order A0, e0, M0, A1, ...
    covariance : (3 n_eta, 3 n_eta) of the difference, with what both share taken into account.
    chi2, ndf, p_value : of the difference.
    """

    name: str
    difference: Floats
    covariance: Floats
    chi2: float
    ndf: int
    p_value: float

    @property
    def pulls(self) -> Floats:
        """(3 n_eta,)."""
        return np.asarray(self.difference / np.sqrt(np.diagonal(self.covariance)))


@dataclass(frozen=True)
class CombinedCalibration:
    """The combination of calibrations, with how well they agree.

    Attributes
    ----------
    scale : A, e, M and their covariance as the combination gives them.
    combined : weights, chi2, parts of the covariance by source; inputs are all parameters of the first calibration,
        then of the next.
    against_others : each calibration against the others.
    """

    scale: ScaleWithCovariance
    combined: Combined
    against_others: tuple[CalibrationAgainstOthers, ...]

    @property
    def s(self) -> float:
        """sqrt(chi2/ndf), but not below 1: by which uncertainties are scaled for calibrations that do not agree."""
        return math.sqrt(max(1.0, self.combined.chi2 / self.combined.ndf))

    @property
    def scaled_covariance(self) -> Floats:
        """(3 n_eta, 3 n_eta) s^2 times that of ``scale``."""
        return np.asarray(self.s**2 * self.scale.covariance)
