"""Leaving out an input in closed form, against combinations that are made again; groups; relative uncertainties."""

from collections.abc import Callable

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.fits.combination import blue, blue_rescaled, combine, combine_groups, leave_one_out
from musclecal.records import Combined, Measurements

Make = Callable[..., Measurements]


def without(given: Measurements, i: int) -> Combined:
    keep = np.delete(np.arange(len(given.values)), i)
    sources = {name: covariance[np.ix_(keep, keep)] for name, covariance in given.covariances.items()}
    return blue(given.values[keep], sources, given.design[keep])


class TestLeaveOneOut:
    @pytest.mark.parametrize("seed", range(6))
    def test_is_the_combination_of_the_others(self, seed: int, random_measurements: Make) -> None:
        given = random_measurements(seed, n=8, m=1 + seed % 3)
        found = combine(given)
        left = leave_one_out(found)
        for i in range(8):
            expected = without(given, i)
            np.testing.assert_allclose(left.values[i], expected.values, rtol=1e-11)
            np.testing.assert_allclose(left.covariance[i], expected.covariance, rtol=1e-10, atol=1e-12)
            assert left.chi2[i] == pytest.approx(expected.chi2, rel=1e-9, abs=1e-10)
            assert left.ndf[i] == expected.ndf
            variance = np.diagonal(expected.covariance)
            lost = 1.0 - np.diagonal(found.covariance) / variance
            np.testing.assert_allclose(found.marginal_weights[:, i], lost, atol=1e-11)

    def test_compatibility_squared_is_the_loss_of_chi2(self, lhc: Measurements) -> None:
        found = combine(lhc)
        left = leave_one_out(found)
        np.testing.assert_allclose(left.compatibility**2, found.chi2 - left.chi2, rtol=1e-9)

    def test_the_only_input_of_an_observable(self) -> None:
        """The other observable stays what it is, with the same number of degrees of freedom."""
        rng = np.random.default_rng(3)
        root = rng.normal(size=(4, 4))
        design = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        found = blue([1.0, 2.0, 1.5, 7.0], {"all": root @ root.T + np.eye(4)}, design)
        left = leave_one_out(found)
        assert np.isnan(left.values[3, 1])
        assert np.all(np.isnan(left.covariance[3, 1]))
        assert left.values[3, 0] == pytest.approx(found.values[0], rel=1e-12)
        assert left.covariance[3, 0, 0] == pytest.approx(found.covariance[0, 0], rel=1e-12)
        assert left.chi2[3] == pytest.approx(found.chi2, rel=1e-12)
        np.testing.assert_array_equal(left.ndf, [1, 1, 1, 2])
        assert np.isnan(left.compatibility[3])
        assert found.marginal_weights[1, 3] == pytest.approx(1.0, abs=1e-9)


class TestGroups:
    def test_groups_of_one_are_the_combination(self, random_measurements: Make) -> None:
        given = random_measurements(1)
        groups = {name: [i] for i, name in enumerate(given.names)}
        found = combine_groups(given.values, given.covariances, groups, given.design)
        expected = combine(given)
        np.testing.assert_allclose(found.combined.values, expected.values, rtol=1e-12)
        np.testing.assert_allclose(found.combined.covariance, expected.covariance, rtol=1e-11)

    def test_two_groups_of_two_observables(self, random_measurements: Make) -> None:
        """Independent groups lose nothing, and fixed weights never gain."""
        given = random_measurements(2, n=8)
        groups = {"first": range(4), "second": range(4, 8)}
        statistics = {"statistics": given.covariances["statistics"]}
        found = combine_groups(given.values, statistics, groups, given.design)
        np.testing.assert_allclose(
            found.combined.values, blue(given.values, statistics, given.design).values, rtol=1e-12
        )
        assert found.combined.names == (
            "first observable 0",
            "first observable 1",
            "second observable 0",
            "second observable 1",
        )
        correlated = combine_groups(given.values, given.covariances, groups, given.design).combined
        loss = correlated.covariance - combine(given).covariance
        assert np.linalg.eigvalsh(loss)[0] > -1e-12

    @pytest.mark.parametrize(
        ("groups", "message"),
        [
            ({"a": [0, 1]}, "input 2 is in 0 groups"),
            ({"a": [0, 1, 2], "b": [2]}, "in 2"),
            ({"a": [0, 1, 2, 3]}, "no input 3"),
        ],
    )
    def test_inputs_in_no_or_two_groups(self, groups: dict[str, list[int]], message: str) -> None:
        with pytest.raises(InputError, match=message):
            combine_groups([1.0, 2.0, 3.0], {"s": np.eye(3)}, groups)


class TestRescaled:
    def test_two_inputs_with_relative_uncertainties(self) -> None:
        """Both with 10 per cent: the plain mean, where uncertainties as measured pull to the lower input."""
        y = np.array([8.0, 12.0])
        found = blue_rescaled(y, {"scale": np.diag((0.1 * y) ** 2)}, ["scale"])
        assert found.converged
        assert found.first.values[0] < 9.5
        assert found.combined.values[0] == pytest.approx(10.0, rel=1e-12)
        assert found.combined.errors[0] == pytest.approx(1.0 / np.sqrt(2.0), rel=1e-12)

    def test_the_statistical_part_stays(self) -> None:
        y, stat = np.array([8.0, 12.0]), np.diag([1.0, 4.0])
        luminosity = 0.05**2 * np.outer(y, y)
        found = blue_rescaled(y, {"stat": stat, "luminosity": luminosity}, ["luminosity"])
        expected = blue(y, {"stat": stat}).values[0]
        assert found.combined.values[0] == pytest.approx(expected, rel=1e-9)
        assert found.combined.by_source["luminosity"][0, 0] == pytest.approx((0.05 * expected) ** 2, rel=1e-9)
        assert found.combined.by_source["stat"][0, 0] == pytest.approx(0.8, rel=1e-9)
        assert found.first.values[0] < expected

    def test_it_is_a_fixed_point(self, ttbar: Measurements) -> None:
        relative = ["Vdm", "Lumi", "STop"]
        found = blue_rescaled(ttbar.values, ttbar.covariances, relative)
        scale = found.combined.values[0] / ttbar.values
        again = blue(
            ttbar.values,
            {n: c * np.outer(scale, scale) if n in relative else c for n, c in ttbar.covariances.items()},
        )
        assert again.values[0] == pytest.approx(found.combined.values[0], abs=1e-8)
        assert found.iterations < 10

    def test_without_relative_sources_nothing_changes(self, ttbar: Measurements) -> None:
        found = blue_rescaled(ttbar.values, ttbar.covariances, [])
        assert found.iterations == 1
        assert found.combined.values[0] == found.first.values[0]

    def test_no_convergence_is_said(self, ttbar: Measurements) -> None:
        found = blue_rescaled(ttbar.values, ttbar.covariances, ["Lumi"], max_iterations=1)
        assert not found.converged

    @pytest.mark.parametrize(
        ("values", "relative", "message"),
        [
            ([1.0, 2.0], "lumi", "no source 'lumi'"),
            ([0.0, 2.0], "s", "input 0 is 0"),
            ([-1.0, 20.0], "s", "input 0 .*opposite signs"),
        ],
    )
    def test_what_cannot_be_relative(self, values: list[float], relative: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            blue_rescaled(values, {"s": np.eye(2)}, [relative])
