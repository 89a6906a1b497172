"""Fits of pairs and what they add to the global fit: the truth without noise, pulls, and dense algebra by hand."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musclecal.constants import MUON_MASS
from musclecal.errors import InputError
from musclecal.geometry.detector import barrel_tracker, cms_tracker, planes_of
from musclecal.geometry.field import SOLENOID, solenoid_map
from musclecal.geometry.mass_target import gen_masses, mass_constraint
from musclecal.geometry.misalignment import misaligned
from musclecal.geometry.pair_kernels import pair_mass_and_derivatives
from musclecal.geometry.pair_refit import Contributions, contributions, refit_pairs
from musclecal.geometry.refit import RefitCuts, refit_tracks
from musclecal.geometry.refit_kernels import CONVERGED, TOO_FEW_HITS
from musclecal.geometry.simulate import (
    PERFECT,
    DetectorEffects,
    simulate_pairs,
    simulate_tracks,
    start_states,
    track_maker,
)
from musclecal.geometry.trace import Planes
from musclecal.kinematics import pair_masses
from musclecal.records import Detector, FieldMap, Floats, MassConstraint, PairRefits, Pairs
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings

FIELD = solenoid_map()
EVEN_FIELD = FieldMap(SOLENOID, np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.full((2, 2), 3.8))
BARREL, CMS = barrel_tracker(), cms_tracker()
BARREL_PLANES, EVEN_PLANES, CMS_PLANES = (
    planes_of(BARREL, FIELD), planes_of(BARREL, EVEN_FIELD), planes_of(CMS, FIELD),
)  # fmt: skip
EXACT = RefitCuts(1e-12, math.inf, 0, math.inf, math.inf)
ALL = RefitCuts(hit_chi2=math.inf, most_rejected=0, chi2_per_ndf=math.inf, gradient=math.inf)
WINDOW = (2.9, 3.3)
USUAL = DetectorEffects()
MISALIGNED = misaligned(BARREL, 4)


def settings(detector: Detector, **changes: Any) -> SimulationSettings:
    eta = (-0.9, 0.9) if detector is BARREL else (-2.4, 2.4)
    return replace(SimulationSettings(resonance("Jpsi"), (3.5, 50.0), eta, (2.6, 3.6)), **changes)


def simulated(
    n: int, seed: int, truth: Floats = MISALIGNED, *, detector: Detector = BARREL, field: FieldMap = FIELD,
    effects: DetectorEffects = USUAL, spot: tuple[float, float, float] = (0.0015, 0.0015, 2.0),
    **changes: Any,
) -> Pairs:  # fmt: skip
    """J/psi with radiation in the misaligned detector."""
    maker = track_maker(detector, field, truth, effects)
    (pairs,) = simulate_pairs(maker, settings(detector, **changes), n, seed, min_hits=7, beam_spot=spot)
    return pairs


def of_truth(pairs: Pairs) -> Floats:
    """(n, 9)"""
    truth = np.asarray(pairs.tracks.truth)[pairs.pairs]
    return np.concatenate([truth[:, 0, :3], truth[:, 1, :3], truth[:, 0, 3:]], axis=1)


def off_truth(refits: PairRefits, pairs: Pairs) -> Floats:
    """(n, 9), phi within half a turn."""
    off = refits.local - of_truth(pairs)
    off[:, [2, 5]] = (off[:, [2, 5]] + np.pi) % (2.0 * np.pi) - np.pi
    return off


def mass_of(local: Floats) -> float:
    p, eta, phi = 1.0 / np.abs(local[[0, 3]]), np.arcsinh(np.tan(local[[1, 4]])), local[[2, 5]]
    pt = p * np.cos(local[[1, 4]])
    one = [np.array([x]) for x in (pt[0], eta[0], phi[0], pt[1], eta[1], phi[1])]
    return float(pair_masses(*one)[0])


def together(parts: Any) -> Contributions:
    return Contributions(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def one_by_one(
    pairs: Pairs, planes: Planes, values: Floats, mass: MassConstraint | None, cuts: RefitCuts
) -> Any:
    return together(contributions(pairs.tracks, pairs.pairs, planes, values, mass, cuts))


def random_pair(rng: np.random.Generator) -> Floats:
    local = np.zeros(9)
    local[[0, 3]] = np.array([1.0, -1.0]) / rng.uniform(2.0, 60.0, 2)
    local[[1, 4]] = rng.uniform(-1.3, 1.3, 2)
    local[[2, 5]] = rng.uniform(-3.1, 3.1, 2)
    local[6:] = rng.normal(size=3)
    return local


def test_mass_is_that_of_the_vocabulary() -> None:
    rng, unused = np.random.default_rng(1), np.empty(9)
    for _ in range(200):
        local = random_pair(rng)
        found = pair_mass_and_derivatives(local, MUON_MASS, unused)
        assert found == pytest.approx(mass_of(local), rel=1e-13)


def test_derivatives_of_the_mass() -> None:
    """Against finite differences in all nine: 1e-6 of the largest."""
    rng, unused, derivative = np.random.default_rng(2), np.empty(9), np.empty(9)
    for _ in range(100):
        local = random_pair(rng)
        pair_mass_and_derivatives(local, MUON_MASS, derivative)
        for k in range(9):
            step = 1e-4 * abs(local[k]) if k in (0, 3) else 1e-5
            ends = []
            for sign in (1.0, -1.0):
                moved = local.copy()
                moved[k] += sign * step
                ends.append(pair_mass_and_derivatives(moved, MUON_MASS, unused))
            expected = (ends[0] - ends[1]) / (2.0 * step)
            if k in (0, 3):
                assert derivative[k] == pytest.approx(expected, rel=1e-6, abs=1e-9)
            else:
                scale = max(abs(expected), 0.1 * pair_mass_and_derivatives(local, MUON_MASS, unused))
                assert derivative[k] == pytest.approx(expected, abs=1e-6 * scale)
        np.testing.assert_array_equal(derivative[6:], 0.0)


def test_the_mass_falls_by_half_of_what_the_curvature_grows() -> None:
    """dm/m = -1/2 dk/k where the mass of the muon does not matter."""
    local, derivative = np.array([0.02, 0.3, 0.1, -0.03, -0.4, 2.9, 0.0, 0.0, 0.0]), np.empty(9)
    mass = pair_mass_and_derivatives(local, MUON_MASS, derivative)
    np.testing.assert_allclose(derivative[[0, 3]] * local[[0, 3]] / mass, -0.5, atol=1e-4)


@pytest.mark.parametrize("n_slots", [4, 6])
@pytest.mark.parametrize("detector", [BARREL, CMS], ids=["barrel", "cms"])
def test_without_noise_the_truth_is_found(detector: Detector, n_slots: int) -> None:
    """Vertex, momenta and mass to 1e-10."""
    truth = misaligned(detector, 4, n_slots=n_slots)
    pairs = simulated(200, 3, truth, detector=detector, effects=PERFECT, spot=(0.1, 0.1, 2.0))
    refits = refit_pairs(pairs.tracks, pairs.pairs, planes_of(detector, FIELD), truth, EXACT)
    np.testing.assert_array_equal(refits.status, CONVERGED)
    expected = of_truth(pairs)
    np.testing.assert_allclose(refits.local[:, [0, 3]] / expected[:, [0, 3]], 1.0, rtol=0, atol=1e-10)
    np.testing.assert_allclose(off_truth(refits, pairs), 0.0, rtol=0, atol=1e-10)
    np.testing.assert_allclose(refits.mass, gen_masses(pairs), rtol=1e-10)
    coordinates = np.isfinite(pairs.tracks.u).sum(axis=1) + np.isfinite(pairs.tracks.v).sum(axis=1)
    np.testing.assert_array_equal(refits.ndf, coordinates[pairs.pairs].sum(axis=1) - 9)


def check_pulls(detector: Detector, planes: Planes, truth: Floats, n: int, sigmas: float) -> None:
    pairs = simulated(n, 5, truth, detector=detector)
    refits = refit_pairs(pairs.tracks, pairs.pairs, planes, truth, ALL)
    np.testing.assert_array_equal(refits.status, CONVERGED)
    off = np.column_stack([off_truth(refits, pairs), refits.mass - gen_masses(pairs)])
    sigma = np.column_stack([np.sqrt(np.einsum("nii->ni", refits.covariance)), refits.mass_sigma])
    pull = off / sigma
    ndf = refits.ndf.sum()
    assert refits.chi2.sum() / ndf == pytest.approx(1.0, abs=max(0.01, sigmas * math.sqrt(2.0 / ndf)))
    np.testing.assert_allclose(pull.std(axis=0), 1.0, atol=max(0.02, sigmas / math.sqrt(2.0 * n)))
    # sigma is that at the fitted momentum, larger where the curvature came out larger: one per cent
    np.testing.assert_allclose(pull.mean(axis=0), 0.0, atol=0.015 + sigmas / math.sqrt(n))


def test_pulls() -> None:
    """Nine parameters and the mass, of 6,000 pairs."""
    check_pulls(BARREL, BARREL_PLANES, MISALIGNED, 6000, 3.5)


@pytest.mark.long
@pytest.mark.slow
def test_pulls_in_the_whole_tracker() -> None:
    check_pulls(CMS, CMS_PLANES, misaligned(CMS, 4), 50_000, 3.5)


def by_hand(
    rows_of: Callable[..., Any], pairs: Pairs, n: int, planes: Planes, values: Floats, local: Floats,
    mass: MassConstraint | None,
) -> tuple[Floats, Floats, Any, float, Floats]:  # fmt: skip
    """C, g, units, chi2 and the local parameters of the pair ``n``: A and G dense, projected with Q of A = Q R."""
    local = local.copy()
    for _ in range(6):
        r_all, A_all, G_all, units = [], [], [], []
        tracks = [
            rows_of(pairs.tracks, pairs.pairs[n, muon], planes, values, lambda x: x,
                    np.concatenate([local[3 * muon : 3 * muon + 3], local[6:]]))
            for muon in range(2)
        ]  # fmt: skip
        sizes = [rows.G.shape[1] for rows in tracks]
        for muon, rows in enumerate(tracks):
            r, A, G = rows.whitened()
            r_all.append(r)
            nine = np.zeros((len(r), 9))
            nine[:, 3 * muon : 3 * muon + 3], nine[:, 6:] = A[:, :3], A[:, 3:]
            A_all.append(nine)
            G_all.append(np.zeros((len(r), sum(sizes))))
            G_all[-1][:, muon * sizes[0] : muon * sizes[0] + sizes[muon]] = G
            units += list(rows.units)
        if mass is not None:
            step = 1e-6
            slope = [
                (mass_of(local + step * one) - mass_of(local - step * one)) / (2.0 * step)
                for one in np.eye(9)
            ]
            width = mass.sigma / mass.target
            r_all.append(np.array([np.log(mass.target / mass_of(local)) / width]))
            A_all.append(np.array([slope]) / mass_of(local) / width)
            G_all.append(np.zeros((1, sum(sizes))))
        r, A, G = (np.concatenate(x) for x in (r_all, A_all, G_all))
        local = local + np.linalg.lstsq(A, r, rcond=None)[0]
    Q = np.linalg.qr(A)[0]
    projected = G - Q @ (Q.T @ G)
    return projected.T @ projected, projected.T @ r, units, float(r @ r), local


@pytest.mark.parametrize("with_mass", [True, False], ids=["mass", "free"])
@pytest.mark.parametrize("n_slots", [4, 6])
def test_contributions_are_those_of_dense_algebra(
    rows_by_hand: Callable[..., Any], n_slots: int, with_mass: bool
) -> None:
    """C and g of pairs with noise, holes and stereo units, in a detector that is assumed to be elsewhere."""
    truth, values = misaligned(BARREL, 4, n_slots=n_slots), 0.5 * misaligned(BARREL, 6, n_slots=n_slots)
    pairs = simulated(3, 9, truth, field=EVEN_FIELD, effects=DetectorEffects(efficiency=0.9))
    mass = MassConstraint(3.09, 0.02, (2.0, 4.0)) if with_mass else None
    found = one_by_one(pairs, EVEN_PLANES, values, mass, EXACT)
    free = refit_pairs(pairs.tracks, pairs.pairs, EVEN_PLANES, values, EXACT)
    for n in range(len(pairs)):
        C, g, units, chi2, _ = by_hand(rows_by_hand, pairs, n, EVEN_PLANES, values, free.local[n], mass)
        assert found.good[n]
        np.testing.assert_array_equal(found.units[n, : len(units)], units)
        assert np.all(found.units[n, len(units) :] == -1)
        assert found.chi2[n] == pytest.approx(chi2, rel=1e-6)
        assert found.ndf[n] == free.ndf[n] + (1 if with_mass else 0)
        size = len(g)
        place = np.repeat(np.arange(len(units)), n_slots)
        above = place[:, None] <= place[None, :]
        scale = np.sqrt(np.diag(C)) + np.tile([0.01, 0.01, 0.01, 0.01, 1.0, 0.01][:n_slots], len(units))
        known = np.where(above, found.matrix[n, :size, :size], C)  # what is below was never written
        close = (known - C) / np.outer(scale, scale)
        # That a plane moved along its normal takes the energy elsewhere is not in the derivatives
        np.testing.assert_allclose(close[above], 0.0, rtol=0, atol=1e-3 if n_slots == 6 else 1e-4)
        np.testing.assert_allclose((found.vector[n, :size] - g) / scale, 0.0, rtol=0, atol=2e-3)
        assert np.abs(g / scale).max() > 0.5


def test_the_mass_row_sees_the_field_that_a_pair_does_not() -> None:
    """A pair's own hits cannot tell dB/B everywhere from its momenta; with the mass they can, -1/2 for each muon."""
    pairs = simulated(50, 9, np.zeros_like(MISALIGNED), field=EVEN_FIELD)
    mass = MassConstraint(3.0969, 0.001, (2.0, 4.0))
    curvature = []
    for constraint in (None, mass):
        found = one_by_one(pairs, EVEN_PLANES, np.zeros_like(MISALIGNED), constraint, EXACT)
        total = 0.0
        for n in range(len(pairs)):
            b = np.zeros(found.units.shape[1] * 4)
            b[2 : 4 * np.sum(found.units[n] >= 0) : 4] = 1.0
            used = b > 0
            C = found.matrix[n][np.ix_(used, used)]
            C = np.triu(C) + np.triu(C, 1).T
            total += C.sum()
        curvature.append(total / len(pairs))
    refits = refit_pairs(pairs.tracks, pairs.pairs, EVEN_PLANES, None, EXACT)
    # m falls by as much as B grows, measured with the resolution of the pair
    expected = np.mean(refits.mass**2 / (refits.mass_sigma**2 + mass.sigma**2))
    assert curvature[0] < 0.02 * curvature[1]
    assert curvature[1] == pytest.approx(expected, rel=0.05)


