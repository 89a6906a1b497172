r"""What a combination owes to assumed correlations.

Each scan moves the correlations of some pairs of inputs from end to end of their ranges, along a straight line of
covariances (`covariance_line`). At the nominal correlations the derivatives are closed forms, one product each: with
:math:`P = V^{-1} - V^{-1} U\,\mathrm{cov}\,U^T V^{-1}`

.. math:: \frac{dx}{d\rho} = -W \frac{dV}{d\rho} P y , \qquad
          \frac{d\,\mathrm{cov}}{d\rho} = W \frac{dV}{d\rho} W^T , \qquad
          \frac{dV_{ij}}{d\rho} = u_i u_j \text{ for the pairs that move.}

Not for: ranges of many correlations that move independently (`worst_case`).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from musclecal.errors import InputError
from musclecal.fits.combination.best_linear import combine
from musclecal.fits.combination.covariance_line import covariance_line
from musclecal.records import Combined, CorrelationRange, CorrelationScan, Floats, Measurements

__all__ = ["scan_correlations", "segment"]


def scan_correlations(
    measurements: Measurements,
    scans: Mapping[str, Sequence[CorrelationRange]],
    points: int = 20,
    nominal: Combined | None = None,
) -> dict[str, CorrelationScan]:
    """All scans, each with ``points`` equal steps from the low to the high ends.

    Parameters
    ----------
    measurements : with signed shifts.
    scans : by name; the ranges of one scan move together, each from its low to its high end.
    nominal : the combination, if it is already there.

    Raises
    ------
    InputError : an unknown source or input, a range that is none, a pair twice, a source that moves neither input.
    """
    if points < 2:
        raise InputError(f"scan: {points} points, at least 2 are needed")
    at = combine(measurements) if nominal is None else nominal
    return {name: _scan(name, measurements, ranges, points, at) for name, ranges in scans.items()}


def _scan(
    name: str, measurements: Measurements, ranges: Sequence[CorrelationRange], points: int, at: Combined
) -> CorrelationScan:
    low, direction, middle = segment(name, measurements, ranges, at.input_covariance)
    width = ranges[0].high - ranges[0].low
    t = np.linspace(0.0, 1.0, points)
    line = covariance_line(low, direction, (middle, 0.5, 0.0, 1.0))
    m = len(at.values)
    if line is None:
        values = errors = np.full((points, m), np.nan)
        chi2, allowed = np.full(points, np.nan), (np.nan, np.nan)
    else:
        found = line.points(at.inputs, at.design, t)
        values, errors, chi2 = found.values, found.errors, found.chi2
        allowed = (ranges[0].low + width * line.allowed[0], ranges[0].low + width * line.allowed[1])
    slope = direction / width
    covariance_slope = at.weights @ slope @ at.weights.T
    return CorrelationScan(
        name=name,
        rho=ranges[0].low + width * t,
        values=values,
        errors=errors,
        chi2=chi2,
        value_derivative=-at.weights @ (slope @ (at.residual_precision @ at.residuals)),
        covariance_derivative=covariance_slope,
        error_derivative=np.diagonal(covariance_slope) / (2.0 * at.errors),
        allowed=allowed,
    )


def segment(
    name: str,
    measurements: Measurements,
    ranges: Sequence[CorrelationRange],
    total: Floats,
    used: set[tuple[str, int, int]] | None = None,
) -> tuple[Floats, Floats, float]:
    """Covariance at the low ends (n, n), what is added on the way to the high ends (n, n), and where the nominal is.

    The last is a mean over pairs, exact where all have the same nominal correlation in units of their ranges. ``used``
    are pairs of sources that other scans move already; those of this one are added.
    """
    if not ranges:
        raise InputError(f"scan {name}: no range")
    start, direction = total.copy(), np.zeros_like(total)
    places: list[float] = []
    seen = set() if used is None else used
    for part in ranges:
        source = measurements.sources.get(part.source)
        if source is None:
            raise InputError(f"scan {name}: there is no source {part.source!r}")
        if not -1.0 <= part.low < part.high <= 1.0:
            raise InputError(f"scan {name}: {part.low:g} to {part.high:g} is no range of correlations")
        _refuse_bad_pairs(name, part, measurements, seen)
        i, j = np.array(part.pairs, dtype=np.int64).reshape(-1, 2).T
        product = source.shifts[i] * source.shifts[j]
        if not np.any(product):
            raise InputError(f"scan {name}: {part.source} moves no pair of inputs of it together")
        rho, width = source.correlation[i, j], part.high - part.low
        for a, b in ((i, j), (j, i)):
            start[a, b] += (part.low - rho) * product
            direction[a, b] += width * product
        places.extend(((rho - part.low) / width)[product != 0.0])
    return start, direction, float(np.mean(places))


def _refuse_bad_pairs(
    name: str, part: CorrelationRange, measurements: Measurements, seen: set[tuple[str, int, int]]
) -> None:
    """Pairs of two different inputs, none twice; ``seen`` is added to."""
    if not part.pairs:
        raise InputError(f"scan {name}: no pair of inputs in {part.source}")
    n = len(measurements.names)
    for i, j in part.pairs:
        if not (0 <= i < n and 0 <= j < n and i != j):
            raise InputError(f"scan {name}: {i} and {j} are no pair of the {n} inputs")
        key = (part.source, min(i, j), max(i, j))
        if key in seen:
            a, b = measurements.names[i], measurements.names[j]
            raise InputError(f"scan {name}: {a} and {b} are twice in {part.source}")
        seen.add(key)
