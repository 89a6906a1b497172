"""Response of simulated muons, and the bar of the weights: a full shift of the scale is reproduced to 1 %.

Muons of W decays. So that small numbers can be seen, each generated muon is measured at evenly spread quantiles of
its resolution, and "really moved" is its exact probability to be in a bin after the move.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from musclecal.boson_simulation import BosonSettings, w_draws
from musclecal.bosons import boson
from musclecal.errors import InputError
from musclecal.fits.response import fit_response, response_of
from musclecal.records import CorrectionTables, DimuonEvents, Floats, MuonResiduals, Muons, Response
from musclecal.scale import biased_curvature, relative_correction
from musclecal.simulate import ResolutionModel
from musclecal.weights import variation_weights, weight_derivatives

ETA_EDGES = np.array([-2.4, -1.5, -0.7, 0.0, 0.7, 1.5, 2.4])
N_ETA = len(ETA_EDGES) - 1
GEN_PT_EDGES = np.geomspace(20.0, 64.0, 13)
PT_EDGES = np.linspace(26.0, 56.0, 31)
RESOLUTION = ResolutionModel(
    ETA_EDGES, np.array([14.0, 11.0, 9.0, 9.0, 11.0, 14.0]) ** 2 * 1e-6, np.zeros(N_ETA),
    np.array([2.5, 1.5, 1.2, 1.3, 1.7, 2.5]) ** 2 * 1e-8, np.full(N_ETA, 370.0),
)  # fmt: skip
QUANTILES, GENERATED = 64, 16_000
A = np.array([0.5, -0.3, 0.8, 0.2, -0.4, 0.4]) * 1e-4
E = np.array([0.8, 0.4, -0.4, 0.6, 0.3, -0.7]) * 1e-3
M = np.array([-0.5, 0.9, 0.3, 0.6, -0.4, -0.6]) * 1e-6
"""A variation of the size of today's calibrations: |dk/k| up to 1e-4 at pT 40 GeV."""


def sigma_of(pt: Floats, eta: Floats) -> Floats:
    i = np.searchsorted(ETA_EDGES, eta, side="right") - 1
    return np.asarray(np.sqrt(RESOLUTION.a[i] + RESOLUTION.c[i] * pt * pt))


@dataclass(frozen=True)
class Sample:
    """Muons of one charge: generated ``pt``, ``eta``, and measured ``pt`` (GENERATED, QUANTILES) of each."""

    charge: int
    gen_pt: Floats
    eta: Floats
    measured: Floats

    def columns(self) -> tuple[Floats, Floats, int, Floats]:
        """pt, eta, charge, gen_pt of all measurements."""
        eta, gen_pt = (np.repeat(x, QUANTILES) for x in (self.eta, self.gen_pt))
        return self.measured.ravel(), eta, self.charge, gen_pt

    def muons(self) -> tuple[Muons, Muons]:
        pt, eta, _, gen_pt = self.columns()
        zero = np.zeros(len(pt))
        return Muons(pt, eta, zero), Muons(gen_pt, eta, zero)

    def template(self, weights: Floats) -> Floats:
        """(n_eta, n_pt) sums of weights."""
        pt, eta, _, _ = self.columns()
        return np.asarray(np.histogram2d(eta, pt, [ETA_EDGES, PT_EDGES], weights=weights)[0])

    def expected(self, a: Floats, e: Floats, m: Floats) -> Floats:
        """(n_eta, n_pt) what `template` of 1 would be on average, had the curvatures been corrected with a, e, m."""
        i = np.searchsorted(ETA_EDGES, self.eta, side="right") - 1
        sigma = sigma_of(self.gen_pt, self.eta)
        above = np.empty((N_ETA, len(PT_EDGES)))
        for j, edge in enumerate(PT_EDGES):
            k = np.array([biased_curvature(1.0 / edge, self.charge, *x) for x in zip(a, e, m, strict=True)])
            above[:, j] = np.bincount(i, ndtr((k[i] * self.gen_pt - 1.0) / sigma), N_ETA)
        return QUANTILES * (above[:, :-1] - above[:, 1:])


