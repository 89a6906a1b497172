"""Scans against combinations that are made again, derivatives against differences, extremes against all corners."""

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.fits.combination import combine, scan_correlations, worst_case
from musclecal.records import Combined, CorrelationRange, Floats, Measurements, Source

Make = Callable[..., Measurements]
Between = Callable[..., tuple[CorrelationRange, ...]]
PAIRS = ((0, 1), (2, 5), (3, 4))


def at(given: Measurements, part: CorrelationRange, rho: float) -> Measurements:
    source = given.sources[part.source]
    correlation = source.correlation.copy()
    for i, j in part.pairs:
        correlation[i, j] = correlation[j, i] = rho
    return replace(given, sources={**given.sources, part.source: replace(source, correlation=correlation)})


def same_pairs(given: Measurements, source: str, rho: float) -> Measurements:
    return at(given, CorrelationRange(source, PAIRS, -1.0, 1.0), rho)


class TestScan:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("nominal", [None, 0.3])
    def test_points_are_combinations(
        self, seed: int, nominal: float | None, random_measurements: Make
    ) -> None:
        """From pairs with different nominal correlations, and from pairs with the same one."""
        given = random_measurements(seed, m=1 + seed % 2)
        if nominal is not None:
            given = same_pairs(given, "source 1", nominal)
        part = CorrelationRange("source 1", PAIRS, -0.2, 0.6)
        scan = scan_correlations(given, {"scan": (part,)}, points=9)["scan"]
        np.testing.assert_allclose(scan.rho, np.linspace(-0.2, 0.6, 9), atol=1e-15)
        expected = [combine(at(given, part, rho)) for rho in scan.rho]
        np.testing.assert_allclose(scan.values, [e.values for e in expected], rtol=1e-11)
        np.testing.assert_allclose(scan.errors, [e.errors for e in expected], rtol=1e-10)
        np.testing.assert_allclose(scan.chi2, [e.chi2 for e in expected], rtol=1e-9)
        np.testing.assert_allclose(
            scan.half_range_values, 0.5 * np.ptp([e.values for e in expected], axis=0), rtol=1e-8
        )

    @pytest.mark.parametrize("seed", range(5))
    def test_derivatives_are_differences(self, seed: int, random_measurements: Make) -> None:
        given = same_pairs(random_measurements(seed), "source 2", 0.2)
        part = CorrelationRange("source 2", PAIRS, 0.0, 0.8)
        scan = scan_correlations(given, {"scan": (part,)})["scan"]
        step = 1e-4
        up, down = combine(at(given, part, 0.2 + step)), combine(at(given, part, 0.2 - step))

        def slope(read: Callable[[Combined], Floats]) -> Floats:
            return np.asarray((read(up) - read(down)) / (2.0 * step))

        np.testing.assert_allclose(scan.value_derivative, slope(lambda c: c.values), rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(
            scan.covariance_derivative, slope(lambda c: c.covariance), rtol=1e-5, atol=1e-8
        )
        np.testing.assert_allclose(scan.error_derivative, slope(lambda c: c.errors), rtol=1e-5, atol=1e-8)

    def test_sources_that_move_together(self, random_measurements: Make) -> None:
        given = random_measurements(7)
        first = CorrelationRange("source 0", PAIRS, 0.0, 0.5)
        second = CorrelationRange("source 1", ((0, 6),), -0.4, 0.1)
        scan = scan_correlations(given, {"both": (first, second)}, points=6)["both"]
        for rho, values in zip(scan.rho, scan.values, strict=True):
            expected = combine(at(at(given, first, rho), second, rho - 0.4))
            np.testing.assert_allclose(values, expected.values, rtol=1e-11)

    def test_where_a_combination_exists(self) -> None:
        """Two inputs with 0.01 of independent variance beside 1: rho up to 1.01; three pairs of -1 do not go."""
        given = two_and_three(3)
        pairs = ((0, 1), (0, 2), (1, 2))
        scan = scan_correlations(given, {"all": (CorrelationRange("common", pairs, -1.0, 1.0),)}, points=5)[
            "all"
        ]
        np.testing.assert_allclose(scan.allowed, [-0.505, 1.01], rtol=1e-9)
        np.testing.assert_array_equal(np.isnan(scan.values[:, 0]), [True, False, False, False, False])
        assert np.isnan(scan.half_range_values[0])

    def test_77_scans_of_20_points(self, lhc: Measurements) -> None:
        """Most sources in three kinds of pairs, filled up to 77."""
        kinds = {
            "a": [(i, j) for i in range(6) for j in range(i)],
            "c": [(i, j) for i in range(6, 15) for j in range(6, i)],
            "ac": [(i, j) for i in range(6) for j in range(6, 15)],
        }
        scans = {
            f"{name} {kind}": (CorrelationRange(name, tuple(pairs), 0.0, 0.5),)
            for name, source in lhc.sources.items()
            for kind, pairs in kinds.items()
            if any(source.shifts[i] * source.shifts[j] != 0.0 for i, j in pairs)
        }
        scans |= {f"{name} again": scans[name] for name in list(scans)[: max(77 - len(scans), 0)]}
        times = []
        for _ in range(3):
            start = time.perf_counter()
            found = scan_correlations(lhc, scans, points=20)
            times.append(time.perf_counter() - start)
        assert len(found) == 77
        assert min(times) < 0.25

    @pytest.mark.parametrize(
        ("ranges", "message"),
        [
            ([], "no range"),
            ([CorrelationRange("jets", PAIRS, 0.0, 1.0)], "no source 'jets'"),
            ([CorrelationRange("source 0", PAIRS, 0.5, 0.5)], "0.5 to 0.5 is no range"),
            ([CorrelationRange("source 0", PAIRS, 0.5, 1.5)], "0.5 to 1.5 is no range"),
            ([CorrelationRange("source 0", PAIRS, np.nan, 1.0)], "is no range"),
            ([CorrelationRange("source 0", (), 0.0, 1.0)], "no pair"),
            ([CorrelationRange("source 0", ((1, 1),), 0.0, 1.0)], "1 and 1 are no pair"),
            ([CorrelationRange("source 0", ((1, 7),), 0.0, 1.0)], "1 and 7 are no pair of the 7"),
            ([CorrelationRange("source 0", ((1, 2), (2, 1)), 0.0, 1.0)], "input 2 and input 1 are twice"),
            ([CorrelationRange("silent", PAIRS, 0.0, 1.0)], "silent moves no pair"),
        ],
    )
    def test_what_cannot_be_scanned(
        self, ranges: list[CorrelationRange], message: str, random_measurements: Make
    ) -> None:
        given = random_measurements(1)
        silent = replace(given.sources["source 0"], shifts=np.zeros(7))
        given = replace(given, sources={"silent": silent, **given.sources})
        with pytest.raises(InputError, match=message):
            scan_correlations(given, {"scan": ranges})

    def test_one_point(self, random_measurements: Make) -> None:
        with pytest.raises(InputError, match="at least 2"):
            scan_correlations(random_measurements(1), {}, points=1)


def two_and_three(n: int) -> Measurements:
    """n equal inputs, variance 1 of a common source and 0.01 of their own, not correlated."""
    return Measurements(
        np.arange(n, dtype=np.float64),
        {"common": Source(np.ones(n), np.eye(n)), "own": Source(np.full(n, 0.1), np.eye(n))},
        np.ones((n, 1)),
        tuple(f"input {i}" for i in range(n)),
        ("x",),
    )


class TestWorstCase:
    @pytest.mark.parametrize("seed", range(6))
    def test_is_the_extreme_of_a_fine_grid(self, seed: int, random_measurements: Make) -> None:
        given = random_measurements(seed, m=1)
        parts = [
            CorrelationRange("source 0", ((0, 1), (2, 3)), -0.3, 0.3),
            CorrelationRange("source 1", ((1, 4),), 0.0, 0.5),
            CorrelationRange("source 2", ((5, 6),), -0.5, 0.0),
        ]
        found = worst_case(given, {f"scan {n}": (part,) for n, part in enumerate(parts)})
        grid = []
        for rho in product(*(np.linspace(part.low, part.high, 5) for part in parts)):
            moved = given
            for part, value in zip(parts, rho, strict=True):
                moved = at(moved, part, value)
            combined = combine(moved)
            grid.append((combined.values[0], combined.errors[0]))
        values, errors = np.array(grid).T
        slack = 1e-9
        assert found["lowest value"].extreme <= values.min() + slack
        assert found["highest value"].extreme >= values.max() - slack
        assert found["smallest error"].extreme <= errors.min() + slack
        assert found["largest error"].extreme >= errors.max() - slack
        for case in found.values():
            assert case.converged
            moved = given
            for part, place in zip(parts, case.position, strict=True):
                moved = at(moved, part, part.low + place * (part.high - part.low))
            combined = combine(moved)
            reached = combined.values[0] if "value" in case.quantity else combined.errors[0]
            assert case.extreme == pytest.approx(reached, rel=1e-11)

    def test_one_range_is_its_scan(self, lhc: Measurements, between: Between) -> None:
        scans = {"bJES": between("bJES", 0.5, 1.0)}
        scan = scan_correlations(lhc, scans, points=21)["bJES"]
        found = worst_case(lhc, scans)
        assert found["lowest value"].extreme == pytest.approx(scan.values.min(), rel=1e-12)
        assert found["highest value"].extreme == pytest.approx(scan.values.max(), rel=1e-12)
        assert found["largest error"].extreme == pytest.approx(scan.errors.max(), rel=1e-12)
        assert found["largest error"].names == ("bJES",)

    def test_a_corner_that_does_not_exist_is_not_taken(self) -> None:
        given = two_and_three(3)
        scans = {
            f"{i}{j}": (CorrelationRange("common", ((i, j),), -0.9, 0.9),)
            for i, j in ((0, 1), (0, 2), (1, 2))
        }
        found = worst_case(given, scans)["smallest error"]
        assert np.isnan(found.corner)
        assert 0.0 < found.extreme < combine(given).errors[0]

    def test_the_nominal_correlation_may_be_outside(self, random_measurements: Make) -> None:
        part = CorrelationRange("source 1", PAIRS, 0.4, 0.6)
        given = same_pairs(random_measurements(1, m=1), "source 1", 0.0)
        found = worst_case(given, {"a": (part,)})
        ends = [combine(at(given, part, rho)).values[0] for rho in (0.4, 0.6)]
        assert found["lowest value"].extreme == pytest.approx(min(ends), rel=1e-12)
        assert found["highest value"].extreme == pytest.approx(max(ends), rel=1e-12)

    def test_a_pair_in_two_ranges(self, random_measurements: Make) -> None:
        scans = {name: (CorrelationRange("source 0", ((0, 1),), 0.0, 0.5),) for name in "ab"}
        with pytest.raises(InputError, match="scan b: input 0 and input 1 are twice"):
            worst_case(random_measurements(1), scans)

    @pytest.mark.parametrize(
        ("observable", "empty", "message"), [(0, True, "no range"), (2, False, "no obs")]
    )
    def test_what_has_no_extremes(
        self, observable: int, empty: bool, message: str, random_measurements: Make
    ) -> None:
        scans = {} if empty else {"a": (CorrelationRange("source 0", ((0, 1),), 0.0, 0.5),)}
        with pytest.raises(InputError, match=message):
            worst_case(random_measurements(1), scans, observable)
