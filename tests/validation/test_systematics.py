"""The scaled systematic: every block of the covariance by hand, and toys that only the right one makes expected.

The toys are drawn from the definitions of A, e, M, not from the functions under test: an error of the calibration in
(A, e, M), seen by a closure as A - e <k> and M, a resonance of another mass, and the closure's own error.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.random import Generator
from scipy.stats import kstest

from musclecal.binning import Binning, equal_eta_edges
from musclecal.covariance import chi2_of
from musclecal.errors import InputError
from musclecal.fits.scale_fit import scale_calibration
from musclecal.records import BinFits, Closure, Floats, MassFits, ScaleCalibration, ScaleFactor
from musclecal.resonances import resonance
from musclecal.scale import corrected_curvature
from musclecal.validation.systematics import (
    JOINT,
    expected_factors,
    mass_shift,
    scale_systematic,
    stacked_residuals,
)

MEAN_PT = {"Jpsi": (5.0, 7.0, 16.0), "Y1S": (5.5, 8.0, 15.0), "Z": (35.0, 44.0, 55.0)}


def mass_scales(name: str, n_eta: int, error: float) -> MassFits:
    """Mass scales of one in all 4D bins, better measured where the muons are close in eta."""
    line = resonance(name).line
    binning = Binning(
        equal_eta_edges(n_eta, 2.4), (3.0, 6.0, 10.0, 90.0), (0.9 * line.mass, 1.1 * line.mass), 40, line.mass
    )
    bins = np.arange(binning.n_bins)
    i, j, k, m = binning.unravel(bins)
    pt = np.array(MEAN_PT[name])[np.stack([k, m], axis=1)]
    one, whole = np.ones(len(bins)), np.ones(len(bins), dtype=np.int64)
    covariance = np.zeros((len(bins), 2, 2))
    covariance[:, 0, 0] = (error * np.exp(np.abs(i - j) * 2.4 / n_eta) * (1.0 + pt.mean(axis=1) / 100.0)) ** 2
    data = BinFits(
        ("scale", "width"), np.stack([one, 0.01 * one], axis=1), covariance, 0 * whole, 0 * one, one, whole,
        500 * one, 500 * one, whole,
    )  # fmt: skip
    exact = replace(data, covariance=0.0 * covariance)
    n = 500.0 * len(bins)
    return MassFits(
        binning, name, "gaussian", "none", bins, data, exact, exact, 1.0 / pt, pt, np.full_like(pt, 0.999), n, n, 50
    )  # fmt: skip


def make_calibration(n_eta: int, error: float = 1e-3) -> ScaleCalibration:
    return scale_calibration(mass_scales("Jpsi", n_eta, error))


def make_closure(
    name: str, calibration: ScaleCalibration, size: float, parameters: tuple[str, ...] = ("A", "M")
) -> Closure:
    """A closure without residual whose own errors are of the calibration's times ``size``, and correlated in eta."""
    rng = np.random.default_rng([3, len(name)])
    n_eta, n_fit = calibration.n_eta, len(parameters)
    mean_k = rng.uniform(0.9, 1.1, n_eta) / MEAN_PT[name][1]
    columns = [("A", "e", "M").index(p) for p in parameters]
    sigma = np.sqrt(np.diagonal(calibration.covariance)).reshape(n_eta, 3)[:, columns].ravel()
    root = 0.9 * np.eye(n_eta * n_fit) + 0.1 * rng.normal(size=(n_eta * n_fit,) * 2) / np.sqrt(n_eta * n_fit)
    covariance = size**2 * root @ root.T * np.outer(sigma, sigma)
    line = resonance(name).line
    direction = np.tile([float(p == "A") for p in parameters], n_eta)
    seen = np.stack(
        [seen_at(row, mean_k, parameters) for row in np.linalg.cholesky(calibration.covariance).T], axis=1
    )
    added = seen @ seen.T + (line.mass_error / line.mass) ** 2 * np.outer(direction, direction)
    return Closure(
        name, "scalar", calibration.eta_edges, parameters, np.zeros((n_eta, n_fit)), covariance, added,
        0.0, n_eta * n_fit, 1.0, 1.0, 1, 0.0, mean_k, 1.0,
    )  # fmt: skip


