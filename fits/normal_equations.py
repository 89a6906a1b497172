"""Solve the normal equations of a linear fit: factorised once, or an error that names what is not fixed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from musclecal.errors import InputError
from musclecal.records import Floats

__all__ = ["NormalSolution", "seen_directions", "solve_normal", "undiluted"]

_RANK_TOLERANCE = 1e-11
_EMPTY = 1e-11
_MOST_NOISE = 0.8


@dataclass(frozen=True)
class NormalSolution:
    """``values`` (n_par,), ``covariance`` (n_par, n_par); ``condition`` of the equations scaled to unit diagonal."""

    values: Floats
    covariance: Floats
    condition: float


def solve_normal(
    normal: Floats, vector: Floats, labels: Sequence[str], unit: Floats | None = None
) -> NormalSolution:
    """The x with ``normal @ x = vector``.

    Parameters
    ----------
    normal : (n_par, n_par) symmetric. vector : (n_par,).
    labels : (n_par,) names of the parameters for messages.
    unit : (n_par,) sizes in which the equations are compared; the roots of the diagonal by default.

    Raises
    ------
    InputError : combinations of parameters that the equations do not fix.
    """
    diagonal = np.diagonal(normal)
    if unit is None:
        unit = np.sqrt(np.where(diagonal > 0.0, diagonal, 1.0))
    scaled = normal / np.outer(unit, unit)
    eigenvalues, vectors = np.linalg.eigh(scaled)
    null = eigenvalues < _RANK_TOLERANCE * eigenvalues[-1]
    if np.any(null) or not eigenvalues[-1] > 0.0:
        where = _describe(vectors[:, 0], labels)
        raise InputError(f"{np.count_nonzero(null)} combinations of parameters are not fixed, first: {where}")
    factor = cho_factor(scaled)
    covariance = cho_solve(factor, np.eye(len(unit))) / np.outer(unit, unit)
    return NormalSolution(
        cho_solve(factor, vector / unit) / unit,
        0.5 * (covariance + covariance.T),
        float(eigenvalues[-1] / eigenvalues[0]),
    )


def seen_directions(normal: Floats) -> tuple[Floats, Floats]:
    """(n_par, rank) and (rank,): x with normal^+ = x diag(1/size) x^T, in units that make the diagonal one.

    What a sample does not see at all (rounding against its largest eigenvalue) is left out.
    """
    unit = np.sqrt(np.where(np.diagonal(normal) > 0.0, np.diagonal(normal), 1.0))
    size, vectors = np.linalg.eigh(normal / np.outer(unit, unit))
    seen = size > _EMPTY * max(size[-1], 0.0)
    return np.asarray(vectors[:, seen] / unit[:, None]), np.asarray(size[seen])


def undiluted(normal: Floats, vector: Floats, noise: Floats) -> tuple[Floats, Floats]:
    """Normal matrix and vector without the dilution by noisy columns.

    Of columns C = c + noise, C^T C = ``normal`` holds ``noise`` beside what is information. The solution of
    (normal - noise) x = vector is not diluted; with the covariance of the vector, ``normal``, its own is
    (normal - noise)^-1 normal (normal - noise)^-1, and what is given back is its inverse, and that times x. No
    combination counts as more than ``_MOST_NOISE`` noise: where there is more, the sample says little, and the
    covariance says so.
    """
    directions, size = seen_directions(normal)
    whitening = directions / np.sqrt(size)
    share, vectors = np.linalg.eigh(whitening.T @ noise @ whitening)
    left = 1.0 - np.clip(share, 0.0, _MOST_NOISE)
    root = normal @ whitening @ vectors
    return (root * left**2) @ root.T, root @ (left * (vectors.T @ (whitening.T @ vector)))


def _describe(vector: Floats, labels: Sequence[str]) -> str:
    largest = np.argsort(-np.abs(vector))[:4]
    return " ".join(f"{vector[p]:+.2f} {labels[p]}" for p in largest)
