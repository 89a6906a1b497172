"""Resolution from widths and from residuals: algebra without noise, toys with the covariance, the chain on truth."""

from dataclasses import replace

import numpy as np
import pytest

from musclecal.binning import Binning, equal_eta_edges
from musclecal.errors import InputError
from musclecal.fits.histogram import fill
from musclecal.fits.residuals import core_variance, fill_residuals, joined_residuals
from musclecal.fits.resolution import (
    data_resolution,
    fit_generator_resolution,
    fit_resolution,
    resolution_model,
    smearing_difference,
    smearing_variations,
    variance_at,
)
from musclecal.fits.widths import fit_widths, share_of_muons
from musclecal.records import Floats, MassWidths, MuonResiduals, Resolution
from musclecal.resonances import resonance
from musclecal.simulate import ResolutionModel, SimulationSettings, first_events

N_ETA = 6
EDGES = equal_eta_edges(N_ETA, 2.4)
D = np.full(N_ETA, 370.0)
A = np.array([0.015, 0.011, 0.009, 0.0095, 0.012, 0.016]) ** 2
C = np.array([3.0, 2.0, 1.3, 1.4, 2.1, 3.2]) ** 2 * 1e-8
B = np.array([2.0, 1.0, 0.0, 0.5, 1.5, 2.5]) * 1e-5
ZERO = np.zeros(N_ETA)


def model(a: Floats = A, c: Floats = C, b: Floats = ZERO) -> ResolutionModel:
    return ResolutionModel(np.array(EDGES), a, b, c, D)


def flat(resolution: Resolution | ResolutionModel, names: tuple[str, ...] = ("a", "c")) -> Floats:
    """Parameters in the order of the covariance."""
    return np.stack([getattr(resolution, name) for name in names], axis=1).ravel()


def made_widths(
    data: ResolutionModel, simulation: ResolutionModel, name: str, pt_edges: tuple[float, ...]
) -> MassWidths:
    """The w^2 of every 4D bin by the formula of physics.md section 3, f and pT at random, without noise."""
    r = resonance(name)
    binning = Binning(EDGES, pt_edges, r.mass_window, 40, r.line.mass)
    bins = np.arange(binning.n_bins)
    axes = binning.unravel(bins)
    rng = np.random.default_rng(1)
    low, high = np.array(pt_edges)[:-1], np.array(pt_edges)[1:]
    pt = np.stack([rng.uniform(low[axes[n]], high[axes[n]]) for n in (2, 3)], axis=1)
    f = rng.uniform(0.97, 0.9975, pt.shape)
    squares = []
    for m in (data, simulation):
        sigma2 = [
            m.a[axes[n]] + m.c[axes[n]] * pt[:, n] ** 2 + m.b[axes[n]] / (1.0 + m.d[axes[n]] / pt[:, n] ** 2)
            for n in (0, 1)
        ]
        squares.append(0.25 * (f[:, 0] ** 2 * sigma2[0] + f[:, 1] ** 2 * sigma2[1]))
    n_events = rng.integers(100, 3000, len(bins)).astype(np.float64)
    error = squares[0] * np.sqrt(2.0 / n_events)
    return MassWidths(
        binning, name, "none", bins, squares[0], error, squares[1], 0.5 * error, n_events, pt, pt**2, f, 1.0
    )


def both(data: ResolutionModel, simulation: ResolutionModel) -> tuple[MassWidths, MassWidths]:
    return (
        made_widths(data, simulation, "Jpsi", (4.0, 6.0, 9.0, 20.0)),
        made_widths(data, simulation, "Z", (25.0, 38.0, 46.0, 60.0)),
    )


