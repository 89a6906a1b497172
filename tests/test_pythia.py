"""The generator "pythia8": its radiation against the built-in one, and that everything else is the same."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from musclecal.apply import correct
from musclecal.errors import InputError
from musclecal.kinematics import from_cartesian, pair_masses
from musclecal.pythia import _generated, _pdgids, _pythia, simulate_with_pythia
from musclecal.records import DimuonEvents, Floats, ScaleParameters
from musclecal.resonances import resonance, resonance_names
from musclecal.simulate import SimulationSettings, default_resolution, lineshape, simulate, stream_of

_ACCEPTANCE = {"Z": (20.0, 120.0)}


@pytest.fixture
def needs_pythia() -> None:
    pytest.importorskip("pythia8mc", reason="pythia8mc is not installed: pip install pythia8mc==8.317.2")


def _settings(name: str, **changes: object) -> SimulationSettings:
    r = resonance(name)
    settings = SimulationSettings(r, _ACCEPTANCE.get(name, (4.0, 40.0)), (-2.4, 2.4), r.mass_window)
    return replace(settings, **changes)  # type: ignore[arg-type]


def _all(settings: SimulationSettings, n: int, seed: int, chunk_events: int = 500_000) -> list[DimuonEvents]:
    return list(simulate_with_pythia(settings, n, seed, chunk_events=chunk_events))


def _without_detector(
    settings: SimulationSettings, n: int, seed: int
) -> tuple[Floats, Floats, Floats, Floats]:
    """Momenta of mu+ and mu-, their mass after radiation, and the mass before it."""
    pdgids = _pdgids(settings)
    plus, minus, mass = _generated(
        _pythia(pdgids, settings.fsr, seed), pdgids, stream_of(seed, 3), n, settings
    )
    return plus, minus, pair_masses(*from_cartesian(*plus.T), *from_cartesian(*minus.T)), mass


@pytest.mark.usefixtures("needs_pythia")
@pytest.mark.parametrize("name", ["Jpsi", "Y1S", "Z"])
def test_peak_before_radiation_is_the_pdg_mass(name: str) -> None:
    settings = _settings(name, fsr=False)
    _, _, after, before = _without_detector(settings, 10_000, 3)
    np.testing.assert_allclose(after, before, rtol=1e-11)
    line = settings.resonance.line
    peak = before[np.abs(before - line.mass) < max(0.1, 20.0 * line.width)]
    # The median of n Cauchy variates of half width g scatters by pi g/(2 sqrt(n)).
    assert abs(np.median(peak) - line.mass) < 4.0 * np.pi * line.width / (4.0 * np.sqrt(len(peak)))


@pytest.mark.usefixtures("needs_pythia")
@pytest.mark.parametrize("name", [name for name in resonance_names() if name not in ("Y2S", "Y3S")])
def test_radiates_as_much_as_the_built_in_generator(name: str) -> None:
    settings = _settings(name)
    _, _, after, before = _without_detector(settings, 20_000, 4)
    narrow = replace(settings.resonance, neighbours=(), line=replace(settings.resonance.line, width=0.0))
    built_in = lineshape(narrow, 200_000, 4) / narrow.line.mass
    for threshold in (0.95, 0.99, 0.999):
        ratio = np.mean(after / before < threshold) / np.mean(built_in < threshold)
        assert 1.0 / 1.2 < ratio < 1.2
    # The part that moves a fitted peak: measured 1.00 +- 0.02.
    soft = [np.mean(1.0 - x[x > 0.95]) for x in (after / before, built_in)]
    assert soft[0] / soft[1] == pytest.approx(1.0, abs=0.1)
    assert np.all(after < before * (1.0 + 1e-11))


@pytest.mark.usefixtures("needs_pythia")
def test_lines_come_in_their_fractions() -> None:
    settings = _settings("Y1S", fsr=False)
    n = 10_000
    _, _, _, mass = _without_detector(settings, n, 5)
    fractions = np.array([line.fraction for line in settings.resonance.lines])
    for line, share in zip(settings.resonance.lines, fractions / fractions.sum(), strict=True):
        assert abs(np.mean(np.abs(mass - line.mass) < 0.1) - share) < 4.0 * np.sqrt(share * (1.0 - share) / n)


@pytest.mark.usefixtures("needs_pythia")
@pytest.mark.parametrize("polarisation", [-0.5, 0.0, 0.6])
def test_polarisation(polarisation: float) -> None:
    spectrum = replace(resonance("Jpsi").spectrum, polarisation=polarisation)
    plus, minus, _, mass = _without_detector(_settings("Jpsi", fsr=False, spectrum=spectrum), 10_000, 6)
    mu = 0.1056583755
    e_plus, e_minus = (np.sqrt(np.sum(p**2, axis=1) + mu**2) for p in (plus, minus))
    pair = plus + minus
    # Boost mu+ along the pair's flight: p* cos(theta) = gamma (p_along - beta E).
    momentum, energy = np.linalg.norm(pair, axis=1), e_plus + e_minus
    along = np.sum(plus * pair, axis=1) / momentum
    cos_theta = (energy * along - momentum * e_plus) / mass / np.sqrt(0.25 * mass**2 - mu**2)
    square = cos_theta**2
    expected = (1.0 / 3.0 + polarisation / 5.0) / (1.0 + polarisation / 3.0)
    assert abs(square.mean() - expected) < 4.0 * square.std() / np.sqrt(len(square))


@pytest.mark.usefixtures("needs_pythia")
def test_exact_number_and_the_same_events_for_any_chunk() -> None:
    settings = _settings("Jpsi", background=0.2)
    (whole,) = _all(settings, 2500, 7)
    parts = _all(settings, 2500, 7, chunk_events=1000)
    assert [len(part) for part in parts] == [1000, 1000, 500]
    for one, other in ((whole.plus, [p.plus for p in parts]), (whole.minus, [p.minus for p in parts])):
        np.testing.assert_array_equal(one.pt, np.concatenate([m.pt for m in other]))
        np.testing.assert_array_equal(one.phi, np.concatenate([m.phi for m in other]))
    (another,) = _all(settings, 2500, 8)
    assert not np.any(another.plus.pt == whole.plus.pt)
    assert whole.event is not None
    np.testing.assert_array_equal(whole.event, np.arange(2500))


@pytest.mark.usefixtures("needs_pythia")
def test_acceptance_and_background_are_those_of_the_settings() -> None:
    settings = _settings("Jpsi", background=0.3)
    (events,) = _all(settings, 6000, 9)
    for muon in (events.plus, events.minus):
        assert muon.pt.min() >= 4.0
        assert muon.pt.max() < 40.0
        assert np.abs(muon.eta).max() < 2.4
    assert np.all((events.mass >= settings.mass_window[0]) & (events.mass < settings.mass_window[1]))
    background = np.asarray(events.extra["is_background"], dtype=np.float64)
    # Each pair is background independently of the others.
    assert abs(background.mean() - 0.3) < 4.0 * np.sqrt(0.3 * 0.7 / 6000)


@pytest.mark.usefixtures("needs_pythia")
@pytest.mark.parametrize("name", ["Jpsi", "Z"])
def test_detector_is_that_of_the_built_in_generator(name: str) -> None:
    settings = _settings(name)
    (ours,), theirs = _all(settings, 6000, 10), next(simulate(settings, 60_000, 10))
    assert ours.gen_plus is not None
    assert theirs.gen_plus is not None
    smear = [np.log(e.plus.pt / e.gen_plus.pt) for e in (ours, theirs) if e.gen_plus is not None]
    assert abs(smear[0].mean()) < 4.0 * smear[0].std() / np.sqrt(6000)
    assert smear[0].std() / smear[1].std() == pytest.approx(1.0, abs=4.0 / np.sqrt(2.0 * 6000))
    for one, two in (
        (ours.plus.pt, theirs.plus.pt),
        (np.abs(ours.minus.eta), np.abs(theirs.minus.eta)),
        (ours.mass, theirs.mass),
    ):
        assert abs(one.mean() - two.mean()) < 4.0 * one.std() * np.sqrt(1 / 6000 + 1 / 60_000)


@pytest.mark.usefixtures("needs_pythia")
def test_correction_undoes_the_injected_bias() -> None:
    edges = np.linspace(-2.4, 2.4, 7)
    truth = ScaleParameters(
        edges, 1e-3 * np.cos(edges[:-1]), 4e-3 * np.ones(6), 2e-5 * np.array([1.0, -1.0, 2.0, 0.0, 3.0, -2.0])
    )
    settings = _settings("Jpsi", truth=truth, resolution=default_resolution().scaled(0.0))
    (events,) = _all(settings, 2000, 11)
    corrected = correct(events, truth)
    assert events.gen_plus is not None
    assert events.gen_minus is not None
    assert np.max(np.abs(events.plus.pt / events.gen_plus.pt - 1.0)) > 1e-3
    np.testing.assert_allclose(corrected.plus.pt, events.gen_plus.pt, rtol=1e-12)
    np.testing.assert_allclose(corrected.minus.pt, events.gen_minus.pt, rtol=1e-12)


@pytest.mark.usefixtures("needs_pythia")
def test_nothing_accepted_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musclecal.pythia._ATTEMPTS", 100)
    settings = _settings("Jpsi", mass_window=(1.0, 1.1), fsr=False)
    settings = replace(settings, muon_pt=(39.0, 40.0))
    with pytest.raises(InputError, match="no pair is accepted"):
        _all(settings, 10, 12)


def test_unknown_resonance_is_an_input_error() -> None:
    settings = _settings("Jpsi", resonance=replace(resonance("Jpsi"), name="phi"))
    with pytest.raises(InputError, match="generator: pythia8 cannot make the resonance 'phi'"):
        simulate_with_pythia(settings, 10, 1)


def test_missing_package_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pythia8mc", None)
    with pytest.raises(InputError, match=r"pip install pythia8mc==8\.317\.2"):
        simulate_with_pythia(_settings("Jpsi"), 10, 1)
