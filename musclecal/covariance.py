"""Covariances of calibration parameters: checks, eigenvariations, propagation, chi2.

The parameters have very different units (A 1e-4, e 1e-3 GeV, M 1e-5 /GeV), so eigenvalues are taken of the
correlation matrix ``R``, with ``C = D R D`` and ``D = diag(sigma)``; "to 1e-12" below means element by
element, relative to ``sigma_i sigma_j``. Nothing here inverts a matrix to solve.

Not for: making a covariance, which is the business of the fit that knows its Hessian.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve_triangular
from scipy.special import chdtrc

from musclecal.errors import InputError

__all__ = [
    "ROUNDING",
    "Chi2",
    "checked_covariance",
    "chi2_of",
    "correlation",
    "eigenvariations",
    "propagate",
    "propagated_variance",
    "scale_parameter_names",
]

Floats = NDArray[np.float64]

ROUNDING = 1e-10
"""An asymmetry or negative eigenvalue of the correlation matrix below this is rounding."""


@dataclass(frozen=True)
class Chi2:
    """A chi2, its number of degrees of freedom, and the probability of a larger one."""

    chi2: float
    ndf: int
    p_value: float


def scale_parameter_names(n_eta: int) -> tuple[str, ...]:
    """(3 n_eta,) names of a calibration's parameters in the order of its covariance: A0, e0, M0, A1, ..."""
    return tuple(f"{letter}{i}" for i in range(n_eta) for letter in "AeM")


