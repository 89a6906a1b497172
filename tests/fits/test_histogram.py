"""Histograms against numpy on a small sample, and to the bit against themselves in other chunks."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from musclecal.binning import Binning, equal_eta_edges
from musclecal.constants import MUON_MASS
from musclecal.errors import InputError
from musclecal.fits.histogram import as_hist, fill
from musclecal.records import CutFlow, DimuonEvents, MassHistogram, Muons
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings, first_events

Floats = NDArray[np.float64]

JPSI, Z = resonance("Jpsi"), resonance("Z")
BINNING = Binning(
    eta_edges=equal_eta_edges(3, 2.0),
    pt_edges=(4.5, 6.0, 9.0, 30.0),
    mass_window=(2.9, 3.2),
    mass_bins=20,
    mass_reference=JPSI.line.mass,
)
"""Smaller than the sample on every axis, so that events are outside of each."""
compiled_only = pytest.mark.skipif(
    bool(numba.config.DISABLE_JIT), reason="Python raises where compiled code gives nan or wraps"
)
FIELDS = ("bins", "counts", "mean_k", "mean_pt", "mean_f", "mean_pt2", "generator", "variances", "n_outside")
N_EVENTS = 30_000


@cache
def sample() -> DimuonEvents:
    settings = SimulationSettings(JPSI, (4.0, 40.0), (-2.4, 2.4), JPSI.mass_window, background=0.1)
    return first_events(settings, N_EVENTS, seed=31)


@cache
def histogram() -> MassHistogram:
    return fill([sample()], BINNING)


def weights(events: DimuonEvents) -> Floats:
    return np.asarray(0.3 + 0.1 * events.plus.pt)


def pieces(lengths: list[int]) -> list[DimuonEvents]:
    return [sample().select(rows) for rows in np.split(np.arange(N_EVENTS), np.cumsum(lengths)[:-1])]


UNEVEN = [1, 4_999, 11_900, 100, 3, 7_997, 5_000]


def assert_same_to_the_bit(one: MassHistogram, two: MassHistogram) -> None:
    for name in FIELDS:
        a, b = getattr(one, name), getattr(two, name)
        assert (a is None) == (b is None), name
        if a is not None:
            np.testing.assert_array_equal(a, b, err_msg=name)


def expected_rows(events: DimuonEvents, binning: Binning = BINNING) -> NDArray[np.int64]:
    """(n_event,) 4D bin number in plain numpy, -1 outside the binning or the window."""
    reference = binning.mass_reference / events.mass if binning.pt_scaled else 1.0
    axes = [
        np.digitize(values, edges) - 1
        for values, edges in (
            (events.plus.eta, binning.eta_edges),
            (events.minus.eta, binning.eta_edges),
            (events.plus.pt * reference, binning.pt_edges),
            (events.minus.pt * reference, binning.pt_edges),
            (events.mass, binning.mass_window),
        )
    ]
    sizes = (binning.n_eta, binning.n_eta, binning.n_pt, binning.n_pt, 1)
    inside = np.all([(a >= 0) & (a < size) for a, size in zip(axes, sizes, strict=True)], axis=0)
    i, j, k, m = axes[:4]
    number = ((i * binning.n_eta + j) * binning.n_pt + k) * binning.n_pt + m
    return np.where(inside, number, -1).astype(np.int64)


def numpy_mean(values: Floats, where: NDArray[np.int64], bins: NDArray[np.int64]) -> Floats:
    return np.array([values[where == b].mean() for b in bins])


class TestSameToTheBit:
    @pytest.mark.parametrize("weight", [None, weights])
    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_for_any_chunks_and_threads(self, weight: object, threads: int) -> None:
        whole = fill([sample()], BINNING, weight=weight, threads=1)  # type: ignore[arg-type]
        chunks = pieces(UNEVEN)
        assert_same_to_the_bit(fill(chunks, BINNING, weight=weight, threads=threads), whole)  # type: ignore[arg-type]

    @pytest.mark.parametrize("weight", [None, weights])
    def test_for_any_order_of_chunks(self, weight: object) -> None:
        chunks = pieces(UNEVEN)
        forward, back = (fill(c, BINNING, weight=weight) for c in (chunks, chunks[::-1]))  # type: ignore[arg-type]
        assert_same_to_the_bit(back, forward)

    @pytest.mark.parametrize("weight", [None, weights])
    @pytest.mark.parametrize("where", [0, 1, 2])
    def test_for_chunks_without_events(self, weight: object, where: int) -> None:
        chunks = pieces([10_000, 20_000])
        chunks.insert(where, sample().select(np.arange(0)))
        whole = fill([sample()], BINNING, weight=weight)  # type: ignore[arg-type]
        assert_same_to_the_bit(fill(chunks, BINNING, weight=weight), whole)  # type: ignore[arg-type]

    def test_for_any_order_of_events(self) -> None:
        shuffled = sample().select(np.random.default_rng(1).permutation(N_EVENTS))
        assert_same_to_the_bit(fill([shuffled], BINNING), histogram())

    def test_chunks_may_come_from_a_generator(self) -> None:
        def chunks() -> Iterator[DimuonEvents]:
            yield from pieces(UNEVEN)

        assert_same_to_the_bit(fill(chunks(), BINNING), histogram())


class TestCounts:
    def test_are_those_of_numpy(self) -> None:
        events = sample()
        columns = np.stack(
            [events.plus.eta, events.minus.eta, events.plus.pt, events.minus.pt, events.mass], axis=1
        )
        edges = [BINNING.eta_edges, BINNING.eta_edges, BINNING.pt_edges, BINNING.pt_edges, BINNING.mass_edges]
        dense = np.histogramdd(columns, [np.asarray(e) for e in edges])[0].reshape(BINNING.n_bins, -1)
        np.testing.assert_array_equal(histogram().bins, np.flatnonzero(dense.sum(axis=1)))
        np.testing.assert_array_equal(histogram().counts, dense[histogram().bins])
        assert histogram().counts.dtype == np.int64

    def test_events_outside_are_counted(self) -> None:
        outside = np.count_nonzero(expected_rows(sample()) < 0)
        assert histogram().n_outside == outside
        assert histogram().n_events == N_EVENTS - outside
        assert 0.2 * N_EVENTS < outside < 0.9 * N_EVENTS

    def test_weights_and_their_squares_are_summed(self) -> None:
        events, weighted = sample(), fill([sample()], BINNING, weight=weights)
        where, w = expected_rows(events), weights(events)
        assert weighted.variances is not None
        for row, b in enumerate(weighted.bins):
            inside = where == b
            counts, squares = (
                np.histogram(events.mass[inside], BINNING.mass_edges, weights=x[inside])[0] for x in (w, w**2)
            )
            np.testing.assert_allclose(weighted.counts[row], counts, atol=1e-7)
            np.testing.assert_allclose(weighted.variances[row], squares, atol=1e-7)

    def test_weights_of_one_are_counts(self) -> None:
        weighted = fill([sample()], BINNING, weight=lambda events: np.ones(len(events)))
        np.testing.assert_array_equal(weighted.counts, histogram().counts)
        np.testing.assert_array_equal(weighted.variances, histogram().counts)
        np.testing.assert_allclose(weighted.mean_k, histogram().mean_k, rtol=1e-12)

    def test_the_cut_flow_is_asked_for_at_the_end(self) -> None:
        seen: list[int] = []

        def chunks() -> Iterator[DimuonEvents]:
            for chunk in pieces(UNEVEN):
                seen.append(len(chunk))
                yield chunk

        filled = fill(chunks(), BINNING, cut_flows=lambda: {"data": CutFlow(("read",), (sum(seen),))})
        assert filled.cut_flows["data"].counts == (N_EVENTS,)


class TestMeans:
    """Averages over the events: rounding is half a unit of the integer sums, 2^-33 or 2^-23."""

    def test_of_the_curvature(self) -> None:
        where = expected_rows(sample())
        for charge, muons in enumerate((sample().plus, sample().minus)):
            direct = numpy_mean(1.0 / muons.pt, where, histogram().bins)
            np.testing.assert_allclose(histogram().mean_k[:, charge], direct, atol=2.0**-32)

    def test_of_the_transverse_momentum(self) -> None:
        where = expected_rows(sample())
        for charge, muons in enumerate((sample().plus, sample().minus)):
            direct = numpy_mean(muons.pt, where, histogram().bins)
            np.testing.assert_allclose(histogram().mean_pt[:, charge], direct, atol=2.0**-22)

    def test_of_its_square(self) -> None:
        where, found = expected_rows(sample()), histogram().mean_pt2
        assert found is not None
        for charge, muons in enumerate((sample().plus, sample().minus)):
            np.testing.assert_allclose(
                found[:, charge], numpy_mean(muons.pt**2, where, histogram().bins), atol=2.0**-12
            )
        assert np.all(found > histogram().mean_pt ** 2 - 2.0**-12)
        assert np.max(found / histogram().mean_pt ** 2) > 1.05

    def test_of_the_muon_mass_factor(self) -> None:
        """f+ = 1 - 2 mu^2 (1 + E-/E+)/m^2."""
        where = expected_rows(sample())
        energies = [np.hypot(m.pt * np.cosh(m.eta), MUON_MASS) for m in (sample().plus, sample().minus)]
        for charge in (0, 1):
            other = energies[1 - charge] / energies[charge]
            factor = 1.0 - 2.0 * MUON_MASS**2 * (1.0 + other) / sample().mass ** 2
            direct = numpy_mean(np.asarray(factor), where, histogram().bins)
            np.testing.assert_allclose(histogram().mean_f[:, charge], direct, atol=2.0**-32)

    def test_a_factor_of_one_would_be_wrong(self) -> None:
        assert np.all(histogram().mean_f < 0.9985)
        assert np.ptp(histogram().mean_f) > 0.005

    def test_bin_centres_would_be_wrong(self) -> None:
        edges = np.asarray(BINNING.pt_edges)
        _, _, pt_plus, _ = BINNING.unravel(histogram().bins)
        for centre in (0.5 * (edges[1:] + edges[:-1]), np.sqrt(edges[1:] * edges[:-1])):
            relative = centre[pt_plus] * histogram().mean_k[:, 0] - 1.0
            assert np.sqrt(np.mean(relative**2)) > 0.01

    def test_the_mean_of_the_inverse_is_not_the_inverse_of_the_mean(self) -> None:
        excess = histogram().mean_k * histogram().mean_pt - 1.0
        many = histogram().counts.sum(axis=1) > 50
        assert np.all(excess[many] > 1e-4)

    def test_are_weighted(self) -> None:
        weighted, where, w = (
            fill([sample()], BINNING, weight=weights),
            expected_rows(sample()),
            weights(sample()),
        )
        k = 1.0 / sample().plus.pt
        direct = [np.average(k[where == b], weights=w[where == b]) for b in weighted.bins]
        np.testing.assert_allclose(weighted.mean_k[:, 0], direct, rtol=1e-8)


class TestGeneratorLevel:
    def test_is_filled_in_the_bin_of_the_measured_momenta(self) -> None:
        """Whatever the measured mass: what one smearing moves out of the window another brings in."""
        gen_mass, where = (
            sample().gen_mass,
            expected_rows(sample(), replace(BINNING, mass_window=(0.1, 99.0))),
        )
        assert gen_mass is not None
        first, last = BINNING.generator_range
        edges = BINNING.mass_reference * np.exp(BINNING.log_step * (np.arange(first, last + 2) - 0.5))
        assert histogram().generator is not None
        for row, b in enumerate(histogram().bins):
            expected = np.histogram(gen_mass[where == b], edges)[0]
            np.testing.assert_array_equal(histogram().generator[row], expected)  # type: ignore[index]

    def test_data_have_none(self) -> None:
        data = replace(sample(), gen_plus=None, gen_minus=None)
        without = fill([data], BINNING)
        assert without.generator is None
        np.testing.assert_array_equal(without.counts, histogram().counts)


class TestScaledTransverseMomenta:
    BINNING = Binning((-2.4, 0.0, 2.4), Z.pt_edges, (60.0, 120.0), 30, Z.line.mass, pt_scaled=True)

    def sample(self) -> DimuonEvents:
        settings = SimulationSettings(Z, (25.0, 95.0), (-2.4, 2.4), (70.0, 110.0))
        return first_events(settings, 20_000, seed=32)

    def moved(self, binning: Binning, factor: float) -> float:
        """Fraction of events that change their 4D bin when both momenta are scaled."""
        before = self.sample()
        after = before.with_momenta(before.plus.pt * factor, before.minus.pt * factor)
        dense = np.zeros((2, binning.n_bins))
        for row, events in enumerate((before, after)):
            filled = fill([events], binning)
            dense[row, filled.bins] = filled.counts.sum(axis=1)
        return float(np.abs(dense[1] - dense[0]).sum() / dense[0].sum())

    def test_do_not_see_a_common_scale(self) -> None:
        """The muon mass leaves (2 mu/m)^2 = 5e-6 of the scale: no event of 20,000."""
        assert self.moved(self.BINNING, 1.02) <= 2 / 20_000

    def test_transverse_momenta_do(self) -> None:
        assert self.moved(replace(self.BINNING, pt_scaled=False), 1.02) > 0.05

    def test_means_are_of_the_momenta_themselves(self) -> None:
        events, filled = self.sample(), fill([self.sample()], self.BINNING)
        where = expected_rows(events, self.BINNING)
        direct = numpy_mean(1.0 / events.plus.pt, where, filled.bins)
        np.testing.assert_allclose(filled.mean_k[:, 0], direct, atol=2.0**-32)


class TestAsHist:
    @pytest.mark.parametrize("keep", [("mass",), ("eta_plus", "pt_minus"), ("pt_plus", "eta_minus", "mass")])
    def test_slices_are_sums_over_the_other_axes(self, keep: tuple[str, ...]) -> None:
        events, inside = sample(), expected_rows(sample()) >= 0
        columns = {
            "eta_plus": (events.plus.eta, BINNING.eta_edges),
            "eta_minus": (events.minus.eta, BINNING.eta_edges),
            "pt_plus": (events.plus.pt, BINNING.pt_edges),
            "pt_minus": (events.minus.pt, BINNING.pt_edges),
            "mass": (events.mass, BINNING.mass_edges),
        }
        values = np.stack([columns[name][0][inside] for name in keep], axis=1)
        expected = np.histogramdd(values, [np.asarray(columns[name][1]) for name in keep])[0]
        shown = as_hist(histogram(), keep=keep)
        assert tuple(axis.name for axis in shown.axes) == keep
        np.testing.assert_array_equal(shown.values(), expected)
        np.testing.assert_array_equal(shown.variances(), expected)

    def test_weighted_histograms_keep_their_variances(self) -> None:
        weighted = fill([sample()], BINNING, weight=weights)
        assert weighted.variances is not None
        shown = as_hist(weighted)
        np.testing.assert_allclose(shown.values(), weighted.counts.sum(axis=0), rtol=1e-12)
        np.testing.assert_allclose(shown.variances(), weighted.variances.sum(axis=0), rtol=1e-12)

    def test_an_unknown_axis_is_refused(self) -> None:
        with pytest.raises(InputError, match="unknown axis 'phi'"):
            as_hist(histogram(), keep=("phi",))


class TestBadInput:
    @compiled_only
    @pytest.mark.parametrize("column", ["pt", "eta", "phi"])
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_what_is_not_a_number_is_outside(self, column: str, value: float) -> None:
        good = sample().select(np.flatnonzero(expected_rows(sample()) >= 0)[:10])
        spoilt = getattr(good.plus, column).copy()
        spoilt[:4] = value
        filled = fill([replace(good, plus=replace(good.plus, **{column: spoilt}))], BINNING)
        assert filled.n_outside == 4
        assert filled.counts.sum() == 6
        assert np.all(np.isfinite(filled.mean_k))

    def test_no_chunks_and_no_events_are_reported(self) -> None:
        for chunks in ([], [sample().select(np.arange(0))]):
            with pytest.raises(InputError, match="no event inside the binning"):
                fill(chunks, BINNING)

    def test_momenta_in_mev_are_reported(self) -> None:
        mev = sample().with_momenta(sample().plus.pt * 1e3, sample().minus.pt * 1e3)
        with pytest.raises(InputError, match="check units"):
            fill([mev], BINNING)

    @pytest.mark.parametrize("weight", [-0.1, 1e-5, 1e5, np.nan])
    def test_impossible_weights_are_refused(self, weight: float) -> None:
        with pytest.raises(InputError, match="weights must be 0 or between"):
            fill([sample()], BINNING, weight=lambda events: np.full(len(events), weight))

    @compiled_only
    def test_overflow_is_an_error(self) -> None:
        one = int(np.flatnonzero(expected_rows(sample()) >= 0)[0])
        same = sample().select(np.full(30, one))
        with pytest.raises(OverflowError, match="overflowed"):
            fill([same], BINNING, weight=lambda events: np.full(len(events), 9_999.0))

    @pytest.mark.parametrize("copies", [100, 1_000])
    def test_overflow_is_an_error_however_far_it_wraps(self, copies: int) -> None:
        """Sums of w^2 in units of 2^-32 pass 2^63 with 22 events of weight 9,999, then turn positive."""
        one = int(np.flatnonzero(expected_rows(sample()) >= 0)[0])
        same = sample().select(np.full(copies, one))
        try:
            filled = fill([same], BINNING, weight=lambda events: np.full(len(events), 9_999.0))
        except OverflowError:
            return
        assert filled.variances is not None
        assert filled.variances.sum() == pytest.approx(copies * 9_999.0**2, rel=1e-9)

    @pytest.mark.parametrize("weight", [1e-2, 1e2])
    def test_small_weights_keep_their_precision(self, weight: float) -> None:
        filled = fill([sample()], BINNING, weight=lambda events: np.full(len(events), weight))
        assert filled.variances is not None
        np.testing.assert_allclose(filled.variances / weight**2, 1.0 * histogram().counts, rtol=1e-3)
        np.testing.assert_allclose(filled.mean_pt, histogram().mean_pt, rtol=1e-4)

    def test_muons_of_one_event_stay_together(self) -> None:
        plus, minus = (
            Muons(*(np.array([x]) for x in (5.0, 0.1, 0.0))),
            Muons(*(np.array([x]) for x in (8.0, -0.2, 0.4))),
        )
        events = DimuonEvents(plus, minus)
        wide = replace(BINNING, mass_window=(1.0, 9.0))
        filled = fill([events], wide)
        assert filled.bins.tolist() == expected_rows(events, wide).tolist()
        np.testing.assert_allclose(filled.mean_pt, [[5.0, 8.0]], rtol=1e-7)


def test_samples_with_and_without_generator_level_do_not_mix() -> None:
    without = replace(sample(), gen_plus=None, gen_minus=None)
    for chunks in ([sample(), without], [without, sample()]):
        with pytest.raises(InputError, match="others have none"):
            fill(chunks, BINNING)
