"""The batched likelihood against iminuit bin by bin, its derivatives by differences, toys of known truth."""

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr

from musclecal.binning import Binning, equal_eta_edges
from musclecal.errors import InputError
from musclecal.fits.histogram import fill
from musclecal.fits.likelihood import (
    BACKGROUNDS,
    FitStatus,
    expected_counts,
    expected_shares,
    fit_bins,
)
from musclecal.fits.mass_fits import MassModel, signal_model
from musclecal.fits.reference import ReferenceFit, bin_probabilities, fit_with_iminuit
from musclecal.fits.shapes import MODEL_NAMES, SignalModel, gaussian
from musclecal.records import BinFits, MassHistogram
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings, first_events

Floats = NDArray[np.float64]

JPSI = resonance("Jpsi")
BINNING = Binning(equal_eta_edges(10, 2.4), (4.0, 5.5, 8.0, 40.0), JPSI.mass_window, 40, JPSI.line.mass)
ONE_BIN = Binning((-2.4, 2.4), (4.0, 40.0), JPSI.mass_window, 100, JPSI.line.mass)
MIN_EVENTS = 100
FLOATING = ("exponential", "linear")


@cache
def histogram(background: float, seed: int) -> MassHistogram:
    """200,000 simulated J/psi candidates."""
    settings = SimulationSettings(JPSI, (4.0, 40.0), (-2.4, 2.4), JPSI.mass_window, background=background)
    return fill([first_events(settings, 200_000, seed)], BINNING)


@cache
def common_rows() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    data, simulation = histogram(0.15, 1), histogram(0.0, 2)
    _, first, second = np.intersect1d(data.bins, simulation.bins, return_indices=True)
    enough = np.minimum(data.counts[first].sum(axis=1), simulation.counts[second].sum(axis=1)) >= MIN_EVENTS
    return first[enough], second[enough]


def data_counts() -> Floats:
    """(n_bin, n_mass) with 15 % background."""
    return histogram(0.15, 1).counts[common_rows()[0]].astype(np.float64)


def simulated_counts() -> Floats:
    """(n_bin, n_mass) without background."""
    return histogram(0.0, 2).counts[common_rows()[1]].astype(np.float64)


@cache
def model_of(name: str) -> SignalModel:
    return signal_model(MassModel(name), histogram(0.0, 2), common_rows()[1], JPSI)


@cache
def batch(name: str, background: str) -> BinFits:
    return fit_bins(data_counts(), model_of(name), background)


def errors_of(fits: BinFits) -> Floats:
    """(n_bin, 4)."""
    return np.asarray(np.sqrt(np.diagonal(fits.covariance, axis1=1, axis2=2)))


def compared(fits: BinFits, references: list[ReferenceFit], rows: list[int]) -> tuple[Floats, Floats]:
    """(difference in units of the reference error, ratio of errors - 1), nan for what was not floated."""
    values, errors = (np.array([getattr(r, name) for r in references]) for name in ("values", "errors"))
    sigma = np.where(errors > 0.0, errors, np.nan)
    return (fits.parameters[rows] - values) / sigma, errors_of(fits)[rows] / sigma - 1.0


def assert_agree(label: str, fits: BinFits, references: list[ReferenceFit], rows: list[int]) -> None:
    """Values within a hundredth of an error (median: a thousandth), errors within 1 %; prints both."""
    difference, ratio = (np.abs(x) for x in compared(fits, references, rows))
    n_bound = np.count_nonzero([r.at_bound.any() for r in references])
    print(f"\n{label}: {len(rows)} bins, {n_bound} with a parameter at a bound")
    for p, name in enumerate(fits.parameter_names):
        floated = np.isfinite(difference[:, p])
        if not np.any(floated):
            continue
        median, largest = np.median(difference[floated, p]), np.max(difference[floated, p])
        worst = np.max(ratio[floated, p])
        print(f"  {name}: median {median:.1e}, largest {largest:.1e} sigma; errors within {worst:.1e}")
        assert median < 1e-3
        assert largest < 0.01
        assert worst < 0.01


