"""Breit-Wigner of the resonance, smeared with a Gaussian of relative width w.

No FSR and no running width: for a resonance wider than the resolution when there is no generator-level information.
"""

import numpy as np

from musclecal.binning import Binning
from musclecal.fits.shapes.cumulative import LINES
from musclecal.fits.shapes.model import SignalModel, on_axis

__all__ = ["breit_wigner"]


def breit_wigner(binning: Binning, n_bin: int, width: float) -> SignalModel:
    """Model of ``n_bin`` bins for a natural ``width`` in GeV."""
    masses = binning.generator_masses
    edges = np.concatenate([masses, [masses[-1] * np.exp(binning.log_step)]]) * np.exp(
        -0.5 * binning.log_step
    )
    content = np.diff(np.arctan(2.0 * (edges - binning.mass_reference) / width))
    table = (content / content.sum())[None, :]
    first = binning.generator_range[0]
    return on_axis("breit-wigner", LINES, binning, first, 0.0, table, np.zeros(n_bin, dtype=np.int64))
