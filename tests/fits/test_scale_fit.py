"""A, e, M from mass scales that are exactly the formula of physics.md section 2, then with noise."""

from dataclasses import replace

import numpy as np
import pytest
from iminuit import Minuit
from numpy.typing import NDArray

from musclecal.binning import Binning, equal_eta_edges
from musclecal.errors import InputError
from musclecal.fits.likelihood import PARAMETER_NAMES
from musclecal.fits.scale_fit import fit_scale, model_of_bins, scale_calibration
from musclecal.records import BinFits, Floats, MassFits
from musclecal.scale import corrected_curvature

SIZE = np.array([1e-3, 3e-3, 2e-5])
"""Of A (1), e (GeV) and M (1/GeV)."""


def binning(n_eta: int = 24, pt_edges: tuple[float, ...] = (4.0, 5.0, 7.0, 12.0, 40.0)) -> Binning:
    return Binning(equal_eta_edges(n_eta, 2.4), pt_edges, (2.85, 3.25), 80, 3.0969)


def truth(n_eta: int = 24, seed: int = 1, size: Floats = SIZE) -> Floats:
    """(n_eta, 3) random A, e, M."""
    return np.asarray(np.random.default_rng(seed).normal(size=(n_eta, 3)) * size)


def neighbours(axes: Binning, reach: int = 4) -> NDArray[np.int64]:
    """4D bins of muons at most ``reach`` eta bins apart."""
    i, j, _, _ = axes.unravel(np.arange(axes.n_bins))
    return np.flatnonzero(np.abs(i - j) <= reach).astype(np.int64)


def fits_of_scale(scale: Floats, error: Floats) -> BinFits:
    """Fits that have found these mass scales and their errors."""
    n = len(scale)
    parameters = np.column_stack([scale, np.full(n, 0.01), np.zeros((n, 2))])
    covariance = np.zeros((n, 4, 4))
    covariance[:, 0, 0] = error**2
    zero = np.zeros(n, dtype=np.int64)
    thousand = np.full(n, 1_000.0)
    return BinFits(
        PARAMETER_NAMES,
        parameters,
        covariance,
        zero,
        np.zeros(n),
        thousand,
        zero + 77,
        thousand,
        thousand,
        zero,
    )


def mass_fits(
    values: Floats, axes: Binning, *, seed: int = 2, bins: NDArray[np.int64] | None = None
) -> MassFits:
    """Noiseless mass fits: s_b^2 written from physics.md, one factor for each muon.

    <1/k> is 1-4 % above 1/<k>, f between 0.97 and 0.9975, and the reference is away from one, as in real
    bins.
    """
    rng = np.random.default_rng(seed)
    bins = neighbours(axes) if bins is None else bins
    i, j, k, m = axes.unravel(bins)
    edges = np.asarray(axes.pt_edges)
    pt = np.stack([rng.uniform(edges[b], edges[b + 1]) for b in (k, m)], axis=1)
    mean_k, mean_pt = 1.0 / pt, pt * rng.uniform(1.01, 1.04, pt.shape)
    mean_f = rng.uniform(0.97, 0.9975, pt.shape)
    square = np.ones(len(bins))
    for muon, (eta_bin, charge) in enumerate(((i, +1), (j, -1))):
        a, e, sagitta = values[eta_bin].T
        square *= 1.0 + mean_f[:, muon] * (a - e * mean_k[:, muon] + charge * sagitta * mean_pt[:, muon])
    reference = 1.0 + rng.normal(0.0, 3e-4, len(bins))
    error = rng.uniform(2e-4, 8e-4, len(bins))
    return MassFits(
        binning=axes,
        resonance="Jpsi",
        model="gaussian",
        background="none",
        bins=bins,
        data=fits_of_scale(np.sqrt(square) * reference, 0.9 * error),
        reference=fits_of_scale(reference, np.sqrt(1.0 - 0.81) * error),
        pure=fits_of_scale(reference, np.sqrt(1.0 - 0.81) * error),
        mean_k=mean_k,
        mean_pt=mean_pt,
        mean_f=mean_f,
        events_selected=2_000.0 * len(bins),
        events_fitted=1_000.0 * len(bins),
        min_events=50,
    )