class TestAgainstIminuit:
    def test_two_hundred_bins_of_the_template_fit(self) -> None:
        fits, rows = batch("generator-template", "exponential"), list(range(208))
        assert len(data_counts()) >= len(rows)
        assert np.all(fits.converged)
        model = model_of("generator-template")
        references = [fit_with_iminuit(data_counts(), model, "exponential", r) for r in rows]
        assert all(r.valid for r in references)
        at_zero = [bool(r.at_bound[2]) for r in references]
        np.testing.assert_array_equal(at_zero, fits.parameters[rows, 2] == 0.0)
        assert_agree("template + exponential", fits, references, rows)

    @pytest.mark.parametrize("name", MODEL_NAMES)
    @pytest.mark.parametrize("background", list(BACKGROUNDS))
    def test_some_bins_of_every_model(self, name: str, background: str) -> None:
        fits, rows = batch(name, background), list(range(0, len(data_counts()), 27))
        references = [fit_with_iminuit(data_counts(), model_of(name), background, r) for r in rows]
        assert np.all(fits.converged[rows])
        assert_agree(f"{name} + {background}", fits, references, rows)
        cost = [nll(data_counts()[r], model_of(name), background, r, fits.parameters[r]) for r in rows]
        np.testing.assert_allclose(cost, [r.nll for r in references], atol=1e-4)

    @pytest.mark.parametrize("background", FLOATING)
    def test_bins_at_a_fraction_of_zero_are_fits_without_background(self, background: str) -> None:
        """Half of the bins of a sample without background: iminuit with the fraction fixed at zero."""
        counts, model = simulated_counts(), model_of("generator-template")
        fits = fit_bins(counts, model, background)
        rows = np.flatnonzero(fits.converged & (fits.parameters[:, 2] == 0.0)).tolist()
        assert len(rows) > 0.3 * len(counts)
        references = [fit_with_iminuit(counts, model, "none", r) for r in rows]
        assert_agree(f"template + {background}, all with a fraction of zero", fits, references, rows)
        assert np.all(fits.covariance[rows, 2:] == 0.0)

    @pytest.mark.parametrize("background", FLOATING)
    def test_no_bin_is_left_in_a_local_minimum(self, background: str) -> None:
        """Without background in the sample a fraction of zero and a small one can both be minima."""
        counts, model = simulated_counts(), model_of("crystal-ball")
        n = len(counts)
        starts = [None] + [np.tile([1.0, 0.011, 0.02, slope], (n, 1)) for slope in (-0.9, 0.9)]
        fits = [fit_bins(counts, model, background, start=start) for start in starts]
        cost = np.array(
            [[nll(counts[r], model, background, r, f.parameters[r]) for f in fits] for r in range(n)]
        )
        excess = cost[:, 0] - cost.min(axis=1)
        print(f"{background}: {np.sum(excess > 0.01)} of {n} bins, up to {excess.max():.3f} in -ln L")
        assert np.all(excess < 0.01)

    def test_every_bin_without_background_converges(self) -> None:
        assert np.all(fit_bins(simulated_counts(), model_of("generator-template"), "exponential").converged)

    @pytest.mark.parametrize("slope_prior", [0.3, 5.0])
    def test_the_prior_on_the_slope_is_in(self, slope_prior: float) -> None:
        rows, model = list(range(0, len(data_counts()), 60)), model_of("gaussian")
        fits = fit_bins(data_counts(), model, "exponential", slope_prior=slope_prior)
        references = [
            fit_with_iminuit(data_counts(), model, "exponential", r, slope_prior=slope_prior) for r in rows
        ]
        assert_agree(f"prior of {slope_prior}", fits, references, rows)

    @pytest.mark.parametrize("relative", [0.02, 0.3])
    def test_the_prior_on_the_width_is_in(self, relative: float) -> None:
        rows, model = list(range(0, len(data_counts()), 60)), model_of("gaussian")
        prior = (np.full(len(data_counts()), 0.013), relative)
        fits = fit_bins(data_counts(), model, "exponential", width_prior=prior)
        references = [
            fit_with_iminuit(data_counts(), model, "exponential", r, width_prior=(0.013, relative))
            for r in rows
        ]
        assert_agree(f"width prior of {relative}", fits, references, rows)

    def test_minos_agrees_with_hesse_at_high_statistics(self) -> None:
        """A million expected events: the likelihood is a parabola."""
        fits, model = batch("generator-template", "exponential"), model_of("generator-template")
        counts = expected_counts(fits, model, "exponential", 5)[0]
        counts = counts[None, :] * 1e6 / counts.sum()
        one = model.rows(np.array([5]))
        reference = fit_with_iminuit(counts, one, "exponential", 0, minos=True)
        again = fit_bins(counts, one, "exponential")
        assert reference.minos is not None
        np.testing.assert_allclose(reference.minos[:, 1] / errors_of(again)[0], 1.0, atol=0.01)
        np.testing.assert_allclose(-reference.minos[:, 0] / errors_of(again)[0], 1.0, atol=0.01)
        np.testing.assert_allclose(again.parameters[0, :3], fits.parameters[5, :3], rtol=1e-4)


