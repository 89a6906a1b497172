r"""The A, e, M model of the curvature scale: exact, inverse, linear. Every sign of musclecal lives here.

With :math:`k = 1/p_T > 0` in 1/GeV and charge :math:`q = \pm 1` (physics.md section 1):

.. math:: k_\mathrm{corr} = (1 + A - e\,k)\,k + q\,M ,
   \qquad \frac{\delta k}{k} = A - e\,k + q\,\frac{M}{k} .

A > 0 lowers pT; e > 0 (GeV) raises pT by about e; M > 0 (1/GeV) lowers pT of mu+ and raises pT of mu-.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from musclecal.compiled import kernel

__all__ = [
    "biased_curvature",
    "corrected_curvature",
    "correction_gradient",
    "correction_jacobian",
    "relative_correction",
]


@kernel
def corrected_curvature(k: float, charge: float, a: float, e: float, m: float) -> float:
    """The correction itself: measured ``k`` in, corrected curvature out (1/GeV)."""
    return (1.0 + a - e * k) * k + charge * m


@kernel
def biased_curvature(k_true: float, charge: float, a: float, e: float, m: float) -> float:
    """Exact inverse of `corrected_curvature`: the measured k that the correction takes to ``k_true``.

    k_meas = 2 (k - qM) / [(1+A) + sqrt((1+A)^2 - 4 e (k - qM))], without cancellation at e -> 0;
    nan where no such k exists, 4 e (k - qM) > (1+A)^2.
    """
    shifted = k_true - charge * m
    one_a = 1.0 + a
    square = one_a * one_a - 4.0 * e * shifted
    if square < 0.0:
        return math.nan
    return 2.0 * shifted / (one_a + math.sqrt(square))


@kernel
def correction_gradient(k: float, charge: float) -> tuple[float, float, float]:
    """d(dk/k)/d(A, e, M) = (1, -k, q/k) of one muon, ``k`` in 1/GeV."""
    return 1.0, -k, charge / k


def relative_correction(
    pt: ArrayLike, charge: ArrayLike, a: ArrayLike, e: ArrayLike, m: ArrayLike
) -> NDArray[np.float64]:
    """dk/k = A - e/pT + q M pT at transverse momenta ``pt`` in GeV. Arguments broadcast."""
    pt, charge = np.asarray(pt, dtype=np.float64), np.asarray(charge, dtype=np.float64)
    return np.asarray(np.asarray(a) - np.asarray(e) / pt + charge * np.asarray(m) * pt, dtype=np.float64)


def correction_jacobian(pt: ArrayLike, charge: ArrayLike) -> NDArray[np.float64]:
    """d(dk/k)/d(A, e, M) = (1, -1/pT, q pT), shape (..., 3), for ``pt`` in GeV."""
    pt, charge = np.broadcast_arrays(np.asarray(pt, dtype=np.float64), np.asarray(charge, dtype=np.float64))
    return np.stack([np.ones_like(pt), -1.0 / pt, charge * pt], axis=-1)
