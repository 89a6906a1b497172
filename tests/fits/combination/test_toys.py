"""Toys of the shifts: reproducible, flips as Gaussian tails say, small errors to first order."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from musclecal.errors import InputError
from musclecal.fits.combination import combine, shift_toys
from musclecal.records import Measurements, Source

Make = Callable[..., Measurements]
WithErrors = Callable[[Measurements, float], Measurements]


def one_source(shift_errors: list[float]) -> Measurements:
    shifts = np.array([0.1, -0.05, 0.0])
    return Measurements(
        np.array([1.0, 2.0, 3.0]),
        {
            "model": Source(shifts, np.ones((3, 3)), np.array(shift_errors)),
            "statistics": Source(np.array([1.0, 0.5, 2.0]), np.eye(3)),
        },
        np.ones((3, 1)),
        ("a", "b", "c"),
        ("x",),
    )


def test_flips_are_gaussian_tails() -> None:
    n_toys = 20_000
    toys = shift_toys(one_source([0.1, 0.1, 0.1]), n_toys)
    expected = n_toys * norm.cdf([-1.0, -0.5])
    assert toys.sources == ("model",)
    np.testing.assert_allclose(toys.flips[0, :2], expected, atol=4.5 * np.sqrt(n_toys / 4.0))
    assert toys.flips[0, 2] == 0


def test_without_errors_all_toys_are_the_combination() -> None:
    toys = shift_toys(one_source([0.0, 0.0, 0.0]), 700)
    np.testing.assert_allclose(toys.values, np.tile(toys.nominal_values, (700, 1)), rtol=1e-14)
    np.testing.assert_allclose(toys.errors, np.tile(toys.nominal_errors, (700, 1)), rtol=1e-14)
    assert not np.any(toys.flips)
    np.testing.assert_allclose(np.concatenate([*toys.spread, *toys.bias]), 0.0, atol=1e-13)


def test_a_toy_is_a_combination_of_moved_shifts(random_measurements: Make, with_errors: WithErrors) -> None:
    """The random numbers of block 0 by hand."""
    given = with_errors(random_measurements(3), 0.2)
    toys = shift_toys(given, 3, seed=8)
    names = toys.sources
    normal = np.random.Generator(np.random.Philox(key=[8, 0])).standard_normal((500, len(names), 7))
    for t in range(3):
        sources = dict(given.sources)
        for s, name in enumerate(names):
            sources[name] = replace(sources[name], shifts=sources[name].shifts + 0.2 * normal[t, s])
        expected = combine(replace(given, sources=sources))
        np.testing.assert_allclose(toys.values[t], expected.values, rtol=1e-12)
        np.testing.assert_allclose(toys.errors[t], expected.errors, rtol=1e-11)


def test_small_errors_move_the_values_to_first_order(random_measurements: Make) -> None:
    """dx = -W dV P y with dV from each shift, quadratically summed."""
    given, size = random_measurements(4), 1e-3
    source = given.sources["source 1"]
    moving = replace(source, shift_errors=np.full(7, size))
    found = combine(given)
    right = found.residual_precision @ found.residuals
    variance = np.zeros(2)
    for i in range(7):
        change = np.zeros((7, 7))
        change[i] += source.correlation[i] * source.shifts
        change[:, i] += source.correlation[:, i] * source.shifts
        variance += (size * (found.weights @ change @ right)) ** 2
    toys = shift_toys(replace(given, sources={**given.sources, "source 1": moving}), 20_000)
    np.testing.assert_allclose(toys.spread[0], np.sqrt(variance), rtol=0.03)


def test_fewer_toys_are_the_first_of_many(lhc: Measurements, with_errors: WithErrors) -> None:
    given = with_errors(lhc, 0.05)
    many, few = shift_toys(given, 1200, seed=3), shift_toys(given, 700, seed=3)
    np.testing.assert_array_equal(few.values, many.values[:700])
    assert not np.array_equal(shift_toys(given, 700, seed=4).values, few.values)


def test_toys_without_a_combination_are_counted() -> None:
    """Three correlations of -0.9 contradict each other as soon as the source outgrows the statistics."""
    rho = np.full((3, 3), -0.9) + 1.9 * np.eye(3)
    given = Measurements(
        np.arange(3.0),
        {
            "model": Source(np.full(3, 0.5), rho, np.full(3, 1.0)),
            "statistics": Source(np.ones(3), np.eye(3)),
        },
        np.ones((3, 1)),
        ("a", "b", "c"),
        ("x",),
    )
    toys = shift_toys(given, 1000)
    assert 0 < toys.n_failed < 1000
    assert np.count_nonzero(np.isnan(toys.values)) == toys.n_failed
    assert np.isfinite(toys.spread[0][0])


def test_10000_toys_of_the_lhc_combination(lhc: Measurements, with_errors: WithErrors) -> None:
    given = with_errors(lhc, 0.05)
    start = time.perf_counter()
    toys = shift_toys(given, 10_000)
    assert time.perf_counter() - start < 2.0
    assert toys.n_failed == 0
    assert toys.values.shape == (10_000, 1)
    assert toys.flips.shape == (25, 15)


@pytest.mark.parametrize(
    ("errors", "n_toys", "message"),
    [
        ([0.1, -0.1, 0.1], 10, "source model: errors of shifts must be 3 numbers"),
        ([0.1, 0.1], 10, "3 numbers"),
        ([0.1, np.nan, 0.1], 10, "3 numbers"),
        ([0.1, 0.1, 0.1], 0, "0 of them"),
    ],
)
def test_bad_errors(errors: list[float], n_toys: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        shift_toys(one_source(errors), n_toys)


def test_no_source_with_errors(lhc: Measurements) -> None:
    with pytest.raises(InputError, match="no source has errors"):
        shift_toys(lhc, 10)