def nll(counts: Floats, model: SignalModel, background: str, row: int, parameters: Floats) -> float:
    p = bin_probabilities(model, background, row, parameters)
    prior = 0.5 * (parameters[3] / 2.0) ** 2 if background != "none" else 0.0
    return float(prior - np.sum(counts * np.log(np.maximum(p, 1e-12))))


def probabilities(model: SignalModel, background: str, theta: Floats, row: int = 0) -> tuple[Floats, Floats]:
    """(p, dp) of the kernel at (ln scale, ln width, fraction, slope)."""
    one = model.rows(np.array([row]))
    p, dp = expected_shares(one, BACKGROUNDS[background], theta[None])
    return p[0], dp[0]


@pytest.mark.parametrize("name", ["generator-template", "gaussian", "simulation-shape"])
@pytest.mark.parametrize("background", list(BACKGROUNDS))
def test_covariance_is_the_inverse_of_second_differences(name: str, background: str) -> None:
    model, fits = model_of(name), batch(name, background)
    size = 2 if background == "none" else 4
    for row in np.flatnonzero(fits.converged & (fits.n_events > 1000) & (fits.parameters[:, 2] > 0.03))[:5]:
        best, h = fits.parameters[row], 0.02 * np.sqrt(np.diag(fits.covariance[row]))
        hessian = np.empty((size, size))
        for a in range(size):
            for b in range(size):
                value = 0.0
                for i, j in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
                    at = best.copy()
                    at[a] += i * h[a]
                    at[b] += j * h[b]
                    value += i * j * nll(data_counts()[row], model, background, int(row), at)
                hessian[a, b] = value / (4.0 * h[a] * h[b])
        inverse = np.linalg.inv(hessian)
        unit = np.sqrt(np.diag(inverse))
        off = (fits.covariance[row][:size, :size] - inverse) / np.outer(unit, unit)
        assert np.max(np.abs(off)) < (0.002 if name != "simulation-shape" else 0.02)


