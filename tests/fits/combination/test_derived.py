"""Functions of observables against numerical derivatives, and what a hidden offset may not change."""

from collections.abc import Callable

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.fits.combination import (
    blinded,
    blue,
    combine,
    difference,
    normalised,
    ratio,
    scan_correlations,
    unblinded,
)
from musclecal.records import Combined, CorrelationRange, Derived, Floats, Measurements

Make = Callable[..., Measurements]


def numerical(function: Callable[[Floats], Floats], at: Floats) -> Floats:
    """(n_out, m) derivatives."""
    steps = 1e-5 * np.eye(len(at))
    return np.stack([(function(at + h) - function(at - h)) / 2e-5 for h in steps], axis=1)


def three_bins(random_measurements: Make) -> Combined:
    return combine(random_measurements(1, n=9, m=3))


@pytest.mark.parametrize(
    ("derive", "function"),
    [
        (lambda c: difference(c, 0, 2), lambda x: np.array([x[0] - x[2]])),
        (lambda c: ratio(c, 1, 0), lambda x: np.array([x[1] / x[0]])),
        (normalised, lambda x: x / x.sum()),
    ],
)
def test_values_and_covariance(
    derive: Callable[[Combined], Derived],
    function: Callable[[Floats], Floats],
    random_measurements: Make,
) -> None:
    combined = three_bins(random_measurements)
    found, jacobian = derive(combined), numerical(function, combined.values)
    np.testing.assert_allclose(found.values, function(combined.values), rtol=1e-14)
    np.testing.assert_allclose(found.jacobian, jacobian, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.covariance, jacobian @ combined.covariance @ jacobian.T, rtol=1e-6)
    np.testing.assert_allclose(sum(found.by_source.values()), found.covariance, rtol=1e-10, atol=1e-15)
    assert len(found.names) == len(found.values)


def test_normalised_bins_add_up_to_one_without_uncertainty(random_measurements: Make) -> None:
    found = normalised(three_bins(random_measurements))
    assert found.values.sum() == pytest.approx(1.0, rel=1e-15)
    np.testing.assert_allclose(found.covariance.sum(axis=0), 0.0, atol=1e-16)


def test_a_common_source_leaves_normalised_bins() -> None:
    """Luminosity, the same share of every bin."""
    y = np.array([10.0, 20.0, 30.0])
    found = normalised(blue(y, {"stat": np.diag(y), "luminosity": 0.02**2 * np.outer(y, y)}, np.eye(3)))
    np.testing.assert_allclose(found.by_source["luminosity"], 0.0, atol=1e-17)
    f = y / 60.0
    np.testing.assert_allclose(found.by_source["stat"], (np.diag(f) - np.outer(f, f)) / 60.0, rtol=1e-12)


def test_names(random_measurements: Make) -> None:
    combined = three_bins(random_measurements)
    assert difference(combined, 0, 1).names == ("m0 - m1",)
    assert ratio(combined, 2, 1).names == ("m2 / m1",)
    assert normalised(combined).names == ("m0", "m1", "m2")


def test_what_is_not_defined() -> None:
    zero = blue([0.0, 1.0], {"s": np.eye(2)}, np.eye(2))
    with pytest.raises(InputError, match="ratio: observable 0 is 0"):
        ratio(zero, 1, 0)
    with pytest.raises(InputError, match="no observable 2 among 2"):
        difference(zero, 0, 2)
    with pytest.raises(InputError, match="add up to 0"):
        normalised(blue([-1.0, 1.0], {"s": np.eye(2)}, np.eye(2)))


class TestBlinding:
    PASSPHRASE = "not before the unblinding"

    def test_hides_the_values_alone(self, random_measurements: Make) -> None:
        given = random_measurements(3)
        hidden = blinded(given, self.PASSPHRASE, 50.0)
        found, seen = combine(hidden), combine(given)
        offset = found.values - seen.values
        assert offset[0] == pytest.approx(offset[1], rel=1e-12)
        assert 0.01 < abs(offset[0]) < 50.0
        assert found.chi2 == pytest.approx(seen.chi2, rel=1e-10)
        np.testing.assert_allclose(found.pulls, seen.pulls, rtol=1e-9)
        np.testing.assert_array_equal(found.covariance, seen.covariance)
        np.testing.assert_allclose(difference(found, 0, 1).values, difference(seen, 0, 1).values, rtol=1e-10)

    def test_keeps_scans(self, lhc: Measurements) -> None:
        scans = {"b jets": (CorrelationRange("bJES", tuple((0, j) for j in range(6, 13)), 0.5, 1.0),)}
        hidden = scan_correlations(blinded(lhc, self.PASSPHRASE, 5.0), scans)["b jets"]
        seen = scan_correlations(lhc, scans)["b jets"]
        np.testing.assert_allclose(hidden.half_range_values, seen.half_range_values, rtol=1e-9)
        np.testing.assert_allclose(hidden.half_range_errors, seen.half_range_errors, rtol=1e-9)
        np.testing.assert_allclose(hidden.value_derivative, seen.value_derivative, rtol=1e-9)
        np.testing.assert_allclose(hidden.chi2, seen.chi2, rtol=1e-9)

    def test_is_undone(self, random_measurements: Make) -> None:
        given = random_measurements(4)
        found = unblinded(combine(blinded(given, self.PASSPHRASE, 50.0)), self.PASSPHRASE, 50.0)
        np.testing.assert_allclose(found.values, combine(given).values, rtol=1e-13)
        np.testing.assert_allclose(found.inputs, given.values, rtol=1e-13)

    def test_passphrases_differ_and_fill_the_range(self) -> None:
        one = Measurements(np.zeros(1), {}, np.ones((1, 1)), ("a",), ("x",))
        offsets = np.array([blinded(one, str(n), 2.0).values[0] for n in range(1000)])
        assert np.all(np.abs(offsets) <= 2.0)
        assert offsets.mean() == pytest.approx(0.0, abs=4.5 * 2.0 / np.sqrt(3000.0))
        assert offsets.std() == pytest.approx(2.0 / np.sqrt(3.0), rel=0.08)
        assert len(np.unique(offsets)) == 1000

    @pytest.mark.parametrize(("passphrase", "size"), [("", 1.0), ("x", 0.0), ("x", np.inf), ("x", -1.0)])
    def test_what_hides_nothing(self, passphrase: str, size: float, random_measurements: Make) -> None:
        with pytest.raises(InputError, match="blinding"):
            blinded(random_measurements(1), passphrase, size)
