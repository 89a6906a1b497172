"""Widths of 4D bins: no bias however few events a bin has, errors that are right, weights, refusals."""

from dataclasses import replace

import numpy as np
import pytest

from musclecal.binning import Binning, equal_eta_edges
from musclecal.errors import InputError
from musclecal.fits.histogram import fill
from musclecal.fits.widths import fit_widths
from musclecal.records import MassHistogram, MassWidths
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings, first_events

JPSI = resonance("Jpsi")
BINNING = Binning(
    equal_eta_edges(16, 2.4), (4.0, 4.6, 5.4, 6.6, 9.0, 40.0), JPSI.mass_window, 60, JPSI.line.mass
)
"""Fine bins: on average 40 events of the data in one of those that are fitted."""


@pytest.fixture(scope="module")
def samples() -> tuple[MassHistogram, MassHistogram]:
    """(data, simulation) of the same resolution."""
    settings = SimulationSettings(JPSI, (3.9, 41.0), (-2.4, 2.4), (2.5, 3.64))
    data = replace(settings, mass_window=(2.8, 3.3))
    return (
        fill([first_events(data, 150_000, 21)], BINNING),
        fill([first_events(settings, 600_000, 22)], BINNING),
    )


@pytest.fixture(scope="module")
def widths(samples: tuple[MassHistogram, MassHistogram]) -> MassWidths:
    return fit_widths(*samples, JPSI, background="none", min_events=10)


def excess(widths: MassWidths) -> tuple[float, float]:
    """Weighted average of w^2 of data over simulation, minus one, and its error."""
    weight = 1.0 / (widths.data_error**2 + widths.simulation_error**2)
    size = np.sum(weight * widths.simulation)
    return float(np.sum(weight * (widths.data - widths.simulation)) / size), float(
        np.sqrt(weight.sum()) / size
    )


def test_few_events_in_a_bin_are_no_bias(widths: MassWidths) -> None:
    """Maximum-likelihood widths would be too small by 1/N, 2 % on the average of these bins."""
    assert np.mean(1.0 / widths.n_events) > 0.018
    off, error = excess(widths)
    assert error < 0.006
    assert abs(off) < 3.0 * error
    assert widths.events_fraction > 0.98


def test_pulls_of_the_bins(widths: MassWidths) -> None:
    pulls = (widths.data - widths.simulation) / np.hypot(widths.data_error, widths.simulation_error)
    np.testing.assert_allclose(pulls.std(), 1.0, atol=4.0 / np.sqrt(2.0 * len(pulls)) + 0.03)


def test_errors_follow_the_number_of_events_and_not_the_fluctuation(widths: MassWidths) -> None:
    """A bin that fluctuated down must not claim a smaller error: then averages would be too small."""
    relative = (widths.data - widths.simulation) / widths.data_error
    precision = widths.data_error * np.sqrt(widths.n_events)
    assert abs(np.corrcoef(relative, precision)[0, 1]) < 4.0 / np.sqrt(len(relative))


def test_weights_of_two_with_their_variance_are_half_the_events(
    samples: tuple[MassHistogram, MassHistogram], widths: MassWidths
) -> None:
    data, simulation = samples
    counts = np.asarray(simulation.counts, dtype=np.float64)
    weighted = replace(simulation, counts=2.0 * counts, variances=4.0 * counts)
    found = fit_widths(data, weighted, JPSI, background="none", min_events=10)
    np.testing.assert_array_equal(found.bins, widths.bins)
    np.testing.assert_allclose(np.median(found.simulation_error / widths.simulation_error), 1.0, rtol=0.005)
    half = replace(simulation, counts=counts, variances=2.0 * counts)
    noisy = fit_widths(data, half, JPSI, background="none", min_events=10)
    ratio = noisy.simulation_error / widths.simulation_error
    np.testing.assert_allclose(np.median(ratio), np.sqrt(2.0), rtol=0.02)


def test_background_without_noise_does_not_cost_the_simulation_much(
    samples: tuple[MassHistogram, MassHistogram], widths: MassWidths
) -> None:
    """The simulation is fitted on the background of the data, added to it without noise: its own events count."""
    flat = 0.4 * samples[0].counts.mean(axis=1, keepdims=True)
    data = replace(
        samples[0],
        counts=samples[0].counts + np.random.default_rng(3).poisson(flat + 0.0 * samples[0].counts),
    )
    found = fit_widths(data, samples[1], JPSI, background="exponential", min_events=100)
    _, one, two = np.intersect1d(found.bins, widths.bins, return_indices=True)
    ratio = np.median(found.simulation_error[one] / widths.simulation_error[two])
    # What floats beside the width costs a tenth; counting the added background as noise would make it 1.31.
    assert 1.0 < ratio < 1.2


def test_refusals(samples: tuple[MassHistogram, MassHistogram]) -> None:
    data, simulation = samples
    with pytest.raises(InputError, match="no 4D bin has 1000000 events"):
        fit_widths(data, simulation, JPSI, min_events=1_000_000)
    with pytest.raises(InputError, match="pooled-template: the simulation has no generator-level muons"):
        fit_widths(data, replace(simulation, generator=None), JPSI)
