"""The A, e, M model: its signs by hand, its inverse to rounding, its Jacobian by differences."""

import math
from decimal import Decimal, localcontext
from itertools import product

import numpy as np
import pytest

from musclecal.scale import biased_curvature, corrected_curvature, correction_jacobian, relative_correction

A, E, M = 3e-4, 2e-3, 1.5e-5
"""1, GeV, 1/GeV: of the size of a real detector's biases."""
ROUNDING = 1e-15


@pytest.mark.parametrize("charge", [+1, -1])
def test_the_correction_is_the_definition(charge: int) -> None:
    k = 1.0 / 8.0
    expected = (1.0 + A - E * k) * k + charge * M
    assert corrected_curvature(k, charge, A, E, M) == pytest.approx(expected, rel=ROUNDING)


def test_positive_a_lowers_the_transverse_momentum_of_both_charges() -> None:
    for charge in (+1, -1):
        pt = 1.0 / corrected_curvature(1.0 / 10.0, charge, 1e-3, 0.0, 0.0)
        assert pt == pytest.approx(10.0 / 1.001, rel=ROUNDING)


@pytest.mark.parametrize("pt", [4.0, 10.0, 40.0])
def test_positive_e_raises_the_transverse_momentum_by_about_e(pt: float) -> None:
    for charge in (+1, -1):
        raised = 1.0 / corrected_curvature(1.0 / pt, charge, 0.0, 5e-3, 0.0) - pt
        assert raised == pytest.approx(5e-3, rel=2 * 5e-3 / pt)


def test_positive_m_lowers_mu_plus_and_raises_mu_minus() -> None:
    plus, minus = (1.0 / corrected_curvature(1.0 / 40.0, charge, 0.0, 0.0, 1e-5) for charge in (+1, -1))
    assert plus == pytest.approx(40.0 / (1.0 + 4e-4), rel=ROUNDING)
    assert minus == pytest.approx(40.0 / (1.0 - 4e-4), rel=ROUNDING)


def test_the_sagitta_grows_with_the_transverse_momentum() -> None:
    np.testing.assert_allclose(
        relative_correction([10.0, 40.0], +1, 0.0, 0.0, 1e-5), [1e-4, 4e-4], rtol=ROUNDING
    )


@pytest.mark.parametrize("charge", [+1, -1])
def test_the_inverse_is_exact(charge: int) -> None:
    for pt, a, e, m in product(
        (3.0, 8.0, 45.0, 200.0), (-1e-2, 0.0, A), (-5e-2, -E, 1e-9, E, 0.1), (-1e-4, 0.0, M)
    ):
        k = 1.0 / pt
        measured = biased_curvature(k, charge, a, e, m)
        assert corrected_curvature(measured, charge, a, e, m) == pytest.approx(k, rel=ROUNDING)


@pytest.mark.parametrize("charge", [+1, -1])
def test_the_inverse_is_the_closed_form_in_fifty_digits(charge: int) -> None:
    with localcontext(prec=50):
        one_a, e, k = 1 + Decimal(A), Decimal(E), Decimal("0.125") - charge * Decimal(M)
        by_hand = (one_a - (one_a**2 - 4 * e * k).sqrt()) / (2 * e)
    assert biased_curvature(0.125, charge, A, E, M) == pytest.approx(float(by_hand), rel=ROUNDING)


@pytest.mark.parametrize(("charge", "expected"), [(+1, 0.1249787457500535), (-1, 0.1250087517505033)])
def test_the_inverse_is_pinned_for_each_charge(charge: int, expected: float) -> None:
    assert biased_curvature(0.125, charge, A, E, M) == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("e", [0.0, 1e-300, 1e-15, -1e-15])
def test_the_inverse_does_not_cancel_when_e_vanishes(e: float) -> None:
    assert biased_curvature(0.1, +1, A, e, M) == pytest.approx((0.1 - M) / (1.0 + A), rel=ROUNDING)


def test_no_curvature_is_corrected_to_more_than_the_parabola_holds() -> None:
    highest = (1.0 + A) ** 2 / (4.0 * 0.5)
    assert math.isnan(biased_curvature(1.001 * highest, +1, A, 0.5, 0.0))
    assert biased_curvature(0.999 * highest, +1, A, 0.5, 0.0) > 0.0


@pytest.mark.parametrize("charge", [+1, -1])
def test_the_relative_correction_is_that_of_the_definition(charge: int) -> None:
    for pt in (4.0, 9.0, 45.0):
        exact = corrected_curvature(1.0 / pt, charge, A, E, M) * pt - 1.0
        assert relative_correction(pt, charge, A, E, M) == pytest.approx(exact, abs=5e-16)


def test_the_jacobian_is_the_derivative() -> None:
    pt, charge = np.array([4.0, 9.0, 45.0, 4.0]), np.array([1.0, -1.0, 1.0, -1.0])
    jacobian = correction_jacobian(pt, charge)
    assert jacobian.shape == (4, 3)
    for p, step in enumerate(np.diag([1e-3, 1e-3, 1e-3])):
        up, down = (relative_correction(pt, charge, *(sign * step)) for sign in (1.0, -1.0))
        np.testing.assert_allclose(jacobian[:, p], (up - down) / 2e-3, rtol=1e-12)


def test_arguments_broadcast() -> None:
    assert relative_correction(np.ones((5, 1)), np.array([1, -1]), A, E, M).shape == (5, 2)
    assert correction_jacobian(np.ones((5, 1)), np.array([1, -1])).shape == (5, 2, 3)