def with_noise(fits: MassFits, rng: np.random.Generator) -> MassFits:
    """s_b fluctuates by its own error."""
    noise = rng.normal(size=len(fits.bins)) * np.sqrt(fits.scale_variance) * fits.reference.scale
    return replace(fits, data=with_scale(fits.data, fits.data.scale + noise))


def with_scale(fits: BinFits, scale: Floats) -> BinFits:
    parameters = fits.parameters.copy()
    parameters[:, 0] = scale
    return replace(fits, parameters=parameters)


def without_muon_mass(fits: MassFits, square: Floats) -> MassFits:
    """The same bins with these s_b^2 and f = 1."""
    data = with_scale(fits.data, np.sqrt(square) * fits.reference.scale)
    return replace(fits, data=data, mean_f=np.ones_like(fits.mean_f))


def chi2_of(fits: MassFits, values: Floats) -> float:
    """chi2 of s_b^2 for (n_eta, 3) parameters, its variance 4 s^2 var(s)."""
    a, e, m = values.T
    residual = fits.scale**2 - model_of_bins(fits, a, e, m)
    return float(np.sum(residual**2 / (4.0 * fits.scale**2 * fits.scale_variance)))


class TestNoiseless:
    @pytest.mark.parametrize("seed", range(5))
    def test_the_truth_is_recovered_to_rounding(self, seed: int) -> None:
        expected = truth(seed=seed)
        solution = fit_scale(mass_fits(expected, binning(), seed=seed))
        np.testing.assert_allclose(solution.values / SIZE, expected / SIZE, atol=1e-9)
        assert solution.chi2 < 1e-12
        assert solution.parameter_names == ("A", "e", "M")
        assert solution.rank == 72

    def test_the_product_of_the_two_corrections_is_in(self) -> None:
        """At A = 1e-2 the product is 1e-4: a linear fit would be off by half of it."""
        expected = truth(seed=6, size=np.array([1e-2, 3e-2, 2e-4]))
        solution = fit_scale(mass_fits(expected, binning()))
        np.testing.assert_allclose(solution.values / SIZE, expected / SIZE, atol=1e-7)

    @pytest.mark.parametrize(("parameter", "size"), [(0, 1e-3), (1, 5e-3), (2, 3e-5)])
    def test_one_parameter_at_a_time(self, parameter: int, size: float) -> None:
        expected = np.zeros((6, 3))
        expected[2, parameter] = size
        solution = fit_scale(mass_fits(expected, binning(6)))
        np.testing.assert_allclose(solution.values / SIZE, expected / SIZE, atol=1e-10)

    def test_fewer_parameters(self) -> None:
        expected = truth(seed=7) * [1.0, 0.0, 1.0]
        solution = fit_scale(mass_fits(expected, binning()), ("A", "M"))
        assert solution.parameter_names == ("A", "M")
        np.testing.assert_allclose(
            solution.values / SIZE[[0, 2]], expected[:, [0, 2]] / SIZE[[0, 2]], atol=1e-9
        )

    def test_parameters_come_in_their_order_whatever_is_asked(self) -> None:
        expected = truth(6, seed=8)
        solution = fit_scale(mass_fits(expected, binning(6)), ("M", "e", "A"))
        assert solution.parameter_names == ("A", "e", "M")
        np.testing.assert_allclose(solution.values / SIZE, expected / SIZE, atol=1e-9)

    def test_fits_that_failed_do_not_matter(self) -> None:
        expected = truth(seed=9)
        fits = mass_fits(expected, binning())
        bad = np.arange(len(fits.bins)) % 7 == 3
        spoilt = with_scale(fits.data, np.where(bad, np.nan, fits.data.scale))
        fits = replace(fits, data=replace(spoilt, status=np.where(bad, 2, 0)))
        solution = fit_scale(fits)
        np.testing.assert_allclose(solution.values / SIZE, expected / SIZE, atol=1e-9)
        np.testing.assert_array_equal(solution.bins, fits.bins[~bad])


