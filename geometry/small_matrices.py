"""Cholesky factors of small matrices inside compiled loops, with inner loops along rows so that they are vectorised.

Not for: large or sparse systems, or anything outside kernels (scipy).
"""

import math

from musclecal.compiled import innermost
from musclecal.records import Floats

__all__ = ["back_substitute", "cholesky", "forward_substitute", "inverse_of"]


@innermost
def cholesky(matrix: Floats, n: int) -> bool:
    """Lower factor L of the leading ``n`` rows, L L^T = matrix, in its lower triangle; False if not positive."""
    for i in range(n):
        for j in range(i):
            factor = matrix[i, j]
            for k in range(j):
                factor -= matrix[i, k] * matrix[j, k]
            matrix[i, j] = factor / matrix[j, j]
        square = matrix[i, i]
        for k in range(i):
            square -= matrix[i, k] * matrix[i, k]
        if not square > 0.0:
            return False
        matrix[i, i] = math.sqrt(square)
    return True


@innermost
def forward_substitute(lower: Floats, n: int, rows: Floats, n_column: int) -> None:
    """L^-1 ``rows`` in place; rows (n, >= n_column)."""
    for i in range(n):
        for k in range(i):
            factor = lower[i, k]
            for c in range(n_column):
                rows[i, c] -= factor * rows[k, c]
        scale = 1.0 / lower[i, i]
        for c in range(n_column):
            rows[i, c] *= scale


@innermost
def back_substitute(lower: Floats, n: int, rows: Floats, n_column: int) -> None:
    """L^-T ``rows`` in place."""
    for i in range(n - 1, -1, -1):
        scale = 1.0 / lower[i, i]
        for c in range(n_column):
            rows[i, c] *= scale
        for k in range(i):
            factor = lower[i, k]
            for c in range(n_column):
                rows[k, c] -= factor * rows[i, c]


@innermost
def inverse_of(lower: Floats, n: int, inverse: Floats) -> None:
    """(L L^T)^-1 into the leading rows and columns of ``inverse``."""
    for i in range(n):
        for j in range(n):
            inverse[i, j] = 1.0 if i == j else 0.0
    forward_substitute(lower, n, inverse, n)
    back_substitute(lower, n, inverse, n)