def score(found: Contributions, n_units: int, n_slots: int = 4) -> tuple[Floats, Floats]:
    """g and the diagonal of C, (n_units, P), and of the sum over all units in a slot (1^T g, 1^T C 1)."""
    g, c = np.zeros((n_units, n_slots)), np.zeros((n_units, n_slots))
    totals = np.zeros((2, n_slots))
    for n in np.flatnonzero(found.good):
        size = int(np.sum(found.units[n] >= 0))
        units = found.units[n, :size]
        C = found.matrix[n, : size * n_slots, : size * n_slots].reshape(size, n_slots, size, n_slots)
        vector = found.vector[n, : size * n_slots].reshape(size, n_slots)
        np.add.at(g, units, vector)
        totals[0] += vector.sum(axis=0)
        for a in range(size):
            for b in range(a, size):
                diagonal = np.diagonal(C[a, :, b])
                totals[1] += (1.0 if a == b else 2.0) * diagonal
                if units[a] == units[b]:
                    c[units[a]] += (1.0 if a == b else 2.0) * diagonal
    return np.stack([g, c]), totals


def check_score(detector: Detector, planes: Planes, truth: Floats, n: int) -> None:
    """Gradient over the root of the curvature at the true parameters is N(0, 1), unit by unit and together."""
    pairs = simulated(n, 31, truth, detector=detector)
    refits = refit_pairs(pairs.tracks, pairs.pairs, planes, truth)
    # Target and width from other pairs, in a detector that is where it should be
    other = simulated(max(n, 5000), 77, np.zeros_like(truth), detector=detector)
    mass = mass_constraint([other], planes, WINDOW)
    assert np.mean(refits.status == CONVERGED) > 0.999
    parts: list[tuple[Floats, Floats]] = []
    for part in contributions(pairs.tracks, pairs.pairs, planes, truth, mass):
        parts.append(score(part, detector.n_units))
    g, c = np.sum([x[0] for x in parts], axis=0)
    total, curvature = np.sum([x[1] for x in parts], axis=0)
    together = total / np.sqrt(curvature)
    print("global z of u, v, field, material:", together)
    assert np.all(np.abs(together) < 4.0)
    for slot, name in enumerate(("u", "v", "field", "material")):
        seen = c[:, slot] > 0.0
        pull = g[seen, slot] / np.sqrt(c[seen, slot])
        print(name, "pull rms", np.sqrt(np.mean(pull**2)), "of", seen.sum())
        bound = max(0.1, 3.5 / math.sqrt(2.0 * seen.sum()))
        assert np.sqrt(np.mean(pull**2)) == pytest.approx(1.0, abs=bound), name