class TestHopeless:
    """What no fit can be made of is a status, and never takes the process with it."""

    @staticmethod
    def peak(scale: float, width: float, events: int, window: Binning = ONE_BIN) -> Floats:
        t = (window.mass_edges / window.mass_reference / scale - 1.0) / width
        return np.asarray(events * np.diff(ndtr(t)))[None]

    @pytest.mark.parametrize("name", MODEL_NAMES)
    def test_no_number_as_a_start_or_a_prior(self, name: str) -> None:
        model = model_of(name).rows(np.array([5]))
        counts = data_counts()[5:6]
        usual = fit_bins(counts, model, "exponential")
        for column in range(4):
            start = np.array([[1.0, 0.012, 0.1, 0.0]])
            start[0, column] = np.nan
            fits = fit_bins(counts, model, "exponential", start=start)
            # Further attempts have background fractions of their own
            assert fits.status[0] != FitStatus.GOOD or column == 2
            if fits.status[0] == FitStatus.GOOD:
                np.testing.assert_allclose(fits.parameters, usual.parameters, rtol=1e-3, atol=0.01)
        prior = (np.array([np.nan]), 0.1)
        assert fit_bins(counts, model, "exponential", width_prior=prior).status[0] != FitStatus.GOOD

    def test_a_peak_that_the_start_does_not_see(self) -> None:
        """200 events far from where a narrow Gaussian stands: bins below the floor have no derivative."""
        model, counts = gaussian(ONE_BIN, 1), self.peak(0.98, 0.005, 200)
        for background in ("none", "exponential"):
            fits = fit_bins(counts, model, background, start=np.array([[1.1, 1e-4, 0.1, 0.0]]))
            good = fits.status[0] == FitStatus.GOOD
            assert not good or abs(fits.scale[0] - 0.98) < 1e-3

    def test_what_is_at_the_end_of_what_is_sensible_is_not_good(self) -> None:
        counts = np.zeros((1, ONE_BIN.mass_bins))
        counts[0, 20] = 300.0
        fits = fit_bins(counts, gaussian(ONE_BIN, 1), "none")
        assert fits.status[0] == FitStatus.AT_LIMIT

    def test_starts_do_not_matter(self) -> None:
        """From widths and scales that are far off, a GOOD fit is in no worse a minimum than from the usual start."""
        model, rng = model_of("gaussian"), np.random.default_rng(3)
        counts = data_counts()
        usual = fit_bins(counts, model, "exponential")
        start = np.stack([
            rng.uniform(0.97, 1.03, len(counts)), rng.uniform(0.004, 0.04, len(counts)),
            rng.uniform(0.01, 0.8, len(counts)), rng.uniform(-3.0, 3.0, len(counts)),
        ], axis=1)  # fmt: skip
        other = fit_bins(counts, model, "exponential", start=start)
        both = np.flatnonzero(usual.converged & other.converged)
        assert len(both) > 0.97 * np.count_nonzero(usual.converged)
        worse = [
            nll(counts[n], model, "exponential", int(n), other.parameters[n])
            - nll(counts[n], model, "exponential", int(n), usual.parameters[n])
            for n in both
        ]
        assert np.quantile(worse, 0.98) < 1e-3


POINTS = (
    [0.0, np.log(0.012), 0.15, 0.5],
    [3e-3, np.log(0.008), 0.4, -0.8],
    [-4e-3, np.log(0.02), 0.01, 5e-4],
)


class TestProbabilities:
    @pytest.mark.parametrize("name", MODEL_NAMES)
    @pytest.mark.parametrize("background", list(BACKGROUNDS))
    @pytest.mark.parametrize("point", POINTS)
    def test_derivatives_are_those_of_differences(
        self, name: str, background: str, point: list[float]
    ) -> None:
        """The densities of tabulated shapes have kinks at their nodes: 1e-5 of the largest derivative."""
        model, theta = model_of(name), np.array(point)
        _, dp = probabilities(model, background, theta)
        for a in range(2 if background == "none" else 4):
            h = 2e-6 if a == 0 else 1e-5
            step = h * np.eye(4)[a]
            up, down = (probabilities(model, background, theta + s * step)[0] for s in (1.0, -1.0))
            np.testing.assert_allclose(dp[a], (up - down) / (2.0 * h), atol=1e-5 * np.max(np.abs(dp[a])))

    @pytest.mark.parametrize("name", MODEL_NAMES)
    @pytest.mark.parametrize("background", list(BACKGROUNDS))
    @pytest.mark.parametrize("point", POINTS)
    def test_values_are_those_of_numpy(self, name: str, background: str, point: list[float]) -> None:
        parameters = [np.exp(point[0]), np.exp(point[1]), *point[2:]]
        for row in (0, 100):
            p, _ = probabilities(model_of(name), background, np.array(point), row)
            np.testing.assert_allclose(
                p, bin_probabilities(model_of(name), background, row, parameters), atol=1e-11
            )
            assert p.sum() == pytest.approx(1.0, rel=1e-12)


