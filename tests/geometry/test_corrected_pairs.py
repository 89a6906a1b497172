"""Muons from hits, corrected through the derivatives of their fits: against the truth, and against fits made anew."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from musclecal.geometry.corrected_pairs import corrected_events, corrected_pairs
from musclecal.geometry.detector import barrel_tracker, planes_of
from musclecal.geometry.field import solenoid_map
from musclecal.geometry.misalignment import misaligned
from musclecal.geometry.refit import RefitCuts, refit_tracks
from musclecal.geometry.simulate import DetectorEffects, simulate_pairs, track_maker
from musclecal.records import DimuonEvents, Pairs
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings

EXACT = RefitCuts(tolerance=1e-10, hit_chi2=np.inf, most_rejected=0)
NOISELESS = DetectorEffects(smear=False, scatter=False)


@pytest.fixture(scope="module")
def hits() -> SimpleNamespace:
    """400 J/psi without any noise through a detector whose units, field and matter are off by the usual sizes."""
    detector, field = barrel_tracker(), solenoid_map()
    truth = misaligned(detector, seed=5)
    settings = SimulationSettings(resonance("Jpsi"), (4.0, 30.0), (-0.8, 0.8), (2.9, 3.2), background=0.2)
    (pairs,) = simulate_pairs(track_maker(detector, field, truth, NOISELESS), settings, 400, seed=6)
    return SimpleNamespace(planes=planes_of(detector, field), truth=truth, pairs=pairs)


def off(events: DimuonEvents) -> np.ndarray:
    """(2 n,) pT over the true one, less one, of mu+ then mu-."""
    assert events.gen_plus is not None
    assert events.gen_minus is not None
    both = [(events.plus, events.gen_plus), (events.minus, events.gen_minus)]
    return np.concatenate([one.pt / true.pt - 1.0 for one, true in both])


@pytest.mark.slow
def test_corrections_give_the_true_momenta_to_second_order(hits: SimpleNamespace) -> None:
    before = off(corrected_pairs(hits.pairs, hits.planes, None, EXACT))
    after = off(corrected_pairs(hits.pairs, hits.planes, hits.truth, EXACT))
    rms = [float(np.sqrt(np.mean(x**2))) for x in (before, after)]
    assert rms[0] > 5e-4
    assert rms[1] < 0.02 * rms[0]


def test_half_of_the_corrections_do_half(hits: SimpleNamespace) -> None:
    """A wrong sign, or corrections applied twice, would not."""
    before, half = (off(corrected_pairs(hits.pairs, hits.planes, p, EXACT)) for p in (None, 0.5 * hits.truth))
    slope = float(np.sum(before * half) / np.sum(before**2))
    assert slope == pytest.approx(0.5, abs=0.01)


def test_corrected_fits_are_those_at_the_corrected_detector(hits: SimpleNamespace) -> None:
    """Of all parameters of a muon, with hits as they are measured."""
    tracks = hits.pairs.tracks
    there = refit_tracks(tracks, hits.planes, hits.truth, EXACT)
    events = corrected_pairs(hits.pairs, hits.planes, hits.truth, EXACT)
    for muon, row in ((events.plus, 0), (events.minus, 1)):
        fit = there.local[hits.pairs.pairs[:, row]]
        assert muon.pt == pytest.approx(np.cos(fit[:, 1]) / np.abs(fit[:, 0]), rel=3e-5)
        assert muon.eta == pytest.approx(np.arctanh(np.sin(fit[:, 1])), abs=2e-6)
        assert np.abs(np.sin(muon.phi - fit[:, 2])).max() < 2e-6


def test_muons_without_corrections_are_the_fits(hits: SimpleNamespace) -> None:
    fits = refit_tracks(hits.pairs.tracks, hits.planes)
    events = corrected_pairs(hits.pairs, hits.planes)
    plus = hits.pairs.pairs[:, 0]
    assert events.plus.pt == pytest.approx(np.cos(fits.local[plus, 1]) / fits.local[plus, 0], rel=1e-12)
    assert events.plus.pt_err is not None
    # d ln pT = -d(q/p)/(q/p) - tan(lambda) d lambda
    rows = np.zeros((len(plus), 5))
    rows[:, 0], rows[:, 1] = 1.0 / fits.local[plus, 0], np.tan(fits.local[plus, 1])
    variance = np.einsum("ni,nij,nj->n", rows, fits.covariance[plus], rows)
    assert events.plus.pt_err / events.plus.pt == pytest.approx(np.sqrt(variance), rel=1e-9)
    assert np.all(np.abs(events.plus.phi) <= np.pi)


def test_true_muons_and_event_numbers_go_with_them(hits: SimpleNamespace) -> None:
    events = corrected_pairs(hits.pairs, hits.planes)
    truth = hits.pairs.tracks.truth[hits.pairs.pairs[:, 1]]
    assert events.gen_minus is not None
    assert events.gen_minus.pt == pytest.approx(-np.cos(truth[:, 1]) / truth[:, 0], rel=1e-12)
    assert events.gen_minus.eta == pytest.approx(np.arctanh(np.sin(truth[:, 1])), abs=1e-12)
    assert events.gen_mass is not None
    signal = ~hits.pairs.is_background
    assert events.extra["is_background"].tolist() == hits.pairs.is_background.tolist()
    assert np.median(events.gen_mass[signal]) == pytest.approx(3.0969, abs=1e-3)
    assert events.event is not None
    assert np.array_equal(events.event, hits.pairs.tracks.event[hits.pairs.pairs[:, 0]])


def test_data_have_no_true_muons(hits: SimpleNamespace) -> None:
    data = Pairs(replace(hits.pairs.tracks, truth=None), hits.pairs.pairs)
    events = corrected_pairs(data, hits.planes)
    assert events.gen_plus is None
    assert "is_background" not in events.extra


def test_a_muon_without_fit_or_of_the_other_bend_has_no_pt(hits: SimpleNamespace) -> None:
    pairs: Pairs = hits.pairs.select(np.arange(5))
    module = pairs.tracks.module.copy()
    module[pairs.pairs[1, 0], 1:] = -1
    charge = pairs.tracks.charge.copy()
    charge[pairs.pairs[3, 1]] = 1
    spoiled = replace(pairs, tracks=replace(pairs.tracks, module=module, charge=charge))
    events = corrected_pairs(spoiled, hits.planes, hits.truth)
    assert np.flatnonzero(np.isnan(events.plus.pt)).tolist() == [1]
    assert np.flatnonzero(np.isnan(events.minus.pt)).tolist() == [3]


def test_pieces_are_the_whole(hits: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = corrected_events([hits.pairs], hits.planes, hits.truth)
    monkeypatch.setattr("musclecal.geometry.corrected_pairs._PIECE", 150)
    parts = list(corrected_events([hits.pairs], hits.planes, hits.truth))
    assert [len(part) for part in parts] == [150, 150, 100]
    assert np.array_equal(np.concatenate([part.minus.pt for part in parts]), whole.minus.pt)
