"""Solve the normal equations of a linear fit: factorised once, or an error that names what is not fixed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from musclecal.errors import InputError
from musclecal.records import Floats

__all__ = ["NormalSolution", "solve_normal"]

_RANK_TOLERANCE = 1e-11


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


def _describe(vector: Floats, labels: Sequence[str]) -> str:
    largest = np.argsort(-np.abs(vector))[:4]
    return " ".join(f"{vector[p]:+.2f} {labels[p]}" for p in largest)