class TestToys:
    N_TOYS, EVENTS = 2_500, 20_000

    @pytest.mark.parametrize("name", ["generator-template", "simulation-shape"])
    def test_pulls_of_poisson_toys_are_unit_gaussians(self, name: str) -> None:
        """Injected parameters come back; the width's likelihood bias is 1 % of its error at 20,000 events."""
        row, model = 5, model_of(name)
        fits = batch(name, "exponential")
        expected = expected_counts(fits, model, "exponential", row)[0]
        rng = np.random.default_rng(41)
        toys = rng.poisson(expected * self.EVENTS / expected.sum(), (self.N_TOYS, len(expected))).astype(
            np.float64
        )
        found = fit_bins(toys, model.rows(np.full(self.N_TOYS, row)), "exponential")
        assert np.all(found.converged)
        pulls = (found.parameters - fits.parameters[row])[:, :3] / errors_of(found)[:, :3]
        print(
            f"{name}: pulls of scale, width, fraction: mean {pulls.mean(axis=0)}, width {pulls.std(axis=0)}"
        )
        np.testing.assert_allclose(pulls.std(axis=0), 1.0, atol=0.05)
        np.testing.assert_allclose(pulls[:, :2].mean(axis=0), 0.0, atol=3.5 / np.sqrt(self.N_TOYS))
        chi2 = found.chi2.mean() / (found.ndf.mean() + 1.0)  # the prior fixes most of the slope
        assert chi2 == pytest.approx(1.0, abs=0.04)

    def test_pulls_of_weighted_toys_are_unit_gaussians(self) -> None:
        """Events of weight 4: the variance of a bin is four times its content, the errors twice as large."""
        row, model, weight = 5, model_of("generator-template"), 4.0
        fits = batch("generator-template", "none")
        expected = expected_counts(fits, model, "none", row)[0]
        rng = np.random.default_rng(42)
        mean = expected * self.EVENTS / expected.sum()
        toys: Floats = weight * rng.poisson(mean, (self.N_TOYS, len(expected))).astype(np.float64)
        found = fit_bins(toys, model.rows(np.full(self.N_TOYS, row)), "none", variances=weight * toys)
        assert np.all(found.converged)
        pulls = (found.parameters - fits.parameters[row])[:, :2] / errors_of(found)[:, :2]
        print(f"weighted: pulls of scale, width: mean {pulls.mean(axis=0)}, width {pulls.std(axis=0)}")
        np.testing.assert_allclose(pulls.std(axis=0), 1.0, atol=0.05)
        np.testing.assert_allclose(pulls.mean(axis=0), 0.0, atol=3.5 / np.sqrt(self.N_TOYS))

    def test_variances_scale_the_covariance(self) -> None:
        counts, model = data_counts(), model_of("gaussian")
        one, four = (fit_bins(counts, model, "exponential", variances=v * counts) for v in (1.0, 4.0))
        np.testing.assert_allclose(four.covariance, 4.0 * one.covariance, rtol=1e-10)
        np.testing.assert_array_equal(one.parameters, batch("gaussian", "exponential").parameters)
        assert np.median(
            errors_of(one)[:, 0] / errors_of(batch("gaussian", "exponential"))[:, 0]
        ) == pytest.approx(1.0, abs=0.02)

    def test_expected_counts_add_up(self) -> None:
        fits, model = batch("generator-template", "exponential"), model_of("generator-template")
        total, background = expected_counts(fits, model, "exponential", 7)
        assert total.sum() == pytest.approx(fits.n_events[7], rel=1e-12)
        assert background.sum() == pytest.approx(fits.n_events[7] - fits.n_signal[7], rel=1e-12)
        assert np.all(background < total)


