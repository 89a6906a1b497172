"""BLUE against closed forms, against a fit of nuisances, and against toys."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2 as chi2_distribution

from musclecal.errors import InputError
from musclecal.fits.combination import blue, combine
from musclecal.records import Floats, Measurements

Make = Callable[..., Measurements]


def nuisance_fit(given: Measurements) -> tuple[Floats, Floats, float]:
    """Values, covariance and chi2 of min |V_stat^-1/2 (y - U x - sum_s L_s t_s)|^2 + |t|^2, by least squares."""
    *systematic, statistics = given.covariances.values()
    factors = []
    for covariance in systematic:
        size, vectors = np.linalg.eigh(covariance)
        factors.append(vectors * np.sqrt(np.maximum(size, 0.0)))
    shifts = np.concatenate(factors, axis=1)
    m, n_t = given.design.shape[1], shifts.shape[1]
    white = np.diag(1.0 / np.sqrt(np.diagonal(statistics)))
    upper = white @ np.concatenate([given.design, shifts], axis=1)
    lower = np.concatenate([np.zeros((n_t, m)), np.eye(n_t)], axis=1)
    matrix = np.concatenate([upper, lower])
    right = np.concatenate([white @ given.values, np.zeros(n_t)])
    solution = np.linalg.lstsq(matrix, right, rcond=None)[0]
    covariance = np.linalg.inv(matrix.T @ matrix)[:m, :m]
    return solution[:m], covariance, float(np.sum((right - matrix @ solution) ** 2))


class TestClosedForms:
    def test_a_single_input_returns_itself(self) -> None:
        found = blue([172.5], {"stat": [[0.09]], "syst": [[0.16]]})
        assert found.values[0] == pytest.approx(172.5, rel=1e-15)
        assert found.errors[0] == pytest.approx(0.5, rel=1e-15)
        assert (found.chi2, found.ndf, found.p_value) == (0.0, 0, 1.0)
        np.testing.assert_allclose(found.weights, [[1.0]], rtol=1e-15)
        np.testing.assert_allclose(found.intrinsic_weights, [[1.0]], rtol=1e-14)
        np.testing.assert_allclose(found.marginal_weights, [[1.0]], rtol=1e-14)
        assert np.isnan(found.pulls[0])

    @pytest.mark.parametrize("rho", [-0.9, 0.0, 0.3, 0.5, 0.8, 0.99])
    @pytest.mark.parametrize("z", [1.0, 2.0, 5.0])
    def test_the_weight_of_the_worse_of_two(self, rho: float, z: float) -> None:
        """beta = (1 - rho z)/(1 - 2 rho z + z^2), negative if and only if rho > 1/z."""
        found = blue([1.0, 2.0], {"all": [[1.0, rho * z], [rho * z, z**2]]})
        beta = (1.0 - rho * z) / (1.0 - 2.0 * rho * z + z**2)
        assert found.weights[0, 1] == pytest.approx(beta, abs=1e-13)
        assert found.values[0] == pytest.approx(1.0 + beta, rel=1e-13)
        assert found.covariance[0, 0] == pytest.approx(
            z**2 * (1.0 - rho**2) / (1.0 - 2.0 * rho * z + z**2), rel=1e-11
        )
        assert (found.weights[0, 1] < -1e-14) == (rho > 1.0 / z)

    def test_without_correlations_it_is_the_weighted_mean(self) -> None:
        y, sigma = np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 0.5])
        found = blue(y, {"stat": np.diag(sigma**2)})
        weight = sigma**-2 / np.sum(sigma**-2)
        mean = float(weight @ y)
        np.testing.assert_allclose(found.weights[0], weight, rtol=1e-14)
        np.testing.assert_allclose(found.marginal_weights[0], weight, rtol=1e-13)
        np.testing.assert_allclose(found.intrinsic_weights[0], weight, rtol=1e-13)
        assert found.correlation_weights[0] == pytest.approx(0.0, abs=1e-14)
        assert found.chi2 == pytest.approx(np.sum(((y - mean) / sigma) ** 2), rel=1e-13)
        assert found.p_value == pytest.approx(chi2_distribution.sf(found.chi2, 2), rel=1e-12)
        np.testing.assert_allclose(
            found.pulls, (y - mean) / np.sqrt(sigma**2 - 1.0 / np.sum(sigma**-2)), rtol=1e-13
        )

    def test_units_do_not_matter(self, random_measurements: Make) -> None:
        """A, e and M differ by five orders of magnitude."""
        given, unit = random_measurements(1), np.array([1e-5, 1e3])
        factor = given.design @ unit
        scaled = replace(
            given,
            values=given.values * factor,
            sources={name: replace(s, shifts=s.shifts * factor) for name, s in given.sources.items()},
        )
        before, after = combine(given), combine(scaled)
        np.testing.assert_allclose(after.values / unit, before.values, rtol=1e-12)
        np.testing.assert_allclose(after.covariance / np.outer(unit, unit), before.covariance, rtol=1e-11)
        assert after.chi2 == pytest.approx(before.chi2, rel=1e-10)


class TestAgainstNuisances:
    @pytest.mark.parametrize("seed", range(10))
    def test_blue_is_the_fit_of_nuisances(self, seed: int, random_measurements: Make) -> None:
        given = random_measurements(seed, n=9, m=1 + seed % 3)
        found = combine(given)
        values, covariance, chi2 = nuisance_fit(given)
        np.testing.assert_allclose(found.values, values, rtol=1e-10)
        size = np.outer(found.errors, found.errors)
        np.testing.assert_allclose(found.covariance / size, covariance / size, atol=1e-10)
        assert found.chi2 == pytest.approx(chi2, rel=1e-10)


class TestParts:
    @pytest.mark.parametrize("seed", range(5))
    def test_the_split_adds_up(self, seed: int, random_measurements: Make) -> None:
        found = combine(random_measurements(seed))
        np.testing.assert_allclose(sum(found.by_source.values()), found.covariance, rtol=1e-11, atol=1e-13)
        stat, syst = found.split(["statistics"])
        np.testing.assert_allclose(stat, found.by_source["statistics"], rtol=1e-15)
        np.testing.assert_allclose(stat + syst, found.covariance, rtol=1e-11, atol=1e-13)

    def test_a_split_by_a_source_that_is_not_there(self, random_measurements: Make) -> None:
        with pytest.raises(InputError, match="no source 'luminosity'"):
            combine(random_measurements(1)).split(["luminosity"])

    def test_the_impact_of_a_correlated_source_is_its_signed_part(self, random_measurements: Make) -> None:
        given = random_measurements(2)
        source = given.sources["source 0"]
        found = combine(
            replace(
                given,
                sources={
                    **given.sources,
                    "source 0": replace(source, correlation=np.ones_like(source.correlation)),
                },
            )
        )
        impact = found.impact(source.shifts)
        np.testing.assert_allclose(
            np.outer(impact, impact), found.by_source["source 0"], rtol=1e-10, atol=1e-14
        )

    def test_the_impact_is_what_a_shift_of_the_inputs_does(self, random_measurements: Make) -> None:
        given = random_measurements(3)
        shifts = given.sources["source 1"].shifts
        moved = combine(replace(given, values=given.values + shifts))
        found = combine(given)
        np.testing.assert_allclose(moved.values - found.values, found.impact(shifts), atol=1e-12)

    def test_residual_precision_gives_chi2(self, random_measurements: Make) -> None:
        found = combine(random_measurements(4))
        inverse = np.linalg.inv(found.input_covariance)
        np.testing.assert_allclose(
            found.residual_precision @ found.inputs, inverse @ found.residuals, atol=1e-11
        )
        assert found.residuals @ inverse @ found.residuals == pytest.approx(found.chi2, rel=1e-11)

    def test_pulls_are_of_unit_width(self, random_measurements: Make) -> None:
        given = random_measurements(5)
        expected = given.design @ np.array([10.0, 11.0])
        root = np.linalg.cholesky(combine(given).input_covariance)
        rng = np.random.default_rng(1)
        pulls = [
            combine(replace(given, values=expected + root @ rng.normal(size=7))).pulls for _ in range(2000)
        ]
        np.testing.assert_allclose(np.std(pulls, axis=0), 1.0, atol=4.5 / np.sqrt(4000.0))


def test_coverage_of_20000_toys(lhc: Measurements) -> None:
    """Inputs drawn from nuisances source by source: RMS of (x - truth)/sigma, and the mean of chi2.

    Sources with negative eigenvalues (`test_definiteness`) are drawn without these, so chi2 comes out a little large.
    """
    found, rng, n_toys = combine(lhc), np.random.default_rng(20), 20_000
    toys = np.full((n_toys, 15), 172.5)
    for source in lhc.sources.values():
        size, vectors = np.linalg.eigh(source.covariance)
        toys += rng.normal(size=(n_toys, 15)) @ (vectors * np.sqrt(np.maximum(size, 0.0))).T
    pull = (toys @ found.weights[0] - 172.5) / found.errors[0]
    assert np.sqrt(np.mean(pull**2)) == pytest.approx(1.0, abs=0.02)
    assert pull.mean() == pytest.approx(0.0, abs=4.5 / np.sqrt(n_toys))
    chi2 = np.einsum("ti,ij,tj->t", toys, found.residual_precision, toys)
    assert chi2.mean() == pytest.approx(14.0, abs=0.3)


def test_blue_of_15_inputs_and_26_sources_takes_less_than_a_millisecond(lhc: Measurements) -> None:
    covariances = lhc.covariances
    times = []
    for _ in range(200):
        start = time.perf_counter()
        blue(lhc.values, covariances)
        times.append(time.perf_counter() - start)
    assert len(covariances) == 26
    assert min(times) < 1e-3


class TestWhatCannotBeCombined:
    GOOD = np.diag([1.0, 2.0, 3.0])
    NAMES = ("ee", "mumu", "tautau")

    @pytest.mark.parametrize(
        ("values", "sources", "design", "message"),
        [
            ([[1.0]], {"s": [[1.0]]}, None, r"values must be of shape \(n,\)"),
            ([], {"s": np.zeros((0, 0))}, None, r"n > 0"),
            ([1.0, np.nan, 2.0], {"s": GOOD}, None, "value of mumu is not finite"),
            ([1.0, 2.0, 3.0], {}, None, "no source"),
            ([1.0, 2.0, 3.0], {"s": GOOD, "jets": GOOD[:2, :2]}, None, r"source jets: .*\(2, 2\).*3 inputs"),
            (
                [1.0, 2.0, 3.0],
                {"s": GOOD, "jets": np.full((3, 3), np.inf)},
                None,
                "source jets: .* between ee and ee",
            ),
            ([1.0, 2.0, 3.0], {"s": GOOD + np.eye(3, k=1)}, None, "source s: not symmetric.*ee and mumu"),
            ([1.0, 2.0, 3.0], {"s": 3.0 * GOOD, "jets": -GOOD}, None, "source jets: negative variance.*ee"),
            ([1.0, 2.0, 3.0], {"s": np.diag([1.0, 0.0, 1.0])}, None, "mumu has no uncertainty"),
            ([1.0, 2.0, 3.0], {"s": GOOD}, np.ones(3), r"design of shape \(3,\)"),
            ([1.0, 2.0, 3.0], {"s": GOOD}, [[1.0], [1.0], [np.nan]], "design of tautau is not finite"),
            ([1.0, 2.0, 3.0], {"s": GOOD}, [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], "tautau measures no"),
            ([1.0, 2.0, 3.0], {"s": GOOD}, [[1.0, 0.0]] * 3, "no input measures observable 1"),
            ([1.0, 2.0, 3.0], {"s": GOOD}, [[1.0, 1.0]] * 3, "do not tell all observables apart.*observable"),
        ],
    )
    def test_bad_input_is_named(
        self, values: Floats, sources: dict[str, Floats], design: Floats | None, message: str
    ) -> None:
        names = self.NAMES if np.shape(values) == (3,) else None
        with pytest.raises(InputError, match=message):
            blue(values, sources, design, names=names)

    def test_names_of_another_number(self) -> None:
        with pytest.raises(InputError, match="3 inputs, but 2 names"):
            blue([1.0, 2.0, 3.0], {"s": self.GOOD}, names=("a", "b"))

    def test_correlations_that_contradict_each_other(self) -> None:
        rho = np.array([[1.0, 0.9, 0.9], [0.9, 1.0, -0.9], [0.9, -0.9, 1.0]])
        with pytest.raises(InputError, match=r"not positive definite, eigenvalue -0\.8 .*mumu.*contradict"):
            blue([1.0, 2.0, 3.0], {"s": rho}, names=self.NAMES)

    def test_two_negative_eigenvalues_are_refused(self) -> None:
        """The determinant is positive, so that a test of it sees nothing."""
        block = np.array([[1.0, 2.0], [2.0, 1.0]])
        matrix = np.block([[block, np.zeros((2, 2))], [np.zeros((2, 2)), block]])
        assert np.linalg.det(matrix) > 0.0
        with pytest.raises(InputError, match="not positive definite, eigenvalue -1"):
            blue(np.zeros(4), {"s": matrix})

    def test_an_input_twice_is_singular(self) -> None:
        twice = np.array([[1.0, 1.0, 0.2], [1.0, 1.0, 0.2], [0.2, 0.2, 1.0]])
        with pytest.raises(InputError, match=r"singular.*(ee.*mumu|mumu.*ee).*twice"):
            blue([1.0, 1.0, 3.0], {"s": twice}, names=self.NAMES)

    def test_singular_sources_are_fine(self) -> None:
        found = blue([1.0, 2.0], {"stat": np.eye(2), "common": np.ones((2, 2)), "none": np.zeros((2, 2))})
        assert found.values[0] == pytest.approx(1.5, rel=1e-14)
        assert found.covariance[0, 0] == pytest.approx(1.5, rel=1e-14)
        assert found.by_source["none"][0, 0] == 0.0

    def test_shifts_of_another_number(self, random_measurements: Make) -> None:
        given = random_measurements(1)
        source = replace(given.sources["source 0"], shifts=np.ones(3))
        with pytest.raises(InputError, match=r"source source 0: shifts of shape \(3,\)"):
            combine(replace(given, sources={**given.sources, "source 0": source}))
