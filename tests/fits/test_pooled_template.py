"""The pooled generator template: shapes, tilts, and the noise it is there to remove."""

from dataclasses import replace

import numpy as np
import pytest

from musclecal.binning import Binning, equal_eta_edges
from musclecal.errors import InputError
from musclecal.fits.histogram import fill
from musclecal.fits.mass_fits import MassModel, fit_masses
from musclecal.fits.shapes.pooled_template import pooled_template, tilted
from musclecal.records import MassHistogram
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings, first_events

Z = resonance("Z")
BINNING = Binning(equal_eta_edges(6, 2.4), (25.0, 40.0, 46.0, 100.0), Z.mass_window, 64, Z.line.mass, True)


def sample(n: int, seed: int, window: tuple[float, float]) -> MassHistogram:
    return fill([first_events(SimulationSettings(Z, (20.0, 120.0), (-2.4, 2.4), window), n, seed)], BINNING)


@pytest.fixture(scope="module")
def simulation() -> MassHistogram:
    return sample(150_000, 2, (66.0, 119.0))


def test_tilts_are_recovered_from_noiseless_counts() -> None:
    u = np.linspace(-1.0, 1.0, 101)
    basis = np.stack([u, u * u], axis=1)
    table = 1.0 / (1.0 + 50.0 * u * u)
    true = table * np.exp(basis @ np.array([[0.5, -0.3], [-1.0, 0.2]]).T).T
    true /= true.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(tilted(1e9 * true, table, basis), true, rtol=1e-5)


def test_no_counts_leave_the_table() -> None:
    table, basis = np.array([0.2, 0.5, 0.3]), np.array([[-1.0], [0.0], [1.0]])
    np.testing.assert_allclose(tilted(np.zeros((1, 3)), table, basis)[0], table)


def test_tables_are_shares_close_to_the_counts(simulation: MassHistogram) -> None:
    assert simulation.generator is not None
    events = simulation.generator.sum(axis=1)
    rows = np.argsort(-events)[:20]
    model = pooled_template(simulation, rows)
    np.testing.assert_allclose(model.tables.sum(axis=1), 1.0)
    peak = np.abs(BINNING.generator_masses - Z.line.mass) < 3.0
    expected = simulation.generator[rows][:, peak].sum(axis=1) / events[rows]
    np.testing.assert_allclose(
        model.tables[:, peak].sum(axis=1), expected, atol=4.0 * np.sqrt(0.25 / events[rows[-1]])
    )


def test_the_noise_of_a_bin_does_not_widen_the_data(simulation: MassHistogram) -> None:
    """With the template of the bin itself the data would be wider than the simulation by a third in w^2."""
    data = sample(100_000, 1, (74.0, 108.5))
    excess = {}
    for name in ("generator-template", "pooled-template"):
        fits = fit_masses(data, simulation, Z, MassModel(name, "none", 300, 0.5))
        weight = fits.data.n_events[fits.usable]
        one, two = fits.data.width[fits.usable] ** 2, fits.pure.width[fits.usable] ** 2
        excess[name] = np.average(one, weights=weight) / np.average(two, weights=weight) - 1.0
    assert abs(excess["pooled-template"]) < 0.12
    assert excess["generator-template"] > excess["pooled-template"] + 0.1


def test_generator_masses_are_needed(simulation: MassHistogram) -> None:
    with pytest.raises(
        InputError, match="model pooled-template: the simulation has no generator-level muons"
    ):
        pooled_template(replace(simulation, generator=None), np.arange(3))
