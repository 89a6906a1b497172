"""The resolution that drives the fast reference, measured on mass widths alone."""

import numpy as np
import pytest

from musclecal.binning import Binning, equal_eta_edges
from musclecal.errors import InputError
from musclecal.fits.fast_resolution import measured_resolution
from musclecal.fits.histogram import fill
from musclecal.records import Floats, MassHistogram
from musclecal.resonances import resonance
from musclecal.simulate import ResolutionModel, SimulationSettings, first_events

N_ETA = 6
JPSI = resonance("Jpsi")
BINNING = Binning(equal_eta_edges(N_ETA, 2.4), (4.0, 6.0, 9.0, 40.0), JPSI.mass_window, 80, JPSI.line.mass)


def injected() -> ResolutionModel:
    """In the eta bins of the measurement, larger on one side."""
    a = np.array([0.020, 0.014, 0.010, 0.009, 0.012, 0.017]) ** 2
    return ResolutionModel(
        np.array(BINNING.eta_edges), a, np.zeros(N_ETA), np.full(N_ETA, (1.5e-4) ** 2), np.full(N_ETA, 370.0)
    )


def relative_width(model: ResolutionModel, pt: float) -> Floats:
    return np.sqrt(model.a + model.c * pt**2 + model.b / (1.0 + model.d / pt**2))


def histogram(background: float) -> MassHistogram:
    settings = SimulationSettings(
        JPSI, (3.9, 41.0), (-2.4, 2.4), (2.8, 3.3), injected(), background=background
    )
    return fill([first_events(settings, 100_000, 31)], BINNING)


@pytest.fixture(scope="module")
def clean() -> MassHistogram:
    return histogram(0.0)


def test_the_injected_resolution_comes_back(clean: MassHistogram) -> None:
    found = measured_resolution(clean, JPSI, "none", 50)
    np.testing.assert_array_equal(found.eta_edges, BINNING.eta_edges)
    np.testing.assert_allclose(relative_width(found, 8.0), relative_width(injected(), 8.0), rtol=0.05)


def test_background_does_not_widen_it() -> None:
    found = measured_resolution(histogram(0.15), JPSI, "exponential", 50)
    np.testing.assert_allclose(relative_width(found, 8.0), relative_width(injected(), 8.0), rtol=0.05)


def test_what_cannot_be_measured_stays_physical(clean: MassHistogram) -> None:
    found = measured_resolution(clean, JPSI, "none", 50)
    assert np.all(found.a > 0.0)
    assert np.all(found.c >= 0.0)
    assert np.all(found.b == 0.0)
    assert np.all(np.isfinite(relative_width(found, 40.0)))


def test_too_few_events_are_refused(clean: MassHistogram) -> None:
    with pytest.raises(InputError, match="no 4D bin has 100000000 events"):
        measured_resolution(clean, JPSI, "none", 100_000_000)
