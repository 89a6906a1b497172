"""W and Z generators against closed forms: spectra, angles, kinematics of the decay, weights of the mass."""

import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from scipy.integrate import quad

from musclecal.boson_simulation import (
    DRAWS,
    BosonSettings,
    boson_decay,
    mass_weight,
    simulate_w,
    simulate_z,
    w_draws,
    z_draws,
)
from musclecal.bosons import AngularCoefficients, boson, boson_names, rapidity_table
from musclecal.constants import MUON_MASS
from musclecal.errors import InputError
from musclecal.records import DimuonEvents, Floats
from musclecal.simulate import default_resolution

AT_REST = {"p0": 1e-6, "pt_max": 1e-3}


def settings(name: str, **changes: object) -> BosonSettings:
    """No radiation; fields of the boson changed."""
    return BosonSettings(replace(boson(name), **changes), fsr=False)  # type: ignore[arg-type]


def invariant_mass(first: Floats, second: Floats, mass1: float, mass2: float) -> float:
    energy = math.hypot(float(np.linalg.norm(first)), mass1) + math.hypot(
        float(np.linalg.norm(second)), mass2
    )
    return math.sqrt(energy**2 - float(np.sum((first + second) ** 2)))


def test_masses_are_those_of_the_particle_data_group() -> None:
    assert boson("W+").line == boson("W-").line
    assert boson("W+").line.mass == pytest.approx(80.37, abs=0.02)
    assert boson("W-").line.width == pytest.approx(2.1, abs=0.05)
    assert boson("Z").line.mass == pytest.approx(91.188, abs=0.003)
    assert [boson(name).charge for name in boson_names()] == [1, -1, 0]


@pytest.mark.parametrize(("mass", "pt", "y"), [(80.4, 0.0, 0.0), (80.4, 12.0, 1.3), (91.2, 140.0, -2.2)])
def test_decay_conserves_momentum_and_mass(mass: float, pt: float, y: float) -> None:
    """Both decay products together are the boson, for equal and for different masses."""
    for partner in (MUON_MASS, 0.0, 2.0):
        one = np.array(boson_decay(mass, pt, y, 0.3, 0.8, MUON_MASS, partner))
        two = np.array(boson_decay(mass, pt, y, -0.3, 0.8 + math.pi, partner, MUON_MASS))
        np.testing.assert_allclose(
            one + two, [pt, 0.0, math.hypot(mass, pt) * math.sinh(y)], rtol=1e-12, atol=1e-10
        )
        assert invariant_mass(one, two, MUON_MASS, partner) == pytest.approx(mass, rel=1e-12)


def test_angles_are_those_of_collins_and_soper() -> None:
    """cos(theta) = 2 (p1+ p2- - p1- p2+)/(m sqrt(m^2 + pT^2)), p+- = (E +- pz)/sqrt(2), of massless products."""
    mass, pt, y, c = 80.4, 31.0, 0.7, -0.37
    one = np.array(boson_decay(mass, pt, y, c, 1.1, 0.0, 0.0))
    two = np.array(boson_decay(mass, pt, y, -c, 1.1 + math.pi, 0.0, 0.0))
    e1, e2 = np.linalg.norm(one), np.linalg.norm(two)
    found = (e1 + one[2]) * (e2 - two[2]) - (e1 - one[2]) * (e2 + two[2])
    assert found / (mass * math.hypot(mass, pt)) == pytest.approx(c, abs=1e-12)


def test_rapidity_table_is_the_leading_order_luminosity() -> None:
    """D is one where only the valence can be: all momentum in one parton; zero at y = 0; more for up than for down."""
    plus, minus = rapidity_table(boson("W+")), rapidity_table(boson("W-"))
    for table in (plus, minus):
        assert np.all(np.diff(table[0]) > 0.0)
        assert table[1, 0] == pytest.approx(0.0, abs=1e-12)
        assert np.all(table[1] >= 0.0)
        assert table[1, -2] > 0.7
    at = [np.interp(2.0, *table) for table in (plus, minus)]
    assert at[0] > at[1] > 0.1
    without = rapidity_table(replace(boson("W+"), valence=0.0))
    np.testing.assert_allclose(without[1], 0.0, atol=1e-12)
    np.testing.assert_allclose(without, rapidity_table(replace(boson("W-"), valence=0.0)), atol=1e-12)


