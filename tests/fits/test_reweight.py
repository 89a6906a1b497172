"""Weights that give the simulation the spectrum of the data."""

from dataclasses import replace

import numpy as np
import pytest

from musclecal.binning import Binning, equal_eta_edges
from musclecal.errors import InputError
from musclecal.fits.histogram import fill
from musclecal.fits.reweight import SpectrumWeights, spectrum_counts, spectrum_weights
from musclecal.records import DimuonEvents, Floats
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings, first_events

JPSI = resonance("Jpsi")
BINNING = Binning(equal_eta_edges(6, 2.4), (4.0, 6.0, 40.0), JPSI.mass_window, 80, JPSI.line.mass)


def events(exponent_factor: float, n_events: int, seed: int) -> DimuonEvents:
    spectrum = replace(JPSI.spectrum, exponent=JPSI.spectrum.exponent * exponent_factor)
    settings = SimulationSettings(JPSI, (3.9, 41.0), (-2.4, 2.4), (2.8, 3.3), spectrum=spectrum)
    return first_events(settings, n_events, seed)


@pytest.fixture(scope="module")
def data() -> DimuonEvents:
    return events(1.2, 100_000, 41)


@pytest.fixture(scope="module")
def simulation() -> DimuonEvents:
    return events(1.0, 300_000, 42)


@pytest.fixture(scope="module")
def weights(data: DimuonEvents, simulation: DimuonEvents) -> SpectrumWeights:
    return spectrum_weights(spectrum_counts([data], BINNING), spectrum_counts([simulation], BINNING), BINNING)


def spectrum(sample: DimuonEvents, weight: Floats | None = None) -> tuple[Floats, Floats]:
    """Normalised distribution of ln pT of mu+ inside the binning and the window, and its error."""
    low, high = BINNING.mass_window
    pt = sample.plus.pt
    inside = (sample.mass >= low) & (sample.mass < high) & (np.minimum(pt, sample.minus.pt) >= 4.0)
    inside &= np.maximum(pt, sample.minus.pt) < 40.0
    w = np.ones(len(sample)) if weight is None else weight
    edges = np.geomspace(4.0, 40.0, 9)
    counts, _ = np.histogram(pt[inside], edges, weights=w[inside])
    squares, _ = np.histogram(pt[inside], edges, weights=w[inside] ** 2)
    return counts / counts.sum(), np.sqrt(squares) / counts.sum()


def test_a_wrong_spectrum_is_made_right(
    data: DimuonEvents, simulation: DimuonEvents, weights: SpectrumWeights
) -> None:
    wanted, error = spectrum(data)
    before, _ = spectrum(simulation)
    after, after_error = spectrum(simulation, weights(simulation))
    assert np.abs((before - wanted) / error).max() > 20.0
    # The cells of the weights end elsewhere than these bins, hence a little more than statistics.
    assert np.abs((after - wanted) / np.hypot(error, after_error)).max() < 6.0
    assert np.abs(after / wanted - 1.0)[:6].max() < 0.2 * np.abs(before / wanted - 1.0)[:6].max()


def test_the_weight_is_a_function_of_the_true_momenta(
    simulation: DimuonEvents, weights: SpectrumWeights
) -> None:
    """The measured momenta may be anything; without generator level they are what there is."""
    other = simulation.with_momenta(1.1 * simulation.plus.pt, 0.9 * simulation.minus.pt)
    np.testing.assert_array_equal(weights(simulation), weights(other))
    measured = replace(simulation, gen_plus=None, gen_minus=None)
    assert not np.array_equal(weights(measured), weights(simulation))
    np.testing.assert_allclose(weights(measured), weights(simulation), rtol=0.5)


def test_the_weight_is_the_ratio_of_the_spectra(simulation: DimuonEvents, weights: SpectrumWeights) -> None:
    """Pairs are made with dN/dpT^2 ~ (1 + pT^2/p0^2)^-n: the ratio is known in closed form, up to a constant."""
    plus, minus = simulation.gen_plus, simulation.gen_minus
    assert plus is not None
    assert minus is not None
    px = plus.pt * np.cos(plus.phi) + minus.pt * np.cos(minus.phi)
    py = plus.pt * np.sin(plus.phi) + minus.pt * np.sin(minus.phi)
    p0, n = JPSI.spectrum.p0, JPSI.spectrum.exponent
    known = (1.0 + (px**2 + py**2) / p0**2) ** (-0.2 * n)
    some = np.maximum(plus.pt, minus.pt) < 15.0
    ratio = weights(simulation)[some] / known[some]
    assert np.std(ratio) / np.mean(ratio) < 0.05


def test_equal_spectra_need_no_weights() -> None:
    sample = events(1.0, 50_000, 43)
    counts = spectrum_counts([sample], BINNING)
    np.testing.assert_allclose(spectrum_weights(counts, 3 * counts, BINNING)(sample), 1.0, rtol=1e-9)


def test_weights_are_limited(data: DimuonEvents, simulation: DimuonEvents) -> None:
    in_data, in_simulation = (spectrum_counts([sample], BINNING) for sample in (data, simulation))
    found = spectrum_weights(in_data, in_simulation, BINNING, limit=1.2)(simulation)
    assert found.min() == pytest.approx(1.0 / 1.2)
    assert found.max() == pytest.approx(1.2)


def test_too_few_events_are_an_error() -> None:
    counts = spectrum_counts([events(1.0, 2_000, 44)], BINNING)
    with pytest.raises(InputError, match="reweight: only"):
        spectrum_weights(counts, counts, BINNING)


def test_counts_do_not_depend_on_the_chunks(data: DimuonEvents) -> None:
    parts = np.array_split(np.arange(len(data)), 7)
    pieces = spectrum_counts((data.select(part) for part in parts), BINNING)
    np.testing.assert_array_equal(pieces, spectrum_counts([data], BINNING))


def test_a_weighted_fill_keeps_sums_of_weights_and_of_their_squares(
    simulation: DimuonEvents, weights: SpectrumWeights
) -> None:
    plain = fill([simulation], BINNING)
    weighted = fill([simulation], BINNING, weight=weights)
    assert plain.variances is None
    assert weighted.variances is not None
    np.testing.assert_array_equal(plain.bins, weighted.bins)
    assert weighted.n_events == pytest.approx(plain.n_events, rel=0.02)
    w = weights(simulation)
    # Every event of the window is in a 4D bin, so the totals can be had directly.
    inside = (simulation.mass >= BINNING.mass_window[0]) & (simulation.mass < BINNING.mass_window[1])
    for muons in (simulation.plus, simulation.minus):
        inside &= (muons.pt >= 4.0) & (muons.pt < 40.0)
    assert weighted.counts.sum() == pytest.approx(w[inside].sum(), rel=1e-9)
    assert weighted.variances.sum() == pytest.approx((w[inside] ** 2).sum(), rel=1e-9)
    # No variance without counts, and at least that of equal weights (Cauchy-Schwarz).
    assert np.all((weighted.variances > 0) == (plain.counts > 0))
    some = plain.counts > 0
    assert np.all(weighted.variances[some] >= weighted.counts[some] ** 2 / plain.counts[some] * (1 - 1e-6))