def test_score_at_the_truth() -> None:
    check_score(BARREL, BARREL_PLANES, MISALIGNED, 6000)


@pytest.mark.long
@pytest.mark.slow
def test_score_at_the_truth_in_the_whole_tracker() -> None:
    check_score(CMS, CMS_PLANES, misaligned(CMS, 4), 40_000)


def test_far_masses_count_less_if_asked_for() -> None:
    """Beyond two standard deviations the weight falls as 1/distance (Huber): a width, found by hand, does the same.

    The whole error grows with it, not that of the row alone: it is the score that ends.
    """
    pairs = simulated(400, 9)
    refits = refit_pairs(pairs.tracks, pairs.pairs, BARREL_PLANES, MISALIGNED, EXACT)
    usual = MassConstraint(3.09, 0.01, (2.0, 4.0))
    relative = np.hypot(refits.mass_sigma / refits.mass, usual.sigma / usual.target)
    far = np.abs(np.log(refits.mass / usual.target)) / relative
    robust = one_by_one(pairs, BARREL_PLANES, MISALIGNED, replace(usual, robust=2.0), EXACT)
    plain = one_by_one(pairs, BARREL_PLANES, MISALIGNED, usual, EXACT)
    near = far < 2.0
    assert 10 < np.sum(~near) < 200
    for n in np.flatnonzero(near):
        size = 4 * int(np.sum(plain.units[n] >= 0))
        np.testing.assert_array_equal(robust.vector[n, :size], plain.vector[n, :size])
    for n in np.flatnonzero(~near)[:10]:
        own = (refits.mass_sigma[n] / refits.mass[n]) ** 2
        wide = replace(usual, sigma=usual.target * math.sqrt(relative[n] ** 2 * far[n] / 2.0 - own))
        alone = one_by_one(pairs.select(np.array([n])), BARREL_PLANES, MISALIGNED, wide, EXACT)
        size = 4 * int(np.sum(plain.units[n] >= 0))
        np.testing.assert_allclose(robust.vector[n, :size], alone.vector[0, :size], rtol=1e-6, atol=1e-6)
        assert np.sum(robust.vector[n, :size] ** 2) != np.sum(plain.vector[n, :size] ** 2)