def sample(charge: int) -> Sample:
    pt, eta = w_draws(BosonSettings(boson("W+" if charge > 0 else "W-")), 1, 0)[:, :2].T
    kept = (pt > 18.0) & (pt < 80.0) & (np.abs(eta) < 2.4)
    pt, eta = pt[kept][:GENERATED], eta[kept][:GENERATED]
    rng = np.random.default_rng([charge + 1, 7])
    g = ndtri((np.arange(QUANTILES) + rng.random((GENERATED, QUANTILES))) / QUANTILES)
    return Sample(charge, pt, eta, pt[:, None] / (1.0 + sigma_of(pt, eta)[:, None] * g))


def events_of(plus: Sample, minus: Sample) -> DimuonEvents:
    measured, generated = zip(plus.muons(), minus.muons(), strict=True)
    return DimuonEvents(*measured, *generated)


@pytest.fixture(scope="module")
def samples() -> tuple[Sample, Sample]:
    return sample(+1), sample(-1)


@pytest.fixture(scope="module")
def response(samples: tuple[Sample, Sample]) -> Response:
    return fit_response([events_of(*samples)], ETA_EDGES, GEN_PT_EDGES, threads=1)


def test_a_gaussian_gives_the_slope_of_a_gaussian() -> None:
    """Expected counts, so no noise: g'(rho) = -(rho - 1 - location)/sigma^2 to 1e-3 out to three sigma."""
    parts = np.linspace(20.0, 60.0, 41)
    middles = 0.5 * (parts[1:] + parts[:-1])
    axis = np.linspace(-0.25, 0.25, 2001)
    location = {1: 1e-5 * middles, -1: np.full(40, -2e-4)}
    residuals = []
    for at in location.values():
        sigma = sigma_of(middles, np.full(40, 0.1))
        below = ndtr((axis - at[:, None]) / sigma[:, None])
        counts = np.round(1e7 * np.diff(below, axis=1)).astype(np.int64)[None]
        residuals.append(
            MuonResiduals(np.array([0.0, 0.7]), parts, counts, 0.25, middles[None], middles[None] ** 2, 0)
        )
    found = response_of(*residuals)
    t = np.linspace(-3.0, 3.0, 61)
    for charge, at in location.items():
        for n in (10, 18, 28):
            sigma = sigma_of(middles[[n]], np.array([0.1]))[0]
            rho = 1.0 + at[n] + sigma * t
            got = weight_derivatives(found, middles[n] / rho, 0.1, charge, middles[n])
            np.testing.assert_allclose(-charge * got[:, 2] / middles[n] * sigma, -t, rtol=0.0, atol=3e-3)
            inner = np.abs(t) <= 2.0
            np.testing.assert_allclose(
                (-charge * got[:, 2] / middles[n] * sigma)[inner], -t[inner], rtol=0.0, atol=1e-3
            )


def shifts_of(name: str, size: float) -> tuple[Floats, Floats, Floats]:
    """A relative shift of the curvature by ``size`` at pT 40 GeV; "all": by up to ``size``, other in each eta bin."""
    one, zero = np.full(N_ETA, size), np.zeros(N_ETA)
    return {
        "A": (one, zero, zero),
        "e": (zero, 40.0 * one, zero),
        "M": (zero, zero, one / 40.0),
        "all": (A * size / 1e-4, E * size / 1e-4, M * size / 1e-4),
    }[name]


def tables_of(a: Floats, e: Floats, m: Floats) -> CorrectionTables:
    zero = np.zeros(N_ETA)
    return CorrectionTables(
        ETA_EDGES, zero, zero, zero, np.zeros((3 * N_ETA, 3 * N_ETA)), 1.0, ("one",),
        np.stack([a, e, m], axis=1)[:, :, None], (2.0, 200.0), None, {}, {},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["A", "e", "M", "all"])
def test_a_full_shift_is_reproduced(name: str, samples: tuple[Sample, Sample], response: Response) -> None:
    """1 + theta d ln w against the move itself, sizes 1e-4 and 1e-3, both signs, both charges: slope 1 +- 0.01."""
    for one in samples:
        nominal = one.expected(*shifts_of(name, 0.0))
        unit = variation_weights(response, tables_of(*shifts_of(name, 1.0)), *one.columns())[:, 0]
        change = one.template(unit)
        for size in (1e-4, -1e-4, 1e-3, -1e-3):
            moved = one.expected(*shifts_of(name, size)) - nominal
            slope = size * (change * moved).sum() / (moved * moved).sum()
            assert slope == pytest.approx(1.0, abs=0.01), f"charge {one.charge}, size {size}"


