r"""Whether correlations are possible at all, and which one is not.

Correlations that are guessed pair by pair easily contradict each other: a with b fully, b with c fully, a with c not
at all. Such a matrix has a negative eigenvalue; the sum over sources may hide it, and a combination then splits into a
negative variance. An even number of them leaves the determinant positive, so eigenvalues are looked at.

With all other correlations fixed, the one of i and j lies in an interval. With S the correlations of all others among
themselves and b_i, b_j theirs with i and j

.. math:: b_i^T S^{-1} b_j \pm \sqrt{(1 - b_i^T S^{-1} b_i)(1 - b_j^T S^{-1} b_j)} .
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq, minimize_scalar

from musclecal.errors import InputError
from musclecal.fits.combination.inputs import checked_matrix
from musclecal.records import Floats, MatrixAudit, Measurements

__all__ = ["allowed_correlation", "allowed_group", "audit", "audit_correlation", "checked_correlation"]

_ROUNDING = 1e-10
_IN_GROUP = 0.1
"""Inputs with this share of the squared eigenvector are named."""


def audit(measurements: Measurements) -> dict[str, MatrixAudit]:
    """Each source, among the inputs that it affects, and the "total" of all sources."""
    found = {}
    for name, source in measurements.sources.items():
        affected = np.flatnonzero(source.shifts != 0.0)
        labels = [measurements.names[i] for i in affected]
        found[name] = audit_correlation(source.correlation[np.ix_(affected, affected)], labels, name)
    total = np.sum(list(measurements.covariances.values()), axis=0)
    variance = np.diagonal(total)
    affected = np.flatnonzero(variance > 0.0)
    unit = np.sqrt(variance[affected])
    scaled = total[np.ix_(affected, affected)] / unit[:, None] / unit
    found["total"] = audit_correlation(scaled, [measurements.names[i] for i in affected], "total")
    return found


def audit_correlation(matrix: ArrayLike, names: Sequence[str], what: str = "correlation") -> MatrixAudit:
    """One matrix (n, n). A matrix of no input at all is definite."""
    if not len(names):
        return MatrixAudit(what, True, np.inf, 0, (), None, np.nan, (np.nan, np.nan))
    rho = checked_matrix(matrix, names, what)
    size, vectors = np.linalg.eigh(rho)
    rounding = _ROUNDING * max(size[-1], 1.0)
    definite = bool(size[0] >= -rounding)
    leading = vectors[:, 0] ** 2
    order = np.argsort(-leading, kind="stable")
    group = tuple(names[i] for n, i in enumerate(order) if n < 2 or leading[i] > _IN_GROUP)
    negative = int(np.count_nonzero(size < -rounding))
    if definite:
        return MatrixAudit(what, True, float(size[0]), 0, group, None, np.nan, (np.nan, np.nan))
    i, j, allowed = _breaking_pair(rho, vectors[:, 0])
    pair = (names[i], names[j])
    return MatrixAudit(what, False, float(size[0]), negative, group, pair, float(rho[i, j]), allowed)


def allowed_correlation(matrix: ArrayLike, i: int, j: int) -> tuple[float, float]:
    """Lowest and highest correlation of i and j, all others as in ``matrix`` (n, n); NaN, NaN if none will do."""
    rho = np.asarray(matrix, dtype=np.float64)
    others = [k for k in range(len(rho)) if k not in (i, j)]
    if not others:
        return -1.0, 1.0
    inner, beside = rho[np.ix_(others, others)], rho[np.ix_(others, [i, j])]
    size, vectors = np.linalg.eigh(inner)
    rounding = _ROUNDING * max(size[-1], 1.0)
    seen = size > rounding
    along = vectors.T @ beside
    # Others that contradict each other, or a correlation with a combination of them that does not vary.
    if size[0] < -rounding or np.any(np.abs(along[~seen]) > np.sqrt(rounding)):
        return np.nan, np.nan
    explained = along[seen].T @ (along[seen] / size[seen][:, None])
    left = 1.0 - np.diagonal(explained)
    if np.min(left) < -np.sqrt(rounding):
        return np.nan, np.nan
    room = float(np.sqrt(np.prod(np.maximum(left, 0.0))))
    middle = float(explained[0, 1])
    return max(middle - room, -1.0), min(middle + room, 1.0)


def allowed_group(matrix: ArrayLike, pairs: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Lowest and highest common correlation of ``pairs``, all others as in ``matrix`` (n, n); NaN, NaN if none will do.

    The smallest eigenvalue is a concave function of it: from its maximum, the two ends are found by bisection.
    """
    rho = np.array(matrix, dtype=np.float64)
    i, j = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    rounding = _ROUNDING * len(rho)

    def margin(common: float) -> float:
        rho[i, j] = rho[j, i] = common
        return float(np.linalg.eigvalsh(rho)[0]) + rounding

    options = {"xatol": _ROUNDING}
    best = float(
        minimize_scalar(lambda x: -margin(x), bounds=(-1.0, 1.0), method="bounded", options=options).x
    )
    if margin(best) < 0.0:
        return np.nan, np.nan
    low, high = (end if margin(end) >= 0.0 else float(brentq(margin, best, end)) for end in (-1.0, 1.0))
    return low, high


def checked_correlation(matrix: ArrayLike, names: Sequence[str], what: str = "correlation") -> Floats:
    """(n, n) ``matrix``, or an error that says which correlations cannot be."""
    rho = checked_matrix(matrix, names, what)
    off = np.abs(np.diagonal(rho) - 1.0) > _ROUNDING
    if np.any(off):
        raise InputError(f"{what}: the correlation of {names[int(np.argmax(off))]} with itself is not 1")
    found = audit_correlation(rho, names, what)
    if not found.definite:
        raise InputError(in_words(found))
    return rho


def in_words(found: MatrixAudit) -> str:
    """What is wrong with a matrix, for a message."""
    if found.definite or found.pair is None:
        return f"{found.name}: positive semi-definite, smallest eigenvalue {found.smallest_eigenvalue:.3g}"
    text = (
        f"{found.name}: {found.n_negative} negative eigenvalues, smallest {found.smallest_eigenvalue:.3g}, of "
        f"{', '.join(found.group)}; rho = {found.rho:.3g} of {' and '.join(found.pair)}"
    )
    if np.isnan(found.allowed[0]):
        return f"{text}: no change of a single correlation mends it"
    return f"{text} must lie between {found.allowed[0]:.3g} and {found.allowed[1]:.3g}"


def _breaking_pair(rho: Floats, vector: Floats) -> tuple[int, int, tuple[float, float]]:
    """The pair whose correlation has to move least, or the one that pulls the eigenvalue down most."""
    best: tuple[float, int, int, tuple[float, float]] | None = None
    for i in range(len(rho)):
        for j in range(i):
            low, high = allowed_correlation(rho, i, j)
            if np.isnan(low):
                continue
            need = max(low - rho[i, j], rho[i, j] - high, 0.0)
            if best is None or need < best[0] - _ROUNDING:
                best = (need, j, i, (low, high))
    if best is not None:
        return best[1:]
    pull = np.tril(rho * vector[:, None] * vector, -1)
    row, column = divmod(int(np.argmin(pull)), len(rho))
    return column, row, (np.nan, np.nan)
