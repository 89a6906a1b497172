"""Multiple scattering and energy loss of muons."""

import math

from musclecal.compiled import kernel
from musclecal.records import Floats

__all__ = ["highland_variance", "loss_at"]


@kernel
def highland_variance(p: float, energy: float, thickness: float) -> float:
    """theta0^2 (rad^2) of a projected angle behind ``thickness`` radiation lengths, p and energy in GeV.

    theta0 = 13.6 MeV/(beta p) sqrt(x) (1 + 0.038 ln x) (PDG 2024, Passage of particles through matter, eq. 34.16).
    """
    if not thickness > 0.0:
        return 0.0
    theta = 0.0136 * energy / (p * p) * (1.0 + 0.038 * math.log(thickness))
    return theta * theta * thickness


@kernel
def loss_at(log_p: float, table: Floats, first: float, step: float) -> tuple[float, float]:
    """Cubic interpolation of eps and d eps/d ln p; the table is (n, 2) of both, beyond its ends a straight line."""
    x = (log_p - first) / step
    i = min(max(int(math.floor(x)), 0), table.shape[0] - 2)
    t = x - i
    if t < 0.0:
        return table[0, 0] + t * step * table[0, 1], table[0, 1]
    if t > 1.0:
        last = table.shape[0] - 1
        return table[last, 0] + (t - 1.0) * step * table[last, 1], table[last, 1]
    y0, y1, s0, s1 = table[i, 0], table[i + 1, 0], table[i, 1] * step, table[i + 1, 1] * step
    d = y1 - y0
    c, b = 3.0 * d - 2.0 * s0 - s1, s0 + s1 - 2.0 * d
    return y0 + t * (s0 + t * (c + t * b)), (s0 + t * (2.0 * c + 3.0 * t * b)) / step
