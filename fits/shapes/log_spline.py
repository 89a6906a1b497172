"""ln of a density as a smooth spline, from counts on a fine axis: P-splines with Poisson regression.

For tables of shapes from simulation, where a rough shape would make what uses it rough. The penalty is on third
differences (Eilers and Marx, Stat. Sci. 11 (1996) 89), so its limit is a Gaussian of any place and
width.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import BSpline

from musclecal.records import Floats

__all__ = ["SplineAxis"]


@dataclass(frozen=True)
class SplineAxis:
    """Equal intervals of an axis, and cubic B-splines on it.

    Attributes
    ----------
    low, high : ends. n_node : ends of intervals, both ends included. knot_distance : between the splines' knots.
    """

    low: float
    high: float
    n_node: int
    knot_distance: float

    @cached_property
    def nodes(self) -> Floats:
        """(n_node,) ends of the intervals."""
        return np.linspace(self.low, self.high, self.n_node)

    @cached_property
    def spacing(self) -> float:
        """Length of an interval."""
        return float(self.nodes[1] - self.nodes[0])

    @cached_property
    def middles(self) -> Floats:
        """(n_node - 1,)."""
        return np.asarray(0.5 * (self.nodes[1:] + self.nodes[:-1]))

    @cached_property
    def _knots(self) -> Floats:
        n = round(np.ceil((self.high - self.low) / self.knot_distance - 1e-6))
        return np.asarray(self.low + self.knot_distance * np.arange(-3, n + 4))

    def _inside(self, x: Floats) -> Floats:
        return np.clip(x, self._knots[3], self._knots[-4] - 1e-9)

    def basis(self, x: Floats) -> Floats:
        """(n, n_coefficient) the splines at ``x``."""
        return np.asarray(BSpline.design_matrix(self._inside(x), self._knots, 3).toarray())

    def slope(self, x: Floats, coefficients: Floats) -> Floats:
        """(n,) derivative at ``x`` of the sum of splines."""
        return np.asarray(BSpline(self._knots, coefficients, 3).derivative()(self._inside(x)))

    @cached_property
    def _fixed(self) -> tuple[Floats, list[Floats]]:
        """The splines in the middle of the intervals and at their two Gauss points."""
        side = self.spacing / np.sqrt(12.0)
        return self.basis(self.middles), [self.basis(self.middles + s * side) for s in (-1.0, 1.0)]

    def log_density(
        self,
        found: Floats,
        exposure: Floats,
        strength: float,
        start: Floats | None = None,
        iterations: int = 30,
    ) -> Floats:
        """(n_coefficient,) of ln g, the best for ``found`` events per interval.

        The mean of g over an interval is that at two Gauss points: with its value in the middle a Gaussian came out
        too wide.

        Parameters
        ----------
        exposure : (n_node - 1,) length of the interval times the events that were looked at.
        strength : of the penalty.
        start : coefficients to begin with. iterations : at most; a coefficient moves by at most 1 in each, so that the
            far, empty tail of a narrow shape takes more than 30 from the default start.
        """
        basis, gauss = self._fixed
        third = np.diff(np.eye(basis.shape[1]), 3, axis=0)
        penalty = strength * third.T @ third + 1e-9 * np.eye(basis.shape[1])
        if start is None:
            seen = exposure > 0.0
            first = np.log((found[seen] + 0.5) / (exposure[seen] + 1.0))
            first = np.interp(self.middles, self.middles[seen], first)
            start = np.asarray(np.linalg.lstsq(basis, first, rcond=None)[0], dtype=np.float64)
        coefficients: Floats = start
        for _ in range(iterations):
            parts = [0.5 * exposure * np.exp(np.clip(point @ coefficients, -40.0, 10.0)) for point in gauss]
            expected = np.maximum(parts[0] + parts[1], 1e-300)
            slope = parts[0][:, None] * gauss[0] + parts[1][:, None] * gauss[1]
            gradient = slope.T @ (found / expected - 1.0) - penalty @ coefficients
            step = np.linalg.solve(slope.T @ (slope / expected[:, None]) + penalty, gradient)
            coefficients = coefficients + np.clip(step, -1.0, 1.0)
            if np.max(np.abs(step)) < 1e-9:
                break
        return np.asarray(coefficients)
