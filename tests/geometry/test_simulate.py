"""Simulated tracks: the same as traced ones, all sensors that a helix meets, right noise, the same for any threads."""

import math
from dataclasses import replace

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.geometry.detector import barrel_tracker, cms_tracker
from musclecal.geometry.field import SOLENOID, solenoid_map
from musclecal.geometry.helix import CROSSED, cross_planes
from musclecal.geometry.misalignment import misaligned
from musclecal.geometry.simulate import (
    PERFECT,
    DetectorEffects,
    TrackMaker,
    flat_muons,
    simulate_pairs,
    simulate_tracks,
    start_states,
    track_maker,
)
from musclecal.geometry.trace import TRACED, Trace, new_trace, trace
from musclecal.kinematics import pair_masses
from musclecal.records import FieldMap, Floats, Pairs, Tracks
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings

FIELD = solenoid_map()
EVEN_FIELD = FieldMap(SOLENOID, np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.full((2, 2), 3.8))
BARREL, CMS = barrel_tracker(), cms_tracker()
JPSI = SimulationSettings(resonance("Jpsi"), (3.0, 50.0), (-2.4, 2.4), (2.8, 3.4))
SPOT = (0.0015, 0.0015, 1.0)


def traced(maker: TrackMaker, tracks: Tracks, n: int, parameters: Floats) -> Trace:
    """Track ``n`` traced from its truth."""
    modules = tracks.module[n][: tracks.n_sensors[n]].copy()
    out = new_trace(len(modules), 6, False)
    start = np.asarray(tracks.truth)[n]
    status = trace(start, np.eye(6), modules, len(modules), maker.planes, parameters, False, out)
    assert status == TRACED
    return out


@pytest.mark.parametrize("n_slots", [4, 6])
@pytest.mark.parametrize("detector", [BARREL, CMS], ids=["barrel", "cms"])
def test_without_noise_hits_are_where_they_are_predicted(detector: object, n_slots: int) -> None:
    """To 1e-10 cm, in a detector that is not where it should be; pixels in v as well."""
    d = BARREL if detector is BARREL else CMS
    truth = misaligned(d, 4, n_slots=n_slots)
    maker = track_maker(d, FIELD, truth, PERFECT)
    eta = (-1.0, 1.0) if d is BARREL else (-2.4, 2.4)
    tracks = simulate_tracks(maker, flat_muons(150, 7, eta=eta, beam_spot=SPOT), 1)
    assert np.all(tracks.n_sensors >= 5)
    np.testing.assert_array_equal(tracks.n_hits, tracks.n_sensors)
    for n in range(len(tracks)):
        out, size = traced(maker, tracks, n, truth), tracks.n_sensors[n]
        np.testing.assert_allclose(tracks.u[n, :size], out.predicted[::2], rtol=0, atol=1e-10)
        pixel = d.measures_v[tracks.module[n, :size]]
        np.testing.assert_allclose(tracks.v[n, :size][pixel], out.predicted[1::2][pixel], rtol=0, atol=1e-10)
        assert np.all(np.isnan(tracks.v[n, :size][~pixel]))
        np.testing.assert_array_equal(np.isinf(tracks.sigma_v[n, :size]), ~pixel)


