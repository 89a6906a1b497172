"""Averages of waves over pairs of sectors against events, and the sum over 4D bins against a loop."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from musclecal.binning import TemplateBinning, sector_of
from musclecal.errors import InputError
from musclecal.fits.phi_waves import (
    common_wave_designs,
    count_angles,
    wave_averages,
    wave_designs,
    wave_information,
)
from musclecal.fits.scale_information import solve_information
from musclecal.fits.template_closure import BinInformation
from musclecal.records import DimuonEvents, Floats, Ints, Muons

RNG = np.random.default_rng(17)
S = 7
AXES = TemplateBinning(
    (-2.4, -0.7, 1.1, 2.4), (-1.0, 0.0, 1.0), (10.0, 90.0), (5.0, 95.0), (60.0, 110.0), 12, 91.0, S
)
HARMONICS = (1, 3)
N_BIN = 300


def pairs(n: int) -> DimuonEvents:
    """Nearly back to back, the same all around; masses of 75 to 100 GeV, all eta and both signs of the asymmetry."""
    phi = RNG.uniform(-np.pi, np.pi, n)
    other = phi + np.pi + 0.3 * RNG.normal(size=n) + 0.1
    other = np.arctan2(np.sin(other), np.cos(other))
    eta, other_eta = RNG.uniform(-2.4, 2.4, n), RNG.uniform(-2.4, 2.4, n)
    pt = RNG.uniform(42.0, 48.0, n) / np.cosh(0.5 * (eta - other_eta))
    one, two = Muons(pt, eta, phi), Muons(pt * RNG.uniform(0.95, 1.05, n), other_eta, other)
    return DimuonEvents(one, two)


EVENTS = pairs(300_000)
ANGLES = count_angles([EVENTS], AXES)


def sectors(muons: Muons) -> Ints:
    return np.array([sector_of(phi, S) for phi in muons.phi])


@pytest.mark.parametrize("harmonic", [1, 2, 3])
def test_averages_are_those_of_events(harmonic: int) -> None:
    averages = wave_averages(ANGLES.sum(axis=0), S, harmonic)
    cell = sectors(EVENTS.plus) * S + sectors(EVENTS.minus)
    n = np.bincount(cell, minlength=S * S)
    for muon, muons in enumerate((EVENTS.plus, EVENTS.minus)):
        for part, wave in ((averages.real, np.cos), (averages.imag, np.sin)):
            mean = np.bincount(cell, wave(harmonic * muons.phi), S * S) / np.maximum(n, 1)
            found = part[:, :, muon].ravel()[n > 500]
            tolerance = 5.0 * harmonic * 0.3 / np.sqrt(n[n > 500])
            assert np.all(np.abs(found - mean[n > 500]) < tolerance)


def test_angles_are_counted_inside_the_axes() -> None:
    assert ANGLES.sum() == len(EVENTS)
    assert ANGLES.shape == (10, 1440)
    np.testing.assert_array_equal(count_angles([EVENTS, EVENTS], AXES), 2 * ANGLES)
    low = EVENTS.with_momenta(np.full(len(EVENTS), 0.1), EVENTS.minus.pt)
    with pytest.raises(InputError, match="no pair inside the mass window"):
        count_angles([low], AXES)
    turn = replace(EVENTS, plus=replace(EVENTS.plus, phi=EVENTS.plus.phi + 2.0 * np.pi))
    assert np.abs(count_angles([turn], AXES) - ANGLES).sum() <= 4


def bin_information() -> BinInformation:
    bins = np.sort(RNG.choice(AXES.n_bins, N_BIN, replace=False))
    roots = RNG.normal(size=(N_BIN, 12, 8))
    normal = np.einsum("brp,brq->bpq", roots, roots)
    return BinInformation(
        AXES, bins, normal, RNG.normal(size=(N_BIN, 8)), RNG.uniform(5.0, 20.0, N_BIN), RNG.uniform(8.0, 14.0, N_BIN),
        RNG.uniform(1.0, 9.0, N_BIN), 5e3, RNG.uniform(0.01, 0.05, (N_BIN, 2)), 0.05 * normal,
    )  # fmt: skip


@cache
def averages_of(kind: int, harmonic: int) -> NDArray[np.complex128]:
    return wave_averages(ANGLES[kind], S, harmonic)


def shifts_of(coefficients: Floats, bins: BinInformation) -> Floats:
    """(n_bin, 8) average shifts of both muons for coefficients (n_eta, n_term, 4)."""
    plus, minus, asymmetry, _ = bins.binning.unravel(bins.bins)
    out = np.zeros((len(bins.bins), 8))
    for b, (p, m, a) in enumerate(zip(plus, minus, asymmetry, strict=True)):
        # Middles of the eta bins are -1.55, 0.2, 1.75: separations below 0.8, 1.6, 2.4, 3.2, 4.
        kind = {0: 0, 1: 2, 2: 4}[abs(int(p // S) - int(m // S))]
        kind = 1 if {p // S, m // S} == {1, 2} else kind
        averages = [averages_of(2 * kind + a, h) for h in HARMONICS]
        for muon, region in enumerate((p, m)):
            waves = [average[p % S, m % S, muon] for average in averages]
            terms = np.array([1.0, *(x for w in waves for x in (w.real, w.imag))])
            out[b, 4 * muon : 4 * muon + 4] = terms @ coefficients[region // S]
    return out


def test_is_the_sum_of_the_bins_chi2() -> None:
    bins = bin_information()
    information = wave_information(bins, ANGLES, HARMONICS, "Z")
    coefficients = RNG.normal(size=(3, 5, 4))
    x, flat = shifts_of(coefficients, bins), coefficients.ravel()
    by_hand = bins.chi2.sum() - 2.0 * np.sum(bins.vector * x) + np.einsum("bp,bpq,bq", x, bins.normal, x)
    total = information.chi2 - 2.0 * information.vector @ flat + flat @ information.normal @ flat
    assert total == pytest.approx(by_hand, rel=1e-11)
    noise = np.einsum("bp,bpq,bq", x, bins.noise, x)
    assert flat @ information.noise @ flat == pytest.approx(noise, rel=1e-11)
    assert information.events_used == pytest.approx(bins.events.sum())
    assert information.phi_sectors == 5


def test_noiseless_coefficients_come_back() -> None:
    """A, M of every term, widths of the constant term: to rounding, whatever the design names them."""
    coefficients = RNG.normal(size=(3, 5, 4))
    coefficients[:, :, 1] = coefficients[:, 1:, 3] = 0.0
    bins = replace(bin_information(), noise=np.zeros((N_BIN, 8, 8)))
    vector = np.einsum("bpq,bq->bp", bins.normal, shifts_of(coefficients, bins))
    information = wave_information(replace(bins, vector=vector), ANGLES, HARMONICS, "Z")
    solution = solve_information(information, *wave_designs(information))
    np.testing.assert_allclose(solution.values[:30].reshape(3, 5, 2), coefficients[:, :, [0, 2]], rtol=1e-8)
    np.testing.assert_allclose(solution.values[30:], coefficients[:, 0, 3], rtol=1e-8)
    coefficients[:, 1:] = 0.0
    coefficients[:, 3:, 0], coefficients[:, 3:, 2] = (0.3, -0.4), (0.1, 0.2)
    vector = np.einsum("bpq,bq->bp", bins.normal, shifts_of(coefficients, bins))
    information = wave_information(replace(bins, vector=vector), ANGLES, HARMONICS, "Z")
    solution = solve_information(information, *common_wave_designs(information, HARMONICS, 3))
    np.testing.assert_allclose(solution.values[-4:], [0.3, -0.4, 0.1, 0.2], rtol=1e-8)
    assert solution.labels[-4:] == ("A cos(3 phi)", "A sin(3 phi)", "M cos(3 phi)", "M sin(3 phi)")
