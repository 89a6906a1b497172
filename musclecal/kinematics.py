r"""Mass of a muon pair and how it depends on the momenta. Scalar kernels, called by the loops of other modules.

For muons of transverse momenta :math:`p_{T\pm}` and momenta :math:`p_\pm = p_{T\pm}\cosh\eta_\pm`,

.. math:: m^2 = 2\mu^2 + 2\,(E_+E_- - \vec p_+\cdot\vec p_-), \qquad E_\pm^2 = p_\pm^2 + \mu^2 .
"""

import math

import numpy as np
from numpy.typing import NDArray

from musclecal.compiled import innermost, kernel
from musclecal.constants import MUON_MASS
from musclecal.vector_math import expm1

__all__ = ["from_cartesian", "mass_of_opening", "pair_mass", "pair_masses", "pair_terms"]


@innermost
def _half_sine_squared(angle: float) -> float:
    """sin^2(angle/2) to rounding for any number of turns, without a branch: the series of the sine up to pi/2."""
    y = 0.5 * angle - math.pi * np.rint(angle * (0.5 / math.pi))
    z = y * y
    sine = y * (1.0 + z * (-1 / 6 + z * (1 / 120 + z * (-1 / 5040 + z * (1 / 362880 + z * (-1 / 39916800 + z * (
        1 / 6227020800 + z * (-1 / 1307674368000 + z * (1 / 355687428096000 - z / 121645100408832000))
    )))))))  # fmt: skip
    return sine * sine


@innermost
def pair_terms(
    pt1: float, eta1: float, phi1: float, pt2: float, eta2: float, phi2: float, mu: float
) -> tuple[float, float, float]:
    """m^2 (GeV^2) of two particles of mass ``mu`` (GeV), and f1, f2; abs(eta) < 15. Without a branch.

    f1 = d ln m^2/d ln p1 at fixed angles = 1 - 2 mu^2 (1 + E2/E1)/m^2, and 1 <-> 2 (physics.md section 2): 0.9953 for
    equal energies at the J/psi, 1 - 5e-6 at the Z. m^2 as in `mass_of_opening`; with D = e^(eta2 - eta1) - 1,
    2 (cosh(eta2 - eta1) - 1) = D^2/(1 + D). Divisions are most of the time: one for two inverses.
    """
    e1, d = 1.0 + expm1(eta1), expm1(eta2 - eta1)
    e2 = e1 * (1.0 + d)
    inverse = 1.0 / (e1 * e2)
    p1 = 0.5 * pt1 * (e1 + inverse * e2)
    p2 = 0.5 * pt2 * (e2 + inverse * e1)
    square1, square2, mu2 = p1 * p1 + mu * mu, p2 * p2 + mu * mu, mu * mu
    e1e2 = math.sqrt(square1 * square2)
    total = e1e2 + p1 * p2
    inverse_2 = 1.0 / (e1e2 * total)
    slow = mu2 * (p1 * p1 + square2) * (inverse_2 * e1e2)
    m2 = 2.0 * (mu2 + slow) + pt1 * pt2 * (
        d * d * (inverse * e1 * e1) + 4.0 * _half_sine_squared(phi1 - phi2)
    )
    share, slope = 2.0 * mu2 / m2, inverse_2 * total
    return m2, 1.0 - share * (1.0 + square2 * slope), 1.0 - share * (1.0 + square1 * slope)


@kernel
def mass_of_opening(pt1: float, cosh1: float, pt2: float, cosh2: float, opening: float, mu: float) -> float:
    """Mass in GeV of two particles of mass ``mu`` (GeV), ``opening`` = cosh(d eta) - cos(d phi).

    Written as m^2 = 2 mu^2 + 2 (E1 E2 - p1 p2) + 2 pT1 pT2 [cosh(d eta) - cos(d phi)], with
    E1 E2 - p1 p2 = mu^2 (p1^2 + p2^2 + mu^2)/(E1 E2 + p1 p2): no difference of large numbers.
    """
    p1 = pt1 * cosh1
    p2 = pt2 * cosh2
    e1e2 = math.sqrt((p1 * p1 + mu * mu) * (p2 * p2 + mu * mu))
    slow = mu * mu * (p1 * p1 + p2 * p2 + mu * mu) / (e1e2 + p1 * p2)
    return math.sqrt(2.0 * (mu * mu + slow + pt1 * pt2 * opening))


@kernel
def pair_mass(pt1: float, eta1: float, phi1: float, pt2: float, eta2: float, phi2: float, mu: float) -> float:
    """Mass in GeV of two particles of mass ``mu`` (GeV)."""
    return math.sqrt(pair_terms(pt1, eta1, phi1, pt2, eta2, phi2, mu)[0])


@kernel
def _pair_masses(
    pt1: NDArray[np.float64],
    eta1: NDArray[np.float64],
    phi1: NDArray[np.float64],
    pt2: NDArray[np.float64],
    eta2: NDArray[np.float64],
    phi2: NDArray[np.float64],
    mu: float,
) -> NDArray[np.float64]:
    mass = np.empty(pt1.size)
    for n in range(pt1.size):
        mass[n] = pair_mass(pt1[n], eta1[n], phi1[n], pt2[n], eta2[n], phi2[n], mu)
    return mass


def pair_masses(
    pt1: NDArray[np.float64],
    eta1: NDArray[np.float64],
    phi1: NDArray[np.float64],
    pt2: NDArray[np.float64],
    eta2: NDArray[np.float64],
    phi2: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Masses in GeV of muon pairs. Arrays (n,), pT in GeV, phi in rad."""
    p, a, b, q, c, d = (np.ascontiguousarray(x, dtype=np.float64) for x in (pt1, eta1, phi1, pt2, eta2, phi2))
    return _pair_masses(p, a, b, q, c, d, MUON_MASS)


def from_cartesian(
    px: NDArray[np.float64], py: NDArray[np.float64], pz: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(pt, eta, phi) of momenta (px, py, pz): pt in the unit given, eta = asinh(pz/pt), phi in (-pi, pi]."""
    pt = np.hypot(px, py)
    with np.errstate(divide="ignore", invalid="ignore"):
        eta = np.arcsinh(pz / pt)
    return pt, eta, np.arctan2(py, px)