@pytest.mark.parametrize("name", ["A", "e", "M", "all"])
def test_no_yield_changes(name: str, samples: tuple[Sample, Sample], response: Response) -> None:
    """The mean weight where nothing leaves the cells is 1: to 1e-5 (the bar is 1e-4), in all and in each eta bin."""
    unit = tables_of(*shifts_of(name, 1e-3))
    for one in samples:
        weights = 1.0 + variation_weights(response, unit, *one.columns())[:, 0]
        assert weights.mean() == pytest.approx(1.0, abs=1e-5)
        eta = one.columns()[1]
        for low, high in pairwise(ETA_EDGES):
            assert weights[(eta >= low) & (eta < high)].mean() == pytest.approx(1.0, abs=3e-5)


def test_muons_that_were_really_moved(samples: tuple[Sample, Sample], response: Response) -> None:
    """Measured pT shifted and counted again: few muons cross an edge, so agreement is only that of their noise."""
    shift = shifts_of("all", 2e-3)
    middles = 0.5 * (PT_EDGES[1:] + PT_EDGES[:-1])
    for one in samples:
        pt, eta, charge, _ = one.columns()
        i = np.searchsorted(ETA_EDGES, eta, side="right") - 1
        moved = replace(one, measured=pt / (1.0 + relative_correction(pt, charge, *(x[i] for x in shift))))
        nominal = one.template(np.ones(len(pt)))
        real = moved.template(np.ones(len(pt))) - nominal
        weighted = one.template(variation_weights(response, tables_of(*shift), *one.columns())[:, 0])
        path = middles * np.abs(relative_correction(middles, charge, *(x[:, None] for x in shift)))
        variance = 2.0 * path / np.diff(PT_EDGES) * nominal + 1.0
        error = 1.0 / np.sqrt((weighted**2 / variance).sum())
        assert error < 0.1
        assert (weighted * real / variance).sum() * error**2 == pytest.approx(1.0, abs=3.0 * error)


def test_a_location_of_each_charge_is_found(samples: tuple[Sample, Sample]) -> None:
    """Simulation with a bias q M of its own: with one location for both charges the mean weight would be off by 6."""
    moved = []
    for one in samples:
        k = 1.0 / one.measured + one.charge * 2e-5
        moved.append(replace(one, measured=1.0 / k))
    found = fit_response([events_of(*moved)], ETA_EDGES, GEN_PT_EDGES)
    pt = GEN_PT_EDGES[2:10]
    np.testing.assert_allclose(
        found.location[0, :, 2:10] - found.location[1, :, 2:10], 4e-5 * pt + np.zeros((6, 1)), atol=4e-4
    )
    for one in moved:
        assert weight_derivatives(found, *one.columns())[:, 0].mean() == pytest.approx(0.0, abs=0.01)


def mixture(x: Floats) -> tuple[Floats, Floats]:
    """ln density and its derivative of 0.85 N(0, 1) + 0.15 N(0.5, 2.5)."""
    core, tail = 0.85 * np.exp(-0.5 * x**2), 0.15 / 2.5 * np.exp(-0.5 * ((x - 0.5) / 2.5) ** 2)
    total = core + tail
    return np.log(total / np.sqrt(2.0 * np.pi)), -(core * x + tail * (x - 0.5) / 6.25) / total


def test_tails_and_asymmetry_are_followed() -> None:
    rng = np.random.default_rng(5)
    n = 300_000
    both = []
    for _ in range(2):
        t = np.where(rng.random(n) < 0.15, rng.normal(0.5, 2.5, n), rng.normal(size=n))
        gen_pt, eta = rng.uniform(25.0, 50.0, n), rng.uniform(-1.0, 1.0, n)
        both.append((Muons(gen_pt / (1.0 + 0.01 * t), eta, eta), Muons(gen_pt, eta, eta)))
    measured, generated = zip(*both, strict=True)
    events = DimuonEvents(*measured, *generated)
    found = fit_response([events], np.array([-1.0, 1.0]), np.array([25.0, 30.0, 40.0, 50.0]))
    t = np.linspace(-5.0, 6.0, 111)
    got = -weight_derivatives(found, 35.0 / (1.0 + 0.01 * t), 0.0, 1, 35.0)[:, 2] / 35.0 * 0.01
    log_density, expected = mixture(t)
    assert np.abs(got - expected).max() < 0.15
    assert np.sqrt(np.average((got - expected) ** 2, weights=np.exp(log_density))) < 0.02
    score = weight_derivatives(found, events.plus.pt, events.plus.eta, 1, generated[0].pt)
    assert score[:, 0].mean() == pytest.approx(0.0, abs=0.05)
    assert np.abs(found.slope).max() < 8.0


