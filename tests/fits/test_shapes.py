"""Cumulative kernels against scipy, quadrature and explicit sums; their derivatives against differences."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import integrate, stats
from scipy.special import ndtr, voigt_profile

from musclecal.binning import Binning
from musclecal.errors import InputError
from musclecal.fits.shapes import (
    SignalModel,
    breit_wigner,
    crystal_ball,
    gaussian,
    generator_template,
    simulation_shape,
)
from musclecal.fits.shapes.crystal_ball import crystal_ball_density
from musclecal.fits.shapes.cumulative import (
    LINES,
    background_cdf,
    background_curvature,
    signal_cdf,
    signal_curvature,
)
from musclecal.fits.shapes.simulation_shape import width_classes
from musclecal.records import MassHistogram

Floats = NDArray[np.float64]

JPSI = Binning((-2.4, 2.4), (4.0, 40.0), (2.85, 3.25), 40, 3.0969)
Z = Binning((-2.4, 2.4), (25.0, 100.0), (75.0, 107.0), 64, 91.188)
WIDTH_Z = 2.4955
TEMPLATE_SEED = 8


def cumulative(model: SignalModel, scale: float, width: float, row: int = 0) -> tuple[Floats, Floats, Floats]:
    """(F, dF/d ln scale, dF/d ln width) at the edges, from the kernel."""
    out, work = np.empty((3, model.n_mass + 1)), np.empty((7, model.axis.ratio.size))
    signal_cdf(model.axis, scale, width, model.kernel_tables[model.table_of[row]], out, work)
    return out[0], out[1], out[2]


def contents(model: SignalModel, scale: float, width: float) -> Floats:
    """(n_mass,) bin contents, normalised to the window."""
    steps = np.diff(cumulative(model, scale, width)[0])
    return np.asarray(steps / steps.sum())


def template(axes: Binning = JPSI) -> tuple[MassHistogram, Floats]:
    """A simulation with a radiative tail at generator level, in one bin; its line contents."""
    rng = np.random.default_rng(TEMPLATE_SEED)
    shift = rng.exponential(0.4, 4_000) ** 6 * 1e-3
    masses = axes.mass_reference * np.exp(-np.minimum(shift, 0.2))
    first, last = axes.generator_range
    number = np.rint(np.log(masses / axes.mass_reference) / axes.log_step).astype(np.int64)
    lines = np.bincount(number - first, minlength=last - first + 1)[None, :]
    pairs = np.ones((1, 2))
    counts = np.ones((1, axes.mass_bins))
    return MassHistogram(axes, np.zeros(1, np.int64), counts, pairs, pairs, pairs, generator=lines), lines[0]


def of_template(axes: Binning = JPSI) -> SignalModel:
    return generator_template(template(axes)[0], np.zeros(1, np.int64))


def pooled(n_bin: int = 6) -> SignalModel:
    """Simulation shape of Gaussian masses with two widths."""
    widths = np.where(np.arange(n_bin) % 2, 0.009, 0.014)
    edges = JPSI.mass_edges
    counts = np.array([20_000.0 * np.diff(ndtr((edges / JPSI.mass_reference - 1.0) / w)) for w in widths])
    return simulation_shape(counts, np.ones(n_bin), widths, np.zeros(n_bin, np.int64), JPSI, 50_000.0)


MODELS: dict[str, Callable[[], SignalModel]] = {
    "gaussian": lambda: gaussian(JPSI, 1),
    "crystal-ball": lambda: crystal_ball(JPSI, 1),
    "breit-wigner": lambda: breit_wigner(Z, 1, WIDTH_Z),
    "generator-template": of_template,
    "simulation-shape": pooled,
}


class TestGaussian:
    @pytest.mark.parametrize("scale", [0.997, 1.0, 1.004])
    @pytest.mark.parametrize("width", [0.006, 0.012, 0.03])
    def test_is_the_normal_distribution(self, scale: float, width: float) -> None:
        """Hermite interpolation with nodes 0.05 apart: 2e-8."""
        t = (JPSI.mass_edges / (scale * JPSI.mass_reference) - 1.0) / width
        np.testing.assert_allclose(cumulative(gaussian(JPSI, 1), scale, width)[0], ndtr(t), atol=3e-8)

    def test_beyond_the_table_it_stays_between_zero_and_one(self) -> None:
        value = cumulative(gaussian(JPSI, 1), 1.0, 1e-3)[0]
        np.testing.assert_allclose(value[[0, -1]], [0.0, 1.0], atol=1e-15)


class TestCrystalBall:
    @pytest.mark.parametrize(("a", "n"), [(1.6, 2.0), (1.0, 3.5), (2.2, 10.0)])
    def test_with_one_tail_is_that_of_scipy(self, a: float, n: float) -> None:
        model = crystal_ball(JPSI, 1, a_low=a, n_low=n, a_high=19.0, n_high=2.0)
        t = (JPSI.mass_edges / JPSI.mass_reference - 1.0) / 0.012
        expected = np.diff(stats.crystalball.cdf(t, a, n))
        np.testing.assert_allclose(contents(model, 1.0, 0.012), expected / expected.sum(), atol=1e-9)

    def test_with_both_tails_is_the_integral_of_its_density(self) -> None:
        tails = (1.2, 3.0, 1.7, 6.0)
        model = crystal_ball(JPSI, 1, **dict(zip(("a_low", "n_low", "a_high", "n_high"), tails, strict=True)))
        t = (JPSI.mass_edges / (1.002 * JPSI.mass_reference) - 1.0) / 0.01
        breaks = [-tails[0], tails[2]]
        expected = np.array(
            [
                integrate.quad(
                    lambda x: crystal_ball_density(np.array([x]), *tails)[0],
                    low, high, points=[b for b in breaks if low < b < high] or None, epsabs=1e-13,
                )[0]
                for low, high in pairwise(t)
            ]
        )  # fmt: skip
        np.testing.assert_allclose(contents(model, 1.002, 0.01), expected / expected.sum(), atol=1e-8)

    def test_the_density_is_smooth_where_the_tails_begin(self) -> None:
        tails, h = (1.2, 3.0, 1.7, 6.0), 1e-6
        for joint in (-1.2, 1.7):
            left, right = crystal_ball_density(np.array([joint - h, joint + h]), *tails)
            slope = -joint * math.exp(-0.5 * joint**2)
            assert right - left == pytest.approx(2.0 * h * slope, rel=1e-4)

    def test_the_density_is_one_at_the_peak(self) -> None:
        assert crystal_ball_density(np.zeros(1), 1.6, 2.0, 2.5, 20.0)[0] == 1.0


class TestBreitWigner:
    def test_smeared_is_the_quadrature_of_both(self) -> None:
        """The step of the lines, 1.4e-3, enters squared. Equal probabilities are equal steps in angle."""
        axes = replace(Z, mass_bins=256)
        model = breit_wigner(axes, 1, WIDTH_Z)
        edges = axes.mass_reference * np.exp(axes.log_step * (np.array(axes.generator_range) + [-0.5, 0.5]))
        low, high = np.arctan(2.0 * (edges - axes.mass_reference) / WIDTH_Z)
        angle = low + (high - low) * (np.arange(8_000) + 0.5) / 8_000
        mass = axes.mass_reference + 0.5 * WIDTH_Z * np.tan(angle)
        t = (axes.mass_edges[:, None] / (1.001 * mass) - 1.0) / 0.015
        expected = np.diff(ndtr(t).sum(axis=1))
        np.testing.assert_allclose(
            contents(model, 1.001, 0.015), expected / expected.sum(), rtol=3e-4, atol=1e-9
        )

    def test_in_a_narrow_window_is_the_voigt_profile(self) -> None:
        """There w m is a constant; what is left are the line step and 0.3 % of varying resolution."""
        axes = Binning((-1.0, 1.0), (25.0, 100.0), (90.9, 91.5), 120, 91.188)
        model = breit_wigner(axes, 1, 0.06)
        middles = 0.5 * (axes.mass_edges[1:] + axes.mass_edges[:-1])
        expected = voigt_profile(middles - 91.188, 1e-3 * 91.188, 0.03) * np.diff(axes.mass_edges)
        assert np.max(np.abs(contents(model, 1.0, 1e-3) / (expected / expected.sum()) - 1.0)) < 0.01

    def test_without_smearing_has_the_shares_of_the_arctangent(self) -> None:
        model = breit_wigner(Z, 1, WIDTH_Z)
        table = model.tables[0]
        assert table.sum() == pytest.approx(1.0, rel=1e-14)
        centre = -Z.generator_range[0]
        half = Z.mass_reference * np.expm1(0.5 * Z.log_step)
        near = 2.0 / np.pi * np.arctan(2.0 * half / WIDTH_Z)
        assert table[centre] == pytest.approx(near / 0.98, rel=0.03)


class TestGeneratorTemplate:
    @pytest.mark.parametrize(("scale", "width"), [(1.0, 0.012), (0.995, 0.004), (1.003, 0.03)])
    def test_is_the_sum_over_its_lines(self, scale: float, width: float) -> None:
        _, lines = template()
        masses = JPSI.generator_masses
        expected = np.zeros(JPSI.mass_bins + 1)
        for n, mass in zip(lines, masses, strict=True):
            for i, edge in enumerate(JPSI.mass_edges):
                t = (edge / (scale * mass) - 1.0) / width
                expected[i] += n / lines.sum() * 0.5 * (1.0 + math.erf(t / math.sqrt(2.0)))
        np.testing.assert_allclose(cumulative(of_template(), scale, width)[0], expected, atol=1e-12)

    def test_lines_are_centred_on_the_generator_bins(self) -> None:
        model = of_template()
        assert model.form == LINES
        lines = model.reference * np.exp(model.step * (model.origin + np.arange(model.tables.shape[1])))
        np.testing.assert_allclose(lines, JPSI.generator_masses, rtol=1e-14)

    @pytest.mark.parametrize(("scale", "width"), [(1.0, 0.012), (1.003, 0.005)])
    def test_all_lines_at_the_resonance_give_the_gaussian(self, scale: float, width: float) -> None:
        simulation, contents_of_lines = template()
        single = np.zeros_like(contents_of_lines)
        single[-JPSI.generator_range[0]] = 123
        one = generator_template(replace(simulation, generator=single[None, :]), np.zeros(1, np.int64))
        lines, table = (cumulative(model, scale, width) for model in (one, gaussian(JPSI, 1)))
        np.testing.assert_allclose(lines[0], table[0], atol=3e-8)
        np.testing.assert_allclose(lines[1], table[1], atol=2e-6 / width)
        np.testing.assert_allclose(lines[2], table[2], atol=2e-6)

    def test_needs_generator_level_masses(self) -> None:
        with pytest.raises(InputError, match="no generator-level muons"):
            generator_template(replace(template()[0], generator=None), np.zeros(1, np.int64))


class TestSimulationShape:
    @pytest.mark.parametrize("row", [0, 1])
    def test_of_gaussian_masses_is_a_gaussian(self, row: int) -> None:
        """The smoothing has a Gaussian as its limit; edges of the mass bins are interpolated linearly."""
        model, width = pooled(), (0.014, 0.009)[row]
        t = (JPSI.mass_edges / JPSI.mass_reference - 1.0) / width
        value = cumulative(model, 1.0, width, row)[0]
        inside = np.abs(t) < 4.0
        shifted = value - np.interp(0.0, t, value) + 0.5
        np.testing.assert_allclose(shifted[inside], ndtr(t)[inside], atol=0.01)

    def test_classes_are_in_order_of_the_width(self) -> None:
        width = np.random.default_rng(2).uniform(0.008, 0.02, 100)
        classes = width_classes(width, np.full(100, 500.0), np.zeros(100, np.int64), 10_000.0)
        assert classes.max() == 4
        assert np.all(np.diff(classes[np.argsort(width)]) >= 0)

    def test_classes_keep_pairs_of_transverse_momenta_apart(self) -> None:
        rng = np.random.default_rng(1)
        width, events, pair = (
            rng.uniform(0.008, 0.02, 300),
            rng.uniform(50.0, 900.0, 300),
            rng.integers(0, 4, 300),
        )
        classes = width_classes(width, events, pair, 5_000.0)
        assert sorted(set(classes)) == list(range(classes.max() + 1))
        for c in range(classes.max() + 1):
            rows = np.flatnonzero(classes == c)
            assert len(set(pair[rows])) == 1
            assert events[rows].sum() > 3_500.0

    def test_few_events_make_one_class(self) -> None:
        assert set(width_classes(np.ones(3), np.ones(3), np.zeros(3, np.int64), 1e4)) == {0}


class TestAllSignals:
    @pytest.mark.parametrize("name", list(MODELS))
    @pytest.mark.parametrize(("scale", "width"), [(1.0, 0.012), (0.996, 0.007), (1.01, 0.025)])
    def test_derivatives_are_those_of_differences(self, name: str, scale: float, width: float) -> None:
        model, h = MODELS[name](), 1e-5
        _, d_scale, d_width = cumulative(model, scale, width)
        up, down = (cumulative(model, scale * math.exp(s * h), width)[0] for s in (1.0, -1.0))
        np.testing.assert_allclose(d_scale, (up - down) / (2.0 * h), atol=2e-6 / width)
        up, down = (cumulative(model, scale, width * math.exp(s * h))[0] for s in (1.0, -1.0))
        np.testing.assert_allclose(d_width, (up - down) / (2.0 * h), atol=2e-6)

    @pytest.mark.parametrize("name", list(MODELS))
    def test_contents_are_positive_and_add_up(self, name: str) -> None:
        model = MODELS[name]()
        values = cumulative(model, 1.0, 0.012)[0]
        assert np.all(np.diff(values) > 0.0)
        assert contents(model, 1.0, 0.012).sum() == pytest.approx(1.0, rel=1e-13)

    @pytest.mark.parametrize("name", list(MODELS))
    def test_a_scale_of_one_step_moves_the_shape_by_one_bin(self, name: str) -> None:
        """The mass axis is uniform in ln m: F(edge i + 1; s exp(step)) = F(edge i; s)."""
        model = MODELS[name]()
        here, there = (cumulative(model, s, 0.012)[0] for s in (1.0, math.exp(model.step)))
        np.testing.assert_allclose(there[1:], here[:-1], atol=1e-12)

    @pytest.mark.parametrize("name", list(MODELS))
    def test_rows_select_the_tables_of_some_bins(self, name: str) -> None:
        model = MODELS[name]()
        which = np.array([len(model.table_of) - 1, 0])
        np.testing.assert_array_equal(model.rows(which).table_of, model.table_of[which])


class TestCurvature:
    @pytest.mark.parametrize("name", list(MODELS))
    @pytest.mark.parametrize("scale", [0.997, 1.0, 1.004])
    @pytest.mark.parametrize("width", [0.009, 0.02])
    def test_is_that_of_differences(self, name: str, scale: float, width: float) -> None:
        """Tabulated densities have kinks at their nodes, where a difference is between the two slopes."""
        model, h = MODELS[name](), 2e-6
        out, work = np.empty((3, model.n_mass + 1)), np.empty((7, model.axis.ratio.size))
        signal_curvature(model.axis, scale, width, model.kernel_tables[model.table_of[0]], out, work)
        by_scale = [cumulative(model, scale * math.exp(x), width) for x in (h, -h)]
        by_width = [cumulative(model, scale, width * math.exp(x)) for x in (h, -h)]
        for found, pair, k in zip(out, (by_scale, by_width, by_width), (1, 1, 2), strict=True):
            difference = (pair[0][k] - pair[1][k]) / (2.0 * h)
            assert np.max(np.abs(difference)) > 0.05
            off = np.abs(found - difference) / np.max(np.abs(difference))
            assert np.max(off) < (1e-7 if model.form == LINES else 0.02)
            assert np.median(off) < 1e-6


def across(axes: Binning) -> Floats:
    """0 to 1 at the edges."""
    edges = axes.mass_edges
    return np.asarray((edges - edges[0]) / (edges[-1] - edges[0]))


def background(kind: int, slope: float, axes: Binning = JPSI) -> Floats:
    """(3, n_edge) cumulative, its first and second derivative by the slope."""
    out = np.empty((3, axes.mass_bins + 1))
    background_cdf(kind, across(axes), slope, out)
    background_curvature(kind, across(axes), slope, out)
    return out


EXPONENTIAL, LINEAR = 1, 2
SLOPES = [0.0, 1e-12, -1e-6, 9.99e-4, -9.99e-4, 1.001e-3, -1.001e-3, 0.1, -2.0, 5.0, 30.0, -30.0]


class TestBackground:
    @pytest.mark.parametrize(
        ("kind", "slope"), [(EXPONENTIAL, s) for s in SLOPES] + [(LINEAR, s) for s in (0.0, 0.3, 1.0, -1.0)]
    )
    def test_is_the_integral_of_its_density(self, kind: int, slope: float) -> None:
        low, high = JPSI.mass_window

        def density(mass: float) -> float:
            u = (mass - low) / (high - low)
            return math.exp(-slope * u) if kind == EXPONENTIAL else 1.0 + slope * (2.0 * u - 1.0)

        edges = JPSI.mass_edges
        parts = [integrate.quad(density, a, b, epsabs=0.0, epsrel=1e-13)[0] for a, b in pairwise(edges)]
        expected = np.concatenate([[0.0], np.cumsum(parts)]) / np.sum(parts)
        np.testing.assert_allclose(background(kind, slope)[0], expected, atol=1e-10)

    @pytest.mark.parametrize("kind", [EXPONENTIAL, LINEAR])
    @pytest.mark.parametrize("slope", [0.0, 1e-4, -9e-4, 2e-3, 0.7, -0.7])
    def test_slopes_have_their_derivative(self, kind: int, slope: float) -> None:
        h = 1e-4 if abs(slope) > 1e-3 else 1e-5
        difference = (background(kind, slope + h)[0] - background(kind, slope - h)[0]) / (2.0 * h)
        np.testing.assert_allclose(background(kind, slope)[1], difference, atol=2e-7)
        difference = (background(kind, slope + h)[1] - background(kind, slope - h)[1]) / (2.0 * h)
        np.testing.assert_allclose(background(kind, slope)[2], difference, atol=1e-6)

    @pytest.mark.parametrize("slope", [30.0, -30.0])
    def test_steep_slopes_have_their_derivative(self, slope: float) -> None:
        difference = (
            background(EXPONENTIAL, slope + 1e-3)[0] - background(EXPONENTIAL, slope - 1e-3)[0]
        ) / 2e-3
        np.testing.assert_allclose(background(EXPONENTIAL, slope)[1], difference, atol=1e-7)

    @pytest.mark.parametrize("kind", [EXPONENTIAL, LINEAR])
    def test_begins_at_zero_and_ends_at_one(self, kind: int) -> None:
        for slope in SLOPES if kind == EXPONENTIAL else (0.0, -1.0, 1.0):
            values = background(kind, slope)[0]
            np.testing.assert_allclose(values[[0, -1]], [0.0, 1.0], atol=1e-13)
            assert np.all(np.diff(values) >= 0.0)

    def test_positive_exponential_slopes_fall(self) -> None:
        steps = np.diff(background(EXPONENTIAL, 2.0)[0]) / np.diff(JPSI.mass_edges)
        assert np.all(np.diff(steps) < 0.0)

    def test_the_series_meets_the_closed_form(self) -> None:
        for sign in (1.0, -1.0):
            below, above = (background(EXPONENTIAL, sign * s) for s in (0.999_999_9e-3, 1.000_000_1e-3))
            np.testing.assert_allclose(below[0], above[0], atol=1e-9)
            np.testing.assert_allclose(below[1], above[1], atol=3e-7)
