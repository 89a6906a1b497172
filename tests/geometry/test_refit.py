"""Fits of tracks from their hits: the truth without noise, pulls with it, and against dense algebra by hand."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.geometry.detector import barrel_tracker, cms_tracker, planes_of
from musclecal.geometry.field import SOLENOID, solenoid_map
from musclecal.geometry.misalignment import misaligned
from musclecal.geometry.refit import RefitCuts, corrected_local, module_jacobians, refit_tracks
from musclecal.geometry.refit_kernels import (
    CONVERGED,
    DID_NOT_CONVERGE,
    LOST_TRACK,
    NOT_POSITIVE,
    TOO_FEW_HITS,
    Hits,
    perigee_state,
    seed,
)
from musclecal.geometry.simulate import (
    PERFECT,
    DetectorEffects,
    flat_muons,
    simulate_tracks,
    start_states,
    track_maker,
)
from musclecal.records import Detector, FieldMap, Floats, Refits, Tracks

FIELD = solenoid_map()
EVEN_FIELD = FieldMap(SOLENOID, np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.full((2, 2), 3.8))
BARREL, CMS = barrel_tracker(), cms_tracker()
CMS_PLANES, BARREL_PLANES = planes_of(CMS, FIELD), planes_of(BARREL, FIELD)
EVEN_PLANES = planes_of(BARREL, EVEN_FIELD)
EXACT = RefitCuts(tolerance=1e-12, hit_chi2=np.inf, most_rejected=0)
ALL_HITS = RefitCuts(hit_chi2=np.inf, most_rejected=0)
BEAM_LINE = (0.0, 0.0, 4.0)
"""Vertices on the beam line: there the truth is also the point that is closest to it."""
MISALIGNED = misaligned(CMS, 4)


def of_truth(tracks: Tracks) -> Floats:
    """(n, 5) local parameters of tracks from the beam line."""
    truth = np.asarray(tracks.truth)
    return np.stack([truth[:, 0], truth[:, 1], truth[:, 2], 0.0 * truth[:, 0], truth[:, 5]], axis=1)


def muons(detector: Detector, n: int, seed: int, **kwargs: Any) -> Floats:
    eta = (-0.9, 0.9) if detector is BARREL else (-2.4, 2.4)
    return flat_muons(n, seed, **({"eta": eta, "beam_spot": BEAM_LINE} | kwargs))


def simulated(n: int, seed: int, first: int = 1, **effects: Any) -> Tracks:
    """Muons in the misaligned tracker."""
    maker = track_maker(CMS, FIELD, MISALIGNED, DetectorEffects(**effects))
    return simulate_tracks(maker, muons(CMS, n, seed), first)


def wrapped(phi: Floats) -> Floats:
    """Near +-pi a difference may be a turn."""
    return np.asarray((phi + np.pi) % (2.0 * np.pi) - np.pi)


def off_truth(refits: Refits, tracks: Tracks) -> Floats:
    """(n, 5)"""
    off = refits.local - of_truth(tracks)
    off[:, 2] = wrapped(off[:, 2])
    return off


def pulls(refits: Refits, tracks: Tracks) -> Floats:
    """(n, 5), all tracks fitted."""
    np.testing.assert_array_equal(refits.status, CONVERGED)
    sigma: Floats = np.sqrt(np.einsum("nii->ni", refits.covariance))
    return off_truth(refits, tracks) / sigma


def test_phi_is_from_minus_pi_to_pi() -> None:
    """Also of tracks next to the edge, which noise moves across it."""
    n = 400
    phi = np.where(np.arange(n) % 2, np.pi, -np.pi) * (1.0 - 1e-5)
    charge = np.where(np.arange(n) % 3, 1.0, -1.0)
    states = start_states(charge, np.full(n, 4.0), np.linspace(-0.8, 0.8, n), phi)
    refits = refit_tracks(simulate_tracks(track_maker(BARREL, FIELD), states, 5), BARREL_PLANES)
    found = refits.local[refits.status == CONVERGED, 2]
    assert len(found) > 390
    assert np.all((found >= -np.pi) & (found <= np.pi))
    assert 20 < np.sum(np.sign(found) != np.sign(phi[refits.status == CONVERGED])) < 380
    np.testing.assert_allclose(np.abs(found), np.pi, atol=0.02)


@pytest.mark.parametrize("n_slots", [4, 6])
@pytest.mark.parametrize("detector", [BARREL, CMS], ids=["barrel", "cms"])
def test_without_noise_the_truth_is_found(detector: Detector, n_slots: int) -> None:
    """To 1e-10, from hits alone, in a detector that is not where it should be, with holes."""
    truth = misaligned(detector, 4, n_slots=n_slots)
    maker = track_maker(detector, FIELD, truth, DetectorEffects(smear=False, scatter=False, efficiency=0.95))
    tracks = simulate_tracks(maker, muons(detector, 300, 7), 1)
    tracks = tracks.select(tracks.n_hits >= 7)
    assert len(tracks) > 250
    refits = refit_tracks(tracks, maker.planes, truth, EXACT)
    np.testing.assert_array_equal(refits.status, CONVERGED)
    expected = of_truth(tracks)
    np.testing.assert_allclose(refits.local[:, 0] / expected[:, 0], 1.0, rtol=0, atol=1e-10)
    np.testing.assert_allclose(off_truth(refits, tracks), 0.0, rtol=0, atol=1e-10)
    assert refits.chi2.max() < 1e-10
    coordinates = np.isfinite(tracks.u).sum(axis=1) + np.isfinite(tracks.v).sum(axis=1)
    np.testing.assert_array_equal(refits.ndf, coordinates - 5)


def test_perigee_and_its_derivatives() -> None:
    local = np.array([-0.2, 0.4, 2.1, 0.3, -1.0])
    state, derivative, moved, unused = np.empty(6), np.empty((6, 5)), np.empty(6), np.empty((6, 5))
    perigee_state(local, state, derivative)
    assert state[3] ** 2 + state[4] ** 2 == pytest.approx(0.09)
    # Closest to the beam line: the direction is at right angles to the place, which is on the left
    assert state[3] * np.cos(2.1) + state[4] * np.sin(2.1) == pytest.approx(0.0, abs=1e-15)
    assert np.cos(2.1) * state[4] - np.sin(2.1) * state[3] == pytest.approx(0.3)
    for k in range(5):
        ends = []
        for sign in (1.0, -1.0):
            perigee_state(local + sign * 1e-6 * np.eye(5)[k], moved, unused)
            ends.append(moved.copy())
        np.testing.assert_allclose(derivative[:, k], (ends[0] - ends[1]) / 2e-6, rtol=0, atol=1e-9)


def test_seeds_come_from_hits_alone() -> None:
    """Right in charge up to 100 GeV, but for a few at |eta| > 2, and in momentum to some per cent."""
    states = muons(CMS, 1000, 3, pt=(2.0, 100.0))
    tracks = simulate_tracks(track_maker(CMS, FIELD), states, 2)
    found = np.full((len(tracks), 5), np.nan)
    for n in range(len(tracks)):
        hits = Hits(tracks.module[n], tracks.u[n], tracks.v[n], tracks.sigma_u[n], tracks.sigma_v[n])
        size = int(tracks.n_sensors[n])
        assert seed(hits, size, CMS_PLANES, found[n])
    truth = of_truth(tracks)
    assert np.mean(np.sign(found[:, 0]) == np.sign(truth[:, 0])) > 0.995
    off = found[:, 0] / truth[:, 0] - 1.0
    assert np.abs(np.median(off)) < 0.02
    assert np.quantile(np.abs(off), 0.9) < 0.1
    turned = wrapped(found[:, 2] - truth[:, 2])
    assert np.quantile(np.abs(turned), 0.95) < 0.01
    assert np.quantile(np.abs(found[:, 1] - truth[:, 1]), 0.95) < 0.02


@pytest.mark.parametrize("pt", [(1.0, 3.0), (60.0, 1000.0)])
def test_all_tracks_are_fitted(pt: tuple[float, float]) -> None:
    maker = track_maker(CMS, FIELD, MISALIGNED, DetectorEffects(efficiency=0.97))
    tracks = simulate_tracks(maker, muons(CMS, 3000, 9, pt=pt), 2)
    refits = refit_tracks(tracks, CMS_PLANES, MISALIGNED)
    assert np.mean(refits.status != CONVERGED) < 1e-3


def from_perigee(local: Floats) -> Floats:
    state = np.empty(6)
    perigee_state(local, state, np.empty((6, 5)))
    return state


def test_fits_are_those_of_dense_least_squares(rows_by_hand: Callable[..., Any]) -> None:
    """Estimate, covariance and chi2 with the complete covariance of the hits; J = (A^T A)^-1 A^T G."""
    values = misaligned(BARREL, 5, n_slots=6)
    maker = track_maker(BARREL, EVEN_FIELD, values, DetectorEffects(efficiency=0.9))
    tracks = simulate_tracks(maker, muons(BARREL, 12, 5), 3)
    refits = refit_tracks(tracks, EVEN_PLANES, values, EXACT)
    units, jacobian = module_jacobians(tracks, refits, EVEN_PLANES, values)
    for n in range(len(tracks)):
        rows = rows_by_hand(tracks, n, EVEN_PLANES, values, from_perigee, refits.local[n])
        r, A, G = rows.whitened()
        covariance = np.linalg.inv(A.T @ A)
        sigma = np.sqrt(np.diag(covariance))
        np.testing.assert_allclose((covariance @ A.T @ r) / sigma, 0.0, rtol=0, atol=1e-5)
        off = (refits.covariance[n] - covariance) / np.outer(sigma, sigma)
        np.testing.assert_allclose(off, 0.0, rtol=0, atol=1e-5)
        assert refits.chi2[n] == pytest.approx(r @ r, rel=1e-6)
        np.testing.assert_array_equal(units[n][units[n] >= 0], rows.units)
        expected = covariance @ A.T @ G
        scale = np.abs(expected).max(axis=1, keepdims=True)
        found = jacobian[n, :, : expected.shape[1]]
        np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(jacobian[n, :, expected.shape[1] :], 0.0)


def pull_bounds(refits: Refits, tracks: Tracks, sigmas: float) -> Floats:
    """Checks of a sample of good fits; its pulls."""
    pull, n = pulls(refits, tracks), len(tracks)
    ndf = refits.ndf.sum()
    assert refits.chi2.sum() / ndf == pytest.approx(1.0, abs=max(0.01, sigmas * np.sqrt(2.0 / ndf)))
    np.testing.assert_allclose(pull.std(axis=0), 1.0, atol=max(0.02, sigmas / np.sqrt(2.0 * n)))
    np.testing.assert_allclose(pull.mean(axis=0), 0.0, atol=max(0.01, sigmas / np.sqrt(n)))
    return pull


def test_pulls() -> None:
    """20,000 tracks at the true parameters, started from hits."""
    tracks = simulated(20_000, 7)
    refits = refit_tracks(tracks, CMS_PLANES, MISALIGNED, ALL_HITS)
    pull = pull_bounds(refits, tracks, 3.5)
    # Correlations too: pulls in the axes of the covariance
    lower = np.linalg.cholesky(refits.covariance)
    unit = np.linalg.solve(lower, off_truth(refits, tracks)[:, :, None])[:, :, 0]
    np.testing.assert_allclose(unit.T @ unit / len(unit), np.eye(5), rtol=0, atol=5.0 / np.sqrt(20_000))
    assert np.abs(pull).max() < 6.0


@pytest.mark.parametrize("loss", ["gauss", "landau"])
def test_pulls_where_the_loss_of_energy_fluctuates(loss: str) -> None:
    """The fit knows the mean loss alone: what is around it adds little to the scattering."""
    tracks = simulated(20_000, 7, loss=loss)
    pull = pulls(refit_tracks(tracks, CMS_PLANES, MISALIGNED, ALL_HITS), tracks)
    outwards = pull[:, 0] * tracks.charge
    print(loss, "q/p", pull[:, 0].std(), "outwards", outwards.mean())
    np.testing.assert_allclose(pull.std(axis=0), 1.0, atol=0.03)
    np.testing.assert_allclose(pull.mean(axis=0), 0.0, atol=3.5 / np.sqrt(20_000))
    assert abs(outwards.mean()) < 0.04


@pytest.mark.long
@pytest.mark.slow
def test_pulls_of_many_tracks() -> None:
    """1e5 tracks: chi2/ndf 1 +- 0.01, widths 1 +- 0.02, means below 0.01; that of q/p below 0.003 at 1e6."""
    parts, chi2, ndf = [], 0.0, 0
    for part in range(10):
        tracks = simulated(100_000, 100 + part, 100 + part)
        refits = refit_tracks(tracks, CMS_PLANES, MISALIGNED, ALL_HITS)
        parts.append(pulls(refits, tracks))
        chi2, ndf = chi2 + float(refits.chi2.sum()), ndf + int(refits.ndf.sum())
        if part == 0:
            assert chi2 / ndf == pytest.approx(1.0, abs=0.01)
            np.testing.assert_allclose(parts[0].std(axis=0), 1.0, atol=0.02)
            np.testing.assert_allclose(parts[0].mean(axis=0), 0.0, atol=0.01)
    together = np.concatenate(parts)
    print("means", together.mean(axis=0), "widths", together.std(axis=0), "chi2/ndf", chi2 / ndf)
    assert abs(together[:, 0].mean()) < 0.003
    np.testing.assert_allclose(together.std(axis=0), 1.0, atol=0.005)


@pytest.mark.long
@pytest.mark.slow
def test_pulls_by_charge() -> None:
    """sigma is that at the fitted momentum: where k comes out large, so does sigma, and the mean of q pull is -sigma/k.

    With sigma at the true momentum nothing is left: k itself has no bias.
    """
    states = muons(CMS, 100_000, 100)
    tracks = simulate_tracks(track_maker(CMS, FIELD, MISALIGNED), states, 100)
    exact = simulate_tracks(track_maker(CMS, FIELD, MISALIGNED, PERFECT), states, 100)
    refits, at_truth = (refit_tracks(x, CMS_PLANES, MISALIGNED, ALL_HITS) for x in (tracks, exact))
    off = off_truth(refits, tracks)[:, 0] * tracks.charge
    fitted, true = np.sqrt(refits.covariance[:, 0, 0]), np.sqrt(at_truth.covariance[:, 0, 0])
    error = 1.0 / np.sqrt(len(off))
    print("q pull", np.mean(off / fitted), "with the true sigma", np.mean(off / true), "+-", error)
    assert np.mean(off / fitted) == pytest.approx(
        -np.mean(true / np.abs(of_truth(tracks)[:, 0])), abs=4.0 * error + 0.005
    )
    assert np.mean(off / true) == pytest.approx(0.0, abs=4.0 * error)


@pytest.mark.parametrize("slot", range(6), ids=["u", "v", "field", "material", "w", "gamma"])
def test_derivatives_in_the_modules(slot: int) -> None:
    """J against fits at parameters on both sides, for parameters that are all moved at once and one by one."""
    nominal = np.zeros((BARREL.n_units, 6))
    tracks = simulate_tracks(track_maker(BARREL, EVEN_FIELD, nominal, PERFECT), muons(BARREL, 40, 6), 1)
    refits = refit_tracks(tracks, EVEN_PLANES, nominal, EXACT)
    units, jacobian = module_jacobians(tracks, refits, EVEN_PLANES, nominal)
    size = (1e-3, 1e-3, 1e-3, 1e-2, 3e-3, 1e-4)[slot]
    moved = np.zeros_like(nominal)
    moved[:, slot] = size * np.random.default_rng(1).normal(size=BARREL.n_units)
    alone = np.zeros_like(nominal)
    # The second side of a stereo unit, which the first track has met
    alone[units[0][np.isin(units[0], BARREL.unit[BARREL.side == 1])][0], slot] = size
    for change in (moved, alone):
        ends = [refit_tracks(tracks, EVEN_PLANES, sign * change, EXACT).local for sign in (1.0, -1.0)]
        expected = 0.5 * (ends[0] - ends[1])
        found = corrected_local(refits, units, jacobian, change) - refits.local
        scale = np.abs(expected).max(axis=0) + 1e-15
        assert scale[0] > 1e-12
        np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-3)


def test_corrections_of_tracks_are_fits_again_to_second_order() -> None:
    """With noise, at twice the change the difference to a fit again is four times as large."""
    values = misaligned(BARREL, 5)
    tracks = simulate_tracks(track_maker(BARREL, FIELD, values), muons(BARREL, 200, 6), 1)
    refits = refit_tracks(tracks, BARREL_PLANES, None, EXACT)
    units, jacobian = module_jacobians(tracks, refits, BARREL_PLANES)
    left, first = [], []
    for part in (0.5, 1.0):
        found = corrected_local(refits, units, jacobian, part * values)
        again = refit_tracks(tracks, BARREL_PLANES, part * values, EXACT).local
        left.append(np.sqrt(np.mean((found[:, 0] / again[:, 0] - 1.0) ** 2)))
        first.append(np.sqrt(np.mean((refits.local[:, 0] / again[:, 0] - 1.0) ** 2)))
    assert first[1] > 1e-3
    assert left[1] < 0.03 * first[1]
    # Hits that are off add a term of first order, which is small as long as the fit is good
    assert left[1] / left[0] > 1.8


def test_derivatives_are_those_of_the_hits_that_are_kept() -> None:
    """As of tracks that never had the others."""
    tracks = simulated(300, 13, noise=0.02)
    refits = refit_tracks(tracks, CMS_PLANES, MISALIGNED)
    u, v = (np.where(refits.taken_out & bit, np.nan, x) for bit, x in ((1, tracks.u), (2, tracks.v)))
    assert np.array_equal(np.sum(np.isnan(u) & ~np.isnan(tracks.u), axis=1)
                          + np.sum(np.isnan(v) & ~np.isnan(tracks.v), axis=1), refits.rejected)  # fmt: skip
    fitted = (refits.status == CONVERGED) & (refits.rejected > 0)
    assert np.sum(fitted) > 50
    cleaned = replace(tracks, u=u, v=v)
    again = refit_tracks(cleaned, CMS_PLANES, MISALIGNED)
    units, found = module_jacobians(tracks, refits, CMS_PLANES, MISALIGNED)
    units_again, clean = module_jacobians(cleaned, again, CMS_PLANES, MISALIGNED)
    np.testing.assert_array_equal(units, units_again)
    np.testing.assert_allclose(found[fitted], clean[fitted], rtol=1e-4, atol=1e-6)


def test_a_coordinate_is_taken_out_as_by_hand() -> None:
    """The one without which chi2 is lowest, of all fits without one."""
    tracks = simulated(12, 11)
    loose = EXACT._replace(hit_chi2=1e-6, most_rejected=1)
    found, whole = (refit_tracks(tracks, CMS_PLANES, MISALIGNED, cuts) for cuts in (loose, EXACT))
    np.testing.assert_array_equal(found.rejected, 1)
    np.testing.assert_array_equal(found.ndf, whole.ndf - 1)
    for n in range(len(tracks)):
        least = np.inf
        for name in ("u", "v"):
            for i in np.flatnonzero(np.isfinite(getattr(tracks, name)[n])):
                values = getattr(tracks, name)[n : n + 1].copy()
                values[0, i] = np.nan
                one = replace(tracks.select(np.array([n])), **{name: values})
                least = min(least, refit_tracks(one, CMS_PLANES, MISALIGNED, EXACT).chi2[0])
        # What is gained is reckoned to first order
        assert found.chi2[n] == pytest.approx(least, rel=1e-2)
        for part, rejected in ((0.97, 1), (1.03, 0)):
            cuts = loose._replace(hit_chi2=part * (whole.chi2[n] - least))
            refits = refit_tracks(tracks.select(np.array([n])), CMS_PLANES, MISALIGNED, cuts)
            assert refits.rejected[0] == rejected


def test_noise_hits_are_taken_out() -> None:
    """With 2 % of noise hits the core of the pulls is as without them, and good hits stay."""
    tracks = simulated(5000, 13, noise=0.02)
    kept = refit_tracks(tracks, CMS_PLANES, MISALIGNED)
    all_of_them = refit_tracks(tracks, CMS_PLANES, MISALIGNED, ALL_HITS)

    def width(refits: Refits) -> tuple[float, float]:
        good = refits.status == CONVERGED
        pull = (refits.local - of_truth(tracks))[good, 0] / np.sqrt(refits.covariance[good, 0, 0])
        return float(np.std(pull)), float(np.mean(np.abs(pull) > 4.0))

    assert width(kept)[0] < 1.1
    assert width(kept)[1] < 3e-3
    assert width(all_of_them)[0] > 3.0
    assert 0.1 < np.mean(kept.rejected > 0) < 0.5
    # A coordinate that is hundreds of sigma off keeps the steps from their end: it is taken out all the same
    assert np.mean(kept.status != CONVERGED) < 5e-4
    clean = refit_tracks(simulated(5000, 13), CMS_PLANES, MISALIGNED)
    assert clean.rejected.sum() <= 2


def test_threads_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tracks = simulated(700, 17, noise=0.02)
    results: list[Refits] = []
    for threads in ("1", "3"):
        monkeypatch.setenv("MUSCLECAL_THREADS", threads)
        results.append(refit_tracks(tracks, CMS_PLANES, MISALIGNED))
    part = np.arange(300, 600)
    few = refit_tracks(tracks.select(part), CMS_PLANES, MISALIGNED)
    jacobians = module_jacobians(tracks, results[0], CMS_PLANES, MISALIGNED)
    of_few = module_jacobians(tracks.select(part), few, CMS_PLANES, MISALIGNED)
    for name in ("local", "covariance", "chi2", "ndf", "status", "rejected", "taken_out"):
        np.testing.assert_array_equal(getattr(results[0], name), getattr(results[1], name))
        np.testing.assert_array_equal(getattr(results[0], name)[part], getattr(few, name))
    np.testing.assert_array_equal(jacobians[0][part], of_few[0])
    np.testing.assert_array_equal(jacobians[1][part], of_few[1])


def test_the_hits_are_left_as_they_are() -> None:
    tracks = simulated(300, 17, noise=0.05)
    before = tracks.u.copy(), tracks.v.copy()
    assert refit_tracks(tracks, CMS_PLANES, MISALIGNED).rejected.sum() > 0
    np.testing.assert_array_equal(tracks.u, before[0])
    np.testing.assert_array_equal(tracks.v, before[1])


def one_track(pt: float, field: FieldMap = FIELD, charge: float = 1.0) -> Tracks:
    maker = track_maker(BARREL, field, None, PERFECT)
    return simulate_tracks(maker, start_states([charge], [pt], 0.2, 0.3), 1)


def assert_no_fit(refits: Refits) -> None:
    assert np.all(np.isnan(refits.local))
    assert np.all(np.isnan(refits.covariance))
    assert np.all(np.isnan(refits.chi2))


def test_tracks_that_cannot_be_fitted() -> None:
    whole = one_track(5.0)
    for kept in (0, 1, 2):
        u, v = whole.u.copy(), whole.v.copy()
        u[0, kept:], v[0, kept:] = np.nan, np.nan
        refits = refit_tracks(replace(whole, u=u, v=v), BARREL_PLANES)
        assert refits.status[0] == TOO_FEW_HITS
        assert_no_fit(refits)
        units, jacobian = module_jacobians(whole, refits, BARREL_PLANES)
        assert np.all(units == -1)
        assert not jacobian.any()
    empty = refit_tracks(replace(whole, module=np.full_like(whole.module, -1)), BARREL_PLANES)
    assert empty.status[0] == TOO_FEW_HITS
    u = whole.u.copy()
    u[0, 4] = np.inf
    refits = refit_tracks(replace(whole, u=u), BARREL_PLANES)
    assert refits.status[0] != CONVERGED
    assert_no_fit(refits)
    broken = refit_tracks(replace(whole, sigma_u=np.full_like(whole.sigma_u, np.nan)), BARREL_PLANES)
    assert broken.status[0] == NOT_POSITIVE
    assert_no_fit(broken)
    slow = refit_tracks(one_track(5.0), BARREL_PLANES, cuts=EXACT._replace(tolerance=0.0))
    assert slow.status[0] == DID_NOT_CONVERGE
    # Lead all over: it stops
    thick = BARREL_PLANES._replace(mass_thickness=BARREL_PLANES.mass_thickness * 1e4)
    assert refit_tracks(whole, thick).status[0] == LOST_TRACK


def test_a_track_that_curls_has_a_fit_or_a_status() -> None:
    for pt in (0.2, 0.3, 0.5, 0.8):
        tracks = one_track(pt)
        refits = refit_tracks(tracks, BARREL_PLANES, cuts=EXACT)
        if refits.status[0] == CONVERGED:
            np.testing.assert_allclose(refits.local, of_truth(tracks), rtol=0, atol=1e-9)
        else:
            assert_no_fit(refits)
    assert refits.status[0] == CONVERGED


def test_a_straight_track() -> None:
    """Hits on a line in 3.8 T: no curvature; without a field there is none to be measured."""
    nothing = FieldMap(SOLENOID, FIELD.r, FIELD.z, np.zeros_like(FIELD.table))
    tracks = one_track(50.0, nothing)
    refits = refit_tracks(tracks, BARREL_PLANES)
    assert refits.status[0] == CONVERGED
    assert np.abs(refits.local[0, 0]) < 1e-6
    np.testing.assert_allclose(refits.local[0, 1:], of_truth(tracks)[0, 1:], rtol=0, atol=1e-6)
    without = refit_tracks(tracks, planes_of(BARREL, nothing))
    assert without.status[0] != CONVERGED
    assert_no_fit(without)


def test_no_tracks() -> None:
    none = one_track(5.0).select(np.zeros(1, dtype=bool))
    refits = refit_tracks(none, BARREL_PLANES)
    assert len(refits.local) == 0
    units, jacobian = module_jacobians(none, refits, BARREL_PLANES)
    assert corrected_local(refits, units, jacobian, np.zeros((BARREL.n_units, 4))).shape == (0, 5)


def test_bad_input() -> None:
    tracks = one_track(5.0)
    module = tracks.module.copy()
    module[0, 1] = len(BARREL)
    with pytest.raises(InputError, match=f"module: {len(BARREL)} is not in the detector"):
        refit_tracks(replace(tracks, module=module), BARREL_PLANES)
    with pytest.raises(InputError, match=r"parameters: shape \(416, 4\) or \(416, 6\)"):
        refit_tracks(tracks, BARREL_PLANES, np.zeros((416, 5)))
    bad = np.zeros((416, 4))
    bad[3, 1] = np.nan
    with pytest.raises(InputError, match="not finite"):
        refit_tracks(tracks, BARREL_PLANES, bad)
    with pytest.raises(InputError, match="sigma_v: the shape of module"):
        refit_tracks(replace(tracks, sigma_v=tracks.sigma_v[:, :3]), BARREL_PLANES)
    refits = refit_tracks(tracks, BARREL_PLANES)
    units, jacobian = module_jacobians(tracks, refits, BARREL_PLANES)
    with pytest.raises(InputError, match="change: a row of 4"):
        corrected_local(refits, units, jacobian, np.zeros((416, 6)))
    with pytest.raises(InputError, match=r"refits of \(1, .* for 2 tracks"):
        module_jacobians(tracks.select(np.array([0, 0])), refits, BARREL_PLANES)


SCRIPT = """
import json
from musclecal.geometry.detector import barrel_tracker, planes_of
from musclecal.geometry.field import solenoid_map
from musclecal.geometry.misalignment import misaligned
from musclecal.geometry.refit import module_jacobians, refit_tracks
from musclecal.geometry.simulate import DetectorEffects, simulate_tracks, start_states, track_maker