def seen_at(correction: Floats, mean_k: Floats, parameters: tuple[str, ...] = ("A", "M")) -> Floats:
    """(n_eta n_fitted,) what a closure at curvatures ``mean_k`` finds if ``correction`` (3 n_eta,) is still needed.

    By the exact correction of both charges: their mean is A - e k, half their difference times k is M.
    """
    seen = []
    for k, (a, e, m) in zip(mean_k, correction.reshape(-1, 3), strict=True):
        plus, minus = (
            corrected_curvature(float(k), q, float(a), float(e), float(m)) / k for q in (1.0, -1.0)
        )
        found = {"A": 0.5 * (plus + minus) - 1.0, "M": 0.5 * (plus - minus) * k}
        if "e" in parameters:
            found |= {"A": a, "e": e}
        seen.append([found[p] for p in parameters])
    return np.array(seen, dtype=np.float64).ravel()


def throw(
    rng: Generator, calibration: ScaleCalibration, closures: list[Closure], s: float, *, masses: float = 1.0
) -> list[Closure]:
    """One toy: the error of the calibration is the same for all closures."""
    error = s * np.linalg.cholesky(calibration.covariance) @ rng.normal(size=3 * calibration.n_eta)
    toys = []
    for closure in closures:
        line = resonance(closure.resonance).line
        values = seen_at(error, closure.mean_k, closure.parameter_names)
        values += np.linalg.cholesky(closure.covariance) @ rng.normal(size=len(values))
        values = values.reshape(closure.values.shape)
        values[:, closure.parameter_names.index("A")] += masses * rng.normal() * line.mass_error / line.mass
        toys.append(replace(closure, values=values))
    return toys


@pytest.fixture(scope="module")
def small() -> tuple[ScaleCalibration, list[Closure]]:
    """4 eta bins, precise enough for the mass of the Z to matter."""
    calibration = make_calibration(4, 6e-5)
    return calibration, [make_closure("Y1S", calibration, 0.5), make_closure("Z", calibration, 0.1)]


@pytest.fixture(scope="module")
def large() -> tuple[ScaleCalibration, list[Closure]]:
    """24 eta bins."""
    calibration = make_calibration(24)
    return calibration, [make_closure("Y1S", calibration, 0.5), make_closure("Z", calibration, 0.8)]


def test_the_calibration_of_these_tests_is_like_a_real_one(
    large: tuple[ScaleCalibration, list[Closure]],
) -> None:
    v = large[0].covariance
    sigma = np.sqrt(np.diagonal(v))
    r = v / np.outer(sigma, sigma)
    assert 0.9 < r[0::3, 1::3].diagonal().min() < r[0::3, 1::3].diagonal().max() < 0.97
    assert np.abs(r - np.kron(np.eye(24), np.ones((3, 3))) * r).max() > 0.1  # eta bins are correlated


# The covariance, by hand


def test_the_calibration_part_is_the_covariance_of_what_the_closures_see(
    small: tuple[ScaleCalibration, list[Closure]],
) -> None:
    """cov(A_i - e_i k_i, A_j - e_j l_j), also between the closures, written out."""
    calibration, closures = small
    stack = stacked_residuals(calibration, closures)
    v = calibration.covariance.reshape(4, 3, 4, 3)
    found = stack.calibration_part.reshape(2, 4, 2, 2, 4, 2)
    for c, one in enumerate(closures):
        for d, two in enumerate(closures):
            for i in range(4):
                for j in range(4):
                    k, m, w = one.mean_k[i], two.mean_k[j], v[i, :, j, :]
                    aa = w[0, 0] - m * w[0, 1] - k * w[1, 0] + k * m * w[1, 1]
                    am = w[0, 2] - k * w[1, 2]
                    assert found[c, i, 0, d, j, 0] == pytest.approx(aa, rel=1e-10, abs=1e-20)
                    assert found[c, i, 0, d, j, 1] == pytest.approx(am, rel=1e-10, abs=1e-20)
                    assert found[c, i, 1, d, j, 1] == pytest.approx(w[2, 2], rel=1e-10, abs=1e-22)
    assert stack.names[:3] == ("A0 of Y1S", "M0 of Y1S", "A1 of Y1S")


def test_the_closure_part_has_its_own_covariances_and_masses_in_blocks(
    small: tuple[ScaleCalibration, list[Closure]],
) -> None:
    calibration, closures = small
    part = stacked_residuals(calibration, closures).closure_part.reshape(2, 8, 2, 8)
    np.testing.assert_array_equal(part[0, :, 1, :], 0.0)
    for c, closure in enumerate(closures):
        line = resonance(closure.resonance).line
        added = (part[c, :, c, :] - closure.covariance).reshape(4, 2, 4, 2)
        share = line.mass_error / line.mass
        np.testing.assert_allclose(added[:, 0, :, 0], share**2, rtol=1e-6, atol=0.0)
        np.testing.assert_allclose(added[:, 1, :, :], 0.0, rtol=0.0, atol=1e-24)
    assert resonance("Z").line.mass_error / resonance("Z").line.mass == pytest.approx(2.2e-5, rel=0.1)


