"""Corrections applied to muons: the right eta bin, the right charge, nothing else touched."""

import numpy as np
import pytest
from numpy.typing import NDArray

from musclecal.apply import correct, corrected_pt
from musclecal.records import DimuonEvents, Muons, ScaleParameters
from musclecal.scale import biased_curvature

SCALE = ScaleParameters(
    eta_edges=np.array([-2.4, -1.0, 0.5, 2.4]),
    A=np.array([1e-3, -2e-3, 0.0]),
    e=np.array([0.0, 4e-3, -1e-3]),
    M=np.array([1e-5, 0.0, -3e-5]),
)


def muons(n: int = 400, seed: int = 2, eta_max: float = 2.39) -> Muons:
    rng = np.random.default_rng(seed)
    return Muons(rng.uniform(3.0, 60.0, n), rng.uniform(-eta_max, eta_max, n), rng.uniform(-3.0, 3.0, n))


def by_hand(sample: Muons, charge: int) -> NDArray[np.float64]:
    """1/k_corr of the definition in physics.md section 1, in plain numpy."""
    i = np.digitize(sample.eta, SCALE.eta_edges) - 1
    k = 1.0 / sample.pt
    return np.asarray(1.0 / (k * (1.0 + SCALE.A[i] - SCALE.e[i] * k) + charge * SCALE.M[i]))


@pytest.mark.parametrize("charge", [+1, -1])
def test_momenta_are_corrected_as_defined(charge: int) -> None:
    sample = muons()
    np.testing.assert_allclose(corrected_pt(sample, charge, SCALE), by_hand(sample, charge), rtol=1e-15)


def test_each_muon_of_a_pair_gets_the_correction_of_its_charge() -> None:
    plus, minus = muons(seed=3), muons(seed=4)
    after = correct(DimuonEvents(plus, minus), SCALE)
    np.testing.assert_allclose(after.plus.pt, by_hand(plus, +1), rtol=1e-15)
    np.testing.assert_allclose(after.minus.pt, by_hand(minus, -1), rtol=1e-15)


def test_a_bias_is_undone_for_both_charges() -> None:
    truth = muons(seed=5)
    i = np.digitize(truth.eta, SCALE.eta_edges) - 1
    for charge in (+1, -1):
        biased = [
            1.0 / biased_curvature(1.0 / pt, charge, SCALE.A[b], SCALE.e[b], SCALE.M[b])
            for pt, b in zip(truth.pt, i, strict=True)
        ]
        again = corrected_pt(Muons(np.array(biased), truth.eta, truth.phi), charge, SCALE)
        np.testing.assert_allclose(again, truth.pt, rtol=2e-15)


def test_muons_outside_the_eta_range_are_left_alone() -> None:
    outside = Muons(np.full(4, 20.0), np.array([-2.5, 2.4, 3.0, np.nan]), np.zeros(4))
    np.testing.assert_array_equal(corrected_pt(outside, +1, SCALE), 20.0)


def test_angles_generator_level_and_extra_columns_are_kept() -> None:
    plus, minus = muons(seed=6), muons(seed=7)
    before = DimuonEvents(
        plus, minus, minus, plus, event=np.arange(400), extra={"nhits_plus": np.arange(400)}
    )
    after = correct(before, SCALE)
    for name in ("eta", "phi"):
        assert getattr(after.plus, name) is getattr(plus, name)
        assert getattr(after.minus, name) is getattr(minus, name)
    assert after.gen_plus is minus
    assert after.gen_minus is plus
    assert after.event is before.event
    assert after.extra is before.extra
    assert before.plus.pt is plus.pt


def test_the_mass_follows_the_corrected_momenta() -> None:
    before = DimuonEvents(muons(seed=8), muons(seed=9))
    same = ScaleParameters(np.array([-2.4, 2.4]), np.array([1e-3]), np.zeros(1), np.zeros(1))
    ratio = correct(before, same).mass / before.mass
    heavy = before.mass > 20.0
    np.testing.assert_allclose(ratio[heavy], 1.0 / 1.001, rtol=1e-6)


def test_no_correction_changes_no_momentum_beyond_rounding() -> None:
    zero = ScaleParameters(SCALE.eta_edges, np.zeros(3), np.zeros(3), np.zeros(3))
    sample = muons(seed=10)
    np.testing.assert_allclose(corrected_pt(sample, -1, zero), sample.pt, rtol=3e-16)


def test_no_muons_give_no_momenta() -> None:
    assert corrected_pt(muons(0), +1, SCALE).shape == (0,)


def test_a_strided_column_gives_the_same() -> None:
    sample = muons()
    table = np.stack([sample.pt, sample.eta], axis=1)
    strided = Muons(table[:, 0], table[:, 1], sample.phi)
    np.testing.assert_array_equal(corrected_pt(strided, +1, SCALE), corrected_pt(sample, +1, SCALE))