def same_to_the_bit(one: BinFits, two: BinFits) -> None:
    for field in fields(BinFits):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name), err_msg=field.name)


class TestBatches:
    @pytest.mark.parametrize("threads", [1, 2, 3, 7])
    def test_any_number_of_threads_gives_the_same_bits(self, threads: int) -> None:
        fits = fit_bins(data_counts(), model_of("generator-template"), "exponential", threads=threads)
        same_to_the_bit(fits, batch("generator-template", "exponential"))

    def test_a_bin_does_not_depend_on_its_neighbours(self) -> None:
        some = np.arange(3, len(data_counts()), 17)
        alone = fit_bins(data_counts()[some], model_of("generator-template").rows(some), "exponential")
        np.testing.assert_array_equal(
            alone.parameters, batch("generator-template", "exponential").parameters[some]
        )

    def test_the_input_is_not_changed(self) -> None:
        counts, start = data_counts(), np.tile([1.0, 0.012, 0.0, 0.0], (len(data_counts()), 1))
        before = counts.copy(), start.copy()
        fit_bins(counts, model_of("gaussian"), "exponential", start=start)
        np.testing.assert_array_equal(counts, before[0])
        np.testing.assert_array_equal(start, before[1])

    def test_another_start_finds_the_same_minimum(self) -> None:
        fits = batch("generator-template", "exponential")
        start = np.tile([1.01, 0.02, 0.3, 1.0], (len(data_counts()), 1))
        again = fit_bins(data_counts(), model_of("generator-template"), "exponential", start=start)
        distance = (again.parameters - fits.parameters) / errors_of(fits)
        assert np.max(np.abs(distance)) < 0.01


class TestFailures:
    """Failed fits keep their row, status and counts, and leave the others alone."""

    def rows(self) -> tuple[Floats, SignalModel]:
        """An empty bin, one spike at the edge of the window, a flat bin, one event, between two good ones."""
        good = data_counts()[:2]
        empty, spike, one = np.zeros((3, 40))
        spike[0], one[20] = 500.0, 1.0
        flat = np.full(40, 10.0)
        return np.array([good[0], empty, spike, flat, one, good[1]]), gaussian(BINNING, 6)

    @pytest.mark.parametrize("background", list(BACKGROUNDS))
    def test_keep_their_row_status_and_counts(self, background: str) -> None:
        counts, model = self.rows()
        fits = fit_bins(counts, model, background)
        assert fits.parameters.shape == (6, 4)
        np.testing.assert_array_equal(fits.n_events, counts.sum(axis=1))
        assert fits.status[1] == FitStatus.NO_EVENTS
        assert np.all(np.isnan(fits.parameters[1]))
        if background == "none":
            assert fits.status[2] != FitStatus.GOOD
        assert set(fits.status.tolist()) <= {int(s) for s in FitStatus}
        np.testing.assert_array_equal(fits.converged, fits.status == 0)

    @pytest.mark.parametrize("background", list(BACKGROUNDS))
    def test_leave_good_bins_alone(self, background: str) -> None:
        counts, model = self.rows()
        good = np.array([0, 5])
        fits = fit_bins(counts, model, background)
        alone = fit_bins(counts[good], model.rows(good), background)
        np.testing.assert_array_equal(fits.parameters[good], alone.parameters)
        np.testing.assert_array_equal(fits.covariance[good], alone.covariance)
        assert np.all(fits.converged[good])

    def test_good_fits_have_positive_definite_covariances(self) -> None:
        fits = batch("generator-template", "exponential")
        assert np.all(np.linalg.eigvalsh(fits.covariance) > 0.0)
        np.testing.assert_allclose(fits.covariance, np.swapaxes(fits.covariance, 1, 2), rtol=1e-10)

    def test_a_template_without_lines_fails(self) -> None:
        model = model_of("generator-template")
        none = np.zeros((1, model.tables.shape[1]))
        empty = replace(model, tables=none, table_of=np.zeros(1, np.int64))
        fits = fit_bins(data_counts()[:1], empty, "exponential")
        assert fits.status[0] != FitStatus.GOOD
        assert fits.n_events[0] == data_counts()[0].sum()

    def test_degrees_of_freedom(self) -> None:
        counts = data_counts()
        assert set(fit_bins(counts, model_of("gaussian"), "none").ndf) == {40 - 1 - 2}
        assert set(batch("gaussian", "exponential").ndf) == {40 - 1 - 4}


