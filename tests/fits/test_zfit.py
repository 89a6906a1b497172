"""Three bins fitted with zfit: the likelihood once more, in TensorFlow with automatic gradients."""

import importlib.util
import warnings

import numpy as np
import pytest
from numpy.typing import NDArray

from musclecal.binning import Binning
from musclecal.fits.likelihood import fit_bins
from musclecal.fits.reference import bin_probabilities, fit_with_zfit
from musclecal.fits.shapes import SignalModel, breit_wigner, crystal_ball, gaussian

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("zfit") is None, reason="zfit is not installed (extra: likelihood)"
    ),
    pytest.mark.filterwarnings("ignore"),
]

JPSI = Binning((-2.4, 2.4), (4.0, 40.0), (2.85, 3.25), 40, 3.0969)
Z = Binning((-2.4, 2.4), (25.0, 100.0), (75.0, 107.0), 48, 91.188)
BINS: dict[str, tuple[SignalModel, str, tuple[float, ...], int]] = {
    "gaussian, exponential": (gaussian(JPSI, 1), "exponential", (1.001, 0.012, 0.2, 0.8), 3_000),
    "crystal ball, linear": (crystal_ball(JPSI, 1), "linear", (0.998, 0.010, 0.3, -0.3), 5_000),
    "Breit-Wigner, none": (breit_wigner(Z, 1, 2.4955), "none", (1.002, 0.015, 0.0, 0.0), 4_000),
}


@pytest.fixture(scope="module", autouse=True)
def _quiet_import() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        __import__("zfit")


def toy(name: str) -> NDArray[np.float64]:
    model, background, parameters, events = BINS[name]
    expected = events * bin_probabilities(model, background, 0, parameters)
    return np.random.default_rng(51).poisson(expected)[None, :].astype(np.float64)


@pytest.mark.parametrize("name", list(BINS))
def test_zfit_finds_the_same_minimum_and_errors(name: str) -> None:
    model, background, _, _ = BINS[name]
    counts = toy(name)
    fits = fit_bins(counts, model, background)
    reference = fit_with_zfit(counts, model, background, 0)
    floated = reference.errors > 0.0
    assert reference.valid
    assert np.count_nonzero(floated) == (2 if background == "none" else 4)
    difference = (fits.parameters[0] - reference.values)[floated] / reference.errors[floated]
    ratio = np.sqrt(np.diagonal(fits.covariance[0]))[floated] / reference.errors[floated]
    print(f"\n{name}: differences {difference} sigma, ratios of errors {ratio}")
    np.testing.assert_allclose(difference, 0.0, atol=0.01)
    np.testing.assert_allclose(ratio, 1.0, atol=0.01)
