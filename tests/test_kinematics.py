"""Masses against four-vector sums in long double, their derivatives against differences."""

import numpy as np
import pytest
from numpy.typing import NDArray

from musclecal.constants import MUON_MASS
from musclecal.kinematics import from_cartesian, pair_mass, pair_masses, pair_terms

Floats = NDArray[np.float64]


def random_pairs(n: int = 2000, seed: int = 5) -> tuple[Floats, ...]:
    """pt, eta, phi of both muons: from nearly collinear to back to back, 1 to 100 GeV."""
    rng = np.random.default_rng(seed)
    pt1, pt2 = np.exp(rng.uniform(0.0, 4.6, (2, n)))
    eta1, phi1 = rng.uniform(-2.4, 2.4, n), rng.uniform(-np.pi, np.pi, n)
    distance = 10.0 ** rng.uniform(-4.0, 0.5, n)
    direction = rng.uniform(0.0, 2.0 * np.pi, n)
    return pt1, eta1, phi1, pt2, eta1 + distance * np.cos(direction), phi1 + distance * np.sin(direction)


def long_double_mass(pairs: tuple[Floats, ...]) -> Floats:
    """sqrt((E1 + E2)^2 - (p1 + p2)^2), summed as four-vectors with 64 bits of mantissa."""
    pt1, eta1, phi1, pt2, eta2, phi2 = (np.asarray(c, dtype=np.longdouble) for c in pairs)
    momenta = [
        (pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta))
        for pt, eta, phi in ((pt1, eta1, phi1), (pt2, eta2, phi2))
    ]
    mu = np.longdouble(MUON_MASS)
    energy = sum(np.sqrt(mu**2 + px**2 + py**2 + pz**2) for px, py, pz in momenta)
    total = [a + b for a, b in zip(*momenta, strict=True)]
    return np.asarray(np.sqrt(energy**2 - sum(p**2 for p in total)), dtype=np.float64)


def test_the_mass_is_that_of_the_four_vector_sum() -> None:
    pairs = random_pairs()
    np.testing.assert_allclose(pair_masses(*pairs), long_double_mass(pairs), rtol=1e-11)


def test_resonance_masses_are_exact_to_rounding() -> None:
    pairs = random_pairs()
    expected = long_double_mass(pairs)
    hard = expected > 2.5
    assert np.count_nonzero(hard) > 100
    np.testing.assert_allclose(pair_masses(*pairs)[hard], expected[hard], rtol=2e-14)


@pytest.mark.parametrize("pt", [1.0, 50.0, 3000.0])
def test_a_collinear_pair_of_equal_muons_has_twice_the_muon_mass(pt: float) -> None:
    mass = pair_mass(pt, 1.3, 0.4, pt, 1.3, 0.4, MUON_MASS)
    assert mass == pytest.approx(2.0 * MUON_MASS, rel=1e-15)


def test_a_small_opening_angle_is_not_lost() -> None:
    pt, angle = 100.0, 1e-6
    mass = pair_mass(pt, 0.0, 0.0, pt, 0.0, angle, MUON_MASS)
    assert mass**2 - 4.0 * MUON_MASS**2 == pytest.approx((pt * angle) ** 2, rel=1e-4)


def test_back_to_back_massless_muons() -> None:
    assert pair_mass(45.0, 0.0, 0.0, 45.0, 0.0, np.pi, 0.0) == pytest.approx(90.0, rel=1e-15)


def test_azimuth_is_periodic() -> None:
    first = pair_mass(5.0, 0.3, 3.1, 7.0, -0.2, -3.1, MUON_MASS)
    assert first == pytest.approx(
        pair_mass(5.0, 0.3, 3.1 - 2.0 * np.pi, 7.0, -0.2, -3.1, MUON_MASS), rel=1e-14
    )


