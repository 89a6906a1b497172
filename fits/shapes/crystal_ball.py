r"""Double-sided Crystal Ball of t = (m/(s m_ref) - 1)/w: a Gaussian core with power-law tails, their shape fixed.

.. math:: g(t) \propto e^{-t^2/2}\ (-a_L < t < a_R), \qquad
   e^{-a^2/2}\,\bigl[\tfrac{a}{n}(\tfrac{n}{a} - a + |t|)\bigr]^{-n}\ \text{beyond}

(J. E. Gaiser, SLAC-R-255, appendix F, on both sides). The defaults of the left tail describe FSR at the J/psi.
"""

import numpy as np

from musclecal.binning import Binning
from musclecal.fits.shapes.cumulative import STANDARD
from musclecal.fits.shapes.model import SignalModel, on_axis, standard_table
from musclecal.records import Floats

__all__ = ["crystal_ball", "crystal_ball_density"]


def crystal_ball_density(t: Floats, a_low: float, n_low: float, a_high: float, n_high: float) -> Floats:
    """Density at ``t``, not normalised: 1 at t = 0."""
    density = np.exp(-0.5 * t * t)
    for beyond, a, n in ((t < -a_low, a_low, n_low), (t > a_high, a_high, n_high)):
        distance = np.abs(t[beyond])
        density[beyond] = np.exp(-0.5 * a * a) * (a / n * (n / a - a + distance)) ** -n
    return density


def crystal_ball(
    binning: Binning,
    n_bin: int,
    *,
    a_low: float = 1.6,
    n_low: float = 2.0,
    a_high: float = 2.5,
    n_high: float = 20.0,
) -> SignalModel:
    """Model of ``n_bin`` bins, all with the same tails."""
    t = np.linspace(-40.0, 20.0, 6001)
    density = crystal_ball_density(t, a_low, n_low, a_high, n_high)
    middle = crystal_ball_density(0.5 * (t[1:] + t[:-1]), a_low, n_low, a_high, n_high)
    steps = (t[1] - t[0]) * (density[1:] + 4.0 * middle + density[:-1]) / 6.0
    cdf = np.concatenate([[0.0], np.cumsum(steps)])
    table = standard_table(cdf / cdf[-1], density / cdf[-1])
    return on_axis(
        "crystal-ball", STANDARD, binning, t[0], t[1] - t[0], table, np.zeros(n_bin, dtype=np.int64)
    )
