"""Closure: the equation for s, the projection, the mass of the resonance, and p-values that are p-values."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator
from scipy.stats import kstest

from musclecal.binning import Binning, equal_eta_edges
from musclecal.covariance import chi2_of
from musclecal.errors import InputError
from musclecal.fits.scale_fit import fit_scale, model_of_bins
from musclecal.records import BinFits, Closure, Floats, MassFits, ScaleCalibration, ScaleWithCovariance
from musclecal.resonances import resonance
from musclecal.scale import corrected_curvature
from musclecal.validation.closure import closure_test, mean_residual, overlap, projection, scale_factor

N_ETA = 4
UPSILON = resonance("Y1S")
BINNING = Binning(equal_eta_edges(N_ETA, 2.4), (4.0, 6.5, 10.0, 50.0), (8.9, 9.8), 60, UPSILON.line.mass)
MEAN_PT = np.array([5.2, 8.0, 16.0])
SIZE = np.tile([2e-4, 1e-3, 2e-5], N_ETA)
"""Typical errors of A, e, M."""


def positive(rng: Generator, n: int) -> Floats:
    """(n, n) a covariance with variances around one and correlations of all sizes."""
    root = rng.normal(size=(n, 2 * n)) / np.sqrt(2 * n)
    return np.asarray(root @ root.T)


# The factor s


def test_s_has_a_closed_form_for_proportional_covariances() -> None:
    rng = np.random.default_rng(1)
    for n in (1, 6, 24):
        shape, v, w = positive(rng, n), 0.7, 0.2
        r = rng.normal(size=n) * 3.0
        expected = np.sqrt((r @ np.linalg.solve(shape, r) / n - w) / v)
        assert scale_factor(r, v * shape, w * shape) == pytest.approx(expected, rel=1e-6)


def test_s_solves_its_equation() -> None:
    rng = np.random.default_rng(2)
    calibration, closure = positive(rng, 12), 0.5 * positive(rng, 12)
    r = 4.0 * rng.normal(size=12)
    s = scale_factor(r, calibration, closure)
    assert s > 1.0
    assert chi2_of(r, s**2 * calibration + closure).chi2 == pytest.approx(12.0, abs=1e-4)


def test_s_does_not_depend_on_the_units() -> None:
    rng = np.random.default_rng(3)
    calibration, closure, r = positive(rng, 6), positive(rng, 6), 3.0 * rng.normal(size=6)
    unit = np.array([1e-5, 1.0, 1e6, 1e-3, 1e2, 1e-6])
    scaled = scale_factor(unit * r, np.outer(unit, unit) * calibration, np.outer(unit, unit) * closure)
    assert scaled == pytest.approx(scale_factor(r, calibration, closure), abs=1e-5)


def test_s_is_zero_where_the_closure_alone_explains_the_residual() -> None:
    unit = np.eye(4)
    assert scale_factor(np.full(4, 0.99), unit, unit) == 0.0
    assert scale_factor(np.zeros(4), unit, unit) == 0.0
    assert scale_factor(np.full(4, 1.5), unit, unit) > 0.0


def test_without_calibration_covariance_no_s_helps() -> None:
    with pytest.raises(InputError, match="no scale factor"):
        scale_factor(np.full(3, 2.0), np.zeros((3, 3)), np.eye(3))


@pytest.mark.parametrize(("injected", "median", "tolerance"), [(1.0, 1.00, 0.05), (2.1, 2.09, 0.08)])
def test_s_is_unbiased_in_toys(injected: float, median: float, tolerance: float) -> None:
    """48 parameters, calibration and closure equally precise (physics.md section 4)."""
    rng = np.random.default_rng(4)
    shape = positive(rng, 48)
    root = np.linalg.cholesky(shape)
    toys = np.sqrt(injected**2 + 1.0) * (root @ rng.normal(size=(48, 60))).T
    assert np.median([scale_factor(r, shape, shape) for r in toys]) == pytest.approx(median, abs=tolerance)


# The projection


def seen_by_closure(correction: Floats, k: float) -> Floats:
    """(A, M) seen at the curvature k where a correction (A, e, M) is still needed, by the model itself."""
    a, e, m = (float(x) for x in correction)
    plus, minus = (corrected_curvature(k, q, a, e, m) / k - 1.0 for q in (1.0, -1.0))
    return np.array([0.5 * (plus + minus), 0.5 * (plus - minus) * k])


def test_the_projection_is_the_derivative_of_the_scale_model() -> None:
    mean_k = np.array([0.21, 0.12, 0.05])
    seen = projection(("A", "M"), mean_k)
    assert seen.shape == (6, 9)
    expected = np.zeros_like(seen)
    for n, k in enumerate(mean_k):
        for p, step in enumerate((1e-4, 1e-3, 1e-5)):
            up, down = np.zeros(3), np.zeros(3)
            up[p], down[p] = step, -step
            difference = (seen_by_closure(up, k) - seen_by_closure(down, k)) / (2.0 * step)
            expected[2 * n : 2 * n + 2, 3 * n + p] = difference
    np.testing.assert_allclose(seen, expected, rtol=0.0, atol=1e-11)


def test_a_closure_that_fits_all_sees_all() -> None:
    np.testing.assert_array_equal(projection(("A", "e", "M"), np.array([0.2, 0.1])), np.eye(6))
    np.testing.assert_array_equal(projection(("A",), np.array([0.2])), [[1.0, -0.2, 0.0]])


# The closure test, on mass scales made from the model


def bin_fits(scale: Floats, error: float) -> BinFits:
    n = len(scale)
    covariance = np.zeros((n, 2, 2))
    covariance[:, 0, 0] = error**2
    zero, one = np.zeros(n), np.ones(n)
    return BinFits(
        ("scale", "width"), np.stack([scale, 0.01 * one], axis=1), covariance, np.zeros(n, dtype=np.int64),
        zero, one, np.ones(n, dtype=np.int64), 500 * one, 400 * one, np.ones(n, dtype=np.int64),
    )  # fmt: skip


def fits_that_need(
    correction: Floats, *, mass_shift: float = 0.0, error: float = 1e-4, noise: Any = 0.0
) -> MassFits:
    """Mass fits of muons that still need ``correction`` (3 N_ETA,); every mass is moved by ``mass_shift``."""
    bins = np.arange(BINNING.n_bins)
    _, _, k, m = BINNING.unravel(bins)
    pt = np.stack([MEAN_PT[k], MEAN_PT[m]], axis=1)
    empty = bin_fits(np.ones(len(bins)), error)
    fits = MassFits(
        BINNING, "Y1S", "gaussian", "exponential", bins, empty, bin_fits(np.ones(len(bins)), 0.0), empty,
        1.0 / pt, pt, np.full_like(pt, 0.999), 500.0 * len(bins), 500.0 * len(bins), 50,
    )  # fmt: skip
    scale = np.sqrt(model_of_bins(fits, *correction.reshape(N_ETA, 3).T)) * (1.0 + mass_shift)
    return replace(fits, data=bin_fits(scale + error * noise, error))


def calibration_with(covariance: Floats) -> ScaleCalibration:
    zero = np.zeros(N_ETA)
    return ScaleCalibration(
        np.array(BINNING.eta_edges), zero, zero, zero, covariance, 1.0, 1, 0.5, 3 * N_ETA, 1.0,
        np.empty(0), np.empty(0, dtype=np.int64), zero, 1.0, 1.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def calibration() -> ScaleCalibration:
    return calibration_with(positive(np.random.default_rng(5), 3 * N_ETA) * np.outer(SIZE, SIZE))


def test_the_residual_is_the_correction_still_needed(calibration: ScaleCalibration) -> None:
    needed = np.array([1e-4, 0.0, 2e-5, -2e-4, 0.0, 0.0, 3e-4, 0.0, -1e-5, 0.0, 0.0, 3e-5])
    found = closure_test(fits_that_need(needed), calibration)
    np.testing.assert_allclose(found.values, needed.reshape(N_ETA, 3)[:, [0, 2]], rtol=0.0, atol=1e-10)
    assert found.parameter_names == ("A", "M")
    assert found.ndf == 2 * N_ETA
    with_e = closure_test(
        fits_that_need(needed + np.tile([0.0, 1e-3, 0.0], N_ETA)), calibration, ("A", "e", "M")
    )
    np.testing.assert_allclose(with_e.values[:, 1], 1e-3, rtol=0.0, atol=1e-9)
    assert with_e.ndf == 3 * N_ETA


def test_an_energy_loss_is_seen_as_a_scale_at_the_mean_curvature(calibration: ScaleCalibration) -> None:
    """A common e, that a closure of A and M can only put into A: that is what P says."""
    needed = np.tile([0.0, 1e-3, 0.0], N_ETA)
    found = closure_test(fits_that_need(needed), calibration)
    expected = projection(("A", "M"), found.mean_k) @ needed
    np.testing.assert_allclose(found.values.ravel(), expected, rtol=0.0, atol=2e-5)
    assert found.values[0, 0] == pytest.approx(-1e-3 * found.mean_k[0], abs=2e-5)


def test_the_uncertainty_of_the_resonance_mass_moves_all_a_together(calibration: ScaleCalibration) -> None:
    found = closure_test(fits_that_need(np.zeros(3 * N_ETA)), calibration)
    seen = projection(("A", "M"), found.mean_k)
    mass_part = (found.calibration_covariance - seen @ calibration.covariance @ seen.T).reshape(
        N_ETA, 2, N_ETA, 2
    )
    relative = UPSILON.line.mass_error / UPSILON.line.mass
    assert relative > 0.0
    # Differences of entries of 1e-8, to rounding.
    np.testing.assert_allclose(mass_part[:, 0, :, 0], relative**2, rtol=0.0, atol=1e-22)
    np.testing.assert_allclose(mass_part[:, 1, :, :], 0.0, rtol=0.0, atol=1e-22)


def test_without_a_calibration_there_is_no_s() -> None:
    found = closure_test(fits_that_need(np.tile([1e-3, 0.0, 0.0], N_ETA)), None)
    assert found.s is None
    assert found.s_quoted is None
    assert found.p_value < 1e-6
    assert np.linalg.matrix_rank(found.calibration_covariance, tol=1e-15) == 1


def test_s_of_the_closure_is_that_of_its_parts(calibration: ScaleCalibration) -> None:
    found = closure_test(fits_that_need(np.tile([1e-3, 0.0, 1e-5], N_ETA)), calibration)
    seen = projection(("A", "M"), found.mean_k)
    part = seen @ calibration.covariance @ seen.T
    mass_part = found.calibration_covariance - part
    expected = scale_factor(found.values.ravel(), part, found.covariance + mass_part)
    assert found.s == pytest.approx(expected, abs=1e-5)
    assert found.s_quoted == found.s
    assert expected > 1.0
    assert closure_test(fits_that_need(np.zeros(3 * N_ETA)), calibration).s_quoted == 1.0


def test_p_values_are_uniform_when_only_the_stated_uncertainties_are_at_work(
    calibration: ScaleCalibration,
) -> None:
    """Toys with a wrong calibration (within its covariance), a wrong resonance mass and noise in every bin."""
    rng = np.random.default_rng(6)
    root = np.linalg.cholesky(calibration.covariance)
    relative = UPSILON.line.mass_error / UPSILON.line.mass
    p_values, s = [], []
    for _ in range(250):
        toy = fits_that_need(
            root @ rng.normal(size=3 * N_ETA),
            mass_shift=relative * rng.normal(),
            noise=rng.normal(size=BINNING.n_bins),
        )
        found = closure_test(toy, calibration)
        p_values.append(found.p_value)
        s.append(found.s)
    assert kstest(p_values, "uniform").pvalue > 1e-3
    assert np.median(np.asarray(s, dtype=np.float64)) == pytest.approx(1.0, abs=0.12)


def test_a_calibration_in_other_eta_bins_is_averaged_over_the_overlap() -> None:
    edges = np.array([-1.0, 0.0, 1.0])
    np.testing.assert_array_equal(overlap(edges, edges), np.eye(6))
    wide = overlap(edges, np.array([-1.0, 0.5, 1.0, 2.0]))
    np.testing.assert_allclose(wide[0::3, 0::3], [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], rtol=1e-15)
    np.testing.assert_array_equal(wide[1::3, 0::3], 0.0)
    outside = overlap(np.array([2.0, 4.0]), np.array([1.0, 3.0]))
    np.testing.assert_allclose(outside, 0.5 * np.eye(3), rtol=1e-15)


def test_a_calibration_in_finer_bins_closes_with_its_averaged_uncertainty(
    calibration: ScaleCalibration,
) -> None:
    """Splitting a bin in two of the same value, fully correlated, is the same calibration."""
    fits = fits_that_need(np.zeros(3 * N_ETA))
    edges = calibration.eta_edges
    finer = np.sort(np.concatenate([edges, 0.5 * (edges[1:] + edges[:-1])]))
    twice = np.kron(np.repeat(np.eye(N_ETA), 2, axis=0), np.eye(3))
    zero = np.zeros(2 * N_ETA)
    split = ScaleWithCovariance(finer, zero, zero, zero, twice @ calibration.covariance @ twice.T)
    same = closure_test(fits, calibration)
    np.testing.assert_allclose(
        closure_test(fits, split).calibration_covariance, same.calibration_covariance, rtol=1e-12
    )


# The mean residual


def closure_with(values: Floats, covariance: Floats) -> Closure:
    n = len(values)
    return Closure(
        "Y1S", "scalar", np.array(equal_eta_edges(n, 2.4)), ("A", "M"), values, covariance,
        np.zeros_like(covariance), 0.0, 2 * n, 1.0, 0.0, 1, 1.0, np.zeros(n), 1.0,
    )  # fmt: skip


def test_the_mean_of_equal_bins_is_their_average() -> None:
    values = np.array([[1.0, 10.0], [2.0, 20.0], [6.0, 30.0]])
    closure = closure_with(values, 0.04 * np.eye(6))
    assert mean_residual(closure) == pytest.approx((3.0, 0.2 / np.sqrt(3), 0.2 / np.sqrt(3)))
    assert mean_residual(closure, "M")[0] == pytest.approx(20.0)


def test_the_mean_uses_the_correlations_of_its_own_parameter_only() -> None:
    rng = np.random.default_rng(7)
    values, covariance = rng.normal(size=(4, 2)), positive(rng, 8)
    mean, error, _ = mean_residual(closure_with(values, covariance))
    inverse = np.linalg.inv(covariance[::2, ::2])
    assert mean == pytest.approx((inverse @ values[:, 0]).sum() / inverse.sum())
    assert error == pytest.approx(1.0 / np.sqrt(inverse.sum()))


def test_a_common_uncertainty_of_the_calibration_is_one_of_the_mean() -> None:
    common = np.zeros((4, 2, 4, 2))
    common[:, 0, :, 0] = 0.3**2
    closure = replace(
        closure_with(np.zeros((4, 2)), 0.16 * np.eye(8)), calibration_covariance=common.reshape(8, 8)
    )
    assert mean_residual(closure) == pytest.approx((0.0, 0.2, np.hypot(0.2, 0.3)))


def test_the_errors_of_the_mean_are_those_of_toys(calibration: ScaleCalibration) -> None:
    rng = np.random.default_rng(8)
    root, n_par = np.linalg.cholesky(calibration.covariance), 3 * N_ETA

    def mean(*, wrong_calibration: bool) -> tuple[float, float, float]:
        needed = root @ rng.normal(size=n_par) if wrong_calibration else np.zeros(n_par)
        return mean_residual(
            closure_test(fits_that_need(needed, noise=rng.normal(size=BINNING.n_bins)), calibration)
        )

    alone = np.array([mean(wrong_calibration=False) for _ in range(150)])
    together = np.array([mean(wrong_calibration=True) for _ in range(150)])
    assert alone[:, 0].std() == pytest.approx(alone[0, 1], rel=0.2)
    assert together[:, 0].std() == pytest.approx(together[0, 2], rel=0.2)


def test_the_synthetic_fits_are_what_the_scale_fit_expects() -> None:
    needed = np.tile([3e-4, 2e-3, 2e-5], N_ETA)
    solution = fit_scale(fits_that_need(needed))
    np.testing.assert_allclose(solution.values.ravel(), needed, rtol=1e-6, atol=0.0)
