"""The reduction of 4D bins against plain least squares, permuted labels, noiseless shifts and injected truth."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.optimize import brentq

from musclecal.apply import correct
from musclecal.binning import TemplateBinning, equal_eta_edges
from musclecal.errors import InputError
from musclecal.fits.scale_information import (
    InformationSolution,
    eta_design,
    scale_information,
    solve_information,
)
from musclecal.fits.template_closure import LogDerivatives, bin_information, log_derivatives, selected
from musclecal.fits.templates import fill_templates
from musclecal.records import Floats, Ints, ScaleParameters, TemplateHistogram
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings, simulate

RNG = np.random.default_rng(61)
SMALL = TemplateBinning(
    (-1.0, 0.0, 1.0), (-1.0, 0.0, 1.0), (10.0, 90.0), (5.0, 95.0), (80.0, 100.0), 12, 91.0
)
SLOPE_PRIOR = 0.4


def histogram(
    binning: TemplateBinning, bins: Ints | None, counts: Floats, **other: object
) -> TemplateHistogram:
    numbers = np.arange(binning.n_bins) if bins is None else bins
    mean_k = np.full((len(numbers), 2), 0.02)
    derivatives = np.zeros((*counts.shape, 8))
    return TemplateHistogram(binning, numbers, counts, derivatives, mean_k, **other)  # type: ignore[arg-type]


def random_derivatives(binning: TemplateBinning, size: float = 1.0) -> LogDerivatives:
    table = size * RNG.normal(size=(binning.n_bins, binning.mass_bins, 8))
    return LogDerivatives(binning, np.arange(binning.n_bins), table, 0.3 * RNG.normal(size=table.shape))


def random_cells(binning: TemplateBinning = SMALL) -> tuple[TemplateHistogram, TemplateHistogram, Floats]:
    """Data, simulation and purity; some cells are empty in one of them, or in both."""
    shape = (binning.n_bins, binning.mass_bins)
    data, simulation = RNG.poisson(3.0, shape).astype(float), RNG.poisson(9.0, shape).astype(float)
    data[1, 3] = simulation[1, 3] = data[2, 5] = simulation[3, 7] = 0.0
    return (
        histogram(binning, None, data),
        histogram(binning, None, simulation),
        RNG.uniform(0.3, 1.0, shape),
    )


def dense_fit(
    n: Floats, simulation: Floats, f: Floats, g: Floats, own_width: bool, background: bool
) -> tuple[Floats, Floats, float, float]:
    """Normal matrix, vector, chi2, ndf of one 4D bin: own parameters removed with `numpy.linalg.lstsq`."""
    pooled = n + simulation
    ratio = brentq(lambda r: np.sum(n - r / (r + f) * pooled), 1e-6, 1e6, xtol=1e-15, rtol=1e-14)
    p = ratio / (ratio + f)
    there = pooled > 0.0
    all_events = pooled.sum()
    finite = (all_events - 1.0) / all_events
    variance = (p * (1.0 - p) * pooled)[there]
    sigma = np.sqrt(finite / variance)
    g = (g * (f / (1.0 - (1.0 - f) * p))[:, None])[there]
    z = np.linspace(-1.0, 1.0, len(n))[there]
    b = (1.0 - f)[there]
    own = [np.ones_like(b)] + [g[:, 3] + g[:, 7]] * own_width + [b, b * z] * background
    columns = np.stack([*own, *g.T, finite * (p * pooled - n)[there] / variance], axis=1)
    table = columns / sigma[:, None]
    known = 0.0
    if background:
        others, slope = table[:, : len(own) - 1], table[:, len(own) - 1]
        slope = slope - others @ np.linalg.lstsq(others, slope, rcond=None)[0]
        known = float(slope @ slope / (slope @ slope + 1.0 / SLOPE_PRIOR**2))
        prior = np.zeros((1, table.shape[1]))
        prior[0, len(own) - 1] = 1.0 / SLOPE_PRIOR
        table = np.concatenate([table, prior])
    mine, rest = table[:, : len(own)], table[:, len(own) :]
    rest = rest - mine @ np.linalg.lstsq(mine, rest, rcond=None)[0]
    x, r = rest[:, :-1], rest[:, -1]
    return x.T @ x, x.T @ r, float(r @ r), len(table) - len(own) - known


class TestAgainstDenseLeastSquares:
    @pytest.mark.parametrize("own_width", [False, True])
    @pytest.mark.parametrize("background", [False, True])
    def test_every_bin(self, own_width: bool, background: bool) -> None:
        data, simulation, purity = random_cells()
        derivatives = random_derivatives(SMALL)
        reduced = bin_information(
            data, simulation, derivatives, purity=purity if background else None, own_width=own_width,
            slope_prior=SLOPE_PRIOR,
        )  # fmt: skip
        assert len(reduced.bins) == SMALL.n_bins
        for b in range(SMALL.n_bins):
            f = purity[b] if background else np.ones(SMALL.mass_bins)
            normal, vector, chi2, ndf = dense_fit(
                data.counts[b], simulation.counts[b], f, derivatives.table[b], own_width, background
            )
            noise, *_ = dense_fit(
                data.counts[b], simulation.counts[b], f, derivatives.noise[b], False, background
            )
            seen = np.ones(8, dtype=np.bool_)
            if own_width:
                seen[[3, 7]] = False
                np.testing.assert_array_equal(reduced.normal[b][~seen], 0.0)
                np.testing.assert_array_equal(reduced.vector[b][~seen], 0.0)
            else:
                np.testing.assert_allclose(reduced.noise[b], noise, rtol=1e-8, atol=1e-8)
            both = np.ix_(seen, seen)
            np.testing.assert_allclose(reduced.normal[b][both], normal[both], rtol=1e-8, atol=1e-8)
            np.testing.assert_allclose(reduced.vector[b][seen], vector[seen], rtol=1e-8, atol=1e-8)
            assert reduced.chi2[b] == pytest.approx(chi2, rel=1e-9)
            assert reduced.ndf[b] == pytest.approx(ndf, rel=1e-9)

    def test_a_background_where_there_is_none_counts_no_parameter(self) -> None:
        """Purity 1: the column of the background is empty, its slope stays at its prior."""
        data, simulation, _ = random_cells()
        derivatives = random_derivatives(SMALL)
        without = bin_information(data, simulation, derivatives)
        pure = bin_information(data, simulation, derivatives, purity=np.ones_like(data.counts))
        for name in ("normal", "noise", "vector", "chi2", "ndf"):
            np.testing.assert_allclose(getattr(pure, name), getattr(without, name), rtol=1e-12)

    def test_many_blocks_and_threads_give_the_same_bits(self) -> None:
        binning = replace(SMALL, eta_edges=equal_eta_edges(12, 2.4))
        data, simulation, purity = random_cells(binning)
        derivatives = random_derivatives(binning)
        one, two = (bin_information(data, simulation, derivatives, purity=purity, threads=n) for n in (1, 3))
        for name in ("normal", "noise", "vector", "chi2", "ndf"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))

    def test_bins_with_data_or_simulation_alone_are_not_used(self) -> None:
        data, simulation, _ = random_cells()
        data.counts[0] = 0.0
        data = replace(data, bins=data.bins[:-1], counts=data.counts[:-1], mean_k=data.mean_k[:-1])
        simulation.counts[1] = 0.0
        reduced = bin_information(data, simulation, random_derivatives(SMALL))
        assert reduced.bins.tolist() == list(range(2, SMALL.n_bins - 1))
        assert reduced.events_selected == data.counts.sum()
        assert reduced.events.sum() == data.counts[2:].sum()
        chosen = selected(reduced, np.arange(len(reduced.bins)) != 0)
        assert chosen.events_selected == data.counts.sum() - data.counts[2].sum()
        assert chosen.events.sum() == data.counts[3:].sum()


def smooth_sample() -> tuple[Floats, Floats, LogDerivatives]:
    """Expected signal in the simulation, the ratio of data to it, and derivatives of ln(signal)."""
    z = (SMALL.mass_centres - 91.0) / 3.0
    shape = np.exp(-0.5 * z**2) + 0.05
    signal = 1e4 * shape * RNG.uniform(0.5, 2.0, (SMALL.n_bins, 1))
    slope = z * np.exp(-0.5 * z**2) / shape
    table = np.zeros((SMALL.n_bins, SMALL.mass_bins, 8))
    for p in range(8):
        table[:, :, p] = slope * RNG.uniform(0.5, 1.5) + 0.3 * RNG.normal(size=(SMALL.n_bins, 1)) * z**2 * (
            p % 4 == 3
        )
        table[:, :, p] += 0.2 * RNG.normal(size=table.shape[:2])
    return (
        signal,
        RNG.uniform(0.1, 0.5, (SMALL.n_bins, 1)),
        LogDerivatives(SMALL, np.arange(SMALL.n_bins), table, np.zeros_like(table)),
    )


def region_shifts(x: Floats) -> Floats:
    """(n_bins, 8) shifts of both muons of every 4D bin from (n_eta, 4)."""
    plus, minus, _, _ = SMALL.unravel(np.arange(SMALL.n_bins))
    return np.concatenate([x[plus], x[minus]], axis=1)


def solved(
    data: TemplateHistogram, simulation: TemplateHistogram, g: LogDerivatives, **options: object
) -> InformationSolution:
    information = scale_information(bin_information(data, simulation, g, **options), "Z")  # type: ignore[arg-type]
    return solve_information(information, eta_design(information, ("A", "e", "M", "width")))


class TestNoiselessShifts:
    """Data that the correction x takes to the simulation give x back, with its sign, to first order."""

    X = 1e-6 * np.array([[3.0, -2.0, 1.0, 2.0], [-1.0, 2.5, -3.0, 1.0]])

    def test_without_background(self) -> None:
        signal, ratio, g = smooth_sample()
        change = np.einsum("bmp,bp->bm", g.table, region_shifts(self.X))
        data = histogram(SMALL, None, ratio * signal / (1.0 + change))
        solution = solved(data, histogram(SMALL, None, signal), g)
        np.testing.assert_allclose(solution.values, self.X.ravel(), rtol=1e-4)
        assert solution.chi2 < 1e-6

    def test_with_background(self) -> None:
        """Derivatives of the pooled counts are diluted by the background; amount and slope may be wrong."""
        signal, ratio, g = smooth_sample()
        z = np.linspace(-1.0, 1.0, SMALL.mass_bins)
        background = 800.0 * ratio * np.exp(-0.4 * z)
        change = np.einsum("bmp,bp->bm", g.table, region_shifts(self.X))
        pure = ratio * signal / (ratio * signal + background)
        pooled = signal + ratio * signal + background
        diluted = replace(g, table=g.table * ((pooled - background) / pooled)[:, :, None])
        wrong = background * (1.0 + 1e-6 * (1.0 + 2.0 * z))
        data = histogram(SMALL, None, ratio * signal / (1.0 + change) + wrong)
        solution = solved(data, histogram(SMALL, None, signal), diluted, purity=pure, slope_prior=1e3)
        np.testing.assert_allclose(solution.values, self.X.ravel(), rtol=1e-4)

    def test_a_width_per_bin_is_taken_out(self) -> None:
        signal, ratio, g = smooth_sample()
        x = region_shifts(self.X)
        x[:, [3, 7]] = 1e-6 * RNG.normal(size=(SMALL.n_bins, 1))
        change = np.einsum("bmp,bp->bm", g.table, x)
        data = histogram(SMALL, None, ratio * signal / (1.0 + change))
        information = scale_information(
            bin_information(data, histogram(SMALL, None, signal), g, own_width=True), "Z"
        )
        solution = solve_information(information, eta_design(information, ("A", "e", "M")))
        np.testing.assert_allclose(solution.values, self.X[:, :3].ravel(), rtol=1e-4)


def test_few_events_in_a_bin_answer_to_a_shift_as_many() -> None:
    """One data and four simulated events in each of 80,000 bins: an answer without K/(K - 1) is 25 % too large."""
    binning = replace(SMALL, pt_edges=tuple(np.linspace(10.0, 90.0, 10_001)))
    rng = np.random.default_rng(62)
    g = np.linspace(-1.0, 1.0, SMALL.mass_bins) * np.sqrt(3.0)
    injected, expected = 0.2, np.full((binning.n_bins, SMALL.mass_bins), 1.0 / SMALL.mass_bins)
    data = histogram(binning, None, rng.poisson(expected * np.exp(-injected * g)).astype(float))
    simulation = histogram(binning, None, rng.poisson(4.0 * expected).astype(float))
    table = np.zeros((binning.n_bins, SMALL.mass_bins, 8))
    table[:, :, 0] = g
    derivatives = LogDerivatives(binning, np.arange(binning.n_bins), table, 0.0 * table)
    bins = bin_information(data, simulation, derivatives)
    information = bins.normal[:, 0, 0].sum()
    pull = (bins.vector[:, 0].sum() / information - injected) * np.sqrt(information)
    assert abs(pull) < 3.0
    assert 1.0 / np.sqrt(information) < 0.04 * injected


class TestPermutedLabels:
    """Which events are called data is drawn at random: every ingredient but the labels stays the same."""

    N = 300

    def draws(self, weight_spread: float) -> tuple[Floats, Floats, Floats]:
        """Values, their mean chi2 over the number of parameters, and chi2/ndf of the fits."""
        rng = np.random.default_rng(62)
        signal, _, g = smooth_sample()
        pooled = rng.poisson(0.02 * signal).astype(float)
        values, chi2, fits = [], [], []
        for _ in range(self.N):
            n = rng.binomial(pooled.astype(np.int64), 0.3).astype(float)
            data, simulation = histogram(SMALL, None, n), histogram(SMALL, None, pooled - n)
            if weight_spread > 0.0:
                simulation = self.weighted(simulation, weight_spread, rng)
            solution = solved(data, simulation, g)
            values.append(solution.values)
            chi2.append(solution.values @ np.linalg.solve(solution.covariance, solution.values) / 8.0)
            fits.append(solution.chi2 / solution.ndf)
        return np.array(values), np.array(chi2), np.array(fits)

    def weighted(
        self, simulation: TemplateHistogram, spread: float, rng: np.random.Generator
    ) -> TemplateHistogram:
        """As many events as before, drawn anew with weights 1 +- spread times 7: the same expectation times 7."""
        heavy = rng.binomial(simulation.counts.astype(np.int64), 0.5)
        light = simulation.counts - heavy
        up, down = 7.0 * (1.0 + spread), 7.0 * (1.0 - spread)
        return replace(
            simulation, counts=up * heavy + down * light, variances=up**2 * heavy + down**2 * light
        )

    def test_give_zero_and_unit_pulls(self) -> None:
        values, chi2, fits = self.draws(0.0)
        pulls = values.mean(axis=0) / (values.std(axis=0) / np.sqrt(self.N))
        assert np.abs(pulls).max() < 3.5
        assert chi2.mean() == pytest.approx(1.0, abs=3.0 * np.sqrt(2.0 / 8.0 / self.N))
        assert fits.mean() == pytest.approx(1.0, abs=0.02)

    def test_give_unit_pulls_with_weighted_simulation(self) -> None:
        values, chi2, fits = self.draws(0.8)
        pulls = values.mean(axis=0) / (values.std(axis=0) / np.sqrt(self.N))
        assert np.abs(pulls).max() < 3.5
        assert chi2.mean() == pytest.approx(1.0, abs=0.08)
        assert fits.mean() == pytest.approx(1.0, abs=0.02)

    @pytest.mark.parametrize("slope_prior", [0.05, 0.5, 50.0])
    def test_the_chi2_is_its_ndf_with_background(self, slope_prior: float) -> None:
        """Whatever the prior of the slope decides: nothing in a weak one, all in a strong one."""
        rng = np.random.default_rng(63)
        signal, _, g = smooth_sample()
        pure = 1.0 / (1.0 + np.linspace(1.0, 0.5, SMALL.mass_bins) * 3e3 / signal)
        p = 0.3 / (0.3 + pure)
        chi2, ndf = 0.0, 0.0
        for _ in range(1_500):
            pooled = rng.poisson(0.05 * signal)
            n = rng.binomial(pooled, p).astype(float)
            data, simulation = histogram(SMALL, None, n), histogram(SMALL, None, pooled - n)
            reduced = bin_information(data, simulation, g, purity=pure, slope_prior=slope_prior)
            chi2, ndf = chi2 + reduced.chi2.sum(), ndf + reduced.ndf.sum()
        assert chi2 / ndf == pytest.approx(1.0, abs=3.0 * np.sqrt(2.0 / ndf))

    def test_weighted_data_count_as_what_they_are(self) -> None:
        """All weights 3, in data or simulation: as without weights, but for the sums of weights themselves."""
        data, simulation, _ = random_cells()
        g = random_derivatives(SMALL)
        plain = bin_information(data, simulation, g)

        def tripled(h: TemplateHistogram) -> TemplateHistogram:
            return replace(h, counts=3.0 * h.counts, variances=9.0 * h.counts)

        for weighted in (
            bin_information(tripled(data), simulation, g),
            bin_information(data, tripled(simulation), g),
        ):
            for name in ("normal", "noise", "vector", "chi2", "ndf"):
                np.testing.assert_allclose(
                    getattr(weighted, name), getattr(plain, name), rtol=1e-9, atol=1e-9
                )


ETA = equal_eta_edges(6, 2.4)
Z_BINNING = TemplateBinning(
    ETA, (-1.0, -0.2, -0.1, 0.0, 0.1, 0.2, 1.0), (10.0, 200.0), (25.0, 100.0), (75.0, 107.0), 32, 91.19
)
TRUTH = ScaleParameters(
    np.array(ETA),
    2.5e-3 * np.array([1.0, -0.6, 0.3, -0.8, 0.9, -0.4]),
    np.zeros(6),
    1e-4 * np.array([-0.4, 0.7, 0.5, -0.6, -0.3, 0.8]),
)


def z_settings(**other: object) -> SimulationSettings:
    return SimulationSettings(resonance("Z"), (22.0, 120.0), (-2.4, 2.4), (68.0, 116.0), **other)  # type: ignore[arg-type]


@cache
def simulated() -> TemplateHistogram:
    return fill_templates(simulate(z_settings(), 800_000, seed=63), Z_BINNING, step=0.01)


@cache
def measured(injected: bool) -> TemplateHistogram:
    settings = z_settings(truth=TRUTH if injected else None)
    return fill_templates(simulate(settings, 200_000, seed=64), Z_BINNING, step=0.01)


def closure(data: TemplateHistogram) -> InformationSolution:
    return solved_for(data, simulated(), ("A", "M", "width"))


def solved_for(
    data: TemplateHistogram, simulation: TemplateHistogram, names: tuple[str, ...]
) -> InformationSolution:
    information = scale_information(bin_information(data, simulation, log_derivatives(data, simulation)), "Z")
    assert information.events_fraction > 0.999
    solution = solve_information(information, eta_design(information, names))
    return solution.only([i for i, label in enumerate(solution.labels) if not label.startswith("width")])


def chi2_per_parameter(solution: InformationSolution, truth: Floats) -> float:
    d = solution.values - truth
    return float(d @ np.linalg.solve(solution.covariance, d) / len(d))


class TestOnTheZ:
    truth = np.stack([TRUTH.A, TRUTH.M], axis=1).ravel()

    def test_the_injected_correction_is_found(self) -> None:
        solution = closure(measured(True))
        assert solution.labels[:2] == ("A[-2.4, -1.6]", "M[-2.4, -1.6]")
        assert chi2_per_parameter(solution, self.truth) < 2.2
        assert solution.chi2 / solution.ndf == pytest.approx(1.0, abs=0.05)
        for p in (0, 1):
            found, wanted = solution.values[p::2], self.truth[p::2]
            weight = np.linalg.inv(solution.covariance[p::2, p::2])
            slope = wanted @ weight @ found / (wanted @ weight @ wanted)
            assert slope == pytest.approx(1.0, abs=float(3.5 / np.sqrt(wanted @ weight @ wanted)))
            assert 1.0 / np.sqrt(wanted @ weight @ wanted) < 0.1

    @pytest.mark.parametrize("wrong", [(-1.0, 1.0), (1.0, -1.0), (0.5, 1.0), (1.0, 2.0)])
    def test_other_signs_and_factors_would_be_seen(self, wrong: tuple[float, float]) -> None:
        assert chi2_per_parameter(closure(measured(True)), self.truth * np.tile(wrong, 6)) > 6.0

    def test_exchanged_charges_would_be_seen(self) -> None:
        """The muons of the other charge's eta: A stays, M changes its sign."""
        settings = z_settings(truth=TRUTH)
        swapped = fill_templates(
            (replace(e, plus=e.minus, minus=e.plus) for e in simulate(settings, 200_000, seed=64)),
            Z_BINNING, step=0.01,
        )  # fmt: skip
        solution = closure(swapped)
        assert chi2_per_parameter(solution, self.truth) > 6.0
        assert chi2_per_parameter(solution, self.truth * np.tile([1.0, -1.0], 6)) < 2.2

    def test_e_has_the_sign_of_the_correction(self) -> None:
        """e alone, in simulation with e = 0.1 GeV everywhere."""
        zero = np.zeros(6)
        data = fill_templates(
            simulate(z_settings(truth=ScaleParameters(np.array(ETA), zero, zero + 0.1, zero)), 200_000, seed=65),
            Z_BINNING, step=0.01,
        )  # fmt: skip
        solution = solved_for(data, simulated(), ("e", "M", "width"))
        e = solution.only(range(0, 12, 2))
        assert chi2_per_parameter(e, zero + 0.1) < 2.5
        weight = np.linalg.inv(e.covariance)
        assert (weight @ e.values).sum() / np.sqrt(weight.sum()) > 10.0

    def test_noise_in_the_derivatives_is_not_taken_for_information(self) -> None:
        """One M for all muons, in the same events as without: too little smoothing gives 0.8 of it in this sample."""
        m = np.full(6, 3e-5)
        injected = ScaleParameters(np.array(ETA), np.zeros(6), np.zeros(6), -m)
        chunks = (correct(events, injected) for events in simulate(z_settings(), 200_000, seed=64))
        found = closure(fill_templates(chunks, Z_BINNING, step=0.01))
        change = found.only(range(1, 12, 2)).values - closure(measured(False)).only(range(1, 12, 2)).values
        weight = np.linalg.inv(found.only(range(1, 12, 2)).covariance)
        assert 0.9 < (m @ weight @ change) / (m @ weight @ m) < 1.05

    def test_nothing_injected_nothing_found(self) -> None:
        solution = closure(measured(False))
        assert chi2_per_parameter(solution, np.zeros(12)) < 2.2

    def test_weights_of_one_change_nothing(self) -> None:
        ones = fill_templates(
            simulate(z_settings(), 800_000, seed=63), Z_BINNING, step=0.01, weight=lambda e: np.ones(len(e))
        )
        weighted = solved_for(measured(True), ones, ("A", "M", "width"))
        np.testing.assert_allclose(weighted.values, closure(measured(True)).values, rtol=1e-4, atol=1e-10)

    def test_more_in_quadrature_is_a_negative_width(self) -> None:
        """The correction that would take away what the data have more; diluted a little in so small a sample."""
        resolution = z_settings().resolution
        data = fill_templates(
            simulate(z_settings(resolution=replace(resolution, a=resolution.a + 2.5e-5)), 200_000, seed=66),
            Z_BINNING, step=0.01,
        )  # fmt: skip
        information = scale_information(
            bin_information(data, simulated(), log_derivatives(data, simulated())), "Z"
        )
        solution = solve_information(information, eta_design(information, ("A", "M", "width")))
        width = solution.only(range(2, 18, 3))
        weight = np.linalg.inv(width.covariance)
        mean, error = (weight @ width.values).sum() / weight.sum(), 1.0 / np.sqrt(weight.sum())
        assert -2.5e-5 - 3.0 * error < mean < -3.0 * error


