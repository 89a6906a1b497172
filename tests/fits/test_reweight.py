"""Weights that give the simulation the spectrum of the data."""

from dataclasses import replace

import numpy as np
import pytest

from musclecal.binning import Binning, equal_eta_edges
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


def test_the_cells_agree_after_weighting(
    data: DimuonEvents, simulation: DimuonEvents, weights: SpectrumWeights
) -> None:
    """The weighted sum of the simulation is the data, cell by cell, where both have events and no limit bites."""
    in_data, in_simulation = (spectrum_counts([sample], BINNING) for sample in (data, simulation))
    used = (in_data > 0) & (in_simulation > 0) & (weights.weight > 0.2) & (weights.weight < 5.0)
    assert in_data[used].sum() > 0.99 * in_data.sum()
    ratio = in_simulation[used] * weights.weight[used] / in_data[used]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)
    assert ratio[0] == pytest.approx(in_simulation.sum() / in_data.sum(), rel=0.02)


def test_the_mean_weight_is_one(simulation: DimuonEvents, weights: SpectrumWeights) -> None:
    counts = spectrum_counts([simulation], BINNING)
    assert np.average(weights.weight, weights=counts) == pytest.approx(1.0, abs=0.01)


def test_equal_spectra_need_no_weights() -> None:
    counts = spectrum_counts([events(1.0, 50_000, 43)], BINNING)
    same = spectrum_weights(counts, 3 * counts, BINNING)
    np.testing.assert_allclose(same.weight, 1.0, rtol=1e-12)


def test_weights_are_limited_and_one_where_nothing_is_known(weights: SpectrumWeights) -> None:
    n = len(weights.weight)
    one, many = np.ones(n, dtype=np.int64), np.full(n, 1000, dtype=np.int64)
    many[:3], one[3] = (0, 1, 1000), 0
    found = spectrum_weights(one, many, BINNING, limit=2.0).weight
    assert (found[0], found[3]) == (1.0, 1.0)
    assert found.min() >= 0.5
    assert found.max() <= 2.0


def test_events_outside_have_weight_one(simulation: DimuonEvents, weights: SpectrumWeights) -> None:
    outside = (simulation.mass < BINNING.mass_window[0]) | (simulation.plus.pt < 4.0)
    assert np.count_nonzero(outside) > 100
    assert np.all(weights(simulation)[outside] == 1.0)


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
