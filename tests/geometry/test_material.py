"""Energy loss against the tables of the PDG, its derivative and interpolation, and what fluctuates about it."""

import math

import numpy as np
import pytest
from scipy import stats

from musclecal.constants import MUON_MASS
from musclecal.geometry.material import (
    AVERAGE,
    ELECTRON_MASS,
    GAUSS,
    LANDAU,
    SILICON,
    highland_variance,
    landau_draw,
    largest_transfer,
    loss_at,
    loss_fluctuation,
    loss_table,
    mean_loss,
    mean_loss_slope,
    most_probable_loss,
)
from musclecal.records import Floats
from musclecal.simulate import stream_of

PDG = ((0.1003, 2.608), (0.1764, 1.849), (0.2868, 1.678), (0.3633, 1.664), (0.6471, 1.714), (1.101, 1.803),
       (3.104, 1.991), (10.11, 2.177), (40.11, 2.352), (100.1, 2.451))  # fmt: skip
"""p in GeV and loss by ionisation in MeV cm2/g of muons in silicon: PDG, Atomic and nuclear properties of materials."""


@pytest.mark.parametrize(("p", "expected"), PDG)
def test_mean_loss_is_that_of_the_tables(p: float, expected: float) -> None:
    """To the last digit of the table or 5e-4."""
    assert 1e3 * mean_loss(p) == pytest.approx(expected, rel=5e-4, abs=6e-4)


def test_least_loss() -> None:
    p = np.exp(np.linspace(-2.0, 1.0, 2001))
    loss = 1e3 * mean_loss(p)
    assert loss.min() == pytest.approx(1.664, abs=1e-3)
    assert p[np.argmin(loss)] == pytest.approx(0.363, rel=0.05)


def test_slope() -> None:
    p, h = np.array([0.06, 0.1, 0.3, 1.0, 5.0, 70.0, 90.0, 1000.0]), 1e-5
    expected = (mean_loss(p * math.exp(h)) - mean_loss(p * math.exp(-h))) / (2.0 * h)
    np.testing.assert_allclose(mean_loss_slope(p), expected, rtol=1e-6, atol=1e-11)


def test_interpolation() -> None:
    loss = loss_table()
    for p in np.exp(np.linspace(math.log(0.05), math.log(2000.0), 1777)):
        value, slope = loss_at(math.log(p), loss.table, loss.first, loss.step)
        near_kink = abs(math.log10(p / MUON_MASS) - SILICON.x0) < 0.02
        assert value == pytest.approx(float(mean_loss(p)), rel=3e-5 if near_kink else 1e-7)
        assert slope == pytest.approx(float(mean_loss_slope(p)), abs=2e-5 if near_kink else 2e-8)


def test_most_probable_loss() -> None:
    """300 um of silicon at the minimum: some 84 keV, where the mean is 116 keV."""
    thickness = 0.03 * 2.329
    most = 1e6 * float(most_probable_loss(0.37, thickness))
    assert 78.0 < most < 90.0
    assert most < 1e6 * float(mean_loss(0.37)) * thickness


def test_largest_transfer() -> None:
    """A muon of 10 GeV gives at most 4.6 GeV: W = 2 m_e p^2/(mu^2 + m_e^2 + 2 m_e E)."""
    energy = math.hypot(10.0, MUON_MASS)
    expected = 2.0 * ELECTRON_MASS * 100.0 / (MUON_MASS**2 + ELECTRON_MASS**2 + 2.0 * ELECTRON_MASS * energy)
    assert largest_transfer(10.0, energy, MUON_MASS, ELECTRON_MASS) == pytest.approx(expected, rel=1e-12)


def test_landau() -> None:
    rng = stream_of(3, 0)
    drawn = np.array([landau_draw(rng) for _ in range(20_000)])
    # The distribution function at lambda = -2 .. 10 from its integral representation
    t = np.linspace(1e-9, 40.0, 400_001)
    x = np.array([-2.0, -1.0, 0.0, 1.0, 3.0, 10.0])
    density_to = [
        np.trapezoid(np.exp(-t * np.log(t)) * np.sin(math.pi * t) / (math.pi * t) * np.exp(-at * t), t)
        for at in x
    ]
    above = np.array(density_to)
    for at, expected in zip(x, above, strict=True):
        found = np.mean(drawn > at)
        assert found == pytest.approx(expected, abs=4.0 * math.sqrt(0.25 / drawn.size))


def fluctuations(kind: int, p: float, thickness: float, n: int = 40_000) -> Floats:
    rng, energy = stream_of(5, 0), math.hypot(p, MUON_MASS)
    return np.array(
        [
            loss_fluctuation(rng, kind, p, energy, MUON_MASS, ELECTRON_MASS, SILICON.xi, thickness)
            for _ in range(n)
        ]
    )


def test_no_fluctuation() -> None:
    assert not fluctuations(AVERAGE, 3.0, 0.5, 10).any()


def test_gaussian_fluctuations() -> None:
    p, thickness = 0.2, 1.0
    drawn, energy = fluctuations(GAUSS, p, thickness), math.hypot(p, MUON_MASS)
    beta2 = (p / energy) ** 2
    variance = SILICON.xi * thickness / beta2 * largest_transfer(p, energy, MUON_MASS, ELECTRON_MASS)
    sigma = math.sqrt(variance * (1.0 - 0.5 * beta2))
    assert drawn.std() == pytest.approx(sigma, rel=0.015)
    assert abs(drawn.mean()) < 4.0 * sigma / math.sqrt(drawn.size)


def test_landau_fluctuations_keep_the_mean_and_peak_below_it() -> None:
    p, thickness = 3.0, 0.7
    drawn = fluctuations(LANDAU, p, thickness, 200_000)
    mean = float(mean_loss(p)) * thickness
    assert abs(drawn.mean()) < 4.0 * drawn.std() / math.sqrt(drawn.size)
    counts, edges = np.histogram(drawn + mean, bins=np.linspace(0.5, 1.2, 71) * mean)
    smooth = np.convolve(counts, np.ones(5) / 5.0, mode="same")
    peak = 0.5 * (edges[1:] + edges[:-1])[np.argmax(smooth)]
    assert peak == pytest.approx(float(most_probable_loss(p, thickness)), rel=0.03)
    assert stats.skew(drawn) > 3.0


def test_highland() -> None:
    """PDG's formula for 1 % of a radiation length at 1 GeV: 1.134 mrad."""
    energy = math.hypot(1.0, MUON_MASS)
    expected = 0.0136 * energy * 0.1 * (1.0 + 0.038 * math.log(0.01))
    assert math.sqrt(highland_variance(1.0, energy, 0.01)) == pytest.approx(expected, rel=1e-12)
    assert highland_variance(1.0, energy, 0.0) == 0.0