@pytest.mark.parametrize(
    "spot", [(0.0015, 0.0015, 4.0), (1.2, 1.2, 4.0)], ids=["beam spot", "far from the beam"]
)
def test_a_helix_meets_what_the_search_through_all_sensors_finds(spot: tuple[float, float, float]) -> None:
    """Without matter, in an even field: crossings of all planes by brute force."""
    thin = replace(CMS, mass_thickness=np.zeros(len(CMS)), radiation_lengths=np.zeros(len(CMS)))
    states = flat_muons(60, 3, pt=(2.0, 40.0), eta=(-2.5, 2.5), beam_spot=spot)
    tracks = simulate_tracks(track_maker(thin, EVEN_FIELD, None, PERFECT), states, 1)
    for n, state in enumerate(states):
        crossings = cross_planes(state, CMS.centre, CMS.w, 3.8)
        offset = crossings.states[:, 3:] - CMS.centre
        u, v = np.sum(offset * CMS.u, axis=1), np.sum(offset * CMS.v, axis=1)
        ahead = (crossings.status == CROSSED) & (crossings.s > 0.0)
        ahead &= np.abs(crossings.states[:, 2] - state[2]) < 0.5 * math.pi
        inside = ahead & (np.abs(u) <= CMS.half_u) & (np.abs(v) <= CMS.half_v)
        expected = {(CMS.layer[i], CMS.side[i]) for i in np.flatnonzero(inside & (CMS.side == 0))}
        expected |= {(layer, 1) for layer, _ in expected if CMS.side[CMS.layer == layer].any()}
        used = tracks.module[n, : tracks.n_sensors[n]]
        assert {(CMS.layer[i], CMS.side[i]) for i in used} == expected
        assert len(used) == len(expected)
        np.testing.assert_allclose(tracks.u[n, : len(used)], u[used], rtol=0, atol=1e-7)
        assert np.all(np.diff(crossings.s[used]) > 0.0)


def test_units_are_crossed_once_and_stereo_units_on_both_sides() -> None:
    tracks = simulate_tracks(track_maker(CMS, FIELD), flat_muons(3000, 5, beam_spot=SPOT), 2)
    number = tracks.n_sensors
    assert 17.0 < number.mean() < 19.5
    assert number.min() >= 12
    for n in range(0, 3000, 10):
        used = tracks.module[n, : number[n]]
        assert np.all(tracks.module[n, number[n] :] == -1)
        pairs = CMS.layer[used] * 2 + CMS.side[used]
        assert len(np.unique(pairs)) == len(used)
        stereo = np.isin(CMS.unit[used], CMS.unit[CMS.side == 1])
        units, counts = np.unique(CMS.unit[used[stereo]], return_counts=True)
        np.testing.assert_array_equal(counts, np.full(len(units), 2))


def test_every_barrel_layer_is_met() -> None:
    states = flat_muons(5000, 5, pt=(1.0, 30.0), eta=(-0.75, 0.75), beam_spot=SPOT)
    tracks = simulate_tracks(track_maker(CMS, FIELD), states, 2)
    np.testing.assert_array_equal(tracks.n_sensors, 17)


def test_start_states_have_the_momenta_asked_for() -> None:
    pt, eta, phi = np.array([4.0, 30.0]), np.array([1.3, -0.4]), np.array([0.3, -3.0])
    states = start_states([1.0, -1.0], pt, eta, phi, (0.1, 0.2, 0.3))
    p = 1.0 / np.abs(states[:, 0])
    np.testing.assert_allclose(p * np.sin(states[:, 1]), pt * np.sinh(eta), rtol=1e-12)
    np.testing.assert_allclose(p * np.cos(states[:, 1]), pt, rtol=1e-12)
    np.testing.assert_array_equal(states[:, 2:], [[0.3, 0.1, 0.2, 0.3], [-3.0, 0.1, 0.2, 0.3]])
    np.testing.assert_array_equal(np.sign(states[:, 0]), [1.0, -1.0])


def test_positive_muons_turn_clockwise_in_a_field_along_z() -> None:
    """q > 0, B_z > 0: phi falls, so u (towards rising phi) against a straight track is negative."""
    states = start_states([1.0, -1.0, 1.0, -1.0], [5.0, 5.0, 1e5, 1e5], 0.3, 1.0)
    tracks = simulate_tracks(track_maker(BARREL, FIELD, None, PERFECT), states, 1)
    last = BARREL.centre[tracks.module[:, 8]] + tracks.u[:, 8, None] * BARREL.u[tracks.module[:, 8]]
    phi = np.arctan2(last[:, 1], last[:, 0])
    assert phi[0] < phi[2] - 0.1
    assert phi[1] > phi[3] + 0.1


