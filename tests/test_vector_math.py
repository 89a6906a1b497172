"""Functions without a branch, beside numpy's."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from musclecal import vector_math
from musclecal.compiled import kernel


@kernel
def logarithms(x: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    for i in range(x.size):
        out[i] = vector_math.log(x[i])


@kernel
def exponentials(x: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    for i in range(x.size):
        out[i] = vector_math.expm1(x[i])


def test_logarithms_are_those_of_numpy() -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([
        np.exp(rng.uniform(-700.0, 700.0, 100_000)), 1.0 + rng.uniform(-1e-3, 1e-3, 10_000),
        2.0 ** np.arange(-1000.0, 1000.0), math.sqrt(0.5) * np.array([1.0 - 1e-15, 1.0, 1.0 + 1e-15, 2.0]),
    ])  # fmt: skip
    found = np.empty_like(x)
    logarithms(x, found)
    exact = np.log(x.astype(np.longdouble))
    assert np.max(np.abs(found - exact) / np.maximum(np.abs(exact), 1.0)) < 3e-16
    logarithms(np.ones(3), found[:3])
    np.testing.assert_array_equal(found[:3], 0.0)


@pytest.mark.parametrize(
    ("size", "limit"), [(1e-12, 1e-15), (1e-3, 1e-15), (1.0, 5e-15), (5.0, 1e-14), (15.0, 3e-13)]
)
def test_exponentials_are_those_of_numpy(size: float, limit: float) -> None:
    x = np.random.default_rng(2).uniform(-size, size, 100_000)
    found = np.empty_like(x)
    exponentials(x, found)
    exact = np.expm1(x.astype(np.longdouble))
    assert np.max(np.abs(found - exact) / np.abs(exact)) < limit