def test_the_target_grows_with_the_resolution() -> None:
    """ln target + growth s + growth s^2, s = sigma_m/m: each pair as with this target of its own."""
    pairs = simulated(30, 9)
    refits = refit_pairs(pairs.tracks, pairs.pairs, BARREL_PLANES, MISALIGNED, EXACT)
    usual = MassConstraint(3.09, 0.01, (2.0, 4.0))
    found = one_by_one(pairs, BARREL_PLANES, MISALIGNED, replace(usual, growth=(-0.3, 20.0)), EXACT)
    assert np.sum(found.good) > 20
    np.testing.assert_allclose(found.mass, refits.mass, rtol=1e-9)
    np.testing.assert_allclose(found.mass_sigma, refits.mass_sigma, rtol=1e-9)
    for n in np.flatnonzero(found.good):
        s = refits.mass_sigma[n] / refits.mass[n]
        own = usual.target * math.exp(-0.3 * s + 20.0 * s**2)
        mass = replace(usual, target=own, sigma=usual.sigma * own / usual.target)
        alone = one_by_one(pairs.select(np.array([n])), BARREL_PLANES, MISALIGNED, mass, EXACT)
        size = 4 * int(np.sum(found.units[n] >= 0))
        np.testing.assert_allclose(found.vector[n, :size], alone.vector[0, :size], rtol=1e-6, atol=1e-6)


