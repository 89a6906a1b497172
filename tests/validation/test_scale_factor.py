"""s from modes: closed forms for equal ratios, scipy otherwise, and toys that say whether the interval covers."""

import time

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binomtest, chi2

from musclecal.covariance import chi2_of
from musclecal.errors import InputError
from musclecal.records import Floats
from musclecal.validation.scale_factor import (
    Modes,
    common_modes,
    covering_factor,
    likelihood_factor,
    likelihood_interval,
    scale_factor,
    solved_factors,
    toy_factors,
    toy_interval,
)

RATIOS = np.geomspace(0.15, 4.0, 48)
"""As uneven as those of a Z closure of a small J/psi calibration."""


def positive(rng: np.random.Generator, n: int) -> Floats:
    """(n, n) a covariance with variances around one and correlations of all sizes."""
    root = rng.normal(size=(n, 2 * n)) / np.sqrt(2 * n)
    return np.asarray(root @ root.T)


def experiment(rng: np.random.Generator, s: float, ratio: Floats) -> Modes:
    return Modes(rng.normal(size=ratio.size) ** 2 * (1.0 + s * s * ratio), ratio)


# Modes


def test_modes_give_the_chi2_and_the_likelihood_of_the_matrices() -> None:
    rng = np.random.default_rng(1)
    unit = np.array([1e-4, 1e-5, 3.0, 1.0, 1e3, 1e-2])
    j, w = (np.outer(unit, unit) * positive(rng, 6) for _ in range(2))
    r = 3.0 * unit * rng.normal(size=6)
    modes = common_modes(r, j, w)
    for s in (0.0, 0.7, 3.0):
        assert modes.chi2(s) == pytest.approx(chi2_of(r, s**2 * j + w).chi2, rel=1e-9)
        dense = np.linalg.slogdet(s**2 * j + w)[1] + chi2_of(r, s**2 * j + w).chi2
        zero = np.linalg.slogdet(w)[1] + chi2_of(r, w).chi2
        difference = modes.log_likelihood(s) - modes.log_likelihood(0.0)
        assert difference == pytest.approx(dense - zero, rel=1e-8, abs=1e-8)


def test_a_part_of_lower_rank_has_ratios_of_zero() -> None:
    rng = np.random.default_rng(2)
    root = rng.normal(size=(6, 4))
    modes = common_modes(np.ones(6), root @ root.T, np.eye(6))
    np.testing.assert_allclose(np.sort(modes.ratio)[:2], 0.0, rtol=0.0, atol=1e-12)
    assert np.all(modes.ratio >= 0.0)


