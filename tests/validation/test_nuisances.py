"""Nuisances: their number, names and sum, and what they do to a muon, against the scale model itself."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.records import Closure, Floats, NuisanceGroup, Nuisances, ScaleFactor, ScaleSystematic
from musclecal.resonances import resonance
from musclecal.scale import corrected_curvature, correction_jacobian
from musclecal.validation.nuisances import (
    RESOLUTION,
    calibration_nuisances,
    closure_nuisances,
    eigen_nuisances,
    mass_nuisance,
    momentum_shifts,
    resolution_nuisances,
    resolution_shifts,
    scale_nuisances,
)

N_ETA = 24
EDGES = np.linspace(-2.4, 2.4, N_ETA + 1)
ROUNDING = 1e-12


def covariance(seed: int, sizes: tuple[float, ...]) -> Floats:
    """Correlated parameters of every eta bin, of very different sizes."""
    rng = np.random.default_rng(seed)
    n = N_ETA * len(sizes)
    root = np.eye(n) + rng.normal(size=(n, n)) / np.sqrt(n)
    unit = np.tile(sizes, N_ETA)
    return np.asarray(root @ root.T * np.outer(unit, unit))


FACTOR = ScaleFactor("joint", 2.1, (1.9, 2.3), (1.6, 2.7), 2.1, (1.9, 2.3), (1.6, 2.7), 200.0, 48, 0.0)
SYSTEMATIC = ScaleSystematic(EDGES, (), FACTOR, "joint", 2.1**2 * covariance(1, (2e-4, 1e-3, 1e-5)))
Z = Closure(
    "Z", "template", EDGES, ("A", "M"), np.zeros((N_ETA, 2)), covariance(2, (1e-4, 5e-6)),
    covariance(3, (1e-4, 5e-6)), 1.0, 48, 0.5, 1.0, 1, 2.1, np.full(N_ETA, 0.02), 1.0,
)  # fmt: skip
RESOLUTION_COVARIANCE = covariance(4, (1e-6, 1e-6, 1e-10))


@pytest.fixture(scope="module")
def everything() -> Nuisances:
    return calibration_nuisances(SYSTEMATIC, [Z], resolution_nuisances(RESOLUTION_COVARIANCE, EDGES))


def same(group: NuisanceGroup, expected: Floats) -> bool:
    """Sum of v v^T and a covariance, element by element in units of sigma_i sigma_j."""
    sigma = np.sqrt(np.diagonal(expected))
    return bool(np.max(np.abs(group.covariance - expected) / np.outer(sigma, sigma)) < ROUNDING)


def test_numbers_and_names_are_those_of_the_w_mass_measurement(everything: Nuisances) -> None:
    """24 eta bins: 72 + 48 + 1 + 72."""
    assert [(group.name, len(group.names)) for group in everything.groups] == [
        ("scale_stat", 72),
        ("closure_Z", 48),
        ("mass_Z", 1),
        ("resolution", 72),
    ]
    assert len(set(everything.names)) == 193
    assert everything.names[:2] == ("scale_stat_0", "scale_stat_1")
    assert everything.names[71:74] == ("scale_stat_71", "closure_Z_0", "closure_Z_1")
    assert everything.names[120:122] == ("mass_Z", "resolution_0")


def test_sums_are_the_covariances(everything: Nuisances) -> None:
    scale, closure, mass, resolution = everything.groups
    assert same(scale, SYSTEMATIC.covariance)
    assert same(closure, Z.covariance)
    assert same(resolution, RESOLUTION_COVARIANCE)
    line = resonance("Z").line
    assert same(mass, np.full((N_ETA, N_ETA), (line.mass_error / line.mass) ** 2))


def test_a_fixed_parameter_does_not_vary() -> None:
    fixed = np.tile([True, False, True], N_ETA)
    group = resolution_nuisances(RESOLUTION_COVARIANCE * np.outer(fixed, fixed), EDGES)
    assert len(group.names) == 72
    np.testing.assert_array_equal(group.variations[:, ~fixed], 0.0)
    with_a_c = resolution_nuisances(RESOLUTION_COVARIANCE[np.ix_(fixed, fixed)], EDGES, ("a", "c"))
    assert (len(with_a_c.names), with_a_c.parameters) == (48, ("a", "c"))


def test_an_inflated_uncertainty_is_inflated_in_the_variations() -> None:
    one, ten = (resolution_nuisances(RESOLUTION_COVARIANCE, EDGES, inflation=x) for x in (1.0, 10.0))
    np.testing.assert_allclose(ten.covariance, 100.0 * one.covariance, rtol=1e-9, atol=1e-24)


# What they do to a muon


def test_a_lighter_resonance_lowers_all_momenta() -> None:
    shifts = momentum_shifts(Nuisances((mass_nuisance(Z),)), [5.0, 50.0, 50.0], [-2.3, 0.0, 2.3], [1, -1, 1])
    line = resonance("Z").line
    np.testing.assert_allclose(shifts, [[-line.mass_error / line.mass] * 3], rtol=1e-12)


@pytest.mark.parametrize("charge", [1, -1])
def test_shifts_are_those_of_the_correction(everything: Nuisances, charge: int) -> None:
    """The variations added to the correction, applied exactly, one muon of each charge; second order is 1e-4 of it."""
    pt, eta = np.array([4.0, 12.0, 45.0]), np.array([-2.35, 0.1, 1.5])
    shifts = momentum_shifts(everything, pt, eta, charge)
    assert shifts.shape == (193, 3)
    bins = np.searchsorted(EDGES, eta) - 1
    row = 0
    for group in everything.groups:
        for variation in group.variations.reshape(len(group.names), N_ETA, -1):
            for n in range(3):
                change = dict(zip(group.parameters, variation[bins[n]], strict=True))
                a, e, m = (float(change.get(letter, 0.0)) for letter in "AeM")
                k = corrected_curvature(1.0 / pt[n], float(charge), a, e, m)
                expected = 1.0 / (k * pt[n]) - 1.0
                assert shifts[row, n] == pytest.approx(expected, rel=1e-2, abs=1e-9)
            row += 1


def test_squares_of_the_shifts_add_up_to_the_propagated_variance() -> None:
    pt, eta, charge = np.array([6.0, 40.0]), np.array([0.3, -1.7]), np.array([1.0, -1.0])
    found = np.sum(momentum_shifts(Nuisances((scale_nuisances(SYSTEMATIC),)), pt, eta, charge) ** 2, axis=0)
    for n, i in enumerate(np.searchsorted(EDGES, eta) - 1):
        block = SYSTEMATIC.covariance[3 * i : 3 * i + 3, 3 * i : 3 * i + 3]
        jacobian = correction_jacobian(pt[n], charge[n])
        assert found[n] == pytest.approx(jacobian @ block @ jacobian, rel=1e-12)


def test_muons_outside_the_eta_range_keep_their_momentum(everything: Nuisances) -> None:
    eta = np.array([-2.4, -2.5, 2.39, 2.4, np.nan])
    moved = np.any(momentum_shifts(everything, 30.0, eta, 1) != 0.0, axis=0)
    assert moved.tolist() == [True, False, True, False, False]


def test_variations_of_the_resolution_change_the_resolution_alone(everything: Nuisances) -> None:
    pt, eta, d = np.array([5.0, 40.0]), np.array([0.3, -1.7]), 370.0
    assert not np.any(momentum_shifts(everything, pt, eta, 1)[121:])
    shifts = resolution_shifts(everything, pt, eta, d)
    assert not np.any(shifts[:121])
    for n, i in enumerate(np.searchsorted(EDGES, eta) - 1):
        k = 1.0 / pt[n]
        a, b, c = everything.groups[3].variations.reshape(72, N_ETA, 3)[:, i].T
        np.testing.assert_allclose(shifts[121:, n], a + c / k**2 + b / (1.0 + d * k**2), rtol=1e-12)


def test_a_million_muons_in_pieces_are_the_same(everything: Nuisances) -> None:
    rng = np.random.default_rng(5)
    pt, eta, charge = rng.uniform(4, 60, 50), rng.uniform(-2.5, 2.5, 50), rng.choice([-1.0, 1.0], 50)
    whole = momentum_shifts(everything, pt, eta, charge)
    part = momentum_shifts(everything, pt[20:], eta[20:], charge[20:])
    np.testing.assert_array_equal(whole[:, 20:], part)


# Refusals

NEGATIVE = SYSTEMATIC.covariance.copy()
NEGATIVE[16, 15] = NEGATIVE[15, 16] = 1.5 * np.sqrt(NEGATIVE[15, 15] * NEGATIVE[16, 16])
WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "negative eigenvalue": (
        lambda: scale_nuisances(replace(SYSTEMATIC, covariance=NEGATIVE)),
        r"scale_stat: covariance: not positive semi-definite.* dominated by [Ae]5",
    ),
    "negative variance": (
        lambda: closure_nuisances(replace(Z, covariance=-Z.covariance)),
        r"closure_Z: covariance: negative variance .* of [AM]\d",
    ),
    "shape": (
        lambda: resolution_nuisances(np.eye(71), EDGES),
        r"resolution: a covariance of shape \(71, 71\)",
    ),
    "parameters": (
        lambda: eigen_nuisances("x", np.eye(48), EDGES, ("M", "A")),
        r"x: parameters \('M', 'A'\)",
    ),
    "mixed": (lambda: eigen_nuisances("x", np.eye(48), EDGES, ("A", "a")), "x: parameters"),
    "no parameters": (lambda: eigen_nuisances("x", np.eye(48), EDGES, ()), "x: parameters"),
    "inflation": (lambda: resolution_nuisances(np.eye(72), EDGES, inflation=-1.0), "inflation"),
    "mass without A": (lambda: mass_nuisance(replace(Z, parameter_names=("M",))), "closure at Z: without A"),
    "twice": (lambda: calibration_nuisances(SYSTEMATIC, [Z, Z]), "a resonance twice"),
    "pt": (lambda: momentum_shifts(Nuisances((mass_nuisance(Z),)), [1.0, 0.0], 0.0, 1), "pt .*got 0.0"),
    "charge": (lambda: momentum_shifts(Nuisances((mass_nuisance(Z),)), 5.0, 0.0, 2), "charge .*got 2.0"),
    "axes": (lambda: momentum_shifts(Nuisances((mass_nuisance(Z),)), np.ones((2, 2)), 0.0, 1), "one axis"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused_by_name(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        make()


def test_letters_of_the_resolution_are_those_of_the_model() -> None:
    assert RESOLUTION == ("a", "b", "c")