def test_pairs_outside_of_the_window_are_left_out() -> None:
    pairs = simulated(1000, 9, background=0.3)
    refits = refit_pairs(pairs.tracks, pairs.pairs, BARREL_PLANES, MISALIGNED, ALL)
    mass = MassConstraint(3.09, 0.03, (3.0, 3.2))
    found = one_by_one(pairs, BARREL_PLANES, MISALIGNED, mass, ALL)
    np.testing.assert_array_equal(found.good, (refits.mass >= 3.0) & (refits.mass < 3.2))
    background = np.asarray(pairs.is_background)
    assert found.good[background].mean() < 0.4
    assert found.good[~background].mean() > 0.8
    # Without the mass all count
    free = one_by_one(pairs, BARREL_PLANES, MISALIGNED, None, ALL)
    assert np.all(free.good)
    np.testing.assert_allclose(free.chi2, refits.chi2)


def test_cuts_on_chi2_and_on_the_gradient() -> None:
    """Noise hits that stay: pairs with a bad chi2, and those with an extreme gradient, are left out."""
    pairs = simulated(1000, 9, effects=DetectorEffects(noise=0.01, noise_range=0.1))
    refits = refit_pairs(pairs.tracks, pairs.pairs, BARREL_PLANES, MISALIGNED, ALL)
    by_chi2 = one_by_one(pairs, BARREL_PLANES, MISALIGNED, None, ALL._replace(chi2_per_ndf=3.0))
    np.testing.assert_array_equal(by_chi2.good, refits.chi2 <= 3.0 * refits.ndf)
    assert 0.02 < np.mean(~by_chi2.good) < 0.5
    everything = one_by_one(pairs, BARREL_PLANES, MISALIGNED, None, ALL)
    by_gradient = one_by_one(pairs, BARREL_PLANES, MISALIGNED, None, ALL._replace(gradient=8.0))
    largest = np.zeros(len(pairs))
    for n in range(len(pairs)):
        size = 4 * int(np.sum(everything.units[n] >= 0))
        diagonal = np.diagonal(everything.matrix[n])[:size]
        seen = diagonal > 0.0
        largest[n] = np.max(np.abs(everything.vector[n, :size][seen]) / np.sqrt(diagonal[seen]))
    np.testing.assert_array_equal(by_gradient.good, largest < 8.0)
    assert 0.02 < np.mean(~by_gradient.good) < 0.5