def test_what_is_no_covariance_is_refused_by_name() -> None:
    names = ("A0 of Z", "M0 of Z")
    negative = np.array([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(InputError, match=r"not positive semi-definite.*[AM]0 of Z"):
        common_modes(np.ones(2), negative, np.eye(2), names)
    with pytest.raises(InputError, match="not positive semi-definite"):
        common_modes(np.ones(2), np.eye(2), negative, names)
    with pytest.raises(InputError, match="singular"):
        common_modes(np.ones(2), np.eye(2), np.ones((2, 2)), names)
    with pytest.raises(InputError, match="M0 of Z is not finite"):
        common_modes(np.array([1.0, np.nan]), np.eye(2), np.eye(2), names)
    with pytest.raises(InputError, match=r"shapes \(3, 3\) and \(2, 2\)"):
        common_modes(np.ones(2), np.eye(3), np.eye(2))


# The solution


@pytest.mark.parametrize("spread", [1.0, 3.0, 6.0])
def test_solutions_of_many_residuals_are_those_of_a_root_finder(spread: float) -> None:
    rng = np.random.default_rng(3)
    ratio = 10.0 ** rng.uniform(-spread, spread, size=12)
    pulls = rng.normal(size=(40, 12)) ** 2 * 10.0 ** rng.uniform(0.0, 3.0, size=(40, 1))
    found = solved_factors(pulls, ratio)
    for s, pull in zip(found, pulls, strict=True):
        modes = Modes(pull, ratio)
        if pull.sum() <= 12:
            assert s == 0.0
        else:
            high = np.sqrt(pull.sum() / ratio.min())
            root = brentq(lambda x, m=modes: m.chi2(x) - 12.0, 0.0, high, xtol=1e-15, rtol=1e-14)
            assert s == pytest.approx(root, rel=1e-9)


def test_equal_ratios_have_a_closed_form_that_is_also_the_most_likely_value() -> None:
    pulls = np.random.default_rng(4).normal(size=20) ** 2 * 5.0
    modes = Modes(pulls, np.full(20, 1.7))
    expected = np.sqrt((pulls.mean() - 1.0) / 1.7)
    assert covering_factor(modes) == pytest.approx(expected, rel=1e-12)
    assert likelihood_factor(modes) == pytest.approx(expected, rel=1e-6)


def test_no_factor_helps_where_the_calibration_has_no_part() -> None:
    ratio, pulls = np.array([0.0, 1.0]), np.array([2.5, 100.0])
    assert solved_factors(pulls[None, :], ratio)[0] == np.inf
    assert solved_factors(np.array([[1.5, 100.0]]), ratio)[0] == pytest.approx(np.sqrt(199.0))
    with pytest.raises(InputError, match="no scale factor"):
        covering_factor(Modes(pulls, ratio))
    with pytest.raises(InputError, match="no scale factor"):
        scale_factor(np.full(3, 2.0), np.zeros((3, 3)), np.eye(3))


def test_s_and_not_its_square() -> None:
    """Residuals three times the calibration's error, on an exact closure: s = 3."""
    assert scale_factor(np.full(4, 3.0), np.eye(4), 1e-12 * np.eye(4)) == pytest.approx(3.0, rel=1e-9)


# Likelihood


def test_the_likelihood_is_smallest_there() -> None:
    rng = np.random.default_rng(5)
    scan = np.linspace(0.0, 6.0, 6001)
    for s in (0.0, 1.0, 2.1):
        modes = experiment(rng, s, RATIOS)
        values = [modes.log_likelihood(x) for x in scan]
        assert likelihood_factor(modes) == pytest.approx(scan[np.argmin(values)], abs=1e-3)


def test_the_deeper_of_two_minima_is_found() -> None:
    """One precise mode asks for a small s, many weak ones for a large s."""
    ratio = np.array([1e4] * 10 + [1e-2] * 10)
    for weak, expected in ((200.0, 100.0), (5.0, 0.1)):
        modes = Modes(np.array([101.0] * 10 + [weak] * 10), ratio)
        scan = np.geomspace(1e-3, 1e3, 20001)
        values = np.array([modes.log_likelihood(x) for x in scan])
        found = likelihood_factor(modes)
        assert found == pytest.approx(scan[np.argmin(values)], rel=1e-3)
        assert 0.3 < found / expected < 3.0


def test_likelihood_is_zero_where_residuals_are_small_and_has_a_closed_interval() -> None:
    small = Modes(np.full(10, 0.3), np.ones(10))
    assert likelihood_factor(small) == 0.0
    (low, high), _ = likelihood_interval(small, 0.0)
    assert low == 0.0
    assert small.log_likelihood(high) - small.log_likelihood(0.0) == pytest.approx(1.0, abs=1e-6)
    modes = Modes(np.full(30, 3.0), np.ones(30))
    s = likelihood_factor(modes)
    assert s == pytest.approx(np.sqrt(2.0), rel=1e-6)
    for (low, high), rise in zip(likelihood_interval(modes, s), (1.0, 3.841459), strict=True):
        assert low < s < high
        for end in (low, high):
            assert modes.log_likelihood(end) - modes.log_likelihood(s) == pytest.approx(rise, abs=1e-6)


def test_without_a_calibration_part_the_likelihood_knows_nothing() -> None:
    modes = Modes(np.ones(3), np.zeros(3))
    assert likelihood_factor(modes) == 0.0
    assert likelihood_interval(modes, 0.0) == ((0.0, np.inf), (0.0, np.inf))


# Toys


@pytest.mark.parametrize("ratio", [1.0, 2.0, 20.0])
@pytest.mark.parametrize("n", [48, 144])
def test_toys_of_an_honest_calibration_find_one(n: int, ratio: float) -> None:
    """The bar of the project: V_J/V_C >= 1 and n >= 48."""
    toys = toy_factors(np.full(n, ratio))
    assert np.median(toys) == pytest.approx(1.0, abs=0.05)
    assert np.mean((toys > 0.78) & (toys < 1.22)) > 0.68


def test_toys_of_uneven_covariances_find_one() -> None:
    toys = toy_factors(np.geomspace(1.0, 30.0, 48))
    assert np.median(toys) == pytest.approx(1.0, abs=0.05)
    assert np.quantile(toys, 0.16) > 0.78
    assert np.quantile(toys, 0.84) < 1.22


@pytest.mark.parametrize("ratio", [np.ones(48), RATIOS, np.geomspace(1.0, 30.0, 48)])
def test_toys_of_a_calibration_that_is_wrong_by_2_1_find_it(ratio: Floats) -> None:
    assert 2.05 < np.median(toy_factors(ratio, 2.1)) < 2.15


def test_toys_are_those_of_equal_ratios_in_closed_form() -> None:
    """s^2 = (1 + t^2) chi2_n/n - 1 for t = 1.5 and ratio 1, or 0."""
    toys = toy_factors(np.ones(30), 1.5, n_toys=20_000)
    probability = np.array([0.05, 0.16, 0.5, 0.84, 0.95])
    expected = np.sqrt(3.25 * chi2.ppf(probability, 30) / 30 - 1.0)
    np.testing.assert_allclose(np.quantile(toys, probability), expected, rtol=0.0, atol=0.015)


def test_toys_depend_on_the_seed_alone() -> None:
    toys = toy_factors(RATIOS, n_toys=5000)
    np.testing.assert_array_equal(toy_factors(RATIOS, n_toys=2500), toys[:2500])
    np.testing.assert_array_equal(toy_factors(RATIOS, n_toys=5000), toys)
    assert not np.any(toy_factors(RATIOS, n_toys=5000, seed=2) == toys)


def test_ten_thousand_toys_take_less_than_a_second() -> None:
    start = time.perf_counter()
    toy_factors(np.geomspace(0.1, 10.0, 144))
    assert time.perf_counter() - start < 1.0


# The interval


def test_the_interval_of_equal_ratios_in_closed_form() -> None:
    """Limits t with (1 + t^2 ratio)/(1 + s^2 ratio) chi2_n = n at the quantiles of chi2_n."""
    s, ratio, n = 1.3, 0.8, 48
    found = np.array(toy_interval(s, np.full(n, ratio), n_toys=40_000))
    quantiles = chi2.ppf([[0.84, 0.16], [0.975, 0.025]], n)
    expected = np.sqrt((n * (1.0 + s * s * ratio) / quantiles - 1.0) / ratio)
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=0.012)


def test_at_its_limits_the_observed_value_is_as_rare_as_stated() -> None:
    """What the interval means, by toys thrown at the limits, with other random numbers."""
    s = 1.2
    (low, high), (lowest, highest) = toy_interval(s, RATIOS, n_toys=40_000)
    for limit, probability in ((low, 0.16), (lowest, 0.025)):
        assert np.mean(toy_factors(RATIOS, limit, seed=7) >= s) == pytest.approx(probability, abs=0.012)
    for limit, probability in ((high, 0.16), (highest, 0.025)):
        assert np.mean(toy_factors(RATIOS, limit, seed=8) <= s) == pytest.approx(probability, abs=0.012)


@pytest.mark.parametrize("truth", [0.7, 1.0, 2.1])
def test_the_intervals_cover(truth: float) -> None:
    rng = np.random.default_rng(6)
    n, inside, inside_ml = 600, np.zeros(2), np.zeros(2)
    for _ in range(n):
        modes = experiment(rng, truth, RATIOS)
        s, s_ml = covering_factor(modes), likelihood_factor(modes)
        inside += [low <= truth <= high for low, high in toy_interval(s, RATIOS, n_toys=1500)]
        inside_ml += [low <= truth <= high for low, high in likelihood_interval(modes, s_ml)]
    for found in (inside, inside_ml):
        for count, level in zip(found, (0.68, 0.95), strict=True):
            assert binomtest(int(count), n, level).pvalue > 1e-3


def test_where_s_is_zero_the_interval_begins_at_zero() -> None:
    (low, high), (_, highest) = toy_interval(0.0, np.ones(48), n_toys=40_000)
    assert low == 0.0
    assert high == pytest.approx(np.sqrt(48 / chi2.ppf(0.16, 48) - 1.0), abs=0.01)
    assert highest > high


def test_an_interval_without_calibration_part_is_open() -> None:
    assert toy_interval(0.0, np.zeros(4), n_toys=100) == ((0.0, np.inf), (0.0, np.inf))