def test_a_displaced_module_measures_the_other_way() -> None:
    truth = np.zeros((BARREL.n_units, 4))
    truth[:, 0] = 0.01
    truth[: 10 * 4, 1] = 0.02
    states = flat_muons(50, 3, eta=(-0.5, 0.5), beam_spot=SPOT)
    before, after = (
        simulate_tracks(track_maker(BARREL, FIELD, t, PERFECT), states, 1) for t in (None, truth)
    )
    used, first = before.module >= 0, BARREL.side[before.module] == 0
    np.testing.assert_allclose((after.u - before.u)[used & first], -0.01, atol=1e-12)
    np.testing.assert_allclose((after.u - before.u)[used & ~first], 0.0, atol=1e-12)
    np.testing.assert_allclose((after.v - before.v)[:, 0], -0.02, atol=1e-12)
    np.testing.assert_allclose((after.v - before.v)[:, 1:3], 0.0, atol=1e-12)


def test_field_and_matter_of_the_truth() -> None:
    """1 % more field: 1 % more deflection; matter that is three times as much: three times the loss."""
    state = start_states([1.0], [5.0], 0.2, 1.0)
    straight = start_states([1.0], [1e6], 0.2, 1.0)
    truth = np.zeros((BARREL.n_units, 4))
    truth[:, 2] = 0.01
    more, usual, none = (
        simulate_tracks(track_maker(BARREL, FIELD, t, PERFECT), s, 1).u[0, 8]
        for t, s in ((truth, state), (None, state), (None, straight))
    )
    assert (more - none) / (usual - none) == pytest.approx(1.01, abs=1.5e-3)
    truth[:, 2], truth[:, 3] = 0.0, 2.0
    thin = replace(BARREL, mass_thickness=np.zeros(len(BARREL)))
    thrice, nothing = (
        simulate_tracks(track_maker(d, FIELD, t, PERFECT), state, 1).u[0, 8]
        for d, t in ((BARREL, truth), (thin, None))
    )
    assert (thrice - nothing) / (usual - nothing) == pytest.approx(3.0, rel=0.02)


def test_smearing() -> None:
    states = flat_muons(4000, 9, eta=(-0.8, 0.8), beam_spot=SPOT)
    perfect = simulate_tracks(track_maker(BARREL, FIELD, None, PERFECT), states, 1)
    smeared = simulate_tracks(track_maker(BARREL, FIELD, None, replace(PERFECT, smear=True)), states, 1)
    np.testing.assert_array_equal(smeared.module, perfect.module)
    for name, sigma in (("u", smeared.sigma_u), ("v", smeared.sigma_v)):
        pulls = (getattr(smeared, name) - getattr(perfect, name)) / sigma
        pulls = pulls[np.isfinite(pulls)]
        assert pulls.mean() == pytest.approx(0.0, abs=4.0 / math.sqrt(pulls.size))
        assert pulls.std() == pytest.approx(1.0, abs=4.0 / math.sqrt(2.0 * pulls.size))


def test_scattering_is_what_the_kicks_of_a_trace_say() -> None:
    """chi2 of hits about their prediction with the covariance K Q K^T + sigma^2: as many as there are hits."""
    n = 3000
    states = np.repeat(start_states([-1.0], [4.0], 0.85, 2.0, (0.0, 0.0, 0.3)), n, axis=0)
    maker = track_maker(BARREL, FIELD, None, DetectorEffects())
    tracks = simulate_tracks(maker, states, 8)
    same = np.all(tracks.module == tracks.module[0], axis=1)
    assert np.mean(same) > 0.95
    out, size = traced(maker, tracks, 0, maker.truth), tracks.n_sensors[0]
    rows = [
        2 * i + k for i in range(size) for k in range(2) if k == 0 or BARREL.measures_v[tracks.module[0, i]]
    ]
    kicks = out.derivative[np.ix_(rows, range(6, 6 + 2 * size))] * np.sqrt(out.variance[:size].ravel())
    sigma = np.stack([tracks.sigma_u[0, :size], tracks.sigma_v[0, :size]], axis=1).ravel()[rows]
    covariance = kicks @ kicks.T + np.diag(sigma**2)
    hits = np.stack([tracks.u[same, :size], tracks.v[same, :size]], axis=2).reshape(-1, 2 * size)[:, rows]
    residuals = hits - out.predicted[rows]
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), residuals.T)
    # At 4 GeV the loss behind a kick is that of another angle: means may move by a little
    assert np.abs(whitened.mean(axis=1)).max() < 5.0 / math.sqrt(same.sum())
    np.testing.assert_allclose(
        whitened @ whitened.T / same.sum(), np.eye(len(rows)), atol=6.0 / math.sqrt(same.sum())
    )