def test_noise_hits_are_taken_out() -> None:
    pairs = simulated(2000, 9, effects=DetectorEffects(noise=0.01))
    kept = refit_pairs(pairs.tracks, pairs.pairs, BARREL_PLANES, MISALIGNED)
    whole = refit_pairs(pairs.tracks, pairs.pairs, BARREL_PLANES, MISALIGNED, ALL)
    assert np.mean(kept.status == CONVERGED) > 0.995
    assert 0.1 < np.mean(kept.rejected > 0) < 0.6
    good = (kept.status == CONVERGED) & (whole.status == CONVERGED)
    widths = []
    for refits in (kept, whole):
        pull = (refits.mass - gen_masses(pairs)) / refits.mass_sigma
        widths.append(float(np.std(pull[good])))
    assert widths[0] < 1.15
    assert widths[1] > 2.0
    left = kept.chi2[good] / kept.ndf[good]
    assert np.mean(left < RefitCuts().chi2_per_ndf) > 0.99
    assert np.mean(left[left < RefitCuts().chi2_per_ndf]) == pytest.approx(1.0, abs=0.02)


def test_threads_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, mass = simulated(600, 9), MassConstraint(3.09, 0.03, WINDOW)
    refits, sums = [], []
    for threads in ("1", "3"):
        monkeypatch.setenv("MUSCLECAL_THREADS", threads)
        refits.append(refit_pairs(pairs.tracks, pairs.pairs, BARREL_PLANES, MISALIGNED))
        sums.append(one_by_one(pairs, BARREL_PLANES, MISALIGNED, mass, RefitCuts()))
    part = np.arange(100, 500)
    few = refit_pairs(pairs.tracks, pairs.pairs[part], BARREL_PLANES, MISALIGNED)
    for name in ("local", "covariance", "mass", "mass_sigma", "chi2", "ndf", "status", "rejected"):
        np.testing.assert_array_equal(getattr(refits[0], name), getattr(refits[1], name))
        np.testing.assert_array_equal(getattr(refits[0], name)[part], getattr(few, name))
    some = one_by_one(pairs.select(part), BARREL_PLANES, MISALIGNED, mass, RefitCuts())
    one, other = sums
    np.testing.assert_array_equal(one.good, other.good)
    np.testing.assert_array_equal(one.good[part], some.good)
    np.testing.assert_array_equal(one.units[one.good], other.units[one.good])
    for n in np.flatnonzero(one.good):
        size = 4 * int(np.sum(one.units[n] >= 0))
        place = np.arange(size) // 4
        above = place[:, None] <= place[None, :]
        np.testing.assert_array_equal(one.vector[n, :size], other.vector[n, :size])
        np.testing.assert_array_equal(
            one.matrix[n, :size, :size][above], other.matrix[n, :size, :size][above]
        )
        if 100 <= n < 500:
            np.testing.assert_array_equal(one.vector[n, :size], some.vector[n - 100, :size])