class TestDerivatives:
    def test_of_one_eta_cell_are_the_ratio_of_the_sums(self) -> None:
        """With cells much wider than the smoothing: derivatives over counts, data and simulation together."""
        binning = replace(Z_BINNING, eta_edges=(-24.0, 0.0, 24.0))
        chunks = list(simulate(z_settings(), 20_000, seed=67))
        data, simulation = (
            fill_templates([chunks[0].select(rows)], binning, step=0.01)
            for rows in np.split(np.arange(20_000), [5_000])
        )
        g = log_derivatives(data, simulation)
        together = fill_templates(chunks, binning, step=0.01)
        counts = together.counts[:, :, None]
        expected = np.where(counts > 0, together.derivatives / np.where(counts > 0, counts, 1.0), 0.0)
        np.testing.assert_array_equal(g.bins, together.bins)
        np.testing.assert_allclose(g.table, expected, rtol=1e-9, atol=1e-9)

    def test_which_sample_is_called_data_does_not_matter(self) -> None:
        data, simulation = measured(False), simulated()
        np.testing.assert_allclose(
            log_derivatives(data, simulation).table,
            log_derivatives(simulation, data).table,
            rtol=1e-9,
            atol=1e-9,
        )

    def test_are_smoothed_along_the_diagonal(self) -> None:
        """A slope that is the same in all cells stays; noise falls."""
        binning = replace(SMALL, eta_edges=equal_eta_edges(24, 2.4))
        counts = np.full((binning.n_bins, binning.mass_bins), 10.0)
        noise = RNG.normal(size=(*counts.shape, 8))
        one = replace(histogram(binning, None, counts), derivatives=10.0 * (1.0 + noise))
        none = replace(one, counts=0.0 * counts, derivatives=0.0 * noise)
        table = log_derivatives(none, one).table
        assert table.mean() == pytest.approx(1.0, abs=0.01)
        assert table[..., [0, 1, 2]].std() < 0.5 * noise.std()
        assert table[..., 3].std() < 0.8 * table[..., 0].std()

    def test_a_bin_that_only_shifted_pairs_reach_is_harmless(self) -> None:
        chunks = list(simulate(z_settings(), 3_000, seed=68))
        weighted = fill_templates(chunks, Z_BINNING, step=0.05, weight=lambda e: np.full(len(e), 0.5))
        assert np.any(weighted.counts.sum(axis=1) == 0.0)
        assert np.all(np.isfinite(log_derivatives(measured(False), weighted).table))