@pytest.mark.parametrize("loss", ["gauss", "landau"])
def test_fluctuations_of_the_loss(loss: str) -> None:
    """Energy at the end, from the curvature of noiseless hits: the same mean as without, and wider."""
    states = np.repeat(start_states([1.0], [3.0], 0.2, 1.0), 20_000, axis=0)
    effects = DetectorEffects(smear=False, scatter=False, loss=loss)  # type: ignore[arg-type]
    usual = simulate_tracks(track_maker(BARREL, FIELD, None, PERFECT), states[:1], 1).u[0, 8]
    some = simulate_tracks(track_maker(BARREL, FIELD, None, effects), states, 1).u[:, 8]
    assert some.std() > 1e-4
    assert abs(np.mean(some) - usual) < 4.0 * some.std() / math.sqrt(len(some))
    if loss == "landau":
        # Most lose less than the mean: they turn less, phi falls less
        assert np.median(some) > usual + 0.05 * some.std()


def test_holes_keep_their_sensor_and_noise_is_flat() -> None:
    states = flat_muons(6000, 9, eta=(-0.8, 0.8), beam_spot=SPOT)
    perfect = simulate_tracks(track_maker(BARREL, FIELD, None, PERFECT), states, 1)
    effects = replace(PERFECT, efficiency=0.9, noise=0.2, noise_range=0.2)
    tracks = simulate_tracks(track_maker(BARREL, FIELD, None, effects), states, 1)
    np.testing.assert_array_equal(tracks.module, perfect.module)
    n = tracks.n_sensors.sum()
    assert tracks.n_hits.sum() / n == pytest.approx(0.9, abs=4.0 * math.sqrt(0.09 / n))
    off = (tracks.u - perfect.u)[np.isfinite(tracks.u)]
    wrong = off[off != 0.0]
    assert len(wrong) / len(off) == pytest.approx(0.2, abs=4.0 * math.sqrt(0.16 / n))
    assert np.abs(wrong).max() < 0.2
    assert wrong.std() == pytest.approx(0.2 / math.sqrt(3.0), rel=0.03)
    assert np.all(np.isnan(tracks.v[np.isnan(tracks.u)]))