def test_the_order_of_the_tracks_does_not_matter() -> None:
    """Tracks of the pairs anywhere; another row of the same tracks."""
    pairs = simulated(50, 9)
    shuffled = np.random.default_rng(1).permutation(len(pairs.tracks))
    place = np.argsort(shuffled)[pairs.pairs].astype(np.int32)
    refits = refit_pairs(pairs.tracks, pairs.pairs, BARREL_PLANES, MISALIGNED)
    again = refit_pairs(pairs.tracks.select(shuffled), place, BARREL_PLANES, MISALIGNED)
    np.testing.assert_array_equal(refits.local, again.local)


def test_a_muon_without_hits_has_no_pair() -> None:
    pairs = simulated(3, 9)
    u, v = pairs.tracks.u.copy(), pairs.tracks.v.copy()
    u[pairs.pairs[1, 1], 2:], v[pairs.pairs[1, 1], 2:] = np.nan, np.nan
    tracks = replace(pairs.tracks, u=u, v=v)
    refits = refit_pairs(tracks, pairs.pairs, BARREL_PLANES, MISALIGNED)
    np.testing.assert_array_equal(refits.status, [CONVERGED, TOO_FEW_HITS, CONVERGED])
    for name in ("local", "covariance", "mass", "mass_sigma", "chi2"):
        np.testing.assert_array_equal(np.isnan(getattr(refits, name)).reshape(3, -1).all(axis=1), [0, 1, 0])
    found = one_by_one(replace(pairs, tracks=tracks), BARREL_PLANES, MISALIGNED, None, RefitCuts())
    np.testing.assert_array_equal(found.good, [True, False, True])
    assert np.all(found.units[1] == -1)


