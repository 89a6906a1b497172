"""Correlation matrices that cannot be, made ones that can. Never done unasked: which correlation is wrong is physics.

=========  =======================================================  ================================================
method     what it does                                             when
=========  =======================================================  ================================================
shift      all correlations shrink by one factor                    a negative eigenvalue that is rounding
clip       negative eigenvalues to 0, then a unit diagonal again    a quick look
nearest    the smallest possible change (Higham, IMA J. Numer.      if correlations have to be changed at all
           Anal. 22 (2002) 329): alternating projections
=========  =======================================================  ================================================
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from musclecal.errors import InputError
from musclecal.fits.combination.inputs import checked_matrix
from musclecal.records import Floats, Measurements, RepairedCorrelation

__all__ = ["repair_correlation", "repair_source"]

_TOLERANCE = 1e-12
_MOST_PASSES = 20_000


def repair_correlation(matrix: ArrayLike, method: str = "nearest") -> RepairedCorrelation:
    """``matrix`` (n, n) with a unit diagonal, made positive semi-definite; one that is already stays as it is.

    Raises
    ------
    InputError : not square or not symmetric, not finite, no such method, a diagonal that is not 1.
    """
    if method not in _METHODS:
        raise InputError(f"repair: there is no method {method!r}, but {', '.join(_METHODS)}")
    given = np.atleast_2d(np.asarray(matrix, dtype=np.float64))
    rho = checked_matrix(given, [f"input {i}" for i in range(len(given))], "repair")
    if np.any(np.abs(np.diagonal(rho) - 1.0) > _TOLERANCE):
        raise InputError("repair: a correlation matrix has ones on its diagonal")
    before = float(np.linalg.eigvalsh(rho)[0])
    mended = rho if before >= 0.0 else _METHODS[method](rho)
    change = mended - rho
    i, j = divmod(int(np.argmax(np.abs(change))), len(rho))
    return RepairedCorrelation(
        method=method,
        correlation=mended,
        smallest_before=before,
        smallest_after=float(np.linalg.eigvalsh(mended)[0]),
        distance=float(np.linalg.norm(change)),
        largest_change=float(change[i, j]),
        pair=(min(i, j), max(i, j)),
    )


def repair_source(
    measurements: Measurements, source: str, method: str = "nearest"
) -> tuple[Measurements, RepairedCorrelation]:
    """Measurements with one source repaired among the inputs that it affects; ``pair`` counts all inputs.

    What it does to the result is the difference of two combinations.
    """
    if source not in measurements.sources:
        raise InputError(f"repair: there is no source {source!r}")
    given = measurements.sources[source]
    affected = np.flatnonzero(given.shifts != 0.0)
    if not len(affected):
        raise InputError(f"repair: source {source} affects no input")
    block = np.ix_(affected, affected)
    mended = repair_correlation(given.correlation[block], method)
    correlation = given.correlation.copy()
    correlation[block] = mended.correlation
    sources = {**measurements.sources, source: replace(given, correlation=correlation)}
    pair = (int(affected[mended.pair[0]]), int(affected[mended.pair[1]]))
    return replace(measurements, sources=sources), replace(mended, correlation=correlation, pair=pair)


def _shifted(rho: Floats) -> Floats:
    """(R + d)/(1 + d) with the smallest d: correlations shrink by 1 + d."""
    lift = -float(np.linalg.eigvalsh(rho)[0])
    return np.asarray((rho + lift * np.eye(len(rho))) / (1.0 + lift))


def _clipped(rho: Floats) -> Floats:
    positive = _projected(rho)
    unit = np.sqrt(np.diagonal(positive))
    return _unit_diagonal(positive / unit[:, None] / unit)


def _nearest(rho: Floats) -> Floats:
    """Alternating projections on positive and on unit-diagonal matrices, with Dykstra's correction of the first."""
    current, correction = rho, np.zeros_like(rho)
    for _ in range(_MOST_PASSES):
        corrected = current - correction
        positive = _projected(corrected)
        correction = positive - corrected
        following = _unit_diagonal(positive)
        if np.max(np.abs(following - positive)) < _TOLERANCE:
            return following
        current = following
    return _clipped(current)


def _projected(matrix: Floats) -> Floats:
    """The nearest positive semi-definite matrix."""
    size, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(size, 0.0)) @ vectors.T)


def _unit_diagonal(matrix: Floats) -> Floats:
    """The nearest matrix with ones on its diagonal."""
    result = 0.5 * (matrix + matrix.T)
    np.fill_diagonal(result, 1.0)
    return result


_METHODS: dict[str, Callable[[Floats], Floats]] = {"shift": _shifted, "clip": _clipped, "nearest": _nearest}
