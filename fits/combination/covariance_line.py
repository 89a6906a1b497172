r"""Combinations along a line of covariances :math:`V(t) = V_0 + t D`, all points for one decomposition.

Whitened at an anchor a where V is positive definite, :math:`F V(a) F^T = 1`, the direction is a symmetric matrix with
eigenvectors E and eigenvalues k, and every point is diagonal:

.. math:: V(t)^{-1} = F^T E\, \mathrm{diag}\frac{1}{1 + (t - a) k}\, E^T F .

Few k differ from zero where few correlations move: this is the low-rank update of the inverse. V(t) is positive
definite exactly where all 1 + (t - a) k are positive, which also gives the range of t in which a combination exists.
"""

from dataclasses import dataclass

import numpy as np

from musclecal.fits.combination.best_linear import whitening
from musclecal.records import Floats

__all__ = ["CovarianceLine", "LinePoints", "covariance_line"]

_ROUNDING = 1e-12


@dataclass(frozen=True)
class LinePoints:
    """At points of a line: values (n_point, m), covariance (n_point, m, m), chi2 (n_point,); NaN if there is none."""

    values: Floats
    covariance: Floats
    chi2: Floats

    @property
    def errors(self) -> Floats:
        """(n_point, m)."""
        return np.sqrt(np.diagonal(self.covariance, axis1=1, axis2=2))


@dataclass(frozen=True)
class CovarianceLine:
    """``anchor`` t, ``slopes`` k (n,), ``whitened`` E^T F (n, n)."""

    anchor: float
    slopes: Floats
    whitened: Floats

    @property
    def allowed(self) -> tuple[float, float]:
        """Lowest and highest t with a positive definite covariance, -inf and inf where nothing limits it."""
        k = self.slopes
        flat = _ROUNDING * max(float(np.max(np.abs(k))), 1.0)
        low = self.anchor - 1.0 / k[-1] if k[-1] > flat else -np.inf
        high = self.anchor - 1.0 / k[0] if k[0] < -flat else np.inf
        return float(low), float(high)

    def points(self, values: Floats, design: Floats, t: Floats) -> LinePoints:
        """Combinations of ``values`` (n,) with ``design`` (n, m) at ``t`` (n_point,)."""
        size = 1.0 + np.multiply.outer(t - self.anchor, self.slopes)
        good = np.all(size > _ROUNDING, axis=1)
        weight = 1.0 / np.where(good[:, None], size, np.nan)
        # About the combination at the anchor, so that small changes are not differences of large numbers.
        a, b = self.whitened @ design, self.whitened @ values
        start = np.linalg.lstsq(a, b, rcond=None)[0]
        rest = b - a @ start
        n_point, m = len(t), a.shape[1]
        normal = np.einsum("pi,ia,ib->pab", weight, a, a) if m > 1 else (weight @ a**2)[:, :, None]
        covariance = np.full((n_point, m, m), np.nan)
        covariance[good] = np.linalg.inv(normal[good])
        change = np.einsum("pab,pb->pa", covariance, weight @ (a * rest[:, None]))
        residual = rest - change @ a.T
        return LinePoints(start + change, covariance, np.sum(weight * residual**2, axis=1))


def covariance_line(start: Floats, direction: Floats, anchors: tuple[float, ...]) -> CovarianceLine | None:
    """``start`` + t ``direction``, from the first of ``anchors`` that is positive definite; None if none is."""
    for anchor in anchors:
        try:
            white = whitening(start + anchor * direction)
        except np.linalg.LinAlgError:
            continue
        slopes, vectors = np.linalg.eigh(white @ direction @ white.T)
        return CovarianceLine(anchor, slopes, vectors.T @ white)
    return None
