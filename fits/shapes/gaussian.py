"""Gaussian of relative width w around s m_ref. For quick looks: blind to the FSR tail (+18e-5 at the J/psi)."""

import numpy as np
from scipy.special import ndtr

from musclecal.binning import Binning
from musclecal.fits.shapes.cumulative import STANDARD
from musclecal.fits.shapes.model import SignalModel, on_axis, standard_table

__all__ = ["gaussian"]


def gaussian(binning: Binning, n_bin: int) -> SignalModel:
    """Model of ``n_bin`` bins."""
    t = np.linspace(-10.0, 10.0, 401)
    table = standard_table(ndtr(t), np.exp(-0.5 * t * t) / np.sqrt(2.0 * np.pi))
    return on_axis("gaussian", STANDARD, binning, t[0], t[1] - t[0], table, np.zeros(n_bin, dtype=np.int64))