class TestSigns:
    """One pair of muons by hand: what the correction does to each mass."""

    def test_masses_with_a_mu_plus_rise_and_with_a_mu_minus_fall_for_positive_m(self) -> None:
        """M = 3e-5 at pT 30: the factor of s^2 is 1 + 9e-4 for mu+ in the bin, 1 - 9e-4 for mu-."""
        axes, m = binning(4), 3e-5
        fits = mass_fits(np.zeros((4, 3)), axes)
        i, j, _, _ = axes.unravel(fits.bins)
        plus = np.where(i == 1, 1.0 + m * fits.mean_pt[:, 0], 1.0)
        minus = np.where(j == 1, 1.0 - m * fits.mean_pt[:, 1], 1.0)
        values = fit_scale(without_muon_mass(fits, plus * minus)).values
        np.testing.assert_allclose(values[1] / SIZE, [0.0, 0.0, m / SIZE[2]], atol=1e-9)
        np.testing.assert_allclose(values[[0, 2, 3]] / SIZE, 0.0, atol=1e-9)

    def test_masses_rise_for_positive_a_and_fall_for_positive_e(self) -> None:
        axes, a, e = binning(4), 1e-3, 5e-3
        fits = mass_fits(np.zeros((4, 3)), axes)
        for parameter, shift in ((0, np.full_like(fits.mean_k, a)), (1, -e * fits.mean_k)):
            square = np.ones(len(fits.bins))
            for muon in (0, 1):
                square *= np.where(axes.unravel(fits.bins)[muon] == 1, 1.0 + shift[:, muon], 1.0)
            values = fit_scale(without_muon_mass(fits, square)).values
            expected = np.zeros((4, 3))
            expected[1, parameter] = (a, e)[parameter]
            np.testing.assert_allclose(values / SIZE, expected / SIZE, atol=1e-9)

    @pytest.mark.parametrize(("parameter", "size"), [(0, 1e-3), (1, 5e-3), (2, 3e-5)])
    def test_a_bias_of_the_exact_model_is_corrected(self, parameter: int, size: float) -> None:
        """Masses from `musclecal.scale` for both charges: the fit gives back what was put in."""
        axes = binning(4)
        values = np.zeros((4, 3))
        values[1, parameter] = size
        fits = mass_fits(np.zeros((4, 3)), axes)
        square = np.ones(len(fits.bins))
        for muon, q in ((0, +1), (1, -1)):
            eta_bin = axes.unravel(fits.bins)[muon]
            k = fits.mean_k[:, muon]
            square *= [corrected_curvature(x, q, *values[b]) / x for x, b in zip(k, eta_bin, strict=True)]
        fits = replace(without_muon_mass(fits, square), mean_pt=1.0 / fits.mean_k)
        np.testing.assert_allclose(fit_scale(fits).values / SIZE, values / SIZE, atol=1e-9)

    def test_a_common_scale_is_a_and_not_half_of_it(self) -> None:
        """Both muons need +1e-3: masses are 1.001 times too large. Without the square it would be half."""
        fits = mass_fits(np.zeros((6, 3)), binning(6))
        values = fit_scale(without_muon_mass(fits, np.full(len(fits.bins), 1.001**2))).values
        np.testing.assert_allclose(values, np.tile([1e-3, 0.0, 0.0], (6, 1)), atol=1e-12)

    def test_the_model_of_bins_is_the_formula(self) -> None:
        expected = truth(seed=10)
        fits = mass_fits(expected, binning())
        np.testing.assert_allclose(model_of_bins(fits, *expected.T), fits.scale**2, rtol=1e-14)