class TestErrors:
    def test_other_axes(self) -> None:
        data, simulation, _ = random_cells()
        other = replace(simulation, binning=replace(SMALL, mass_window=(79.0, 100.0)))
        with pytest.raises(InputError, match="different axes"):
            bin_information(data, other, random_derivatives(SMALL))
        with pytest.raises(InputError, match="must have the same axes"):
            log_derivatives(data, other)
        with pytest.raises(InputError, match="derivatives of other axes"):
            bin_information(data, simulation, random_derivatives(other.binning))

    def test_phi_sectors_share_the_derivatives_of_the_whole(self) -> None:
        binning = replace(SMALL, phi_sectors=2)
        data, simulation, _ = random_cells(binning)
        with pytest.raises(InputError, match="without phi sectors"):
            log_derivatives(data, simulation)
        g = random_derivatives(SMALL)
        reduced = bin_information(data, simulation, g)
        b = 27
        whole = int(binning.without_phi(b))
        normal, vector, _, _ = dense_fit(
            data.counts[b], simulation.counts[b], np.ones(SMALL.mass_bins), g.table[whole], False, False
        )
        np.testing.assert_allclose(reduced.normal[b], normal, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(reduced.vector[b], vector, rtol=1e-9, atol=1e-9)

    def test_derivatives_that_were_not_filled(self) -> None:
        data, simulation, _ = random_cells()
        bare = replace(simulation, derivatives=np.zeros((*simulation.counts.shape, 0)))
        with pytest.raises(InputError, match="without derivatives"):
            log_derivatives(data, bare)

    def test_derivatives_of_other_samples(self) -> None:
        data, simulation, _ = random_cells()
        g = random_derivatives(SMALL)
        some = LogDerivatives(SMALL, g.bins[:-2], g.table[:-2], g.noise[:-2])
        with pytest.raises(InputError, match="no derivatives for 2 4D bins, first 6"):
            bin_information(data, simulation, some)

    def test_a_purity_of_another_histogram(self) -> None:
        data, simulation, purity = random_cells()
        with pytest.raises(InputError, match="purity"):
            bin_information(data, simulation, random_derivatives(SMALL), purity=purity[1:])

    def test_samples_that_never_meet(self) -> None:
        data, simulation, _ = random_cells()
        half = len(data.bins) // 2
        low = replace(data, bins=data.bins[:half], counts=data.counts[:half], mean_k=data.mean_k[:half])
        high = replace(simulation, bins=simulation.bins[half:], counts=simulation.counts[half:])
        with pytest.raises(InputError, match="no 4D bin has both"):
            bin_information(low, high, random_derivatives(SMALL))