detector, field = barrel_tracker(), solenoid_map()
planes, values = planes_of(detector, field), misaligned(detector, 4, n_slots=6)
states = start_states([1, -1, 1, -1], [3.0, 5.0, 20.0, 40.0], [0.1, -0.3, 0.5, 0.7], [0.0, 1.0, 2.0, -3.0])
tracks = simulate_tracks(track_maker(detector, field, values, DetectorEffects(noise=0.1)), states, 3)
refits = refit_tracks(tracks, planes, values)
units, jacobian = module_jacobians(tracks, refits, planes, values)
print(json.dumps([x.tolist() for x in (
    refits.status, refits.rejected, refits.ndf, units, refits.local, refits.covariance, refits.chi2, jacobian)]))
"""


def test_kernels_give_the_same_without_compilation() -> None:
    def run(**environment: str) -> list[Any]:
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=True,
            env={**os.environ, **environment}, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        return json.loads(result.stdout)  # type: ignore[no-any-return]

    compiled, interpreted = run(NUMBA_DISABLE_JIT="0"), run(NUMBA_DISABLE_JIT="1")
    assert compiled[:4] == interpreted[:4]
    assert compiled[0] == [CONVERGED] * 4
    for with_jit, without in zip(compiled[4:], interpreted[4:], strict=True):
        np.testing.assert_allclose(without, with_jit, rtol=1e-6, atol=1e-10)
