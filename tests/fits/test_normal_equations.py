"""Solutions of normal equations, and the parameters named when there is none."""

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.fits.normal_equations import solve_normal

RNG = np.random.default_rng(72)
LABELS = ("A0", "e0", "M0", "A1", "e1", "M1")
SIZES = np.array([1e-4, 1e-3, 1e-5] * 2)


def random_normal(n_row: int = 30) -> np.ndarray:
    """Parameters of very different sizes."""
    design = RNG.normal(size=(n_row, 6)) / SIZES
    return np.asarray(design.T @ design)


def test_a_known_solution_comes_back() -> None:
    normal, truth = random_normal(), SIZES * RNG.normal(size=6)
    solution = solve_normal(normal, normal @ truth, LABELS)
    np.testing.assert_allclose(solution.values, truth, rtol=1e-10)
    np.testing.assert_allclose(solution.covariance @ normal, np.eye(6), atol=1e-9)
    np.testing.assert_array_equal(solution.covariance, solution.covariance.T)


def test_units_change_the_condition_alone() -> None:
    normal, vector = random_normal(), RNG.normal(size=6) / SIZES
    plain, scaled = (
        solve_normal(normal, vector, LABELS),
        solve_normal(normal, vector, LABELS, unit=1.0 / SIZES),
    )
    np.testing.assert_allclose(scaled.values, plain.values, rtol=1e-9)
    np.testing.assert_allclose(scaled.covariance, plain.covariance, rtol=1e-9)


def test_the_condition_is_that_of_the_equations_with_unit_diagonal() -> None:
    normal = random_normal()
    size = np.sqrt(np.diag(normal))
    eigenvalues = np.linalg.eigvalsh(normal / np.outer(size, size))
    assert solve_normal(normal, size, LABELS).condition == pytest.approx(
        eigenvalues[-1] / eigenvalues[0], rel=1e-9
    )
    assert solve_normal(np.diag(1.0 / SIZES**2), size, LABELS).condition == pytest.approx(1.0)


def test_a_parameter_without_information_is_named() -> None:
    normal = random_normal()
    normal[4, :] = normal[:, 4] = 0.0
    with pytest.raises(InputError, match=r"^1 combinations of parameters are not fixed, first: [+-]1\.00 e1"):
        solve_normal(normal, np.zeros(6), LABELS)


def test_a_combination_without_information_is_named() -> None:
    design = RNG.normal(size=(30, 6)) / SIZES
    design[:, 3] = -0.5 * design[:, 0]
    with pytest.raises(InputError, match=r"not fixed, first: .*A0.*A1|not fixed, first: .*A1.*A0"):
        solve_normal(design.T @ design, np.zeros(6), LABELS)


def test_no_information_at_all_is_an_error() -> None:
    with pytest.raises(InputError, match=r"combinations of parameters are not fixed"):
        solve_normal(np.zeros((6, 6)), np.zeros(6), LABELS)
