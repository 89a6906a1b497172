"""Sums over 4D bins, and A, e, M, sectors and harmonics from a quadratic form with known solution."""

from dataclasses import replace

import numpy as np
import pytest

from musclecal.binning import TemplateBinning
from musclecal.errors import InputError
from musclecal.fits.scale_information import (
    Design,
    eta_design,
    harmonic_design,
    scale_information,
    sector_design,
    solve_eta_bins,
    solve_information,
)
from musclecal.fits.template_closure import BinInformation
from musclecal.fits.templates import MUON_SHIFTS
from musclecal.records import Floats, Ints, ScaleInformation

RNG = np.random.default_rng(73)
EDGES = (-2.4, -0.7, 1.1, 2.4)
SECTORS = 4
N_REGION = 3 * SECTORS
UNITS = np.array([1e-4, 1e-2, 1e-5, 1e-5])


def binning(sectors: int = SECTORS) -> TemplateBinning:
    return TemplateBinning(
        EDGES, (-1.0, 0.0, 1.0), (10.0, 90.0), (5.0, 95.0), (80.0, 100.0), 12, 91.0, sectors
    )


def bin_information(which: Ints | None = None) -> BinInformation:
    """Random positive normal matrices in all 4D bins, bins of both muons in one region included."""
    axes = binning()
    bins = np.arange(axes.n_bins) if which is None else which
    roots = RNG.normal(size=(len(bins), 12, 8)) / np.tile(UNITS, 2)
    return BinInformation(
        axes, bins, np.einsum("brp,brq->bpq", roots, roots), RNG.normal(size=(len(bins), 8)) / np.tile(UNITS, 2),
        RNG.uniform(5.0, 20.0, len(bins)), RNG.uniform(8.0, 14.0, len(bins)), RNG.uniform(1.0, 9.0, len(bins)), 5e3,
        RNG.uniform(0.01, 0.05, (len(bins), 2)), 0.05 * np.einsum("brp,brq->bpq", roots, roots),
    )  # fmt: skip


