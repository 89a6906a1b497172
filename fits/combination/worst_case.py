"""The extremes of a combination over a box of correlations that move independently.

First the corner that the signs of the derivatives at the nominal point to, or as far towards it as the total stays
positive definite; then one range after the other is scanned with all others where they are, until nothing improves.
An extreme found so is one that no single range can improve; near the end of a positive definite region, errors may
become as small as one likes, and ``position`` shows that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from musclecal.errors import InputError
from musclecal.fits.combination.best_linear import combine
from musclecal.fits.combination.covariance_line import LinePoints, covariance_line
from musclecal.fits.combination.scans import segment
from musclecal.records import Combined, CorrelationRange, Floats, Measurements, WorstCase

__all__ = ["worst_case"]

_QUANTITIES = {
    "lowest value": ("value", -1.0),
    "highest value": ("value", +1.0),
    "smallest error": ("error", -1.0),
    "largest error": ("error", +1.0),
}
_KEPT = 0.95
"""Share of the way to a covariance that is singular."""
_GAIN = 1e-9


@dataclass(frozen=True)
class _Box:
    """Covariances ``base`` (n, n) + sum_k t_k ``directions`` (n_scan, n, n), t in [0, 1], nominal t in ``middle``."""

    at: Combined
    base: Floats
    directions: Floats
    middle: Floats
    names: tuple[str, ...]
    observable: int
    points: Floats

    def covariance(self, t: Floats) -> Floats:
        """(n, n)."""
        return np.asarray(self.base + np.tensordot(t, self.directions, axes=1))

    def gain(self, quantity: str, found: LinePoints) -> Floats:
        """(n_point,) what is to be as large as possible."""
        kind, sign = _QUANTITIES[quantity]
        return sign * (found.values if kind == "value" else found.errors)[:, self.observable]

    def slopes(self, quantity: str) -> Floats:
        """(n_scan,) derivatives of it at the nominal correlations."""
        kind, sign = _QUANTITIES[quantity]
        weights = self.at.weights[self.observable]
        toward = self.at.residual_precision @ self.at.residuals if kind == "value" else -weights
        return np.asarray(-sign * (self.directions @ toward) @ weights)


def worst_case(
    measurements: Measurements,
    scans: Mapping[str, Sequence[CorrelationRange]],
    observable: int = 0,
    points: int = 21,
    max_passes: int = 20,
) -> dict[str, WorstCase]:
    """Lowest and highest value, smallest and largest error of one observable.

    Parameters
    ----------
    scans : as in `scan_correlations`; each moves by itself, and no pair of a source may be in two of them.
    points : of a range, ends included.

    Raises
    ------
    InputError : as `scan_correlations`; no scan, no such observable; a total that is not positive definite at the
        nominal correlations, or at those in the box that are nearest to them.
    """
    at = combine(measurements)
    if not scans:
        raise InputError("worst case: no range of correlations")
    if not 0 <= observable < len(at.values):
        raise InputError(f"worst case: there is no observable {observable} among {len(at.values)}")
    used: set[tuple[str, int, int]] = set()
    base, directions, middle = at.input_covariance.copy(), [], []
    for name, ranges in scans.items():
        low, direction, place = segment(name, measurements, ranges, at.input_covariance, used)
        base += low - at.input_covariance
        directions.append(direction)
        middle.append(min(max(place, 0.0), 1.0))
    grid = np.linspace(0.0, 1.0, points)
    box = _Box(at, base, np.array(directions), np.array(middle), tuple(scans), observable, grid)
    return {quantity: _extreme(box, quantity, max_passes) for quantity in _QUANTITIES}


def _extreme(box: _Box, quantity: str, max_passes: int) -> WorstCase:
    t, best, corner = _towards_corner(box, quantity)
    step = _GAIN * box.at.errors[box.observable]
    passes, moved = 0, True
    while moved and passes < max_passes:
        passes, moved = passes + 1, False
        for k, direction in enumerate(box.directions):
            rest = t.copy()
            rest[k] = 0.0
            line = covariance_line(box.covariance(rest), direction, (t[k],))
            if line is None:
                continue
            gain = box.gain(quantity, line.points(box.at.inputs, box.at.design, box.points))
            top = int(np.argmax(np.where(np.isnan(gain), -np.inf, gain)))
            if gain[top] > best + step:
                best, t[k], moved = float(gain[top]), box.points[top], True
    sign = _QUANTITIES[quantity][1]
    return WorstCase(quantity, sign * best, t, box.names, sign * corner, passes, converged=not moved)


def _towards_corner(box: _Box, quantity: str) -> tuple[Floats, float, float]:
    """Where the way to the corner of the derivatives ends, the gain there and at the corner (NaN: no combination)."""
    slopes = box.slopes(quantity)
    corner = np.where(slopes > 0.0, 1.0, np.where(slopes < 0.0, 0.0, box.middle))
    way = np.tensordot(corner - box.middle, box.directions, axes=1)
    line = covariance_line(box.covariance(box.middle), way, (0.0,))
    if line is None:
        raise InputError(
            "worst case: the total covariance is not positive definite at the nominal correlations"
        )
    end = min(1.0, _KEPT * line.allowed[1])
    gains = box.gain(quantity, line.points(box.at.inputs, box.at.design, np.array([0.0, end, 1.0])))
    t = box.middle + end * (corner - box.middle)
    if gains[1] < gains[0]:
        return box.middle.copy(), float(gains[0]), float(gains[2])
    return t, float(gains[1]), float(gains[2])