def assert_same(one: Tracks, two: Tracks) -> None:
    for name in ("charge", "module", "u", "v", "sigma_u", "sigma_v", "event", "truth"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


def test_threads_and_chunks_do_not_matter() -> None:
    maker = track_maker(BARREL, FIELD)
    states = flat_muons(9000, 9, eta=(-0.8, 0.8))
    alone, both = (simulate_tracks(maker, states, 6, threads=threads) for threads in (1, 3))
    assert_same(alone, both)
    assert not np.array_equal(simulate_tracks(maker, states, 7).u, alone.u, equal_nan=True)
    repeated = simulate_tracks(maker, np.repeat(states[:1], 9000, axis=0), 6)
    assert len(np.unique(repeated.u[:, 0])) == 9000
    central = replace(JPSI, eta_range=(-0.9, 0.9))
    (whole,) = simulate_pairs(maker, central, 5000, 6, chunk_pairs=5000, threads=1)
    parts = list(simulate_pairs(maker, central, 5000, 6, chunk_pairs=1300, threads=2))
    assert [len(part) for part in parts] == [1300, 1300, 1300, 1100]
    for name in ("module", "u", "v", "event", "truth"):
        np.testing.assert_array_equal(
            np.concatenate([getattr(part.tracks, name) for part in parts]), getattr(whole.tracks, name)
        )
    (fewer,) = simulate_pairs(maker, central, 100, 6)
    np.testing.assert_array_equal(fewer.tracks.u, whole.tracks.u[:200])


def momenta(pairs: Pairs, column: int) -> tuple[Floats, Floats, Floats]:
    truth = np.asarray(pairs.tracks.truth)[pairs.pairs[:, column]]
    pt = np.cos(truth[:, 1]) / np.abs(truth[:, 0])
    return pt, np.arcsinh(np.tan(truth[:, 1])), truth[:, 2]


def test_pairs() -> None:
    maker = track_maker(CMS, FIELD, None, DetectorEffects(efficiency=0.98))
    settings = replace(JPSI, background=0.2)
    (pairs,) = simulate_pairs(maker, settings, 6000, 6, min_hits=9)
    tracks, truth = pairs.tracks, np.asarray(pairs.tracks.truth)
    assert len(pairs) == 6000
    np.testing.assert_array_equal(tracks.charge[pairs.pairs], np.tile([1, -1], (6000, 1)))
    np.testing.assert_array_equal(np.sign(truth[:, 0]), tracks.charge)
    np.testing.assert_array_equal(tracks.event[pairs.pairs], np.tile(np.arange(6000)[:, None], 2))
    vertices = truth[pairs.pairs][:, :, 3:]
    assert len(np.unique(vertices[:, 0, 2])) == 6000
    np.testing.assert_array_equal(vertices[:, 0], vertices[:, 1])
    np.testing.assert_allclose(vertices[:, 0].std(axis=0), [0.0015, 0.0015, 4.0], rtol=0.04)
    assert tracks.n_hits.min() >= 9
    mass = pair_masses(*momenta(pairs, 0), *momenta(pairs, 1))
    assert np.all((mass > 2.8) & (mass < 3.4))
    signal = mass[~np.asarray(pairs.is_background)]
    # After radiation: most at the mass, a tail below, none above
    assert np.median(signal) == pytest.approx(3.0969, abs=3e-3)
    assert np.mean(signal < 3.05) > 0.02
    assert np.mean(np.asarray(pairs.is_background)) == pytest.approx(0.2, abs=4.0 * math.sqrt(0.16 / 6000))
    pt = momenta(pairs, 0)[0]
    assert 3.0 <= pt.min() < 3.1


def test_muons_that_stop_keep_what_they_hit() -> None:
    slow = start_states([1.0], [0.5], 0.1, 0.3)
    thick = replace(BARREL, mass_thickness=BARREL.mass_thickness * 300.0)
    tracks = simulate_tracks(track_maker(thick, EVEN_FIELD, None, PERFECT), slow, 1)
    assert 0 < tracks.n_sensors[0] < 9


def test_bad_input() -> None:
    with pytest.raises(InputError, match="truth: need shape"):
        track_maker(BARREL, FIELD, np.zeros((3, 4)))
    bad = np.zeros((BARREL.n_units, 4))
    bad[17, 2] = np.nan
    with pytest.raises(InputError, match="unit 17"):
        track_maker(BARREL, FIELD, bad)
    with pytest.raises(InputError, match="other"):
        track_maker(BARREL, replace(FIELD, id="other"))
    with pytest.raises(InputError, match="efficiency"):
        DetectorEffects(efficiency=1.2)
    with pytest.raises(InputError, match="noise_range"):
        DetectorEffects(noise_range=0.0)
    with pytest.raises(InputError, match="loss"):
        DetectorEffects(loss="vavilov")  # type: ignore[arg-type]
    maker = track_maker(BARREL, FIELD)
    with pytest.raises(InputError, match="states"):
        simulate_tracks(maker, np.full((2, 6), np.nan), 1)
    with pytest.raises(InputError, match="positive"):
        next(simulate_pairs(maker, JPSI, 0, 1))
    with pytest.raises(InputError, match="min_hits"):
        next(simulate_pairs(maker, replace(JPSI, eta_range=(1.6, 2.4)), 10, 1))
