"""Covariance checks, eigenvariations, propagation and chi2, in mixed units like those of A, e, M."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from musclecal.covariance import (
    checked_covariance,
    chi2_of,
    correlation,
    eigenvariations,
    propagate,
    propagated_variance,
    scale_parameter_names,
)
from musclecal.errors import InputError

Floats = NDArray[np.float64]
UNITS = np.array([1e-4, 1e-3, 1e-5])


def aem_covariance(n_eta: int, seed: int = 1) -> Floats:
    """(3 n_eta, 3 n_eta), A and e correlated by 0.95 in each eta bin, all bins by a few per cent."""
    rng = np.random.default_rng(seed)
    block = np.array([[1.0, 0.95, 0.0], [0.95, 1.0, 0.0], [0.0, 0.0, 1.0]])
    common = rng.normal(size=(3 * n_eta, 5)) * 0.2
    sigma = np.tile(UNITS, n_eta) * rng.uniform(0.5, 2.0, 3 * n_eta)
    return np.asarray((np.kron(np.eye(n_eta), block) + common @ common.T) * np.outer(sigma, sigma))


def relative_error(result: Floats, expected: Floats) -> float:
    sigma = np.sqrt(np.diagonal(expected))
    return float(np.max(np.abs(result - expected) / np.outer(sigma, sigma)))


def test_parameters_of_an_eta_bin_stand_together() -> None:
    assert scale_parameter_names(2) == ("A0", "e0", "M0", "A1", "e1", "M1")


def test_a_good_covariance_passes_unchanged() -> None:
    covariance = aem_covariance(4)
    covariance = 0.5 * (covariance + covariance.T)
    np.testing.assert_array_equal(checked_covariance(covariance), covariance)


def test_rounding_is_accepted_and_removed() -> None:
    covariance = aem_covariance(2)
    covariance[0, 5] *= 1.0 + 1e-13
    checked = checked_covariance(covariance)
    np.testing.assert_array_equal(checked, checked.T)


def test_rank_one_is_positive_semi_definite_within_rounding() -> None:
    shift = np.tile(UNITS, 8) * np.linspace(0.3, 3.0, 24)
    checked_covariance(np.outer(shift, shift))


def test_the_input_is_not_changed() -> None:
    covariance = aem_covariance(2)
    before = covariance.copy()
    checked_covariance(covariance)
    eigenvariations(covariance)
    correlation(covariance)
    np.testing.assert_array_equal(covariance, before)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 2), (0, 0)])
def test_not_square(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="square"):
        checked_covariance(np.ones(shape))


def test_not_finite_names_the_parameters() -> None:
    covariance = aem_covariance(2)
    covariance[1, 4] = np.nan
    with pytest.raises(InputError, match="nan between e0 and e1"):
        checked_covariance(covariance, scale_parameter_names(2))


def test_not_symmetric_names_the_parameters() -> None:
    covariance = aem_covariance(2)
    covariance[3, 2] += 1e-3 * UNITS[0] * UNITS[2]
    with pytest.raises(InputError, match=r"not symmetric.*between (M0 and A1|A1 and M0)"):
        checked_covariance(covariance, scale_parameter_names(2))


def test_negative_variance_names_the_parameter() -> None:
    covariance = aem_covariance(2)
    covariance[5, 5] *= -1.0
    with pytest.raises(InputError, match=r"negative variance -.* of M1"):
        checked_covariance(covariance, scale_parameter_names(2))


def test_negative_eigenvalue_names_itself_and_the_dominant_parameter() -> None:
    """Correlations 0.8 of e1 with A1 and with M1, none between those: lambda = 1 -+ 0.8 sqrt(2) and 1."""
    names, matrix = scale_parameter_names(2), np.eye(6)
    matrix[4, 3] = matrix[3, 4] = matrix[4, 5] = matrix[5, 4] = 0.8
    lowest = 1.0 - 0.8 * np.sqrt(2.0)
    sigma = np.tile(UNITS, 2)
    with pytest.raises(InputError, match=rf"eigenvalue {lowest:.3g} .*dominated by e1 \(component 0.71"):
        checked_covariance(matrix * np.outer(sigma, sigma), names)


def test_a_tiny_negative_eigenvalue_in_small_units_is_not_hidden_by_large_units() -> None:
    """1e-10 GeV^2 beside 1e-16 /GeV^2: a relative cut on the eigenvalues of C itself would not see it."""
    matrix = np.diag([1.0, 1.0, 1.0])
    matrix[0, 2] = matrix[2, 0] = 1.001
    sigma = np.array([1e-8, 1.0, 1e-8])
    with pytest.raises(InputError, match=r"eigenvalue -0\.001"):
        checked_covariance(matrix * np.outer(sigma, sigma))


def test_names_must_be_as_many_as_parameters() -> None:
    with pytest.raises(InputError, match="6 parameters, but 3 names"):
        checked_covariance(aem_covariance(2), scale_parameter_names(1))


def test_a_fixed_parameter_is_allowed_but_not_its_covariance() -> None:
    covariance = aem_covariance(1)
    covariance[1, :] = covariance[:, 1] = 0.0
    checked_covariance(covariance)
    covariance[0, 1] = covariance[1, 0] = 1e-12
    with pytest.raises(InputError, match="e0 has no variance but a covariance with A0"):
        checked_covariance(covariance, scale_parameter_names(1))


@pytest.mark.parametrize("n_eta", [1, 8, 48])
def test_eigenvariations_sum_to_the_covariance(n_eta: int) -> None:
    covariance = aem_covariance(n_eta)
    variations = eigenvariations(covariance)
    assert variations.shape == covariance.shape
    assert relative_error(variations.T @ variations, covariance) < 1e-12


def test_eigenvariations_of_a_singular_covariance_sum_to_it() -> None:
    directions = np.random.default_rng(3).normal(size=(4, 24)) * np.tile(UNITS, 8)
    covariance = directions.T @ directions
    variations = eigenvariations(covariance)
    assert relative_error(variations.T @ variations, covariance) < 1e-12
    np.testing.assert_allclose(variations[4:] / np.tile(UNITS, 8), 0.0, atol=1e-6)


def test_eigenvariations_by_hand() -> None:
    """Two parameters of correlation 0.6: lambda = 1.6 along (1, 1)/sqrt(2), 0.4 along (1, -1)/sqrt(2)."""
    sigma = np.array([2.0, 1e-6])
    covariance = np.array([[1.0, 0.6], [0.6, 1.0]]) * np.outer(sigma, sigma)
    expected = np.sqrt([[0.8, 0.8], [0.2, 0.2]]) * [[1.0, 1.0], [1.0, -1.0]] * sigma
    np.testing.assert_allclose(eigenvariations(covariance), expected, rtol=1e-12)


def test_eigenvariations_are_ordered_and_signed() -> None:
    covariance = aem_covariance(6)
    units = eigenvariations(covariance) / np.sqrt(np.diagonal(covariance))
    lengths = np.sum(units**2, axis=1)
    assert np.all(np.diff(lengths) < 0.0)
    leading = np.argmax(np.abs(units), axis=1)
    assert np.all(units[np.arange(len(units)), leading] > 0.0)


def test_a_fixed_parameter_does_not_vary() -> None:
    covariance = aem_covariance(2)
    covariance[1, :] = covariance[:, 1] = 0.0
    variations = eigenvariations(covariance)
    np.testing.assert_array_equal(variations[:, 1], 0.0)
    np.testing.assert_allclose(variations[-1] / np.tile(UNITS, 2), 0.0, atol=1e-7)


def test_eigenvariations_do_not_depend_on_units() -> None:
    covariance, factor = aem_covariance(2), np.array([1.0, 1024.0, 1.0, 1.0, 2.0**-20, 1.0])
    expected = eigenvariations(covariance) * factor
    np.testing.assert_allclose(eigenvariations(covariance * np.outer(factor, factor)), expected, rtol=1e-9)


def test_eigenvariations_refuse_a_negative_eigenvalue() -> None:
    with pytest.raises(InputError, match="not positive semi-definite"):
        eigenvariations([[1.0, 1.1], [1.1, 1.0]])


def test_correlation() -> None:
    np.testing.assert_allclose(
        correlation([[4.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]),
        [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]],
        rtol=1e-15,
    )


def test_propagation_by_hand() -> None:
    """Sum and difference of two parameters: 4 + 1 +- 2 * 0.5, and 4 - 1 between them."""
    covariance, jacobian = [[4.0, 0.5], [0.5, 1.0]], [[1.0, 1.0], [1.0, -1.0]]
    np.testing.assert_allclose(propagate(jacobian, covariance), [[6.0, 3.0], [3.0, 4.0]], rtol=1e-15)
    np.testing.assert_allclose(propagated_variance(jacobian, covariance), [6.0, 4.0], rtol=1e-15)


def test_propagation_refuses_shapes_that_do_not_match() -> None:
    with pytest.raises(InputError, match="Jacobian of shape"):
        propagate(np.ones((2, 3)), np.eye(2))
    with pytest.raises(InputError, match="Jacobian of shape"):
        propagated_variance(np.ones(2), np.eye(2))


def test_chi2_by_hand() -> None:
    """v = (1, 2), C = [[2, 1], [1, 2]]: C^-1 = [[2, -1], [-1, 2]]/3, chi2 = (2 - 4 + 8)/3 = 2."""
    result = chi2_of([1.0, 2.0], [[2.0, 1.0], [1.0, 2.0]])
    assert result.ndf == 2
    assert result.chi2 == pytest.approx(2.0, rel=1e-12)
    assert result.p_value == pytest.approx(np.exp(-1.0), rel=1e-12)


def test_chi2_of_mixed_units_against_an_injected_whitened_vector() -> None:
    covariance = aem_covariance(24)
    white = np.random.default_rng(5).normal(size=len(covariance))
    result = chi2_of(np.linalg.cholesky(covariance) @ white, covariance)
    assert result.chi2 == pytest.approx(float(white @ white), rel=1e-10)
    assert result.p_value == pytest.approx(float(stats.chi2.sf(white @ white, len(white))), rel=1e-8)


def test_chi2_refuses_a_singular_covariance() -> None:
    with pytest.raises(InputError, match="covariance is singular, eigenvalue"):
        chi2_of([1.0, 1.0], [[1.0, 1.0], [1.0, 1.0]])
    with pytest.raises(InputError, match="dominated by M0"):
        chi2_of([1.0, 1.0, 1.0], np.diag([1.0, 1.0, 0.0]), scale_parameter_names(1))


def test_chi2_refuses_a_wrong_vector() -> None:
    with pytest.raises(InputError, match="does not go with 2 parameters"):
        chi2_of([1.0, 2.0, 3.0], np.eye(2))
    with pytest.raises(InputError, match="e0 is not finite"):
        chi2_of([1.0, np.inf, 3.0], np.eye(3), scale_parameter_names(1))
