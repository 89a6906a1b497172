"""The accuracy recipe in small: injected truth comes back, and each classical mistake would be seen.

2e5 J/psi with 15 % background, 8e5 simulated, 6 eta bins, pT edges 4, 6, 40 GeV, generator template, two passes. The
truth, far larger than a detector's, is injected through the exact inverse and fitted through the linear model. Bars:
chi2/18 < 2.4 and |L(6)| < 8e-5, L(pT) the error of dk/k averaged over eta bins and charges.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from musclecal.apply import correct, corrected_pt
from musclecal.binning import Binning, equal_eta_edges
from musclecal.fits.histogram import fill
from musclecal.fits.mass_fits import MassModel, fit_masses
from musclecal.fits.scale_fit import fit_scale, scale_calibration
from musclecal.records import (
    DimuonEvents,
    MassFits,
    MassHistogram,
    ScaleCalibration,
    ScaleParameters,
)
from musclecal.resonances import resonance
from musclecal.scale import relative_correction
from musclecal.simulate import SimulationSettings, first_events

N_ETA = 6
MAX_CHI2 = 2.4
MAX_L6 = 8e-5

JPSI = resonance("Jpsi")
BINNING = Binning(equal_eta_edges(N_ETA, 2.4), (4.0, 6.0, 40.0), JPSI.mass_window, 80, JPSI.line.mass)
MODEL = MassModel("generator-template")

Correct = Callable[[DimuonEvents, ScaleParameters], DimuonEvents]
Fit = Callable[[MassFits, ScaleCalibration | None], ScaleCalibration]


def truth() -> ScaleParameters:
    edges = np.array(BINNING.eta_edges)
    x, i = 0.5 * (edges[1:] + edges[:-1]) / 2.4, np.arange(N_ETA)
    forward = np.where(x >= 0.0, 0.8, 1.0)
    return ScaleParameters(
        edges,
        1e-3 * np.cos(3.0 * x) * forward,
        5e-3 * (1.0 + 0.4 * x) * forward,
        np.where(i % 2 == 0, 1e-4, -1e-4) * forward,
    )


@dataclass(frozen=True)
class Sample:
    """Data with the truth in them, the unbiased simulation, and the first pass of the right code."""

    events: DimuonEvents
    simulation: MassHistogram
    fits: MassFits
    first: ScaleCalibration

    def refit(self, scale: ScaleParameters, apply: Correct = correct) -> MassFits:
        corrected = fill([apply(self.events, scale)], BINNING)
        return fit_masses(corrected, self.simulation, JPSI, MODEL)


@pytest.fixture(scope="module")
def sample() -> Sample:
    pure = SimulationSettings(JPSI, muon_pt=(3.9, 40.5), eta_range=(-2.4, 2.4), mass_window=(2.8, 3.3))
    data = replace(pure, truth=truth(), background=0.15)
    events = first_events(data, int(2e5 / 0.85 * 1.05), 101)
    simulation = fill([first_events(pure, int(8e5 * 1.05), 102)], BINNING)
    fits = fit_masses(fill([events], BINNING), simulation, JPSI, MODEL)
    return Sample(events, simulation, fits, scale_calibration(fits))


@dataclass(frozen=True)
class Verdict:
    chi2: float
    l6: float

    @property
    def good(self) -> bool:
        return self.chi2 < MAX_CHI2 and abs(self.l6) < MAX_L6


def verdict(result: ScaleCalibration, name: str) -> Verdict:
    difference = result.parameters - truth().parameters
    d = difference.reshape(N_ETA, 3)
    l6 = np.mean([relative_correction(6.0, q, d[:, 0], d[:, 1], d[:, 2]) for q in (1, -1)])
    chi2 = difference @ np.linalg.solve(result.covariance, difference) / len(difference)
    print(f"{name}: chi2/18 = {chi2:.2f}, L(6 GeV) = {1e5 * l6:+.1f}e-5")
    return Verdict(float(chi2), float(l6))


def test_the_truth_comes_back(sample: Sample) -> None:
    assert sample.fits.events_fraction > 0.99
    second = scale_calibration(sample.refit(sample.first), sample.first)
    first, final = verdict(sample.first, "one pass"), verdict(second, "two passes")
    assert final.good
    assert first.good
    assert 0.7 < second.chi2 / second.ndf < 1.4
    assert second.residual_chi2 is not None
    assert second.residual_chi2 < 0.15


def flipped(name: str) -> Correct:
    """Corrects with one of the signs wrong."""

    def apply(events: DimuonEvents, scale: ScaleParameters) -> DimuonEvents:
        change = {name: -getattr(scale, name)}
        return correct(events, ScaleParameters(**{key: getattr(scale, key) for key in KEYS} | change))

    return apply


KEYS = ("eta_edges", "A", "e", "M")


def without_charge(events: DimuonEvents, scale: ScaleParameters) -> DimuonEvents:
    return events.with_momenta(corrected_pt(events.plus, +1, scale), corrected_pt(events.minus, +1, scale))


@pytest.mark.parametrize(
    ("name", "apply"),
    [("e flip", flipped("e")), ("M flip", flipped("M")), ("charge forgotten", without_charge)],
)
def test_a_mistake_in_the_application_is_seen(sample: Sample, name: str, apply: Correct) -> None:
    """The second pass, on muons that were corrected wrongly, finds what is left."""
    second = scale_calibration(sample.refit(sample.first, apply), sample.first)
    assert not verdict(second, name).good
    assert second.residual_chi2 is not None
    assert second.residual_chi2 > 10.0


def with_scale(fits: MassFits, scale: np.ndarray, share_of_error: float) -> MassFits:
    """The fits with another s_b, whose error is ``share_of_error`` of what it was."""
    data, reference = fits.data, fits.reference
    parameters, covariance = data.parameters.copy(), data.covariance.copy()
    no_error = np.zeros_like(reference.covariance)
    parameters[:, 0] = scale * reference.scale
    covariance[:, 0, 0] = share_of_error**2 * fits.scale_variance * reference.scale**2
    return replace(
        fits,
        data=replace(data, parameters=parameters, covariance=covariance),
        reference=replace(reference, covariance=no_error),
    )


def no_square(fits: MassFits, before: ScaleCalibration | None) -> ScaleCalibration:
    """s where s^2 belongs: the right code fed with the square root."""
    return scale_calibration(with_scale(fits, np.sqrt(fits.scale), 0.5), before)


def pdg_reference(fits: MassFits, before: ScaleCalibration | None) -> ScaleCalibration:
    """The mass of the table as the reference, not the fit to the simulation."""
    return scale_calibration(with_scale(fits, fits.data.scale, 1.0), before)


def energy_loss_dropped(fits: MassFits, before: ScaleCalibration | None) -> ScaleCalibration:
    """A and M alone; the covariance is that of the full fit."""
    assert before is None
    solution = fit_scale(fits, ("A", "M"))
    a, m = solution.values.T.copy()
    return replace(scale_calibration(fits), A=a, e=np.zeros(N_ETA), M=m)


@pytest.mark.parametrize(
    ("name", "fit"),
    [("no square", no_square), ("e dropped", energy_loss_dropped), ("PDG mass as reference", pdg_reference)],
)
def test_a_mistake_in_the_fit_is_seen(sample: Sample, name: str, fit: Fit) -> None:
    assert not verdict(fit(sample.fits, None), name).good


def test_no_square_is_seen_by_truth_and_not_by_the_fit(sample: Sample) -> None:
    """The reason for truth: the fit's own chi2 does not notice (physics.md section 6.3)."""
    wrong = no_square(sample.fits, None)
    assert wrong.chi2 / wrong.ndf == pytest.approx(sample.first.chi2 / sample.first.ndf, abs=0.1)


def test_the_pieces_of_the_mistakes_are_right_by_themselves(sample: Sample) -> None:
    """With nothing changed the roundabout ways above give the right result."""
    same = scale_calibration(with_scale(sample.fits, sample.fits.scale, 1.0))
    np.testing.assert_allclose(same.parameters, sample.first.parameters, rtol=0.0, atol=1e-9)
    np.testing.assert_allclose(same.covariance, sample.first.covariance, rtol=1e-6, atol=1e-20)