class TestAlgebra:
    @pytest.mark.parametrize("kind", ["data", "simulation", "difference"])
    @pytest.mark.parametrize("fit_b", [False, True])
    def test_noiseless_widths_give_the_truth(self, kind: str, fit_b: bool) -> None:
        data, simulation = model(b=B if fit_b else ZERO), model(0.9 * A, 1.3 * C, 0.5 * B if fit_b else ZERO)
        names = ("a", "c", "b") if fit_b else ("a", "c")
        found = fit_resolution(both(data, simulation), kind, fit_b=fit_b)
        expected = {"data": flat(data, names), "simulation": flat(simulation, names)}
        expected["difference"] = expected["data"] - expected["simulation"]
        size = np.sqrt(np.diagonal(found.covariance))
        np.testing.assert_allclose(flat(found, names) / size, expected[kind] / size, rtol=0.0, atol=1e-6)
        assert found.parameter_names == names
        assert found.names[: len(names)] == tuple(f"{name}0" for name in names)
        assert found.chi2 < 1e-9
        assert found.source == ("Jpsi", "Z")

    def test_data_are_simulation_plus_difference(self) -> None:
        widths = both(model(), model(0.9 * A, 1.3 * C))
        parts = [fit_resolution(widths, kind) for kind in ("simulation", "difference")]
        total = data_resolution(*parts)
        np.testing.assert_allclose(total.a, A, rtol=1e-6)
        np.testing.assert_allclose(total.c, C, rtol=1e-6)
        np.testing.assert_array_equal(total.covariance, parts[0].covariance + parts[1].covariance)
        assert total.kind == "data"
        with pytest.raises(InputError, match="other eta bins, parameters or d"):
            data_resolution(parts[0], fit_resolution(widths, fit_b=True))

    def test_the_spread_of_pt_inside_a_bin_counts(self) -> None:
        """c goes with the average of pT^2; with the square of the average c would come out 20 % too large."""
        widths = [replace(w, mean_pt2=1.2 * w.mean_pt**2) for w in both(model(), model())]
        np.testing.assert_allclose(fit_resolution(widths, "data").c, C / 1.2, rtol=1e-6)

    def test_negative_differences_are_not_clipped(self) -> None:
        found = fit_resolution(both(model(0.9 * A, 0.5 * C), model()))
        np.testing.assert_allclose(found.a, -0.1 * A, rtol=1e-6)
        np.testing.assert_allclose(found.c, -0.5 * C, rtol=1e-6)


class TestStatistics:
    def test_toys_have_unit_pulls(self) -> None:
        """200 sets of widths with their errors: chi2 against the truth, the covariance, the chi2 of the fit."""
        clean, rng = both(model(), model(0.9 * A)), np.random.default_rng(3)
        truth = flat(model()) - flat(model(0.9 * A))
        pulls, chi2, fit_chi2 = [], [], []
        for _ in range(200):
            toys = [
                replace(
                    w,
                    data=rng.normal(w.data, w.data_error),
                    simulation=rng.normal(w.simulation, w.simulation_error),
                )
                for w in clean
            ]
            found = fit_resolution(toys)
            off = flat(found) - truth
            pulls.append(off / np.sqrt(np.diagonal(found.covariance)))
            chi2.append(off @ np.linalg.solve(found.covariance, off))
            fit_chi2.append(found.chi2 / found.ndf)
        assert np.all(np.abs(np.mean(pulls, axis=0)) < 4.0 / np.sqrt(200))
        np.testing.assert_allclose(
            np.mean(chi2) / len(truth), 1.0, atol=4.0 * np.sqrt(2.0 / len(truth) / 200)
        )
        np.testing.assert_allclose(np.mean(fit_chi2), 1.0, atol=0.02)


class TestRefusals:
    def test_an_eta_bin_without_widths(self) -> None:
        widths = both(model(), model())[0]
        i, j, _, _ = widths.binning.unravel(widths.bins)
        kept = np.flatnonzero((i != 2) & (j != 2))
        fields = (
            "bins",
            "data",
            "data_error",
            "simulation",
            "simulation_error",
            "mean_pt",
            "mean_pt2",
            "mean_f",
        )
        widths = replace(widths, **{name: getattr(widths, name)[kept] for name in fields})
        with pytest.raises(InputError, match=r"eta bin 2 \(-0\.8 to 0\) has no fitted width"):
            fit_resolution([widths])

    def test_one_momentum_does_not_tell_a_from_c(self) -> None:
        widths = both(model(), model())[0]
        same = replace(widths, mean_pt2=np.full_like(widths.mean_pt2, 50.0))
        with pytest.raises(
            InputError, match=r"do not fix [ac] of eta bin .*: add a resonance with other momenta"
        ):
            fit_resolution([same])

    def test_other_eta_bins_and_kinds(self) -> None:
        one, two = both(model(), model())
        other = replace(two, binning=replace(two.binning, eta_edges=equal_eta_edges(N_ETA, 2.0)))
        with pytest.raises(InputError, match="same eta bins"):
            fit_resolution([one, other])
        with pytest.raises(InputError, match="at least one resonance"):
            fit_resolution([])
        with pytest.raises(InputError, match="kind must be difference, data or simulation"):
            fit_resolution([one], "mc")
        with pytest.raises(InputError, match="a difference of data and simulation is needed, not data"):
            smearing_difference(fit_resolution([one, two], "data"))