def test_two_closures_of_one_resonance_share_its_mass(
    small: tuple[ScaleCalibration, list[Closure]],
) -> None:
    calibration, (_, z) = small
    part = stacked_residuals(calibration, [z, replace(z, values=z.values + 1e-5)]).closure_part
    shift = mass_shift(z)
    np.testing.assert_allclose(part[:8, 8:], np.outer(shift, shift), rtol=1e-12, atol=0.0)


def test_a_closure_with_e_sees_the_calibration_whole(small: tuple[ScaleCalibration, list[Closure]]) -> None:
    calibration, _ = small
    stack = stacked_residuals(calibration, [make_closure("Y1S", calibration, 1.0, ("A", "e", "M"))])
    np.testing.assert_allclose(stack.calibration_part, calibration.covariance, rtol=1e-12, atol=0.0)


# Toys: only the right covariance makes them expected


def p_values_of_toys(calibration: ScaleCalibration, closures: list[Closure], n: int) -> list[float]:
    rng = np.random.default_rng(11)
    stacks = (stacked_residuals(calibration, throw(rng, calibration, closures, 1.0)) for _ in range(n))
    return [chi2_of(x.residual, x.calibration_part + x.closure_part).p_value for x in stacks]


@pytest.mark.parametrize("which", ["Y1S", "Z"])
def test_p_values_are_uniform(small: tuple[ScaleCalibration, list[Closure]], which: str) -> None:
    """A wrong sign in P or a missing mass makes them pile up at an end."""
    calibration, closures = small
    p_values = p_values_of_toys(calibration, [c for c in closures if c.resonance == which], 300)
    assert kstest(p_values, "uniform").pvalue > 1e-3