class TestUncertainty:
    def test_the_covariance_is_the_inverse_of_the_normal_matrix(self) -> None:
        """X^T W X, X by differences of the model at the solution."""
        axes = binning(6)
        fits = with_noise(mass_fits(truth(6), axes), np.random.default_rng(3))
        solution = fit_scale(fits)
        steps = 0.1 * np.tile(SIZE, 6)
        flat = solution.values.ravel()

        def predicted(parameters: Floats) -> Floats:
            return model_of_bins(fits, *parameters.reshape(-1, 3).T)

        columns = [(predicted(flat + h) - predicted(flat - h)) / (2.0 * h.sum()) for h in np.diag(steps)]
        design = np.stack(columns, axis=1)
        weight = 1.0 / (4.0 * fits.scale**2 * fits.scale_variance)
        expected = np.linalg.inv(design.T @ (weight[:, None] * design))
        sigma = np.sqrt(np.diagonal(expected))
        np.testing.assert_allclose(
            solution.covariance / np.outer(sigma, sigma), expected / np.outer(sigma, sigma), atol=1e-5
        )

    def test_iminuit_finds_the_same_minimum_and_errors(self) -> None:
        axes = binning(4)
        fits = with_noise(mass_fits(truth(4), axes), np.random.default_rng(4))
        solution = fit_scale(fits)
        sigma = np.sqrt(np.diagonal(solution.covariance))
        shift = solution.mean_k

        def cost(x: Floats) -> float:
            """In units of the errors, with e about the mean curvature, where it hardly correlates with A."""
            values = (x * sigma).reshape(-1, 3).copy()
            values[:, 0] += values[:, 1] * shift
            return chi2_of(fits, values)

        minuit = Minuit(cost, np.zeros(12))
        minuit.errordef, minuit.tol, minuit.strategy = Minuit.LEAST_SQUARES, 1e-4, 2
        minuit.migrad()
        minuit.hesse()
        assert minuit.valid
        back = np.eye(12)
        back[np.arange(0, 12, 3), np.arange(1, 12, 3)] = shift
        jacobian = back * sigma
        values = jacobian @ np.array(minuit.values)
        covariance = jacobian @ np.array(minuit.covariance) @ jacobian.T
        np.testing.assert_allclose((solution.values.ravel() - values) / sigma, 0.0, atol=1e-3)
        np.testing.assert_allclose(np.sqrt(np.diagonal(covariance)) / sigma, 1.0, atol=1e-3)
        assert solution.chi2 == pytest.approx(minuit.fval, abs=1e-5)

    def test_pulls_of_toys_are_unit_gaussians(self) -> None:
        rng, expected, axes, n_toys = np.random.default_rng(5), truth(6), binning(6), 200
        exact = mass_fits(expected, axes, bins=neighbours(axes, 2))
        solutions = [fit_scale(with_noise(exact, rng)) for _ in range(n_toys)]
        pulls = np.array(
            [(s.values - expected).ravel() / np.sqrt(np.diagonal(s.covariance)) for s in solutions]
        )
        assert np.std(pulls) == pytest.approx(1.0, abs=0.03)
        assert np.all(np.abs(np.std(pulls, axis=0) - 1.0) < 4.5 / np.sqrt(2.0 * n_toys))
        assert np.all(np.abs(np.mean(pulls, axis=0)) < 4.5 / np.sqrt(n_toys))
        chi2, ndf = np.array([s.chi2 for s in solutions]), solutions[0].ndf
        assert ndf == len(exact.bins) - 18
        assert chi2.mean() / ndf == pytest.approx(1.0, abs=4.0 * np.sqrt(2.0 / ndf / n_toys))
        assert np.mean([s.p_value for s in solutions]) == pytest.approx(0.5, abs=4.0 / np.sqrt(12.0 * n_toys))

    def test_residual_pulls_are_those_of_the_chi2(self) -> None:
        solution = fit_scale(with_noise(mass_fits(truth(6), binning(6)), np.random.default_rng(6)))
        assert np.sum(solution.pulls**2) == pytest.approx(solution.chi2, rel=1e-12)

    def test_a_and_e_are_correlated_and_m_is_not(self) -> None:
        covariance = fit_scale(mass_fits(truth(), binning())).covariance
        sigma = np.sqrt(np.diagonal(covariance))
        correlation = covariance / np.outer(sigma, sigma)
        for n in range(0, 72, 3):
            assert correlation[n, n + 1] > 0.8
            assert abs(correlation[n, n + 2]) < 0.5

    def test_errors_of_the_reference_count(self) -> None:
        fits = mass_fits(truth(6), binning(6))
        exact = replace(
            fits, reference=replace(fits.reference, covariance=np.zeros_like(fits.reference.covariance))
        )
        ratio = np.diagonal(fit_scale(fits).covariance) / np.diagonal(fit_scale(exact).covariance)
        np.testing.assert_allclose(ratio, 1.0 / 0.81, rtol=0.01)


