"""A correction as analyses use it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from musclecal.records.arrays import Floats
from musclecal.records.fits import Smearing
from musclecal.records.scale import ScaleWithCovariance

__all__ = ["CorrectionTables"]


@dataclass(frozen=True)
class CorrectionTables(ScaleWithCovariance):
    """A, e, M with everything that an analysis needs: what every export holds, and every reader gives back.

    Attributes
    ----------
    covariance : (3 n_eta, 3 n_eta) statistical, not scaled.
    s : the closures' factor on the statistical uncertainty; 1 where there was no closure.
    variation_names : (n_var,) stat0, stat1, ..., then those of closures and resonance masses.
    variations : (n_eta, 3, n_var) shifts of A, e, M by one sigma, ready to use: those of ``stat`` contain s.
    pt_range : (low, high) GeV, where the correction is valid: low <= pT < high.
    smearing : of simulated muons, None if there is none.
    residuals : by resonance (n_eta, 4): A, its error, M (1/GeV), its error, of closures after the correction.
    provenance : where the numbers come from.
    """

    s: float
    variation_names: tuple[str, ...]
    variations: Floats
    pt_range: tuple[float, float]
    smearing: Smearing | None
    residuals: Mapping[str, Floats]
    provenance: Mapping[str, str]

    @property
    def n_variations(self) -> int:
        """Number of variations."""
        return len(self.variation_names)

    @property
    def scaled_covariance(self) -> Floats:
        """(3 n_eta, 3 n_eta) of the sum over all variations: statistics times s, closures, masses."""
        rows = self.variations.reshape(3 * self.n_eta, -1)
        return np.asarray(rows @ rows.T)
