"""The prior of the sources of all inputs: unit width or free, and their correlations.

Not for: repairing correlations that contradict each other. They are refused here, with the pair to look at.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from musclecal.errors import InputError
from musclecal.records import Floats, Ints
from musclecal.records.combination_likelihood import CorrelationRange, LikelihoodProblem

__all__ = ["LARGEST_CORRELATION", "clamped", "pair_of", "prior_correlations", "prior_precision"]

LARGEST_CORRELATION = 0.999
"""A larger prior correlation is set to this. Sources that are one and the same are given one name instead."""

_SMALLEST_EIGENVALUE = 1e-9


def clamped(rho: Floats) -> Floats:
    """Correlations no larger than `LARGEST_CORRELATION` in size."""
    return np.clip(rho, -LARGEST_CORRELATION, LARGEST_CORRELATION)


def pair_of(entry: CorrelationRange, sources: Sequence[str]) -> tuple[int, int]:
    """Numbers of the two sources of a correlation."""
    for name in (entry.first, entry.second):
        if name not in sources:
            raise InputError(f"correlation of {entry.first!r} and {entry.second!r}: no source {name!r}")
    if entry.first == entry.second:
        raise InputError(f"correlation of {entry.first!r} with itself")
    return sources.index(entry.first), sources.index(entry.second)


def prior_correlations(problem: LikelihoodProblem) -> Floats:
    """(n_source, n_source) C, positive definite.

    Raises
    ------
    InputError : a correlation outside [-1, 1], of unknown or free sources; an eigenvalue that is not positive (a
        positive determinant does not exclude two of them).
    """
    sources, free = problem.sources, problem.free
    matrix = np.eye(len(sources))
    for entry in problem.correlations:
        i, j = pair_of(entry, sources)
        if not abs(entry.rho) <= 1.0:
            raise InputError(
                f"correlation of {entry.first!r} and {entry.second!r}: {entry.rho} is not in [-1, 1]"
            )
        if entry.rho != 0.0 and (free[i] or free[j]):
            raise InputError(
                f"correlation of {entry.first!r} and {entry.second!r}: "
                f"{entry.first if free[i] else entry.second!r} is free, without a prior that could be correlated"
            )
        matrix[i, j] = matrix[j, i] = float(clamped(np.array(entry.rho)))
    _refuse_indefinite(matrix, sources)
    return matrix


def _correlated(matrix: Floats) -> Ints:
    return np.flatnonzero(np.any(matrix != np.eye(len(matrix)), axis=1)).astype(np.int64)


def _refuse_indefinite(matrix: Floats, sources: Sequence[str]) -> None:
    """The pair that is named contributes most to the negative v^T C v of the eigenvector v."""
    inside = _correlated(matrix)
    if not len(inside):
        return
    part = matrix[np.ix_(inside, inside)]
    eigenvalues, vectors = np.linalg.eigh(part)
    if eigenvalues[0] > _SMALLEST_EIGENVALUE:
        return
    contribution = np.triu(np.outer(vectors[:, 0], vectors[:, 0]) * part, 1)
    i, j = divmod(int(np.argmin(contribution)), len(part))
    raise InputError(
        f"prior correlations contradict each other: smallest eigenvalue {eigenvalues[0]:.4g}, "
        f"{int(np.sum(eigenvalues <= _SMALLEST_EIGENVALUE))} not positive; the pair that breaks it is "
        f"{sources[inside[i]]!r} and {sources[inside[j]]!r}, correlation {part[i, j]:g}"
    )


def prior_precision(correlations: Floats, free: NDArray[np.bool_]) -> Floats:
    """(n_source, n_source) C^-1, with zeros for free sources; ``correlations`` positive definite."""
    result = np.eye(len(correlations))
    inside = _correlated(correlations)
    if len(inside):
        result[np.ix_(inside, inside)] = np.linalg.inv(correlations[np.ix_(inside, inside)])
    result[free, free] = 0.0
    return result