def quadratic(x: Floats) -> ScaleInformation:
    """A random quadratic form with its minimum at ``x`` (4 n_region,)."""
    roots = RNG.normal(size=(8 * len(x), len(x))) / np.tile(UNITS, len(x) // 4)
    normal = roots.T @ roots
    vector = normal @ x
    return ScaleInformation(
        "Z",
        np.array(EDGES),
        len(x) // 12,
        normal,
        vector,
        500.0 + float(x @ vector),
        530,
        np.ones(len(x) // 4),
        9.0,
        10.0,
        np.zeros_like(normal),
    )


class TestSumOverBins:
    def test_is_the_sum_of_the_bins_chi2(self) -> None:
        """chi2(x) with each bin reading the shifts of its own two regions, both the same among them."""
        bins = bin_information()
        information = scale_information(bins, "Z")
        plus, minus, _, _ = bins.binning.unravel(bins.bins)
        assert np.any(plus == minus)
        for _ in range(5):
            x = UNITS * RNG.normal(size=(N_REGION, 4))
            by_hand = 0.0
            for b in range(len(bins.bins)):
                both = np.concatenate([x[plus[b]], x[minus[b]]])
                by_hand += bins.chi2[b] - 2.0 * bins.vector[b] @ both + both @ bins.normal[b] @ both
            flat = x.ravel()
            total = information.chi2 - 2.0 * information.vector @ flat + flat @ information.normal @ flat
            assert total == pytest.approx(by_hand, rel=1e-11)
        np.testing.assert_allclose(information.normal, information.normal.T, rtol=1e-12)
        assert information.ndf == round(bins.ndf.sum())

    def test_counts_events_and_curvatures(self) -> None:
        bins = bin_information()
        information = scale_information(bins, "Z")
        assert information.events_used == pytest.approx(bins.events.sum())
        assert information.events_fraction == pytest.approx(bins.events.sum() / 5e3)
        plus, minus, _, _ = bins.binning.unravel(bins.bins)
        region = 5
        k = np.concatenate([bins.mean_k[plus == region, 0], bins.mean_k[minus == region, 1]])
        w = np.concatenate([bins.events[plus == region], bins.events[minus == region]])
        assert information.mean_k[region] == pytest.approx(np.average(k, weights=w), rel=1e-12)

    def test_regions_without_muons_stay_zero(self) -> None:
        bins = bin_information(np.array([0, 1]))
        information = scale_information(bins, "Z")
        assert np.count_nonzero(information.normal) == 4 * 4
        assert np.all(np.isfinite(information.mean_k))


class TestDesigns:
    def test_one_parameter_per_eta_bin(self) -> None:
        values = UNITS * RNG.normal(size=(3, 4))
        information = quadratic(np.repeat(values, SECTORS, axis=0).ravel())
        solution = solve_information(information, eta_design(information, MUON_SHIFTS))
        np.testing.assert_allclose(solution.values.reshape(3, 4), values, rtol=1e-8)
        assert solution.labels[:5] == (
            "A[-2.4, -0.7]",
            "e[-2.4, -0.7]",
            "M[-2.4, -0.7]",
            "width[-2.4, -0.7]",
            "A[-0.7, 1.1]",
        )
        assert solution.chi2 == pytest.approx(500.0, abs=1e-6)
        assert solution.ndf == 530 - 12
        assert solution.p_value == pytest.approx(0.7, abs=0.1)

    @pytest.mark.parametrize("names", [("A", "M"), ("M", "A"), ("width",), ("e", "M", "width")])
    def test_names_are_those_of_the_columns(self, names: tuple[str, ...]) -> None:
        values = np.zeros((3, 4))
        rows = [MUON_SHIFTS.index(name) for name in names]
        values[:, rows] = UNITS[rows] * RNG.normal(size=(3, len(rows)))
        information = quadratic(np.repeat(values, SECTORS, axis=0).ravel())
        solution = solve_information(information, eta_design(information, names))
        np.testing.assert_allclose(solution.values.reshape(3, -1), values[:, rows], rtol=1e-8)

    def test_one_parameter_per_sector(self) -> None:
        values = UNITS * RNG.normal(size=(N_REGION, 4))
        values[:, [1, 3]] = 0.0
        information = quadratic(values.ravel())
        solution = solve_information(information, sector_design(information, ("A", "M")))
        np.testing.assert_allclose(solution.values.reshape(-1, 2), values[:, [0, 2]], rtol=1e-8)
        assert solution.labels[3] == "M[-2.4, -0.7; sector 1]"

    @pytest.mark.parametrize("harmonic", [1, 2, 3])
    @pytest.mark.parametrize("per_eta", [False, True])
    @pytest.mark.parametrize("name", ["A", "M"])
    def test_harmonics_averaged_over_sectors(self, harmonic: int, per_eta: bool, name: str) -> None:
        """The wave averaged over each sector by brute force, on a grid of the sectors' own phi."""
        sectors = 8
        fine = 2.0 * np.pi * ((np.arange(sectors * 2000) + 0.5) / (sectors * 2000) - 0.5)
        amplitudes = UNITS[0] * RNG.normal(size=(3, 2))
        if not per_eta:
            amplitudes[:] = amplitudes[0]
        values = np.zeros((3, sectors, 4))
        for i, (c, s) in enumerate(amplitudes):
            wave = c * np.cos(harmonic * fine) + s * np.sin(harmonic * fine)
            values[i, :, MUON_SHIFTS.index(name)] = wave.reshape(sectors, -1).mean(axis=1)
        information = quadratic(values.ravel())
        assert information.phi_sectors == sectors
        design = harmonic_design(information, name, harmonic, per_eta=per_eta)
        solution = solve_information(information, design)
        expected = amplitudes.ravel() if per_eta else amplitudes[0]
        np.testing.assert_allclose(solution.values, expected, rtol=1e-6)
        assert solution.labels[0] == f"{name} cos({harmonic} phi)" + ("[-2.4, -0.7]" if per_eta else "")

    def test_designs_are_fitted_together(self) -> None:
        values = UNITS * RNG.normal(size=(3, 4))
        x = np.repeat(values, SECTORS, axis=0)
        phi = binning().phi_centres
        reduced = np.sin(np.pi / SECTORS) / (np.pi / SECTORS)
        x[:, 0] += np.tile(3e-4 * reduced * np.cos(phi), 3)
        information = quadratic(x.ravel())
        both = (eta_design(information, MUON_SHIFTS), harmonic_design(information, "A", 1))
        solution = solve_information(information, *both)
        np.testing.assert_allclose(solution.values[-2:], [3e-4, 0.0], rtol=1e-7, atol=1e-11)
        np.testing.assert_allclose(solution.values[:12].reshape(3, 4), values, rtol=1e-7)
        only = solution.only([12, 13])
        assert only.labels == ("A cos(1 phi)", "A sin(1 phi)")
        np.testing.assert_array_equal(only.covariance, solution.covariance[12:, 12:])

    def test_a_wave_needs_sectors(self) -> None:
        information = quadratic((UNITS * RNG.normal(size=(3, 4))).ravel())
        with pytest.raises(InputError, match=r"template fit at Z: .*A (cos|sin)\(1 phi\)"):
            solve_information(information, harmonic_design(information, "A", 1))


class TestSolution:
    def test_an_eta_bin_without_muons_is_named(self) -> None:
        information = quadratic((UNITS * RNG.normal(size=(N_REGION, 4))).ravel())
        normal = information.normal.copy()
        normal[4 * SECTORS : 8 * SECTORS] = normal[:, 4 * SECTORS : 8 * SECTORS] = 0.0
        with pytest.raises(InputError, match=r"template fit at Z: 2 combinations .* [AM]\[-0.7, 1.1\]"):
            solve_information(replace(information, normal=normal), eta_design(information, ("A", "M")))

    def test_pulls_are_unit(self) -> None:
        """vector = normal x + noise of covariance normal."""
        information = quadratic(np.zeros(4 * N_REGION))
        design = eta_design(information, ("A", "M"))
        root = np.linalg.cholesky(information.normal)
        pulls = []
        for _ in range(400):
            noisy = replace(information, vector=root @ RNG.normal(size=4 * N_REGION))
            solution = solve_information(noisy, design)
            pulls.append(solution.values / np.sqrt(np.diag(solution.covariance)))
        assert np.std(pulls) == pytest.approx(1.0, abs=0.05)
        assert np.abs(np.mean(pulls, axis=0)).max() < 3.5 / 20.0

    def test_a_design_by_hand(self) -> None:
        """One A for all muons."""
        x = np.zeros((N_REGION, 4))
        x[:, 0] = 2e-4
        information = quadratic(x.ravel())
        everywhere = np.zeros((4 * N_REGION, 1))
        everywhere[0::4] = 1.0
        solution = solve_information(information, Design(("A",), everywhere))
        assert solution.values[0] == pytest.approx(2e-4, rel=1e-9)


def test_the_width_is_fitted_where_it_is_known() -> None:
    """`solve_eta_bins` marginalises it, or leaves it out where every 4D bin had a width of its own."""
    with_width = scale_information(bin_information(), "Z")
    solution = solve_eta_bins(with_width, ("M", "A"))
    assert solution.parameter_names == ("A", "M")
    assert solution.values.shape == (len(EDGES) - 1, 2)
    assert len(solution.extra_variance) == len(EDGES) - 1
    rows = [r for r in range(len(with_width.vector)) if r % 4 != 3]
    keep = np.zeros_like(with_width.normal)
    keep[np.ix_(rows, rows)] = 1.0
    vector = np.where(np.isin(np.arange(len(with_width.vector)), rows), with_width.vector, 0.0)
    without = replace(
        with_width, normal=with_width.normal * keep, noise=with_width.noise * keep, vector=vector
    )
    assert not len(solve_eta_bins(without, ("A", "M")).extra_variance)


def test_noise_of_the_derivatives_is_taken_out_of_the_response_alone() -> None:
    """x = (F - N)^-1 v with the covariance (F - N)^-1 F (F - N)^-1."""
    information = quadratic(RNG.normal(size=12) * np.tile(UNITS, 3))
    noise = 0.2 * information.normal
    noisy = replace(information, noise=noise)
    design = eta_design(information, ("A", "M", "width"))
    clean, diluted = solve_information(information, design), solve_information(noisy, design)
    np.testing.assert_allclose(diluted.values, clean.values / 0.8, rtol=1e-9)
    np.testing.assert_allclose(diluted.covariance, clean.covariance / 0.64, rtol=1e-8)