class TestWhatCannotBeFitted:
    @pytest.mark.parametrize(("axis", "charge"), [(0, r"mu\+"), (1, "mu-")])
    def test_an_eta_bin_without_one_charge_is_named(self, axis: int, charge: str) -> None:
        axes = binning(6)
        bins = neighbours(axes)
        bins = bins[axes.unravel(bins)[axis] != 2]
        with pytest.raises(InputError, match=rf"eta bin 2 \(-0\.8 to 0\).*{charge}"):
            fit_scale(mass_fits(np.zeros((6, 3)), axes, bins=bins))

    def test_failed_fits_do_not_count_as_muons(self) -> None:
        axes = binning(6)
        fits = mass_fits(np.zeros((6, 3)), axes)
        status = np.where(axes.unravel(fits.bins)[0] == 2, 2, 0)
        with pytest.raises(InputError, match="eta bin 2"):
            fit_scale(replace(fits, data=replace(fits.data, status=status)))

    def test_no_usable_bin(self) -> None:
        fits = mass_fits(np.zeros((6, 3)), binning(6))
        with pytest.raises(InputError, match="no mass fit has converged"):
            fit_scale(
                replace(fits, reference=replace(fits.reference, status=np.ones_like(fits.reference.status)))
            )

    @pytest.mark.parametrize("spread", [0.0, 1e-17, 1e-12])
    def test_one_curvature_cannot_tell_a_from_e(self, spread: float) -> None:
        axes = binning(6, (4.0, 40.0))
        fits = mass_fits(np.zeros((6, 3)), axes)
        noise = np.random.default_rng(7).normal(size=fits.mean_k.shape)
        same = replace(fits, mean_k=0.125 + spread * noise, mean_pt=np.full_like(fits.mean_pt, 8.1))
        with pytest.raises(InputError, match=r"not fixed.*[Ae]\["):
            fit_scale(same)

    def test_one_curvature_still_gives_a_and_m(self) -> None:
        fits = mass_fits(np.zeros((6, 3)), binning(6, (4.0, 40.0)))
        same = replace(fits, mean_k=np.full_like(fits.mean_k, 0.125), mean_pt=np.full_like(fits.mean_pt, 8.1))
        np.testing.assert_allclose(fit_scale(same, ("A", "M")).values, 0.0, atol=1e-12)

    def test_pairs_of_opposite_eta_bins_alone_leave_null_directions(self) -> None:
        """With i = 1 - j only, every bin sees A_0 + A_1: their difference is not fixed."""
        axes = binning(2, (4.0, 40.0))
        i, j, _, _ = axes.unravel(np.arange(axes.n_bins))
        fits = mass_fits(np.zeros((2, 3)), axes, bins=np.flatnonzero(i != j).astype(np.int64))
        with pytest.raises(InputError, match=r"not fixed, first: .*A\["):
            fit_scale(without_muon_mass(fits, np.ones(len(fits.bins))), ("A",))


class TestCalibration:
    def test_holds_the_solution(self) -> None:
        expected = truth()
        fits = mass_fits(expected, binning())
        calibration = scale_calibration(fits)
        np.testing.assert_allclose(calibration.parameters.reshape(24, 3) / SIZE, expected / SIZE, atol=1e-9)
        assert calibration.events_fraction == pytest.approx(0.5)
        assert calibration.converged_fraction == pytest.approx(1.0)
        assert calibration.passes == 1
        assert calibration.residual_chi2 is None

    def test_a_second_pass_adds_what_is_left(self) -> None:
        axes, first = binning(6), truth(6, seed=11)
        before = scale_calibration(mass_fits(first, axes))
        rest = mass_fits(0.01 * first, axes)
        after = scale_calibration(rest, before)
        np.testing.assert_allclose(after.parameters.reshape(6, 3) / SIZE, 1.01 * first / SIZE, atol=1e-9)
        assert after.passes == 2
        covariance = fit_scale(rest).covariance
        flat = 0.01 * first.ravel()
        assert after.residual_chi2 == pytest.approx(flat @ np.linalg.inv(covariance) @ flat / 18.0, rel=1e-6)