def test_pt_spectrum_and_its_mean() -> None:
    source = boson("Z")

    def density(pt: float) -> float:
        return float(pt * (1.0 + (pt / source.p0) ** 2) ** -source.exponent)

    norm = quad(density, 0.0, source.pt_max)[0]
    assert source.mean_pt == pytest.approx(
        quad(lambda x: x * density(x), 0.0, source.pt_max)[0] / norm, rel=1e-5
    )
    rows = z_draws(BosonSettings(source, fsr=False), seed=3, block=0)[::2]
    px = rows[:, 0] * np.cos(rows[:, 2]) + rows[:, 3] * np.cos(rows[:, 5])
    py = rows[:, 0] * np.sin(rows[:, 2]) + rows[:, 3] * np.sin(rows[:, 5])
    pt = np.hypot(px, py)
    assert pt.mean() == pytest.approx(source.mean_pt, abs=4.0 * pt.std() / math.sqrt(len(pt)))
    below = quad(density, 0.0, 10.0)[0] / norm
    assert np.mean(pt < 10.0) == pytest.approx(below, abs=4.0 * math.sqrt(below * (1.0 - below) / len(pt)))


def test_averages_of_the_angles_are_the_coefficients() -> None:
    """Moments of the density: <c> = A4/4, <1/2 (1 - 3 c^2)> = 3 (A0 - 2/3)/20, <2 s c cos phi> = A1/5,
    <s^2 cos 2 phi> = A2/10, <s cos phi> = A3/4, found by boosting the mu- of a Z back.
    """
    angular = AngularCoefficients(a0=0.8, a1=0.3, a2=0.5, a3=0.2, a4=0.6)
    source = replace(
        boson("Z"),
        angular=angular,
        p0=1e6,
        exponent=1.5,
        pt_max=60.0,
        line=replace(boson("Z").line, width=1e-9),
    )
    rows = np.concatenate([z_draws(BosonSettings(source, fsr=False), seed=5, block=n)[::2] for n in range(8)])
    plus, minus = (
        np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)])
        for pt, eta, phi in (rows[:, :3].T, rows[:, 3:6].T)
    )
    e_plus, e_minus = np.linalg.norm(plus, axis=0), np.linalg.norm(minus, axis=0)
    total, energy = plus + minus, e_plus + e_minus
    pt2 = total[0] ** 2 + total[1] ** 2
    mass = np.sqrt(energy**2 - pt2 - total[2] ** 2)
    root = np.sqrt(mass**2 + pt2)
    c = ((e_minus + minus[2]) * (e_plus - plus[2]) - (e_minus - minus[2]) * (e_plus + plus[2])) / (
        mass * root
    )
    y = 0.5 * np.log((energy + total[2]) / (energy - total[2]))
    d = np.sign(y) * np.interp(np.abs(y), *rapidity_table(source))
    t = pt2 / root**2
    # Along the pT of the boson, in its rest frame: (p_x sqrt(m^2 + pT^2) - E' pT)/m with E' at y = 0.
    along = (minus[0] * total[0] + minus[1] * total[1]) / np.sqrt(pt2)
    at_zero_y = (e_minus * energy - minus[2] * total[2]) / root
    x = (along * root - at_zero_y * np.sqrt(pt2)) / mass / (0.5 * mass)
    beside = (minus[1] * total[0] - minus[0] * total[1]) / np.sqrt(pt2) / (0.5 * mass)
    mixed = np.sqrt(t * (1.0 - t))
    side = np.sign(y)  # A1 and A4 are odd
    for name, value, expected in (
        ("A4", side * c, angular.a4 * np.sqrt(1.0 - t) * side * d / 4.0),
        ("A0", 0.5 * (1.0 - 3.0 * c**2), 3.0 * (angular.a0 * t - 2.0 / 3.0) / 20.0),
        ("A1", side * 2.0 * c * x, angular.a1 * mixed * side * d / 5.0),
        ("A2", x**2 - beside**2, angular.a2 * t / 10.0),
        ("A3", x, angular.a3 * mixed / 4.0),
    ):
        difference = value - expected
        error = difference.std() / math.sqrt(len(c))
        size = abs(expected.mean() + (0.1 if name == "A0" else 0.0))
        assert size > 8.0 * error, f"{name}: {size} is too small to be seen with {error}"
        assert difference.mean() == pytest.approx(0.0, abs=4.0 * error), name


def test_v_minus_a() -> None:
    """The mu+ of a W+ goes against the quark, the mu- of a W- with it: mu+ are more central than mu-."""
    eta = {}
    for name in ("W+", "W-"):
        one_table = replace(boson(name), **AT_REST)  # type: ignore[arg-type]
        rows = w_draws(BosonSettings(one_table, fsr=False), seed=1, block=0)
        eta[name] = np.mean(np.abs(rows[:, 1]))
        unpolarised = replace(one_table, angular=AngularCoefficients(a0=0.0, a2=0.0))
        neutral = np.mean(np.abs(w_draws(BosonSettings(unpolarised, fsr=False), seed=1, block=0)[:, 1]))
        assert (eta[name] < neutral) == (name == "W+")