def test_p_values_of_two_precise_closures_are_uniform(
    small: tuple[ScaleCalibration, list[Closure]],
) -> None:
    """They see the same error of the calibration: counted as two, chi2 has the right mean and too large a spread."""
    calibration, _ = small
    precise = [make_closure(name, calibration, 0.1) for name in ("Y1S", "Z")]
    assert kstest(p_values_of_toys(calibration, precise, 800), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("truth", [1.0, 2.1])
def test_s_is_found_by_each_closure_and_by_both(
    large: tuple[ScaleCalibration, list[Closure]], truth: float
) -> None:
    calibration, closures = large
    rng = np.random.default_rng(12)
    toys = [
        scale_systematic(calibration, throw(rng, calibration, closures, truth), n_toys=100)
        for _ in range(120)
    ]
    read: dict[str, Callable[[ScaleFactor], float]] = {"s": lambda f: f.s, "ML": lambda f: f.s_ml}
    for name in ("Y1S", "Z", JOINT):
        for value in read.values():
            found = [value(toy.factor(name)) for toy in toys]
            assert np.median(found) == pytest.approx(truth, abs=0.06 * truth)
    ratio = np.mean([toy.joint.chi2 / toy.joint.ndf for toy in toys])
    assert (0.95 < ratio < 1.05) if truth == 1.0 else ratio > 2.0


def test_the_bars_hold_for_a_realistic_closure(large: tuple[ScaleCalibration, list[Closure]]) -> None:
    """48 parameters, V_J/V_C >= 1 in all but a few modes."""
    calibration, closures = large
    toys = expected_factors(calibration, closures[:1])
    assert np.median(toys) == pytest.approx(1.0, abs=0.05)
    assert np.quantile(toys, 0.16) > 0.78
    assert np.quantile(toys, 0.84) < 1.22
    assert 2.05 < np.median(expected_factors(calibration, closures[:1], 2.1)) < 2.15


def test_both_closures_know_s_better_than_one(large: tuple[ScaleCalibration, list[Closure]]) -> None:
    """By likelihood: the rule chi2(s) = n gives all modes the same weight, also those that know nothing."""
    calibration, closures = large
    rng = np.random.default_rng(13)
    toys = [
        scale_systematic(calibration, throw(rng, calibration, closures, 1.0), n_toys=20) for _ in range(100)
    ]
    spread = {name: np.std([toy.factor(name).s_ml for toy in toys]) for name in ("Y1S", "Z", JOINT)}
    assert spread[JOINT] < 1.02 * min(spread["Y1S"], spread["Z"])


# What is reported


def test_the_covariance_is_scaled_by_the_square_of_what_is_quoted(
    large: tuple[ScaleCalibration, list[Closure]],
) -> None:
    calibration, closures = large
    toys = throw(np.random.default_rng(14), calibration, closures, 2.1)
    found = scale_systematic(calibration, toys)
    assert found.quoted == JOINT
    assert found.s == found.joint.s > 1.5
    np.testing.assert_allclose(found.covariance, found.joint.s**2 * calibration.covariance, rtol=1e-14)
    at_z = scale_systematic(calibration, toys, quote="Z")
    assert at_z.s == at_z.factor("Z").s
    np.testing.assert_allclose(at_z.covariance, at_z.factor("Z").s ** 2 * calibration.covariance, rtol=1e-14)
    assert [factor.name for factor in found.factors] == ["Y1S", "Z"]
    for factor in (*found.factors, found.joint):
        assert factor.interval_95[0] < factor.interval_68[0] < factor.s < factor.interval_68[1]
        assert factor.interval_68[1] < factor.interval_95[1]
        assert factor.interval_68_ml[0] < factor.s_ml < factor.interval_68_ml[1]


def test_s_solves_the_equation_of_the_definition(large: tuple[ScaleCalibration, list[Closure]]) -> None:
    calibration, closures = large
    toys = throw(np.random.default_rng(15), calibration, closures, 1.7)
    found, stack = scale_systematic(calibration, toys, n_toys=50), stacked_residuals(calibration, toys)
    total = found.joint.s**2 * stack.calibration_part + stack.closure_part
    assert chi2_of(stack.residual, total).chi2 == pytest.approx(96.0, rel=1e-8)
    alone = chi2_of(toys[1].values.ravel(), toys[1].covariance + toys[1].calibration_covariance)
    z = found.factor("Z")
    assert (z.chi2, z.ndf, z.p_value) == pytest.approx((alone.chi2, alone.ndf, alone.p_value), rel=1e-8)


def test_a_generous_calibration_is_not_made_smaller(large: tuple[ScaleCalibration, list[Closure]]) -> None:
    calibration, closures = large
    found = scale_systematic(calibration, closures)
    assert found.joint.s == found.joint.s_ml == 0.0
    assert found.joint.interval_68[0] == 0.0
    assert found.s == 1.0
    np.testing.assert_array_equal(found.covariance, calibration.covariance)


def test_one_closure_is_its_own_joint_result(small: tuple[ScaleCalibration, list[Closure]]) -> None:
    calibration, closures = small
    toys = throw(np.random.default_rng(16), calibration, closures[1:], 2.0)
    found = scale_systematic(calibration, toys, n_toys=50)
    assert replace(found.joint, name="Z") == found.factors[0]


def test_the_same_seed_gives_the_same_intervals(small: tuple[ScaleCalibration, list[Closure]]) -> None:
    calibration, closures = small
    toys = throw(np.random.default_rng(17), calibration, closures, 2.0)
    one, two, other = (scale_systematic(calibration, toys, n_toys=500, seed=n) for n in (1, 1, 2))
    assert one.joint == two.joint
    assert one.joint.interval_68 != other.joint.interval_68


WRONG: dict[str, tuple[Callable[[ScaleCalibration, Closure], list[Closure]], str]] = {
    "none": (lambda *_: [], "no closure"),
    "uncorrected": (lambda _, z: [replace(z, s=None)], "closure at Z: no calibration was applied"),
    "bins": (lambda _, z: [replace(z, eta_edges=2.0 * z.eta_edges)], "closure at Z: its eta bins"),
    "other calibration": (
        lambda _, z: [replace(z, calibration_covariance=2.0 * z.calibration_covariance)],
        "closure at Z: made with another calibration",
    ),
    "twice": (lambda _, z: [z, z], "a resonance twice in Z, Z"),
    "negative": (
        lambda _, z: [replace(z, covariance=-z.covariance)],
        "negative variance .* of [AM][0-3] of Z",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_closures_are_refused(small: tuple[ScaleCalibration, list[Closure]], case: str) -> None:
    calibration, closures = small
    make, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        scale_systematic(calibration, make(calibration, closures[1]))


def test_only_what_there_is_can_be_quoted(small: tuple[ScaleCalibration, list[Closure]]) -> None:
    with pytest.raises(InputError, match="quote: 'psi2S' is not one of joint, Y1S, Z"):
        scale_systematic(*small, quote="psi2S")


def test_a_calibration_with_a_negative_eigenvalue_is_refused_by_name(
    small: tuple[ScaleCalibration, list[Closure]],
) -> None:
    calibration, closures = small
    wrong = calibration.covariance.copy()
    wrong[4, 3] = wrong[3, 4] = 1.2 * np.sqrt(wrong[3, 3] * wrong[4, 4])
    with pytest.raises(InputError, match=r"not positive semi-definite.* dominated by [Ae]1"):
        scale_systematic(replace(calibration, covariance=wrong), closures)
