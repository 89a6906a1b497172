"""Histograms of the template fit against plain numpy, and their derivatives against corrected events."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from musclecal.apply import correct
from musclecal.binning import TemplateBinning, equal_eta_edges
from musclecal.constants import MUON_MASS
from musclecal.errors import InputError
from musclecal.fits.templates import MUON_SHIFTS, fill_templates
from musclecal.records import CutFlow, DimuonEvents, Floats, Muons, ScaleParameters, TemplateHistogram
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings, first_events

N_EVENTS = 30_000
STEP = 0.01
SMALL_STEP = 0.005
ETA = equal_eta_edges(3, 2.0)
ASYMMETRY = (-0.8, -0.1, 0.1, 0.8)
BINNINGS = {
    "Jpsi": TemplateBinning(ETA, ASYMMETRY, (4.5, 8.0, 30.0), (4.2, 25.0), (2.9, 3.25), 14, 3.0969),
    "Z": TemplateBinning(ETA, ASYMMETRY, (20.0, 42.0, 60.0), (25.0, 70.0), (80.0, 102.0), 11, 91.19),
}
"""Smaller than the samples on every axis, so that events are outside of each."""
ACCEPTANCES = {"Jpsi": (3.8, 40.0), "Z": (20.0, 110.0)}
WINDOWS = {"Jpsi": (2.8, 3.4), "Z": (68.0, 116.0)}
FIELDS = ("bins", "counts", "derivatives", "mean_k", "variances", "n_outside")


@cache
def sample(name: str, n_events: int = N_EVENTS) -> DimuonEvents:
    settings = SimulationSettings(resonance(name), ACCEPTANCES[name], (-2.4, 2.4), WINDOWS[name])
    return first_events(settings, n_events, seed=51)


def weights(events: DimuonEvents) -> Floats:
    return np.asarray(0.3 + 1.4 * np.abs(np.sin(1e3 * events.plus.pt)))


def numpy_mass(plus: Muons, minus: Muons) -> Floats:
    """From the sum of two four-momenta."""
    total = np.zeros((4, len(plus)))
    for muon in (plus, minus):
        px, py, pz = muon.pt * np.cos(muon.phi), muon.pt * np.sin(muon.phi), muon.pt * np.sinh(muon.eta)
        total += np.stack([np.sqrt(px**2 + py**2 + pz**2 + MUON_MASS**2), px, py, pz])
    return np.asarray(np.sqrt(total[0] ** 2 - np.sum(total[1:] ** 2, axis=0)))


def numpy_cells(events: DimuonEvents, binning: TemplateBinning) -> NDArray[np.int64]:
    """(n_event,) 4D bin number x n_mass + mass bin, -1 outside."""
    plus, minus = events.plus, events.minus
    mass = numpy_mass(plus, minus)
    low, high = binning.muon_pt
    scaled = np.stack([plus.pt, minus.pt]) * binning.mass_reference / mass
    inside = np.all((scaled >= low) & (scaled < high), axis=0)
    sectors = np.linspace(-np.pi, np.pi, binning.phi_sectors + 1)
    number = np.zeros(len(events), dtype=np.int64)
    for values, edges in (
        (plus.eta, binning.eta_edges),
        (plus.phi, sectors),
        (minus.eta, binning.eta_edges),
        (minus.phi, sectors),
        ((plus.pt - minus.pt) / (plus.pt + minus.pt), binning.asymmetry_edges),
        (0.5 * (plus.pt + minus.pt) * binning.mass_reference / mass, binning.pt_edges),
        (mass, np.linspace(*binning.mass_window, binning.mass_bins + 1)),
    ):
        i = np.digitize(values, edges) - 1
        inside &= (i >= 0) & (i < len(edges) - 1)
        number = number * (len(edges) - 1) + i
    return np.where(inside, number, -1)


def shifted(events: DimuonEvents, muon: int, step: float) -> DimuonEvents:
    """The curvature of mu+ (0) or mu- (1) times 1 + step."""
    factors = [1.0, 1.0]
    factors[muon] = 1.0 / (1.0 + step)
    return events.with_momenta(factors[0] * events.plus.pt, factors[1] * events.minus.pt)


def numpy_fill(events: DimuonEvents, binning: TemplateBinning, w: Floats) -> tuple[Floats, Floats, Floats]:
    """Dense counts, variances (n_bins, n_mass) and derivatives (n_bins, n_mass, 8)."""
    size = binning.n_bins * binning.mass_bins

    def summed(cells: NDArray[np.int64], values: Floats) -> Floats:
        return np.asarray(np.bincount(cells[cells >= 0], values[cells >= 0], size), dtype=np.float64)

    home = numpy_cells(events, binning)
    derivatives = []
    for muon, charge in ((0, 1.0), (1, -1.0)):
        k = 1.0 / (events.plus if muon == 0 else events.minus).pt
        up, down = (numpy_cells(shifted(events, muon, s), binning) for s in (STEP, -STEP))
        for change in (np.ones_like(k), -k, charge / k):
            derivatives.append((summed(up, w * change) - summed(down, w * change)) / (2.0 * STEP))
        derivatives.append((summed(up, w) + summed(down, w) - 2.0 * summed(home, w)) / (2.0 * STEP**2))
    shape = (binning.n_bins, binning.mass_bins)
    return (
        summed(home, w).reshape(shape),
        summed(home, w**2).reshape(shape),
        np.stack(derivatives, axis=-1).reshape(*shape, 8),
    )


def dense(histogram: TemplateHistogram, table: Floats) -> Floats:
    out = np.zeros((histogram.binning.n_bins, *table.shape[1:]))
    out[histogram.bins] = table
    return out


def assert_same_to_the_bit(one: TemplateHistogram, two: TemplateHistogram) -> None:
    for name in FIELDS:
        a, b = getattr(one, name), getattr(two, name)
        assert (a is None) == (b is None), name
        if a is not None:
            np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("name", ["Jpsi", "Z"])
@pytest.mark.parametrize("sectors", [1, 3])
@pytest.mark.parametrize("weight", [None, weights])
class TestAgainstNumpy:
    def filled(
        self, name: str, sectors: int, weight: object
    ) -> tuple[TemplateHistogram, tuple[Floats, Floats, Floats], Floats]:
        binning = replace(BINNINGS[name], phi_sectors=sectors)
        w = np.ones(N_EVENTS) if weight is None else weights(sample(name))
        histogram = fill_templates([sample(name)], binning, step=STEP, weight=weight)  # type: ignore[arg-type]
        return histogram, numpy_fill(sample(name), binning, w), w

    def test_counts(self, name: str, sectors: int, weight: object) -> None:
        histogram, (counts, variances, _), _ = self.filled(name, sectors, weight)
        np.testing.assert_allclose(dense(histogram, histogram.counts), counts, atol=1e-5)
        if weight is None:
            assert histogram.variances is None
        else:
            assert histogram.variances is not None
            np.testing.assert_allclose(dense(histogram, histogram.variances), variances, atol=1e-5)

    def test_derivatives(self, name: str, sectors: int, weight: object) -> None:
        histogram, (_, _, derivatives), _ = self.filled(name, sectors, weight)
        filled = dense(histogram, histogram.derivatives)
        for p in range(8):
            largest = np.abs(derivatives[..., p]).max()
            assert largest > 0.0
            np.testing.assert_allclose(filled[..., p], derivatives[..., p], atol=1e-6 * largest)

    def test_mean_curvatures_and_events_outside(self, name: str, sectors: int, weight: object) -> None:
        histogram, _, w = self.filled(name, sectors, weight)
        home = numpy_cells(sample(name), histogram.binning)
        inside = home >= 0
        assert 0.2 < inside.mean() < 0.8
        assert histogram.n_outside == np.count_nonzero(~inside)
        rows = home[inside] // histogram.binning.mass_bins
        sums = np.bincount(rows, w[inside], histogram.binning.n_bins)[histogram.bins]
        occupied = sums > 0.0
        for charge, muons in enumerate((sample(name).plus, sample(name).minus)):
            k = np.bincount(rows, (w / muons.pt)[inside], histogram.binning.n_bins)[histogram.bins]
            np.testing.assert_allclose(
                histogram.mean_k[occupied, charge], k[occupied] / sums[occupied], rtol=1e-6
            )


def uniform(binning: TemplateBinning, **values: float) -> ScaleParameters:
    table = {name: np.full(binning.n_eta, values.get(name, 0.0)) for name in "AeM"}
    return ScaleParameters(np.array(binning.eta_edges), **table)


@pytest.mark.parametrize(
    ("name", "parameter", "size"),
    [
        ("Jpsi", "A", 4e-3), ("Jpsi", "e", 0.03), ("Jpsi", "M", 3e-4),
        ("Z", "A", 5e-3), ("Z", "e", 0.2), ("Z", "M", 1e-4),
    ],
)  # fmt: skip
@pytest.mark.parametrize("charge", [1, -1])
def test_derivatives_are_those_of_corrected_events(
    name: str, parameter: str, size: float, charge: int
) -> None:
    """Fills of events corrected by + and - ``size``: sign and factor, one charge at a time."""
    binning = replace(BINNINGS[name], eta_edges=(-2.0, 0.3, 2.0), asymmetry_edges=(-0.8, 0.0, 0.8))
    events = sample(name, 200_000)
    histogram = fill_templates([events], binning, step=SMALL_STEP)
    filled = []
    for sign in (1.0, -1.0):
        both = correct(events, uniform(binning, **{parameter: sign * size}))
        plus, minus = (both.plus.pt, events.minus.pt) if charge == 1 else (events.plus.pt, both.minus.pt)
        moved = fill_templates([events.with_momenta(plus, minus)], binning, step=STEP, derivatives=False)
        filled.append(dense(moved, moved.counts))
    observed = (filled[0] - filled[1]) / (2.0 * size)
    column = MUON_SHIFTS.index(parameter) + (0 if charge == 1 else 4)
    expected = dense(histogram, histogram.derivatives[..., column])
    slope = np.sum(observed * expected) / np.sum(expected**2)
    assert slope == pytest.approx(1.0, abs=0.04)
    assert np.corrcoef(observed.ravel(), expected.ravel())[0, 1] > 0.97


@pytest.mark.parametrize("name", ["Jpsi", "Z"])
def test_the_width_is_a_variance_of_the_curvature(name: str) -> None:
    """m goes as k^-1/2, so a variance v of k, symmetric in k, raises the mean mass by 3/8 v; in ln k by 1/8 v."""
    low, high = WINDOWS[name]
    wide = TemplateBinning(
        (-2.4, 2.4), (-1.0, 1.0), (1.0, 400.0), (1.0, 400.0), (0.9 * low, 1.1 * high), 3_000, low + 0.1
    )
    histogram = fill_templates([sample(name)], wide, step=STEP)
    assert histogram.n_outside == 0
    mean = float(sample(name).mass.mean())
    for column in (3, 7):
        change = float(wide.mass_centres @ histogram.derivatives[0, :, column]) / N_EVENTS
        assert change / mean == pytest.approx(0.375, abs=0.03)


@pytest.mark.parametrize("name", ["Jpsi", "Z"])
def test_derivatives_of_the_mean_mass_in_closed_form(name: str) -> None:
    """dm/m = -(f/2) dk/k of each muon, f the muon-mass factor: 0.995 at the J/psi, 1 at the Z."""
    low, high = WINDOWS[name]
    wide = TemplateBinning(
        (-2.4, 2.4), (-1.0, 1.0), (1.0, 400.0), (1.0, 400.0), (0.9 * low, 1.1 * high), 3_000, low + 0.1
    )
    events = sample(name)
    histogram = fill_templates([events], wide, step=STEP)
    change = wide.mass_centres @ histogram.derivatives[0]
    plus, minus = (np.hypot(m.pt * np.cosh(m.eta), MUON_MASS) for m in (events.plus, events.minus))
    share = 2.0 * MUON_MASS**2 / events.mass**2
    for first, muons, charge, factor in (
        (0, events.plus, 1.0, 1.0 - share * (1.0 + minus / plus)),
        (4, events.minus, -1.0, 1.0 - share * (1.0 + plus / minus)),
    ):
        half = -0.5 * factor * events.mass
        expected = [half.sum(), np.sum(-half / muons.pt), np.sum(half * charge * muons.pt)]
        np.testing.assert_allclose(change[first : first + 3], expected, rtol=1e-3)


class TestSameToTheBit:
    @pytest.mark.parametrize("weight", [None, weights])
    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_for_any_chunks_threads_and_order(self, weight: object, threads: int) -> None:
        events = sample("Jpsi")
        whole = fill_templates([events], BINNINGS["Jpsi"], step=STEP, weight=weight)  # type: ignore[arg-type]
        lengths = np.cumsum([1, 4_999, 11_900, 0, 100, 3, 7_997])
        chunks = [events.select(rows) for rows in np.split(np.arange(N_EVENTS), lengths)]
        for some in (chunks, chunks[::-1]):
            again = fill_templates(iter(some), BINNINGS["Jpsi"], step=STEP, weight=weight, threads=threads)  # type: ignore[arg-type]
            assert_same_to_the_bit(again, whole)

    def test_for_any_order_of_events(self) -> None:
        shuffled = sample("Z").select(np.random.default_rng(1).permutation(N_EVENTS))
        whole = fill_templates([sample("Z")], BINNINGS["Z"], step=STEP)
        assert_same_to_the_bit(fill_templates([shuffled], BINNINGS["Z"], step=STEP), whole)


class TestPhiSectors:
    def test_sum_to_the_whole(self) -> None:
        whole = fill_templates([sample("Z")], BINNINGS["Z"], step=STEP)
        binning = replace(BINNINGS["Z"], phi_sectors=5)
        split = fill_templates([sample("Z")], binning, step=STEP)
        for name in ("counts", "derivatives"):
            table = getattr(split, name)
            together = np.zeros((BINNINGS["Z"].n_bins, *table.shape[1:]))
            np.add.at(together, binning.without_phi(split.bins), table)
            np.testing.assert_allclose(together[whole.bins], getattr(whole, name), rtol=1e-12, atol=1e-6)

    @pytest.mark.parametrize(
        ("phi", "sector"), [(-np.pi, 0), (-1e-9, 1), (0.0, 2), (np.pi - 1e-9, 3), (np.pi, 3)]
    )  # fmt: skip
    def test_at_the_seams(self, phi: float, sector: int) -> None:
        """-pi starts the first sector; +pi, which readers may give, is in the last."""
        binning = replace(BINNINGS["Z"], phi_sectors=4)
        for plus in (True, False):
            here, there = (
                (pair(phi, phi - 3.0), (sector, None)) if plus else (pair(phi - 3.0, phi), (None, sector))
            )
            histogram = fill_templates([here], binning, step=1e-4)
            regions = binning.unravel(histogram.bins)[:2]
            for region, expected in zip(regions, there, strict=True):
                if expected is not None:
                    assert (region % 4).tolist() == [expected]


def pair(
    phi_plus: float = 0.0, phi_minus: float = 3.0, pt_plus: float = 45.0, pt_minus: float = 45.0
) -> DimuonEvents:
    """One Z at rest, nearly."""
    return DimuonEvents(
        Muons(np.array([pt_plus]), np.array([0.1]), np.array([phi_plus])),
        Muons(np.array([pt_minus]), np.array([0.1]), np.array([phi_minus])),
    )


class TestMigration:
    """A pair just outside counts in the derivatives of the cell that it would move into."""

    def test_over_the_cut_on_the_muon(self) -> None:
        """The cut is on pT m_ref/m: less curvature of the low muon brings it in, and so does more of the other."""
        low = pair(0.0, 3.0, 24.95, 84.0)
        mass = float(low.mass[0])
        axes = replace(BINNINGS["Z"], asymmetry_edges=(-1.0, 1.0), muon_pt=(25.0, 100.0))
        binning = replace(axes, mass_reference=mass)
        assert fill_templates([low, pair()], binning, step=1e-4).counts.sum() == 1.0
        both, alone = (
            fill_templates(events, binning, step=STEP).derivatives.sum(axis=(0, 1))
            for events in ([pair(), low], [pair()])
        )
        expected = np.array([[-1.0, 1.0 / 24.95, -24.95], [1.0, -1.0 / 84.0, -84.0]]) / (2.0 * STEP)
        change = (both - alone).reshape(2, 4)
        np.testing.assert_allclose(change[:, :3], expected, rtol=1e-5)
        np.testing.assert_allclose(change[:, 3], 1.0 / (2.0 * STEP**2), rtol=1e-9)
        higher = replace(axes, mass_reference=1.003 * mass)
        assert fill_templates([low], higher, step=1e-4).counts.sum() == 1.0

    def test_out_of_the_mass_window(self) -> None:
        mass = float(pair().mass[0])
        binning = replace(BINNINGS["Z"], mass_window=(80.0, mass * 1.001), mass_reference=85.0)
        histogram = fill_templates([pair()], binning, step=STEP)
        assert histogram.counts.sum() == 1.0
        # With less curvature of either muon the mass leaves: A > 0 keeps it, A < 0 loses it.
        change = histogram.derivatives.sum(axis=(0, 1))
        np.testing.assert_allclose(change[[0, 4]], 1.0 / (2.0 * STEP), rtol=1e-9)
        np.testing.assert_allclose(change[[3, 7]], -1.0 / (2.0 * STEP**2), rtol=1e-9)
        np.testing.assert_allclose(change[[2, 6]], np.array([45.0, -45.0]) / (2.0 * STEP), rtol=1e-6)


class TestInput:
    def test_derivatives_are_optional(self) -> None:
        whole = fill_templates([sample("Z")], BINNINGS["Z"], step=STEP)
        counts = fill_templates([sample("Z")], BINNINGS["Z"], step=STEP, derivatives=False)
        assert counts.derivatives.shape == (*counts.counts.shape, 0)
        np.testing.assert_array_equal(dense(counts, counts.counts), dense(whole, whole.counts))

    def test_the_cut_flows_are_asked_for_at_the_end(self) -> None:
        seen: list[int] = []

        def chunks() -> Iterator[DimuonEvents]:
            seen.append(len(sample("Z")))
            yield sample("Z")

        histogram = fill_templates(
            chunks(), BINNINGS["Z"], step=STEP, cut_flows=lambda: {"z": CutFlow(("all",), tuple(seen))}
        )
        assert histogram.cut_flows["z"].counts == (N_EVENTS,)

    def test_events_of_weight_zero_do_not_count(self) -> None:
        half: Floats = np.arange(N_EVENTS, dtype=np.float64) % 2
        weighted = fill_templates([sample("Z")], BINNINGS["Z"], step=STEP, weight=lambda _: half)
        chosen = fill_templates([sample("Z").select(half > 0)], BINNINGS["Z"], step=STEP)
        np.testing.assert_array_equal(dense(weighted, weighted.counts), dense(chosen, chosen.counts))
        np.testing.assert_array_equal(
            dense(weighted, weighted.derivatives), dense(chosen, chosen.derivatives)
        )

    def test_no_events_are_reported(self) -> None:
        mev = sample("Z").with_momenta(1e3 * sample("Z").plus.pt, 1e3 * sample("Z").minus.pt)
        for chunks in ([], [sample("Z").select(np.arange(0))], [mev]):
            with pytest.raises(InputError, match="no event inside the binning"):
                fill_templates(chunks, BINNINGS["Z"], step=STEP)

    @pytest.mark.parametrize("weight", [-0.1, 1e-5, 1e5, np.nan])
    def test_impossible_weights_are_refused(self, weight: float) -> None:
        with pytest.raises(InputError, match="weights must be 0 or between"):
            fill_templates(
                [sample("Z")], BINNINGS["Z"], step=STEP, weight=lambda events: np.full(len(events), weight)
            )

    @pytest.mark.parametrize("step", [0.0, -0.01, 0.5, np.nan])
    def test_impossible_steps_are_refused(self, step: float) -> None:
        with pytest.raises(InputError, match="step: a relative shift between 0"):
            fill_templates([sample("Z")], BINNINGS["Z"], step=step)

    def test_sums_that_would_overflow_are_an_error(self) -> None:
        with pytest.raises(OverflowError, match="sum to more than 1e"):
            fill_templates([sample("Z")], BINNINGS["Z"], step=STEP, weight=lambda e: np.full(len(e), 300.0))

    @pytest.mark.parametrize("column", ["pt", "eta", "phi"])
    def test_what_is_not_a_number_is_outside(self, column: str) -> None:
        good = sample("Z").select(np.flatnonzero(numpy_cells(sample("Z"), BINNINGS["Z"]) >= 0)[:10])
        spoilt = getattr(good.plus, column).copy()
        spoilt[:4] = np.nan
        binning = replace(BINNINGS["Z"], phi_sectors=2)
        bad = replace(good, plus=replace(good.plus, **{column: spoilt}))
        histogram = fill_templates([bad], binning, step=STEP)
        assert histogram.n_outside == 4
        assert np.all(np.isfinite(histogram.derivatives))


@pytest.mark.parametrize("decimals", [2, 3, 4, 16])
def test_halves_are_halves_whatever_the_rounding(decimals: int) -> None:
    """Of directions with few decimals, as text files have them; and the same halves after a correction."""
    from musclecal.fits.templates import _first_half

    rng = np.random.default_rng(3)
    n = 40_000
    eta, phi = (
        np.round(rng.uniform(-2.4, 2.4, (2, n)), decimals),
        np.round(rng.uniform(-3.1, 3.1, (2, n)), decimals),
    )
    pt = rng.uniform(25.0, 60.0, (2, n))
    events = DimuonEvents(Muons(pt[0], eta[0], phi[0]), Muons(pt[1], eta[1], phi[1]))
    half = _first_half(events)
    assert half.mean() == pytest.approx(0.5, abs=3.0 * 0.5 / np.sqrt(n))
    np.testing.assert_array_equal(_first_half(events.with_momenta(1.01 * pt[0], 0.99 * pt[1])), half)