def test_phi_of_pairs_is_from_minus_pi_to_pi() -> None:
    n = 200
    side = np.where(np.arange(2 * n) // 2 % 2, np.pi, -np.pi) * (1.0 - 1e-5)
    charge = np.tile([1.0, -1.0], n)
    states = start_states(
        charge, np.full(2 * n, 5.0), np.tile([0.1, 0.4], n), side + 0.02 * charge * (side < 0)
    )
    tracks = simulate_tracks(track_maker(BARREL, FIELD), states, 3)
    refits = refit_pairs(tracks, np.arange(2 * n, dtype=np.int32).reshape(n, 2), BARREL_PLANES)
    phi = refits.local[refits.status == CONVERGED][:, [2, 5]]
    assert len(phi) > 190
    assert np.all(np.abs(phi) <= np.pi)
    assert np.min(phi) < -3.1 < 3.1 < np.max(phi)


def test_swapped_muons_are_refused_by_the_fit() -> None:
    """The first of a pair is the mu+: its fit has q/p > 0."""
    pairs = simulated(20, 9)
    local = refit_pairs(pairs.tracks, pairs.pairs, BARREL_PLANES, MISALIGNED).local
    assert np.all(local[:, 0] > 0.0)
    assert np.all(local[:, 3] < 0.0)
    assert np.all(refit_tracks(pairs.tracks, BARREL_PLANES, MISALIGNED).local[pairs.pairs[:, 1], 0] < 0.0)


def test_bad_input() -> None:
    pairs = simulated(3, 9)
    tracks = pairs.tracks
    with pytest.raises(InputError, match=r"pairs: shape \(n, 2\)"):
        refit_pairs(tracks, np.zeros((3, 3), np.int32), BARREL_PLANES)
    for row in (-1, 6):
        with pytest.raises(InputError, match="pairs: rows 0 to 5 wanted"):
            refit_pairs(tracks, np.array([[0, row]], np.int32), BARREL_PLANES)
    with pytest.raises(InputError, match="parameters: shape"):
        refit_pairs(tracks, pairs.pairs, BARREL_PLANES, np.zeros((3, 4)))
    with pytest.raises(InputError, match="u: the shape of module"):
        next(contributions(replace(tracks, u=tracks.u[:, 1:]), pairs.pairs, BARREL_PLANES))
    for change in (
        {"sigma": 0.0},
        {"target": -1.0},
        {"window": (3.0, 3.0)},
        {"robust": 0.0},
        {"sigma": math.nan},
        {"growth": (0.0, math.inf)},
    ):
        mass = replace(MassConstraint(3.09, 0.03, WINDOW), **change)
        with pytest.raises(InputError, match="mass: target, sigma and robust"):
            next(contributions(tracks, pairs.pairs, BARREL_PLANES, mass=mass))
    assert list(contributions(tracks, pairs.pairs[:0], BARREL_PLANES)) == []
    assert len(refit_pairs(tracks, pairs.pairs[:0], BARREL_PLANES).mass) == 0


SCRIPT = """
import json
from musclecal.geometry.detector import barrel_tracker, planes_of
from musclecal.geometry.field import solenoid_map
from musclecal.geometry.misalignment import misaligned
from musclecal.geometry.pair_refit import contributions, refit_pairs
from musclecal.geometry.simulate import DetectorEffects, simulate_tracks, start_states, track_maker
from musclecal.records import MassConstraint

detector, field = barrel_tracker(), solenoid_map()
planes, values = planes_of(detector, field), misaligned(detector, 4, n_slots=6)
states = start_states([1, -1, 1, -1], [5.0, 6.0, 20.0, 8.0], [0.1, -0.3, 0.5, 0.6], [0.0, 0.4, 2.0, 2.2])
tracks = simulate_tracks(track_maker(detector, field, values, DetectorEffects(noise=0.05)), states, 3)
pairs = [[0, 1], [2, 3]]
refits = refit_pairs(tracks, pairs, planes, values)
mass = MassConstraint(3.09, 0.03, (0.1, 100.0), 2.0)
(found,) = contributions(tracks, pairs, planes, values, mass)
size = [6 * int((units >= 0).sum()) for units in found.units]
print(json.dumps([x.tolist() for x in (
    refits.status, refits.rejected, found.units, found.good, refits.local, refits.covariance, refits.mass,
    refits.mass_sigma, found.chi2, *(g[:n] for g, n in zip(found.vector, size)),
    *(c[:n, :n].diagonal() for c, n in zip(found.matrix, size)), *(c[:6, :n] for c, n in zip(found.matrix, size)))]))
"""


@pytest.mark.long
@pytest.mark.slow
def test_kernels_give_the_same_without_compilation() -> None:
    def run(**environment: str) -> list[Any]:
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=True,
            env={**os.environ, **environment}, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        return json.loads(result.stdout)  # type: ignore[no-any-return]

    compiled, interpreted = run(NUMBA_DISABLE_JIT="0"), run(NUMBA_DISABLE_JIT="1")
    assert compiled[:4] == interpreted[:4]
    assert compiled[0] == [CONVERGED] * 2
    assert compiled[3] == [True, True]
    for with_jit, without in zip(compiled[4:], interpreted[4:], strict=True):
        with_jit = np.array(with_jit)
        np.testing.assert_allclose(without, with_jit, rtol=1e-6, atol=1e-8 * (1.0 + np.abs(with_jit).max()))
