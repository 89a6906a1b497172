"""Cholesky factors of the leading part of a matrix, against numpy."""

import numpy as np
import pytest

from musclecal.geometry.small_matrices import back_substitute, cholesky, forward_substitute, inverse_of
from musclecal.records import Floats


def positive(n: int, seed: int = 1) -> Floats:
    square = np.random.default_rng(seed).normal(size=(n, n))
    return np.asarray(square @ square.T + 0.1 * np.eye(n))


def room(matrix: Floats) -> Floats:
    """``matrix`` in the corner of a larger one, whose upper triangle and rest nobody may read."""
    n = len(matrix)
    out = np.full((n + 2, n + 3), np.nan)
    out[:n, :n] = np.where(np.tri(n, dtype=bool), matrix, np.nan)
    return out


@pytest.mark.parametrize("n", [1, 2, 5, 9, 34])
def test_factor_and_substitutions(n: int) -> None:
    matrix = positive(n)
    factor = room(matrix)
    assert cholesky(factor, n)
    lower = np.tril(factor[:n, :n])
    np.testing.assert_allclose(lower, np.linalg.cholesky(matrix), rtol=0, atol=1e-12 * np.abs(matrix).max())

    right = np.random.default_rng(2).normal(size=(n, 4))
    rows = np.hstack([right, np.full((n, 1), 7.0)])
    forward_substitute(factor, n, rows, 4)
    np.testing.assert_allclose(lower @ rows[:, :4], right, rtol=0, atol=1e-11)
    back_substitute(factor, n, rows, 4)
    np.testing.assert_allclose(matrix @ rows[:, :4], right, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(rows[:, 4], 7.0)


def test_inverse() -> None:
    matrix = positive(9)
    factor, inverse = room(matrix), np.full((10, 11), 3.0)
    assert cholesky(factor, 9)
    inverse_of(factor, 9, inverse)
    np.testing.assert_allclose(inverse[:9, :9] @ matrix, np.eye(9), rtol=0, atol=1e-11)
    np.testing.assert_array_equal(inverse[9], 3.0)
    np.testing.assert_array_equal(inverse[:, 9:], 3.0)


@pytest.mark.parametrize("broken", [0.0, -1.0, np.nan])
def test_what_is_not_positive_has_no_factor(broken: float) -> None:
    matrix = positive(4)
    matrix[2, 2] = broken
    assert not cholesky(matrix, 4)
    singular = np.ones((2, 2))
    assert not cholesky(singular, 2)
    assert cholesky(positive(4), 4)


def test_scales_of_many_orders_of_magnitude() -> None:
    """q/p beside lengths in cm: the factor does not mind."""
    scale = np.array([1e-6, 1e-4, 1e-4, 1e-3, 1.0])
    matrix = positive(5) * np.outer(scale, scale)
    factor, inverse = matrix.copy(), np.empty((5, 5))
    assert cholesky(factor, 5)
    inverse_of(factor, 5, inverse)
    np.testing.assert_allclose(
        (inverse * np.outer(scale, scale)) @ positive(5), np.eye(5), rtol=0, atol=1e-10
    )