def test_mass_factors_are_the_derivatives_of_the_mass() -> None:
    h = 1e-4
    for pt1, eta1, phi1, pt2, eta2, phi2 in zip(*random_pairs(200, seed=6), strict=True):
        mass = pair_mass(pt1, eta1, phi1, pt2, eta2, phi2, MUON_MASS)
        if mass < 1.0:
            continue
        factors = pair_terms(pt1, eta1, phi1, pt2, eta2, phi2, MUON_MASS)[1:]
        for muon in (0, 1):
            scales = ((1.0 + h, 1.0), (1.0 - h, 1.0)) if muon == 0 else ((1.0, 1.0 + h), (1.0, 1.0 - h))
            up, down = (
                2.0 * np.log(pair_mass(a * pt1, eta1, phi1, b * pt2, eta2, phi2, MUON_MASS))
                for a, b in scales
            )
            assert factors[muon] == pytest.approx((up - down) / (np.log1p(h) - np.log1p(-h)), abs=1e-7)


def opening(mass: float, pt1: float, pt2: float) -> float:
    """Angle between muons at eta = 0 that gives this mass."""
    cosine = 1.0 - (mass**2 - 2.0 * MUON_MASS**2 * (1.0 + 0.5 * (pt1 / pt2 + pt2 / pt1))) / (2.0 * pt1 * pt2)
    return float(np.arccos(cosine))


def test_mass_factors_of_equal_energies() -> None:
    m2, *jpsi = pair_terms(8.0, 0.0, 0.0, 8.0, 0.0, opening(3.0969, 8.0, 8.0), MUON_MASS)
    assert np.sqrt(m2) == pytest.approx(3.0969, rel=1e-5)
    np.testing.assert_allclose(jpsi, 0.9953, atol=5e-5)
    z = pair_terms(45.595, 0.5, 0.1, 45.595, -0.5, 0.1 - np.pi, MUON_MASS)[1:]
    np.testing.assert_allclose(1.0 - np.array(z), 5e-6, rtol=0.3)


def test_the_softer_muon_has_the_smaller_factor() -> None:
    m2, soft, hard = pair_terms(4.0, 0.0, 0.0, 20.0, 0.0, opening(3.0969, 4.0, 20.0), MUON_MASS)
    share = 2.0 * MUON_MASS**2 / m2
    assert 1.0 - soft == pytest.approx(share * 6.0, rel=1e-3)
    assert 1.0 - hard == pytest.approx(share * 1.2, rel=1e-3)


@pytest.mark.parametrize("eta", [-14.0, -6.0, 0.0, 5.0, 14.0])
def test_forward_muons(eta: float) -> None:
    """Also where e^eta spans twelve orders of magnitude, and after many turns."""
    rng = np.random.default_rng(3)
    d_eta, phi = rng.uniform(-1.0, 1.0, 200), rng.uniform(-np.pi, np.pi, (2, 200))
    pairs = (np.full(200, 3.0), np.full(200, eta), phi[0], np.full(200, 5.0), eta + d_eta, phi[1])
    found = pair_masses(*pairs)
    massless = np.sqrt(2.0 * 15.0 * (np.cosh(d_eta) - np.cos(phi[0] - phi[1])))
    np.testing.assert_allclose(found[massless > 2.0], massless[massless > 2.0], rtol=0.01)
    if abs(eta) < 7.0:
        np.testing.assert_allclose(found, long_double_mass(pairs), rtol=1e-9)
    turned = (*pairs[:2], phi[0] + 14.0 * np.pi, *pairs[3:])
    np.testing.assert_allclose(pair_masses(*turned), found, rtol=1e-12)


def test_cartesian_momenta_come_back() -> None:
    rng = np.random.default_rng(7)
    momenta = rng.normal(0.0, 20.0, (3, 500))
    pt, eta, phi = from_cartesian(*momenta)
    back = pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)
    np.testing.assert_allclose(back, momenta, rtol=1e-12, atol=1e-12)
    assert np.all(np.abs(phi) <= np.pi)


def test_a_momentum_along_the_beam_has_infinite_eta_and_no_warning() -> None:
    pt, eta, _ = from_cartesian(np.zeros(2), np.zeros(2), np.array([5.0, -5.0]))
    np.testing.assert_array_equal(pt, 0.0)
    np.testing.assert_array_equal(eta, [np.inf, -np.inf])