def test_a_w_at_rest_gives_half_its_mass() -> None:
    """pT = m/2 sin(theta) where the boson has none, with 1 + cos^2(theta) where nothing polarises it."""
    source = replace(
        boson("W+"),
        **AT_REST,  # type: ignore[arg-type]
        line=replace(boson("W+").line, width=1e-9),
        valence=0.0,
    )
    pt = w_draws(BosonSettings(source, fsr=False), seed=1, block=0)[:, 0]
    half = 0.5 * source.line.mass
    assert pt.max() <= half + 1e-3
    mean = half * 3.0 / 8.0 * quad(lambda c: math.sqrt(1.0 - c * c) * (1.0 + c * c), -1.0, 1.0)[0]
    assert pt.mean() == pytest.approx(mean, abs=4.0 * pt.std() / math.sqrt(len(pt) / 2))


def test_mass_weights_are_the_derivative_of_the_breit_wigner() -> None:
    def log_density(shift: float, width: float) -> float:
        return -math.log(shift * shift + 0.25 * width * width)

    for shift in (-7.0, -0.4, 0.0, 1.1):
        # m fixed, m0 up: the distance from the peak goes down.
        numerical = (log_density(shift - 1e-5, 2.1) - log_density(shift + 1e-5, 2.1)) / 2e-5
        assert mass_weight(shift, 2.1) == pytest.approx(numerical, abs=1e-8)


def test_the_two_masses_of_a_draw_mirror_each_other() -> None:
    rows = w_draws(settings("W-"), seed=2, block=1)
    mass = boson("W-").line.mass
    np.testing.assert_allclose(rows[::2, 3] - mass, mass - rows[1::2, 3], atol=1e-9)
    np.testing.assert_allclose(rows[::2, 2], -rows[1::2, 2])
    # Half of a Breit-Wigner is within half a width.
    inside = np.mean(np.abs(rows[:, 3] - mass) < 0.5 * boson("W-").line.width)
    assert inside == pytest.approx(0.5 / (2.0 / math.pi * math.atan(24.0)), abs=0.01)


def before_radiation(events: DimuonEvents) -> Floats:
    return np.asarray(events.extra["boson_mass"], dtype=np.float64)


def test_pairs_have_the_mass_of_the_boson_and_radiation_lowers_it() -> None:
    (events,) = simulate_z(settings("Z"), DRAWS, seed=4, threads=1)
    assert events.gen_mass is not None
    np.testing.assert_allclose(events.gen_mass, before_radiation(events), rtol=1e-10)
    (radiating,) = simulate_z(BosonSettings(boson("Z")), DRAWS, seed=4, threads=1)
    assert radiating.gen_mass is not None
    assert np.all(radiating.gen_mass <= before_radiation(radiating) * (1.0 + 1e-12))
    assert np.mean(radiating.gen_mass < 0.99 * before_radiation(radiating)) > 0.05
    assert np.all(np.abs(events.plus.phi) <= math.pi)


def test_measured_muons_have_the_resolution() -> None:
    (muons,) = simulate_w(settings("W+"), 1000, seed=6, threads=1)
    r = default_resolution()
    at = np.clip(np.searchsorted(r.eta_edges, muons.generated.eta, side="right") - 1, 0, 23)
    sigma = np.sqrt(r.a[at] + r.c[at] * muons.generated.pt**2)
    pull = (muons.generated.pt / muons.measured.pt - 1.0) / sigma
    assert pull.mean() == pytest.approx(0.0, abs=4.0 / math.sqrt(len(pull)))
    assert pull.std() == pytest.approx(1.0, abs=4.0 / math.sqrt(2 * len(pull)))


def test_events_do_not_depend_on_threads_and_charges_differ() -> None:
    one = list(simulate_w(settings("W+"), 2 * DRAWS, seed=9, threads=1))
    two = list(islice(simulate_w(settings("W+"), 2 * DRAWS, seed=9, threads=2), 2))
    assert len(one) == 2
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.measured.pt, b.measured.pt)
    assert not np.any(one[0].generated.pt == one[1].generated.pt)
    minus = w_draws(settings("W-", angular=boson("W+").angular, cross_section=1.0), seed=9, block=0)
    assert not np.any(minus[:, 0] == one[0].generated.pt)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: boson("H"), "unknown boson 'H': known are W\\+, W-, Z"),
        (lambda: AngularCoefficients(a4=2.5), "angular coefficients: negative probability"),
        (lambda: replace(boson("Z"), exponent=1.0), "Z: .*exponent > 1"),
        (lambda: replace(boson("W+"), valence=-1.0), "W\\+: valence -1"),
        (lambda: w_draws(settings("Z"), 1, 0), "Z has no charge: give W\\+ or W-"),
        (lambda: z_draws(settings("W+"), 1, 0), "W\\+ does not decay to a pair"),
        (lambda: list(simulate_w(settings("W+"), 0, 1)), "at least one draw, got 0"),
    ],
)
def test_bad_input_is_named(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]