def checked_covariance(covariance: ArrayLike, names: Sequence[str] | None = None) -> Floats:
    """``covariance`` as a symmetric matrix, or an error that says which parameter is wrong.

    Parameters
    ----------
    covariance : (n_par, n_par). A fixed parameter, of zero variance, is fine if its covariances are zero too.
    names : (n_par,) names of the parameters for messages; numbers by default.

    Returns
    -------
    (n_par, n_par) the average of the matrix and its transpose.

    Raises
    ------
    InputError : not square, not finite, not symmetric, a negative variance, or a negative eigenvalue of the
        correlation matrix beyond `ROUNDING` times its largest.
    """
    matrix = np.array(covariance, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise InputError(f"covariance: must be square and not empty, got shape {matrix.shape}")
    names = _names(names, len(matrix))
    _refuse_not_finite(matrix, names)
    _refuse_bad_variances(matrix, names)
    _refuse_asymmetric(matrix, names)
    matrix = 0.5 * (matrix + matrix.T)
    _refuse_negative_eigenvalue(matrix, names)
    return matrix


def correlation(covariance: ArrayLike) -> Floats:
    """(n_par, n_par) correlations; a parameter of zero variance has 1 on the diagonal and 0 beside it."""
    matrix = np.asarray(covariance, dtype=np.float64)
    sigma = _sigma(matrix)
    result = matrix / sigma[:, None] / sigma
    np.fill_diagonal(result, 1.0)
    return result


def eigenvariations(covariance: ArrayLike, names: Sequence[str] | None = None) -> Floats:
    r"""Independent one-sigma variations :math:`v_i` of the parameters, with :math:`\sum_i v_i v_i^T = C`.

    With :math:`R = U \Lambda U^T` the variation i is :math:`v_i = D \sqrt{\lambda_i}\, u_i`: eigenvectors of
    the correlation matrix, as those of a covariance of mixed units would depend on the choice of units. The
    sum holds to 1e-12, or to the size of the negative eigenvalues that passed as rounding.

    Parameters
    ----------
    covariance, names : as in `checked_covariance`.

    Returns
    -------
    (n_par, n_par) row i is :math:`v_i`, by decreasing :math:`\lambda_i`; beyond the rank, rows are zero
    within rounding. The largest component of :math:`u_i` (the first of equal ones) is positive. Variations of
    equal eigenvalues are defined only up to a rotation among themselves.

    Raises
    ------
    InputError : as `checked_covariance`.
    """
    matrix = checked_covariance(covariance, names)
    eigenvalues, vectors = np.linalg.eigh(_scaled(matrix))
    lengths = np.sqrt(np.clip(eigenvalues[::-1], 0.0, None))
    return np.asarray(lengths[:, None] * _signed(vectors.T[::-1]) * np.sqrt(np.diagonal(matrix)))


def propagate(jacobian: ArrayLike, covariance: ArrayLike) -> Floats:
    """J C J^T, the covariance (n_out, n_out) of ``jacobian @ parameters``, ``jacobian`` (n_out, n_par)."""
    jacobian, covariance = _matching(jacobian, covariance)
    result = jacobian @ covariance @ jacobian.T
    return np.asarray(0.5 * (result + result.T))


def propagated_variance(jacobian: ArrayLike, covariance: ArrayLike) -> Floats:
    """The diagonal (n_out,) of J C J^T alone, for many outputs; ``jacobian`` (n_out, n_par)."""
    jacobian, covariance = _matching(jacobian, covariance)
    return np.asarray(np.einsum("ij,ij->i", jacobian @ covariance, jacobian))


def chi2_of(vector: ArrayLike, covariance: ArrayLike, names: Sequence[str] | None = None) -> Chi2:
    """chi2 = v^T C^-1 v of a vector that is expected to be zero, by Cholesky factors, ndf = n_par.

    Parameters
    ----------
    vector : (n_par,).
    covariance, names : as in `checked_covariance`.

    Raises
    ------
    InputError : as `checked_covariance`; a singular covariance; a vector of another length or not finite.
    """
    matrix = checked_covariance(covariance, names)
    names = _names(names, len(matrix))
    values = np.asarray(vector, dtype=np.float64)
    if values.shape != (len(matrix),):
        raise InputError(f"chi2: a vector of shape {values.shape} does not go with {len(matrix)} parameters")
    if not np.all(np.isfinite(values)):
        raise InputError(f"chi2: {names[int(np.argmin(np.isfinite(values)))]} is not finite")
    whitened = solve_triangular(_cholesky(matrix, names), values / _sigma(matrix), lower=True)
    chi2 = float(whitened @ whitened)
    return Chi2(chi2, len(matrix), float(chdtrc(len(matrix), chi2)))


def _names(names: Sequence[str] | None, n_par: int) -> Sequence[str]:
    names = [f"parameter {i}" for i in range(n_par)] if names is None else names
    if len(names) != n_par:
        raise InputError(f"covariance: {n_par} parameters, but {len(names)} names")
    return names


def _sigma(matrix: Floats) -> Floats:
    """(n_par,) standard deviations, one where the variance is zero, to divide by."""
    variance = np.diagonal(matrix)
    return np.sqrt(np.where(variance > 0.0, variance, 1.0))


def _scaled(matrix: Floats) -> Floats:
    """(n_par, n_par) the correlation matrix, with zero rows for zero variances, so that it keeps the rank."""
    return correlation(matrix) * (np.diagonal(matrix) > 0.0)


def _matching(jacobian: ArrayLike, covariance: ArrayLike) -> tuple[Floats, Floats]:
    left, right = np.asarray(jacobian, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
    if left.ndim != 2 or right.shape != (left.shape[1],) * 2:
        raise InputError(f"a Jacobian of shape {left.shape} does not go with a covariance {right.shape}")
    return left, right


def _signed(units: Floats) -> Floats:
    """Rows with their largest component positive; the first of those that are equal to rounding decides."""
    size = np.abs(units)
    leading = np.argmax(size >= (1.0 - 1e-9) * size.max(axis=1, keepdims=True), axis=1)
    return np.asarray(units * np.sign(units[np.arange(len(units)), leading])[:, None])


def _cholesky(matrix: Floats, names: Sequence[str]) -> Floats:
    """Lower factor of the correlation matrix, of which no eigenvalue may be rounding."""
    scaled = _scaled(matrix)
    eigenvalues, vectors = np.linalg.eigh(scaled)
    if eigenvalues[0] <= len(scaled) * np.finfo(np.float64).eps * eigenvalues[-1]:
        raise InputError(
            f"chi2: the covariance is singular, eigenvalue {eigenvalues[0]:.3g} of its correlation matrix, "
            f"{_dominant(vectors[:, 0], names)}"
        )
    return np.asarray(np.linalg.cholesky(scaled))


def _dominant(vector: Floats, names: Sequence[str]) -> str:
    leading = int(np.argmax(np.abs(vector)))
    return f"dominated by {names[leading]} (component {abs(vector[leading]):.2f} of the eigenvector)"


def _refuse_not_finite(matrix: Floats, names: Sequence[str]) -> None:
    wrong = np.argwhere(~np.isfinite(matrix))
    if len(wrong):
        i, j = wrong[0]
        raise InputError(f"covariance: {matrix[i, j]} between {names[i]} and {names[j]}")


def _refuse_bad_variances(matrix: Floats, names: Sequence[str]) -> None:
    variance = np.diagonal(matrix)
    smallest = int(np.argmin(variance))
    if variance[smallest] < 0.0:
        raise InputError(f"covariance: negative variance {variance[smallest]:.3g} of {names[smallest]}")
    fixed = variance == 0.0
    wrong = np.argwhere(fixed[:, None] & ((matrix != 0.0) | (matrix.T != 0.0)))
    if len(wrong):
        i, j = wrong[0]
        raise InputError(
            f"covariance: {names[i]} has no variance but a covariance with {names[j]}, so it is not positive "
            "semi-definite"
        )


def _refuse_asymmetric(matrix: Floats, names: Sequence[str]) -> None:
    sigma = _sigma(matrix)
    difference = np.abs(matrix - matrix.T) / sigma[:, None] / sigma
    i, j = divmod(int(np.argmax(difference)), len(matrix))
    if difference[i, j] > ROUNDING:
        raise InputError(
            f"covariance: not symmetric, {matrix[i, j]:.6g} and {matrix[j, i]:.6g} "
            f"between {names[i]} and {names[j]}"
        )


def _refuse_negative_eigenvalue(matrix: Floats, names: Sequence[str]) -> None:
    eigenvalues, vectors = np.linalg.eigh(_scaled(matrix))
    if eigenvalues[0] < -ROUNDING * eigenvalues[-1]:
        raise InputError(
            f"covariance: not positive semi-definite, eigenvalue {eigenvalues[0]:.3g} of its correlation "
            f"matrix, {_dominant(vectors[:, 0], names)}"
        )
