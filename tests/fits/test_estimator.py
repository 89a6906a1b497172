"""Moments of the width score: against closed forms for a Gaussian, and against many toys."""

import numpy as np
import pytest

from musclecal.binning import Binning
from musclecal.fits.estimator import score_moments
from musclecal.fits.likelihood import expected_counts, fit_bins
from musclecal.fits.shapes import gaussian
from musclecal.records import BinFits, Floats

BINNING = Binning((-1.0, 1.0), (4.0, 40.0), (2.6, 3.6), 160, 3.0969)
PRIOR = 0.02


def one_bin(*parameters: float) -> Floats:
    return np.array([parameters])


def test_gaussian_with_a_free_mean() -> None:
    """I = 2, var U = 2 N, E[U] = -1: textbook."""
    moments = score_moments(gaussian(BINNING, 1), "none", one_bin(1.0, 0.012, 0.0, 0.0))
    np.testing.assert_allclose(moments.information, 2.0, rtol=0.02)
    np.testing.assert_allclose(moments.spread, moments.information, rtol=1e-12)
    np.testing.assert_allclose(moments.mean, -1.0, rtol=0.02)


def test_background_without_noise_has_less_spread() -> None:
    parameters = one_bin(1.0, 0.012, 0.3, 0.5)
    both = score_moments(gaussian(BINNING, 1), "exponential", parameters)
    signal = score_moments(gaussian(BINNING, 1), "exponential", parameters, signal_noise=True)
    np.testing.assert_allclose(both.spread, both.information, rtol=1e-9)
    assert signal.spread[0] < 0.95 * both.spread[0]
    np.testing.assert_allclose(signal.information, both.information, rtol=1e-12)
    assert both.information[0] < 2.0 * 0.7


def test_one_bin_does_not_know_of_another() -> None:
    model, parameters = gaussian(BINNING, 300), np.tile(one_bin(1.0, 0.012, 0.1, 0.0), (300, 1))
    parameters[:, 1] *= np.linspace(0.8, 1.2, 300)
    whole = score_moments(model, "exponential", parameters)
    some = np.array([0, 150, 299])
    alone = score_moments(model.rows(some), "exponential", parameters[some])
    np.testing.assert_array_equal(whole.mean[some], alone.mean)


def as_fit(parameters: Floats) -> BinFits:
    """Fits that ended at ``parameters``, with one event each."""
    n = len(parameters)
    zero, one = np.zeros(n), np.ones(n)
    whole = np.zeros(n, dtype=np.int64)
    names = ("scale", "width", "background_fraction", "background_slope")
    return BinFits(names, parameters, np.zeros((n, 4, 4)), whole, zero, zero, whole, one, one, whole)


@pytest.mark.parametrize(("background", "fraction"), [("none", 0.0), ("exponential", 0.2)])
def test_toys_have_these_moments(background: str, fraction: float) -> None:
    n_toys, events, width = 8_000, 60, 0.012
    model = gaussian(BINNING, n_toys)
    parameters = np.tile(one_bin(1.0, width, fraction, 0.3 if fraction else 0.0), (n_toys, 1))
    shares = expected_counts(as_fit(parameters), model, background, 0)[0]
    counts = np.random.default_rng(5).poisson(events * shares, (n_toys, len(shares))).astype(np.float64)
    prior = (np.full(n_toys, width), PRIOR)
    fits = fit_bins(counts, model, background, start=parameters, width_prior=prior)
    score = np.log(fits.width / width)[fits.converged] / PRIOR**2
    moments = score_moments(model, background, parameters[:1])
    # The prior lets the width move a little, and takes I/(I + 1/prior^2) off the score. Second order in 1/N: a fifth.
    share = 1.0 / (1.0 + events * moments.information[0] * PRIOR**2)
    np.testing.assert_allclose(score.var(), events * moments.spread[0] * share**2, rtol=0.1)
    error = score.std() / np.sqrt(len(score))
    assert abs(score.mean() / share - moments.mean[0]) < 4.0 * error / share + 0.2 * abs(moments.mean[0])