class TestSmearing:
    def test_what_is_clipped_is_the_variance_at_a_pt(self) -> None:
        """A larger a with a smaller c is smeared at low pT, and the share of ln pT beyond is told."""
        difference = fit_resolution(both(model(1.1 * A, 0.9 * C), model()))
        extra = smearing_difference(difference)
        np.testing.assert_allclose(extra.a, 0.1 * A, rtol=1e-6)
        np.testing.assert_allclose(extra.c, -0.1 * C, rtol=1e-6)
        low, high = difference.pt_range.T
        crossing = np.sqrt(A / C)
        beyond = np.clip(np.log(high / crossing) / np.log(high / low), 0.0, 1.0)
        np.testing.assert_allclose(extra.clipped, beyond, atol=0.011)
        np.testing.assert_allclose(
            variance_at(extra, np.array([5.0])), variance_at(difference, np.array([5.0]))
        )

    def test_the_model_for_simulation_has_no_negative_coefficients(self) -> None:
        difference = fit_resolution(both(model(0.9 * A, 1.1 * C), model()))
        clipped = resolution_model(difference)
        np.testing.assert_array_equal(clipped.a, 0.0)
        np.testing.assert_allclose(clipped.c, 0.1 * C, rtol=1e-6)

    def test_variations_sum_to_the_covariance(self) -> None:
        difference = fit_resolution(both(model(1.1 * A), model()), fit_b=True)
        extra, variations = smearing_difference(difference), smearing_variations(difference)
        assert len(variations) == 3 * N_ETA
        shifts = np.array([
            np.stack([getattr(v, name) - getattr(extra, name) for name in ("a", "c", "b")], axis=1).ravel()
            for v in variations
        ])  # fmt: skip
        sigma = np.sqrt(np.diagonal(difference.covariance))
        scaled = (shifts / sigma).T @ (shifts / sigma)
        np.testing.assert_allclose(scaled, difference.covariance / np.outer(sigma, sigma), atol=1e-9)


class TestResiduals:
    @staticmethod
    def made(variance: Floats, n: int) -> MuonResiduals:
        """Gaussian residuals, no noise: expected counts rounded."""
        from scipy.stats import norm

        edges = np.linspace(-0.25, 0.25, 1001)
        pt_edges = np.array([4.0, 6.0, 10.0, 20.0, 40.0])
        pt = np.broadcast_to(np.sqrt(pt_edges[1:] * pt_edges[:-1]), variance.shape)
        counts = np.rint(n * np.diff(norm.cdf(edges / np.sqrt(variance)[:, :, None], 0.0, 1.0), axis=2))
        return MuonResiduals(np.array(EDGES), pt_edges, counts.astype(np.int64), 0.25, pt, pt**2, 0)

    def test_gaussian_variance_comes_back_and_tails_are_left_out(self) -> None:
        truth = np.full((N_ETA, 4), 1.5e-4)
        residuals = self.made(truth, 10**9)
        # The cut is at whole bins of the residual, 0.04 sigma wide.
        np.testing.assert_allclose(core_variance(residuals)[0], truth, rtol=2e-4)
        with_tail = residuals.counts.copy()
        with_tail[:, :, [10, 990]] += 5_000_000
        np.testing.assert_allclose(core_variance(replace(residuals, counts=with_tail))[0], truth, rtol=2e-4)

    def test_noiseless_cells_give_the_truth(self) -> None:
        pt = np.sqrt(np.array([24.0, 60.0, 200.0, 800.0]))
        for fit_b in (False, True):
            m = model(b=B if fit_b else ZERO)
            found = fit_generator_resolution(self.made(variance_at(m, pt), 10**11), fit_b=fit_b)
            np.testing.assert_allclose(variance_at(found, pt), variance_at(m, pt), rtol=2e-4)

    def test_an_eta_bin_without_muons(self) -> None:
        residuals = self.made(np.full((N_ETA, 4), 1e-4), 1000)
        residuals.counts[4] = 0
        with pytest.raises(InputError, match=r"eta bin 4 \(0\.8 to 1\.6\) has no fitted width"):
            fit_generator_resolution(residuals)

    def test_chunks_do_not_matter_and_the_sign_is_that_of_k(self) -> None:
        settings = SimulationSettings(resonance("Jpsi"), (3.8, 41.0), (-2.4, 2.4), (2.5, 3.6), model())
        sample = first_events(settings, 5000, 4)
        edges = np.array([4.3, 6.0, 10.0, 30.0])
        whole = fill_residuals([sample], np.array(EDGES), edges)
        parts = [sample.select(np.arange(n, min(n + 777, 5000))) for n in range(0, 5000, 777)]
        pieces = fill_residuals(parts, np.array(EDGES), edges, threads=2)
        np.testing.assert_array_equal(whole.counts, pieces.counts)
        np.testing.assert_array_equal(whole.mean_pt2, pieces.mean_pt2)
        assert whole.mean_pt2[2, 1] > whole.mean_pt[2, 1] ** 2
        low = sample.with_momenta(0.9 * sample.plus.pt, 0.9 * sample.minus.pt)
        middle = np.average(
            np.arange(1000), weights=fill_residuals([low], np.array(EDGES), edges).counts.sum(axis=(0, 1))
        )
        assert middle > 650  # a lower pT is a larger k: + 0.11 of 0.25

    def test_generator_level_muons_are_needed(self) -> None:
        settings = SimulationSettings(resonance("Jpsi"), (3.8, 41.0), (-2.4, 2.4), (2.5, 3.6))
        sample = replace(first_events(settings, 100, 4), gen_plus=None, gen_minus=None)
        with pytest.raises(InputError, match="no generator-level muons"):
            fill_residuals([sample], np.array(EDGES), np.array([4.0, 40.0]))


