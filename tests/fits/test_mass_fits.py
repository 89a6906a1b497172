"""Data and simulation are fitted in the same way: what is asked of the pair of fits, not of one likelihood."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from musclecal.binning import Binning, equal_eta_edges
from musclecal.errors import InputError
from musclecal.fits.histogram import fill
from musclecal.fits.likelihood import BACKGROUNDS, fit_bins
from musclecal.fits.mass_fits import MassModel, _with_background, fit_masses, signal_model
from musclecal.fits.shapes.cumulative import background_cdf
from musclecal.records import MassHistogram
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings, simulate

JPSI = resonance("Jpsi")
BINNING = Binning(equal_eta_edges(4, 2.4), (4.0, 6.0, 40.0), JPSI.mass_window, 80, JPSI.line.mass)
U = (BINNING.mass_edges - BINNING.mass_edges[0]) / (BINNING.mass_edges[-1] - BINNING.mass_edges[0])
MODELS = ("simulation-shape", "generator-template", "gaussian", "crystal-ball")


@cache
def sample(n_events: int, seed: int, background: float = 0.0) -> MassHistogram:
    settings = SimulationSettings(JPSI, (3.9, 41.0), (-2.4, 2.4), (2.6, 3.5), background=background)
    return fill(simulate(settings, n_events, seed), BINNING)


def test_the_added_background_has_the_fraction_and_slope_of_the_data() -> None:
    data, simulation = sample(60_000, 1, 0.2), sample(100_000, 2)
    rows = np.flatnonzero(data.counts.sum(axis=1) >= 500)
    counts, simulated = (
        np.asarray(h.counts[np.searchsorted(h.bins, data.bins[rows])], dtype=np.float64)
        for h in (data, simulation)
    )
    model = signal_model(MassModel("gaussian"), simulation, rows, JPSI)
    fits = fit_bins(counts, model, "exponential")
    fraction, slope = fits.parameters[:, 2], fits.parameters[:, 3]
    added = _with_background(simulated, model, fraction, slope, "exponential") - simulated
    assert fraction.min() > 0.05
    np.testing.assert_allclose(added.sum(axis=1) / (added + simulated).sum(axis=1), fraction, rtol=1e-9)
    cdf = np.empty((3, 81))
    for row in range(len(rows)):
        background_cdf(BACKGROUNDS["exponential"], model.axis.u, slope[row], cdf)
        np.testing.assert_allclose(added[row] / added[row].sum(), np.diff(cdf[0]), rtol=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_data_equal_to_the_simulation_have_scale_one(model: str) -> None:
    same = sample(100_000, 3)
    fits = fit_masses(same, same, JPSI, MassModel(model, "none"))
    assert np.all(fits.usable)
    np.testing.assert_allclose(fits.scale, 1.0, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_background_in_the_data_alone_does_not_move_the_scale(model: str) -> None:
    """The simulation's own masses with background added without noise: a fit that left it out of the reference,
    or floated it in the data only, would be off by many times this tolerance for shapes that are not exact."""
    simulation = sample(400_000, 4)
    cdf = np.empty((3, 81))
    background_cdf(BACKGROUNDS["exponential"], U, 0.8, cdf)
    background = simulation.counts.sum(axis=1, keepdims=True) * 0.2 / 0.8 * np.diff(cdf[0])
    data = replace(simulation, counts=simulation.counts + background)
    fits = fit_masses(data, simulation, JPSI, MassModel(model))
    used = fits.usable & (fits.data.n_events > 3000)
    off = np.abs(fits.scale[used] - 1.0)
    assert np.average(off, weights=fits.data.n_events[used]) < 2e-6
    against_pure = np.abs(fits.data.scale / fits.pure.scale - 1.0)[used]
    if model == "gaussian":
        assert np.average(against_pure, weights=fits.data.n_events[used]) > 2e-5


def test_simulation_of_any_size_gives_the_same_reference() -> None:
    """The reference is fitted with the number of events of the data, so the priors weigh the same."""
    data, simulation = sample(60_000, 5, 0.15), sample(100_000, 6)
    assert simulation.generator is not None
    many = replace(simulation, counts=7 * simulation.counts, generator=7 * simulation.generator)
    few_fits, many_fits = (
        fit_masses(data, s, JPSI, MassModel("generator-template")) for s in (simulation, many)
    )
    common = np.isin(many_fits.bins, few_fits.bins)
    np.testing.assert_allclose(many_fits.reference.scale[common], few_fits.reference.scale, rtol=1e-6)
    ratio = few_fits.reference.covariance[:, 0, 0] / many_fits.reference.covariance[common, 0, 0]
    np.testing.assert_allclose(ratio, 7.0, rtol=0.02)


def test_the_statistics_of_the_simulation_are_in_the_error() -> None:
    fits = fit_masses(sample(60_000, 5, 0.15), sample(100_000, 6), JPSI, MassModel("generator-template"))
    data_alone = fits.data.covariance[:, 0, 0] / fits.data.scale**2
    assert np.all(fits.scale_variance / fits.scale**2 > 1.2 * data_alone)


def test_pull_of_the_scale_in_sparse_bins_on_much_background() -> None:
    """About a hundred events, a third of them background: the error is still one."""
    simulation = sample(400_000, 7)
    pulls = []
    for seed in range(20, 34):
        fits = fit_masses(
            sample(5_000, seed, 0.35), simulation, JPSI, MassModel("generator-template", min_events=80)
        )
        sparse = fits.usable & (fits.data.n_events < 250)
        pulls.append(((fits.scale - 1.0) / np.sqrt(fits.scale_variance))[sparse])
    together = np.concatenate(pulls)
    assert len(together) > 150
    assert np.std(together) == pytest.approx(1.0, abs=0.13)
    assert abs(np.mean(together)) < 0.25


def test_too_few_events_are_an_error_that_says_so() -> None:
    with pytest.raises(InputError, match="no 4D bin has 1000000 events"):
        fit_masses(sample(60_000, 5, 0.15), sample(100_000, 6), JPSI, MassModel(min_events=1_000_000))


def test_other_axes_are_an_error() -> None:
    other = replace(sample(100_000, 6), binning=replace(BINNING, mass_bins=40))
    with pytest.raises(InputError, match="different binnings"):
        fit_masses(sample(60_000, 5, 0.15), other, JPSI)


@pytest.mark.parametrize("wrong", [{"signal": "wave"}, {"background": "flat"}, {"min_events": 0}])
def test_unknown_models_are_errors(wrong: dict[str, str]) -> None:
    with pytest.raises(
        InputError, match=next(iter(wrong.values())) if "min_events" not in wrong else "positive"
    ):
        MassModel(**wrong)  # type: ignore[arg-type]