def test_chunks_and_threads_do_not_matter(samples: tuple[Sample, Sample], response: Response) -> None:
    events = events_of(*samples)
    parts = [events.select(np.arange(i, len(events), 3)) for i in range(3)]
    again = fit_response(parts, ETA_EDGES, GEN_PT_EDGES, threads=2)
    for name in ("location", "width", "log_density", "slope", "n_muons"):
        np.testing.assert_array_equal(getattr(again, name), getattr(response, name))
    assert response.n_muons.sum() + response.n_beyond < 2 * len(events)
    assert response.n_beyond == 0


def test_the_density_is_one(response: Response) -> None:
    step = response.nodes[1] - response.nodes[0]
    np.testing.assert_allclose(np.exp(response.log_density).sum(axis=1) * step, 1.0, rtol=1e-3)


def test_the_slope_is_that_of_the_density(response: Response) -> None:
    """Central differences of ln density at the nodes; the third derivative leaves less than 0.02."""
    numerical = np.gradient(response.log_density, response.nodes, axis=1)
    np.testing.assert_allclose(response.slope[:, 1:-1], numerical[:, 1:-1], rtol=0.0, atol=0.02)


BAD: dict[str, tuple[Callable[[DimuonEvents], DimuonEvents], Floats, Floats, str]] = {
    "few": (
        lambda e: e,
        ETA_EDGES,
        np.array([20.0, 40.0, 79.0, 80.0]),
        r"\d+ mu[+-] in eta bin \d .* 79 to 80 GeV",
    ),
    "no truth": (
        lambda e: DimuonEvents(e.plus, e.minus),
        ETA_EDGES,
        GEN_PT_EDGES,
        "no generator-level muons",
    ),
    "edges": (lambda e: e, ETA_EDGES[::-1], GEN_PT_EDGES, "eta_edges must be finite and increasing"),
    "negative": (lambda e: e, ETA_EDGES, np.array([-1.0, 40.0]), "pt_edges must be positive"),
    "nan": (lambda e: e, ETA_EDGES, np.array([20.0, np.nan]), "pt_edges must be finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str, samples: tuple[Sample, Sample]) -> None:
    change, eta_edges, pt_edges, words = BAD[name]
    with pytest.raises(InputError, match=words):
        fit_response([change(events_of(*samples))], eta_edges, pt_edges)


def test_weights_of_smeared_muons_are_those_of_their_momenta_before(
    samples: tuple[Sample, Sample], response: Response
) -> None:
    """The change of smooth bumps in the smeared pT when muons really move; the smearing is as wide as the resolution.

    Noise is some per cent; with the momenta after the smearing the change is half as large again.
    """
    centres, shifts = np.linspace(28.0, 54.0, 14)[:, None], (1e-4, 4e-3, 2.5e-6)

    def bumps(pt: Floats) -> Floats:
        return np.asarray(np.exp(-0.5 * ((pt - centres) / 2.0) ** 2))

    rng = np.random.default_rng(3)
    before, after, moved = (np.zeros((2, 3, len(centres))) for _ in range(3))
    for c, one in enumerate(samples):
        some = rng.permutation(GENERATED * QUANTILES)[:250_000]
        pt, eta, q, gen_pt = one.columns()
        pt, eta, gen_pt = pt[some], eta[some], gen_pt[some]
        wider = 1.0 + 0.01 * rng.normal(size=len(pt))
        smeared = bumps(pt / wider)
        by_k = (np.ones(len(pt)), -1.0 / pt, q * pt)
        for p, shift in enumerate(shifts):
            before[c, p] = smeared @ weight_derivatives(response, pt, eta, q, gen_pt)[:, p] * shift
            after[c, p] = smeared @ weight_derivatives(response, pt / wider, eta, q, gen_pt)[:, p] * shift
            up, down = (
                bumps(pt / (1.0 + sign * shift * by_k[p]) / wider).sum(axis=1) for sign in (1.0, -1.0)
            )
            moved[c, p] = 0.5 * (up - down)
    size = np.sum(moved * moved, axis=(0, 2))
    np.testing.assert_allclose(np.sum(before * moved, axis=(0, 2)) / size, 1.0, atol=0.1)
    assert np.all(np.sum(after * moved, axis=(0, 2)) / size > 1.4)