class TestReference:
    """What the oracle itself promises."""

    def test_counts_of_another_axis_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"shape \(39,\), the model has 40"):
            fit_with_iminuit(data_counts()[:, 1:], model_of("gaussian"), "none", 0)

    def test_an_empty_bin_is_refused(self) -> None:
        with pytest.raises(InputError, match="bin 0 is empty"):
            fit_with_iminuit(np.zeros((1, 40)), model_of("gaussian"), "none", 0)

    def test_an_unknown_background_is_refused(self) -> None:
        with pytest.raises(InputError, match="unknown 'cubic'"):
            fit_with_iminuit(data_counts(), model_of("gaussian"), "cubic", 0)

    def test_any_start_leads_to_the_same_minimum(self) -> None:
        one, two = (
            fit_with_iminuit(data_counts(), model_of("gaussian"), "exponential", 3, start=start)
            for start in (None, [1.01, 0.02, 0.3, -1.0])
        )
        assert np.max(np.abs(one.values - two.values) / one.errors) < 0.01
        assert one.minos is None

    def test_parameters_that_are_not_fitted_have_no_error(self) -> None:
        fit = fit_with_iminuit(data_counts(), model_of("gaussian"), "none", 3)
        np.testing.assert_array_equal(fit.values[2:], 0.0)
        np.testing.assert_array_equal(fit.covariance[2:], 0.0)
        assert not np.any(fit.at_bound)


SCRIPT = """
import json
import numpy as np
from musclecal.binning import Binning
from musclecal.fits.likelihood import fit_bins
from musclecal.fits.shapes import breit_wigner, gaussian

axes = Binning((-2.4, 2.4), (4.0, 40.0), (2.85, 3.25), 16, 3.0969)
middles = 0.5 * (axes.mass_edges[1:] + axes.mass_edges[:-1])
counts = np.rint(20.0 + 400.0 * np.exp(-0.5 * ((middles - 3.1) / 0.04) ** 2))[None, :] * [[1.0], [2.0]]
out = []
for model in (gaussian(axes, 2), breit_wigner(axes, 2, 0.02)):
    for background in ("none", "exponential", "linear"):
        fits = fit_bins(counts, model, background, threads=1)
        out.append([fits.parameters.tolist(), fits.covariance.tolist(), fits.status.tolist()])
print(json.dumps(out))
"""


def _run(**environment: str) -> list[list[list[float]]]:
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=True,
        env={**os.environ, **environment}, cwd=root,
    )  # fmt: skip
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_kernels_give_the_same_without_compilation() -> None:
    compiled, interpreted = _run(NUMBA_DISABLE_JIT="0"), _run(NUMBA_DISABLE_JIT="1")
    for with_jit, without in zip(compiled, interpreted, strict=True):
        assert with_jit[2] == without[2] == [0, 0]
        np.testing.assert_allclose(without[0], with_jit[0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(without[1], with_jit[1], rtol=1e-6, atol=1e-14)