def settings(
    name: str, resolution: ResolutionModel, beyond: float, background: float = 0.0
) -> SimulationSettings:
    r = resonance(name)
    room = 0.2 if r.pt_scaled else 0.03
    window = (r.mass_window[0] * (1.0 - beyond), r.mass_window[1] * (1.0 + beyond))
    pt = (r.pt_edges[0] * (1.0 - room), r.pt_edges[-1] * (1.0 + room))
    return SimulationSettings(r, pt, (-2.4, 2.4), window, resolution, background=background)


def chain(seed: int, data: ResolutionModel, simulation: ResolutionModel) -> tuple[Resolution, Resolution]:
    """(simulation, difference) from 6e4 J/psi on 10 % of background, 6e4 Z, four times the simulation."""
    widths, residuals = [], []
    for name, background, cells in (
        ("Jpsi", 0.1, [4.3, 5.0, 6.0, 8.0, 12.0, 20.0]),
        ("Z", 0.0, [28.0, 40.0, 50.0, 70.0]),
    ):
        r = resonance(name)
        binning = Binning(EDGES, r.pt_edges, r.mass_window, r.mass_bins, r.line.mass, r.pt_scaled)
        events = first_events(settings(name, simulation, 0.12), 240_000, 10 * seed + 1)
        measured = first_events(settings(name, data, 0.015, background), 60_000, 10 * seed)
        widths.append(
            fit_widths(
                fill([measured], binning),
                fill([events], binning),
                r,
                background="exponential" if background else "none",
            )
        )
        residuals.append(fill_residuals([events], np.array(EDGES), np.array(cells)))
    return fit_generator_resolution(joined_residuals(residuals)), fit_resolution(widths)


@pytest.mark.slow
def test_the_injected_resolutions_come_back_with_unit_pulls() -> None:
    """Data with sigma_k/k 5 % larger and c 40 % larger than in the simulation, 5 seeds."""
    simulation, data = model(), model(1.05**2 * A, 1.4 * C)
    off: dict[str, list[float]] = {"simulation": [], "difference": [], "data": []}
    for seed in range(1, 6):
        own, difference = chain(seed, data, simulation)
        for found, truth in (
            (own, flat(simulation)),
            (difference, flat(data) - flat(simulation)),
            (data_resolution(own, difference), flat(data)),
        ):
            shift = flat(found) - truth
            off[found.kind].append(float(shift @ np.linalg.solve(found.covariance, shift)) / len(shift))
            assert 0.8 < found.chi2 / found.ndf < 1.35 or found.kind == "simulation"
    for kind, chi2 in off.items():
        np.testing.assert_allclose(np.mean(chi2), 1.0, atol=4.0 * np.sqrt(2.0 / 12 / 5), err_msg=kind)


def test_widths_need_the_average_of_pt_squared() -> None:
    r = resonance("Jpsi")
    binning = Binning(EDGES, (4.0, 40.0), r.mass_window, 40, r.line.mass)
    histogram = fill([first_events(settings("Jpsi", model(), 0.1), 3000, 1)], binning)
    assert histogram.mean_pt2 is not None
    with pytest.raises(InputError, match="no averages of pT"):
        fit_widths(replace(histogram, mean_pt2=None), histogram, r)


def test_share_of_muons_puts_each_muon_in_its_eta_bin() -> None:
    i, j = np.array([0, 1]), np.array([1, 1])
    f = np.array([[1.0, 0.9], [0.8, 1.0]])
    share = share_of_muons(3, i, j, f, np.array([4.0, 4.0]), np.array([8.0, 8.0]))
    np.testing.assert_allclose(share, [[1.0, 0.81 * 2.0, 0.0], [0.0, 0.64 + 2.0, 0.0]])
